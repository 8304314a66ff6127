package jsstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"pallas/events"
)

// Each append names the aggregate's revision that it expects, and the server
// keeps that header with the message. So every message knows the one before it
// in its aggregate, and an aggregate can be read from its newest message
// backwards without a search. The server's own search for the next message of a
// subject goes through the messages between: an aggregate of 20 records spread
// over 40,000 loads in 6 ms by search and in 1 ms by steps back.

const (
	// maxLinks and maxLinkBytes bound what is collected of one aggregate on the
	// way back. A longer one is read forward, page by page.
	maxLinks     = 256
	maxLinkBytes = 8 << 20
)

// linked collects the messages of an aggregate up to the position end (0 is the
// aggregate's own end), oldest first. It gives up, with whole false, when there
// are too many or when a message does not name its predecessor.
func (s *Store) linked(ctx context.Context, subject events.Subject, from start, end uint64) (found []message, whole bool, err error) {
	m, err := s.get(ctx, request{LastFor: string(subject)})
	if errors.Is(err, errNotFound) {
		return nil, true, nil
	}
	for bytes := 0; ; {
		if err != nil {
			return nil, false, err
		}
		if m.subject != subject {
			return nil, false, fmt.Errorf("event log is damaged: position %d is of %s, not of %s", m.position, m.subject, subject)
		}
		if m.position <= from.after || m.storedBefore(from) {
			break
		}
		if end == 0 || m.position <= end {
			found = append(found, m)
			bytes += len(m.data)
		}
		previous, ok := m.previous()
		if !ok {
			return nil, false, nil // search forward
		}
		if previous <= from.after {
			break
		}
		if len(found) >= maxLinks || bytes >= maxLinkBytes {
			return nil, false, nil
		}
		m, err = s.get(ctx, request{Seq: previous})
		if errors.Is(err, errNotFound) {
			return nil, false, nil // asked of a replica that is behind
		}
	}
	slices.Reverse(found)
	return found, true, nil
}

// previous is the position of the message before it in its aggregate, 0 for
// none. ok is false when the message does not say.
func (m message) previous() (position uint64, ok bool) {
	position, err := strconv.ParseUint(m.header.Get(jetstream.ExpectedLastSubjSeqHeader), 10, 64)
	return position, err == nil && position < m.position
}

// storedBefore says whether the log stored the message before the instant where
// reading begins.
func (m message) storedBefore(from start) bool {
	if from.after > 0 || from.since.IsZero() {
		return false
	}
	at, err := time.Parse(time.RFC3339Nano, m.header.Get(jetstream.TimeStampHeaer))
	return err == nil && at.Before(from.since)
}

// allLinked is linked for all aggregates that the patterns match, provided that
// these are few and each pattern names an id.
func (s *Store) allLinked(ctx context.Context, patterns []string, from start, end uint64) (found []message, whole bool, err error) {
	subjects, ok, err := s.resolve(ctx, patterns)
	if err != nil || !ok {
		return nil, false, err
	}
	for _, subject := range subjects {
		part, whole, err := s.linked(ctx, subject, from, end)
		if err != nil || !whole {
			return nil, false, err
		}
		found = append(found, part...)
	}
	slices.SortFunc(found, func(a, b message) int { return cmp.Compare(a.position, b.position) })
	return found, true, nil
}

// resolve returns the aggregates that the patterns match. ok is false when a
// pattern does not name an id.
func (s *Store) resolve(ctx context.Context, patterns []string) (subjects []events.Subject, ok bool, err error) {
	for _, pattern := range patterns {
		switch {
		case strings.HasSuffix(pattern, ".*"):
			return nil, false, nil
		case !strings.Contains(pattern, "*"):
			subjects = append(subjects, events.Subject(pattern))
			continue
		}
		ask, cancel := context.WithTimeout(ctx, readTimeout)
		info, err := s.stream.Info(ask, jetstream.WithSubjectFilter(pattern))
		cancel()
		if err != nil {
			return nil, false, unanswered(ctx, err)
		}
		for subject := range info.State.Subjects {
			subjects = append(subjects, events.Subject(subject))
		}
	}
	slices.Sort(subjects)
	return slices.Compact(subjects), true, nil
}
