package jsstore

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pallas/events"
)

const (
	// A page is what one request to the server brings: at most so many
	// messages, and no further message once it has so many bytes.
	pageMessages = 1000
	pageBytes    = 4 << 20
	firstPage    = 250
	// maxMerged is up to how many filter subjects are read each on its own.
	// With more of them the whole log is read and filtered here.
	maxMerged = 16
)

// directGet is JetStream's interface to read messages without a consumer: it
// leaves nothing behind in the server.
const directGet = "$JS.API.DIRECT.GET." + streamName

// request is the body of a direct get (nats-server, JSApiMsgGetRequest).
type request struct {
	Seq       uint64     `json:"seq,omitempty"`
	LastFor   string     `json:"last_by_subj,omitempty"`
	NextFor   string     `json:"next_by_subj,omitempty"`
	StartTime *time.Time `json:"start_time,omitempty"`
	Batch     int        `json:"batch,omitempty"`
	MaxBytes  int        `json:"max_bytes,omitempty"`
}

// message is a stored decision, not yet decoded.
type message struct {
	position uint64
	subject  events.Subject
	id       string
	header   nats.Header
	data     []byte
}

func (m message) record() (events.Record, error) {
	d, err := events.Decode(m.subject, m.data)
	if err != nil {
		return events.Record{}, fmt.Errorf("position %d of %s: %w", m.position, m.subject, err)
	}
	return events.Record{Decision: d, Position: m.position}, nil
}

// start is where reading begins: behind a position, or at an instant.
type start struct {
	after uint64
	since time.Time
}

func startOf(f events.Filter) start {
	if f.After > 0 {
		return start{after: f.After}
	}
	return start{since: f.Since}
}

// Load implements [events.Store]. Its cost is that of the records it yields,
// however long the log is: a round trip for each, up to maxLinks of them.
func (s *Store) Load(ctx context.Context, subject events.Subject, after uint64) iter.Seq2[events.Record, error] {
	if err := subject.Validate(); err != nil {
		return failed(fmt.Errorf("load: %w", err))
	}
	return records("load "+string(subject), s.aggregate(ctx, subject, after))
}

// Read implements [events.Store]. For a few literal subjects, or patterns with
// a literal id, its cost is that of [Store.Load]; else that of the stretch of
// the log it goes through.
func (s *Store) Read(ctx context.Context, f events.Filter) iter.Seq2[events.Record, error] {
	if err := f.Validate(); err != nil {
		return failed(fmt.Errorf("read: %w", err))
	}
	return records("read", s.selected(ctx, f))
}

func failed(err error) iter.Seq2[events.Record, error] {
	return func(yield func(events.Record, error) bool) { yield(events.Record{}, err) }
}

// records decodes messages; the first error ends the sequence.
func records(doing string, messages iter.Seq2[message, error]) iter.Seq2[events.Record, error] {
	return func(yield func(events.Record, error) bool) {
		for m, err := range messages {
			var r events.Record
			if err == nil {
				r, err = m.record()
			}
			if err != nil {
				yield(events.Record{}, fmt.Errorf("%s: %w", doing, err))
				return
			}
			if !yield(r, nil) {
				return
			}
		}
	}
}

// aggregate yields what the log holds of one aggregate when the iteration
// starts.
func (s *Store) aggregate(ctx context.Context, subject events.Subject, after uint64) iter.Seq2[message, error] {
	return func(yield func(message, error) bool) {
		found, whole, err := s.linked(ctx, subject, start{after: after}, 0)
		if err == nil && !whole {
			var end uint64
			if end, err = s.Last(ctx); err == nil {
				s.until(ctx, string(subject), start{after: after}, end, yield)
				return
			}
		}
		each(ctx, found, err, yield)
	}
}

// selected yields what the log holds of the filter's subjects when the
// iteration starts.
func (s *Store) selected(ctx context.Context, f events.Filter) iter.Seq2[message, error] {
	return func(yield func(message, error) bool) {
		end, err := s.Last(ctx)
		if err != nil {
			yield(message{}, err)
			return
		}
		if end == 0 {
			return // nothing was there when the iteration began
		}
		from := startOf(f)
		patterns := slices.Compact(slices.Sorted(slices.Values(f.Subjects)))
		switch n := len(patterns); {
		case n == 0:
			s.until(ctx, "", from, end, yield)
			return
		case n > maxMerged:
			s.until(ctx, "", from, end, func(m message, err error) bool {
				return err == nil && !f.Match(m.subject) || yield(m, err)
			})
			return
		}
		found, whole, err := s.allLinked(ctx, patterns, from, end)
		switch {
		case err != nil || whole:
			each(ctx, found, err, yield)
		case len(patterns) == 1:
			s.until(ctx, patterns[0], from, end, yield)
		default:
			s.merged(ctx, patterns, from, end, yield)
		}
	}
}

// each yields the messages, or the error.
func each(ctx context.Context, found []message, err error, yield func(message, error) bool) {
	for _, m := range found {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil || !yield(m, nil) {
			break
		}
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		yield(message{}, err)
	}
}

// until yields the messages up to the position.
func (s *Store) until(ctx context.Context, subject string, from start, end uint64, yield func(message, error) bool) {
	after := from.after
	if after >= end {
		return
	}
	sub, err := s.subscribe()
	if err != nil {
		yield(message{}, err)
		return
	}
	defer unsubscribe(sub)
	for more, batch := true, firstPage; more && after < end; batch = pageMessages {
		r := request{Seq: after + 1, NextFor: subject, Batch: batch, MaxBytes: pageBytes}
		if after == 0 && !from.since.IsZero() {
			r.Seq, r.StartTime = 0, &from.since
		}
		var page []message
		if page, more, err = s.page(ctx, sub, r); err != nil {
			yield(message{}, err)
			return
		}
		for _, m := range page {
			if m.position > end {
				return
			}
			if subject == "" && after > 0 && m.position != after+1 {
				yield(message{}, fmt.Errorf("event log is damaged: position %d follows %d", m.position, after))
				return
			}
			after = m.position
			if err := ctx.Err(); err != nil {
				yield(message{}, err)
				return
			}
			if !yield(m, nil) {
				return
			}
		}
	}
}

// merged yields the messages of several patterns in the order of their
// positions, each once.
func (s *Store) merged(ctx context.Context, patterns []string, from start, end uint64, yield func(message, error) bool) {
	type source struct {
		head message
		next func() (message, error, bool)
	}
	var sources []*source
	// advance gets the source's next message, and drops it at its end.
	advance := func(src *source) error {
		m, err, ok := src.next()
		if !ok {
			sources = slices.DeleteFunc(sources, func(o *source) bool { return o == src })
			return nil
		}
		src.head = m
		return err
	}
	for _, pattern := range patterns {
		next, stop := iter.Pull2(func(yield func(message, error) bool) {
			s.until(ctx, pattern, from, end, yield)
		})
		defer stop()
		src := &source{next: next}
		sources = append(sources, src)
		if err := advance(src); err != nil {
			yield(message{}, err)
			return
		}
	}
	for last := uint64(0); len(sources) > 0; {
		src := slices.MinFunc(sources, func(a, b *source) int {
			return cmp.Compare(a.head.position, b.head.position)
		})
		m := src.head
		if err := advance(src); err != nil {
			yield(message{}, err)
			return
		}
		// Patterns may overlap: the same message comes from each.
		if m.position != last && !yield(m, nil) {
			return
		}
		last = m.position
	}
}

// get asks for one message.
func (s *Store) get(ctx context.Context, r request) (message, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return message{}, err
	}
	if err := ctx.Err(); err != nil {
		return message{}, err
	}
	ask, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	reply, err := s.conn.RequestWithContext(ask, directGet, body)
	if err != nil {
		return message{}, unanswered(ctx, err)
	}
	if status := reply.Header.Get("Status"); status != "" {
		return message{}, refused(status, reply)
	}
	return parse(reply)
}

// page asks for a batch of messages. more says whether the server has further
// ones that match.
func (s *Store) page(ctx context.Context, sub *nats.Subscription, r request) (page []message, more bool, err error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, false, err
	}
	if err := ctx.Err(); err != nil {
		return nil, false, err
	}
	ask, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	if err := s.conn.PublishRequest(directGet, sub.Subject, body); err != nil {
		return nil, false, unanswered(ctx, err)
	}
	for previous := "0"; ; {
		reply, err := sub.NextMsgWithContext(ask)
		if err != nil {
			return nil, false, unanswered(ctx, err)
		}
		switch status := reply.Header.Get("Status"); status {
		case "":
		case "204": // the end of the batch
			return page, reply.Header.Get("Nats-Num-Pending") != "0", nil
		case "404": // nothing matches
			return page, false, nil
		default:
			return nil, false, refused(status, reply)
		}
		// Every message names the one before it, so that none is lost on the
		// way here unnoticed.
		if p := reply.Header.Get("Nats-Last-Sequence"); p != previous {
			return nil, false, fmt.Errorf("%w: a reply was lost behind position %s", events.ErrUnavailable, previous)
		}
		previous = reply.Header.Get(jetstream.SequenceHeader)
		m, err := parse(reply)
		if err != nil {
			return nil, false, err
		}
		page = append(page, m)
	}
}

func (s *Store) subscribe() (*nats.Subscription, error) {
	sub, err := s.conn.SubscribeSync(s.conn.NewInbox())
	if err != nil {
		return nil, translate(err)
	}
	// A page bounds what can be under way; nothing of it may be dropped.
	if err := sub.SetPendingLimits(-1, -1); err != nil {
		unsubscribe(sub)
		return nil, translate(err)
	}
	return sub, nil
}

// unsubscribe can fail only when the connection or the subscription is gone
// already.
func unsubscribe(sub *nats.Subscription) { _ = sub.Unsubscribe() }

// unanswered tells a caller who gave up from a log that did not answer.
func unanswered(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return translate(err)
}

func refused(status string, reply *nats.Msg) error {
	switch status {
	case "404":
		return errNotFound
	case "503": // nobody serves the stream
		return fmt.Errorf("%w: %w", events.ErrUnavailable, nats.ErrNoResponders)
	default:
		return fmt.Errorf("event log refused the request: %s %s", status, reply.Header.Get("Description"))
	}
}

func parse(reply *nats.Msg) (message, error) {
	position, err := strconv.ParseUint(reply.Header.Get(jetstream.SequenceHeader), 10, 64)
	if err != nil {
		return message{}, fmt.Errorf("reply of the event log: position: %w", err)
	}
	return message{
		position: position,
		subject:  events.Subject(reply.Header.Get(jetstream.SubjectHeader)),
		id:       reply.Header.Get(jetstream.MsgIDHeader),
		header:   reply.Header,
		data:     reply.Data,
	}, nil
}
