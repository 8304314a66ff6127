package esxi

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
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

// retrieve reads properties in pages and calls each with every object.
func (s *session) retrieve(ctx context.Context, spec types.PropertyFilterSpec, each func(types.ObjectContent) error) error {
	pc := s.content().PropertyCollector
	res, err := methods.RetrievePropertiesEx(ctx, s.vim, &types.RetrievePropertiesEx{
		This: pc, SpecSet: []types.PropertyFilterSpec{spec}, Options: types.RetrieveOptions{MaxObjects: page},
	})
	if err != nil {
		return err
	}
	result := res.Returnval
	for result != nil {
		for _, o := range result.Objects {
			if err := each(o); err != nil {
				return err
			}
		}
		if result.Token == "" {
			return nil
		}
		next, err := methods.ContinueRetrievePropertiesEx(ctx, s.vim, &types.ContinueRetrievePropertiesEx{This: pc, Token: result.Token})
		if err != nil {
			return err
		}
		result = &next.Returnval
	}
	return nil
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
		}, func(o types.ObjectContent) error {
			switch o.Obj.Type {
			case "HostSystem":
				var h mo.HostSystem
				if err := load(o, &h); err != nil {
					return err
				}
				mapHost(&snap.Host, h)
			case "VirtualMachine":
				var vm mo.VirtualMachine
				if err := load(o, &vm); err != nil {
					return err
				}
				found = append(found, foundVM{ref: o.Obj, instance: instanceUUID(vm), vm: mapVM(vm)})
			case "Datastore":
				var ds mo.Datastore
				if err := load(o, &ds); err != nil {
					return err
				}
				snap.Host.Datastores = append(snap.Host.Datastores, mapDatastore(ds))
			default: // Network and its kinds
				for _, p := range o.PropSet {
					if name, ok := p.Val.(string); ok && p.Name == "name" {
						snap.Host.Networks = append(snap.Host.Networks, wire.Network{ID: o.Obj.Value, Name: text(name)})
					}
				}
			}
			return nil
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

func load(o types.ObjectContent, dst any) error {
	if err := mo.LoadObjectContent([]types.ObjectContent{o}, dst); err != nil {
		return fmt.Errorf("read %s: %w", o.Obj, err)
	}
	return nil
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

func instanceUUID(vm mo.VirtualMachine) string {
	if vm.Config == nil {
		return "" // not accessible
	}
	return strings.ToLower(vm.Config.InstanceUuid)
}

func mapHost(dst *wire.Host, h mo.HostSystem) {
	dst.Name = text(h.Name)
	dst.Maintenance = h.Runtime.InMaintenanceMode
	dst.BootTime = unix(h.Runtime.BootTime)
	if h.Hardware != nil {
		dst.Serial = text(h.Hardware.SystemInfo.SerialNumber)
	}
	if hw := h.Summary.Hardware; hw != nil {
		dst.Vendor, dst.Model, dst.UUID = text(hw.Vendor), text(hw.Model), text(strings.ToLower(hw.Uuid))
		dst.CPUModel, dst.CPUMHz = text(strings.Join(strings.Fields(hw.CpuModel), " ")), int(hw.CpuMhz)
		dst.CPUSockets, dst.CPUCores, dst.CPUThreads = int(hw.NumCpuPkgs), int(hw.NumCpuCores), int(hw.NumCpuThreads)
		dst.MemoryMiB = hw.MemorySize / mib
		if dst.Serial == "" {
			dst.Serial = text(serial(hw.OtherIdentifyingInfo))
		}
	}
	if p := h.Summary.Config.Product; p != nil {
		dst.Product, dst.Version, dst.Build = text(p.Name), text(p.Version), text(p.Build)
	}
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

func mapDatastore(ds mo.Datastore) wire.Datastore {
	// An overcommitted datastore has nothing free, not less than nothing.
	capacity, free := ds.Summary.Capacity/mib, max(ds.Summary.FreeSpace/mib, 0)
	if step := capacity / 100; step > 0 {
		free -= free % step
	}
	return wire.Datastore{
		ID: ds.Self.Value, Name: text(ds.Name), Type: text(ds.Summary.Type),
		CapacityMiB: capacity, FreeMiB: free, Accessible: ds.Summary.Accessible,
	}
}

func mapVM(vm mo.VirtualMachine) wire.VM {
	out := wire.VM{Name: text(vm.Name), Power: power(vm.Runtime.PowerState), Tools: wire.ToolsUnknown}
	if out.Power != wire.PowerOff {
		out.BootTime = unix(vm.Runtime.BootTime)
	}
	if c := vm.Config; c != nil {
		out.CPUs, out.MemoryMiB = int(c.Hardware.NumCPU), int64(c.Hardware.MemoryMB)
		out.GuestID, out.GuestName = text(c.GuestId), text(c.GuestFullName)
		for _, dev := range c.Hardware.Device {
			switch dev := dev.(type) {
			case *types.VirtualDisk:
				out.Disks = append(out.Disks, mapDisk(dev))
			case types.BaseVirtualEthernetCard:
				out.NICs = append(out.NICs, mapNIC(dev))
			}
		}
	}
	if g := vm.Guest; g != nil {
		out.Hostname, out.IPs, out.Tools = text(g.HostName), addresses(g), tools(g)
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

func tools(g *types.GuestInfo) string {
	switch types.VirtualMachineToolsRunningStatus(g.ToolsRunningStatus) {
	case types.VirtualMachineToolsRunningStatusGuestToolsRunning, types.VirtualMachineToolsRunningStatusGuestToolsExecutingScripts:
		return wire.ToolsRunning
	case types.VirtualMachineToolsRunningStatusGuestToolsNotRunning:
		if g.ToolsVersionStatus2 == string(types.VirtualMachineToolsVersionStatusGuestToolsNotInstalled) {
			return wire.ToolsNotInstalled
		}
		return wire.ToolsNotRunning
	}
	return wire.ToolsUnknown
}

// addresses returns the guest's addresses, sorted, without those that are no
// way to reach it.
func addresses(g *types.GuestInfo) []string {
	all := []string{g.IpAddress}
	for _, n := range g.Net {
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

func unix(t *time.Time) int64 {
	if t == nil || t.Unix() < 0 {
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
