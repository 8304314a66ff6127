package queryhttp

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pallas/events"
	"pallas/events/eventstest"
)

// sink is a client of a stream. It reads nothing while it is held.
type sink struct {
	mu   sync.Mutex
	b    bytes.Buffer
	n    int           // events
	held chan struct{} // closed or nil: it reads
}

func (s *sink) Header() http.Header              { return http.Header{} }
func (s *sink) WriteHeader(int)                  {}
func (s *sink) FlushError() error                { return nil }
func (s *sink) SetWriteDeadline(time.Time) error { return nil }
func (s *sink) String() string                   { s.mu.Lock(); defer s.mu.Unlock(); return s.b.String() }

func (s *sink) Write(p []byte) (int, error) {
	if s.held != nil && !bytes.HasPrefix(p, []byte("retry: 2000")) {
		<-s.held
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n += bytes.Count(p, []byte("\ndata: "))
	return s.b.Write(p)
}

var idLine = regexp.MustCompile(`(?m)^id: (\S+)$`)

func (s *sink) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n
}

// ids returns the ids that the client has.
func (s *sink) ids() (out []string) {
	for _, m := range idLine.FindAllStringSubmatch(s.String(), -1) {
		out = append(out, m[1])
	}
	return out
}

// listen streams to a client until it is sent away or left is called.
func (h *Handlers) listen(t *testing.T, after uint64, held chan struct{}) (s *sink, ended chan struct{}, leave func()) {
	t.Helper()
	s, ended = &sink{held: held}, make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer close(ended)
		defer func() { _ = recover() }() // an answer that is cut off
		h.stream(ctx, s, eventQuery{sight: sight{all: true}, after: place{after, all}})
	}()
	return s, ended, func() { cancel(); <-ended }
}

func handlers() (*Handlers, *eventstest.Memory) {
	store := eventstest.NewMemory()
	return &Handlers{cfg: Config{Store: store, Heartbeat: time.Hour}, tail: tail{store: store}, reading: make(chan struct{}, 1)}, store
}

// revoke appends n decisions of one event.
func revoke(t *testing.T, store *eventstest.Memory, n int) {
	t.Helper()
	for range n {
		d := events.Decision{
			ID: events.ID(events.NewID()), Subject: events.TokenSubject(events.TokenID(events.NewID())), Time: time.Unix(1, 0).UTC(), Actor: "user:test",
			Entries: []events.Entry{{Event: events.JoinTokenRevoked{}}},
		}
		if _, err := store.Append(t.Context(), 0, d); err != nil {
			t.Fatal(err)
		}
	}
}

func numbers(from, to int) (out []string) {
	for i := from; i <= to; i++ {
		out = append(out, fmt.Sprint(i))
	}
	return out
}

// until waits for something that must happen.
func until(t *testing.T, what string, ok func() bool) bool {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	timeout := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-timeout:
			t.Errorf("not in time: %s", what)
			return false
		}
	}
	return true
}

// A client that does not read is sent away with bounded memory taken, the
// others get everything, and it goes on where it was.
func TestSlowStream(t *testing.T) {
	h, store := handlers()
	revoke(t, store, 10)
	held := make(chan struct{})
	slow, sent, _ := h.listen(t, 0, held)
	fast, _, leave := h.listen(t, 10, nil)
	until(t, "both listen", func() bool {
		h.tail.mu.Lock()
		defer h.tail.mu.Unlock()
		return h.tail.live != nil && len(h.tail.live.streams) == 2
	})
	total := 10
	for ; total < 10+3*streamBuffer; total += 100 {
		revoke(t, store, 100)
		until(t, "the fast one has it", func() bool { return fast.count() == total+100-10 })
	}
	if diff := cmp.Diff(numbers(11, total), fast.ids()); diff != "" {
		t.Errorf("the fast one got (-want +got):\n%s", diff)
	}
	close(held)
	<-sent
	if !strings.HasSuffix(slow.String(), slowRetry) {
		t.Error("the slow one was not told to come back")
	}
	got := slow.ids()
	if n := len(got); n < streamBuffer || n > streamBuffer+10+1 {
		t.Errorf("the slow one got %d events, want what was buffered", n)
	}
	again, _, leaveAgain := h.listen(t, uint64(len(got)), nil)
	until(t, "it has caught up", func() bool { return len(got)+again.count() == total })
	revoke(t, store, 1)
	until(t, "both go on", func() bool { return len(got)+again.count() == total+1 && fast.count() == total+1-10 })
	if diff := cmp.Diff(numbers(1, total+1), append(got, again.ids()...)); diff != "" {
		t.Errorf("together the slow one got (-want +got):\n%s", diff)
	}
	leave()
	leaveAgain()
	if h.tail.live != nil {
		t.Error("the log is followed although nobody listens")
	}
}

// Clients come and go while events are written; each gets exactly
// what happened meanwhile.
func TestStreamsComeAndGo(t *testing.T) {
	h, store := handlers()
	const total = 200
	var clients sync.WaitGroup
	for i := range 20 {
		after := i * 10
		clients.Go(func() {
			var got []string
			for last := after; last < total; {
				s, _, leave := h.listen(t, uint64(last), nil)
				came := until(t, "something comes", func() bool { return s.count() > 0 })
				leave()
				if !came {
					return
				}
				got = append(got, s.ids()...)
				last = after + len(got)
			}
			if diff := cmp.Diff(numbers(after+1, total), got); diff != "" {
				t.Errorf("from %d (-want +got):\n%s", after, diff)
			}
		})
	}
	revoke(t, store, total)
	clients.Wait()
}

// What breaks the log's following ends the streams, so that their clients come
// back.
func TestStreamsEndWithTheLog(t *testing.T) {
	h, store := handlers()
	s, err := h.tail.join(t.Context(), eventQuery{sight: sight{all: true}})
	if err != nil {
		t.Fatal(err)
	}
	s.of.cancel()
	if _, ok := <-s.found; ok || s.err == nil {
		t.Errorf("ended with %v", s.err)
	}
	h.tail.leave(s)
	next, err := h.tail.join(t.Context(), eventQuery{sight: sight{all: true}})
	if err != nil {
		t.Fatal(err)
	}
	revoke(t, store, 1)
	if it := <-next.found; it.Position != 1 {
		t.Errorf("position %d", it.Position)
	}
	h.tail.leave(next)
}
