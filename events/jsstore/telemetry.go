package jsstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pallas/events"
	"pallas/events/telemetry"
)

const (
	telemetryName     = "TELEMETRY"
	telemetrySubjects = "tm.>"
	usageSubject      = "tm.usage"
	// minTelemetry is the size below which the stream is not made smaller.
	minTelemetry = 1 << 20
)

// TelemetryConfig says where measurements are and how much of them is kept.
type TelemetryConfig struct {
	// Conn is a connection to the account that holds the stream. It is not
	// closed.
	Conn *nats.Conn
	// Replicas is the number of servers that keep the stream; 0 means 1.
	Replicas int
	// MaxAge and MaxBytes bound the stream: what is older goes, and the oldest
	// of what is too much. 0 means no bound. A disk that cannot promise MaxBytes
	// promises half of it, or a half of that.
	MaxAge   time.Duration
	MaxBytes int64
	// Room is asked before each write, and says with an error that there is no
	// room for telemetry: [events.ErrNoSpace]. It should do so well before the
	// event log's does. nil means that nobody knows.
	Room func() error
}

// Telemetry is the stream of measurements, which forgets. Its methods may be
// used at the same time.
type Telemetry struct {
	js     jetstream.JetStream
	stream jetstream.Stream
	room   func() error
}

// OpenTelemetry makes the stream, or opens the one that is there and gives it
// these limits.
func OpenTelemetry(ctx context.Context, c TelemetryConfig) (*Telemetry, error) {
	if c.MaxAge < 0 || c.MaxBytes < 0 {
		return nil, fmt.Errorf("open telemetry: MaxAge %v, MaxBytes %d: want 0 or more", c.MaxAge, c.MaxBytes)
	}
	if c.Room == nil {
		c.Room = func() error { return nil }
	}
	js, err := jetstream.New(c.Conn)
	if err != nil {
		return nil, fmt.Errorf("open telemetry: %w", err)
	}
	window := dedupWindow
	if c.MaxAge > 0 {
		window = min(window, c.MaxAge) // the server demands it
	}
	cfg := jetstream.StreamConfig{
		Name:        telemetryName,
		Description: "Pallas measurements: the oldest go first",
		Subjects:    []string{telemetrySubjects},
		Storage:     jetstream.FileStorage,
		Compression: jetstream.S2Compression,
		Discard:     jetstream.DiscardOld,
		MaxAge:      c.MaxAge,
		MaxBytes:    unlimited(c.MaxBytes),
		Replicas:    max(c.Replicas, 1),
		Duplicates:  window,
		AllowDirect: true,
	}
	stream, err := js.CreateOrUpdateStream(ctx, cfg)
	for errors.Is(translate(err), events.ErrNoSpace) && cfg.MaxBytes > minTelemetry {
		cfg.MaxBytes /= 2
		stream, err = js.CreateOrUpdateStream(ctx, cfg)
	}
	if err != nil {
		return nil, fmt.Errorf("open telemetry: stream %s: %w", telemetryName, translate(err))
	}
	return &Telemetry{js: js, stream: stream, room: c.Room}, nil
}

// AppendUsage writes u. The same id within ten minutes writes nothing more.
// [events.ErrNoSpace] and [events.ErrUnavailable] mean: try again later, with
// the same id.
func (t *Telemetry) AppendUsage(ctx context.Context, id events.ID, u telemetry.Usage) error {
	data, err := json.Marshal(u)
	if err != nil {
		return fmt.Errorf("append usage: %w", err)
	}
	if err := t.room(); err != nil {
		return fmt.Errorf("append usage: %w: %w", events.ErrNoSpace, err)
	}
	ctx, cancel := context.WithTimeout(ctx, appendTimeout)
	defer cancel()
	_, err = t.js.Publish(ctx, usageSubject, data, jetstream.WithMsgID(string(id)), jetstream.WithExpectStream(telemetryName))
	if err != nil {
		return fmt.Errorf("append usage: %w", translate(err))
	}
	return nil
}

// NextUsage returns the first usage after a position, and its own; position 0
// when there is none yet. An error with a position is about the message there,
// which nobody can read.
func (t *Telemetry) NextUsage(ctx context.Context, after uint64) (telemetry.Usage, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	m, err := t.stream.GetMsg(ctx, after+1, jetstream.WithGetMsgSubject(usageSubject))
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return telemetry.Usage{}, 0, nil
	case err != nil:
		return telemetry.Usage{}, 0, fmt.Errorf("read usage after %d: %w", after, translate(err))
	}
	u, err := telemetry.Decode(m.Data)
	if err != nil {
		return u, m.Sequence, fmt.Errorf("read usage at %d: %w", m.Sequence, err)
	}
	return u, m.Sequence, nil
}

// Bounds says which stream this is, by when it was made, and its newest
// position.
func (t *Telemetry) Bounds(ctx context.Context) (made time.Time, last uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	info, err := t.stream.Info(ctx)
	if err != nil {
		return made, 0, fmt.Errorf("look at stream %s: %w", telemetryName, translate(err))
	}
	return info.Created, info.State.LastSeq, nil
}
