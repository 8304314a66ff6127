package eventstest

import (
	"context"
	"fmt"
	"iter"
	"sync"
	"time"

	"pallas/events"
)

// Memory is an event log in memory. It keeps decisions encoded, as a real log
// does, and recognises an ID for ever.
type Memory struct {
	mu       sync.Mutex
	log      []stored // position n is at n-1
	revision map[events.Subject]uint64
	byID     map[events.ID]uint64
	// grown is closed and replaced when the log grows.
	grown chan struct{}
	fail  func(events.Decision) error
}

type stored struct {
	subject events.Subject
	at      time.Time
	data    []byte
}

var _ events.Store = (*Memory)(nil)

// NewMemory returns an empty log.
func NewMemory() *Memory {
	return &Memory{
		revision: map[events.Subject]uint64{}, byID: map[events.ID]uint64{}, grown: make(chan struct{}),
	}
}

// FailAppends makes Append ask f first, and answer its error when there is
// one; nil ends that.
func (m *Memory) FailAppends(f func(events.Decision) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = f
}

// Append implements [events.Store].
func (m *Memory) Append(ctx context.Context, expected uint64, d events.Decision) (events.Appended, error) {
	data, err := events.Encode(d)
	if err != nil {
		return events.Appended{}, fmt.Errorf("append to %s: %w", d.Subject, err)
	}
	if err := ctx.Err(); err != nil {
		return events.Appended{}, fmt.Errorf("append to %s: %w", d.Subject, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		if err := m.fail(d); err != nil {
			return events.Appended{}, fmt.Errorf("append to %s: %w", d.Subject, err)
		}
	}
	at, known := m.byID[d.ID]
	current := m.revision[d.Subject]
	switch {
	case known && m.log[at-1].subject == d.Subject && (expected < at || expected == current):
		return events.Appended{Position: at, Duplicate: true}, nil
	case expected != current:
		return events.Appended{}, fmt.Errorf("append to %s: %w: at %d, expected %d", d.Subject, events.ErrConflict, current, expected)
	case known:
		return events.Appended{}, fmt.Errorf("append to %s: decision id is taken by position %d of %s", d.Subject, at, m.log[at-1].subject)
	}
	m.log = append(m.log, stored{subject: d.Subject, at: time.Now(), data: data})
	position := uint64(len(m.log))
	m.revision[d.Subject], m.byID[d.ID] = position, position
	close(m.grown)
	m.grown = make(chan struct{})
	return events.Appended{Position: position}, nil
}

// Load implements [events.Store].
func (m *Memory) Load(ctx context.Context, s events.Subject, after uint64) iter.Seq2[events.Record, error] {
	if err := s.Validate(); err != nil {
		return failed(fmt.Errorf("load: %w", err))
	}
	return m.read(ctx, events.Filter{Subjects: []string{string(s)}, After: after}, false)
}

// Revision implements [events.Store].
func (m *Memory) Revision(ctx context.Context, s events.Subject) (uint64, error) {
	if err := s.Validate(); err != nil {
		return 0, fmt.Errorf("revision: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.revision[s], ctx.Err()
}

// Read implements [events.Store].
func (m *Memory) Read(ctx context.Context, f events.Filter) iter.Seq2[events.Record, error] {
	return m.read(ctx, f, false)
}

// Follow implements [events.Store].
func (m *Memory) Follow(ctx context.Context, f events.Filter) iter.Seq2[events.Record, error] {
	return m.read(ctx, f, true)
}

// Last implements [events.Store].
func (m *Memory) Last(ctx context.Context) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return uint64(len(m.log)), ctx.Err()
}

func (m *Memory) read(ctx context.Context, f events.Filter, follow bool) iter.Seq2[events.Record, error] {
	if err := f.Validate(); err != nil {
		return failed(fmt.Errorf("read: %w", err))
	}
	return func(yield func(events.Record, error) bool) {
		for next := f.After; ; {
			m.mu.Lock()
			log, grown := m.log, m.grown
			m.mu.Unlock()
			for ; next < uint64(len(log)); next++ {
				if err := ctx.Err(); err != nil {
					yield(events.Record{}, fmt.Errorf("read: %w", err))
					return
				}
				s := log[next]
				if !f.Match(s.subject) || f.After == 0 && s.at.Before(f.Since) {
					continue
				}
				d, err := events.Decode(s.subject, s.data)
				if err != nil {
					yield(events.Record{}, fmt.Errorf("read: position %d of %s: %w", next+1, s.subject, err))
					return
				}
				if !yield(events.Record{Decision: d, Position: next + 1}, nil) {
					return
				}
			}
			if !follow {
				if err := ctx.Err(); err != nil {
					yield(events.Record{}, fmt.Errorf("read: %w", err))
				}
				return
			}
			select {
			case <-ctx.Done():
				yield(events.Record{}, fmt.Errorf("follow: %w", ctx.Err()))
				return
			case <-grown:
			}
		}
	}
}

func failed(err error) iter.Seq2[events.Record, error] {
	return func(yield func(events.Record, error) bool) { yield(events.Record{}, err) }
}
