package vcsim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/view"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// ErrNoVM is returned for a name that no virtual machine has.
var ErrNoVM = errors.New("no virtual machine of this name")

// VMSpec describes a virtual machine. Zero fields get plausible values.
type VMSpec struct {
	Name      string
	CPUs      int32
	MemoryMiB int64
	GuestID   string  // such as "ubuntu64Guest"
	DiskGiB   []int64 // one disk each, thin
	Networks  []string
	Hostname  string
	IPs       []string // while the guest runs
	On        bool
	NoTools   bool // the guest has no tools: no addresses, no guest shutdown
	// InstanceUUID overrides the one made of host and name.
	InstanceUUID string
}

// appliances are what one finds on hosts at the edge.
var appliances = []VMSpec{
	{Name: "pos-server", CPUs: 4, MemoryMiB: 8192, GuestID: "windows2019srv_64Guest", DiskGiB: []int64{80, 200}, On: true},
	{Name: "camera-recorder", CPUs: 4, MemoryMiB: 16384, GuestID: "ubuntu64Guest", DiskGiB: []int64{32, 1000}, On: true},
	{Name: "edge-gateway", CPUs: 2, MemoryMiB: 2048, GuestID: "debian11_64Guest", DiskGiB: []int64{16}, On: true},
	{Name: "file-server", CPUs: 2, MemoryMiB: 4096, GuestID: "windows2019srv_64Guest", DiskGiB: []int64{60, 500}, On: true},
	{Name: "legacy-erp", CPUs: 1, MemoryMiB: 1024, GuestID: "otherGuest64", DiskGiB: []int64{20}, NoTools: true, On: true},
	{Name: "print-server", CPUs: 1, MemoryMiB: 2048, GuestID: "windows2019srv_64Guest", DiskGiB: []int64{40}},
	{Name: "scada-historian", CPUs: 4, MemoryMiB: 12288, GuestID: "rhel8_64Guest", DiskGiB: []int64{40, 300}, On: true},
	{Name: "label-printer", CPUs: 1, MemoryMiB: 512, GuestID: "debian11_64Guest", DiskGiB: []int64{8}},
	{Name: "domain-controller", CPUs: 2, MemoryMiB: 4096, GuestID: "windows2019srv_64Guest", DiskGiB: []int64{60}, On: true},
	{Name: "test-kiosk", CPUs: 2, MemoryMiB: 2048, GuestID: "ubuntu64Guest", DiskGiB: []int64{24}},
}

func plausibleVMs(cfg Config) []VMSpec {
	out := make([]VMSpec, 0, cfg.Count)
	for i := range cfg.Count {
		vm := appliances[(int(cfg.Seed%1000)+i)%len(appliances)]
		if n := i / len(appliances); n > 0 {
			vm.Name = fmt.Sprintf("%s-%02d", vm.Name, n+1)
		}
		out = append(out, vm)
	}
	return out
}

var guestNames = map[string]string{
	"windows2019srv_64Guest": "Microsoft Windows Server 2019 (64-bit)",
	"ubuntu64Guest":          "Ubuntu Linux (64-bit)",
	"debian11_64Guest":       "Debian GNU/Linux 11 (64-bit)",
	"rhel8_64Guest":          "Red Hat Enterprise Linux 8 (64-bit)",
	"otherGuest64":           "Other (64-bit)",
	"otherGuest":             "Other (32-bit)",
}

// complete fills what a spec leaves open.
func (h *Host) complete(s VMSpec) VMSpec {
	if s.CPUs == 0 {
		s.CPUs = 1
	}
	if s.MemoryMiB == 0 {
		s.MemoryMiB = 1024
	}
	if s.GuestID == "" {
		s.GuestID = "otherGuest64"
	}
	if s.DiskGiB == nil {
		s.DiskGiB = []int64{10}
	}
	if s.Networks == nil {
		s.Networks = []string{"VM Network"}
	}
	if s.InstanceUUID == "" {
		s.InstanceUUID = stableUUID(h.cfg.Name, s.Name, "instance")
	}
	if !s.NoTools {
		if s.Hostname == "" {
			s.Hostname = s.Name
		}
		if s.IPs == nil {
			d := digest(h.cfg.Name, s.Name, "ip")
			site := digest(h.cfg.Name, "site")
			s.IPs = []string{net.IPv4(10, site[0], site[1], d[0]%250+2).String()}
		}
	}
	return s
}

func (h *Host) mac(vm string, i int) string {
	d := digest(h.cfg.Name, vm, fmt.Sprint(i), "mac")
	return net.HardwareAddr{0x00, 0x0c, 0x29, d[0], d[1], d[2]}.String()
}

// AddVM creates a virtual machine, and powers it on if the spec says so.
func (h *Host) AddVM(ctx context.Context, spec VMSpec) error {
	if err := h.addVM(ctx, h.complete(spec)); err != nil {
		return fmt.Errorf("add virtual machine %s: %w", spec.Name, err)
	}
	return nil
}

func (h *Host) addVM(ctx context.Context, s VMSpec) error {
	store := h.hardware().datastores[0].name
	if err := os.RemoveAll(filepath.Join(h.datastoreDir(store), s.Name)); err != nil { // of an earlier run
		return err
	}
	spec := types.VirtualMachineConfigSpec{
		Name: s.Name, GuestId: s.GuestID, NumCPUs: s.CPUs, MemoryMB: s.MemoryMiB,
		InstanceUuid: s.InstanceUUID, Uuid: stableUUID(h.cfg.Name, s.Name, "bios"),
		Version: "vmx-19", Firmware: string(types.GuestOsDescriptorFirmwareTypeEfi),
		Files: &types.VirtualMachineFileInfo{VmPathName: fmt.Sprintf("[%s] %s/%[2]s.vmx", store, s.Name)},
	}
	var devices object.VirtualDeviceList
	scsi, err := devices.CreateSCSIController("pvscsi")
	if err != nil {
		return err
	}
	devices = append(devices, scsi)
	for i, size := range s.DiskGiB {
		suffix := ""
		if i > 0 {
			suffix = fmt.Sprintf("_%d", i)
		}
		disk := devices.CreateDisk(scsi.(types.BaseVirtualController), types.ManagedObjectReference{},
			fmt.Sprintf("[%s] %[2]s/%[2]s%[3]s.vmdk", store, s.Name, suffix))
		disk.CapacityInKB = size << 20
		disk.CapacityInBytes = size << 30
		devices = append(devices, disk)
	}
	for i, name := range s.Networks {
		nic, err := devices.CreateEthernetCard("vmxnet3", &types.VirtualEthernetCardNetworkBackingInfo{
			VirtualDeviceDeviceBackingInfo: types.VirtualDeviceDeviceBackingInfo{DeviceName: name},
		})
		if err != nil {
			return err
		}
		card := nic.(types.BaseVirtualEthernetCard).GetVirtualEthernetCard()
		card.AddressType, card.MacAddress = string(types.VirtualEthernetCardMacTypeAssigned), h.mac(s.Name, i)
		card.Connectable = &types.VirtualDeviceConnectInfo{StartConnected: true, AllowGuestControl: true}
		devices = append(devices, nic)
	}
	if spec.DeviceChange, err = devices.ConfigSpec(types.VirtualDeviceConfigSpecOperationAdd); err != nil {
		return err
	}
	folder := object.NewFolder(h.vim, types.ManagedObjectReference{Type: "Folder", Value: "ha-folder-vm"})
	pool := object.NewResourcePool(h.vim, types.ManagedObjectReference{Type: "ResourcePool", Value: "ha-root-pool"})
	task, err := folder.CreateVM(ctx, spec, pool, h.system())
	if err != nil {
		return err
	}
	info, err := task.WaitForResult(ctx)
	if err != nil {
		return err
	}
	ref := info.Result.(types.ManagedObjectReference)
	h.mu.Lock()
	h.guests[ref] = s
	h.mu.Unlock()
	name := guestNames[s.GuestID]
	if name == "" {
		name = s.GuestID
	}
	h.update(ref, append(guestChanges(s, false, h),
		types.PropertyChange{Name: "config.guestFullName", Val: name},
		types.PropertyChange{Name: "summary.config.guestFullName", Val: name})...)
	if s.On {
		return h.power(ctx, ref, true)
	}
	return nil
}

// Power switches a virtual machine on or off, hard.
func (h *Host) Power(ctx context.Context, name string, on bool) error {
	return h.with(ctx, "power", name, func(vm *object.VirtualMachine) error { return h.power(ctx, vm.Reference(), on) })
}

func (h *Host) power(ctx context.Context, ref types.ManagedObjectReference, on bool) error {
	vm := object.NewVirtualMachine(h.vim, ref)
	if on {
		return wait(ctx, vm.PowerOn)
	}
	return wait(ctx, vm.PowerOff)
}

// Suspend suspends a virtual machine.
func (h *Host) Suspend(ctx context.Context, name string) error {
	return h.with(ctx, "suspend", name, func(vm *object.VirtualMachine) error { return wait(ctx, vm.Suspend) })
}

// RemoveVM powers a virtual machine off and destroys it.
func (h *Host) RemoveVM(ctx context.Context, name string) error {
	return h.with(ctx, "remove", name, func(vm *object.VirtualMachine) error {
		var off *types.InvalidPowerState
		if err := wait(ctx, vm.PowerOff); err != nil {
			if _, ok := fault.As(err, &off); !ok {
				return err
			}
		}
		if err := wait(ctx, vm.Destroy); err != nil {
			return err
		}
		h.mu.Lock()
		delete(h.guests, vm.Reference())
		h.mu.Unlock()
		return nil
	})
}

// RenameVM gives a virtual machine another name. Its instance UUID stays.
func (h *Host) RenameVM(ctx context.Context, name, to string) error {
	return h.with(ctx, "rename", name, func(vm *object.VirtualMachine) error {
		return wait(ctx, func(ctx context.Context) (*object.Task, error) { return vm.Rename(ctx, to) })
	})
}

// ResizeVM sets processors and memory. As on a simulator of this kind, no
// property collector tells of it.
func (h *Host) ResizeVM(ctx context.Context, name string, cpus int32, memoryMiB int64) error {
	return h.with(ctx, "resize", name, func(vm *object.VirtualMachine) error {
		return wait(ctx, func(ctx context.Context) (*object.Task, error) {
			return vm.Reconfigure(ctx, types.VirtualMachineConfigSpec{NumCPUs: cpus, MemoryMB: memoryMiB})
		})
	})
}

// SetIPs changes the addresses that the guest tools of a running virtual
// machine report.
func (h *Host) SetIPs(ctx context.Context, name string, ips ...string) error {
	return h.with(ctx, "set addresses of", name, func(vm *object.VirtualMachine) error {
		h.mu.Lock()
		s := h.guests[vm.Reference()]
		s.IPs = ips
		h.guests[vm.Reference()] = s
		h.mu.Unlock()
		h.update(vm.Reference(), guestChanges(s, true, h)...)
		return nil
	})
}

// SetTools says whether the guest tools of a running virtual machine run.
func (h *Host) SetTools(ctx context.Context, name string, running bool) error {
	return h.with(ctx, "set tools of", name, func(vm *object.VirtualMachine) error {
		h.mu.Lock()
		s := h.guests[vm.Reference()]
		h.mu.Unlock()
		h.update(vm.Reference(), guestChanges(s, running, h)...)
		return nil
	})
}

// SetFree changes how much of a datastore is free.
func (h *Host) SetFree(ctx context.Context, name string, bytes int64) error {
	var all []mo.Datastore
	if err := h.list(ctx, "Datastore", []string{"name"}, &all); err != nil {
		return fmt.Errorf("set free space of %s: %w", name, err)
	}
	for _, d := range all {
		if d.Name == name {
			h.update(d.Self, types.PropertyChange{Name: "summary.freeSpace", Val: bytes})
			return nil
		}
	}
	return fmt.Errorf("set free space of %s: no such datastore", name)
}

// SetMaintenance puts the host into maintenance mode or takes it out.
func (h *Host) SetMaintenance(ctx context.Context, on bool) error {
	f := func(ctx context.Context) (*object.Task, error) {
		if on {
			return h.system().EnterMaintenanceMode(ctx, 0, false, nil)
		}
		return h.system().ExitMaintenanceMode(ctx, 0)
	}
	if err := wait(ctx, f); err != nil {
		return fmt.Errorf("set maintenance mode: %w", err)
	}
	return nil
}

// PowerState returns a virtual machine's power state as the host has it:
// "poweredOn", "poweredOff" or "suspended".
func (h *Host) PowerState(ctx context.Context, name string) (string, error) {
	var state types.VirtualMachinePowerState
	err := h.with(ctx, "read power state of", name, func(vm *object.VirtualMachine) (err error) {
		state, err = vm.PowerState(ctx)
		return err
	})
	return string(state), err
}

// VMs returns the names of the virtual machines, by instance UUID.
func (h *Host) VMs(ctx context.Context) (map[string]string, error) {
	var all []mo.VirtualMachine
	if err := h.list(ctx, "VirtualMachine", []string{"name", "config.instanceUuid"}, &all); err != nil {
		return nil, fmt.Errorf("list virtual machines: %w", err)
	}
	out := make(map[string]string, len(all))
	for _, vm := range all {
		out[vm.Config.InstanceUuid] = vm.Name
	}
	return out, nil
}

func (h *Host) list(ctx context.Context, kind string, props []string, dst any) error {
	v, err := view.NewManager(h.vim).CreateContainerView(ctx, h.vim.ServiceContent.RootFolder, []string{kind}, true)
	if err != nil {
		return err
	}
	defer func() { _ = v.Destroy(ctx) }()
	return v.Retrieve(ctx, []string{kind}, props, dst)
}

func (h *Host) with(ctx context.Context, what, name string, f func(*object.VirtualMachine) error) error {
	err := func() error {
		var all []mo.VirtualMachine
		if err := h.list(ctx, "VirtualMachine", []string{"name"}, &all); err != nil {
			return err
		}
		for _, vm := range all {
			if vm.Name == name {
				return f(object.NewVirtualMachine(h.vim, vm.Self))
			}
		}
		return ErrNoVM
	}()
	if err != nil {
		return fmt.Errorf("%s virtual machine %s: %w", what, name, err)
	}
	return nil
}

func wait(ctx context.Context, f func(context.Context) (*object.Task, error)) error {
	task, err := f(ctx)
	if err != nil {
		return err
	}
	return task.Wait(ctx)
}

// observer follows the simulator's objects: it wakes waiting calls, and starts
// and stops the guest tools with their virtual machine.
type observer struct{ h *Host }

func (*observer) Reference() types.ManagedObjectReference {
	return types.ManagedObjectReference{Type: "PallasObserver", Value: "observer"}
}

func (o *observer) PutObject(*simulator.Context, mo.Reference) { o.h.notify() }

func (o *observer) RemoveObject(*simulator.Context, types.ManagedObjectReference) { o.h.notify() }

func (o *observer) UpdateObject(ctx *simulator.Context, obj mo.Reference, changes []types.PropertyChange) {
	defer o.h.notify()
	ref := obj.Reference()
	if ref.Type != "VirtualMachine" {
		return
	}
	for _, c := range changes {
		if c.Name != "runtime.powerState" {
			continue
		}
		o.h.mu.Lock()
		s := o.h.guests[ref]
		o.h.mu.Unlock()
		on := c.Val == types.VirtualMachinePowerStatePoweredOn
		var boot any
		if on {
			boot = time.Now().UTC().Truncate(time.Second)
		}
		// The caller holds the lock of the virtual machine.
		ctx.Map.Update(ctx, ctx.Map.Get(ref), append(guestChanges(s, on, o.h),
			types.PropertyChange{Name: "runtime.bootTime", Val: boot}))
	}
}

// guestChanges is what a guest's tools say when they run or have stopped.
func guestChanges(s VMSpec, running bool, h *Host) []types.PropertyChange {
	status, tools := types.VirtualMachineToolsRunningStatusGuestToolsNotRunning, types.VirtualMachineToolsStatusToolsNotRunning
	version := types.VirtualMachineToolsVersionStatusGuestToolsUnmanaged
	var hostname, ip string
	nics := []types.GuestNicInfo{}
	switch {
	case s.NoTools || s.Name == "":
		tools, version = types.VirtualMachineToolsStatusToolsNotInstalled, types.VirtualMachineToolsVersionStatusGuestToolsNotInstalled
	case running:
		status, tools = types.VirtualMachineToolsRunningStatusGuestToolsRunning, types.VirtualMachineToolsStatusToolsOk
		hostname = s.Hostname
		if len(s.IPs) > 0 {
			ip = s.IPs[0]
		}
		for i, n := range s.Networks {
			nic := types.GuestNicInfo{Network: n, MacAddress: h.mac(s.Name, i), Connected: true, DeviceConfigId: int32(4000 + i)}
			if i == 0 {
				nic.IpAddress = append([]string(nil), s.IPs...)
			}
			nics = append(nics, nic)
		}
	}
	return []types.PropertyChange{
		{Name: "guest.toolsStatus", Val: tools},
		{Name: "guest.toolsRunningStatus", Val: string(status)},
		{Name: "guest.toolsVersionStatus2", Val: string(version)},
		{Name: "guest.hostName", Val: hostname},
		{Name: "guest.ipAddress", Val: ip},
		{Name: "guest.net", Val: nics},
		{Name: "summary.guest.toolsRunningStatus", Val: string(status)},
		{Name: "summary.guest.ipAddress", Val: ip},
		{Name: "summary.guest.hostName", Val: hostname},
	}
}
