// Package retry spreads what many agents try again over time, so that they do
// not come back all at once after a common cause.
package retry

import (
	"context"
	"math/rand/v2"
	"time"
)

// Floor is the shortest pause.
const Floor = 50 * time.Millisecond

// Backoff is an exponential backoff with full jitter: the n-th pause is random
// between Floor and Base·2ⁿ, at most Cap.
type Backoff struct {
	Base, Cap time.Duration
	n         int
}

// Next returns the next pause.
func (b *Backoff) Next() time.Duration {
	limit := min(b.Base, b.Cap)
	for range b.n {
		if limit = min(2*limit, b.Cap); limit == b.Cap {
			break
		}
	}
	b.n++
	if limit <= Floor {
		return max(limit, time.Millisecond)
	}
	return Floor + rand.N(limit-Floor)
}

// Reset starts again with short pauses.
func (b *Backoff) Reset() { b.n = 0 }

// Pause waits for d, or returns ctx's error when it is done first.
func Pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// Around returns d, more or less a tenth.
func Around(d time.Duration) time.Duration {
	if d < 10 {
		return d
	}
	return d - d/10 + rand.N(d/5)
}
