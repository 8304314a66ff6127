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
	Total     int `json:"total" minimum:"0" example:"120" doc:"All devices, retired ones too."`
	Pending   int `json:"pending" minimum:"0" example:"2" doc:"Those that wait for approval."`
	Approved  int `json:"approved" minimum:"0" example:"115" doc:"Those that may be managed."`
	Retired   int `json:"retired" minimum:"0" example:"3" doc:"Those that were retired."`
	Connected int `json:"connected" minimum:"0" example:"110" doc:"Those with a session."`
}

// TaskCounts counts tasks.
type TaskCounts struct {
	Open int `json:"open" minimum:"0" example:"3" doc:"Those that have not ended."`
}

// Whoami says whom a request's token stands for.
type Whoami struct {
	Actor string `json:"actor" example:"user:admin" doc:"The actor that events caused by the caller show."`
	Name  string `json:"name" example:"admin" doc:"The user's id."`
}
