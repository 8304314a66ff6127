package fake

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"pallas/agent/hypervisor"
	"pallas/mqttgw/wire"
)

// Host is a hypervisor host in memory. Its methods are safe for concurrent
// use; each control takes effect at once and wakes watchers.
type Host struct {
	mu       sync.Mutex
	host     wire.Host
	vms      map[string]wire.VM
	next     int // of generated ids
	change   chan struct{}
	id       string
	runs     []wire.Task
	started  func(wire.Task)
	taskTime time.Duration
	hold     chan struct{} // closed to let tasks go on; nil when not held
	faults   []error

	silent      bool
	unreachable string
	denied      string
	readOnly    string
}

var _ hypervisor.Driver = (*Host)(nil)

// New returns a host with these machines. Machines without an id get one.
func New(host wire.Host, vms ...wire.VM) *Host {
	h := &Host{host: cloneHost(host), vms: make(map[string]wire.VM, len(vms)), change: make(chan struct{})}
	for _, vm := range vms {
		h.put(vm)
	}
	return h
}

// Sample returns a licensed host called name with n machines, vm-1 … vm-n, the
// odd ones running with tools.
func Sample(name string, n int) *Host {
	h := New(wire.Host{
		Name: name, Vendor: "Pallas", Model: "Fake", Serial: "F-" + name, Product: "VMware ESXi", Version: "8.0.3", Build: "24674464",
		CPUModel: "fake", CPUSockets: 1, CPUCores: 4, CPUThreads: 8, CPUMHz: 2400, MemoryMiB: 32 << 10,
		License:    wire.License{Name: "evaluation", Edition: "eval", Writable: true},
		Datastores: []wire.Datastore{{ID: "ds-1", Name: "datastore1", Type: "VMFS", CapacityMiB: 100 << 10, FreeMiB: 60 << 10, Accessible: true}},
		Networks:   []wire.Network{{ID: "net-1", Name: "VM Network"}},
	})
	for i := range n {
		vm := wire.VM{
			Name: fmt.Sprintf("%s-vm%d", name, i+1), Power: wire.PowerOff, CPUs: 2, MemoryMiB: 2048, GuestID: "debian12_64Guest",
			GuestName: "Debian GNU/Linux 12 (64-bit)", Tools: wire.ToolsNotRunning,
			Disks: []wire.Disk{{Key: 2000, Label: "Hard disk 1", CapacityMiB: 8192, Datastore: "ds-1", File: fmt.Sprintf("[datastore1] vm%d/vm%d.vmdk", i+1, i+1), Thin: true}},
			NICs:  []wire.NIC{{Key: 4000, Label: "Network adapter 1", MAC: fmt.Sprintf("00:50:56:00:00:%02x", i%256), Network: "net-1", Connected: true}},
		}
		if i%2 == 0 {
			vm.Power, vm.Tools = wire.PowerOn, wire.ToolsRunning
			vm.Hostname, vm.IPs = fmt.Sprintf("vm%d", i+1), []string{fmt.Sprintf("192.0.2.%d", i%250+1)}
		}
		h.PutVM(vm)
	}
	return h
}

// Observe implements [hypervisor.Driver].
func (h *Host) Observe(ctx context.Context) (hypervisor.Snapshot, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.reach(ctx); err != nil {
		return hypervisor.Snapshot{}, err
	}
	s := hypervisor.Snapshot{Host: cloneHost(h.host), VMs: make([]wire.VM, 0, len(h.vms))}
	for _, vm := range h.vms {
		s.VMs = append(s.VMs, cloneVM(vm))
	}
	slices.SortFunc(s.VMs, func(a, b wire.VM) int { return strings.Compare(a.ID, b.ID) })
	return s, nil
}

// Watch implements [hypervisor.Driver].
func (h *Host) Watch(ctx context.Context, changed func()) error {
	for {
		h.mu.Lock()
		err, change := h.reach(ctx), h.change
		h.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		default:
		}
		if err != nil {
			return err
		}
		changed()
		select {
		case <-ctx.Done():
			return nil
		case <-change:
		}
	}
}

// Run implements [hypervisor.Driver].
func (h *Host) Run(ctx context.Context, task wire.Task, progress func(percent int)) error {
	h.mu.Lock()
	if err := h.begin(ctx, task); err != nil {
		h.mu.Unlock()
		return err
	}
	h.runs = append(h.runs, task)
	hold, wait, started := h.hold, h.taskTime, h.started
	h.mu.Unlock()

	if started != nil {
		started(task)
	}
	if progress == nil {
		progress = func(int) {}
	}
	progress(0)
	if wait > 0 {
		for i := range 4 {
			timer := time.NewTimer(wait / 4)
			select {
			case <-ctx.Done():
				timer.Stop()
				return h.gaveUp(ctx)
			case <-timer.C:
			}
			progress(25 * (i + 1))
		}
	}
	if hold != nil {
		select {
		case <-ctx.Done():
			return h.gaveUp(ctx)
		case <-hold:
		}
	}

	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.faults) > 0 {
		err := h.faults[0]
		h.faults = h.faults[1:]
		return err
	}
	if err := h.begin(ctx, task); err != nil {
		return err // changed while it ran
	}
	vm := h.vms[task.VM]
	switch task.Kind {
	case wire.TaskVMPowerOn:
		setPower(&vm, wire.PowerOn)
	case wire.TaskVMPowerOff, wire.TaskVMShutdown:
		setPower(&vm, wire.PowerOff)
	case wire.TaskVMSuspend:
		setPower(&vm, wire.PowerSuspended)
	case wire.TaskVMReset:
		setPower(&vm, wire.PowerOn)
		vm.BootTime++
	}
	h.vms[vm.ID] = vm
	h.wake()
	return nil
}

// Check implements [hypervisor.Driver].
func (h *Host) Check(context.Context) []hypervisor.CheckResult {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := []hypervisor.CheckResult{{Name: "host reachable", OK: h.unreachable == "", Detail: "in this process"}}
	if h.unreachable != "" {
		out[0].Detail = h.unreachable
		return out
	}
	out = append(out,
		hypervisor.CheckResult{Name: "host certificate", OK: true, Detail: "none needed in this process"},
		hypervisor.CheckResult{Name: "host login", OK: h.denied == "", Detail: "not needed in this process"})
	if h.denied != "" {
		out[2].Detail = h.denied
		return out
	}
	licence := hypervisor.CheckResult{Name: "host licence", OK: h.host.License.Writable, Detail: h.host.License.Name + " permits changes"}
	if !licence.OK {
		licence.Detail = h.host.License.Reason
	}
	return append(out, hypervisor.CheckResult{Name: "host rights", OK: true, Detail: "all"}, licence)
}

// LoadID implements [hypervisor.Driver].
func (h *Host) LoadID(ctx context.Context) (string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.reach(ctx); err != nil {
		return "", err
	}
	return h.id, nil
}

// SaveID implements [hypervisor.Driver].
func (h *Host) SaveID(ctx context.Context, id string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.writable(ctx); err != nil {
		return err
	}
	h.id = id
	return nil
}

// Close implements [hypervisor.Driver]. The host stays: another agent may use
// it.
func (h *Host) Close() error { return nil }

// begin says whether task may run now.
func (h *Host) begin(ctx context.Context, task wire.Task) error {
	if err := h.reach(ctx); err != nil {
		return err
	}
	switch task.Kind {
	case wire.TaskVMPowerOn, wire.TaskVMPowerOff, wire.TaskVMReset, wire.TaskVMSuspend, wire.TaskVMShutdown:
	default:
		return fault(wire.CodeUnsupported, "this host cannot do %q", task.Kind)
	}
	vm, ok := h.vms[task.VM]
	if !ok {
		return fault(wire.CodeNotFound, "no virtual machine %q on this host", task.VM)
	}
	if err := h.writable(ctx); err != nil {
		return err
	}
	// Only power-on wants a machine that does not run.
	if (task.Kind == wire.TaskVMPowerOn) == (vm.Power == wire.PowerOn) {
		return fault(wire.CodeInvalidState, "the virtual machine is %s", vm.Power)
	}
	if task.Kind == wire.TaskVMShutdown && vm.Tools != wire.ToolsRunning {
		return fault(wire.CodeTools, "the guest tools are not running")
	}
	return nil
}

func (h *Host) reach(ctx context.Context) error {
	switch {
	case ctx.Err() != nil:
		return &hypervisor.Error{Code: wire.CodeUnreachable, Message: "gave up", Err: ctx.Err()}
	case h.unreachable != "":
		return fault(wire.CodeUnreachable, "%s", h.unreachable)
	case h.denied != "":
		return fault(wire.CodeDenied, "%s", h.denied)
	}
	return nil
}

func (h *Host) writable(ctx context.Context) error {
	if err := h.reach(ctx); err != nil {
		return err
	}
	if h.readOnly != "" {
		h.host.License.Writable, h.host.License.Reason = false, h.readOnly
		return fault(wire.CodeReadOnly, "%s", h.readOnly)
	}
	return nil
}

func (h *Host) gaveUp(ctx context.Context) error {
	return &hypervisor.Error{Code: wire.CodeHost, Message: "gave up waiting for the task", Err: ctx.Err()}
}

func fault(code, format string, args ...any) error {
	return &hypervisor.Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

func setPower(vm *wire.VM, power string) {
	vm.Power = power
	if power != wire.PowerOn {
		vm.BootTime, vm.IPs, vm.Hostname = 0, nil, ""
		if vm.Tools == wire.ToolsRunning {
			vm.Tools = wire.ToolsNotRunning
		}
		return
	}
	if vm.Tools == wire.ToolsNotRunning {
		vm.Tools = wire.ToolsRunning
	}
}

func cloneHost(h wire.Host) wire.Host {
	h.Datastores, h.Networks = slices.Clone(h.Datastores), slices.Clone(h.Networks)
	return h
}

func cloneVM(vm wire.VM) wire.VM {
	vm.IPs, vm.Disks, vm.NICs = slices.Clone(vm.IPs), slices.Clone(vm.Disks), slices.Clone(vm.NICs)
	return vm
}
