package servertest

import (
	"log/slog"
	"path/filepath"
	"testing"

	"pallas/events"
	"pallas/events/jsstore"
	"pallas/mqttgw"
	"pallas/projections"
)

// OpenLog opens the event log of a manager that does not run, without any
// listener, until the test ends or close is called.
func (m *Manager) OpenLog() (store events.Store, done func()) {
	m.t.Helper()
	b, err := mqttgw.NewBroker(mqttgw.BrokerConfig{Dir: filepath.Join(m.Config.DataDir, "nats")})
	if err != nil {
		m.t.Fatal(err)
	}
	if err := b.Start(m.t.Context()); err != nil {
		m.t.Fatal(err)
	}
	conn, err := b.Conn("test")
	if err != nil {
		b.Shutdown()
		m.t.Fatal(err)
	}
	s, err := jsstore.Open(m.t.Context(), jsstore.Config{Conn: conn})
	if err != nil {
		b.Shutdown()
		m.t.Fatal(err)
	}
	return s, func() { conn.Close(); b.Shutdown() }
}

// Records returns everything in a log.
func Records(t testing.TB, s events.Store) (out []events.Record) {
	t.Helper()
	for r, err := range s.Read(t.Context(), events.Filter{}) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, r)
	}
	return out
}

// RebuiltHash builds a read model from nothing and returns the hash of its
// contents; LiveHash returns that of the one the manager left behind.
func (m *Manager) RebuiltHash(s events.Store) string {
	m.t.Helper()
	path := filepath.Join(m.t.TempDir(), "rebuilt.db")
	if _, err := projections.Rebuild(m.t.Context(), path, s); err != nil {
		m.t.Fatal(err)
	}
	return hashOf(m.t, path)
}

// LiveHash returns the hash of the read model that the manager left behind.
func (m *Manager) LiveHash() string {
	m.t.Helper()
	return hashOf(m.t, filepath.Join(m.Config.DataDir, "readmodel.db"))
}

func hashOf(t testing.TB, path string) string {
	t.Helper()
	db, err := projections.Open(t.Context(), projections.Config{Path: path, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	h, err := db.Hash(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return h
}
