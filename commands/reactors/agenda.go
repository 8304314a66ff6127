package reactors

import (
	"container/heap"
	"context"
	"sync"
	"time"
)

// agenda runs keys at their times: one heap and one timer for any number of
// keys. A key is never run twice at the same time.
type agenda[K comparable] struct {
	now func() time.Time
	// failed is told when a key's run fails for the first time since it last
	// succeeded.
	failed func(K, error)

	mu    sync.Mutex
	items map[K]*item[K]
	heap  itemHeap[K]
	// wake has a token when the heap changed.
	wake chan struct{}
}

// item is a key with a time. It is in the heap unless it is running.
type item[K comparable] struct {
	key      K
	at       time.Time
	index    int
	running  bool
	again    time.Time // when to run next, asked for during the run
	failures int
}

// Pauses after failures.
const (
	minRetry = time.Second
	maxRetry = time.Minute
)

func newAgenda[K comparable](now func() time.Time, failed func(K, error)) *agenda[K] {
	return &agenda[K]{now: now, failed: failed, items: map[K]*item[K]{}, wake: make(chan struct{}, 1)}
}

// at lets the key run at t, or earlier if that was asked for before. During a
// run it means another one after that.
func (a *agenda[K]) at(k K, t time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.schedule(k, t)
}

func (a *agenda[K]) schedule(k K, t time.Time) {
	it := a.items[k]
	switch {
	case it == nil:
		it = &item[K]{key: k, at: t}
		a.items[k] = it
		heap.Push(&a.heap, it)
	case it.running:
		it.again = earliest(it.again, t)
		return
	case t.Before(it.at):
		it.at = t
		heap.Fix(&a.heap, it.index)
	}
	if it.index == 0 {
		select {
		case a.wake <- struct{}{}:
		default:
		}
	}
}

// run lets workers do what is due until ctx is done, and waits for them. do
// returns when the key is to run again by itself, zero for not at all; after
// an error it runs again after a pause.
func (a *agenda[K]) run(ctx context.Context, workers int, do func(context.Context, K) (time.Time, error)) {
	var wg sync.WaitGroup
	defer wg.Wait()
	due := make(chan *item[K])
	defer close(due)
	for range workers {
		wg.Go(func() {
			for it := range due {
				next, err := do(ctx, it.key)
				a.done(ctx, it, next, err)
			}
		})
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		it, wait := a.next()
		if it != nil {
			select {
			case due <- it:
				continue
			case <-ctx.Done():
				return
			}
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-a.wake:
		case <-ctx.Done():
			return
		}
	}
}

// next takes the item that is due, or says how long to wait.
func (a *agenda[K]) next() (*item[K], time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.heap) == 0 {
		return nil, time.Hour
	}
	it := a.heap[0]
	if wait := it.at.Sub(a.now()); wait > 0 {
		return nil, wait
	}
	heap.Pop(&a.heap)
	it.running = true
	return it, 0
}

func (a *agenda[K]) done(ctx context.Context, it *item[K], next time.Time, err error) {
	report := false
	a.mu.Lock()
	it.running = false
	delete(a.items, it.key)
	next, it.again = earliest(next, it.again), time.Time{}
	failures := it.failures
	if err != nil {
		failures++
		report = failures == 1 && ctx.Err() == nil
		next = a.now().Add(min(minRetry<<min(failures-1, 10), maxRetry))
	} else {
		failures = 0
	}
	if !next.IsZero() {
		a.schedule(it.key, next)
		a.items[it.key].failures = failures
	}
	a.mu.Unlock()
	if report {
		a.failed(it.key, err)
	}
}

// earliest returns the earlier of two times; zero means never.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}

// itemHeap is a heap.Interface, earliest first.
type itemHeap[K comparable] []*item[K]

func (h itemHeap[K]) Len() int           { return len(h) }
func (h itemHeap[K]) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h itemHeap[K]) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

// Push implements heap.Interface.
func (h *itemHeap[K]) Push(x any) {
	it := x.(*item[K])
	it.index = len(*h)
	*h = append(*h, it)
}

// Pop implements heap.Interface.
func (h *itemHeap[K]) Pop() any {
	last := len(*h) - 1
	it := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return it
}
