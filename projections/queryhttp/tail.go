package queryhttp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"sync"

	"pallas/events"
	"pallas/internal/httpapi"
	"pallas/projections"
)

// streamBuffer is how many decisions may wait for a client that reads slower
// than they come. One that has more is sent away, and comes back with the id of
// the last event that it received.
const streamBuffer = 1024

// errSlow ends a stream whose client does not keep up.
var errSlow = errors.New("the client reads slower than events come")

// tail follows the end of the log once for all streams together, so that
// another client costs no other reading and encoding.
type tail struct {
	store events.Store
	db    *projections.DB // tells labels, for streams that see only some of the events

	mu   sync.Mutex
	live *following // nil while nobody listens
}

// following is one run of a tail. Its fields are guarded by tail.mu.
type following struct {
	cancel   context.CancelFunc
	done     chan struct{}
	position uint64 // of the newest decision that the streams have heard of
	register *register
	streams  map[*stream]struct{}
}

// stream is what one client is to get of the tail.
type stream struct {
	query eventQuery
	of    *following
	start uint64     // every decision after it comes
	found chan *item // closed at the end
	err   error      // of the end
}

// item is a decision with its events in JSON, shared by all streams.
type item struct {
	events.Record
	encode func() ([][]byte, error) // once
}

func newItem(r events.Record) *item {
	return &item{r, sync.OnceValues(func() ([][]byte, error) {
		out := make([][]byte, len(r.Entries))
		for i := range r.Entries {
			e, err := httpapi.EventOf(r, i)
			if err != nil {
				return nil, err
			}
			if out[i], err = json.Marshal(e); err != nil {
				return nil, fmt.Errorf("encode event at position %d: %w", r.Position, err)
			}
		}
		return out, nil
	})}
}

// join begins a stream. Each must be left.
func (t *tail) join(ctx context.Context, q eventQuery) (*stream, error) {
	q.last = math.MaxUint64
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.live == nil {
		last, err := t.store.Last(ctx)
		if err != nil {
			return nil, err
		}
		// It outlives this client, and ends with the last one.
		run, cancel := context.WithCancel(context.WithoutCancel(ctx))
		f := &following{cancel: cancel, done: make(chan struct{}), position: last, register: newRegister(t.db, last, registerSize), streams: map[*stream]struct{}{}}
		t.live = f
		go func() {
			defer close(f.done)
			t.end(f, t.run(run, f))
		}()
	}
	s := &stream{query: q, of: t.live, start: t.live.position, found: make(chan *item, streamBuffer)}
	t.live.streams[s] = struct{}{}
	return s, nil
}

// leave ends a stream.
func (t *tail) leave(s *stream) {
	t.mu.Lock()
	s.close(nil)
	f := s.of
	last := len(f.streams) == 0
	if last && t.live == f {
		t.live = nil
	}
	t.mu.Unlock()
	if last {
		f.cancel()
		<-f.done
	}
}

// close takes the stream out. tail.mu is held.
func (s *stream) close(err error) {
	if _, ok := s.of.streams[s]; ok {
		delete(s.of.streams, s)
		s.err = err
		close(s.found)
	}
}

// end closes the streams of a run that came to its end.
func (t *tail) end(f *following, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.live == f {
		t.live = nil
	}
	for s := range f.streams {
		s.close(err)
	}
	f.cancel()
}

// run hands out the decisions as they come. It never waits for a client.
func (t *tail) run(ctx context.Context, f *following) error {
	for r, err := range t.store.Follow(ctx, events.Filter{After: f.position}) {
		if err != nil {
			return fmt.Errorf("follow events: %w", err)
		}
		f.register.note(r)
		it, kind := newItem(r), r.Subject.Kind()
		var unsure []*stream // whose scope must hold the labels
		t.mu.Lock()
		f.position = r.Position
		for s := range f.streams {
			if !s.query.picks(r) {
				continue
			}
			switch v, _ := s.query.sight.of(kind); v {
			case seen:
				s.offer(it)
			case byLabels:
				unsure = append(unsure, s)
			case hidden:
			}
		}
		t.mu.Unlock()
		if len(unsure) > 0 {
			t.judge(ctx, f, unsure, it)
		}
	}
	return ctx.Err()
}

// judge offers an item to those streams whose scope holds the labels. Where the
// labels cannot be told it ends the streams: it must not show too much, nor
// leave anything out.
func (t *tail) judge(ctx context.Context, f *following, unsure []*stream, it *item) {
	m, err := f.register.labels(ctx, it.Subject) // may take a moment: not under mu
	kind := it.Subject.Kind()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range unsure {
		_, scope := s.query.sight.of(kind)
		switch _, here := f.streams[s]; {
		case !here:
		case err != nil:
			s.close(fmt.Errorf("who may see %s: %w", it.Subject, err))
		case m != nil && scope.Match(m):
			s.offer(it)
		}
	}
}

// offer hands an item to a stream that is not closed, or ends it when it does
// not keep up. tail.mu is held.
func (s *stream) offer(it *item) {
	select {
	case s.found <- it:
	default:
		s.close(errSlow)
	}
}

// picks says whether an event of the record is asked for.
func (q *eventQuery) picks(r events.Record) bool {
	if !(events.Filter{Subjects: q.subjects}).Match(r.Subject) {
		return false
	}
	for n := 1; n <= len(r.Entries); n++ {
		if q.matches(r, n) {
			return true
		}
	}
	return false
}

// appendSSE appends the events of one decision that are asked for. The id of
// the last one is the position alone, so that a client counts positions; the
// others' ids say how far into the decision they are.
func (q *eventQuery) appendSSE(b []byte, it *item) ([]byte, error) {
	data, err := it.encode()
	if err != nil {
		return b, err
	}
	last := 0
	for n := len(data); n >= 1 && last == 0; n-- {
		if q.matches(it.Record, n) {
			last = n
		}
	}
	for n := 1; n <= last; n++ {
		if !q.matches(it.Record, n) {
			continue
		}
		b = append(b, "id: "...)
		b = strconv.AppendUint(b, it.Position, 10)
		if n != last {
			b = append(b, '.')
			b = strconv.AppendInt(b, int64(n), 10)
		}
		b = append(b, "\ndata: "...)
		b = append(b, data[n-1]...) // JSON has no line breaks
		b = append(b, "\n\n"...)
	}
	return b, nil
}
