package executor

import (
	"context"
	"fmt"
	"slices"
	"time"

	"pallas/agent/retry"
	"pallas/agent/store"
	"pallas/mqttgw/wire"
)

// wanted is the power state that a task of this kind leads to, "" for kinds
// whose effect cannot be told from the machine's state.
func wanted(kind string) string {
	switch kind {
	case wire.TaskVMPowerOn:
		return wire.PowerOn
	case wire.TaskVMPowerOff:
		return wire.PowerOff
	case wire.TaskVMSuspend:
		return wire.PowerSuspended
	default:
		return ""
	}
}

// whatBecame finds out how a task ended that had begun when the agent stopped.
// It does not run it again. ok is false when ctx is done.
func (e *Executor) whatBecame(ctx context.Context, task store.Task) (state, code, message string, ok bool) {
	want := wanted(task.Kind)
	if want == "" {
		return wire.StateFailed, wire.CodeInterrupted,
			"the agent stopped while it ran; what became of it is not known", true
	}
	began := time.Now()
	again := retry.Backoff{Base: time.Second, Cap: 10 * time.Second}
	for {
		snap, err := e.c.Driver.Observe(ctx)
		if ctx.Err() != nil {
			return "", "", "", false
		}
		waited := time.Since(began)
		if err != nil {
			if waited >= e.c.Recover {
				return wire.StateFailed, wire.CodeInterrupted, fmt.Sprintf(
					"the agent stopped while it ran, and the host does not say what became of it: %v", err), true
			}
		} else {
			i := slices.IndexFunc(snap.VMs, func(vm wire.VM) bool { return vm.ID == task.VM })
			switch {
			case i < 0:
				return wire.StateFailed, wire.CodeInterrupted,
					"the agent stopped while it ran, and the virtual machine is gone", true
			case snap.VMs[i].Power == want:
				if e.c.Refresh != nil {
					e.c.Refresh(ctx)
				}
				return wire.StateSucceeded, "", "found done after the agent was restarted", true
			case waited >= e.c.Settle:
				return wire.StateFailed, wire.CodeInterrupted, fmt.Sprintf(
					"the agent stopped while it ran, and the virtual machine is %s", snap.VMs[i].Power), true
			}
		}
		if retry.Pause(ctx, again.Next()) != nil {
			return "", "", "", false
		}
	}
}
