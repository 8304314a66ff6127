package jsstore_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"pallas/events"
	"pallas/events/eventstest"
	"pallas/events/jsstore"
)

// serve runs a server on the directory until the test ends, or stop is called.
func serve(t testing.TB, dir string, change ...func(*server.Options)) (s *server.Server, stop func()) {
	t.Helper()
	opts := &server.Options{
		ServerName: "test", JetStream: true, StoreDir: dir, DontListen: true, NoSigs: true, NoLog: true,
	}
	for _, c := range change {
		c(opts)
	}
	s, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	stop = func() {
		s.Shutdown()
		s.WaitForShutdown()
	}
	t.Cleanup(stop)
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the server does not start")
	}
	return s, stop
}

func connect(t testing.TB, s *server.Server) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect("", nats.InProcessServer(s), nats.MaxReconnects(-1), quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// quiet keeps nats.go from writing to stderr that a server went away.
var quiet = nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})

func open(t testing.TB, nc *nats.Conn) *jsstore.Store {
	t.Helper()
	s, err := jsstore.Open(t.Context(), jsstore.Config{Conn: nc})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStore(t *testing.T) {
	eventstest.TestStore(t, func(t *testing.T) events.Store {
		s, _ := serve(t, t.TempDir())
		return open(t, connect(t, s))
	})
}

// expiring is a context that ends after its end was asked for so many times.
type expiring struct {
	context.Context
	left int
}

func (c *expiring) Err() error {
	if c.left--; c.left < 0 {
		return context.Canceled
	}
	return nil
}

// TestLoadBreaksOff ends a load at each of its steps: what is said then is why,
// not that the log is damaged.
func TestLoadBreaksOff(t *testing.T) {
	srv, _ := serve(t, t.TempDir())
	s := open(t, connect(t, srv))
	subject := events.DeviceSubject("6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f")
	const n = 5
	var last uint64
	for range n {
		a, err := s.Append(t.Context(), last, benchDecision(subject))
		if err != nil {
			t.Fatal(err)
		}
		last = a.Position
	}
	for steps := 0; ; steps++ {
		got := 0
		var failed error
		for _, err := range s.Load(&expiring{t.Context(), steps}, subject, 0) {
			if failed = err; err == nil {
				got++
			}
		}
		switch {
		case failed == nil && got == n:
			if steps < n {
				t.Errorf("a load asked only %d times whether it should end", steps)
			}
			return
		case !errors.Is(failed, context.Canceled):
			t.Fatalf("after %d steps: %d records, %v; want the context's end", steps, got, failed)
		case steps > 100:
			t.Fatal("it never ends well")
		}
	}
}
