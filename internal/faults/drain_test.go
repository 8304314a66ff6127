package faults_test

import (
	"context"
	"io"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"time"

	"pallas/internal/servertest"
)

// TestDrain stops a busy manager as an operator does, several times: it ends
// well, ends what it owes, and nobody notices but by a short silence.
func TestDrain(t *testing.T) {
	const restarts = 5
	w := newWeather(t)
	ctx, cancel := context.WithCancel(t.Context())
	var load sync.WaitGroup
	for i := range fleets * perFleet {
		load.Go(func() { w.books.work(ctx, i) })
	}
	for n := range restarts {
		stream := w.follow(t)
		w.manager.signal(syscall.SIGTERM)
		servertest.Eventually(t, 30*time.Second, func() error {
			if len(w.manager.surprises()) <= n {
				return servertest.ErrNotYet
			}
			return nil
		})
		if how := w.manager.surprises()[n]; how != "<nil>" {
			t.Errorf("the manager ended with %s, want success\n%s", how, w.manager.tail(20))
		}
		if err := <-stream; err != nil {
			t.Errorf("a stream of events broke off: %v, want its end", err)
		}
		w.wellAgain("a restart")
	}
	cancel()
	load.Wait()
	w.calm()
	w.check(map[string]int{"restart": restarts})
}

// follow reads the live events, and tells how that ended.
func (w *weather) follow(t *testing.T) <-chan error {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+w.m.Config.HTTP.Listen+"/api/v1/events/stream", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+w.m.Token)
	r, err := (&http.Client{Transport: &http.Transport{TLSClientConfig: w.m.TLS(), DisableKeepAlives: true}}).Do(req) //nolint:bodyclose // whoever reads it closes it
	if err != nil || r.StatusCode != http.StatusOK {
		t.Fatalf("follow events: %v, %v", r, err)
	}
	ended := make(chan error, 1)
	go func() {
		defer r.Body.Close()
		_, err := io.Copy(io.Discard, r.Body)
		ended <- err
	}()
	return ended
}
