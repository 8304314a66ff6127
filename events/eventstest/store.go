package eventstest

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"pallas/events"
)

// patience bounds every wait of the suite for something that ought to happen.
const patience = time.Minute

// TestStore checks that a store keeps what [events.Store] promises. open
// returns an empty store; it is called once for each part of the suite.
func TestStore(t *testing.T, open func(t *testing.T) events.Store) {
	run := func(name string, f func(t *testing.T, s events.Store)) {
		t.Run(name, func(t *testing.T) { f(t, open(t)) })
	}
	run("Empty", testEmpty)
	run("RoundTrip", testRoundTrip)
	run("Large", testLarge)
	run("ManyPages", testManyPages)
	run("Conflict", testConflict)
	run("Race", testRace)
	run("Duplicate", testDuplicate)
	run("ForeignID", testForeignID)
	run("Refused", testRefused)
	run("Load", testLoad)
	run("Read", testRead)
	run("Since", testSince)
	run("Snapshot", testSnapshot)
	run("Prefix", testPrefix)
	run("Break", testBreak)
	run("Cancel", testCancel)
	run("Follow", testFollow)
	run("FollowFilter", testFollowFilter)
	run("FollowConcurrent", testFollowConcurrent)
}

func testEmpty(t *testing.T, s events.Store) {
	ctx := t.Context()
	subject := events.DeviceSubject(device())
	if last, err := s.Last(ctx); last != 0 || err != nil {
		t.Errorf("Last of an empty log: %d, %v", last, err)
	}
	if rev, err := s.Revision(ctx, subject); rev != 0 || err != nil {
		t.Errorf("Revision of an aggregate without a decision: %d, %v", rev, err)
	}
	if got := collect(t, s.Load(ctx, subject, 0)); len(got) != 0 {
		t.Errorf("Load of an aggregate without a decision: %v", got)
	}
	for _, f := range []events.Filter{{}, {After: 7}, {Since: time.Now()}, {Subjects: []string{"ev.*.x", "ev.tasks.*"}}} {
		if got := collect(t, s.Read(ctx, f)); len(got) != 0 {
			t.Errorf("Read(%+v) of an empty log: %v", f, got)
		}
	}
	appended(t, s, 0, label(events.DeviceSubject(device()), "x"))
	if rev, err := s.Revision(ctx, subject); rev != 0 || err != nil {
		t.Errorf("Revision of an aggregate without a decision, log not empty: %d, %v", rev, err)
	}
	if got := collect(t, s.Load(ctx, subject, 0)); len(got) != 0 {
		t.Errorf("Load of an aggregate without a decision, log not empty: %v", got)
	}
}

func testRoundTrip(t *testing.T, s events.Store) {
	ctx := t.Context()
	subject := events.InventorySubject(device())
	at := Epoch.Add(-time.Hour)
	d := events.Decision{
		ID: events.ID(events.NewID()), Subject: subject, Time: Epoch, Actor: events.DeviceActor("d"),
		Source: "192.0.2.7", Cause: "c-1", Traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
		Entries: []events.Entry{
			{Event: events.VMRemoved{VM: "vm-1"}, DeviceTime: &at, Report: &events.Report{Epoch: 1 << 63, Seq: 9}},
			{Event: events.VMObserved{VM: events.VM{ID: "vm-2", Name: "Kasse 3 – Äpfel \"<&>\" \u2028", IPs: []string{"192.0.2.1"}}}},
			{Event: events.Unknown{Name: "VMDreamt", Version: 3, Data: []byte(`{"sheep":1e3,"z":null,"a":"\u00e4"}`)}},
			{Event: events.Unknown{Name: "VMRemoved", Version: 99, Data: []byte(`{"vm":7}`)}},
		},
	}
	at1 := appended(t, s, 0, d)
	got := collect(t, s.Load(ctx, subject, 0))
	want := []events.Record{{Decision: d, Position: at1}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Load (-appended +loaded):\n%s", diff)
	}
	if diff := cmp.Diff(want, collect(t, s.Read(ctx, events.Filter{}))); diff != "" {
		t.Errorf("Read (-appended +read):\n%s", diff)
	}
	for r, err := range s.Follow(ctx, events.Filter{}) {
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want[0], r); diff != "" {
			t.Errorf("Follow (-appended +followed):\n%s", diff)
		}
		break
	}
}

func testLarge(t *testing.T, s events.Store) {
	subject := events.InventorySubject(device())
	big := events.VM{ID: "vm", Name: strings.Repeat("x", 500<<10)}
	one := Decide(subject, events.VMObserved{VM: big})
	many := Decide(subject)
	for i := range 1000 {
		many.Entries = append(many.Entries, events.Entry{Event: events.VMRemoved{VM: events.VMID(fmt.Sprintf("vm-%d", i))}})
	}
	rev := appended(t, s, 0, one)
	appended(t, s, rev, many)
	got := collect(t, s.Load(t.Context(), subject, 0))
	if diff := cmp.Diff([]events.Decision{one, many}, decisions(got)); diff != "" {
		t.Errorf("large decisions came back changed: %.500s", diff)
	}
}

func testManyPages(t *testing.T, s events.Store) {
	ctx := t.Context()
	subject, other := events.TasksSubject(device()), events.TasksSubject(device())
	var revs [2]uint64
	var want []uint64
	const n = 2300
	for i := range n {
		revs[0] = appended(t, s, revs[0], label(subject, fmt.Sprint(i)))
		want = append(want, revs[0])
		if i%100 == 0 {
			revs[1] = appended(t, s, revs[1], label(other, fmt.Sprint(i)))
		}
	}
	if diff := cmp.Diff(want, positions(collect(t, s.Load(ctx, subject, 0)))); diff != "" {
		t.Errorf("Load:\n%s", diff)
	}
	if got := collect(t, s.Read(ctx, events.Filter{})); len(got) != n+n/100 {
		t.Errorf("Read: %d records, want %d", len(got), n+n/100)
	}
	if got := collect(t, s.Read(ctx, events.Filter{Subjects: []string{string(subject), string(other)}})); len(got) != n+n/100 {
		t.Errorf("Read of both subjects: %d records, want %d", len(got), n+n/100)
	}
}

func testConflict(t *testing.T, s events.Store) {
	ctx := t.Context()
	subject := events.DeviceSubject(device())
	refuse := func(expected uint64) {
		t.Helper()
		if a, err := s.Append(ctx, expected, label(subject, "wrong")); !errors.Is(err, events.ErrConflict) {
			t.Errorf("Append at %d: %+v, %v; want ErrConflict", expected, a, err)
		}
	}
	refuse(1)
	// Another aggregate's decisions do not count.
	appended(t, s, 0, label(events.DeviceSubject(device()), "other"))
	refuse(1)
	first := appended(t, s, 0, label(subject, "a"))
	refuse(0)
	refuse(first - 1)
	refuse(first + 1)
	second := appended(t, s, first, label(subject, "b"))
	refuse(first)
	if got := positions(collect(t, s.Load(ctx, subject, 0))); !slices.Equal(got, []uint64{first, second}) {
		t.Errorf("after conflicts the aggregate has %v, want %v", got, []uint64{first, second})
	}
	if rev, err := s.Revision(ctx, subject); rev != second || err != nil {
		t.Errorf("Revision: %d, %v; want %d", rev, err, second)
	}
	if last, err := s.Last(ctx); last != second || err != nil {
		t.Errorf("Last: %d, %v; want %d: a refused decision takes no position", last, err, second)
	}
}

// testRace lets many writers expect the same revision: one wins.
func testRace(t *testing.T, s events.Store) {
	subject := events.DeviceSubject(device())
	const writers, rounds = 8, 25
	rev := uint64(0)
	for range rounds {
		var wg sync.WaitGroup
		won := make(chan uint64, writers)
		for range writers {
			wg.Go(func() {
				switch a, err := s.Append(t.Context(), rev, label(subject, "r")); {
				case err == nil:
					won <- a.Position
				case !errors.Is(err, events.ErrConflict):
					t.Errorf("Append: %v", err)
				}
			})
		}
		wg.Wait()
		if len(won) != 1 {
			t.Fatalf("%d writers won at revision %d, want 1", len(won), rev)
		}
		rev = <-won
	}
	if got := collect(t, s.Load(t.Context(), subject, 0)); len(got) != rounds {
		t.Errorf("%d decisions, want %d", len(got), rounds)
	}
}

func testDuplicate(t *testing.T, s events.Store) {
	ctx := t.Context()
	subject := events.DeviceSubject(device())
	first := appended(t, s, 0, label(subject, "a"))
	d := label(subject, "b")
	second := appended(t, s, first, d)
	want := events.Appended{Position: second, Duplicate: true}
	again := func(when string, expected uint64) {
		t.Helper()
		if got, err := s.Append(ctx, expected, d); got != want || err != nil {
			t.Errorf("%s: %+v, %v; want %+v", when, got, err, want)
		}
	}
	again("same expectation", first)
	again("up-to-date expectation", second)
	again("older expectation", 0)
	third := appended(t, s, second, label(subject, "c"))
	again("same expectation, aggregate moved on", first)
	again("up-to-date expectation, aggregate moved on", third)
	if got, err := s.Append(ctx, third+5, d); !errors.Is(err, events.ErrConflict) {
		t.Errorf("expectation that never was: %+v, %v; want ErrConflict", got, err)
	}
	if got := positions(collect(t, s.Load(ctx, subject, 0))); !slices.Equal(got, []uint64{first, second, third}) {
		t.Errorf("the aggregate has %v, want %v", got, []uint64{first, second, third})
	}
}

func testForeignID(t *testing.T, s events.Store) {
	d := label(events.DeviceSubject(device()), "a")
	appended(t, s, 0, d)
	d.Subject = events.DeviceSubject(device())
	a, err := s.Append(t.Context(), 0, d)
	if err == nil || errors.Is(err, events.ErrConflict) || errors.Is(err, events.ErrUnavailable) {
		t.Errorf("Append with the id of another aggregate's decision: %+v, %v; want an error of its own", a, err)
	}
	if last, err := s.Last(t.Context()); last != 1 || err != nil {
		t.Errorf("Last: %d, %v; want 1", last, err)
	}
}

func testRefused(t *testing.T, s events.Store) {
	ctx := t.Context()
	good := label(events.DeviceSubject(device()), "a")
	for name, spoil := range map[string]func(*events.Decision){
		"no id":           func(d *events.Decision) { d.ID = "" },
		"no time":         func(d *events.Decision) { d.Time = time.Time{} },
		"no actor":        func(d *events.Decision) { d.Actor = "" },
		"no events":       func(d *events.Decision) { d.Entries = nil },
		"nil event":       func(d *events.Decision) { d.Entries = []events.Entry{{}} },
		"no subject":      func(d *events.Decision) { d.Subject = "" },
		"pattern":         func(d *events.Decision) { d.Subject = "ev.device.*" },
		"foreign subject": func(d *events.Decision) { d.Subject = "x.device.y" },
	} {
		d := good
		spoil(&d)
		a, err := s.Append(ctx, 0, d)
		if err == nil || errors.Is(err, events.ErrConflict) || errors.Is(err, events.ErrUnavailable) {
			t.Errorf("Append of a decision with %s: %+v, %v; want an error of its own", name, a, err)
		}
	}
	if last, err := s.Last(ctx); last != 0 || err != nil {
		t.Errorf("Last: %d, %v; want 0", last, err)
	}
	for _, bad := range []events.Subject{"", "ev.device", "ev.device.*", "ev.device.a.b"} {
		if _, err := s.Revision(ctx, bad); err == nil {
			t.Errorf("Revision(%q) gave no error", bad)
		}
		wantError(t, fmt.Sprintf("Load(%q)", bad), s.Load(ctx, bad, 0))
	}
	for _, bad := range []string{"", "ev", "ev.>", "ev.device", "device.x", "ev.de*.x", "ev.device.a.b", "x.*.y", "*.*.*", "ev.*. "} {
		f := events.Filter{Subjects: []string{"ev.*.ok", bad}}
		wantError(t, fmt.Sprintf("Read(%q)", bad), s.Read(ctx, f))
		wantError(t, fmt.Sprintf("Follow(%q)", bad), s.Follow(ctx, f))
	}
}

func testLoad(t *testing.T, s events.Store) {
	ctx := t.Context()
	f := fill(t, s)
	for i, subject := range f.subjects {
		want := f.of(subject)
		for _, after := range []uint64{0, want[0] - 1, want[0], want[1], want[2], want[2] + 1000} {
			got := positions(collect(t, s.Load(ctx, subject, after)))
			if diff := cmp.Diff(behind(want, after), got); diff != "" {
				t.Errorf("Load(%d, after %d):\n%s", i, after, diff)
			}
		}
		if rev, err := s.Revision(ctx, subject); rev != want[len(want)-1] || err != nil {
			t.Errorf("Revision(%d): %d, %v; want %d", i, rev, err, want[len(want)-1])
		}
	}
}

func testRead(t *testing.T, s events.Store) {
	ctx := t.Context()
	f := fill(t, s)
	for _, subjects := range f.filters() {
		for _, after := range []uint64{0, 1, 4, f.last(), f.last() + 1000} {
			filter := events.Filter{Subjects: subjects, After: after}
			got := collect(t, s.Read(ctx, filter))
			if diff := cmp.Diff(f.records(filter), got); diff != "" {
				t.Errorf("Read(%+v) (-want +got):\n%s", filter, diff)
			}
		}
	}
}

func testSince(t *testing.T, s events.Store) {
	ctx := t.Context()
	subject := events.DeviceSubject(device())
	first := appended(t, s, 0, label(subject, "a"))
	before := tick()
	second := appended(t, s, first, label(subject, "b"))
	third := appended(t, s, second, label(subject, "c"))
	after := tick()
	for _, c := range []struct {
		name   string
		filter events.Filter
		want   []uint64
	}{
		{"long ago", events.Filter{Since: Epoch.AddDate(-100, 0, 0)}, []uint64{first, second, third}},
		{"between", events.Filter{Since: before}, []uint64{second, third}},
		{"between, in another zone", events.Filter{Since: before.In(time.FixedZone("", 3600))}, []uint64{second, third}},
		{"between, one subject", events.Filter{Since: before, Subjects: []string{string(subject)}}, []uint64{second, third}},
		{"between, two subjects", events.Filter{Since: before, Subjects: []string{string(subject), "ev.tasks.*"}}, []uint64{second, third}},
		{"after wins", events.Filter{Since: before, After: second}, []uint64{third}},
		{"after wins when earlier", events.Filter{Since: after, After: first}, []uint64{second, third}},
		{"later than all", events.Filter{Since: after}, nil},
	} {
		if got := positions(collect(t, s.Read(ctx, c.filter))); !slices.Equal(got, c.want) {
			t.Errorf("%s: Read gave %v, want %v", c.name, got, c.want)
		}
		if len(c.want) > 0 {
			if got := positions(take(t, s, c.filter, len(c.want))); !slices.Equal(got, c.want) {
				t.Errorf("%s: Follow gave %v, want %v", c.name, got, c.want)
			}
		}
	}
}

// testPrefix reads two aggregates while both grow in turn: what is read of them
// is always a beginning of the log, without a hole.
func testPrefix(t *testing.T, s events.Store) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	subjects := []events.Subject{events.DeviceSubject(device()), events.TasksSubject(device())}
	var wg sync.WaitGroup
	wg.Go(func() {
		var revs [2]uint64
		for i := range 200 {
			a, err := s.Append(ctx, revs[i%2], label(subjects[i%2], "x"))
			if err != nil {
				t.Errorf("Append: %v", err)
				return
			}
			revs[i%2] = a.Position
		}
	})
	for _, patterns := range [][]string{{string(subjects[0]), string(subjects[1])}, {"ev.device.*", "ev.tasks.*"}} {
		for range 12 {
			n := uint64(0)
			for r, err := range s.Read(ctx, events.Filter{Subjects: patterns}) {
				if err != nil {
					t.Fatal(err)
				}
				if n++; r.Position != n {
					t.Fatalf("Read(%v): position %d comes after %d", patterns, r.Position, n-1)
				}
			}
		}
	}
	wg.Wait()
}

// testSnapshot appends while it reads: what comes later is not seen.
func testSnapshot(t *testing.T, s events.Store) {
	ctx := t.Context()
	a, b := events.DeviceSubject(device()), events.TasksSubject(device())
	// Enough for a store that reads in pages to need a second one.
	for rev := uint64(0); rev < 1500; {
		rev = appended(t, s, rev, label(a, "x"))
	}
	for name, read := range map[string]func() iter.Seq2[events.Record, error]{
		"Load": func() iter.Seq2[events.Record, error] { return s.Load(ctx, a, 0) },
		"Read": func() iter.Seq2[events.Record, error] { return s.Read(ctx, events.Filter{}) },
		"Read of two": func() iter.Seq2[events.Record, error] {
			return s.Read(ctx, events.Filter{Subjects: []string{string(a), string(b)}})
		},
		"Read of a pattern": func() iter.Seq2[events.Record, error] {
			return s.Read(ctx, events.Filter{Subjects: []string{"ev.device.*"}})
		},
	} {
		rev, err := s.Revision(ctx, a)
		if err != nil {
			t.Fatal(err)
		}
		end := appended(t, s, rev, label(a, "x"))
		later := 20
		for r, err := range read() {
			if err != nil {
				t.Fatal(err)
			}
			if r.Position > end {
				t.Errorf("%s gave position %d, the log ended at %d when it began", name, r.Position, end)
				break
			}
			if later--; later < 0 {
				continue
			}
			if rev, err = s.Revision(ctx, a); err != nil {
				t.Fatal(err)
			}
			appended(t, s, rev, label(a, "y"))
		}
	}
}

func testBreak(t *testing.T, s events.Store) {
	ctx := t.Context()
	f := fill(t, s)
	for name, seq := range map[string]iter.Seq2[events.Record, error]{
		"Load":        s.Load(ctx, f.subjects[0], 0),
		"Read":        s.Read(ctx, events.Filter{}),
		"Read merged": s.Read(ctx, events.Filter{Subjects: []string{"ev.*.*", "ev.tasks.*"}}),
		"Follow":      s.Follow(ctx, events.Filter{}),
	} {
		// A sequence can be started again, and stopped at any record.
		for n := range 3 {
			got := 0
			for _, err := range seq {
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				if got++; got > n {
					break
				}
			}
			if got != n+1 {
				t.Errorf("%s: broke after %d records, want %d", name, got, n+1)
			}
		}
	}
}

func testCancel(t *testing.T, s events.Store) {
	f := fill(t, s)
	done, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Append(done, 0, label(events.DeviceSubject(device()), "x")); !errors.Is(err, context.Canceled) {
		t.Errorf("Append: %v, want context.Canceled", err)
	}
	if last, err := s.Last(t.Context()); last != f.last() || err != nil {
		t.Errorf("Last after an append that was cancelled before it began: %d, %v; want %d", last, err, f.last())
	}
	if _, err := s.Last(done); !errors.Is(err, context.Canceled) {
		t.Errorf("Last: %v, want context.Canceled", err)
	}
	if _, err := s.Revision(done, f.subjects[0]); !errors.Is(err, context.Canceled) {
		t.Errorf("Revision: %v, want context.Canceled", err)
	}
	both := []string{string(f.subjects[0]), string(f.subjects[1])}
	for name, read := range map[string]func(context.Context) iter.Seq2[events.Record, error]{
		"Load": func(ctx context.Context) iter.Seq2[events.Record, error] { return s.Load(ctx, f.subjects[0], 0) },
		"Read": func(ctx context.Context) iter.Seq2[events.Record, error] { return s.Read(ctx, events.Filter{}) },
		"Read merged": func(ctx context.Context) iter.Seq2[events.Record, error] {
			return s.Read(ctx, events.Filter{Subjects: both})
		},
		"Follow": func(ctx context.Context) iter.Seq2[events.Record, error] { return s.Follow(ctx, events.Filter{}) },
	} {
		ended := 0
		for r, err := range read(done) {
			if ended++; !errors.Is(err, context.Canceled) {
				t.Errorf("%s with a context that is done: %v, %v", name, r.Position, err)
			}
		}
		if ended != 1 {
			t.Errorf("%s with a context that is done yielded %d times, want its error", name, ended)
		}
		ctx, cancel := context.WithCancel(t.Context())
		got, ended := 0, 0
		for _, err := range read(ctx) {
			switch {
			case err == nil:
				got++
				cancel()
			case errors.Is(err, context.Canceled):
				ended++
			default:
				t.Errorf("%s: %v", name, err)
			}
		}
		cancel()
		if got != 1 || ended != 1 {
			t.Errorf("%s cancelled at the first record: %d records and %d errors, want 1 and 1", name, got, ended)
		}
	}
	// Follow ends also while there is nothing to read.
	ctx, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop()
	began := time.Now()
	for r, err := range s.Follow(ctx, events.Filter{After: f.last()}) {
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Follow: %d, %v; want context.DeadlineExceeded", r.Position, err)
		}
	}
	if took := time.Since(began); took > patience {
		t.Errorf("Follow took %s to end", took)
	}
}

func testFollow(t *testing.T, s events.Store) {
	f := fill(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	subject := events.DeviceSubject(device())
	rev := uint64(0)
	want := f.last()
	after := uint64(2)
	// Each record is appended only when the one before it was seen.
	for r, err := range s.Follow(ctx, events.Filter{After: after}) {
		if err != nil {
			t.Fatal(err)
		}
		if after++; r.Position != after {
			t.Fatalf("got position %d, want %d", r.Position, after)
		}
		if after == f.last()+20 {
			break
		}
		if after == want {
			rev = appended(t, s, rev, label(subject, "later"))
			want = rev
		}
	}
}

func testFollowFilter(t *testing.T, s events.Store) {
	f := fill(t, s)
	for _, subjects := range f.filters() {
		filter := events.Filter{Subjects: subjects}
		want := f.records(filter)
		if len(want) == 0 {
			continue
		}
		if diff := cmp.Diff(want, take(t, s, filter, len(want))); diff != "" {
			t.Errorf("Follow(%v) (-want +got):\n%s", subjects, diff)
		}
	}
}

func testFollowConcurrent(t *testing.T, s events.Store) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	const writers, each, followers = 4, 150, 3
	var wg sync.WaitGroup
	for range followers {
		wg.Go(func() {
			last, perSubject := uint64(0), map[events.Subject]string{}
			for r, err := range s.Follow(ctx, events.Filter{}) {
				if err != nil {
					t.Errorf("after position %d: %v", last, err)
					return
				}
				if r.Position != last+1 {
					t.Errorf("position %d follows %d", r.Position, last)
					return
				}
				last = r.Position
				name := r.Entries[0].Event.(events.DeviceRenamed).Name
				if name <= perSubject[r.Subject] {
					t.Errorf("%q after %q in one aggregate", name, perSubject[r.Subject])
					return
				}
				perSubject[r.Subject] = name
				if last == writers*each {
					return
				}
			}
		})
	}
	for range writers {
		wg.Go(func() {
			subject, rev := events.DeviceSubject(device()), uint64(0)
			for i := range each {
				a, err := s.Append(ctx, rev, label(subject, fmt.Sprintf("%06d", i)))
				if err != nil {
					t.Errorf("Append: %v", err)
					return
				}
				rev = a.Position
			}
		})
	}
	wg.Wait()
}

// filled is a log with known contents.
type filled struct {
	subjects []events.Subject // three records each
	devices  [2]events.DeviceID
	all      []events.Record
}

func fill(t *testing.T, s events.Store) filled {
	t.Helper()
	f := filled{devices: [2]events.DeviceID{device(), device()}}
	for _, d := range f.devices {
		f.subjects = append(f.subjects, events.DeviceSubject(d), events.InventorySubject(d), events.TasksSubject(d))
	}
	f.subjects = append(f.subjects, events.TokenSubject(events.TokenID(events.NewID())), "ev.future.x-1_Y")
	revs := map[events.Subject]uint64{}
	for i := range 3 {
		for _, subject := range f.subjects {
			d := label(subject, fmt.Sprint(i))
			revs[subject] = appended(t, s, revs[subject], d)
			f.all = append(f.all, events.Record{Decision: d, Position: revs[subject]})
		}
	}
	for i, r := range f.all {
		if r.Position != uint64(i+1) {
			t.Fatalf("record %d of an empty log is at position %d", i+1, r.Position)
		}
	}
	return f
}

// filters are subjects to select by: none, literal ones, patterns, patterns
// that overlap, more than a few, and such as nothing matches.
func (f filled) filters() [][]string {
	many := []string{}
	for range 40 {
		many = append(many, string(events.DeviceSubject(device())))
	}
	d0, d1 := string(f.devices[0]), string(f.devices[1])
	return [][]string{
		nil,
		{"ev.device." + d0},
		{"ev.*." + d0},
		{"ev.tasks.*"},
		{"ev.*.*"},
		{"ev.device." + d0, "ev.tasks." + d1},
		{"ev.device." + d0, "ev.device." + d0},
		{"ev.*." + d0, "ev.tasks.*"},
		{"ev.tasks.*", "ev.tasks." + d0, "ev.*.*"},
		{"ev.future.*"},
		{"ev.device." + string(device())},
		{"ev.device." + string(device()), "ev.*." + string(device())},
		append(many, "ev.*."+d1),
	}
}

func (f filled) last() uint64 { return uint64(len(f.all)) }

func (f filled) of(s events.Subject) []uint64 {
	return positions(f.records(events.Filter{Subjects: []string{string(s)}}))
}

// records selects the plain way: part by part, for each record anew.
func (f filled) records(filter events.Filter) []events.Record {
	var out []events.Record
	for _, r := range f.all {
		match := len(filter.Subjects) == 0
		for _, pattern := range filter.Subjects {
			p, s := strings.Split(pattern, "."), strings.Split(string(r.Subject), ".")
			match = match || (p[1] == "*" || p[1] == s[1]) && (p[2] == "*" || p[2] == s[2])
		}
		if match && r.Position > filter.After {
			out = append(out, r)
		}
	}
	return out
}

func device() events.DeviceID { return events.DeviceID(uuid.NewString()) }

func label(s events.Subject, name string) events.Decision {
	return Decide(s, events.DeviceRenamed{Name: name})
}

func appended(t *testing.T, s events.Store, expected uint64, d events.Decision) uint64 {
	t.Helper()
	a, err := s.Append(t.Context(), expected, d)
	if err != nil {
		t.Fatalf("Append to %s at %d: %v", d.Subject, expected, err)
	}
	if a.Duplicate || a.Position <= expected {
		t.Fatalf("Append to %s at %d: %+v", d.Subject, expected, a)
	}
	return a.Position
}

func collect(t *testing.T, seq iter.Seq2[events.Record, error]) []events.Record {
	t.Helper()
	var out []events.Record
	for r, err := range seq {
		if err != nil {
			t.Fatalf("after %d records: %v", len(out), err)
		}
		out = append(out, r)
	}
	return out
}

// take returns the first n records of Follow.
func take(t *testing.T, s events.Store, f events.Filter, n int) []events.Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var out []events.Record
	for r, err := range s.Follow(ctx, f) {
		if err != nil {
			t.Fatalf("after %d of %d records: %v", len(out), n, err)
		}
		if out = append(out, r); len(out) == n {
			break
		}
	}
	return out
}

func wantError(t *testing.T, what string, seq iter.Seq2[events.Record, error]) {
	t.Helper()
	n := 0
	for _, err := range seq {
		if n++; err == nil {
			t.Errorf("%s yielded a record, want an error", what)
		}
	}
	if n != 1 {
		t.Errorf("%s yielded %d times, want one error", what, n)
	}
}

// tick returns an instant that lies strictly between what the clock showed
// before and what it shows after.
func tick() time.Time {
	begin := time.Now()
	at := begin
	for !at.After(begin) {
		at = time.Now()
	}
	for !time.Now().After(at) {
		continue
	}
	return at
}

func positions(records []events.Record) []uint64 {
	var out []uint64
	for _, r := range records {
		out = append(out, r.Position)
	}
	return out
}

func decisions(records []events.Record) []events.Decision {
	var out []events.Decision
	for _, r := range records {
		out = append(out, r.Decision)
	}
	return out
}

func behind(positions []uint64, after uint64) []uint64 {
	var out []uint64
	for _, p := range positions {
		if p > after {
			out = append(out, p)
		}
	}
	return out
}
