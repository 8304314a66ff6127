package inventory_test

import (
	"bytes"
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
	"pgregory.net/rapid"

	"pallas/agent/hypervisor"
	"pallas/agent/hypervisor/fake"
	"pallas/agent/inventory"
	"pallas/agent/store"
	"pallas/mqttgw/wire"
)

var day = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// manager is the naive model of what a manager makes of reports.
type manager struct {
	host      wire.Host
	condition string
	vms       map[string]wire.VM
	next      uint64
	epoch     uint64
	seen      []string
}

// take applies what the outbox has that the manager has not.
func (m *manager) take(t failer, s *store.Store) {
	t.Helper()
	if epoch, first, _ := s.Numbers(); epoch != m.epoch {
		m.epoch, m.next = epoch, first
	}
	for {
		reports, err := s.Reports(m.next, wire.MaxReports)
		if err != nil {
			t.Fatalf("reports: %v", err)
		}
		if len(reports) == 0 {
			return
		}
		for _, r := range reports {
			if r.Seq != m.next {
				t.Fatalf("report %d after %d", r.Seq, m.next-1)
			}
			m.next++
			m.apply(t, r)
		}
	}
}

func (m *manager) apply(t failer, r wire.Report) {
	t.Helper()
	if m.vms == nil {
		m.vms = map[string]wire.VM{}
	}
	switch {
	case r.Host != nil:
		m.host = *r.Host
		m.seen = append(m.seen, "host")
	case r.Condition != nil:
		m.condition = r.Condition.Condition
		m.seen = append(m.seen, "condition "+r.Condition.Condition)
	case r.VM != nil:
		m.vms[r.VM.ID] = *r.VM
		m.seen = append(m.seen, "vm "+r.VM.ID)
	case r.VMPatch != nil:
		vm, ok := m.vms[r.VMPatch.ID]
		if !ok {
			t.Fatalf("patch of a machine that was never reported: %s", r.VMPatch.ID)
		}
		m.vms[vm.ID] = r.VMPatch.Apply(vm)
		m.seen = append(m.seen, "patch "+vm.ID)
	case r.VMGone != nil:
		if _, ok := m.vms[r.VMGone.ID]; !ok {
			t.Fatalf("a machine is gone that was never there: %s", r.VMGone.ID)
		}
		delete(m.vms, r.VMGone.ID)
		m.seen = append(m.seen, "gone "+r.VMGone.ID)
	case r.Inventory != nil:
		for id := range m.vms {
			if !slices.Contains(r.Inventory.VMs, id) {
				delete(m.vms, id)
			}
		}
		if !bytes.Equal(r.Inventory.Hash, m.hash()) {
			t.Fatalf("the complete inventory's hash is not that of what was reported")
		}
		m.seen = append(m.seen, "inventory")
	default:
		t.Fatalf("report %+v of no kind", r)
	}
}

func (m *manager) snapshot() hypervisor.Snapshot {
	s := hypervisor.Snapshot{Host: m.host}
	for _, vm := range m.vms {
		s.VMs = append(s.VMs, vm)
	}
	slices.SortFunc(s.VMs, func(a, b wire.VM) int { return strings.Compare(a.ID, b.ID) })
	return s
}

func (m *manager) hash() []byte { return wire.HashInventory(m.host, m.snapshot().VMs) }

type failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

type rig struct {
	t     failer
	path  string
	host  *fake.Host
	store *store.Store
	rep   *inventory.Reporter
	m     manager
	limit int
}

func newRig(t *testing.T, host *fake.Host) *rig {
	r := &rig{t: t, path: filepath.Join(t.TempDir(), "agent.db"), host: host}
	r.start()
	t.Cleanup(func() { _ = r.store.Close() })
	return r
}

func (r *rig) start() {
	r.t.Helper()
	s, err := store.Open(r.path, store.Options{NoSync: true})
	if err != nil {
		r.t.Fatalf("open: %v", err)
	}
	rep, err := inventory.New(inventory.Config{
		Driver: r.host, Store: s, Now: func() time.Time { return day }, Log: slog.New(slog.DiscardHandler), Limit: r.limit,
	})
	if err != nil {
		r.t.Fatalf("new: %v", err)
	}
	r.store, r.rep = s, rep
}

func (r *rig) restart() {
	r.t.Helper()
	if err := r.store.Close(); err != nil {
		r.t.Fatalf("close: %v", err)
	}
	r.start()
}

// refresh looks at the host and returns what was reported.
func (r *rig) refresh() []string {
	r.t.Helper()
	_, err := r.rep.Refresh(context.Background())
	var fault *hypervisor.Error
	if err != nil && !errors.As(err, &fault) {
		r.t.Fatalf("refresh: %v", err)
	}
	r.m.seen = nil
	r.m.take(r.t, r.store)
	return r.m.seen
}

func (r *rig) want(got []string, want ...string) {
	r.t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		r.t.Fatalf("reported (-want +got):\n%s", diff)
	}
}

func TestEverythingOnceThenDifferences(t *testing.T) {
	h := fake.Sample("one", 2)
	r := newRig(t, h)
	r.want(r.refresh(), "condition ok", "host", "vm vm-1", "vm vm-2", "inventory")
	r.want(r.refresh())
	h.SetPower("vm-2", wire.PowerOn)
	r.want(r.refresh(), "patch vm-2")
	h.AlterHost(func(host *wire.Host) { host.Datastores[0].FreeMiB /= 2 })
	r.want(r.refresh(), "host")
	id := h.PutVM(wire.VM{Name: "third"})
	h.RemoveVM("vm-1")
	r.want(r.refresh(), "gone vm-1", "vm "+id)
	r.restart()
	r.want(r.refresh())
}

func TestResync(t *testing.T) {
	r := newRig(t, fake.Sample("one", 1))
	r.refresh()
	r.rep.Resync(4)
	r.want(r.refresh()) // the complete inventory is yet to be sent
	epoch, _, next := r.store.Numbers()
	r.rep.Resync(next)
	r.want(r.refresh(), "condition ok", "host", "vm vm-1", "inventory")
	r.want(r.refresh())
	r.store.Receipt(epoch, r.m.next-1)
	r.host.SetUnreachable("gone")
	r.rep.Resync(r.m.next)
	// What is known goes, when the host cannot be looked at.
	r.want(r.refresh(), "condition unreachable", "host", "vm vm-1", "inventory")
	if err := r.store.NewEpoch(); err != nil {
		t.Fatal(err)
	}
	r.host.SetUnreachable("")
	r.m.vms = map[string]wire.VM{"left over": {ID: "left over"}}
	r.want(r.refresh(), "condition unreachable", "condition ok", "host", "vm vm-1", "inventory")
	if _, ok := r.m.vms["left over"]; ok {
		t.Error("a machine that is not on the host outlived a complete inventory")
	}
}

// held is a host that does not answer until it is let go.
type held struct {
	*fake.Host
	asked, answer chan struct{}
}

func (h held) Observe(ctx context.Context) (hypervisor.Snapshot, error) {
	snap, err := h.Host.Observe(ctx)
	h.asked <- struct{}{}
	<-h.answer
	return snap, err
}

// TestResyncDuringALook is about a manager that asks while the host is being
// looked at. The one who asks is the line to the manager, which must not stand
// still for as long as a host takes.
func TestResyncDuringALook(t *testing.T) {
	s, err := store.Open(filepath.Join(t.TempDir(), "agent.db"), store.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	h := held{fake.Sample("one", 1), make(chan struct{}), make(chan struct{})}
	rep, err := inventory.New(inventory.Config{Driver: h, Store: s, Now: func() time.Time { return day }, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	look := func(during func()) (completed bool) {
		t.Helper()
		_, _, before := s.Numbers()
		done := make(chan error, 1)
		go func() { _, err := rep.Refresh(t.Context()); done <- err }()
		<-h.asked
		during()
		h.answer <- struct{}{}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		reports, err := s.Reports(before, wire.MaxReports)
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(reports, func(r wire.Report) bool { return r.Inventory != nil })
	}
	resync := func() {
		asked := make(chan struct{})
		go func() { _, _, next := s.Numbers(); rep.Resync(next); close(asked) }()
		select {
		case <-asked:
		case <-time.After(10 * time.Second):
			t.Error("the manager's line waits for the host")
		}
	}
	if !look(func() {}) {
		t.Error("the first look reports nothing complete")
	}
	if during, after := look(resync), look(func() {}); !during && !after {
		t.Error("the manager asked for a complete inventory and does not get one")
	}
	if look(func() {}) {
		t.Error("a complete inventory is reported again")
	}
}

func TestConditions(t *testing.T) {
	h := fake.Sample("one", 1)
	h.SetDenied("wrong password")
	r := newRig(t, h)
	r.want(r.refresh(), "condition denied")
	r.want(r.refresh())
	h.SetDenied("")
	h.SetUnreachable("no route to host")
	r.want(r.refresh(), "condition unreachable")
	h.SetUnreachable("")
	r.want(r.refresh(), "condition ok", "host", "vm vm-1", "inventory")
	if got := r.rep.ReadOnly(); got != "" {
		t.Errorf("read-only %q of a host that permits changes", got)
	}
	h.SetReadOnly("free licence", true)
	r.want(r.refresh(), "condition readOnly", "host")
	if got := r.rep.ReadOnly(); got != "free licence" {
		t.Errorf("read-only %q, want the licence's reason", got)
	}
	h.SetReadOnly("", true)
	r.want(r.refresh(), "condition ok", "host")
}

func TestFullOutboxFoldsChanges(t *testing.T) {
	h := fake.Sample("one", 1)
	r := newRig(t, h)
	r.limit = 6
	r.restart()
	r.refresh()
	for i := range 50 {
		h.AlterVM("vm-1", func(vm *wire.VM) { vm.CPUs = 10 + i })
		r.refresh()
	}
	if n := r.store.Len(); n > 6 {
		t.Errorf("%d reports in an outbox limited to 6", n)
	}
	epoch, _, next := r.store.Numbers()
	r.store.Receipt(epoch, next-1)
	r.want(r.refresh(), "patch vm-1")
	if got := r.m.vms["vm-1"].CPUs; got != 59 {
		t.Errorf("the manager knows of %d CPUs, want the last value, 59", got)
	}
}

func TestOddHostFitsTheProtocol(t *testing.T) {
	long := strings.Repeat("é", wire.MaxText)
	h := fake.New(wire.Host{Name: long, Product: "bad \xff utf-8", License: wire.License{Writable: true}}, wire.VM{ID: "vm-1", Name: long})
	h.AlterHost(func(host *wire.Host) {
		for i := range wire.MaxItems + 9 {
			host.Networks = append(host.Networks, wire.Network{ID: fmt.Sprintf("%04d", i), Name: "n"})
		}
	})
	for i := range wire.MaxVMs + 5 {
		h.PutVM(wire.VM{ID: fmt.Sprintf("x%05d", i), Name: "n"})
	}
	r := newRig(t, h)
	if got := r.refresh(); len(got) != 3+wire.MaxVMs {
		t.Errorf("%d reports, want the condition, the host, %d machines and the end", len(got), wire.MaxVMs)
	}
	if len(r.m.host.Networks) != wire.MaxItems || !strings.HasPrefix(r.m.host.Name, "ééé") {
		t.Errorf("host %.20s with %d networks", r.m.host.Name, len(r.m.host.Networks))
	}
	r.want(r.refresh())
}

// TestStreamRebuildsTheHost makes random changes and demands that whoever
// applies the reports has what the host has.
func TestStreamRebuildsTheHost(t *testing.T) {
	dir := t.TempDir()
	round := 0
	rapid.Check(t, func(rt *rapid.T) {
		round++
		h := fake.Sample("one", rapid.IntRange(0, 3).Draw(rt, "machines"))
		r := &rig{t: rt, path: filepath.Join(dir, fmt.Sprint(round)), host: h}
		r.start()
		defer func() { r.store.Close() }()
		ids := []string{"vm-1", "vm-2", "vm-3", "vm-4", "vm-5"}
		text := rapid.SampledFrom([]string{"", "a", "b", "ü"})
		vm := func() string { return rapid.SampledFrom(ids).Draw(rt, "vm") }
		rt.Repeat(map[string]func(*rapid.T){
			"put": func(rt *rapid.T) {
				h.PutVM(wire.VM{
					ID: vm(), Name: text.Draw(rt, "name"), CPUs: rapid.IntRange(0, 4).Draw(rt, "cpus"),
					IPs:   rapid.SliceOfN(text, 0, 2).Draw(rt, "ips"),
					Disks: []wire.Disk{{Key: 1, Label: text.Draw(rt, "disk")}},
				})
			},
			"remove": func(rt *rapid.T) { h.RemoveVM(vm()) },
			"power": func(rt *rapid.T) {
				h.SetPower(vm(), rapid.SampledFrom([]string{wire.PowerOn, wire.PowerOff, wire.PowerSuspended}).Draw(rt, "power"))
			},
			"alter": func(rt *rapid.T) {
				h.AlterVM(vm(), func(vm *wire.VM) {
					vm.MemoryMiB = rapid.Int64Range(0, 3).Draw(rt, "memory")
					vm.IPs, vm.NICs = nil, []wire.NIC{}
					vm.BootTime = rapid.Int64Range(0, 2).Draw(rt, "boot")
				})
			},
			"host": func(rt *rapid.T) {
				h.AlterHost(func(host *wire.Host) {
					host.Version = text.Draw(rt, "version")
					host.Networks = host.Networks[:0]
				})
			},
			"licence":     func(rt *rapid.T) { h.SetReadOnly(text.Draw(rt, "reason"), true) },
			"unreachable": func(rt *rapid.T) { h.SetUnreachable(text.Draw(rt, "message")) },
			"look":        func(*rapid.T) { r.refresh() },
			"restart":     func(*rapid.T) { r.restart() },
			"resync":      func(*rapid.T) { r.rep.Resync(r.m.next) },
			"receipt": func(*rapid.T) {
				r.m.take(rt, r.store)
				r.store.Receipt(r.m.epoch, r.m.next-1)
			},
			"new epoch": func(rt *rapid.T) {
				r.m.take(rt, r.store)
				if err := r.store.NewEpoch(); err != nil {
					rt.Fatal(err)
				}
			},
			"": func(rt *rapid.T) {
				r.refresh()
				snap, err := h.Observe(context.Background())
				if err != nil {
					if r.m.condition != wire.ConditionUnreachable {
						rt.Fatalf("condition %q of an unreachable host", r.m.condition)
					}
					return
				}
				if diff := cmp.Diff(snap, r.m.snapshot(), cmpopts.EquateEmpty()); diff != "" {
					rt.Fatalf("host and what was reported (-host +reported):\n%s", diff)
				}
				sum, err := r.store.Summary()
				if err != nil || !bytes.Equal(sum.Inventory, r.m.hash()) {
					rt.Fatalf("hello's hash is not that of what was reported (%v)", err)
				}
				want := wire.ConditionOK
				if !snap.Host.License.Writable {
					want = wire.ConditionReadOnly
				}
				if r.m.condition != want {
					rt.Fatalf("condition %q, want %q", r.m.condition, want)
				}
			},
		})
	})
}

// TestRun lets the reporter run by its own clock.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := fake.Sample("one", 1)
		r := newRig(t, h)
		looks := 0
		rep, err := inventory.New(inventory.Config{
			Driver: h, Store: r.store, Now: time.Now, Log: slog.New(slog.DiscardHandler),
			Observed: func(context.Context) { looks++ },
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- rep.Run(ctx) }()
		after := func(d time.Duration, want ...string) {
			t.Helper()
			<-time.After(d)
			synctest.Wait()
			r.m.seen = nil
			r.m.take(t, r.store)
			r.want(r.m.seen, want...)
		}
		after(0, "condition ok", "host", "vm vm-1", "inventory")
		after(time.Second)

		looks = 0
		for i := range 10 { // a burst
			h.AlterVM("vm-1", func(vm *wire.VM) { vm.CPUs = 20 + i })
		}
		after(199 * time.Millisecond)
		after(2*time.Millisecond, "patch vm-1")
		after(time.Minute)
		if looks != 1 {
			t.Errorf("%d looks at the host for one burst, want 1", looks)
		}

		h.SetSilent(true)
		h.AlterVM("vm-1", func(vm *wire.VM) { vm.CPUs = 40 })
		after(8 * time.Minute)
		after(3*time.Minute+time.Second, "patch vm-1")
		h.SetSilent(false)

		rep.SetReconcile(time.Minute)
		h.SetUnreachable("cable")
		after(2*time.Second, "condition unreachable")
		after(time.Hour)
		h.SetUnreachable("")
		after(time.Minute+time.Second, "condition ok")
		h.SetPower("vm-1", wire.PowerOff)
		after(time.Second, "patch vm-1")

		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
}
