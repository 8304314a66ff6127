package inventory

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"pallas/agent/hypervisor"
	"pallas/agent/retry"
	"pallas/agent/store"
	"pallas/mqttgw/wire"
)

// Config of a [Reporter]. Zero durations and counts mean the defaults.
type Config struct {
	Driver hypervisor.Driver
	Store  *store.Store
	// Now is the clock of reports.
	Now func() time.Time
	Log *slog.Logger
	// Observed, if set, is called after each successful look at the host, when its changes are
	// in the outbox.
	Observed func(context.Context)

	Debounce  time.Duration // between a change and the look at it; 200 ms
	Reconcile time.Duration // between two looks without a change; 10 min
	Patience  time.Duration // of one look; 1 min
	RetryCap  time.Duration // longest pause between looks at a lost host; 1 min
	// Limit is the number of reports in the outbox from which on changes are
	// not reported one by one: what they lead to is, when there is room again.
	Limit int // 4096
}

// Reporter keeps the outbox in step with the host.
type Reporter struct {
	c         Config
	reconcile atomic.Int64 // time.Duration
	wake      chan struct{}

	look     sync.Mutex // one look at a time, so that an older one never follows a newer one
	readOnly atomic.Pointer[string]

	mu      sync.Mutex // never held while the host is asked
	full    bool       // the manager wants everything
	fullSeq uint64     // of the end of the newest complete inventory
	epoch   uint64     // of fullSeq
}

// New checks the configuration.
func New(c Config) (*Reporter, error) {
	if c.Driver == nil || c.Store == nil || c.Now == nil || c.Log == nil {
		return nil, errors.New("inventory: Driver, Store, Now and Log are needed")
	}
	set(&c.Debounce, 200*time.Millisecond)
	set(&c.Reconcile, 10*time.Minute)
	set(&c.Patience, time.Minute)
	set(&c.RetryCap, time.Minute)
	if c.Limit <= 0 {
		c.Limit = 4096
	}
	r := &Reporter{c: c, wake: make(chan struct{}, 1)}
	r.reconcile.Store(int64(c.Reconcile))
	return r, nil
}

func set(d *time.Duration, def time.Duration) {
	if *d <= 0 {
		*d = def
	}
}

// SetReconcile sets the interval of looks without a change.
func (r *Reporter) SetReconcile(d time.Duration) {
	if d > 0 {
		r.reconcile.Store(int64(d))
	}
}

// Resync makes the next look report everything. It changes nothing while a
// complete inventory waits among the reports from unsent on, which the manager
// has not seen. It does not wait for a look.
func (r *Reporter) Resync(unsent uint64) {
	epoch, _, _ := r.c.Store.Numbers()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.full || (r.epoch == epoch && r.fullSeq >= unsent) {
		return
	}
	r.full = true
	r.Wake()
}

// wanted takes the wish for everything; whoever cannot fulfil it gives it back.
func (r *Reporter) wanted() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	full := r.full
	r.full = false
	return full
}

func (r *Reporter) giveBack(wanted bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.full = r.full || wanted
}

// fulfilled notes where a complete inventory ends.
func (r *Reporter) fulfilled(epoch, seq uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.epoch, r.fullSeq = epoch, seq
}

// Wake makes Run look at the host soon, as after the store began a new epoch.
func (r *Reporter) Wake() { offer(r.wake) }

// ReadOnly returns why the host permits no changes, "" when it does as far as
// is known.
func (r *Reporter) ReadOnly() string {
	if s := r.readOnly.Load(); s != nil {
		return *s
	}
	return ""
}

// Run reports until ctx is done, and then returns nil. Any other return is a
// fault of the store that does not pass.
func (r *Reporter) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	changed := make(chan struct{}, 1)
	defer watching.Wait()
	defer cancel()
	watching.Go(func() { r.watch(ctx, changed) })

	lost := retry.Backoff{Base: time.Second, Cap: r.c.RetryCap}
	full := retry.Backoff{Base: time.Second, Cap: 10 * time.Second} // the disk
	var wait time.Duration                                          // before the next look; the first is at once
	for {
		urgent, err := r.pause(ctx, wait, changed)
		if err != nil {
			return nil
		}
		if urgent {
			// More changes than one come together; one look sees them all.
			if retry.Pause(ctx, r.c.Debounce) != nil {
				return nil
			}
			drain(changed)
			drain(r.wake)
		}
		more, err := r.Refresh(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, errStore) && !errors.Is(err, store.ErrWrite):
			return err
		case errors.Is(err, errStore):
			wait = full.Next()
			r.c.Log.Error("cannot write what changed on the host; trying again", "error", err, "retry_in", wait)
		case err != nil:
			wait = lost.Next()
		case more:
			wait = time.Second // the outbox was full
			lost.Reset()
		default:
			wait = retry.Around(time.Duration(r.reconcile.Load()))
			lost.Reset()
		}
	}
}

// pause waits for d, for a change or for a request; urgent tells the latter.
func (r *Reporter) pause(ctx context.Context, d time.Duration, changed <-chan struct{}) (urgent bool, err error) {
	if d <= 0 {
		return false, ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false, ctx.Err()
	case <-timer.C:
		return false, nil
	case <-changed:
		return true, nil
	case <-r.wake:
		return false, nil
	}
}

// watch passes on what the driver says of changes.
func (r *Reporter) watch(ctx context.Context, changed chan<- struct{}) {
	lost := retry.Backoff{Base: time.Second, Cap: r.c.RetryCap}
	for {
		began := time.Now()
		err := r.c.Driver.Watch(ctx, func() { offer(changed) })
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > r.c.RetryCap {
			lost.Reset()
		}
		// A watch that breaks is often the first sign of a lost host.
		r.c.Log.Debug("watch of the host ended", "error", err)
		r.Wake()
		if retry.Pause(ctx, lost.Next()) != nil {
			return
		}
	}
}

func offer(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func drain(c <-chan struct{}) {
	select {
	case <-c:
	default:
	}
}

// errStore marks faults of the store, after which the agent cannot go on.
var errStore = errors.New("agent state")

// Refresh looks at the host now and reports what changed. more says that the
// outbox had no room for it. The error is the host's, or wraps that of the
// store.
func (r *Reporter) Refresh(ctx context.Context) (more bool, err error) {
	r.look.Lock()
	defer r.look.Unlock()
	looked, cancel := context.WithTimeout(ctx, r.c.Patience)
	defer cancel()
	snap, err := r.c.Driver.Observe(looked)
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	base, storeErr := r.c.Store.Baseline()
	if storeErr != nil {
		return false, fmt.Errorf("%w: %w", errStore, storeErr)
	}
	now := r.c.Now()
	if err != nil {
		return false, errors.Join(err, r.lost(base, err, now))
	}
	snap = clean(snap, r.c.Log)
	reason := ""
	if !snap.Host.License.Writable {
		if reason = snap.Host.License.Reason; reason == "" {
			reason = "the host's licence does not permit changes through its API"
		}
	}
	r.readOnly.Store(&reason)
	more, err = r.report(base, snap, reason, now)
	if err == nil && r.c.Observed != nil {
		r.c.Observed(ctx)
	}
	return more, err
}

// report puts what differs between base and snap into the outbox.
func (r *Reporter) report(base store.Baseline, snap hypervisor.Snapshot, readOnly string, now time.Time) (more bool, err error) {
	condition := wire.Condition{Condition: wire.ConditionOK}
	if readOnly != "" {
		condition = wire.Condition{Condition: wire.ConditionReadOnly, Message: readOnly}
	}
	wanted := r.wanted()
	full := wanted || !base.Complete
	ch := compare(base, snap, condition, full)
	if ch.empty() {
		return false, nil
	}
	if r.c.Store.Len() >= r.c.Limit {
		r.giveBack(wanted)
		return true, nil // not forgotten: base stays as it is
	}
	epoch, seq, err := r.write(ch, now)
	if err != nil {
		r.giveBack(wanted)
		return false, err
	}
	if full {
		r.fulfilled(epoch, seq)
		r.c.Log.Info("complete inventory reported", "machines", len(snap.VMs), "seq", seq)
	}
	return false, nil
}

// write puts the changes into the outbox and says where they end.
func (r *Reporter) write(ch changes, now time.Time) (epoch, seq uint64, err error) {
	err = r.c.Store.Update(func(tx *store.Tx) (err error) {
		epoch = tx.Epoch()
		seq, err = ch.write(tx, now, r.c.Log)
		return err
	})
	if err != nil {
		return 0, 0, fmt.Errorf("%w: %w", errStore, err)
	}
	return epoch, seq, nil
}

// lost reports that the host cannot be looked at, and, when the manager waits
// for everything, what was last known of it.
func (r *Reporter) lost(base store.Baseline, cause error, now time.Time) error {
	condition := wire.Condition{Condition: wire.ConditionUnreachable, Message: clip(cause.Error())}
	if hypervisor.CodeOf(cause) == wire.CodeDenied {
		condition.Condition = wire.ConditionDenied
	}
	if base.Condition != condition.Condition {
		r.c.Log.Warn("host cannot be managed", "condition", condition.Condition, "error", cause)
	}
	var ch changes
	wanted := r.wanted()
	full := wanted && base.Complete
	if full {
		ch = compare(base, hypervisor.Snapshot{Host: base.Host, VMs: base.VMs}, condition, true)
	} else {
		r.giveBack(wanted)
		if base.Condition != condition.Condition {
			ch = changes{condition: &condition}
		}
	}
	if ch.empty() {
		return nil
	}
	epoch, seq, err := r.write(ch, now)
	if err != nil {
		r.giveBack(wanted)
		return err
	}
	if full {
		r.fulfilled(epoch, seq)
	}
	return nil
}
