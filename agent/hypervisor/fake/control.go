package fake

import (
	"fmt"
	"slices"
	"time"

	"pallas/agent/hypervisor"
	"pallas/mqttgw/wire"
)

// PutVM adds a machine, or replaces the one of its id, and returns the id.
func (h *Host) PutVM(vm wire.VM) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	id := h.put(vm)
	h.wake()
	return id
}

// RemoveVM takes a machine away and says whether it was there.
func (h *Host) RemoveVM(id string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, ok := h.vms[id]
	delete(h.vms, id)
	h.wake()
	return ok
}

// AlterVM changes a machine in place and says whether it was there.
func (h *Host) AlterVM(id string, alter func(*wire.VM)) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	vm, ok := h.vms[id]
	if !ok {
		return false
	}
	vm = cloneVM(vm)
	alter(&vm)
	vm.ID = id
	h.vms[id] = vm
	h.wake()
	return true
}

// SetPower is somebody pressing a machine's power button.
func (h *Host) SetPower(id, power string) bool {
	return h.AlterVM(id, func(vm *wire.VM) { setPower(vm, power) })
}

// SetTools sets the state of a machine's guest tools.
func (h *Host) SetTools(id, state string) bool {
	return h.AlterVM(id, func(vm *wire.VM) { vm.Tools = state })
}

// AlterHost changes the host's facts in place.
func (h *Host) AlterHost(alter func(*wire.Host)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	host := cloneHost(h.host)
	alter(&host)
	h.host = host
	h.wake()
}

// SetUnreachable cuts the host off with this message, or joins it again with "".
func (h *Host) SetUnreachable(message string) { h.set(&h.unreachable, message) }

// SetDenied makes the host refuse the login with this message, or accept it
// with "".
func (h *Host) SetDenied(message string) { h.set(&h.denied, message) }

// SetReadOnly makes the host's licence forbid changes for this reason, or
// permit them with "". With known, the host's facts say so at once; otherwise
// a refused task finds out, as with the licences that do not tell.
func (h *Host) SetReadOnly(reason string, known bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.readOnly = reason
	if known || reason == "" {
		h.host.License.Writable, h.host.License.Reason = reason == "", reason
		h.wake()
	}
}

// SetSilent stops (or starts again) telling watchers of changes, as a real
// host does for some of them.
func (h *Host) SetSilent(silent bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.silent = silent
}

// SetTaskTime makes each task take d.
func (h *Host) SetTaskTime(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.taskTime = d
}

// HoldTasks makes tasks that begin from now on wait until release is called.
func (h *Host) HoldTasks() (release func()) {
	hold := make(chan struct{})
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hold = hold
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.hold == hold {
			h.hold = nil
			close(hold)
		}
	}
}

// FailNext makes the next task that gets as far as running fail with this
// fault. Several calls queue up.
func (h *Host) FailNext(code, message string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.faults = append(h.faults, &hypervisor.Error{Code: code, Message: message})
}

// OnTask sets what is called when the host begins a task, before its effect.
func (h *Host) OnTask(started func(wire.Task)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.started = started
}

// Runs returns the tasks that the host has begun, in order.
func (h *Host) Runs() []wire.Task {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.runs)
}

// StoredID returns the device id on the host's own storage.
func (h *Host) StoredID() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.id
}

// SetStoredID puts a device id on the host's own storage.
func (h *Host) SetStoredID(id string) { h.set(&h.id, id) }

// VM returns a machine, whatever the host's reachability.
func (h *Host) VM(id string) (wire.VM, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	vm, ok := h.vms[id]
	return cloneVM(vm), ok
}

func (h *Host) set(field *string, value string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	*field = value
	h.wake()
}

func (h *Host) put(vm wire.VM) string {
	if vm.ID == "" {
		h.next++
		vm.ID = fmt.Sprintf("vm-%d", h.next)
	}
	if vm.Power == "" {
		vm.Power = wire.PowerOff
	}
	if vm.Tools == "" {
		vm.Tools = wire.ToolsNotInstalled
	}
	h.vms[vm.ID] = cloneVM(vm)
	return vm.ID
}

// wake tells every watcher that something changed.
func (h *Host) wake() {
	if !h.silent || h.unreachable != "" || h.denied != "" {
		close(h.change)
		h.change = make(chan struct{})
	}
}
