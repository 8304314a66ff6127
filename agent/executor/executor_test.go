package executor_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"

	"pallas/agent/executor"
	"pallas/agent/hypervisor/fake"
	"pallas/agent/store"
	"pallas/mqttgw/wire"
)

// rig is an executor in a synctest bubble, on a fake host.
type rig struct {
	t     *testing.T
	host  *fake.Host
	store *store.Store
	path  string
	exec  *executor.Executor
	stop  func()
	seen  uint64
	names map[uuid.UUID]string
	// readOnly is what the inventory knows of the licence.
	readOnly string
}

func newRig(t *testing.T) *rig {
	r := &rig{t: t, host: fake.Sample("one", 6), path: filepath.Join(t.TempDir(), "agent.db"), names: map[uuid.UUID]string{}, seen: 1}
	r.start()
	t.Cleanup(func() { r.stop(); r.store.Close() })
	return r
}

func (r *rig) start() {
	r.t.Helper()
	s, err := store.Open(r.path, store.Options{NoSync: true})
	if err != nil {
		r.t.Fatal(err)
	}
	r.store = s
	r.exec, err = executor.New(executor.Config{
		Driver: r.host, Store: s, Now: time.Now, Log: slog.New(slog.DiscardHandler),
		Refresh: func(context.Context) {
			if err := s.Update(func(tx *store.Tx) error {
				_, err := tx.Report(wire.Report{Time: time.Now(), VMGone: &wire.VMGone{ID: "refresh"}})
				return err
			}); err != nil {
				r.t.Error(err)
			}
		},
		ReadOnly: func() string { return r.readOnly },
	})
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.exec.Run(ctx) }()
	stopped := false
	r.stop = func() {
		r.t.Helper()
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("run: %v", err)
		}
	}
	synctest.Wait()
}

func (r *rig) restart() {
	r.t.Helper()
	r.stop()
	if err := r.store.Close(); err != nil {
		r.t.Fatal(err)
	}
	r.start()
}

func (r *rig) task(name, kind, vm string) wire.Task {
	id := uuid.NewSHA1(uuid.Nil, []byte(name))
	r.names[id] = name
	return wire.Task{ID: id, Kind: kind, VM: vm, Deadline: time.Now().Add(time.Hour)}
}

func (r *rig) submit(tasks ...wire.Task) {
	r.t.Helper()
	if err := r.exec.Submit(tasks); err != nil {
		r.t.Fatalf("submit: %v", err)
	}
}

// after lets time pass and demands these reports since the last time.
func (r *rig) after(d time.Duration, want ...string) {
	r.t.Helper()
	if d > 0 {
		<-time.After(d)
	}
	synctest.Wait()
	if diff := cmp.Diff(want, r.reports(), cmpopts.EquateEmpty()); diff != "" {
		r.t.Fatalf("reports (-want +got):\n%s", diff)
	}
}

func (r *rig) reports() (out []string) {
	r.t.Helper()
	reports, err := r.store.Reports(r.seen, wire.MaxReports)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, p := range reports {
		r.seen = p.Seq + 1
		switch {
		case p.VMGone != nil:
			out = append(out, p.VMGone.ID)
		case p.Task.State == wire.StateProgress:
			out = append(out, fmt.Sprintf("%s at %d", r.names[p.Task.ID], p.Task.Percent))
		default:
			out = append(out, strings.TrimSpace(r.names[p.Task.ID]+" "+p.Task.State+" "+p.Task.Code))
		}
	}
	return out
}

func (r *rig) receipt() {
	r.t.Helper()
	epoch, _, next := r.store.Numbers()
	r.store.Receipt(epoch, next-1)
}

func (r *rig) ran() (out []string) {
	for _, t := range r.host.Runs() {
		out = append(out, r.names[t.ID])
	}
	return out
}

func (r *rig) wantRan(want ...string) {
	r.t.Helper()
	if diff := cmp.Diff(want, r.ran(), cmpopts.EquateEmpty()); diff != "" {
		r.t.Fatalf("host was asked (-want +got):\n%s", diff)
	}
}

func bubble(name string, t *testing.T, test func(*testing.T, *rig)) {
	t.Run(name, func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t)
			test(t, r)
			r.stop()
			if err := r.store.Close(); err != nil {
				t.Error(err)
			}
		})
	})
}

func TestTasks(t *testing.T) {
	bubble("succeeds once", t, func(_ *testing.T, r *rig) {
		a := r.task("a", wire.TaskVMPowerOff, "vm-1")
		r.submit(a)
		r.after(0, "a accepted", "refresh", "a succeeded")
		r.submit(a, a)
		r.after(time.Second) // both answers are still on their way
		r.receipt()
		r.submit(a)
		r.after(time.Second, "a succeeded")
		r.wantRan("a")
	})
	bubble("fails with the host's reason", t, func(t *testing.T, r *rig) {
		r.host.FailNext(wire.CodeHost, "disk on fire")
		a := r.task("a", wire.TaskVMPowerOff, "vm-1")
		r.submit(a)
		r.after(0, "a accepted", "refresh", "a failed host")
		r.submit(r.task("b", wire.TaskVMPowerOn, "vm-3"))
		r.after(0, "b accepted", "refresh", "b failed invalid_state")
		r.submit(r.task("c", wire.TaskVMShutdown, "gone"))
		r.after(0, "c accepted", "refresh", "c failed not_found")
		if task, _, err := r.store.Task(a.ID); err != nil || task.Message != "disk on fire" {
			t.Errorf("journal %+v, %v", task, err)
		}
	})
	bubble("rejects what it cannot do", t, func(_ *testing.T, r *rig) {
		late := r.task("late", wire.TaskVMPowerOff, "vm-1")
		late.Deadline = time.Now().Add(-time.Second)
		odd := r.task("odd", "vm.levitate", "vm-1")
		r.submit(late, odd)
		r.after(time.Second, "late rejected deadline", "odd rejected unsupported")
		r.receipt()
		r.submit(late)
		r.after(time.Second, "late rejected deadline")
		r.readOnly = "free licence"
		r.submit(r.task("a", wire.TaskVMPowerOff, "vm-1"))
		r.after(time.Second, "a rejected read_only")
		r.wantRan()
	})
	bubble("keeps the order of a machine", t, func(t *testing.T, r *rig) {
		r.host.SetTaskTime(4 * time.Second)
		r.submit(
			r.task("a1", wire.TaskVMPowerOff, "vm-1"), r.task("a2", wire.TaskVMPowerOn, "vm-1"),
			r.task("b1", wire.TaskVMPowerOff, "vm-3"), r.task("a3", wire.TaskVMReset, "vm-1"))
		<-time.After(13 * time.Second)
		synctest.Wait()
		ran := r.ran()
		if got := slices.DeleteFunc(slices.Clone(ran), func(s string) bool { return s[0] != 'a' }); !slices.Equal(got, []string{"a1", "a2", "a3"}) {
			t.Errorf("machine a: %v, want a1 a2 a3", got)
		}
		if slices.Index(ran, "b1") > slices.Index(ran, "a2") {
			t.Errorf("order %v: machine b waited for machine a", ran)
		}
	})
	bubble("bounds what runs at a time", t, func(t *testing.T, r *rig) {
		release := r.host.HoldTasks()
		for i := range 6 {
			kind := wire.TaskVMPowerOff
			if i%2 == 1 {
				kind = wire.TaskVMPowerOn
			}
			r.submit(r.task(fmt.Sprint("t", i), kind, fmt.Sprint("vm-", i+1)))
		}
		synctest.Wait()
		if n := len(r.ran()); n != 4 {
			t.Errorf("%d tasks run at a time, want 4", n)
		}
		release()
		synctest.Wait()
		if n := len(r.ran()); n != 6 {
			t.Errorf("%d tasks ran, want all 6", n)
		}
	})
	bubble("misses a deadline in the queue", t, func(_ *testing.T, r *rig) {
		r.host.SetTaskTime(time.Minute)
		b := r.task("b", wire.TaskVMPowerOn, "vm-1")
		b.Deadline = time.Now().Add(30 * time.Second)
		r.submit(r.task("a", wire.TaskVMPowerOff, "vm-1"), b)
		<-time.After(2 * time.Minute)
		r.reports()
		r.wantRan("a")
		r.receipt()
		r.submit(b)
		r.after(time.Second, "b failed deadline")
	})
	bubble("reports progress now and then", t, func(_ *testing.T, r *rig) {
		r.host.SetTaskTime(12 * time.Second)
		r.submit(r.task("a", wire.TaskVMPowerOff, "vm-1"))
		r.after(13*time.Second, "a accepted", "a at 25", "a at 50", "a at 75", "refresh", "a succeeded")
		r.host.SetTaskTime(2 * time.Second)
		r.submit(r.task("b", wire.TaskVMPowerOn, "vm-1"))
		r.after(13*time.Second, "b accepted", "b at 25", "refresh", "b succeeded")
		if err := r.store.Update(func(tx *store.Tx) error {
			for range 64 {
				if _, err := tx.Report(wire.Report{Time: time.Now(), VMGone: &wire.VMGone{ID: "x"}}); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			r.t.Fatal(err)
		}
		r.reports()
		r.host.SetTaskTime(12 * time.Second)
		r.submit(r.task("c", wire.TaskVMPowerOff, "vm-1"))
		r.after(13*time.Second, "c accepted", "refresh", "c succeeded") // others wait already
	})
	bubble("gives up waiting", t, func(_ *testing.T, r *rig) {
		r.host.SetTaskTime(time.Hour)
		r.submit(r.task("a", wire.TaskVMPowerOff, "vm-1"))
		<-time.After(14 * time.Minute)
		synctest.Wait()
		r.reports()
		r.after(2*time.Minute, "a at 25", "refresh", "a failed interrupted")
	})
	bubble("takes no more than a hello can tell of", t, func(t *testing.T, r *rig) {
		r.host.HoldTasks()
		for i := range wire.MaxItems {
			r.submit(r.task(fmt.Sprint(i), wire.TaskVMPowerOff, "vm-1"))
		}
		more := r.task("more", wire.TaskVMPowerOff, "vm-1")
		if err := r.exec.Submit([]wire.Task{more}); !errors.Is(err, executor.ErrFull) {
			t.Errorf("one more: %v, want ErrFull", err)
		}
		if _, ok, _ := r.store.Task(more.ID); ok {
			t.Error("a task that was not taken is in the journal")
		}
	})
}

func TestCancel(t *testing.T) {
	bubble("before it begins", t, func(_ *testing.T, r *rig) {
		release := r.host.HoldTasks()
		a, b, c := r.task("a", wire.TaskVMPowerOff, "vm-1"), r.task("b", wire.TaskVMReset, "vm-1"), r.task("c", wire.TaskVMPowerOn, "vm-1")
		r.submit(a, b, c)
		r.after(0, "a accepted", "b accepted", "c accepted")
		if err := r.exec.Cancel([]uuid.UUID{b.ID}); err != nil {
			r.t.Fatal(err)
		}
		r.after(0, "b cancelled")
		release()
		r.after(0, "refresh", "a succeeded", "refresh", "c succeeded")
		r.wantRan("a", "c")
		r.receipt()
		r.submit(b)
		r.after(0, "b cancelled")
		r.wantRan("a", "c")
	})
	bubble("the only one that waits, and another comes", t, func(_ *testing.T, r *rig) {
		release := r.host.HoldTasks()
		for i := range 4 {
			r.submit(r.task(fmt.Sprint("t", i), []string{wire.TaskVMReset, wire.TaskVMPowerOn}[i%2], fmt.Sprint("vm-", i+1)))
		}
		synctest.Wait()
		x := r.task("x", wire.TaskVMReset, "vm-5")
		r.submit(x)
		if err := r.exec.Cancel([]uuid.UUID{x.ID}); err != nil {
			r.t.Fatal(err)
		}
		r.submit(r.task("y", wire.TaskVMPowerOff, "vm-5"), r.task("z", wire.TaskVMPowerOn, "vm-5"))
		release()
		synctest.Wait()
		if ran := r.ran(); !slices.Equal(ran[len(ran)-2:], []string{"y", "z"}) {
			r.t.Errorf("ran %v, want y and then z", ran)
		}
	})
	bubble("while it runs", t, func(_ *testing.T, r *rig) {
		release := r.host.HoldTasks()
		a := r.task("a", wire.TaskVMPowerOff, "vm-1")
		r.submit(a)
		synctest.Wait()
		if err := r.exec.Cancel([]uuid.UUID{a.ID}); err != nil {
			r.t.Fatal(err)
		}
		r.after(time.Second, "a accepted")
		release()
		r.after(0, "refresh", "a succeeded")
		r.receipt()
		if err := r.exec.Cancel([]uuid.UUID{a.ID}); err != nil {
			r.t.Fatal(err)
		}
		r.after(0, "a succeeded")
	})
	bubble("before it comes", t, func(_ *testing.T, r *rig) {
		a := r.task("a", wire.TaskVMPowerOff, "vm-1")
		if err := r.exec.Cancel([]uuid.UUID{a.ID}); err != nil {
			r.t.Fatal(err)
		}
		r.submit(a)
		r.after(time.Second, "a cancelled")
		r.wantRan()
	})
}

func TestRestart(t *testing.T) {
	// begin stops the agent while the host works on a task, and lets the host
	// go on.
	begin := func(r *rig, kind, vm string) {
		release := r.host.HoldTasks()
		r.submit(r.task("a", kind, vm))
		r.after(0, "a accepted")
		r.stop()
		release()
	}
	bubble("done meanwhile", t, func(_ *testing.T, r *rig) {
		begin(r, wire.TaskVMSuspend, "vm-1")
		r.host.SetPower("vm-1", wire.PowerSuspended)
		r.restart()
		r.after(0, "refresh", "a succeeded")
		r.wantRan("a")
	})
	bubble("done a little later", t, func(_ *testing.T, r *rig) {
		begin(r, wire.TaskVMPowerOff, "vm-1")
		r.restart()
		r.after(5 * time.Second)
		r.host.SetPower("vm-1", wire.PowerOff)
		r.after(11*time.Second, "refresh", "a succeeded")
		r.wantRan("a")
	})
	bubble("not done", t, func(_ *testing.T, r *rig) {
		begin(r, wire.TaskVMPowerOn, "vm-2")
		r.restart()
		r.after(time.Minute, "a failed interrupted")
		r.wantRan("a")
	})
	bubble("cannot be told", t, func(_ *testing.T, r *rig) {
		begin(r, wire.TaskVMReset, "vm-1")
		r.restart()
		r.after(0, "a failed interrupted")
		r.wantRan("a")
	})
	bubble("machine is gone", t, func(_ *testing.T, r *rig) {
		begin(r, wire.TaskVMPowerOff, "vm-1")
		r.host.RemoveVM("vm-1")
		r.restart()
		r.after(0, "a failed interrupted")
	})
	bubble("host does not answer for a while", t, func(_ *testing.T, r *rig) {
		begin(r, wire.TaskVMPowerOff, "vm-1")
		r.host.SetPower("vm-1", wire.PowerOff)
		r.host.SetUnreachable("cable")
		r.restart()
		r.after(5 * time.Minute)
		r.host.SetUnreachable("")
		r.after(time.Minute, "refresh", "a succeeded")
	})
	bubble("host never answers", t, func(_ *testing.T, r *rig) {
		begin(r, wire.TaskVMPowerOff, "vm-1")
		r.host.SetUnreachable("cable")
		r.restart()
		r.after(11*time.Minute, "a failed interrupted")
	})
	bubble("what had not begun runs", t, func(_ *testing.T, r *rig) {
		release := r.host.HoldTasks()
		r.submit(r.task("a", wire.TaskVMReset, "vm-1"), r.task("b", wire.TaskVMPowerOff, "vm-1"), r.task("c", wire.TaskVMPowerOn, "vm-1"))
		r.after(0, "a accepted", "b accepted", "c accepted")
		r.stop()
		release()
		r.restart()
		r.after(0, "a failed interrupted", "refresh", "b succeeded", "refresh", "c succeeded")
		r.wantRan("a", "b", "c")
	})
}
