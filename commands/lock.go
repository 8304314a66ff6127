package commands

import (
	"context"
	"sync"

	"pallas/events"
)

// locks let one caller at a time decide for an aggregate, without holding up
// any other aggregate. They spare needless conflicts within one process; the
// log's expected revision is what keeps decisions right.
type locks struct {
	mu   sync.Mutex
	held map[events.Subject]*lock
}

type lock struct {
	turn  chan struct{} // holds a token while the lock is taken
	users int           // holding or waiting; guarded by locks.mu
}

// acquire waits for the aggregate's turn, or for ctx.
func (l *locks) acquire(ctx context.Context, s events.Subject) (release func(), err error) {
	l.mu.Lock()
	k := l.held[s]
	if k == nil {
		k = &lock{turn: make(chan struct{}, 1)}
		l.held[s] = k
	}
	k.users++
	l.mu.Unlock()

	select {
	case k.turn <- struct{}{}:
		return func() { <-k.turn; l.leave(s, k) }, nil
	case <-ctx.Done():
		l.leave(s, k)
		return nil, ctx.Err()
	}
}

func (l *locks) leave(s events.Subject, k *lock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k.users--; k.users == 0 {
		delete(l.held, s)
	}
}
