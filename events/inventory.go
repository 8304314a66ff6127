package events

import "time"

// PowerState is a virtual machine's power state.
type PowerState string

// The power states. PowerUnknown is reported when the host does not say.
const (
	PowerOn        PowerState = "on"
	PowerOff       PowerState = "off"
	PowerSuspended PowerState = "suspended"
	PowerUnknown   PowerState = "unknown"
)

// ToolsState says whether the guest tools of a virtual machine run.
type ToolsState string

// The states of the guest tools.
const (
	ToolsRunning      ToolsState = "running"
	ToolsNotRunning   ToolsState = "notRunning"
	ToolsNotInstalled ToolsState = "notInstalled"
	ToolsUnknown      ToolsState = "unknown"
)

// Host is what a hypervisor host says of itself. Sizes are in MiB, clock rates
// in MHz.
type Host struct {
	Name        string      `json:"name"`
	Vendor      string      `json:"vendor,omitempty"`
	Model       string      `json:"model,omitempty"`
	Serial      string      `json:"serial,omitempty"`
	UUID        string      `json:"uuid,omitempty"`
	Product     string      `json:"product"` // such as "VMware ESXi"
	Version     string      `json:"version"` // such as "8.0.2"
	Build       string      `json:"build"`
	CPUModel    string      `json:"cpuModel,omitempty"`
	CPUSockets  int         `json:"cpuSockets"`
	CPUCores    int         `json:"cpuCores"`
	CPUThreads  int         `json:"cpuThreads"`
	CPUMHz      int         `json:"cpuMHz"`
	MemoryMiB   int64       `json:"memoryMiB"`
	BootTime    time.Time   `json:"bootTime,omitzero"`
	Maintenance bool        `json:"maintenance,omitempty"`
	License     License     `json:"license"`
	Datastores  []Datastore `json:"datastores,omitempty"`
	Networks    []Network   `json:"networks,omitempty"`
}

// License is what the host is licensed for. The key itself is never reported.
type License struct {
	Name    string `json:"name,omitempty"`
	Edition string `json:"edition,omitempty"`
	// Expires is zero for a licence that does not end.
	Expires time.Time `json:"expires,omitzero"`
	// Writable says whether the licence lets the API change anything: free
	// ESXi editions serve a read-only API.
	Writable bool `json:"writable"`
	// Reason says how Writable was found out when it is false.
	Reason string `json:"reason,omitempty"`
}

// Datastore is a place for virtual disks and files.
type Datastore struct {
	ID          string `json:"id"`
	Name        string `json:"name"`
	Type        string `json:"type"` // such as "VMFS", "NFS", "OTHER"
	CapacityMiB int64  `json:"capacityMiB"`
	// FreeMiB is reported in steps, so that it does not change with each write.
	FreeMiB    int64 `json:"freeMiB"`
	Accessible bool  `json:"accessible"`
}

// Network is a network that virtual machines can be attached to.
type Network struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// VM is a virtual machine as its host reports it.
type VM struct {
	ID        VMID       `json:"id"`
	Name      string     `json:"name"`
	Power     PowerState `json:"power"`
	CPUs      int        `json:"cpus"`
	MemoryMiB int64      `json:"memoryMiB"`
	// GuestID is the configured guest OS identifier, GuestName its full name.
	GuestID   string     `json:"guestId,omitempty"`
	GuestName string     `json:"guestName,omitempty"`
	Hostname  string     `json:"hostname,omitempty"`
	IPs       []string   `json:"ips,omitempty"`
	Tools     ToolsState `json:"tools"`
	Disks     []Disk     `json:"disks,omitempty"`
	NICs      []NIC      `json:"nics,omitempty"`
	BootTime  time.Time  `json:"bootTime,omitzero"`
}

// Disk is a virtual disk.
type Disk struct {
	Key         int32  `json:"key"`
	Label       string `json:"label"`
	CapacityMiB int64  `json:"capacityMiB"`
	Datastore   string `json:"datastore,omitempty"`
	File        string `json:"file,omitempty"`
	Thin        bool   `json:"thin,omitempty"`
}

// NIC is a virtual network card.
type NIC struct {
	Key       int32  `json:"key"`
	Label     string `json:"label"`
	MAC       string `json:"mac,omitempty"`
	Network   string `json:"network,omitempty"`
	Connected bool   `json:"connected"`
}

// VMPatch holds the fields of a [VM] that changed; the others are nil, and
// absent in JSON. A list that became empty is written as [].
type VMPatch struct {
	Name      *string     `json:"name,omitempty"`
	Power     *PowerState `json:"power,omitempty"`
	CPUs      *int        `json:"cpus,omitempty"`
	MemoryMiB *int64      `json:"memoryMiB,omitempty"`
	GuestID   *string     `json:"guestId,omitempty"`
	GuestName *string     `json:"guestName,omitempty"`
	Hostname  *string     `json:"hostname,omitempty"`
	IPs       *[]string   `json:"ips,omitempty"`
	Tools     *ToolsState `json:"tools,omitempty"`
	Disks     *[]Disk     `json:"disks,omitempty"`
	NICs      *[]NIC      `json:"nics,omitempty"`
	BootTime  *time.Time  `json:"bootTime,omitempty"`
}

// MarshalJSON writes a pointer to a nil list as [], because null would be read
// back as unchanged.
func (p VMPatch) MarshalJSON() ([]byte, error) {
	type plain VMPatch
	present(&p.IPs)
	present(&p.Disks)
	present(&p.NICs)
	return marshal(plain(p))
}

func present[T any](list **[]T) {
	if *list != nil && **list == nil {
		*list = &[]T{}
	}
}

// HostObserved replaces everything known of the host itself.
type HostObserved struct {
	Host Host `json:"host"`
}

// HostConditionChanged says that the agent lost or regained its host: no
// connection, refused login, or a licence that forbids writing.
type HostConditionChanged struct {
	// Condition is one of the Condition constants.
	Condition Condition `json:"condition"`
	// Message is the host's or the agent's own explanation.
	Message string `json:"message,omitempty"`
}

// Condition says how well an agent can manage its host.
type Condition string

// The conditions, from best to worst.
const (
	ConditionOK          Condition = "ok"
	ConditionReadOnly    Condition = "readOnly"    // the licence forbids writing
	ConditionDenied      Condition = "denied"      // the host refuses the login
	ConditionUnreachable Condition = "unreachable" // the host does not answer
)

// VMObserved says that the host has a virtual machine that was not known, or
// replaces all that was known of it.
type VMObserved struct {
	VM VM `json:"vm"`
}

// VMChanged says which fields of a known virtual machine changed.
type VMChanged struct {
	VM    VMID    `json:"vm"`
	Patch VMPatch `json:"patch"`
}

// VMRemoved says that the host no longer has the virtual machine.
type VMRemoved struct {
	VM VMID `json:"vm"`
}

// InventorySynced ends a complete inventory: whatever was not reported in it
// is gone, and the manager's copy has this hash.
type InventorySynced struct {
	// Hash is the hex hash of the inventory, as the device protocol defines it.
	Hash string `json:"hash"`
	VMs  int    `json:"vms"`
}

func (HostObserved) Type() string         { return "HostObserved" }
func (HostConditionChanged) Type() string { return "HostConditionChanged" }
func (VMObserved) Type() string           { return "VMObserved" }
func (VMChanged) Type() string            { return "VMChanged" }
func (VMRemoved) Type() string            { return "VMRemoved" }
func (InventorySynced) Type() string      { return "InventorySynced" }

func (HostObserved) sealed()         {}
func (HostConditionChanged) sealed() {}
func (VMObserved) sealed()           {}
func (VMChanged) sealed()            {}
func (VMRemoved) sealed()            {}
func (InventorySynced) sealed()      {}

// Apply returns vm with the patch's fields in place of its own.
func (p VMPatch) Apply(vm VM) VM {
	set(&vm.Name, p.Name)
	set(&vm.Power, p.Power)
	set(&vm.CPUs, p.CPUs)
	set(&vm.MemoryMiB, p.MemoryMiB)
	set(&vm.GuestID, p.GuestID)
	set(&vm.GuestName, p.GuestName)
	set(&vm.Hostname, p.Hostname)
	set(&vm.IPs, p.IPs)
	set(&vm.Tools, p.Tools)
	set(&vm.Disks, p.Disks)
	set(&vm.NICs, p.NICs)
	set(&vm.BootTime, p.BootTime)
	return vm
}

func set[T any](dst *T, src *T) {
	if src != nil {
		*dst = *src
	}
}
