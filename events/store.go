package events

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"
)

// Errors that callers of a [Store] branch on.
var (
	// ErrConflict says that the aggregate is no longer at the expected
	// revision: load it again and decide anew.
	ErrConflict = errors.New("aggregate changed meanwhile")
	// ErrNoSpace says that the log refuses to grow: its disk or its byte limit
	// is full. Nothing was written.
	ErrNoSpace = errors.New("event log is full")
	// ErrUnavailable says that the log did not answer in time. Whether the
	// decision was written is not known: append again with the same ID.
	ErrUnavailable = errors.New("event log did not answer")
)

// Appended is the answer to an append.
type Appended struct {
	// Position of the decision in the log.
	Position uint64
	// Duplicate says that the log already held this decision ID, at Position;
	// nothing was written now.
	Duplicate bool
}

// Filter selects records. Its zero value selects all.
type Filter struct {
	// Subjects to include; "*" stands for one whole part, as in
	// "ev.*.<device>" or "ev.tasks.*". Empty means every subject.
	Subjects []string
	// After excludes positions up to and including it.
	After uint64
	// Since excludes records the log stored before the instant; zero means
	// from the beginning. It applies only when After is 0.
	Since time.Time
}

// Match says whether the filter's subjects include s.
func (f Filter) Match(s Subject) bool {
	if len(f.Subjects) == 0 {
		return true
	}
	kind, id, _ := s.parts()
	for _, pattern := range f.Subjects {
		k, i, _ := strings.Cut(strings.TrimPrefix(pattern, "ev."), ".")
		if (k == "*" || k == kind) && (i == "*" || i == id) {
			return true
		}
	}
	return false
}

// Validate reports a subject that is not of the form "ev.<kind>.<id>", where
// "*" may stand for the kind, the id or both.
func (f Filter) Validate() error {
	for _, pattern := range f.Subjects {
		kind, id, _ := strings.Cut(strings.TrimPrefix(pattern, "ev."), ".")
		if kind == "*" {
			kind = "any"
		}
		if id == "*" {
			id = "any"
		}
		if s := Subject("ev." + kind + "." + id); !strings.HasPrefix(pattern, "ev.") || s.Validate() != nil {
			return fmt.Errorf("filter subject %q: want ev.<kind>.<id>, where \"*\" may stand for the kind, the id or both", clip(pattern))
		}
	}
	return nil
}

// Store is the event log. Implementations share one conformance suite,
// eventstest.TestStore.
type Store interface {
	// Append writes the decision if the aggregate's revision is expected: the
	// position of its newest decision, 0 for none. A wrong expectation is
	// ErrConflict, except when the decision itself is in the aggregate after
	// that revision: appending it again answers Duplicate. It returns when the
	// log has taken the decision (see the durability setting of the
	// implementation for what that means). A decision that does not encode, and
	// the ID of another aggregate's decision, are errors; nothing is written.
	Append(ctx context.Context, expected uint64, d Decision) (Appended, error)

	// Load yields the records of one aggregate after the position, oldest
	// first, up to what the log holds when the iteration starts. It ends the
	// sequence with an error that it could not get past: ctx's error when ctx
	// is done, and so for Read and Follow.
	Load(ctx context.Context, s Subject, after uint64) iter.Seq2[Record, error]

	// Revision returns the position of the aggregate's newest decision, or 0.
	Revision(ctx context.Context, s Subject) (uint64, error)

	// Read yields the selected records in the order of their positions, up to
	// the log's end when the iteration starts. A filter that is not valid ends
	// the sequence with an error at once.
	Read(ctx context.Context, f Filter) iter.Seq2[Record, error]

	// Follow is Read that never ends: it waits for records to come, until ctx
	// is done (which ends the sequence with ctx's error).
	Follow(ctx context.Context, f Filter) iter.Seq2[Record, error]

	// Last returns the position of the newest record in the log, or 0.
	Last(ctx context.Context) (uint64, error)
}
