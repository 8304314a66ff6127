package httpapi

import (
	"maps"
	"time"

	"pallas/events"
)

// Device is an edge site's host as the manager knows it.
type Device struct {
	ID               string            `json:"id" format:"uuid" example:"6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f" doc:"Permanent id, made by the device itself."`
	Name             string            `json:"name" maxLength:"253" example:"shop-0042" doc:"Display name. Starts as the host's name."`
	Labels           map[string]string `json:"labels" example:"{\"site\":\"fra\",\"role\":\"pos\"}" doc:"Labels, for selectors."`
	Notes            string            `json:"notes,omitempty" example:"Behind the counter." doc:"What people have written down about it. Not in lists."`
	Site             *Site             `json:"site,omitempty" doc:"Where it stands, if somebody said."`
	Trust            string            `json:"trust" enum:"pending,approved,rejected,quarantined,retired" example:"approved" doc:"Whether the device may be managed: pending waits for approval, rejected and quarantined get nothing until somebody decides otherwise, retired is the end."`
	TrustSince       time.Time         `json:"trustSince,omitzero" example:"2026-11-20T08:00:00Z" doc:"When the trust last changed."`
	TrustBy          string            `json:"trustBy,omitempty" example:"user:admin" doc:"Who changed it: a user, the join token of the device, or a part of the manager."`
	TrustReason      string            `json:"trustReason,omitempty" example:"stolen from the van" doc:"Why it is what it is, if somebody said."`
	TrustCause       string            `json:"trustCause,omitempty" enum:"operator,clone,client_id,flood" example:"operator" doc:"What led to the quarantine: an operator, another key or a second running agent with the device's id, the client id of another device, or too much traffic again and again. Only while quarantined."`
	TrustBefore      string            `json:"trustBefore,omitempty" enum:"pending,approved,rejected" example:"approved" doc:"The trust that a release gives back. Only while quarantined."`
	KeyClaim         *KeyClaim         `json:"keyClaim,omitempty" doc:"Another key that asked for a certificate for this device. Only while quarantined."`
	Connection       string            `json:"connection" enum:"connected,lost,never" example:"connected" doc:"Whether the device has a session. A loss shows after a short grace time."`
	ConnectionSince  time.Time         `json:"connectionSince,omitzero" example:"2026-11-23T09:30:00Z" doc:"When the connection last changed; absent when it never connected."`
	LostReason       string            `json:"lostReason,omitempty" example:"Client Closed" doc:"Why the last session ended, while it is lost."`
	Address          string            `json:"address,omitempty" example:"203.0.113.7" doc:"Where the last session came from, without a port."`
	AgentVersion     string            `json:"agentVersion,omitempty" example:"1.0.0" doc:"Version of the agent."`
	Condition        string            `json:"condition" enum:"ok,readOnly,denied,unreachable,unknown" example:"ok" doc:"How well the agent can manage its host: readOnly is a licence that forbids changes, denied a refused login, unreachable a host that does not answer, unknown before the first report."`
	ConditionMessage string            `json:"conditionMessage,omitempty" example:"the host does not answer" doc:"The host's or the agent's own explanation of the condition."`
	ConditionSince   time.Time         `json:"conditionSince,omitzero" example:"2026-11-23T09:30:00Z" doc:"When the condition last changed."`
	RegisteredAt     time.Time         `json:"registeredAt,omitzero" example:"2026-11-20T08:00:00Z" doc:"When the device registered."`
	ApprovedAt       time.Time         `json:"approvedAt,omitzero" example:"2026-11-20T08:00:00Z" doc:"When the device was approved; absent before."`
	ApprovedBy       string            `json:"approvedBy,omitempty" example:"user:admin" doc:"Who approved it; the device itself when its join token did."`
	RetiredAt        time.Time         `json:"retiredAt,omitzero" example:"2026-11-23T10:00:00Z" doc:"When the device was retired; absent before."`
	RetiredBy        string            `json:"retiredBy,omitempty" example:"user:admin" doc:"Who retired it."`
	RetiredReason    string            `json:"retiredReason,omitempty" example:"hardware replaced" doc:"Why it was retired, if somebody said."`
	JoinToken        string            `json:"joinToken,omitempty" example:"019e1b7a-5a40-7c35-9d3c-2f0a1b2c3d4e" doc:"Join token that let the device in."`
	Certificate      *Certificate      `json:"certificate,omitempty" doc:"The device's newest certificate."`
	VMs              VMCounts          `json:"vms" doc:"How many virtual machines the host has."`
	Host             *Host             `json:"host,omitempty" doc:"What the host says of itself; absent before its first report. Lists leave datastores and networks out."`
	Usage            *DeviceUsage      `json:"usage,omitempty" doc:"What its connections cost. Not in lists."`
	UpdatedAt        time.Time         `json:"updatedAt,omitzero" example:"2026-11-23T09:30:01Z" doc:"When anything of this last changed."`
	Revision         uint64            `json:"revision" example:"1841" doc:"Revision of the device's identity, trust, presence and labels. The first number of the ETag."`
}

// Site is a place where devices stand.
type Site struct {
	Name      string   `json:"name" example:"Frankfurt, Zeil 106" doc:"Name of the place."`
	Latitude  *float64 `json:"latitude,omitempty" minimum:"-90" maximum:"90" example:"50.1147" doc:"Degrees north (WGS 84); absent when not known."`
	Longitude *float64 `json:"longitude,omitempty" minimum:"-180" maximum:"180" example:"8.6821" doc:"Degrees east (WGS 84); absent when not known."`
}

// KeyClaim is another key that asked for a certificate for a device's id, with
// a valid join token.
type KeyClaim struct {
	KeyHash      string    `json:"keyHash" example:"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08" doc:"SHA-256 of the public key (SPKI, DER) in lower-case hex: for rekey-device."`
	Name         string    `json:"name" example:"esx-fra-07" doc:"What the claimant calls itself."`
	AgentVersion string    `json:"agentVersion,omitempty" example:"1.0.0" doc:"Version of its agent."`
	JoinToken    string    `json:"joinToken" example:"019e1b7a-5a40-7c35-9d3c-2f0a1b2c3d4e" doc:"Join token that it presented."`
	Address      string    `json:"address,omitempty" example:"203.0.113.9" doc:"Where it asked from, without a port."`
	At           time.Time `json:"at" example:"2026-11-23T09:30:00Z" doc:"When it asked first."`
}

// VMCounts counts a host's virtual machines.
type VMCounts struct {
	Total int `json:"total" minimum:"0" example:"4" doc:"All virtual machines."`
	On    int `json:"on" minimum:"0" example:"3" doc:"Those that are powered on."`
}

// Certificate is a device certificate.
type Certificate struct {
	Serial   string    `json:"serial" example:"3a9f00c1d2e4b5f6" doc:"Serial number in lower-case hex."`
	NotAfter time.Time `json:"notAfter" example:"2027-02-18T08:00:00Z" doc:"End of validity."`
	Issuer   string    `json:"issuer,omitempty" example:"9f86d081884c7d65" doc:"The CA that signed it: the first 8 bytes of the SHA-256 of its certificate, in hex."`
	Reason   string    `json:"reason,omitempty" enum:"enrol,renew,rotate,lapsed" example:"renew" doc:"Why the device got it: by a join token, in time, because an operator wanted it, or because the one before was not good any more."`
	// RotationRequestedAt is part of the certificate, because its change ends it.
	RotationRequestedAt time.Time `json:"rotationRequestedAt,omitzero" example:"2026-11-23T10:00:00Z" doc:"Since when the device is to get another one; absent when it is not."`
	Anchors             []string  `json:"anchors,omitempty" example:"[\"9f86d081884c7d65\"]" doc:"The CAs that the device accepts the manager by, named as the issuer is; absent while it has only ever known one."`
}

// DeviceIdentity is what a change of a device answers: the part of a [Device]
// that operators change, as it is after the change.
type DeviceIdentity struct {
	ID           string            `json:"id" format:"uuid" example:"6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f" doc:"Permanent id."`
	Name         string            `json:"name" example:"shop-0042" doc:"Display name."`
	Labels       map[string]string `json:"labels" example:"{\"site\":\"fra\"}" doc:"Labels, complete."`
	Notes        string            `json:"notes,omitempty" example:"Behind the counter." doc:"What people have written down about it."`
	Site         *Site             `json:"site,omitempty" doc:"Where it stands, if somebody said."`
	Trust        string            `json:"trust" enum:"pending,approved,rejected,quarantined,retired" example:"approved" doc:"Whether the device may be managed."`
	Connection   string            `json:"connection" enum:"connected,lost,never" example:"connected" doc:"Whether the device has a session."`
	AgentVersion string            `json:"agentVersion,omitempty" example:"1.0.0" doc:"Version of the agent."`
	Revision     uint64            `json:"revision" example:"1842" doc:"Revision after the change."`
}

// Host is what a hypervisor host says of itself.
type Host struct {
	Name        string      `json:"name" example:"esx-0042" doc:"Host name."`
	Vendor      string      `json:"vendor,omitempty" example:"Dell Inc." doc:"Maker of the machine."`
	Model       string      `json:"model,omitempty" example:"PowerEdge XR4510c" doc:"Model of the machine."`
	Serial      string      `json:"serial,omitempty" example:"7C4XK93" doc:"Serial number of the machine."`
	UUID        string      `json:"uuid,omitempty" example:"4c4c4544-0043-3410-8058-b7c04f4b3933" doc:"Hardware UUID."`
	Product     string      `json:"product" example:"VMware ESXi" doc:"Hypervisor."`
	Version     string      `json:"version" example:"8.0.3" doc:"Version of the hypervisor."`
	Build       string      `json:"build" example:"24022510" doc:"Build of the hypervisor."`
	CPUModel    string      `json:"cpuModel,omitempty" example:"Intel(R) Xeon(R) D-2776NT" doc:"Processor model."`
	CPUSockets  int         `json:"cpuSockets" minimum:"0" example:"1" doc:"Processor packages."`
	CPUCores    int         `json:"cpuCores" minimum:"0" example:"16" doc:"Processor cores."`
	CPUThreads  int         `json:"cpuThreads" minimum:"0" example:"32" doc:"Processor threads."`
	CPUMHz      int         `json:"cpuMHz" minimum:"0" example:"2100" doc:"Clock rate in MHz."`
	MemoryMiB   int64       `json:"memoryMiB" minimum:"0" example:"131072" doc:"Memory in MiB."`
	BootTime    time.Time   `json:"bootTime,omitzero" example:"2026-10-01T04:12:00Z" doc:"When the host booted."`
	Maintenance bool        `json:"maintenance" example:"false" doc:"Whether the host is in maintenance mode."`
	License     License     `json:"license" doc:"What the host is licensed for."`
	Datastores  []Datastore `json:"datastores,omitempty" doc:"Datastores. Not in lists."`
	Networks    []Network   `json:"networks,omitempty" doc:"Networks. Not in lists."`
}

// License is what a host is licensed for. The key is never shown.
type License struct {
	Name     string    `json:"name,omitempty" example:"vSphere 8 Standard" doc:"Name of the licence."`
	Edition  string    `json:"edition,omitempty" example:"esx.standard.cpuPackageCoreLimited" doc:"Edition key."`
	Expires  time.Time `json:"expires,omitzero" example:"2027-06-30T00:00:00Z" doc:"When it ends; absent when it does not."`
	Writable bool      `json:"writable" example:"true" doc:"Whether it lets the API change anything. Free ESXi editions do not."`
	Reason   string    `json:"reason,omitempty" example:"the host answered RestrictedVersion" doc:"How that was found out, when writable is false."`
}

// Datastore is a place for virtual disks and files.
type Datastore struct {
	ID          string `json:"id" example:"5f2a-datastore1" doc:"Id on the host."`
	Name        string `json:"name" example:"datastore1" doc:"Name."`
	Type        string `json:"type" example:"VMFS" doc:"File system type."`
	CapacityMiB int64  `json:"capacityMiB" minimum:"0" example:"1907348" doc:"Size in MiB."`
	FreeMiB     int64  `json:"freeMiB" minimum:"0" example:"902144" doc:"Free space in MiB, reported in steps."`
	Accessible  bool   `json:"accessible" example:"true" doc:"Whether the host reaches it."`
}

// Network is a network that virtual machines can be attached to.
type Network struct {
	ID   string `json:"id" example:"HaNetwork-VM Network" doc:"Id on the host."`
	Name string `json:"name" example:"VM Network" doc:"Name."`
}

// HostOf returns the representation of a host. Without details it leaves
// datastores and networks out.
func HostOf(h *events.Host, details bool) *Host {
	if h == nil {
		return nil
	}
	out := &Host{
		Name: h.Name, Vendor: h.Vendor, Model: h.Model, Serial: h.Serial, UUID: h.UUID,
		Product: h.Product, Version: h.Version, Build: h.Build,
		CPUModel: h.CPUModel, CPUSockets: h.CPUSockets, CPUCores: h.CPUCores, CPUThreads: h.CPUThreads, CPUMHz: h.CPUMHz,
		MemoryMiB: h.MemoryMiB, BootTime: h.BootTime, Maintenance: h.Maintenance,
		License: License{Name: h.License.Name, Edition: h.License.Edition, Expires: h.License.Expires, Writable: h.License.Writable, Reason: h.License.Reason},
	}
	if !details {
		return out
	}
	for _, d := range h.Datastores {
		out.Datastores = append(out.Datastores, Datastore(d))
	}
	for _, n := range h.Networks {
		out.Networks = append(out.Networks, Network(n))
	}
	return out
}

// SiteOf returns the representation of a site, nil for none.
func SiteOf(s *events.Site) *Site {
	if s == nil {
		return nil
	}
	return (*Site)(new(*s))
}

// LabelsOf returns a copy of labels that is never nil, so that JSON shows an
// empty object.
func LabelsOf(labels map[string]string) map[string]string {
	if labels == nil {
		return map[string]string{}
	}
	return maps.Clone(labels)
}

// ConditionOf returns the word for a condition; "unknown" before any report.
func ConditionOf(c events.Condition) string {
	if c == "" {
		return "unknown"
	}
	return string(c)
}
