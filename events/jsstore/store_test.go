package jsstore_test

import (
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
