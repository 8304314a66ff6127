package wire

// Power states of a virtual machine.
const (
	PowerOn        = "on"
	PowerOff       = "off"
	PowerSuspended = "suspended"
	PowerUnknown   = "unknown"
)

// States of the guest tools.
const (
	ToolsRunning      = "running"
	ToolsNotRunning   = "notRunning"
	ToolsNotInstalled = "notInstalled"
	ToolsUnknown      = "unknown"
)

// Host is what a hypervisor host says of itself. Sizes are in MiB, clock rates
// in MHz.
type Host struct {
	Name        string      `cbor:"1,keyasint"`
	Vendor      string      `cbor:"2,keyasint,omitempty"`
	Model       string      `cbor:"3,keyasint,omitempty"`
	Serial      string      `cbor:"4,keyasint,omitempty"`
	UUID        string      `cbor:"5,keyasint,omitempty"`
	Product     string      `cbor:"6,keyasint,omitempty"`
	Version     string      `cbor:"7,keyasint,omitempty"`
	Build       string      `cbor:"8,keyasint,omitempty"`
	CPUModel    string      `cbor:"9,keyasint,omitempty"`
	CPUSockets  int         `cbor:"10,keyasint,omitempty"`
	CPUCores    int         `cbor:"11,keyasint,omitempty"`
	CPUThreads  int         `cbor:"12,keyasint,omitempty"`
	CPUMHz      int         `cbor:"13,keyasint,omitempty"`
	MemoryMiB   int64       `cbor:"14,keyasint,omitempty"`
	BootTime    int64       `cbor:"15,keyasint,omitempty"` // Unix seconds, 0 when unknown
	Maintenance bool        `cbor:"16,keyasint,omitempty"`
	License     License     `cbor:"17,keyasint"`
	Datastores  []Datastore `cbor:"18,keyasint,omitempty"` // sorted by ID
	Networks    []Network   `cbor:"19,keyasint,omitempty"` // sorted by ID
}

// License is what the host is licensed for, without the key.
type License struct {
	Name     string `cbor:"1,keyasint,omitempty"`
	Edition  string `cbor:"2,keyasint,omitempty"`
	Expires  int64  `cbor:"3,keyasint,omitempty"` // Unix seconds, 0 for never
	Writable bool   `cbor:"4,keyasint,omitempty"`
	Reason   string `cbor:"5,keyasint,omitempty"`
}

// Datastore is a place for virtual disks and files. FreeMiB is rounded down to
// 1 % of the capacity, so that it does not change with each write.
type Datastore struct {
	ID          string `cbor:"1,keyasint"`
	Name        string `cbor:"2,keyasint"`
	Type        string `cbor:"3,keyasint,omitempty"`
	CapacityMiB int64  `cbor:"4,keyasint,omitempty"`
	FreeMiB     int64  `cbor:"5,keyasint,omitempty"`
	Accessible  bool   `cbor:"6,keyasint,omitempty"`
}

// Network is a network that virtual machines can be attached to.
type Network struct {
	ID   string `cbor:"1,keyasint"`
	Name string `cbor:"2,keyasint"`
}

// VM is a virtual machine, complete.
type VM struct {
	ID        string   `cbor:"1,keyasint"`
	Name      string   `cbor:"2,keyasint"`
	Power     string   `cbor:"3,keyasint"`
	CPUs      int      `cbor:"4,keyasint,omitempty"`
	MemoryMiB int64    `cbor:"5,keyasint,omitempty"`
	GuestID   string   `cbor:"6,keyasint,omitempty"`
	GuestName string   `cbor:"7,keyasint,omitempty"`
	Hostname  string   `cbor:"8,keyasint,omitempty"`
	IPs       []string `cbor:"9,keyasint,omitempty"` // sorted
	Tools     string   `cbor:"10,keyasint"`
	Disks     []Disk   `cbor:"11,keyasint,omitempty"` // sorted by Key
	NICs      []NIC    `cbor:"12,keyasint,omitempty"` // sorted by Key
	BootTime  int64    `cbor:"13,keyasint,omitempty"` // Unix seconds, 0 when unknown or off
}

// VMPatch holds the fields of a known virtual machine that changed; nil means
// unchanged. Keys are those of [VM].
type VMPatch struct {
	ID        string    `cbor:"1,keyasint"`
	Name      *string   `cbor:"2,keyasint,omitempty"`
	Power     *string   `cbor:"3,keyasint,omitempty"`
	CPUs      *int      `cbor:"4,keyasint,omitempty"`
	MemoryMiB *int64    `cbor:"5,keyasint,omitempty"`
	GuestID   *string   `cbor:"6,keyasint,omitempty"`
	GuestName *string   `cbor:"7,keyasint,omitempty"`
	Hostname  *string   `cbor:"8,keyasint,omitempty"`
	IPs       *[]string `cbor:"9,keyasint,omitempty"`
	Tools     *string   `cbor:"10,keyasint,omitempty"`
	Disks     *[]Disk   `cbor:"11,keyasint,omitempty"`
	NICs      *[]NIC    `cbor:"12,keyasint,omitempty"`
	BootTime  *int64    `cbor:"13,keyasint,omitempty"`
}

// Disk is a virtual disk.
type Disk struct {
	Key         int32  `cbor:"1,keyasint"`
	Label       string `cbor:"2,keyasint,omitempty"`
	CapacityMiB int64  `cbor:"3,keyasint,omitempty"`
	Datastore   string `cbor:"4,keyasint,omitempty"`
	File        string `cbor:"5,keyasint,omitempty"`
	Thin        bool   `cbor:"6,keyasint,omitempty"`
}

// NIC is a virtual network card.
type NIC struct {
	Key       int32  `cbor:"1,keyasint"`
	Label     string `cbor:"2,keyasint,omitempty"`
	MAC       string `cbor:"3,keyasint,omitempty"`
	Network   string `cbor:"4,keyasint,omitempty"`
	Connected bool   `cbor:"5,keyasint,omitempty"`
}
