package httpapi

import "time"

// Status is the state of the manager for people.
type Status struct {
	Version    string           `json:"version" example:"1.0.0" doc:"Version of the manager."`
	Time       time.Time        `json:"time" example:"2026-11-23T09:30:00Z" doc:"The manager's clock."`
	Log        LogStatus        `json:"log" doc:"The event log."`
	Projection ProjectionStatus `json:"projection" doc:"The read model."`
	Devices    DeviceCounts     `json:"devices" doc:"How many devices there are."`
	VMs        VMCounts         `json:"vms" doc:"How many virtual machines there are."`
	Tasks      TaskCounts       `json:"tasks" doc:"How many tasks there are."`
}

// LogStatus is the state of the event log.
type LogStatus struct {
	Position uint64 `json:"position" example:"1843" doc:"Position of the newest decision."`
	Bytes    uint64 `json:"bytes" example:"1048576" doc:"Size on disk."`
}

// ProjectionStatus is the state of the read model.
type ProjectionStatus struct {
	Position uint64 `json:"position" example:"1843" doc:"Position that reads show."`
	Lag      uint64 `json:"lag" example:"0" doc:"How many decisions it is behind the log."`
	Error    string `json:"error,omitempty" example:"apply position 17: decode VMObserved version 1" doc:"Why it stopped; absent when it runs."`
}

// DeviceCounts counts devices.
type DeviceCounts struct {
	Total       int `json:"total" minimum:"0" example:"120" doc:"All devices, retired ones too."`
	Pending     int `json:"pending" minimum:"0" example:"2" doc:"Those that wait for approval."`
	Approved    int `json:"approved" minimum:"0" example:"113" doc:"Those that may be managed."`
	Rejected    int `json:"rejected" minimum:"0" example:"1" doc:"Those that were turned down."`
	Quarantined int `json:"quarantined" minimum:"0" example:"1" doc:"Those in quarantine."`
	Retired     int `json:"retired" minimum:"0" example:"3" doc:"Those that were retired."`
	Connected   int `json:"connected" minimum:"0" example:"110" doc:"Those with a session."`
}

// TaskCounts counts tasks.
type TaskCounts struct {
	Open int `json:"open" minimum:"0" example:"3" doc:"Those that have not ended."`
}

// Whoami says whom a request acts for.
type Whoami struct {
	Actor   string    `json:"actor" example:"user:019e1b7a-5a40-7c35-9d3c-2f0a1b2c3d4e" doc:"The actor that events caused by the caller show."`
	User    string    `json:"user" format:"uuid" example:"019e1b7a-5a40-7c35-9d3c-2f0a1b2c3d4e" doc:"The user's id."`
	Login   string    `json:"login" example:"ann" doc:"The user's login."`
	Name    string    `json:"name,omitempty" example:"Ann Example" doc:"The user's name."`
	Grants  []Grant   `json:"grants" doc:"What the user may do."`
	Method  string    `json:"method" enum:"token,session" example:"token" doc:"Whether the request came with an API token or a session."`
	Token   *APIToken `json:"token,omitempty" doc:"The API token: it permits what both it and the user's grants permit."`
	Session string    `json:"session,omitempty" example:"4f2k9d0a7b1c8e3h" doc:"Id of the session."`
	Expires time.Time `json:"expires" example:"2027-02-21T09:30:00Z" doc:"When the token or session ends."`
}
