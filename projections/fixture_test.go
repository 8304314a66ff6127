package projections

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pallas/events"
	"pallas/events/eventstest"
	"pallas/events/labels"
)

// patience bounds every wait for something that ought to happen.
const patience = 30 * time.Second

const (
	deviceA = events.DeviceID("0a000000-0000-4000-8000-00000000000a")
	deviceB = events.DeviceID("0b000000-0000-4000-8000-00000000000b")
	deviceC = events.DeviceID("0c000000-0000-4000-8000-00000000000c")
	vm1     = events.VMID("50000000-0000-4000-8000-000000000001")
	vm2     = events.VMID("50000000-0000-4000-8000-000000000002")
	task1   = events.TaskID("70000000-0000-4000-8000-000000000001")
	task2   = events.TaskID("70000000-0000-4000-8000-000000000002")
	token1  = events.TokenID("80000000-0000-7000-8000-000000000001")
	token2  = events.TokenID("80000000-0000-7000-8000-000000000002")
)

// everything is the scope of whoever may see all.
var everything = labels.Everything()

// at is the instant of the test's n-th minute.
func at(n int) time.Time {
	return time.Date(2031, 2, 3, 4, 5, 6, 789000, time.UTC).Add(time.Duration(n) * time.Minute)
}

// eventLog is an event log in memory, with a decision a minute.
type eventLog struct {
	*eventstest.Memory
	t testing.TB
	n int
}

func newLog(t testing.TB) *eventLog { return &eventLog{Memory: eventstest.NewMemory(), t: t} }

// add appends a decision by an actor at the next minute; it returns the
// position.
func (l *eventLog) add(actor events.Actor, s events.Subject, es ...events.Event) uint64 {
	l.t.Helper()
	l.n++
	d := events.Decision{
		ID: events.ID(events.DeriveID("test", string(s), at(l.n).String())), Subject: s, Time: at(l.n),
		Actor: actor, Source: "192.0.2.7", Cause: "cause-" + s.Kind(),
	}
	for _, e := range es {
		d.Entries = append(d.Entries, events.Entry{Event: e})
	}
	return appendTo(l.t, l.Memory, d)
}

func appendTo(t testing.TB, store events.Store, d events.Decision) uint64 {
	t.Helper()
	rev, err := store.Revision(t.Context(), d.Subject)
	if err != nil {
		t.Fatal(err)
	}
	got, err := store.Append(t.Context(), rev, d)
	if err != nil {
		t.Fatal(err)
	}
	return got.Position
}

func (l *eventLog) device(id events.DeviceID, es ...events.Event) uint64 {
	l.t.Helper()
	return l.add(events.UserActor("ada"), events.DeviceSubject(id), es...)
}

func (l *eventLog) inventory(id events.DeviceID, es ...events.Event) uint64 {
	l.t.Helper()
	return l.add(events.DeviceActor(id), events.InventorySubject(id), es...)
}

func (l *eventLog) tasks(id events.DeviceID, es ...events.Event) uint64 {
	l.t.Helper()
	return l.add(events.UserActor("ada"), events.TasksSubject(id), es...)
}

func (l *eventLog) token(id events.TokenID, es ...events.Event) uint64 {
	l.t.Helper()
	return l.add(events.UserActor("ada"), events.TokenSubject(id), es...)
}

// register makes a device with a name and labels given as "key=value".
func (l *eventLog) register(id events.DeviceID, name string, labels ...string) uint64 {
	l.t.Helper()
	m := map[string]string{}
	for _, label := range labels {
		k, v, _ := strings.Cut(label, "=")
		m[k] = v
	}
	return l.device(id, events.DeviceRegistered{Device: id, Name: name, JoinToken: token1, Labels: m, KeyHash: "k1", AgentVersion: "0.1.0"})
}

// undecodable is stored under the name of a known type, with a payload that
// is not of that type.
func undecodable() events.Event {
	return events.Unknown{Name: events.DeviceRenamed{}.Type(), Version: 1, Data: json.RawMessage(`{"name":7}`)}
}

// unknown is of a type that this build has not heard of.
func unknown() events.Event {
	return events.Unknown{Name: "DeviceTeleported", Version: 3, Data: json.RawMessage(`{"to":"moon"}`)}
}

// openDB opens a read model that is closed with the test.
func openDB(t testing.TB, path string) *DB {
	t.Helper()
	d, err := Open(t.Context(), Config{Path: path, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

// running is a Run in the background.
type running struct {
	cancel context.CancelFunc
	done   chan struct{}
	err    error
}

// run starts Run; it ends with the test at the latest.
func run(t testing.TB, d *DB, store events.Store) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.err = d.Run(ctx, store)
	}()
	t.Cleanup(func() { _ = r.stop() })
	return r
}

func (r *running) stop() error {
	r.cancel()
	<-r.done
	return r.err
}

// wait blocks until the read model has the position.
func wait(t testing.TB, d *DB, position uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := d.Wait(ctx, position); err != nil {
		t.Fatal(err)
	}
}

// eventually polls until ok holds.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not happen within %s", what, patience)
		}
	}
}

// given returns a read model of the whole log.
func given(t testing.TB, l *eventLog) *DB {
	t.Helper()
	d := openDB(t, filepath.Join(t.TempDir(), "read.db"))
	run(t, d, l)
	last, err := l.Last(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wait(t, d, last)
	return d
}

func dump(t testing.TB, d *DB) string {
	t.Helper()
	var b strings.Builder
	if err := d.Dump(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// rebuilt returns the dump of a read model that Rebuild made of the store.
func rebuilt(t testing.TB, store events.Store) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "rebuilt.db")
	if _, err := Rebuild(t.Context(), path, store); err != nil {
		t.Fatal(err)
	}
	d, err := Open(t.Context(), Config{Path: path, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	return errorless(t, d)
}

func errorless(t testing.TB, d *DB) string {
	t.Helper()
	s := dump(t, d)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	return s
}

func is(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("error %v, want one that is %v", err, want)
	}
}
