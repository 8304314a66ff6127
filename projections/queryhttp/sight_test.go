package queryhttp

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"pallas/events"
	"pallas/events/eventstest"
	"pallas/events/labels"
	"pallas/projections"
)

// readModel follows a log until the test ends.
func readModel(t testing.TB, store events.Store) *projections.DB {
	t.Helper()
	db, err := projections.Open(t.Context(), projections.Config{Path: filepath.Join(t.TempDir(), "read.db"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- db.Run(ctx, store) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func deviceID(n int) events.DeviceID {
	return events.DeviceID(fmt.Sprintf("%08x-0000-4000-8000-%012x", n, n))
}

// write appends a decision and returns it as the log has it.
func write(t testing.TB, store events.Store, s events.Subject, es ...events.Event) events.Record {
	t.Helper()
	revision, err := store.Revision(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	d := events.Decision{ID: events.ID(events.NewID()), Subject: s, Time: time.Unix(1, 0).UTC(), Actor: "user:test"}
	for _, e := range es {
		d.Entries = append(d.Entries, events.Entry{Event: e})
	}
	a, err := store.Append(t.Context(), revision, d)
	if err != nil {
		t.Fatal(err)
	}
	return events.Record{Decision: d, Position: a.Position}
}

// TestRegister has a read model that is behind the log by any number of
// decisions, and a register that remembers little. What it says is always what
// the newest record said.
func TestRegister(t *testing.T) {
	log, behind := eventstest.NewMemory(), eventstest.NewMemory()
	db := readModel(t, behind)
	rapid.Check(t, func(rt *rapid.T) {
		begin, err := log.Last(t.Context())
		if err != nil {
			rt.Fatal(err)
		}
		have := map[events.Subject]map[string]string{} // as the newest record of this round said
		var due []events.Record
		g := newRegister(db, begin, 3)
		for range rapid.IntRange(1, 30).Draw(rt, "steps") {
			n := rapid.IntRange(1, 8).Draw(rt, "device")
			s := events.DeviceSubject(deviceID(n))
			m := rapid.SampledFrom([]map[string]string{nil, {"a": "x"}, {"a": "y"}, {"b": "x"}}).Draw(rt, "labels")
			switch rapid.IntRange(0, 3).Draw(rt, "step") {
			case 0:
				r := write(t, log, s, events.DeviceRegistered{Device: deviceID(n), Name: "n", Labels: m}, events.DeviceApproved{Policy: "auto"})
				g.note(r)
				have[s], due = m, append(due, r)
			case 1:
				if _, ok := have[s]; !ok {
					continue
				}
				r := write(t, log, s, events.DeviceLabelled{Labels: m})
				g.note(r)
				have[s], due = m, append(due, r)
			case 2:
				for range rapid.IntRange(0, len(due)).Draw(rt, "catches up") {
					follow(t, behind, due[0])
					due = due[1:]
				}
				if len(due) > 0 {
					continue
				}
				last, err := behind.Last(t.Context())
				if err != nil || db.Wait(t.Context(), last) != nil {
					rt.Fatal(err)
				}
			case 3:
				of := rapid.SampledFrom([]events.Subject{s, events.InventorySubject(deviceID(n)), events.TasksSubject(deviceID(n))}).Draw(rt, "subject")
				got, err := g.labels(t.Context(), of)
				if err != nil {
					rt.Fatal(err)
				}
				if want, ok := have[s]; ok {
					if len(want) != len(got) || !cmp.Equal(want, got) && len(want) > 0 {
						rt.Fatalf("labels of %s are %v, want %v", of, got, want)
					}
				}
			}
		}
		for _, r := range due { // the next round begins with both at one place
			follow(t, behind, r)
		}
		last, err := behind.Last(t.Context())
		if err != nil || db.Wait(t.Context(), last) != nil {
			rt.Fatal(err)
		}
	})
}

// follow appends a record of one log to another.
func follow(t testing.TB, store *eventstest.Memory, r events.Record) {
	t.Helper()
	revision, err := store.Revision(t.Context(), r.Subject)
	if err != nil {
		t.Fatal(err)
	}
	if a, err := store.Append(t.Context(), revision, r.Decision); err != nil || a.Position != r.Position {
		t.Fatalf("position %d, want %d: %v", a.Position, r.Position, err)
	}
}

// TestScopedStreams has clients with scopes of every kind on one tail: each gets
// its own events and no others, and one that is slow harms nobody.
func TestScopedStreams(t *testing.T) {
	store := eventstest.NewMemory()
	db := readModel(t, store)
	h := &Handlers{cfg: Config{Store: store, DB: db, Heartbeat: time.Hour}, tail: tail{store: store, db: db}, reading: make(chan struct{}, 1)}
	scope := func(text string) labels.Scope {
		s, err := labels.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		return labels.Union(s)
	}
	sights := map[string]sight{
		"everything": {all: true},
		"viewer":     {fleet: labels.Everything()},
		"fra":        {fleet: scope("site=fra")},
		"not fra":    {fleet: scope("site!=fra"), joining: scope("site=fra")},
		"nothing":    {},
		"access":     {access: true},
	}
	var last uint64
	sites := []string{"fra", "muc", ""}
	labelled := func(site string) map[string]string {
		if site == "" {
			return nil
		}
		return map[string]string{"site": site}
	}
	at := map[events.Subject]string{}
	for n := range 6 { // before anybody listens
		site := sites[n%3]
		last = write(t, store, events.DeviceSubject(deviceID(n)), events.DeviceRegistered{Device: deviceID(n), Labels: labelled(site)}).Position
		at[events.DeviceSubject(deviceID(n))] = site
	}
	if err := db.Wait(t.Context(), last); err != nil {
		t.Fatal(err)
	}
	type client struct {
		*sink
		leave func()
	}
	clients, expect := map[string]client{}, map[string][]string{}
	for name, s := range sights {
		got := &sink{}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			defer func() { _ = recover() }() // an answer that is cut off
			h.stream(ctx, got, eventQuery{sight: s, after: place{last, all}})
		}()
		clients[name] = client{got, func() { cancel(); <-ended }}
	}
	until(t, "all listen", func() bool {
		h.tail.mu.Lock()
		defer h.tail.mu.Unlock()
		return h.tail.live != nil && len(h.tail.live.streams) == len(sights)
	})
	happens := func(s events.Subject, es ...events.Event) {
		r := write(t, store, s, es...)
		g := register{looked: newRegister(nil, 0, 1).looked, news: map[events.Subject]news{}, sweep: 1000}
		g.note(r)
		for _, n := range g.news {
			at[s] = n.labels["site"]
		}
		site, known := at[owner(s)]
		id := fmt.Sprint(r.Position)
		for name := range sights {
			sees := name == "everything"
			switch s.Kind() {
			case events.KindDevice, events.KindInventory, events.KindTasks:
				sees = sees || name == "viewer" || known && (name == "fra" && site == "fra" || name == "not fra" && site != "fra")
			case events.KindToken:
				sees = sees || name == "not fra" && site == "fra"
			case "user":
				sees = sees || name == "access"
			default:
				sees = sees || name == "viewer"
			}
			if sees {
				expect[name] = append(expect[name], id)
			}
		}
	}
	token := func(n int) events.Subject {
		return events.TokenSubject(events.TokenID(fmt.Sprintf("80000000-0000-7000-8000-%012x", n)))
	}
	for i := range 300 {
		n := i * 7 % 6
		device := events.DeviceSubject(deviceID(n))
		switch i % 9 {
		case 0:
			happens(device, events.DeviceLabelled{Labels: labelled(sites[i%3])})
		case 1:
			happens(events.InventorySubject(deviceID(n)), events.VMRemoved{VM: "vm"})
		case 2:
			happens(events.TasksSubject(deviceID(n)), events.TaskAccepted{Task: "t"})
		case 3:
			happens(token(i), events.JoinTokenIssued{Labels: labelled(sites[i%3])})
		case 4:
			happens(token(i-1), events.JoinTokenRevoked{})
		case 5:
			happens("ev.user.ann", events.Unknown{Name: "SignedIn", Version: 1, Data: []byte("{}")})
		case 6:
			happens("ev.rollout.x", events.Unknown{Name: "RolloutBegun", Version: 1, Data: []byte("{}")})
		case 7:
			happens(events.InventorySubject(deviceID(1000)), events.VMRemoved{VM: "vm"}) // of no device that is known
		default:
			happens(device, events.DeviceRenamed{Name: "n"})
		}
	}
	for name, c := range clients {
		until(t, name+" has all", func() bool { return c.count() >= len(expect[name]) })
	}
	happens("ev.user.ann", events.Unknown{Name: "SignedIn", Version: 1, Data: []byte("{}")})
	until(t, "the end", func() bool { return clients["everything"].count() == len(expect["everything"]) })
	for name, c := range clients {
		c.leave()
		if diff := cmp.Diff(expect[name], slices.Clone(c.ids())); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// TestSight has every sight judge every kind.
func TestSight(t *testing.T) {
	all := sight{all: true}
	for _, kind := range append(events.Kinds(), "access", "user", "rollout") {
		if v, _ := all.of(kind); v != seen {
			t.Errorf("who may see all is shown %s: %v", kind, v)
		}
		if v, _ := (&sight{}).of(kind); v != hidden {
			t.Errorf("who may see nothing is shown %s: %v", kind, v)
		}
	}
}
