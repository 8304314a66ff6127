package jsstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pallas/events"
)

// How long one exchange with the server may take, when the caller's context
// allows more.
const (
	appendTimeout = 5 * time.Second
	readTimeout   = 10 * time.Second
)

// Config says where the log is and how it is kept.
type Config struct {
	// Conn is a connection to the account that holds the stream. The store
	// does not close it.
	Conn *nats.Conn
	// Replicas is the number of servers that keep the log, 1 to 5; 0 means 1.
	Replicas int
	// MaxBytes is the size at which the log refuses to grow; 0 means no limit
	// of its own.
	MaxBytes int64
	// Room is asked before each append, and says with an error that there is
	// no room for another decision: [events.ErrNoSpace]. A server that runs
	// into a full disk stops the stream until it is restarted, so whoever knows
	// the disk must speak up before. nil means that nobody knows.
	Room func() error
	// MustExist refuses to make a new log: one that is gone or that the server
	// cannot read must not be taken for an empty one.
	MustExist bool
	// Log receives what goes wrong and is overcome; nil means nobody.
	Log *slog.Logger
}

// ErrMissing says that there is no log, or none that the server can read,
// although there must be one.
var ErrMissing = errors.New("stream EVENTS is missing or damaged; restore it from a backup")

// Store is an [events.Store] on JetStream. Its methods may be used at the same
// time.
type Store struct {
	conn   *nats.Conn
	js     jetstream.JetStream
	stream jetstream.Stream
	room   func() error
	log    *slog.Logger
}

var _ events.Store = (*Store)(nil)

// Open creates the stream, or checks the one that is there. A stream that no
// longer protects the log is refused with a [*WeakenedError]; a changed
// MaxBytes or Replicas is applied.
func Open(ctx context.Context, c Config) (*Store, error) {
	switch {
	case c.Conn == nil:
		return nil, errors.New("open event log: Conn is not set")
	case c.Replicas < 0 || c.Replicas > 5:
		return nil, fmt.Errorf("open event log: Replicas is %d, want 1 to 5", c.Replicas)
	case c.MaxBytes < 0:
		return nil, fmt.Errorf("open event log: MaxBytes is %d, want 0 or more", c.MaxBytes)
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Room == nil {
		c.Room = func() error { return nil }
	}
	js, err := jetstream.New(c.Conn)
	if err != nil {
		return nil, fmt.Errorf("open event log: %w", err)
	}
	stream, err := openStream(ctx, js, streamConfig(c.Replicas, c.MaxBytes), c.MustExist)
	if err != nil {
		return nil, fmt.Errorf("open event log: %w", err)
	}
	return &Store{conn: c.Conn, js: js, stream: stream, room: c.Room, log: c.Log}, nil
}

// Append implements [events.Store].
//
// After [events.ErrUnavailable], which is also what a context that ends on the
// way leads to, nobody knows whether the log has the decision: append it again
// with the same ID and the same expectation, at any later time, and the answer
// is either its place as a duplicate or a clear refusal.
//
// The log recognises an ID in two ways. A decision that is in the aggregate
// after the expected revision is found however long ago it was written. With an
// up-to-date expectation it is the server that remembers, for ten minutes.
func (s *Store) Append(ctx context.Context, expected uint64, d events.Decision) (events.Appended, error) {
	data, err := events.Encode(d)
	if err != nil {
		return events.Appended{}, fmt.Errorf("append to %s: %w", d.Subject, err)
	}
	if err := ctx.Err(); err != nil {
		return events.Appended{}, fmt.Errorf("append to %s: %w", d.Subject, err)
	}
	if err := s.room(); err != nil {
		return events.Appended{}, fmt.Errorf("append to %s: %w: %w", d.Subject, events.ErrNoSpace, err)
	}
	a, err := s.publish(ctx, expected, d, data)
	if errors.Is(err, events.ErrConflict) {
		// The server compares the revision before the id, so a decision that
		// is appended again conflicts with itself.
		if at, found := s.find(ctx, d, expected); found {
			return events.Appended{Position: at, Duplicate: true}, nil
		}
	}
	if err != nil {
		return events.Appended{}, fmt.Errorf("append to %s: %w", d.Subject, err)
	}
	return a, nil
}

func (s *Store) publish(ctx context.Context, expected uint64, d events.Decision, data []byte) (events.Appended, error) {
	ctx, cancel := context.WithTimeout(ctx, appendTimeout)
	defer cancel()
	ack, err := s.js.PublishMsg(ctx, &nats.Msg{
		Subject: string(d.Subject),
		Data:    data,
		Header: nats.Header{
			jetstream.MsgIDHeader:               {string(d.ID)},
			jetstream.ExpectedLastSubjSeqHeader: {strconv.FormatUint(expected, 10)},
			jetstream.ExpectedStreamHeader:      {streamName},
		},
	})
	if err != nil {
		return events.Appended{}, translate(err)
	}
	if ack.Duplicate {
		if err := s.sameSubject(ctx, ack.Sequence, d.Subject); err != nil {
			return events.Appended{}, err
		}
	}
	return events.Appended{Position: ack.Sequence, Duplicate: ack.Duplicate}, nil
}

// find looks for the decision among the aggregate's records after the expected
// revision: those that the caller would have to load anyway. A log that does
// not answer has not been searched, and the conflict stands.
func (s *Store) find(ctx context.Context, d events.Decision, after uint64) (position uint64, found bool) {
	for m, err := range s.aggregate(ctx, d.Subject, after) {
		if err != nil {
			return 0, false
		}
		if m.id == string(d.ID) {
			return m.position, true
		}
	}
	return 0, false
}

// sameSubject reports a duplicate that is not one: the id of a decision of
// another aggregate.
func (s *Store) sameSubject(ctx context.Context, position uint64, want events.Subject) error {
	m, err := s.get(ctx, request{Seq: position})
	if errors.Is(err, errNotFound) { // a replica that is behind
		return fmt.Errorf("%w: position %d: %w", events.ErrUnavailable, position, err)
	}
	if err != nil {
		return err
	}
	if m.subject != want {
		return fmt.Errorf("decision id is taken by position %d of %s", position, m.subject)
	}
	return nil
}

// Revision implements [events.Store].
func (s *Store) Revision(ctx context.Context, subject events.Subject) (uint64, error) {
	if err := subject.Validate(); err != nil {
		return 0, fmt.Errorf("revision: %w", err)
	}
	m, err := s.get(ctx, request{LastFor: string(subject)})
	if err != nil && !errors.Is(err, errNotFound) {
		return 0, fmt.Errorf("revision of %s: %w", subject, err)
	}
	return m.position, nil
}

// Last implements [events.Store].
func (s *Store) Last(ctx context.Context) (uint64, error) {
	// Every message that was ever stored is still there, so the newest one
	// tells the log's end. ">" spares the server the search by subject.
	m, err := s.get(ctx, request{LastFor: ">"})
	if err != nil && !errors.Is(err, errNotFound) {
		return 0, fmt.Errorf("last position: %w", err)
	}
	return m.position, nil
}

// Bytes returns the size of the log as it is stored.
func (s *Store) Bytes(ctx context.Context) (uint64, error) {
	stream, err := s.js.Stream(ctx, streamName)
	if err != nil {
		return 0, fmt.Errorf("read the size of the log: %w", translate(err))
	}
	return stream.CachedInfo().State.Bytes, nil
}
