package jsstore

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pallas/events"
)

const (
	// followMessages is how many messages may be under way to a follower.
	followMessages = 4096
	// followHeartbeat is how often the server says that it has nothing new;
	// after two that are missing the follower starts over.
	followHeartbeat = time.Second
	// followExpiry is how long one request for messages waits in the server.
	followExpiry = 30 * time.Second
	// followIdle is after how long the server forgets a follower that is gone
	// without a word.
	followIdle = time.Minute
	// followRetryMin and followRetryMax bound the wait before starting over.
	followRetryMin = 50 * time.Millisecond
	followRetryMax = 2 * time.Second
)

// errInterrupted marks what a follower overcomes by starting over where it
// was.
var errInterrupted = errors.New("following was interrupted")

// Follow implements [events.Store]. It survives restarts of the server and the
// loss of the connection, as long as the connection is set to reconnect; a
// closed connection ends it with [events.ErrUnavailable].
func (s *Store) Follow(ctx context.Context, f events.Filter) iter.Seq2[events.Record, error] {
	if err := f.Validate(); err != nil {
		return failed(fmt.Errorf("follow: %w", err))
	}
	return func(yield func(events.Record, error) bool) {
		fol := follower{store: s, filter: f, from: startOf(f)}
		wait := followRetryMin
		for {
			before := fol.from.after
			err := fol.run(ctx, yield)
			switch {
			case err == nil:
				return
			case ctx.Err() != nil:
				yield(events.Record{}, fmt.Errorf("follow: %w", ctx.Err()))
				return
			case s.conn.IsClosed():
				yield(events.Record{}, fmt.Errorf("follow: %w: %w", events.ErrUnavailable, nats.ErrConnectionClosed))
				return
			case !errors.Is(err, errInterrupted):
				yield(events.Record{}, fmt.Errorf("follow: %w", err))
				return
			}
			if fol.from.after != before {
				wait = followRetryMin
			}
			s.log.Warn("following the event log was interrupted", "position", fol.from.after, "retry_in", wait, "error", err)
			timer := time.NewTimer(wait)
			select {
			case <-ctx.Done():
			case <-timer.C:
			}
			timer.Stop()
			wait = min(2*wait, followRetryMax)
		}
	}
}

// follower reads through an ephemeral consumer that it replaces when anything
// is wrong with it. It does so itself, and not through nats.go's ordered
// consumer, because that one waits without regard to a context and cannot be
// stopped while it waits.
type follower struct {
	store  *Store
	filter events.Filter
	from   start
}

// run yields messages of one consumer. It returns nil when the caller wants no
// more.
func (f *follower) run(ctx context.Context, yield func(events.Record, error) bool) error {
	create, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	consumer, err := f.store.js.CreateConsumer(create, streamName, f.config())
	var api *jetstream.APIError
	if errors.As(err, &api) && api.Code == 400 {
		// Such as the server's limit on consumers: asking again does not help.
		return fmt.Errorf("create consumer: %w", err)
	}
	if err != nil {
		return fmt.Errorf("%w: create consumer: %w", errInterrupted, err)
	}
	defer f.remove(ctx, consumer)
	messages, err := consumer.Messages(jetstream.PullMaxMessages(followMessages),
		jetstream.PullExpiry(followExpiry), jetstream.PullHeartbeat(followHeartbeat))
	if err != nil {
		return fmt.Errorf("%w: consume: %w", errInterrupted, err)
	}
	defer messages.Stop()

	for delivered := uint64(0); ; {
		msg, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return fmt.Errorf("%w: next: %w", errInterrupted, err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		meta, err := msg.Metadata()
		if err != nil {
			return err
		}
		delivered++
		if meta.Sequence.Consumer != delivered {
			return fmt.Errorf("%w: delivery %d came as %d", errInterrupted, delivered, meta.Sequence.Consumer)
		}
		position := meta.Sequence.Stream
		if len(f.filter.Subjects) == 0 && f.from.after > 0 && position != f.from.after+1 {
			return fmt.Errorf("event log is damaged: position %d follows %d", position, f.from.after)
		}
		f.from.after = position
		m := message{position: position, subject: events.Subject(msg.Subject()), data: msg.Data()}
		if !f.filter.Match(m.subject) {
			continue
		}
		r, err := m.record()
		if err != nil {
			return err
		}
		if !yield(r, nil) {
			return nil
		}
	}
}

func (f *follower) config() jetstream.ConsumerConfig {
	c := jetstream.ConsumerConfig{
		DeliverPolicy:     jetstream.DeliverByStartSequencePolicy,
		OptStartSeq:       f.from.after + 1,
		AckPolicy:         jetstream.AckNonePolicy,
		MemoryStorage:     true,
		Replicas:          1,
		InactiveThreshold: followIdle,
		FilterSubjects:    serverFilter(f.filter.Subjects),
	}
	if f.from.after == 0 && !f.from.since.IsZero() {
		c.DeliverPolicy, c.OptStartSeq, c.OptStartTime = jetstream.DeliverByStartTimePolicy, 0, &f.from.since
	}
	return c
}

// remove takes the consumer out of the server, also when ctx is done. Without
// a server it removes itself after followIdle.
func (f *follower) remove(ctx context.Context, consumer jetstream.Consumer) {
	if !f.store.conn.IsConnected() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), appendTimeout)
	defer cancel()
	err := f.store.js.DeleteConsumer(ctx, streamName, consumer.CachedInfo().Name)
	if err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
		f.store.log.Warn("consumer of the event log was not removed", "error", err)
	}
}

// serverFilter returns the subjects for a consumer. The server refuses
// subjects that overlap; for those it returns nil, and all messages come.
func serverFilter(subjects []string) []string {
	subjects = slices.Compact(slices.Sorted(slices.Values(subjects)))
	for i, a := range subjects {
		for _, b := range subjects[i+1:] {
			if overlap(a, b) {
				return nil
			}
		}
	}
	return subjects
}

func overlap(a, b string) bool {
	as, bs := strings.Split(a, "."), strings.Split(b, ".")
	for i := range min(len(as), len(bs)) {
		if as[i] != bs[i] && as[i] != "*" && bs[i] != "*" {
			return false
		}
	}
	return true
}
