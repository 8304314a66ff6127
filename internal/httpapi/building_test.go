package httpapi_test

import (
	"context"
	"iter"
	"net/http"
	"strings"
	"testing"
	"time"

	"pallas/events"
)

// gate is a log whose records do not come before it is opened.
type gate struct {
	events.Store
	open chan struct{}
}

func (g gate) Follow(ctx context.Context, f events.Filter) iter.Seq2[events.Record, error] {
	return func(yield func(events.Record, error) bool) {
		select {
		case <-g.open:
		case <-ctx.Done():
			yield(events.Record{}, ctx.Err())
			return
		}
		g.Store.Follow(ctx, f)(yield)
	}
}

// TestBuilding asks a manager whose read model is being built from the log: a
// part of the fleet must not be taken for all of it.
func TestBuilding(t *testing.T) {
	g := gate{open: make(chan struct{})}
	m := start(t, func(o *options) {
		o.store = func(s events.Store) events.Store {
			id := events.DeviceID("6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f")
			_, err := s.Append(t.Context(), 0, events.Decision{
				ID: events.ID(events.NewID()), Subject: events.DeviceSubject(id), Time: time.Now().UTC().Truncate(time.Microsecond),
				Actor: "system:test", Entries: []events.Entry{{Event: events.DeviceRegistered{Device: id, Name: "esx", AgentVersion: "1"}}},
			})
			must(t, err)
			g.Store = s
			return g
		}
	})
	if a := m.do("GET", "/api/v1/devices", ""); a.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("got %d, want 503", a.StatusCode)
	} else if p := a.problem(t); p.Type != "urn:pallas:problem:behind" || !strings.Contains(p.Detail, "position 0 of 1") {
		t.Errorf("got %+v", p)
	}
	for _, path := range []string{"/readyz", "/api/v1/status"} {
		want := map[string]int{"/readyz": 503, "/api/v1/status": 200}[path]
		if a := m.do("GET", path, ""); a.StatusCode != want {
			t.Errorf("%s: got %d, want %d", path, a.StatusCode, want)
		}
	}
	close(g.open)
	if a := m.do("GET", "/api/v1/devices", ""); a.StatusCode != http.StatusOK || !strings.Contains(string(a.body), `"esx"`) {
		t.Errorf("got %d %s", a.StatusCode, a.body)
	}
}
