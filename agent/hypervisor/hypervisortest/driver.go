package hypervisortest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pallas/agent/hypervisor"
	"pallas/mqttgw/wire"
)

// Patience is how long the suite waits for what a driver does on its own time.
const Patience = 20 * time.Second

// Fixture is a host under test. Each hook changes the host behind the driver's
// back and returns when the change is made; a nil hook skips the tests that
// need it, for hosts that cannot be brought to it.
type Fixture struct {
	// Driver is connected to the host, which its owner closes. The licence
	// permits changes, and no device id is stored.
	Driver hypervisor.Driver
	// On is the id of a running machine with running guest tools, Off the id
	// of one that is powered off.
	On, Off string

	SetPower func(id, power string) // wire.PowerOn or PowerOff
	SetTools func(id, state string) // wire.ToolsRunning or ToolsNotRunning
	Rename   func(id, name string)
	AddVM    func(name string) (id string) // powered off
	RemoveVM func(id string)               // of a machine that is off

	SetUnreachable func(bool) // the host does not answer
	SetDenied      func(bool) // the login is refused, also of a session that was open
	SetReadOnly    func(bool) // the licence refuses each change with a fault
	// DropSessions logs every session out on the host.
	DropSessions func()
}

// TestDriver runs the suite. Each test gets its own host from setup, which
// cleans up with t.Cleanup.
func TestDriver(t *testing.T, setup func(t *testing.T) Fixture) {
	for _, tt := range []struct {
		name string
		run  func(*suite)
	}{
		{"ObserveIsCompleteAndSorted", (*suite).observe},
		{"ObserveSeesChanges", (*suite).observeChanges},
		{"ObserveIsOwnCopy", (*suite).observeCopy},
		{"ObserveAfterLostSession", (*suite).lostSession},
		{"WatchFiresAtFirst", (*suite).watchFirst},
		{"WatchFiresOnChange", (*suite).watchChange},
		{"WatchEndsWhenHostIsLost", (*suite).watchLost},
		{"RunPowerOn", (*suite).powerOn},
		{"RunPowerOff", (*suite).powerOff},
		{"RunReset", (*suite).reset},
		{"RunSuspendAndResume", (*suite).suspend},
		{"RunShutdown", (*suite).shutdown},
		{"RunShutdownNeedsTools", (*suite).shutdownTools},
		{"RunInWrongState", (*suite).wrongState},
		{"RunOnUnknownVM", (*suite).unknownVM},
		{"RunUnsupported", (*suite).unsupported},
		{"RunReadOnly", (*suite).readOnly},
		{"Unreachable", (*suite).unreachable},
		{"Denied", (*suite).denied},
		{"CancelledContext", (*suite).cancelled},
		{"Concurrent", (*suite).concurrent},
		{"Identity", (*suite).identity},
		{"Check", (*suite).check},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &suite{T: t, Fixture: setup(t)}
			ctx, cancel := context.WithTimeout(t.Context(), 2*Patience)
			defer cancel()
			s.ctx = ctx
			tt.run(s)
		})
	}
}

type suite struct {
	*testing.T
	Fixture
	ctx context.Context
}

func (s *suite) observe() {
	snap := s.snapshot()
	if snap.Host.Name == "" || snap.Host.Product == "" || snap.Host.Version == "" || snap.Host.CPUCores < 1 || snap.Host.MemoryMiB < 1 {
		s.Errorf("host facts are missing: %+v", snap.Host)
	}
	if !snap.Host.License.Writable {
		s.Errorf("licence %+v, want one that permits changes", snap.Host.License)
	}
	if !slices.IsSortedFunc(snap.VMs, func(a, b wire.VM) int { return strings.Compare(a.ID, b.ID) }) {
		s.Error("machines are not sorted by id")
	}
	if !slices.IsSortedFunc(snap.Host.Datastores, func(a, b wire.Datastore) int { return strings.Compare(a.ID, b.ID) }) {
		s.Error("datastores are not sorted by id")
	}
	if !slices.IsSortedFunc(snap.Host.Networks, func(a, b wire.Network) int { return strings.Compare(a.ID, b.ID) }) {
		s.Error("networks are not sorted by id")
	}
	seen := map[string]bool{}
	for _, vm := range snap.VMs {
		if vm.ID == "" || vm.Name == "" || vm.CPUs < 1 || vm.MemoryMiB < 1 {
			s.Errorf("machine facts are missing: %+v", vm)
		}
		if seen[vm.ID] {
			s.Errorf("machine %s is there twice", vm.ID)
		}
		seen[vm.ID] = true
		if !slices.Contains([]string{wire.PowerOn, wire.PowerOff, wire.PowerSuspended, wire.PowerUnknown}, vm.Power) {
			s.Errorf("machine %s: power %q is no power state", vm.ID, vm.Power)
		}
		if !slices.Contains([]string{wire.ToolsRunning, wire.ToolsNotRunning, wire.ToolsNotInstalled, wire.ToolsUnknown}, vm.Tools) {
			s.Errorf("machine %s: tools %q is no tools state", vm.ID, vm.Tools)
		}
		if !slices.IsSorted(vm.IPs) ||
			!slices.IsSortedFunc(vm.Disks, func(a, b wire.Disk) int { return int(a.Key) - int(b.Key) }) ||
			!slices.IsSortedFunc(vm.NICs, func(a, b wire.NIC) int { return int(a.Key) - int(b.Key) }) {
			s.Errorf("machine %s: addresses, disks or network cards are not sorted", vm.ID)
		}
	}
	s.wantPower(s.On, wire.PowerOn)
	s.wantPower(s.Off, wire.PowerOff)
	if diff := cmp.Diff(snap, s.snapshot()); diff != "" {
		s.Errorf("an unchanged host looks different the second time (-first +second):\n%s", diff)
	}
}

func (s *suite) observeChanges() {
	if s.SetPower != nil {
		s.SetPower(s.Off, wire.PowerOn)
		s.wantPower(s.Off, wire.PowerOn)
		s.SetPower(s.Off, wire.PowerOff)
		s.wantPower(s.Off, wire.PowerOff)
	}
	if s.Rename != nil {
		s.Rename(s.Off, "another-name")
		if vm, _ := s.find(s.Off); vm.Name != "another-name" {
			s.Errorf("name %q after renaming, want another-name", vm.Name)
		}
	}
	if s.SetTools != nil {
		s.SetTools(s.On, wire.ToolsNotRunning)
		if vm, _ := s.find(s.On); vm.Tools != wire.ToolsNotRunning {
			s.Errorf("tools %q after stopping them, want %q", vm.Tools, wire.ToolsNotRunning)
		}
	}
	if s.AddVM == nil || s.RemoveVM == nil {
		return
	}
	before := len(s.snapshot().VMs)
	id := s.AddVM("an-added-one")
	if vm, ok := s.find(id); !ok || vm.Name != "an-added-one" || vm.Power != wire.PowerOff {
		s.Errorf("added machine %s is seen as %+v (%v)", id, vm, ok)
	}
	s.RemoveVM(id)
	if _, ok := s.find(id); ok || len(s.snapshot().VMs) != before {
		s.Errorf("removed machine %s is still there", id)
	}
}

func (s *suite) observeCopy() {
	first := s.snapshot()
	for i := range first.VMs {
		for j := range first.VMs[i].Disks {
			first.VMs[i].Disks[j].Label = "scribbled"
		}
	}
	for i := range first.Host.Datastores {
		first.Host.Datastores[i].Name = "scribbled"
	}
	again := s.snapshot()
	for _, vm := range again.VMs {
		for _, d := range vm.Disks {
			if d.Label == "scribbled" {
				s.Fatal("a caller's change of a snapshot reached the next one")
			}
		}
	}
	for _, d := range again.Host.Datastores {
		if d.Name == "scribbled" {
			s.Fatal("a caller's change of a snapshot reached the next one")
		}
	}
}

func (s *suite) lostSession() {
	s.need(s.DropSessions != nil)
	s.snapshot()
	s.DropSessions()
	s.wantPower(s.On, wire.PowerOn)
	s.DropSessions()
	s.mustRun(wire.TaskVMPowerOff, s.On)
	s.wantPower(s.On, wire.PowerOff)
}

func (s *suite) watchFirst() {
	changed, stop := s.watch()
	s.await(changed)
	if err := stop(); err != nil {
		s.Errorf("a watch whose context is done returned %v, want nil", err)
	}
}

func (s *suite) watchChange() {
	s.need(s.SetPower != nil)
	changed, stop := s.watch()
	s.await(changed)
	s.SetPower(s.Off, wire.PowerOn)
	s.awaitUntil(changed, func() bool { vm, _ := s.find(s.Off); return vm.Power == wire.PowerOn })
	if s.AddVM != nil && s.RemoveVM != nil {
		id := s.AddVM("a-watched-one")
		s.awaitUntil(changed, func() bool { _, ok := s.find(id); return ok })
		s.RemoveVM(id)
		s.awaitUntil(changed, func() bool { _, ok := s.find(id); return !ok })
	}
	if err := stop(); err != nil {
		s.Errorf("a watch whose context is done returned %v, want nil", err)
	}
}

func (s *suite) watchLost() {
	s.need(s.SetUnreachable != nil)
	done := make(chan error, 1)
	changed := make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	go func() { done <- s.Driver.Watch(ctx, func() { offer(changed) }) }()
	s.await(changed)
	s.SetUnreachable(true)
	select {
	case err := <-done:
		s.wantCode(err, wire.CodeUnreachable)
	case <-time.After(Patience):
		s.Fatalf("the watch of a lost host did not end within %v", Patience)
	}
	s.SetUnreachable(false)
	changed2, stop := s.watch()
	s.await(changed2)
	if err := stop(); err != nil {
		s.Errorf("the watch of a host that is back returned %v", err)
	}
}

func (s *suite) powerOn() {
	s.mustRun(wire.TaskVMPowerOn, s.Off)
	s.wantPower(s.Off, wire.PowerOn)
}

func (s *suite) powerOff() {
	s.mustRun(wire.TaskVMPowerOff, s.On)
	s.wantPower(s.On, wire.PowerOff)
}

func (s *suite) reset() {
	s.mustRun(wire.TaskVMReset, s.On)
	s.wantPower(s.On, wire.PowerOn)
}

func (s *suite) suspend() {
	s.mustRun(wire.TaskVMSuspend, s.On)
	s.wantPower(s.On, wire.PowerSuspended)
	s.wantCode(s.run(wire.TaskVMSuspend, s.On), wire.CodeInvalidState)
	s.mustRun(wire.TaskVMPowerOn, s.On)
	s.wantPower(s.On, wire.PowerOn)
}

func (s *suite) shutdown() {
	s.mustRun(wire.TaskVMShutdown, s.On)
	s.wantPower(s.On, wire.PowerOff)
}

func (s *suite) shutdownTools() {
	s.need(s.SetTools != nil)
	s.SetTools(s.On, wire.ToolsNotRunning)
	s.wantCode(s.run(wire.TaskVMShutdown, s.On), wire.CodeTools)
	s.wantPower(s.On, wire.PowerOn)
}

func (s *suite) wrongState() {
	for _, tt := range []struct{ kind, vm string }{
		{wire.TaskVMPowerOn, s.On},
		{wire.TaskVMPowerOff, s.Off},
		{wire.TaskVMReset, s.Off},
		{wire.TaskVMSuspend, s.Off},
		{wire.TaskVMShutdown, s.Off},
	} {
		err := s.run(tt.kind, tt.vm)
		s.wantCode(err, wire.CodeInvalidState)
		var e *hypervisor.Error
		if errors.As(err, &e) && e.Message == "" {
			s.Errorf("%s: a fault without a reason", tt.kind)
		}
	}
	s.wantPower(s.On, wire.PowerOn)
	s.wantPower(s.Off, wire.PowerOff)
}

func (s *suite) unknownVM() {
	for _, kind := range []string{wire.TaskVMPowerOn, wire.TaskVMPowerOff, wire.TaskVMReset, wire.TaskVMSuspend, wire.TaskVMShutdown} {
		s.wantCode(s.run(kind, "no-such-machine"), wire.CodeNotFound)
	}
	s.wantCode(s.run(wire.TaskVMPowerOn, ""), wire.CodeNotFound)
}

func (s *suite) unsupported() {
	s.wantCode(s.run("vm.levitate", s.On), wire.CodeUnsupported)
	s.wantCode(s.run("", s.On), wire.CodeUnsupported)
}

func (s *suite) readOnly() {
	s.need(s.SetReadOnly != nil)
	s.SetReadOnly(true)
	s.wantCode(s.run(wire.TaskVMPowerOn, s.Off), wire.CodeReadOnly)
	s.wantPower(s.Off, wire.PowerOff)
	if l := s.snapshot().Host.License; l.Writable || l.Reason == "" {
		s.Errorf("licence %+v after a refused change, want one that is not writable and says why", l)
	}
}

func (s *suite) unreachable() {
	s.need(s.SetUnreachable != nil)
	s.snapshot()
	s.SetUnreachable(true)
	_, err := s.Driver.Observe(s.ctx)
	s.wantCode(err, wire.CodeUnreachable)
	s.wantCode(s.run(wire.TaskVMPowerOn, s.Off), wire.CodeUnreachable)
	_, err = s.Driver.LoadID(s.ctx)
	s.wantCode(err, wire.CodeUnreachable)
	s.SetUnreachable(false)
	s.mustRun(wire.TaskVMPowerOn, s.Off)
	s.wantPower(s.Off, wire.PowerOn)
}

func (s *suite) denied() {
	s.need(s.SetDenied != nil)
	s.SetDenied(true)
	_, err := s.Driver.Observe(s.ctx)
	s.wantCode(err, wire.CodeDenied)
	s.wantCode(s.run(wire.TaskVMPowerOn, s.Off), wire.CodeDenied)
	s.wantCode(s.Driver.Watch(s.ctx, func() {}), wire.CodeDenied)
	s.SetDenied(false)
	s.wantPower(s.Off, wire.PowerOff)
}

func (s *suite) cancelled() {
	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	if _, err := s.Driver.Observe(ctx); err == nil {
		s.Error("observing with a context that is done succeeded")
	}
	if err := s.Driver.Run(ctx, wire.Task{Kind: wire.TaskVMPowerOn, VM: s.Off}, nil); err == nil {
		s.Error("running with a context that is done succeeded")
	}
	if err := s.Driver.Watch(ctx, func() {}); err != nil {
		s.Errorf("watching with a context that is done returned %v, want nil", err)
	}
}

func (s *suite) concurrent() {
	_, stop := s.watch()
	errs := make(chan error)
	calls := []func() error{
		func() error { return s.run(wire.TaskVMPowerOn, s.Off) },
		func() error { return s.run(wire.TaskVMPowerOff, s.On) },
		func() error { _, err := s.Driver.Observe(s.ctx); return err },
		func() error { _, err := s.Driver.Observe(s.ctx); return err },
		func() error { _, err := s.Driver.LoadID(s.ctx); return err },
	}
	for _, call := range calls {
		go func() { errs <- call() }()
	}
	for range calls {
		if err := <-errs; err != nil {
			s.Errorf("one of several calls at once: %v", err)
		}
	}
	if err := stop(); err != nil {
		s.Errorf("watch: %v", err)
	}
	s.wantPower(s.Off, wire.PowerOn)
	s.wantPower(s.On, wire.PowerOff)
}

func (s *suite) identity() {
	load := func(want string) {
		s.Helper()
		got, err := s.Driver.LoadID(s.ctx)
		if err != nil || got != want {
			s.Errorf("stored id %q, %v, want %q", got, err, want)
		}
	}
	load("")
	for _, id := range []string{"0d9c8f3e-7d0b-4e0a-9f52-3a4f7e2f9b11", "", "5f0f7f7c-2b0e-4a57-8a57-0f0d3b7c6f22"} {
		if err := s.Driver.SaveID(s.ctx, id); err != nil {
			s.Fatalf("save id: %v", err)
		}
		load(id)
	}
}

func (s *suite) check() {
	lines := func(when string) []hypervisor.CheckResult {
		s.Helper()
		out := s.Driver.Check(s.ctx)
		if len(out) == 0 {
			s.Fatalf("%s: no lines", when)
		}
		for _, l := range out {
			if l.Name == "" || l.Detail == "" {
				s.Errorf("%s: line %+v does not say what was found", when, l)
			}
		}
		return out
	}
	healthy := lines("healthy")
	for _, l := range healthy {
		if !l.OK {
			s.Errorf("healthy: %+v", l)
		}
	}
	if s.SetUnreachable != nil {
		s.SetUnreachable(true)
		got := lines("unreachable")
		if len(got) >= len(healthy) || got[len(got)-1].OK {
			s.Errorf("unreachable: %+v, want fewer lines than %d, the last of them bad", got, len(healthy))
		}
		s.SetUnreachable(false)
	}
	if s.SetDenied != nil {
		s.SetDenied(true)
		got := lines("denied")
		if len(got) >= len(healthy) || !got[0].OK || got[len(got)-1].OK {
			s.Errorf("denied: %+v, want a reachable host and then the refusal", got)
		}
	}
}

func (s *suite) need(ok bool) {
	s.Helper()
	if !ok {
		s.Skip("this host cannot be brought to it")
	}
}

func (s *suite) snapshot() hypervisor.Snapshot {
	s.Helper()
	snap, err := s.Driver.Observe(s.ctx)
	if err != nil {
		s.Fatalf("observe: %v", err)
	}
	return snap
}

func (s *suite) find(id string) (wire.VM, bool) {
	s.Helper()
	for _, vm := range s.snapshot().VMs {
		if vm.ID == id {
			return vm, true
		}
	}
	return wire.VM{}, false
}

func (s *suite) wantPower(id, want string) {
	s.Helper()
	if vm, ok := s.find(id); !ok || vm.Power != want {
		s.Errorf("machine %s: there %v, power %q, want %q", id, ok, vm.Power, want)
	}
}

func (s *suite) run(kind, vm string) error {
	return s.Driver.Run(s.ctx, wire.Task{Kind: kind, VM: vm}, func(percent int) {
		if percent < 0 || percent > 100 {
			s.Errorf("%s: progress of %d percent", kind, percent)
		}
	})
}

func (s *suite) mustRun(kind, vm string) {
	s.Helper()
	if err := s.run(kind, vm); err != nil {
		s.Fatalf("%s of %s: %v", kind, vm, err)
	}
}

// wantCode demands an Error with this code.
func (s *suite) wantCode(err error, want string) {
	s.Helper()
	var e *hypervisor.Error
	switch {
	case err == nil:
		s.Errorf("no error, want one with code %s", want)
	case !errors.As(err, &e):
		s.Errorf("error %q is no hypervisor.Error", err)
	case e.Code != want:
		s.Errorf("error %q has code %s, want %s", err, e.Code, want)
	}
}

// watch starts a watch; stop ends it and returns what it returned.
func (s *suite) watch() (changed chan struct{}, stop func() error) {
	ctx, cancel := context.WithCancel(s.ctx)
	changed = make(chan struct{}, 1)
	done := make(chan error, 1)
	go func() { done <- s.Driver.Watch(ctx, func() { offer(changed) }) }()
	stop = func() error {
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(Patience):
			s.Fatalf("the watch did not end within %v of its context", Patience)
			return nil
		}
	}
	return changed, stop
}

func (s *suite) await(changed <-chan struct{}) {
	s.Helper()
	s.awaitUntil(changed, func() bool { return true })
}

// awaitUntil waits for calls of changed until ok.
func (s *suite) awaitUntil(changed <-chan struct{}, ok func() bool) {
	s.Helper()
	late := time.After(Patience)
	for {
		select {
		case <-changed:
			if ok() {
				return
			}
		case <-late:
			s.Fatalf("the watch told of no such change within %v", Patience)
		}
	}
}

func offer(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
