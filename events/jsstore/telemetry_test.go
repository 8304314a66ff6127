package jsstore_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"

	"pallas/events"
	"pallas/events/jsstore"
	"pallas/events/telemetry"
)

func TestTelemetry(t *testing.T) {
	dir := t.TempDir()
	srv, stop := serve(t, dir)
	nc := connect(t, srv)
	full := false
	cfg := jsstore.TelemetryConfig{Conn: nc, MaxAge: time.Hour, MaxBytes: 1 << 20, Room: func() error {
		if full {
			return errors.New("no room")
		}
		return nil
	}}
	tm, err := jsstore.OpenTelemetry(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, at, err := tm.NextUsage(t.Context(), 0); at != 0 || err != nil {
		t.Errorf("nothing written: position %d, %v", at, err)
	}
	u := telemetry.Usage{Day: "2026-11-23", Devices: []telemetry.DeviceBytes{{Device: "6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f", Bytes: telemetry.Bytes{Received: 5, Sent: 6}}}}
	for range 2 { // the second is a repeat
		if err := tm.AppendUsage(t.Context(), "a", u); err != nil {
			t.Fatal(err)
		}
	}
	full = true
	if err := tm.AppendUsage(t.Context(), "b", u); !errors.Is(err, events.ErrNoSpace) {
		t.Errorf("without room: %v", err)
	}
	full = false
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "tm.usage", []byte("nonsense")); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "tm.host.x", []byte("of another kind")); err != nil {
		t.Fatal(err)
	}
	u.Day = "2026-11-24"
	if err := tm.AppendUsage(t.Context(), "b", u); err != nil {
		t.Fatal(err)
	}
	made, last, err := tm.Bounds(t.Context())
	if err != nil || made.IsZero() || last != 4 {
		t.Errorf("stream of %v ends at %d, %v", made, last, err)
	}

	// Another start, with other limits, finds the same stream.
	stop()
	srv, _ = serve(t, dir)
	cfg.Conn, cfg.MaxAge, cfg.MaxBytes = connect(t, srv), time.Minute, 0
	if tm, err = jsstore.OpenTelemetry(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if again, last, err := tm.Bounds(t.Context()); err != nil || !again.Equal(made) || last != 4 {
		t.Errorf("stream of %v ends at %d, %v; it was made %v", again, last, err, made)
	}
	got, at, err := tm.NextUsage(t.Context(), 0)
	if err != nil || at != 1 || got.Day != "2026-11-23" {
		t.Errorf("first usage is %+v at %d, %v", got, at, err)
	}
	if _, at, err = tm.NextUsage(t.Context(), 1); err == nil || at != 2 {
		t.Errorf("nonsense was read at %d, %v", at, err)
	}
	got, at, err = tm.NextUsage(t.Context(), 2)
	if d := cmp.Diff(u, got); err != nil || at != 4 || d != "" {
		t.Errorf("usage at %d, %v (-want +got):\n%s", at, err, d)
	}
	if _, at, err = tm.NextUsage(t.Context(), 4); at != 0 || err != nil {
		t.Errorf("after the last: position %d, %v", at, err)
	}
}
