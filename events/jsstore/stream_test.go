package jsstore_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pallas/events"
	"pallas/events/eventstest"
	"pallas/events/jsstore"
)

const subject = events.Subject("ev.device.3f0f3a86-5d1e-4c56-9d0a-2f2f6d8a7b11")

func decide(name string) events.Decision {
	return eventstest.Decide(subject, events.DeviceRenamed{Name: name})
}

func jetStream(t testing.TB, nc *nats.Conn) jetstream.JetStream {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

func stream(t testing.TB, nc *nats.Conn) jetstream.Stream {
	t.Helper()
	s, err := jetStream(t, nc).Stream(t.Context(), "EVENTS")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustAppend(t testing.TB, s events.Store, expected uint64, d events.Decision) uint64 {
	t.Helper()
	a, err := s.Append(t.Context(), expected, d)
	if err != nil {
		t.Fatal(err)
	}
	return a.Position
}

func count(t testing.TB, s events.Store) int {
	t.Helper()
	n := 0
	for _, err := range s.Read(t.Context(), events.Filter{}) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	return n
}

func TestOpenConfig(t *testing.T) {
	srv, _ := serve(t, t.TempDir())
	nc := connect(t, srv)
	for field, c := range map[string]jsstore.Config{
		"Conn": {}, "Replicas": {Conn: nc, Replicas: 6}, "MaxBytes": {Conn: nc, MaxBytes: -1},
	} {
		if _, err := jsstore.Open(t.Context(), c); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("Open(%+v): %v, want an error that names %s", c, err, field)
		}
	}
}

func TestRestart(t *testing.T) {
	dir := t.TempDir()
	srv, stop := serve(t, dir)
	s := open(t, connect(t, srv))
	first := mustAppend(t, s, 0, decide("a"))
	d := decide("b")
	second := mustAppend(t, s, first, d)
	stop()

	srv, _ = serve(t, dir)
	s = open(t, connect(t, srv))
	if n := count(t, s); n != 2 {
		t.Fatalf("%d records after a restart, want 2", n)
	}
	if rev, err := s.Revision(t.Context(), subject); rev != second || err != nil {
		t.Errorf("Revision after a restart: %d, %v; want %d", rev, err, second)
	}
	for _, expected := range []uint64{first, second} {
		a, err := s.Append(t.Context(), expected, d)
		if want := (events.Appended{Position: second, Duplicate: true}); a != want || err != nil {
			t.Errorf("the decision again, after a restart, at %d: %+v, %v; want %+v", expected, a, err, want)
		}
	}
	mustAppend(t, s, second, decide("c"))
}

func TestWeakenedStreamIsRefused(t *testing.T) {
	good := jetstream.StreamConfig{
		Name: "EVENTS", Subjects: []string{"ev.>"}, Discard: jetstream.DiscardNew,
		DenyDelete: true, DenyPurge: true, AllowDirect: true, Duplicates: 10 * time.Minute,
	}
	for setting, weaken := range map[string]func(*jetstream.StreamConfig){
		"subjects":             func(c *jetstream.StreamConfig) { c.Subjects = []string{"ev.device.*"} },
		"retention":            func(c *jetstream.StreamConfig) { c.Retention = jetstream.InterestPolicy },
		"discard":              func(c *jetstream.StreamConfig) { c.Discard = jetstream.DiscardOld },
		"storage":              func(c *jetstream.StreamConfig) { c.Storage = jetstream.MemoryStorage },
		"max_age":              func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour },
		"max_msgs":             func(c *jetstream.StreamConfig) { c.MaxMsgs = 7 },
		"max_msgs_per_subject": func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 7 },
		"max_msg_size":         func(c *jetstream.StreamConfig) { c.MaxMsgSize = 700 },
		"deny_delete":          func(c *jetstream.StreamConfig) { c.DenyDelete = false },
		"deny_purge":           func(c *jetstream.StreamConfig) { c.DenyPurge = false },
		"allow_rollup_hdrs":    func(c *jetstream.StreamConfig) { c.AllowRollup, c.DenyPurge = true, false },
		"allow_msg_ttl":        func(c *jetstream.StreamConfig) { c.AllowMsgTTL = true },
		"allow_msg_counter":    func(c *jetstream.StreamConfig) { c.AllowMsgCounter, c.Discard = true, jetstream.DiscardOld },
		"allow_direct":         func(c *jetstream.StreamConfig) { c.AllowDirect = false },
		"no_ack":               func(c *jetstream.StreamConfig) { c.NoAck = true },
		"persist_mode":         func(c *jetstream.StreamConfig) { c.PersistMode = jetstream.AsyncPersistMode },
		"duplicate_window":     func(c *jetstream.StreamConfig) { c.Duplicates = time.Minute },
		"mirror":               func(c *jetstream.StreamConfig) { c.Mirror, c.Subjects = &jetstream.StreamSource{Name: "OTHER"}, nil },
		"sources":              func(c *jetstream.StreamConfig) { c.Sources = []*jetstream.StreamSource{{Name: "OTHER"}} },
		"subject_transform": func(c *jetstream.StreamConfig) {
			c.SubjectTransform = &jetstream.SubjectTransformConfig{Source: "ev.>", Destination: "ev.x.>"}
		},
		"first record": func(c *jetstream.StreamConfig) { c.FirstSeq = 100 },
	} {
		t.Run(setting, func(t *testing.T) {
			srv, _ := serve(t, t.TempDir())
			nc := connect(t, srv)
			c := good
			weaken(&c)
			if _, err := jetStream(t, nc).CreateStream(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			_, err := jsstore.Open(t.Context(), jsstore.Config{Conn: nc})
			var weakened *jsstore.WeakenedError
			if !errors.As(err, &weakened) || !strings.Contains(err.Error(), setting) {
				t.Fatalf("Open: %v, want a WeakenedError that names %s", err, setting)
			}
		})
	}
	t.Run("sealed and several at once", func(t *testing.T) {
		srv, _ := serve(t, t.TempDir())
		nc := connect(t, srv)
		mustAppend(t, open(t, nc), 0, decide("a"))
		c := stream(t, nc).CachedInfo().Config
		c.MaxAge, c.Sealed = time.Hour, true
		if _, err := jetStream(t, nc).UpdateStream(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		_, err := jsstore.Open(t.Context(), jsstore.Config{Conn: nc})
		var weakened *jsstore.WeakenedError
		if !errors.As(err, &weakened) || !strings.Contains(err.Error(), "sealed") {
			t.Fatalf("Open: %v, want a WeakenedError that names sealed", err)
		}
	})
	t.Run("missing records", func(t *testing.T) {
		srv, _ := serve(t, t.TempDir())
		nc := connect(t, srv)
		c := good
		c.DenyDelete = false
		js := jetStream(t, nc)
		made, err := js.CreateStream(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if _, err := js.Publish(t.Context(), string(subject), nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := made.DeleteMsg(t.Context(), 2); err != nil {
			t.Fatal(err)
		}
		c.DenyDelete = true
		if _, err := js.UpdateStream(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		_, err = jsstore.Open(t.Context(), jsstore.Config{Conn: nc})
		var weakened *jsstore.WeakenedError
		if !errors.As(err, &weakened) || len(weakened.Settings) != 1 || !strings.Contains(err.Error(), "1 records are missing") {
			t.Fatalf("Open: %v, want a WeakenedError that tells of the missing record", err)
		}
	})
	t.Run("good", func(t *testing.T) {
		srv, _ := serve(t, t.TempDir())
		nc := connect(t, srv)
		if _, err := jetStream(t, nc).CreateStream(t.Context(), good); err != nil {
			t.Fatal(err)
		}
		open(t, nc)
	})
}

func TestNothingCanBeRemoved(t *testing.T) {
	srv, _ := serve(t, t.TempDir())
	nc := connect(t, srv)
	s := open(t, nc)
	rev := mustAppend(t, s, 0, decide("a"))
	mustAppend(t, s, rev, decide("b"))
	js, ev := jetStream(t, nc), stream(t, nc)
	for what, try := range map[string]func(context.Context) error{
		"delete":        func(ctx context.Context) error { return ev.DeleteMsg(ctx, 1) },
		"secure delete": func(ctx context.Context) error { return ev.SecureDeleteMsg(ctx, 1) },
		"purge":         func(ctx context.Context) error { return ev.Purge(ctx) },
		"rollup": func(ctx context.Context) error {
			_, err := js.PublishMsg(ctx, &nats.Msg{Subject: string(subject), Header: nats.Header{"Nats-Rollup": {"all"}}})
			return err
		},
		"expiry": func(ctx context.Context) error {
			_, err := js.PublishMsg(ctx, &nats.Msg{Subject: string(subject), Header: nats.Header{"Nats-TTL": {"1s"}}})
			return err
		},
		"allow deletes": func(ctx context.Context) error {
			return update(ctx, js, ev, func(c *jetstream.StreamConfig) { c.DenyDelete = false })
		},
		"allow purges": func(ctx context.Context) error {
			return update(ctx, js, ev, func(c *jetstream.StreamConfig) { c.DenyPurge = false })
		},
	} {
		var api *jetstream.APIError
		if err := try(t.Context()); !errors.As(err, &api) && !errors.Is(err, jetstream.ErrMsgDeleteUnsuccessful) {
			t.Errorf("%s: %v, want the server to refuse", what, err)
		}
	}
	if n := count(t, s); n != 2 {
		t.Errorf("%d records, want 2", n)
	}
}

func update(ctx context.Context, js jetstream.JetStream, s jetstream.Stream, change func(*jetstream.StreamConfig)) error {
	c := s.CachedInfo().Config
	change(&c)
	_, err := js.UpdateStream(ctx, c)
	return err
}

func TestFull(t *testing.T) {
	fill := func(t *testing.T, s *jsstore.Store) (revision uint64) {
		t.Helper()
		d := decide(strings.Repeat("x", 1000))
		for range 10000 {
			d.ID = events.ID(events.NewID())
			a, err := s.Append(t.Context(), revision, d)
			if errors.Is(err, events.ErrNoSpace) {
				if errors.Is(err, events.ErrUnavailable) || errors.Is(err, events.ErrConflict) {
					t.Fatalf("ambiguous error: %v", err)
				}
				return revision
			}
			if err != nil {
				t.Fatalf("after position %d: %v", revision, err)
			}
			revision = a.Position
		}
		t.Fatal("the log never fills")
		return 0
	}
	t.Run("stream limit", func(t *testing.T) {
		srv, _ := serve(t, t.TempDir())
		nc := connect(t, srv)
		limited := func(bytes int64) *jsstore.Store {
			s, err := jsstore.Open(t.Context(), jsstore.Config{Conn: nc, MaxBytes: bytes})
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		s := limited(64 << 10)
		full := fill(t, s)
		if n := count(t, s); uint64(n) != full || n < 20 {
			t.Errorf("%d records can be read from the full log, %d were taken", n, full)
		}
		// A smaller limit loses nothing, a larger one helps.
		if n := count(t, limited(8<<10)); uint64(n) != full {
			t.Errorf("%d records after the limit was lowered, want %d", n, full)
		}
		mustAppend(t, limited(1<<20), full, decide("more"))
		if max := stream(t, nc).CachedInfo().Config.MaxBytes; max != 1<<20 {
			t.Errorf("limit is %d, want %d", max, 1<<20)
		}
		open(t, nc)
		if max := stream(t, nc).CachedInfo().Config.MaxBytes; max != -1 {
			t.Errorf("limit is %d, want none", max)
		}
	})
	t.Run("server limit", func(t *testing.T) {
		srv, _ := serve(t, t.TempDir(), func(o *server.Options) { o.JetStreamMaxStore = 256 << 10 })
		s := open(t, connect(t, srv))
		full := fill(t, s)
		if n := count(t, s); uint64(n) != full || n < 20 {
			t.Errorf("%d records can be read from the full log, %d were taken", n, full)
		}
	})
	t.Run("no room on the disk", func(t *testing.T) {
		srv, _ := serve(t, t.TempDir())
		var room error
		s, err := jsstore.Open(t.Context(), jsstore.Config{Conn: connect(t, srv), Room: func() error { return room }})
		if err != nil {
			t.Fatal(err)
		}
		mustAppend(t, s, 0, decide("first"))
		room = errors.New("1 MiB free")
		if _, err := s.Append(t.Context(), 1, decide("refused")); !errors.Is(err, events.ErrNoSpace) || !errors.Is(err, room) {
			t.Errorf("append without room: %v, want ErrNoSpace and why", err)
		}
		if n := count(t, s); n != 1 {
			t.Errorf("%d records, want 1", n)
		}
		room = nil
		mustAppend(t, s, 1, decide("second"))
	})
	t.Run("message too large", func(t *testing.T) {
		srv, _ := serve(t, t.TempDir())
		s := open(t, connect(t, srv))
		_, err := s.Append(t.Context(), 0, decide(strings.Repeat("x", 2<<20)))
		if !errors.Is(err, nats.ErrMaxPayload) || errors.Is(err, events.ErrUnavailable) || errors.Is(err, events.ErrNoSpace) {
			t.Errorf("Append of 2 MiB: %v, want nats.ErrMaxPayload", err)
		}
	})
}

// TestServerChecksRevisionBeforeID pins what Append relies on: a single server
// answers a repeated append, whose expectation is out of date by its own doing,
// with a conflict and not with a duplicate.
func TestServerChecksRevisionBeforeID(t *testing.T) {
	srv, _ := serve(t, t.TempDir())
	nc := connect(t, srv)
	open(t, nc)
	js := jetStream(t, nc)
	publish := func(expected uint64) (*jetstream.PubAck, error) {
		return js.Publish(t.Context(), string(subject), []byte("x"),
			jetstream.WithMsgID("one"), jetstream.WithExpectLastSequencePerSubject(expected))
	}
	if _, err := publish(0); err != nil {
		t.Fatal(err)
	}
	var api *jetstream.APIError
	if ack, err := publish(0); !errors.As(err, &api) || api.ErrorCode != jetstream.JSErrCodeStreamWrongLastSequence {
		t.Errorf("the same id with its own expectation: %+v, %v; want code %d", ack, err, jetstream.JSErrCodeStreamWrongLastSequence)
	}
	if ack, err := publish(1); err != nil || !ack.Duplicate || ack.Sequence != 1 {
		t.Errorf("the same id with an up-to-date expectation: %+v, %v; want a duplicate of 1", ack, err)
	}
}

// broker is a server that can be taken away and given back while a connection
// to it stays open.
type broker struct{ current atomic.Pointer[server.Server] }

func (b *broker) InProcessConn() (net.Conn, error) {
	if s := b.current.Load(); s != nil {
		return s.InProcessConn()
	}
	return nil, errors.New("no server")
}

func TestUnavailable(t *testing.T) {
	dir := t.TempDir()
	b := &broker{}
	srv, stop := serve(t, dir)
	b.current.Store(srv)
	nc, err := nats.Connect("", nats.InProcessServer(b), nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond), quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	s := open(t, nc)
	first := mustAppend(t, s, 0, decide("a"))

	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	followed := make(chan uint64, 100)
	ended := make(chan error, 1)
	go func() {
		defer close(followed)
		for r, err := range s.Follow(ctx, events.Filter{}) {
			if err != nil {
				ended <- err
				return
			}
			followed <- r.Position
		}
	}()
	if p := <-followed; p != first {
		t.Fatalf("followed %d, want %d", p, first)
	}

	b.current.Store(nil)
	stop()
	d := decide("b")
	short, cancelShort := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancelShort()
	if _, err := s.Append(short, first, d); !errors.Is(err, events.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Append without a server: %v, want ErrUnavailable and the context's error", err)
	}

	srv, _ = serve(t, dir)
	b.current.Store(srv)
	// Whether it was written before or is now, it is there once.
	a, err := s.Append(ctx, first, d)
	if err != nil || a.Position != first+1 {
		t.Fatalf("Append again: %+v, %v", a, err)
	}
	for want := first + 1; want < first+10; want++ {
		if p := <-followed; p != want {
			t.Fatalf("followed %d after the server came back, want %d", p, want)
		}
		mustAppend(t, s, want, decide("more"))
	}
	nc.Close()
	for range followed {
		continue
	}
	if err := <-ended; !errors.Is(err, events.ErrUnavailable) {
		t.Errorf("Follow on a closed connection: %v, want ErrUnavailable", err)
	}
	if _, err := s.Last(t.Context()); !errors.Is(err, events.ErrUnavailable) {
		t.Errorf("Last on a closed connection: %v, want ErrUnavailable", err)
	}
}

// TestFollowReplacesItsConsumer takes the consumer away from a follower.
func TestFollowReplacesItsConsumer(t *testing.T) {
	srv, _ := serve(t, t.TempDir())
	nc := connect(t, srv)
	s := open(t, nc)
	ev := stream(t, nc)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	rev := mustAppend(t, s, 0, decide("a"))
	want := uint64(1)
	for r, err := range s.Follow(ctx, events.Filter{}) {
		if err != nil {
			t.Fatal(err)
		}
		if r.Position != want {
			t.Fatalf("followed %d, want %d", r.Position, want)
		}
		if want++; want > 4 {
			break
		}
		for name := range ev.ConsumerNames(ctx).Name() {
			if err := ev.DeleteConsumer(ctx, name); err != nil {
				t.Fatal(err)
			}
		}
		rev = mustAppend(t, s, rev, decide("b"))
	}
}

// TestFollowersHaveALimit holds Follow against the server's limit on consumers:
// it says so, and does not wait for ever.
func TestFollowersHaveALimit(t *testing.T) {
	srv, _ := serve(t, t.TempDir(), func(o *server.Options) { o.JetStreamLimits.DefaultMaxConsumers = 1 })
	s := open(t, connect(t, srv))
	mustAppend(t, s, 0, decide("a"))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for _, err := range s.Follow(ctx, events.Filter{}) {
		if err != nil {
			t.Fatal(err)
		}
		var api *jetstream.APIError
		for _, err := range s.Follow(ctx, events.Filter{}) {
			if !errors.As(err, &api) || api.ErrorCode != jetstream.JSErrCodeMaximumConsumersLimit {
				t.Errorf("a second follower: %v, want the limit of consumers", err)
			}
		}
		break
	}
}

func TestUndecodable(t *testing.T) {
	srv, _ := serve(t, t.TempDir())
	nc := connect(t, srv)
	s := open(t, nc)
	mustAppend(t, s, 0, decide("a"))
	if _, err := jetStream(t, nc).Publish(t.Context(), string(subject), []byte("{")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for name, seq := range map[string]func(func(events.Record, error) bool){
		"Load": s.Load(ctx, subject, 0), "Read": s.Read(ctx, events.Filter{}), "Follow": s.Follow(ctx, events.Filter{}),
	} {
		var last error
		n := 0
		for _, err := range seq {
			n++
			last = err
		}
		if n != 2 || last == nil || !strings.Contains(last.Error(), "position 2") {
			t.Errorf("%s of an undecodable record: %d yields, %v; want the record before it and an error that names its position", name, n, last)
		}
	}
}

// TestNothingIsLeftBehind ends sequences in every way and looks for what they
// used.
func TestNothingIsLeftBehind(t *testing.T) {
	srv, _ := serve(t, t.TempDir())
	nc := connect(t, srv)
	s := open(t, nc)
	rev := uint64(0)
	for i := range 30 {
		rev = mustAppend(t, s, rev, decide(fmt.Sprint(i)))
	}
	ev := stream(t, nc)
	subs, routines := nc.NumSubscriptions(), runtime.NumGoroutine()
	for range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		for _, seq := range []func(func(events.Record, error) bool){
			s.Load(ctx, subject, 0),
			s.Read(ctx, events.Filter{}),
			s.Read(ctx, events.Filter{Subjects: []string{"ev.*.*", string(subject)}}),
			s.Follow(ctx, events.Filter{}),
		} {
			for r, err := range seq {
				if err != nil {
					t.Fatal(err)
				}
				if r.Position == 3 {
					break
				}
			}
		}
		for _, err := range s.Follow(ctx, events.Filter{}) {
			cancel()
			if err != nil && !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
		}
		cancel()
	}
	eventually(t, func() error {
		var names []string
		for name := range ev.ConsumerNames(t.Context()).Name() {
			names = append(names, name)
		}
		switch n, r := nc.NumSubscriptions(), runtime.NumGoroutine(); {
		case len(names) > 0:
			return fmt.Errorf("%d consumers are left", len(names))
		case n > subs+1: // the listing above has one
			return fmt.Errorf("%d subscriptions, %d before", n, subs)
		case r > routines+2:
			return fmt.Errorf("%d goroutines, %d before", r, routines)
		}
		return nil
	})
}

func eventually(t *testing.T, check func() error) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal(err)
		}
	}
}

func TestOpenTogether(t *testing.T) {
	// Two managers open the log at once.
	srv, _ := serve(t, t.TempDir())
	errs := make(chan error, 8)
	for range cap(errs) {
		nc := connect(t, srv)
		go func() {
			_, err := jsstore.Open(t.Context(), jsstore.Config{Conn: nc, MaxBytes: 1 << 20})
			errs <- err
		}()
	}
	var failed []error
	for range cap(errs) {
		if err := <-errs; err != nil {
			failed = append(failed, err)
		}
	}
	if len(failed) > 0 {
		t.Errorf("%d of %d did not open: %v", len(failed), cap(errs), slices.Compact(failed))
	}
}
