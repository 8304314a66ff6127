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
	Name        string      `cbor:"1,keyasint" json:"name"`
	Vendor      string      `cbor:"2,keyasint,omitempty" json:"vendor"`
	Model       string      `cbor:"3,keyasint,omitempty" json:"model"`
	Serial      string      `cbor:"4,keyasint,omitempty" json:"serial"`
	UUID        string      `cbor:"5,keyasint,omitempty" json:"uuid"`
	Product     string      `cbor:"6,keyasint,omitempty" json:"product"`
	Version     string      `cbor:"7,keyasint,omitempty" json:"version"`
	Build       string      `cbor:"8,keyasint,omitempty" json:"build"`
	CPUModel    string      `cbor:"9,keyasint,omitempty" json:"cpuModel"`
	CPUSockets  int         `cbor:"10,keyasint,omitempty" json:"cpuSockets"`
	CPUCores    int         `cbor:"11,keyasint,omitempty" json:"cpuCores"`
	CPUThreads  int         `cbor:"12,keyasint,omitempty" json:"cpuThreads"`
	CPUMHz      int         `cbor:"13,keyasint,omitempty" json:"cpuMHz"`
	MemoryMiB   int64       `cbor:"14,keyasint,omitempty" json:"memoryMiB"`
	BootTime    int64       `cbor:"15,keyasint,omitempty" json:"bootTime"` // Unix seconds, 0 when unknown
	Maintenance bool        `cbor:"16,keyasint,omitempty" json:"maintenance"`
	License     License     `cbor:"17,keyasint" json:"license"`
	Datastores  []Datastore `cbor:"18,keyasint,omitempty" json:"datastores"` // sorted by ID
	Networks    []Network   `cbor:"19,keyasint,omitempty" json:"networks"`   // sorted by ID
}

// License is what the host is licensed for, without the key.
type License struct {
	Name     string `cbor:"1,keyasint,omitempty" json:"name"`
	Edition  string `cbor:"2,keyasint,omitempty" json:"edition"`
	Expires  int64  `cbor:"3,keyasint,omitempty" json:"expires"` // Unix seconds, 0 for never
	Writable bool   `cbor:"4,keyasint,omitempty" json:"writable"`
	Reason   string `cbor:"5,keyasint,omitempty" json:"reason"`
}

// Datastore is a place for virtual disks and files. FreeMiB is rounded down to
// 1 % of the capacity, so that it does not change with each write.
type Datastore struct {
	ID          string `cbor:"1,keyasint" json:"id"`
	Name        string `cbor:"2,keyasint" json:"name"`
	Type        string `cbor:"3,keyasint,omitempty" json:"type"`
	CapacityMiB int64  `cbor:"4,keyasint,omitempty" json:"capacityMiB"`
	FreeMiB     int64  `cbor:"5,keyasint,omitempty" json:"freeMiB"`
	Accessible  bool   `cbor:"6,keyasint,omitempty" json:"accessible"`
}

// Network is a network that virtual machines can be attached to.
type Network struct {
	ID   string `cbor:"1,keyasint" json:"id"`
	Name string `cbor:"2,keyasint" json:"name"`
}

// VM is a virtual machine, complete.
type VM struct {
	ID        string   `cbor:"1,keyasint" json:"id"`
	Name      string   `cbor:"2,keyasint" json:"name"`
	Power     string   `cbor:"3,keyasint" json:"power"`
	CPUs      int      `cbor:"4,keyasint,omitempty" json:"cpus"`
	MemoryMiB int64    `cbor:"5,keyasint,omitempty" json:"memoryMiB"`
	GuestID   string   `cbor:"6,keyasint,omitempty" json:"guestId"`
	GuestName string   `cbor:"7,keyasint,omitempty" json:"guestName"`
	Hostname  string   `cbor:"8,keyasint,omitempty" json:"hostname"`
	IPs       []string `cbor:"9,keyasint,omitempty" json:"ips"` // sorted
	Tools     string   `cbor:"10,keyasint" json:"tools"`
	Disks     []Disk   `cbor:"11,keyasint,omitempty" json:"disks"`    // sorted by Key
	NICs      []NIC    `cbor:"12,keyasint,omitempty" json:"nics"`     // sorted by Key
	BootTime  int64    `cbor:"13,keyasint,omitempty" json:"bootTime"` // Unix seconds, 0 when unknown or off
}

// VMPatch holds the fields of a known virtual machine that changed; nil means
// unchanged. Keys are those of [VM].
type VMPatch struct {
	ID        string    `cbor:"1,keyasint" json:"id"`
	Name      *string   `cbor:"2,keyasint,omitempty" json:"name"`
	Power     *string   `cbor:"3,keyasint,omitempty" json:"power"`
	CPUs      *int      `cbor:"4,keyasint,omitempty" json:"cpus"`
	MemoryMiB *int64    `cbor:"5,keyasint,omitempty" json:"memoryMiB"`
	GuestID   *string   `cbor:"6,keyasint,omitempty" json:"guestId"`
	GuestName *string   `cbor:"7,keyasint,omitempty" json:"guestName"`
	Hostname  *string   `cbor:"8,keyasint,omitempty" json:"hostname"`
	IPs       *[]string `cbor:"9,keyasint,omitempty" json:"ips"`
	Tools     *string   `cbor:"10,keyasint,omitempty" json:"tools"`
	Disks     *[]Disk   `cbor:"11,keyasint,omitempty" json:"disks"`
	NICs      *[]NIC    `cbor:"12,keyasint,omitempty" json:"nics"`
	BootTime  *int64    `cbor:"13,keyasint,omitempty" json:"bootTime"`
}

// Disk is a virtual disk.
type Disk struct {
	Key         int32  `cbor:"1,keyasint" json:"key"`
	Label       string `cbor:"2,keyasint,omitempty" json:"label"`
	CapacityMiB int64  `cbor:"3,keyasint,omitempty" json:"capacityMiB"`
	Datastore   string `cbor:"4,keyasint,omitempty" json:"datastore"`
	File        string `cbor:"5,keyasint,omitempty" json:"file"`
	Thin        bool   `cbor:"6,keyasint,omitempty" json:"thin"`
}

// NIC is a virtual network card.
type NIC struct {
	Key       int32  `cbor:"1,keyasint" json:"key"`
	Label     string `cbor:"2,keyasint,omitempty" json:"label"`
	MAC       string `cbor:"3,keyasint,omitempty" json:"mac"`
	Network   string `cbor:"4,keyasint,omitempty" json:"network"`
	Connected bool   `cbor:"5,keyasint,omitempty" json:"connected"`
}
