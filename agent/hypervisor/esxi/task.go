package esxi

import (
	"context"
	"fmt"
	"time"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"

	"pallas/agent/hypervisor"
	"pallas/mqttgw/wire"
)

// The first and the longest pause between two looks at a task.
const (
	pollFirst = 50 * time.Millisecond
	pollLast  = 2 * time.Second
)

// Run implements [hypervisor.Driver].
func (d *Driver) Run(ctx context.Context, t wire.Task, progress func(percent int)) error {
	if progress == nil {
		progress = func(int) {}
	}
	begin, ok := tasks[t.Kind]
	if !ok {
		return &hypervisor.Error{Code: wire.CodeUnsupported, Message: fmt.Sprintf("this agent does not know tasks of kind %q", t.Kind)}
	}
	doing := t.Kind + " of " + t.VM
	var vm, running types.ManagedObjectReference
	err := d.with(ctx, doing, func(s *session) (err error) {
		if vm, err = s.find(ctx, t.VM); err != nil {
			return err
		}
		running, err = begin(ctx, s, vm)
		return err
	})
	if err == nil {
		progress(0)
		if running.Value == "" {
			err = d.awaitShutdown(ctx, doing, vm)
		} else {
			err = d.awaitTask(ctx, doing, running, progress)
		}
	}
	d.remember(err)
	if err == nil {
		progress(100)
	}
	return err
}

// tasks begin the work on a virtual machine and return the host's task, or
// none if the host only passes the wish on to the guest.
var tasks = map[string]func(context.Context, *session, types.ManagedObjectReference) (types.ManagedObjectReference, error){
	wire.TaskVMPowerOn: func(ctx context.Context, s *session, vm types.ManagedObjectReference) (ref types.ManagedObjectReference, err error) {
		res, err := methods.PowerOnVM_Task(ctx, s, &types.PowerOnVM_Task{This: vm})
		if err == nil {
			ref = res.Returnval
		}
		return ref, err
	},
	wire.TaskVMPowerOff: func(ctx context.Context, s *session, vm types.ManagedObjectReference) (ref types.ManagedObjectReference, err error) {
		res, err := methods.PowerOffVM_Task(ctx, s, &types.PowerOffVM_Task{This: vm})
		if err == nil {
			ref = res.Returnval
		}
		return ref, err
	},
	wire.TaskVMReset: func(ctx context.Context, s *session, vm types.ManagedObjectReference) (ref types.ManagedObjectReference, err error) {
		res, err := methods.ResetVM_Task(ctx, s, &types.ResetVM_Task{This: vm})
		if err == nil {
			ref = res.Returnval
		}
		return ref, err
	},
	wire.TaskVMSuspend: func(ctx context.Context, s *session, vm types.ManagedObjectReference) (ref types.ManagedObjectReference, err error) {
		res, err := methods.SuspendVM_Task(ctx, s, &types.SuspendVM_Task{This: vm})
		if err == nil {
			ref = res.Returnval
		}
		return ref, err
	},
	wire.TaskVMShutdown: func(ctx context.Context, s *session, vm types.ManagedObjectReference) (types.ManagedObjectReference, error) {
		_, err := methods.ShutdownGuest(ctx, s, &types.ShutdownGuest{This: vm})
		return types.ManagedObjectReference{}, err
	},
}

// find returns the virtual machine of an id, as Observe gives ids.
func (s *session) find(ctx context.Context, id string) (types.ManagedObjectReference, error) {
	var found []foundVM
	err := s.retrieve(ctx, types.PropertyFilterSpec{
		ObjectSet: []types.ObjectSpec{{Obj: hostRef, Skip: types.NewBool(true), SelectSet: traverse("vm")}},
		PropSet:   []types.PropertySpec{{Type: "VirtualMachine", PathSet: []string{"config.instanceUuid"}}},
	}, func(o object) { found = append(found, foundVM{ref: o.ref, instance: instanceUUID(o)}) })
	if err != nil {
		return types.ManagedObjectReference{}, err
	}
	name(found)
	for _, f := range found {
		if f.vm.ID == id {
			return f.ref, nil
		}
	}
	return types.ManagedObjectReference{}, &hypervisor.Error{Code: wire.CodeNotFound, Message: fmt.Sprintf("there is no virtual machine %q on this host", id)}
}

// awaitTask looks at the host's task until it has ended.
func (d *Driver) awaitTask(ctx context.Context, doing string, ref types.ManagedObjectReference, progress func(int)) error {
	return d.poll(ctx, doing, func(s *session) (bool, error) {
		o, err := s.read(ctx, ref, "info.state", "info.progress", "info.error")
		if err != nil {
			return false, err
		}
		switch get[types.TaskInfoState](o, "info.state") {
		case types.TaskInfoStateSuccess:
			return true, nil
		case types.TaskInfoStateError:
			fault, ok := o.props["info.error"].(types.LocalizedMethodFault)
			if !ok {
				return false, &hypervisor.Error{Code: wire.CodeHost, Message: "the host says that its task failed, without a reason"}
			}
			return false, &taskError{&fault}
		case types.TaskInfoStateQueued, types.TaskInfoStateRunning:
		}
		progress(min(max(int(get[int32](o, "info.progress")), 0), 99))
		return false, nil
	})
}

// awaitShutdown waits until a guest that was asked to has shut down.
func (d *Driver) awaitShutdown(ctx context.Context, doing string, vm types.ManagedObjectReference) error {
	limit, cancel := context.WithTimeout(ctx, d.cfg.ShutdownTimeout)
	defer cancel()
	err := d.poll(limit, doing, func(s *session) (bool, error) {
		o, err := s.read(limit, vm, "runtime.powerState")
		return get[types.VirtualMachinePowerState](o, "runtime.powerState") == types.VirtualMachinePowerStatePoweredOff, err
	})
	if err != nil && limit.Err() != nil && ctx.Err() == nil {
		return &hypervisor.Error{Code: wire.CodeHost, Message: fmt.Sprintf("the guest was asked to shut down and still runs after %v", d.cfg.ShutdownTimeout)}
	}
	return err
}

// poll calls look, with growing pauses, until it says that it is done.
func (d *Driver) poll(ctx context.Context, doing string, look func(*session) (done bool, err error)) error {
	pause := pollFirst
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		done := false
		err := d.with(ctx, doing, func(s *session) (err error) {
			done, err = look(s)
			return err
		})
		if done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return &hypervisor.Error{Code: wire.CodeHost, Message: "gave up waiting for the host's task", Err: context.Cause(ctx)}
		case <-timer.C:
		}
		pause = min(pause*3/2, pollLast)
		timer.Reset(pause)
	}
}
