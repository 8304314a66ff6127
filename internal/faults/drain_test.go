package faults_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
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

// TestSecondSignal holds a stop up with a request that does not come to its
// end, and asks again: the manager ends at once.
func TestSecondSignal(t *testing.T) {
	w := newManager(t)
	c, err := (&tls.Dialer{Config: w.m.TLS()}).DialContext(t.Context(), "tcp", w.m.Config.HTTP.Listen)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := fmt.Fprintf(c, "POST /api/v1/join-tokens HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n"+
		"Content-Type: application/json\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n", w.m.Token); err != nil {
		t.Fatal(err)
	}
	// The answer to Expect says that the request is under way.
	want := []byte("HTTP/1.1 100")
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%q, %v, want the wish to go on", got, err)
	}
	w.manager.signal(syscall.SIGTERM)
	servertest.Eventually(t, 30*time.Second, func() error {
		if !strings.Contains(w.manager.tail(100), "device manager stops") {
			return servertest.ErrNotYet
		}
		return nil
	})
	// Signals that follow at once may count as the first.
	servertest.Eventually(t, 30*time.Second, func() error {
		if len(w.manager.surprises()) > 0 {
			return nil
		}
		w.manager.signal(syscall.SIGTERM)
		return servertest.ErrNotYet
	})
	if how := w.manager.surprises()[0]; how != "signal: terminated" {
		t.Errorf("the manager ended with %q, want the signal to end it", how)
	}
	w.wellAgain("a second signal")
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
