package projections

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"pallas/events"
)

const (
	// batchSize is how many decisions one transaction holds at most: larger
	// ones gain little and delay what waits for them.
	batchSize = 1000
	// While decisions come in quick succession, a batch waits lingerNext for
	// another one, and lingerAll in total, before it is committed. One that
	// comes alone is committed at once.
	lingerNext = 2 * time.Millisecond
	lingerAll  = 20 * time.Millisecond
	// lastInterval is how often the end of the log is looked up for Status.
	lastInterval = time.Second
)

// Run follows the log and applies each decision, until ctx is done (nil) or
// an event cannot be decoded or applied (an error that wraps [ErrStopped] and
// names the position). It waits out a log or a disk that is not available,
// and begins with an empty file when the log is not the one that the file was
// built from. One Run at a time.
func (d *DB) Run(ctx context.Context, store events.Store) error {
	if !d.running.CompareAndSwap(false, true) {
		return errors.New("run projection: it is running already")
	}
	defer d.running.Store(false)
	d.update(func() { d.err, d.reached = nil, false })

	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval = 50 * time.Millisecond
	pause.MaxInterval = 5 * time.Second
	for {
		before := d.Position()
		err := d.follow(ctx, store)
		if ctx.Err() != nil {
			return nil
		}
		d.met.errors.Inc()
		if errors.Is(err, ErrStopped) {
			err = fmt.Errorf("run projection: %w", err)
			d.update(func() { d.err = err })
			return err
		}
		if d.Position() != before {
			pause.Reset()
		}
		wait := pause.NextBackOff()
		d.log.Warn("projection interrupted, trying again", "position", d.Position(), "pause", wait, "error", err)
		if errors.Is(err, errDamaged) {
			if err := d.restart(ctx, "damaged", setAside); err != nil {
				d.log.Error("read model could not be started anew", "error", err)
			}
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
	}
}

// follow applies decisions from the checkpoint on until something is wrong.
func (d *DB) follow(ctx context.Context, store events.Store) error {
	if err := d.reattach(ctx); err != nil {
		return fmt.Errorf("open read model: %w", err)
	}
	if err := d.MatchLog(ctx, store); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()

	// The reader decodes the next decisions while the owner writes the ones
	// before.
	ch := make(chan item, batchSize)
	after := d.Position()
	wg.Go(func() { readLog(ctx, store.Follow(ctx, events.Filter{After: after}), ch) })
	wg.Go(func() { d.watchEnd(ctx, store) })

	b := batcher{ch: ch, next: after + 1}
	for {
		recs, err := b.batch()
		if len(recs) > 0 {
			if err := d.write(recs); err != nil {
				return err
			}
		}
		if err != nil {
			return readError(ctx, d.Position(), err)
		}
	}
}

// readError tells a log that does not answer from one that holds something
// that this build cannot read, after position.
func readError(ctx context.Context, position uint64, err error) error {
	switch {
	case ctx.Err() != nil, errors.Is(err, events.ErrUnavailable), errors.Is(err, errEnded),
		errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("read the log after position %d: %w", position, err)
	}
	return fmt.Errorf("%w after position %d: %w", ErrStopped, position, err)
}

// MatchLog makes sure that the rows come from this log: it must reach to the
// checkpoint, and hold the same decision there. Otherwise the read model begins
// anew, empty. Run does so by itself; whoever reads a position from the rows
// before Run, to go on from there, calls it first.
func (d *DB) MatchLog(ctx context.Context, store events.Store) error {
	last, err := store.Last(ctx)
	if err != nil {
		return fmt.Errorf("look up the end of the log: %w", err)
	}
	d.mu.Lock()
	position, decision := d.position, d.decision
	d.last, d.target, d.reached = last, last, position >= last
	d.mu.Unlock()
	if position == 0 {
		return nil
	}
	reason := ""
	if last < position {
		reason = "the log ends earlier"
	} else {
		for rec, err := range store.Read(ctx, events.Filter{After: position - 1}) {
			if err != nil {
				return readError(ctx, position-1, err)
			}
			if rec.Position != position || rec.ID != decision {
				reason = "the log holds another decision there"
			}
			break
		}
	}
	if reason == "" {
		return nil
	}
	d.log.Warn("read model was built from another log, building it anew", "position", position, "last", last, "reason", reason)
	if err := d.restart(ctx, "log", removeFiles); err != nil {
		return err
	}
	d.update(func() { d.last, d.target, d.reached = last, last, last == 0 })
	return nil
}

// watchEnd keeps Status informed of where the log ends.
func (d *DB) watchEnd(ctx context.Context, store events.Store) {
	tick := time.NewTicker(lastInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		// An error here is the follower's to report.
		if last, err := store.Last(ctx); err == nil {
			d.mu.Lock()
			d.last = last
			d.mu.Unlock()
		}
	}
}

// item is what the reader hands over: a record, or why there are no more.
type item struct {
	rec events.Record
	err error
}

// errEnded says that there are no more records.
var errEnded = errors.New("log ended its sequence")

// readLog sends the records of a sequence and the error that ends it, until
// ctx is done. It closes ch.
func readLog(ctx context.Context, log iter.Seq2[events.Record, error], ch chan<- item) {
	defer close(ch)
	send := func(i item) bool {
		select {
		case ch <- i:
			return true
		case <-ctx.Done():
			return false
		}
	}
	for rec, err := range log {
		if !send(item{rec, err}) || err != nil {
			return
		}
	}
}

// batcher groups what the reader sends.
type batcher struct {
	ch   <-chan item
	next uint64 // position that must come next
	recs []events.Record
	busy bool // the batch before held several decisions
}

// batch waits for at least one record and returns those at hand, up to
// batchSize, and the error that ends the sequence. The records are valid until
// the next call.
func (b *batcher) batch() ([]events.Record, error) {
	b.recs = b.recs[:0]
	var linger, all <-chan time.Time
	for len(b.recs) < batchSize {
		var it item
		var ok bool
		select {
		case it, ok = <-b.ch:
		default:
			if len(b.recs) > 0 {
				if !b.busy {
					b.busy = len(b.recs) > 1
					return b.recs, nil
				}
				if all == nil {
					all = time.After(lingerAll)
				}
				linger = time.After(lingerNext)
			}
			select {
			case it, ok = <-b.ch:
			case <-linger:
				b.busy = len(b.recs) > 1
				return b.recs, nil
			case <-all:
				return b.recs, nil
			}
		}
		switch {
		case !ok:
			return b.recs, errEnded
		case it.err != nil:
			return b.recs, it.err
		case it.rec.Position < b.next: // delivered again
		case it.rec.Position > b.next:
			return b.recs, fmt.Errorf("log goes on at position %d, want %d", it.rec.Position, b.next)
		default:
			b.recs = append(b.recs, it.rec)
			b.next++
		}
	}
	b.busy = true
	return b.recs, nil
}

// write commits the records. If one of them cannot be applied, those before it
// are committed, and the error wraps ErrStopped.
func (d *DB) write(recs []events.Record) error {
	begin := time.Now()
	err := d.w.apply(recs)
	if err == nil {
		d.publish(recs, begin)
		return nil
	}
	var bad *recordError
	if !errors.As(err, &bad) {
		return fmt.Errorf("write read model: %w", err)
	}
	if bad.index > 0 {
		if err := d.write(recs[:bad.index]); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w at position %d: %w", ErrStopped, recs[bad.index].Position, err)
}

// publish tells everybody that the records are committed.
func (d *DB) publish(recs []events.Record, begin time.Time) {
	newest := &recs[len(recs)-1]
	d.met.batch.Observe(float64(len(recs)))
	d.met.seconds.Observe(time.Since(begin).Seconds())
	d.update(func() {
		d.position, d.decision = newest.Position, newest.ID
		d.last = max(d.last, d.position)
		d.reached = d.reached || d.position >= d.target
	})
}
