package esxi

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"

	"pallas/agent/hypervisor"
	"pallas/mqttgw/wire"
)

const (
	mib = 1 << 20
	// page is how many objects one answer of the host holds.
	page = 16
)

// What is read of each kind of object. A path that a kind lacks is a fault, a
// value that is not set is left out.
var (
	hostProps = []string{
		"name", "summary.hardware", "summary.config.product", "hardware.systemInfo.serialNumber",
		"runtime.bootTime", "runtime.inMaintenanceMode",
	}
	vmProps = []string{
		"name", "config.instanceUuid", "config.guestId", "config.guestFullName",
		"config.hardware.numCPU", "config.hardware.memoryMB", "config.hardware.device",
		"guest.hostName", "guest.ipAddress", "guest.net", "guest.toolsRunningStatus", "guest.toolsVersionStatus2",
		"runtime.powerState", "runtime.bootTime",
	}
	datastoreProps = []string{"name", "summary.type", "summary.capacity", "summary.freeSpace", "summary.accessible"}
	networkProps   = []string{"name"}
)

// traverse selects what hangs on the host.
func traverse(paths ...string) []types.BaseSelectionSpec {
	out := make([]types.BaseSelectionSpec, len(paths))
	for i, p := range paths {
		out[i] = &types.TraversalSpec{Type: "HostSystem", Path: p, Skip: types.NewBool(false)}
	}
	return out
}

// object is what was read of one managed object. Properties that are not set,
// or that the account may not read, are not there.
type object struct {
	ref   types.ManagedObjectReference
	props map[string]types.AnyType
}

// get returns a property, or the zero value.
func get[T any](o object, path string) T {
	v, _ := o.props[path].(T)
	return v
}

// retrieve reads properties in pages and calls each with every object.
func (s *session) retrieve(ctx context.Context, spec types.PropertyFilterSpec, each func(object)) error {
	pc := s.content.PropertyCollector
	res, err := methods.RetrievePropertiesEx(ctx, s, &types.RetrievePropertiesEx{
		This: pc, SpecSet: []types.PropertyFilterSpec{spec}, Options: types.RetrieveOptions{MaxObjects: page},
	})
	if err != nil {
		return err
	}
	result := res.Returnval
	for result != nil {
		for _, c := range result.Objects {
			o := object{ref: c.Obj, props: make(map[string]types.AnyType, len(c.PropSet))}
			for _, p := range c.PropSet {
				o.props[p.Name] = p.Val
			}
			each(o)
		}
		if result.Token == "" {
			return nil
		}
		next, err := methods.ContinueRetrievePropertiesEx(ctx, s, &types.ContinueRetrievePropertiesEx{This: pc, Token: result.Token})
		if err != nil {
			return err
		}
		result = &next.Returnval
	}
	return nil
}

// read returns properties of one object.
func (s *session) read(ctx context.Context, ref types.ManagedObjectReference, paths ...string) (o object, err error) {
	err = s.retrieve(ctx, types.PropertyFilterSpec{
		ObjectSet: []types.ObjectSpec{{Obj: ref}},
		PropSet:   []types.PropertySpec{{Type: ref.Type, PathSet: paths}},
	}, func(got object) { o = got })
	return o, err
}

// Observe implements [hypervisor.Driver].
func (d *Driver) Observe(ctx context.Context) (hypervisor.Snapshot, error) {
	var snap hypervisor.Snapshot
	err := d.with(ctx, "observe host", func(s *session) error {
		snap = hypervisor.Snapshot{}
		var found []foundVM
		err := s.retrieve(ctx, types.PropertyFilterSpec{
			ObjectSet: []types.ObjectSpec{{Obj: hostRef, SelectSet: traverse("vm", "datastore", "network")}},
			PropSet: []types.PropertySpec{
				{Type: "HostSystem", PathSet: hostProps},
				{Type: "VirtualMachine", PathSet: vmProps},
				{Type: "Datastore", PathSet: datastoreProps},
				{Type: "Network", PathSet: networkProps},
			},
		}, func(o object) {
			switch o.ref.Type {
			case "HostSystem":
				mapHost(&snap.Host, o)
			case "VirtualMachine":
				found = append(found, foundVM{ref: o.ref, instance: instanceUUID(o), vm: mapVM(o)})
			case "Datastore":
				snap.Host.Datastores = append(snap.Host.Datastores, mapDatastore(o))
			default: // Network and its kinds
				snap.Host.Networks = append(snap.Host.Networks, wire.Network{ID: o.ref.Value, Name: text(get[string](o, "name"))})
			}
		})
		if err != nil {
			return err
		}
		snap.Host.License, err = d.license(ctx, s)
		if err != nil {
			return err
		}
		name(found)
		for _, f := range found {
			for i, n := range f.vm.NICs {
				// Some backings tell the network's name only.
				if j := slices.IndexFunc(snap.Host.Networks, func(w wire.Network) bool { return w.Name == n.Network }); j >= 0 {
					f.vm.NICs[i].Network = snap.Host.Networks[j].ID
				}
			}
			snap.VMs = append(snap.VMs, f.vm)
		}
		return nil
	})
	if err != nil {
		return hypervisor.Snapshot{}, err
	}
	h := &snap.Host
	slices.SortFunc(h.Datastores, func(a, b wire.Datastore) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(h.Networks, func(a, b wire.Network) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(snap.VMs, func(a, b wire.VM) int { return cmp.Compare(a.ID, b.ID) })
	h.Datastores, h.Networks = first(h.Datastores, wire.MaxItems), first(h.Networks, wire.MaxItems)
	if n := len(snap.VMs); n > wire.MaxVMs {
		d.log.Warn("host has more virtual machines than are reported", "machines", n, "reported", wire.MaxVMs)
		snap.VMs = snap.VMs[:wire.MaxVMs]
	}
	return snap, nil
}

// foundVM is a virtual machine whose id is not decided yet.
type foundVM struct {
	ref      types.ManagedObjectReference
	instance string
	vm       wire.VM
}

// name gives ids: the instance UUID to the oldest object that has it, the
// object id to all others.
func name(found []foundVM) {
	slices.SortFunc(found, func(a, b foundVM) int {
		return cmp.Or(cmp.Compare(len(a.ref.Value), len(b.ref.Value)), cmp.Compare(a.ref.Value, b.ref.Value))
	})
	taken := make(map[string]bool, len(found))
	for i, f := range found {
		id := f.instance
		if id == "" || taken[id] {
			id = f.ref.Value
		}
		taken[id] = true
		found[i].vm.ID = id
	}
}

func instanceUUID(o object) string { return strings.ToLower(get[string](o, "config.instanceUuid")) }

func mapHost(dst *wire.Host, o object) {
	hw := get[types.HostHardwareSummary](o, "summary.hardware")
	product := get[types.AboutInfo](o, "summary.config.product")
	dst.Name = text(get[string](o, "name"))
	dst.Maintenance = get[bool](o, "runtime.inMaintenanceMode")
	dst.BootTime = unix(get[time.Time](o, "runtime.bootTime"))
	dst.Vendor, dst.Model, dst.UUID = text(hw.Vendor), text(hw.Model), text(strings.ToLower(hw.Uuid))
	dst.Serial = text(cmp.Or(get[string](o, "hardware.systemInfo.serialNumber"), serial(hw.OtherIdentifyingInfo)))
	dst.CPUModel, dst.CPUMHz = text(strings.Join(strings.Fields(hw.CpuModel), " ")), int(hw.CpuMhz)
	dst.CPUSockets, dst.CPUCores, dst.CPUThreads = int(hw.NumCpuPkgs), int(hw.NumCpuCores), int(hw.NumCpuThreads)
	dst.MemoryMiB = hw.MemorySize / mib
	dst.Product, dst.Version, dst.Build = text(product.Name), text(product.Version), text(product.Build)
}

// serial finds the serial number among what the firmware tells, by the keys
// that vendors use.
func serial(infos []types.HostSystemIdentificationInfo) string {
	for _, key := range []string{"ServiceTag", "SerialNumberTag", "EnclosureSerialNumberTag"} {
		for _, i := range infos {
			if t, ok := i.IdentifierType.(*types.ElementDescription); ok && t.Key == key && strings.TrimSpace(i.IdentifierValue) != "" {
				return strings.TrimSpace(i.IdentifierValue)
			}
		}
	}
	return ""
}

func mapDatastore(o object) wire.Datastore {
	capacity, free := get[int64](o, "summary.capacity")/mib, get[int64](o, "summary.freeSpace")/mib
	if step := capacity / 100; step > 0 {
		free -= free % step
	}
	return wire.Datastore{
		ID: o.ref.Value, Name: text(get[string](o, "name")), Type: text(get[string](o, "summary.type")),
		CapacityMiB: capacity, FreeMiB: free, Accessible: get[bool](o, "summary.accessible"),
	}
}

func mapVM(o object) wire.VM {
	out := wire.VM{
		Name:  text(get[string](o, "name")),
		Power: power(get[types.VirtualMachinePowerState](o, "runtime.powerState")),
		CPUs:  int(get[int32](o, "config.hardware.numCPU")), MemoryMiB: int64(get[int32](o, "config.hardware.memoryMB")),
		GuestID: text(get[string](o, "config.guestId")), GuestName: text(get[string](o, "config.guestFullName")),
		Hostname: text(get[string](o, "guest.hostName")), IPs: addresses(o), Tools: tools(o),
	}
	if out.Power != wire.PowerOff {
		out.BootTime = unix(get[time.Time](o, "runtime.bootTime"))
	}
	for _, dev := range get[types.ArrayOfVirtualDevice](o, "config.hardware.device").VirtualDevice {
		switch dev := dev.(type) {
		case *types.VirtualDisk:
			out.Disks = append(out.Disks, mapDisk(dev))
		case types.BaseVirtualEthernetCard:
			out.NICs = append(out.NICs, mapNIC(dev))
		}
	}
	slices.SortFunc(out.Disks, func(a, b wire.Disk) int { return cmp.Compare(a.Key, b.Key) })
	slices.SortFunc(out.NICs, func(a, b wire.NIC) int { return cmp.Compare(a.Key, b.Key) })
	out.Disks, out.NICs, out.IPs = first(out.Disks, wire.MaxItems), first(out.NICs, wire.MaxItems), first(out.IPs, wire.MaxItems)
	return out
}

func power(s types.VirtualMachinePowerState) string {
	switch s {
	case types.VirtualMachinePowerStatePoweredOn:
		return wire.PowerOn
	case types.VirtualMachinePowerStatePoweredOff:
		return wire.PowerOff
	case types.VirtualMachinePowerStateSuspended:
		return wire.PowerSuspended
	}
	return wire.PowerUnknown
}

func tools(o object) string {
	switch types.VirtualMachineToolsRunningStatus(get[string](o, "guest.toolsRunningStatus")) {
	case types.VirtualMachineToolsRunningStatusGuestToolsRunning, types.VirtualMachineToolsRunningStatusGuestToolsExecutingScripts:
		return wire.ToolsRunning
	case types.VirtualMachineToolsRunningStatusGuestToolsNotRunning:
		if get[string](o, "guest.toolsVersionStatus2") == string(types.VirtualMachineToolsVersionStatusGuestToolsNotInstalled) {
			return wire.ToolsNotInstalled
		}
		return wire.ToolsNotRunning
	}
	return wire.ToolsUnknown
}

// addresses returns the guest's addresses, sorted, without those that are no
// way to reach it.
func addresses(o object) []string {
	all := []string{get[string](o, "guest.ipAddress")}
	for _, n := range get[types.ArrayOfGuestNicInfo](o, "guest.net").GuestNicInfo {
		all = append(all, n.IpAddress...)
	}
	var out []string
	for _, s := range all {
		a, err := netip.ParseAddr(s)
		if err != nil || a.IsLinkLocalUnicast() || a.IsLoopback() || a.IsUnspecified() {
			continue
		}
		out = append(out, a.WithZone("").String())
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func mapDisk(d *types.VirtualDisk) wire.Disk {
	out := wire.Disk{Key: d.Key, Label: label(&d.VirtualDevice), CapacityMiB: d.CapacityInKB >> 10}
	if d.CapacityInBytes > 0 {
		out.CapacityMiB = d.CapacityInBytes / mib
	}
	if b, ok := d.Backing.(types.BaseVirtualDeviceFileBackingInfo); ok {
		f := b.GetVirtualDeviceFileBackingInfo()
		out.File = text(f.FileName)
		if f.Datastore != nil {
			out.Datastore = f.Datastore.Value
		}
	}
	switch b := d.Backing.(type) {
	case *types.VirtualDiskFlatVer2BackingInfo:
		out.Thin = b.ThinProvisioned != nil && *b.ThinProvisioned
	case *types.VirtualDiskSeSparseBackingInfo:
		out.Thin = true
	}
	return out
}

func mapNIC(n types.BaseVirtualEthernetCard) wire.NIC {
	c := n.GetVirtualEthernetCard()
	out := wire.NIC{Key: c.Key, Label: label(&c.VirtualDevice), MAC: text(c.MacAddress)}
	if c.Connectable != nil {
		out.Connected = c.Connectable.Connected
	}
	switch b := c.Backing.(type) {
	case *types.VirtualEthernetCardNetworkBackingInfo:
		out.Network = text(b.DeviceName)
		if b.Network != nil {
			out.Network = b.Network.Value
		}
	case *types.VirtualEthernetCardDistributedVirtualPortBackingInfo:
		out.Network = text(b.Port.PortgroupKey)
	case *types.VirtualEthernetCardOpaqueNetworkBackingInfo:
		out.Network = text(b.OpaqueNetworkId)
	}
	return out
}

func label(d *types.VirtualDevice) string {
	if i := d.DeviceInfo; i != nil {
		return text(i.GetDescription().Label)
	}
	return ""
}

func unix(t time.Time) int64 {
	if t.Unix() < 0 { // the zero time, too
		return 0
	}
	return t.Unix()
}

func text(s string) string { return wire.Clip(s) }

func first[T any](list []T, n int) []T {
	if len(list) > n {
		return list[:n]
	}
	return list
}
