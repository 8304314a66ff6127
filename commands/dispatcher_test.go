package commands

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"pallas/events"
	"pallas/events/eventstest"
	"pallas/events/labels"
)

// clock is a clock that moves when told.
type clock struct{ ns atomic.Int64 }

func newClock() *clock {
	c := &clock{}
	c.ns.Store(t0.UnixNano())
	return c
}

func (c *clock) now() time.Time          { return time.Unix(0, c.ns.Load()).UTC() }
func (c *clock) advance(d time.Duration) { c.ns.Add(int64(d)) }

func dispatcher(t testing.TB, store events.Store, set ...func(*Config)) (*Dispatcher, *clock) {
	t.Helper()
	k := newClock()
	c := Config{Store: store, Now: k.now}
	for _, f := range set {
		f(&c)
	}
	d, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return d, k
}

var operator = Meta{Actor: events.UserActor("ann"), Scope: new(labels.Everything()), Source: "192.0.2.1"}

// does gives a command that must be carried out.
func does(t testing.TB, d *Dispatcher, c Command) Result {
	t.Helper()
	r, err := d.Do(t.Context(), c, operator)
	if err != nil {
		t.Fatalf("%T: %v", c, err)
	}
	return r
}

// managed makes the device one that may be managed, with a virtual machine
// that is off.
func managed(t testing.TB, d *Dispatcher, id events.DeviceID) {
	t.Helper()
	c := registerWith(func(c *RegisterDevice) { c.Device, c.AutoApprove = id, true })
	does(t, d, c)
	r := report(1, host(true, ""), events.VMObserved{VM: vmOf(web, events.PowerOff)})
	r.Device = id
	does(t, d, r)
}

func logOf(t testing.TB, s events.Store) (out []events.Record) {
	t.Helper()
	for r, err := range s.Read(context.Background(), events.Filter{}) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, r)
	}
	return out
}

func TestDoWritesADecision(t *testing.T) {
	store := eventstest.NewMemory()
	d, _ := dispatcher(t, store)
	m := Meta{CommandID: "k1", Actor: events.UserActor("ann"), Scope: new(labels.Everything()), Source: "192.0.2.1", Traceparent: "00-aa-bb-01", Time: t0.Add(time.Nanosecond)}
	r, err := d.Do(t.Context(), registerWith(nil), m)
	if err != nil {
		t.Fatal(err)
	}
	if r.Position != 1 || !r.Changed {
		t.Errorf("result %+v, want position 1, changed", r)
	}
	got := logOf(t, store)
	if len(got) != 1 {
		t.Fatalf("%d decisions, want 1", len(got))
	}
	if id, err := uuid.Parse(string(got[0].ID)); err != nil || id.Version() != 5 {
		t.Errorf("decision id %s is not derived from the command id", got[0].ID)
	}
	want := events.Record{Position: 1, Decision: events.Decision{
		ID: got[0].ID, Subject: events.DeviceSubject(dev), Time: t0, Actor: "user:ann", Source: "192.0.2.1", Cause: "k1", Traceparent: "00-aa-bb-01",
		Entries: []events.Entry{{Event: registered}, {Event: certificate("0a", key1)}},
	}}
	if diff := cmp.Diff(want, got[0]); diff != "" {
		t.Error(diff)
	}
}

func TestDoRefusesBadMeta(t *testing.T) {
	d, _ := dispatcher(t, eventstest.NewMemory())
	for name, m := range map[string]Meta{
		"actor":           {},
		"Idempotency-Key": {Actor: "user:a", CommandID: strings.Repeat("k", 256)},
		"source":          {Actor: "user:a", Source: "\x00"},
		"cause":           {Actor: "user:a", Cause: "\xff"},
		"traceparent":     {Actor: "user:a", Traceparent: strings.Repeat("0", 2000)},
		"time":            {Actor: "user:a", Time: t0.AddDate(9000, 0, 0)},
	} {
		var e *Error
		if _, err := d.Do(t.Context(), registerWith(nil), m); !errors.As(err, &e) || e.Kind != KindInvalid || e.Field != name {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("New without a store did not fail")
	}
	if _, err := New(Config{Store: eventstest.NewMemory(), CacheBytes: -1}); err == nil {
		t.Error("New with a negative cache did not fail")
	}
	r := prometheus.NewRegistry()
	if _, err := New(Config{Store: eventstest.NewMemory(), Registerer: r}); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Config{Store: eventstest.NewMemory(), Registerer: r}); err == nil {
		t.Error("New with metrics that are taken did not fail")
	}
}

func TestRepeatedCommandGetsTheFirstAnswer(t *testing.T) {
	store := eventstest.NewMemory()
	for _, fresh := range []bool{false, true} { // also by a manager that has just started
		t.Run(fmt.Sprintf("fresh %t", fresh), func(t *testing.T) {
			id := events.DeviceID(uuid.NewString())
			d, _ := dispatcher(t, store)
			does(t, d, registerWith(func(c *RegisterDevice) { c.Device = id }))
			s, err := d.Device(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			m := operator
			m.CommandID = "k"
			approve := ApproveDevice{Device: id, IfRevision: s.Revision}
			first, err := d.Do(t.Context(), approve, m)
			if err != nil {
				t.Fatal(err)
			}
			does(t, d, UpdateDevice{Device: id, Name: new("other")})
			if fresh {
				d, _ = dispatcher(t, store)
				if _, err := d.Device(t.Context(), id); err != nil {
					t.Fatal(err)
				}
			}
			// The revision is stale by now; the answer is that of the first call.
			again, err := d.Do(t.Context(), approve, m)
			if err != nil {
				t.Fatal(err)
			}
			if again.Position != first.Position || again.Changed {
				t.Errorf("first %+v, again %+v", first, again)
			}
			// The same id for something else is not the same command.
			other, err := d.Do(t.Context(), UpdateDevice{Device: id, Name: new("third")}, m)
			if err != nil || !other.Changed {
				t.Errorf("another command with the id: %+v, %v", other, err)
			}
			// Nor is the same id from somebody else.
			m.Actor = "user:bob"
			if _, err := d.Do(t.Context(), approve, m); KindOf(err) != KindStale {
				t.Errorf("another actor with the id: %v", err)
			}
		})
	}
}

// The log recognises a repeat that the aggregate has forgotten.
func TestRepeatedCommandAfterMany(t *testing.T) {
	store := eventstest.NewMemory()
	d, _ := dispatcher(t, store)
	does(t, d, registerWith(nil))
	give := func(n int) Result {
		m := operator
		m.CommandID = fmt.Sprint("k", n)
		r, err := d.Do(t.Context(), UpdateDevice{Device: dev, Name: new(fmt.Sprint("n", n))}, m)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	first := give(0)
	for n := range maxRecent + 4 {
		give(n + 1)
	}
	before := len(logOf(t, store))
	if again := give(0); again.Position != first.Position || again.Changed {
		t.Errorf("first %+v, again %+v", first, again)
	}
	if after := len(logOf(t, store)); after != before {
		t.Errorf("%d decisions more", after-before)
	}
	if s, err := d.Device(t.Context(), dev); err != nil || s.Name != fmt.Sprint("n", maxRecent+4) || s.Revision != uint64(before) {
		t.Errorf("state %+v, %v", s, err)
	}
}

func TestCacheIsNoAuthority(t *testing.T) {
	store := eventstest.NewMemory()
	a, _ := dispatcher(t, store)
	b, _ := dispatcher(t, store)
	does(t, a, registerWith(nil))
	if _, err := a.Do(t.Context(), report(1, host(true, "")), operator); KindOf(err) != KindDenied {
		t.Fatalf("report while pending: %v", err)
	}
	approvedAt := does(t, b, ApproveDevice{Device: dev})

	// a still has it as pending.
	if r := does(t, a, ApproveDevice{Device: dev}); r.Changed || r.Position != approvedAt.Position {
		t.Errorf("approving again: %+v, want unchanged at %d", r, approvedAt.Position)
	}
	does(t, b, UpdateDevice{Device: dev, Name: new("new")})
	if s, err := a.Device(t.Context(), dev); err != nil || s.Name != "new" {
		t.Errorf("read: %+v, %v", s, err)
	}
	does(t, b, UpdateDevice{Device: dev, Name: new("newer")})
	if r := does(t, a, UpdateDevice{Device: dev, ClearLabels: true}); !r.Changed { // conflicts, and tries again
		t.Errorf("label: %+v", r)
	}
	does(t, b, UpdateDevice{Device: dev, Name: new("newest")})
	if _, err := a.Do(t.Context(), UpdateDevice{Device: dev, Name: new("x"), IfRevision: approvedAt.Position}, operator); KindOf(err) != KindStale {
		t.Errorf("rename at an old revision: %v", err)
	}

	does(t, a, report(1, host(true, ""), events.VMObserved{VM: vmOf(web, events.PowerOff)}))
	does(t, b, RetireDevice{Device: dev})
	request := RequestTask{Device: dev, Task: task1, Kind: events.TaskVMPowerOn, VM: web, Deadline: t0.Add(time.Hour)}
	var e *Error
	slow := operator
	slow.Time = t0.Add(-time.Second) // the request was long under way
	if _, err := a.Do(t.Context(), request, slow); !errors.As(err, &e) || e.Code != CodeRetired {
		t.Errorf("task for a device that another manager retired: %v", err)
	}
}

// A guard judges what the command is decided on: neither an old cache nor
// somebody who comes in between gets past it.
func TestGuard(t *testing.T) {
	store := eventstest.NewMemory()
	a, _ := dispatcher(t, store)
	b, _ := dispatcher(t, store)
	does(t, a, registerWith(nil))
	site := func(want string, asked *int) func(States) error {
		return func(s States) error {
			if *asked++; s.Device.Labels["site"] != want {
				return conflict("moved", "is in %s", s.Device.Labels["site"])
			}
			return nil
		}
	}
	asked := 0
	if _, err := a.DoIf(t.Context(), ApproveDevice{Device: dev}, operator, site("muc", &asked)); KindOf(err) != KindConflict {
		t.Fatalf("a device that the guard refuses: %v", err)
	}
	moved := does(t, b, UpdateDevice{Device: dev, Labels: map[string]*string{"site": new("muc")}})
	// a still has it in fra: the append conflicts, and the guard is asked again.
	asked = 0
	if _, err := a.DoIf(t.Context(), ApproveDevice{Device: dev}, operator, site("fra", &asked)); KindOf(err) != KindConflict || asked != 2 {
		t.Fatalf("a device that moved: %v, asked %d times", err, asked)
	}
	if s, err := a.Device(t.Context(), dev); err != nil || s.Trust != TrustPending || s.Revision != moved.Position {
		t.Fatalf("state %+v, %v", s, err)
	}
	// What was done is done: a repeat is not judged anew.
	m := operator
	m.CommandID = "once"
	first, err := a.DoIf(t.Context(), ApproveDevice{Device: dev}, m, site("muc", &asked))
	if err != nil || !first.Changed {
		t.Fatalf("%+v, %v", first, err)
	}
	does(t, b, UpdateDevice{Device: dev, ClearLabels: true})
	if again, err := b.DoIf(t.Context(), ApproveDevice{Device: dev}, m, site("muc", &asked)); err != nil || again.Changed || again.Position != first.Position {
		t.Errorf("the repeat: %+v, %v; want unchanged at %d", again, err, first.Position)
	}
}

// Reports ask the log about their device at intervals only, but never refuse
// one for what another manager has changed.
func TestReportsTrustTheDevice(t *testing.T) {
	store := eventstest.NewMemory()
	a, clockA := dispatcher(t, store)
	b, _ := dispatcher(t, store)
	does(t, a, registerWith(nil)) // pending, as a knows it
	does(t, b, ApproveDevice{Device: dev})
	if r := does(t, a, report(1, host(true, ""))); !r.Changed {
		t.Errorf("report after the approval: %+v", r)
	}
	does(t, b, RetireDevice{Device: dev})
	clockA.advance(trustFor - time.Second)
	if r := does(t, a, report(2, host(false, ""))); !r.Changed {
		t.Errorf("report on trust: %+v", r)
	}
	clockA.advance(time.Second)
	var e *Error
	if _, err := a.Do(t.Context(), report(3, host(true, "")), operator); !errors.As(err, &e) || e.Code != CodeRetired {
		t.Errorf("report of a device that another manager retired: %v", err)
	}
}

func TestReadsAreCopies(t *testing.T) {
	d, _ := dispatcher(t, eventstest.NewMemory())
	managed(t, d, dev)
	vm := vmOf(db, events.PowerOn)
	vm.IPs = []string{"10.0.0.1"}
	h := host(true, "")
	h.Host.Networks = []events.Network{{ID: "n"}}
	does(t, d, report(3, events.VMObserved{VM: vm}, h))
	does(t, d, RequestTask{Device: dev, Task: task1, Kind: events.TaskVMPowerOn, VM: web, Deadline: t0.Add(time.Hour)})
	does(t, d, IssueJoinToken{Token: tok, MaxUses: 1, Expires: t0.Add(time.Hour), Labels: map[string]string{"a": "b"}})
	does(t, d, UseJoinToken{Token: tok, Device: dev2})
	type all struct {
		Device    Device
		Inventory Inventory
		Tasks     Tasks
		Token     JoinToken
	}
	read := func() (a all) {
		var errs [4]error
		a.Device, errs[0] = d.Device(t.Context(), dev)
		a.Inventory, errs[1] = d.Inventory(t.Context(), dev)
		a.Tasks, errs[2] = d.Tasks(t.Context(), dev)
		a.Token, errs[3] = d.JoinToken(t.Context(), tok)
		if err := errors.Join(errs[:]...); err != nil {
			t.Fatal(err)
		}
		return a
	}
	want, err := json.Marshal(read()) // a copy for sure
	if err != nil {
		t.Fatal(err)
	}
	got := read()
	got.Device.Labels["site"], got.Device.Certificates[0].Serial = "x", "x"
	got.Inventory.Host.Networks[0].ID = "x"
	got.Inventory.VMs[db].IPs[0] = "x"
	delete(got.Inventory.VMs, web)
	clear(got.Tasks.Tasks)
	got.Token.Labels["a"], got.Token.Recent[0] = "x", "x"
	if now, err := json.Marshal(read()); err != nil || string(now) != string(want) {
		t.Errorf("changing what was read changed the state: %v\n%s", err, cmp.Diff(string(want), string(now)))
	}
	c := report(5, events.VMObserved{VM: vmOf("vm-3", events.PowerOn)})
	ips := []string{"10.0.0.9"}
	ev := c.Facts[0].Event.(events.VMObserved)
	ev.VM.IPs = ips
	c.Facts[0].Event = ev
	does(t, d, c)
	ips[0] = "x"
	if inv := read().Inventory; inv.VMs["vm-3"].IPs[0] != "10.0.0.9" {
		t.Error("changing a command's lists afterwards changed the state")
	}
}

func TestReadsOfWhatIsNotThere(t *testing.T) {
	d, _ := dispatcher(t, eventstest.NewMemory())
	if _, err := d.Device(t.Context(), dev); KindOf(err) != KindNotFound {
		t.Errorf("device: %v", err)
	}
	if _, err := d.JoinToken(t.Context(), tok); KindOf(err) != KindNotFound {
		t.Errorf("join token: %v", err)
	}
	if s, err := d.Inventory(t.Context(), dev); err != nil || s.Revision != 0 {
		t.Errorf("inventory: %+v, %v", s, err)
	}
	if s, err := d.Tasks(t.Context(), dev); err != nil || s.Revision != 0 {
		t.Errorf("tasks: %+v, %v", s, err)
	}
	if _, err := d.Device(t.Context(), "../x"); KindOf(err) != KindInvalid {
		t.Errorf("malformed id: %v", err)
	}
}

// faulty is a log whose appends go wrong as told.
type faulty struct {
	events.Store
	before func() error // instead of appending
	after  func() error // after appending
}

func (f *faulty) Append(ctx context.Context, expected uint64, d events.Decision) (events.Appended, error) {
	if f.before != nil {
		if err := f.before(); err != nil {
			return events.Appended{}, err
		}
	}
	a, err := f.Store.Append(ctx, expected, d)
	if err == nil && f.after != nil {
		if err := f.after(); err != nil {
			return events.Appended{}, err
		}
	}
	return a, err
}

// times fails n times.
func times(n int, err error) func() error {
	return func() error {
		if n--; n >= 0 {
			return fmt.Errorf("test: %w", err)
		}
		return nil
	}
}

func TestAppendWithoutAnAnswer(t *testing.T) {
	for name, f := range map[string]*faulty{
		"not written":    {before: times(2, events.ErrUnavailable)},
		"written":        {after: times(1, events.ErrUnavailable)},
		"written twice":  {after: times(2, events.ErrUnavailable)},
		"both":           {before: times(1, events.ErrUnavailable), after: times(1, events.ErrUnavailable)},
		"then conflict":  {after: times(1, events.ErrUnavailable), before: nil},
		"conflicts only": {before: times(5, events.ErrConflict)},
	} {
		t.Run(name, func(t *testing.T) {
			f.Store = eventstest.NewMemory()
			d, _ := dispatcher(t, f)
			r := does(t, d, registerWith(nil))
			if !r.Changed || r.Position != 1 {
				t.Errorf("result %+v", r)
			}
			if r := does(t, d, UpdateDevice{Device: dev, Name: new("x")}); !r.Changed || r.Position != 2 {
				t.Errorf("next result %+v", r)
			}
			if got := logOf(t, f.Store); len(got) != 2 {
				t.Errorf("%d decisions in the log, want 2", len(got))
			}
		})
	}
}

func TestAppendGivesUp(t *testing.T) {
	for name, want := range map[string]error{"unavailable": events.ErrUnavailable, "conflict": events.ErrConflict, "full": events.ErrNoSpace} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &faulty{Store: eventstest.NewMemory(), before: times(1<<30, want)}
				d, _ := dispatcher(t, f)
				start := time.Now()
				if _, err := d.Do(t.Context(), registerWith(nil), operator); !errors.Is(err, want) {
					t.Errorf("got %v, want it to wrap %v", err, want)
				}
				if took := time.Since(start); took > 10*time.Second {
					t.Errorf("it took %s to give up", took)
				}
				f.before = nil
				if r := does(t, d, registerWith(nil)); !r.Changed {
					t.Errorf("afterwards: %+v", r)
				}
			})
		})
	}
}

func TestWaitingEndsWithTheContext(t *testing.T) {
	gate, entered := make(chan struct{}), make(chan struct{})
	f := &faulty{Store: eventstest.NewMemory(), before: func() error { close(entered); <-gate; return nil }}
	d, _ := dispatcher(t, f)
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := d.Do(context.Background(), registerWith(nil), operator); err != nil {
			t.Error(err)
		}
	})
	<-entered
	f2 := f.Store // another aggregate is not held up
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.Do(ctx, ApproveDevice{Device: dev}, operator); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want canceled", err)
	}
	if _, err := d.Device(t.Context(), dev2); KindOf(err) != KindNotFound {
		t.Errorf("another aggregate: %v", err)
	}
	close(gate)
	wg.Wait()
	if n := len(logOf(t, f2)); n != 1 {
		t.Errorf("%d decisions, want 1", n)
	}
	if n := len(d.locks.held); n != 0 {
		t.Errorf("%d locks are left", n)
	}
}

type nobody struct{}

func (nobody) Allow(Command, Meta) error { return denied("", "nobody may") }

func TestPolicy(t *testing.T) {
	store := eventstest.NewMemory()
	d, _ := dispatcher(t, store, func(c *Config) { c.Policy = nobody{} })
	if _, err := d.Do(t.Context(), registerWith(nil), operator); KindOf(err) != KindDenied {
		t.Errorf("got %v", err)
	}
	if n := len(logOf(t, store)); n != 0 {
		t.Errorf("%d decisions were written", n)
	}
}

func TestSmallCache(t *testing.T) {
	d, _ := dispatcher(t, eventstest.NewMemory(), func(c *Config) { c.CacheBytes = 1500 })
	ids := []events.DeviceID{dev, dev2}
	for i := range 10 {
		id := ids[i%2]
		if i < 2 {
			managed(t, d, id)
		}
		if r := does(t, d, UpdateDevice{Device: id, Name: new(fmt.Sprint("n", i))}); !r.Changed {
			t.Errorf("rename %d: %+v", i, r)
		}
	}
}

func TestUnknownEventsAdvanceTheRevision(t *testing.T) {
	store := eventstest.NewMemory()
	d, _ := dispatcher(t, store)
	managed(t, d, dev)
	newer := events.Decision{
		ID: events.ID(events.NewID()), Subject: events.DeviceSubject(dev), Time: t0, Actor: "system:newer",
		Entries: []events.Entry{{Event: events.Unknown{Name: "DevicePainted", Version: 3, Data: []byte(`{"colour":"red"}`)}}},
	}
	if _, err := store.Append(t.Context(), 1, newer); err != nil {
		t.Fatal(err)
	}
	s, err := d.Device(t.Context(), dev)
	if err != nil || s.Revision != 3 || s.Name != "shop-1" {
		t.Errorf("state %+v, %v", s, err)
	}
	if r := does(t, d, UpdateDevice{Device: dev, Name: new("x"), IfRevision: 3}); !r.Changed {
		t.Errorf("rename on top of it: %+v", r)
	}
}

func TestMetrics(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	d, _ := dispatcher(t, &faulty{Store: eventstest.NewMemory(), before: times(1, events.ErrConflict)}, func(c *Config) { c.Registerer = registry })
	does(t, d, registerWith(nil))
	does(t, d, ApproveDevice{Device: dev})
	does(t, d, ApproveDevice{Device: dev})
	if _, err := d.Do(t.Context(), ApproveDevice{Device: dev2}, operator); KindOf(err) != KindNotFound {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			got[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	delete(got, "pallas_commands_aggregate_loads_total cache")
	delete(got, "pallas_commands_aggregate_loads_total log")
	want := map[string]float64{
		"pallas_commands_total changed RegisterDevice": 1,
		"pallas_commands_total changed ApproveDevice":  1, "pallas_commands_total unchanged ApproveDevice": 1,
		"pallas_commands_total notFound ApproveDevice": 1,
		"pallas_commands_retries_total conflict":       1,
		"pallas_commands_cached_aggregates":            1,
		"pallas_commands_cache_bytes":                  entrySize + itemSize,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}

// shelf keeps snapshots in memory.
type shelf struct {
	mu    sync.Mutex
	data  map[events.Subject][]byte
	at    map[events.Subject]uint64
	saves int
	fail  error
}

func (s *shelf) Load(_ context.Context, k events.Subject) ([]byte, uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.data[k], s.at[k], s.fail
}

func (s *shelf) Save(_ context.Context, k events.Subject, data []byte, revision uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return s.fail
	}
	s.data[k], s.at[k], s.saves = data, revision, s.saves+1
	return nil
}

// reader counts the records that are loaded.
type reader struct {
	events.Store
	loaded int
}

func (r *reader) Load(ctx context.Context, s events.Subject, after uint64) iter.Seq2[events.Record, error] {
	return func(yield func(events.Record, error) bool) {
		for rec, err := range r.Store.Load(ctx, s, after) {
			r.loaded++
			if !yield(rec, err) {
				return
			}
		}
	}
}

func TestSnapshots(t *testing.T) {
	store := eventstest.NewMemory()
	snaps := &shelf{data: map[events.Subject][]byte{}, at: map[events.Subject]uint64{}}
	use := func(c *Config) { c.Snapshots = snaps }
	d, _ := dispatcher(t, store, use)
	managed(t, d, dev)
	for i := range 600 {
		p := events.PowerOn
		if i%2 == 1 {
			p = events.PowerOff
		}
		does(t, d, report(uint64(3+i), power(web, p)))
	}
	subject := events.InventorySubject(dev)
	want, err := d.Inventory(t.Context(), dev)
	if err != nil {
		t.Fatal(err)
	}
	if snaps.saves != 2 {
		t.Errorf("%d snapshots of 601 decisions, want 2", snaps.saves)
	}
	good, at := snaps.data[subject], snaps.at[subject]
	for name, tc := range map[string]struct {
		data   []byte
		at     uint64
		err    error
		replay int
	}{
		"good":             {good, at, nil, 601 - 512 + 1},
		"none":             {nil, 0, nil, 601},
		"damaged":          {good[:len(good)/2], at, nil, 601},
		"of another shape": {fmt.Appendf(nil, `{"version":%d,"state":[]}`, snapshotVersion), at, nil, 601},
		"of another build": {[]byte(strings.Replace(string(good), fmt.Sprintf(`"version":%d`, snapshotVersion), `"version":2`, 1)), at, nil, 601},
		"ahead of the log": {good, 1 << 40, nil, 601},
		"of another log":   {[]byte(strings.Replace(string(good), `"decision":"`, `"decision":"0`, 1)), at, nil, 601 + 1},
		"out of reach":     {good, at, errors.New("test: no answer"), 601},
	} {
		t.Run(name, func(t *testing.T) {
			snaps.data, snaps.at, snaps.fail = map[events.Subject][]byte{subject: tc.data}, map[events.Subject]uint64{subject: tc.at}, tc.err
			r := &reader{Store: store}
			d, _ := dispatcher(t, r, use)
			got, err := d.Inventory(t.Context(), dev)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("state (-replayed +with snapshot):\n%s", diff)
			}
			if r.loaded != tc.replay {
				t.Errorf("replayed %d decisions, want %d", r.loaded, tc.replay)
			}
		})
	}
}

// Two managers on one log, many callers: nothing is lost and nothing doubled.
func TestConcurrentManagers(t *testing.T) {
	store := eventstest.NewMemory()
	a, _ := dispatcher(t, store)
	b, _ := dispatcher(t, store)
	managers := []*Dispatcher{a, b}
	managed(t, a, dev)
	const uses, devices, rounds = 20, 40, 8
	does(t, a, IssueJoinToken{Token: tok, MaxUses: uses, Expires: t0.Add(time.Hour)})

	var used, refused, changed atomic.Int64
	var wg sync.WaitGroup
	for i := range devices {
		id := events.DeviceID(uuid.NewString())
		for k, m := range managers { // both managers are asked for the same device
			wg.Go(func() {
				r, err := m.Do(t.Context(), UseJoinToken{Token: tok, Device: id}, operator)
				switch {
				case err == nil && r.Changed:
					used.Add(1)
				case KindOf(err) == KindDenied:
					refused.Add(1)
				case err != nil:
					t.Errorf("use: %v", err)
				}
			})
			wg.Go(func() {
				for n := range rounds {
					name := fmt.Sprintf("name-%d-%d-%d", i%4, k, n)
					r, err := m.Do(t.Context(), UpdateDevice{Device: dev, Name: new(name)}, operator)
					if err != nil {
						t.Errorf("rename: %v", err)
					} else if r.Changed {
						changed.Add(1)
					}
				}
			})
		}
	}
	wg.Wait()
	got := map[string]int64{}
	for _, r := range logOf(t, store) {
		for _, en := range r.Entries {
			got[en.Event.Type()]++
		}
	}
	if used.Load() != uses || got["JoinTokenUsed"] != uses {
		t.Errorf("%d uses answered, %d in the log, want %d", used.Load(), got["JoinTokenUsed"], uses)
	}
	if refused.Load() != 2*(devices-uses) {
		t.Errorf("%d refusals, want %d", refused.Load(), 2*(devices-uses))
	}
	if changed.Load() != got["DeviceRenamed"] {
		t.Errorf("%d renames answered, %d in the log", changed.Load(), got["DeviceRenamed"])
	}
	for _, m := range managers {
		s, err := m.Device(t.Context(), dev)
		if err != nil {
			t.Fatal(err)
		}
		var replayed Device
		for r, err := range store.Load(t.Context(), events.DeviceSubject(dev), 0) {
			if err != nil {
				t.Fatal(err)
			}
			replayed = replayed.Evolve(r)
		}
		if !reflect.DeepEqual(s, replayed) {
			t.Errorf("state differs from the log:\n%s", cmp.Diff(replayed, s))
		}
	}
}
