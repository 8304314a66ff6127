package executor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"pallas/agent/hypervisor"
	"pallas/agent/retry"
	"pallas/agent/store"
	"pallas/mqttgw/wire"
)

// Config of an [Executor]. Zero durations and counts mean the defaults.
type Config struct {
	Driver hypervisor.Driver
	Store  *store.Store
	// Now is the manager's clock, as far as the device knows it.
	Now func() time.Time
	Log *slog.Logger
	// Refresh, if set, is called after each task, before its outcome is
	// reported, so that the manager hears of the change first.
	Refresh func(context.Context)
	// ReadOnly, if set, returns why the host permits no changes, or "".
	ReadOnly func() string

	Parallel int           // tasks at a time; 4
	Timeout  time.Duration // of one task; 15 min
	Progress time.Duration // least time between two progress reports of a task; 2 s
	// Settle is how long after a restart the state that an interrupted task
	// wanted may take to show: the host goes on without the agent; 20 s.
	Settle time.Duration
	// Recover is how long a host that does not answer is asked what became of
	// an interrupted task; 10 min.
	Recover time.Duration
}

// progressRoom is the number of waiting reports from which on progress is not
// reported: results and inventory go first.
const progressRoom = 64

// pruneEvery is the number of outcomes between two clean-ups of the journal.
const pruneEvery = 64

// ErrFull says that the device has as many open tasks as a Hello can tell of.
// The manager keeps those it is not told to be accepted, and sends them again.
var ErrFull = errors.New("too many open tasks")

// Executor runs tasks.
type Executor struct {
	c Config

	mu      sync.Mutex
	run     context.Context // of Run; nil before and after
	queues  map[string][]store.Task
	order   []string // machines with waiting tasks and no running one, in turn
	busy    map[string]bool
	open    int // accepted and not ended
	workers int
	wg      sync.WaitGroup
	ended   int
}

// New checks the configuration.
func New(c Config) (*Executor, error) {
	if c.Driver == nil || c.Store == nil || c.Now == nil || c.Log == nil {
		return nil, errors.New("executor: Driver, Store, Now and Log are needed")
	}
	if c.Parallel <= 0 {
		c.Parallel = 4
	}
	for d, def := range map[*time.Duration]time.Duration{
		&c.Timeout: 15 * time.Minute, &c.Progress: 2 * time.Second, &c.Settle: 20 * time.Second, &c.Recover: 10 * time.Minute,
	} {
		if *d <= 0 {
			*d = def
		}
	}
	return &Executor{c: c, queues: map[string][]store.Task{}, busy: map[string]bool{}}, nil
}

// Run takes up what the journal left open, and works until ctx is done; then
// it returns nil when the last task has stopped. A task that runs at that time
// stays open in the journal.
func (e *Executor) Run(ctx context.Context) error {
	if err := e.c.Store.Prune(e.c.Now()); errors.Is(err, store.ErrWrite) {
		e.c.Log.Error("cannot clean up the journal", "error", err)
	} else if err != nil {
		return err
	}
	if err := e.resume(ctx); err != nil {
		return err
	}
	<-ctx.Done()
	e.mu.Lock()
	e.run = nil
	e.mu.Unlock()
	e.wg.Wait()
	return nil
}

// resume queues what the journal holds open, and lets workers start.
func (e *Executor) resume(ctx context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	open, err := e.c.Store.OpenTasks()
	if err != nil {
		return err
	}
	// What was submitted before Run is in the journal, and so in open.
	clear(e.queues)
	e.order, e.open = nil, 0
	e.run = ctx
	for _, task := range open {
		e.enqueue(task)
	}
	return nil
}

// Submit takes tasks from the manager, in order. When it returns nil each is in
// the journal and answered in the outbox; an error is the store's, and the
// manager will send the tasks again.
func (e *Executor) Submit(tasks []wire.Task) error {
	for _, t := range tasks {
		if err := e.submit(t); err != nil {
			return fmt.Errorf("take task %s: %w", t.ID, err)
		}
	}
	return nil
}

func (e *Executor) submit(t wire.Task) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.c.Now()
	task := store.Task{ID: t.ID, Kind: t.Kind, VM: t.VM, Deadline: t.Deadline.UTC(), Added: now}
	fresh := false
	err := e.c.Store.Update(func(tx *store.Tx) error {
		known, ok, err := tx.Task(t.ID)
		if err != nil {
			return err
		}
		if ok {
			return answer(tx, known, now)
		}
		task.State, task.Code, task.Message = e.judge(t, now)
		if task.Ended() {
			task.End = now
		} else if e.open >= wire.MaxItems {
			return ErrFull
		}
		if err := tx.ReportTask(task, now); err != nil {
			return err
		}
		if task, _, err = tx.Task(t.ID); err != nil {
			return err
		}
		fresh = true
		return nil
	})
	if err != nil || !fresh {
		return err
	}
	if task.Ended() {
		e.c.Log.Warn("task rejected", "task", task.ID, "kind", task.Kind, "vm", task.VM, "code", task.Code, "reason", task.Message)
		return nil
	}
	e.c.Log.Info("task accepted", "task", task.ID, "kind", task.Kind, "vm", task.VM)
	e.enqueue(task)
	return nil
}

// answer tells again what is known of a task, unless that is on its way.
func answer(tx *store.Tx, known store.Task, now time.Time) error {
	if known.Seq >= tx.First() {
		return nil
	}
	return tx.ReportTask(known, now)
}

// judge says whether a new task is accepted.
func (e *Executor) judge(t wire.Task, now time.Time) (state, code, message string) {
	switch t.Kind {
	case wire.TaskVMPowerOn, wire.TaskVMPowerOff, wire.TaskVMReset, wire.TaskVMSuspend, wire.TaskVMShutdown:
	default:
		return wire.StateRejected, wire.CodeUnsupported, fmt.Sprintf("this agent does not know tasks of kind %q; update it", clip(t.Kind))
	}
	if !t.Deadline.IsZero() && now.After(t.Deadline) {
		return wire.StateRejected, wire.CodeDeadline, late(t.Deadline, now)
	}
	if e.c.ReadOnly != nil {
		if reason := e.c.ReadOnly(); reason != "" {
			return wire.StateRejected, wire.CodeReadOnly, clip(reason)
		}
	}
	return wire.StateAccepted, "", ""
}

func late(deadline, now time.Time) string {
	return fmt.Sprintf("it had to begin by %s and it is %s", deadline.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
}

// Cancel keeps tasks from beginning. One that runs goes on: its outcome tells.
// One that is not known is noted, so that it does not begin when it comes.
func (e *Executor) Cancel(ids []uuid.UUID) error {
	for _, id := range ids {
		if err := e.cancel(id); err != nil {
			return fmt.Errorf("cancel task %s: %w", id, err)
		}
	}
	return nil
}

func (e *Executor) cancel(id uuid.UUID) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.c.Now()
	var task store.Task
	cancelled := false
	err := e.c.Store.Update(func(tx *store.Tx) (err error) {
		var ok bool
		if task, ok, err = tx.Task(id); err != nil {
			return err
		}
		switch {
		case ok && task.Ended():
			return answer(tx, task, now)
		case ok && task.Began:
			return nil
		case !ok:
			task = store.Task{ID: id, Added: now}
		}
		cancelled = true
		task.State, task.End = wire.StateCancelled, now
		return tx.ReportTask(task, now)
	})
	if err != nil {
		return err
	}
	switch {
	case cancelled:
		e.c.Log.Info("task cancelled", "task", id)
		q := e.queues[task.VM]
		e.queues[task.VM] = slices.DeleteFunc(q, func(t store.Task) bool { return t.ID == id })
		e.open -= len(q) - len(e.queues[task.VM])
	case !task.Ended():
		e.c.Log.Info("task runs already and cannot be cancelled; its outcome will tell", "task", id)
	}
	return nil
}

// enqueue adds a task to its machine's queue. The caller holds mu.
func (e *Executor) enqueue(task store.Task) {
	if len(e.queues[task.VM]) == 0 && !e.busy[task.VM] {
		e.order = append(e.order, task.VM)
	}
	e.queues[task.VM] = append(e.queues[task.VM], task)
	e.open++
	if e.run != nil && e.workers < e.c.Parallel {
		e.workers++
		ctx := e.run
		e.wg.Go(func() { e.work(ctx) })
	}
}

// work runs tasks until none waits that may run.
func (e *Executor) work(ctx context.Context) {
	for {
		task, ok := e.take(ctx)
		if !ok {
			return
		}
		e.do(ctx, task)
		e.mu.Lock()
		e.open--
		delete(e.busy, task.VM)
		if len(e.queues[task.VM]) > 0 {
			e.order = append(e.order, task.VM)
		}
		e.mu.Unlock()
	}
}

// take returns the next task whose machine is not busy, and makes it busy. When
// there is none, the worker is done.
func (e *Executor) take(ctx context.Context) (store.Task, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for ctx.Err() == nil && len(e.order) > 0 {
		vm := e.order[0]
		e.order = e.order[1:]
		q := e.queues[vm]
		if e.busy[vm] { // in the list twice: see cancel
			continue
		}
		if len(q) == 0 { // cancelled meanwhile
			delete(e.queues, vm)
			continue
		}
		task := q[0]
		if e.queues[vm] = q[1:]; len(q) == 1 {
			delete(e.queues, vm)
		}
		e.busy[vm] = true
		return task, true
	}
	e.workers--
	return store.Task{}, false
}

// do brings one task to its end. It leaves it open when ctx is done before.
func (e *Executor) do(ctx context.Context, task store.Task) {
	if task.Began {
		if state, code, message, ok := e.whatBecame(ctx, task); ok {
			e.end(ctx, task, state, code, message)
		}
		return
	}
	task, begun := e.begin(ctx, task)
	if !begun {
		return
	}
	if !task.Began {
		e.end(ctx, task, wire.StateFailed, wire.CodeDeadline, late(task.Deadline, e.c.Now()))
		return
	}
	limited, cancel := context.WithTimeout(ctx, e.c.Timeout)
	defer cancel()
	err := e.c.Driver.Run(limited, wire.Task{ID: task.ID, Kind: task.Kind, VM: task.VM, Deadline: task.Deadline}, e.progress(task.ID))
	if err != nil && ctx.Err() != nil {
		return // the next start finds out what became of it
	}
	if e.c.Refresh != nil {
		e.c.Refresh(ctx)
	}
	switch {
	case err == nil:
		e.end(ctx, task, wire.StateSucceeded, "", "")
	case limited.Err() != nil:
		e.end(ctx, task, wire.StateFailed, wire.CodeInterrupted,
			fmt.Sprintf("the host did not finish it within %v; what became of it is not known", e.c.Timeout))
	default:
		e.end(ctx, task, wire.StateFailed, hypervisor.CodeOf(err), err.Error())
	}
}

// begin notes in the journal that the host will be asked. ok is false when the
// task was cancelled in the last moment; Began stays unset when the task's time
// is over.
func (e *Executor) begin(ctx context.Context, task store.Task) (_ store.Task, ok bool) {
	err := e.write(ctx, task, func(tx *store.Tx, known store.Task, now time.Time) error {
		task = known
		if ok = !known.Ended(); !ok || (!known.Deadline.IsZero() && now.After(known.Deadline)) {
			return nil
		}
		task.Began = true
		return tx.PutTask(task)
	})
	return task, ok && err == nil
}

// write changes the journal's entry of a task. While it cannot, for a full disk
// perhaps, it tries again until ctx is done: a task neither begins unnoted, nor
// is its outcome forgotten.
func (e *Executor) write(ctx context.Context, task store.Task, change func(tx *store.Tx, known store.Task, now time.Time) error) error {
	again := retry.Backoff{Base: time.Second, Cap: time.Minute}
	for {
		now := e.c.Now()
		err := e.c.Store.Update(func(tx *store.Tx) error {
			known, ok, err := tx.Task(task.ID)
			if err != nil {
				return err
			}
			if !ok {
				known = task
			}
			return change(tx, known, now)
		})
		if err == nil {
			return nil
		}
		e.c.Log.Error("cannot write a task's state; trying again", "task", task.ID, "error", err)
		if retry.Pause(ctx, again.Next()) != nil {
			return err
		}
	}
}

// end writes an outcome to the journal and the outbox.
func (e *Executor) end(ctx context.Context, task store.Task, state, code, message string) {
	if e.write(ctx, task, func(tx *store.Tx, known store.Task, now time.Time) error {
		known.State, known.Code, known.Message, known.End = state, code, clip(message), now
		return tx.ReportTask(known, now)
	}) != nil {
		return
	}
	level := slog.LevelInfo
	if state != wire.StateSucceeded {
		level = slog.LevelWarn
	}
	e.c.Log.Log(ctx, level, "task ended", "task", task.ID, "kind", task.Kind, "vm", task.VM, "state", state, "code", code, "reason", message)
	e.mu.Lock()
	e.ended++
	prune := e.ended%pruneEvery == 0
	e.mu.Unlock()
	if prune {
		if err := e.c.Store.Prune(e.c.Now()); err != nil {
			e.c.Log.Error("cannot clean up the journal", "error", err)
		}
	}
}

// progress returns what a driver tells progress to. It reports now and then,
// and only while nothing more important waits.
func (e *Executor) progress(id uuid.UUID) func(int) {
	var mu sync.Mutex
	last, told := time.Time{}, 0
	return func(percent int) {
		mu.Lock()
		defer mu.Unlock()
		percent = min(max(percent, 0), 100)
		now := e.c.Now()
		if percent <= told || percent == 100 || now.Sub(last) < e.c.Progress || e.c.Store.Len() >= progressRoom {
			return
		}
		last, told = now, percent
		if err := e.c.Store.Update(func(tx *store.Tx) error {
			_, err := tx.Report(wire.Report{Time: now, Task: &wire.TaskState{ID: id, State: wire.StateProgress, Percent: percent}})
			return err
		}); err != nil {
			e.c.Log.Warn("progress not reported", "task", id, "error", err)
		}
	}
}

const maxMessage = 1024

// clip cuts a text to what fits a report.
func clip(s string) string {
	s = strings.ToValidUTF8(s, "�")
	if len(s) > maxMessage {
		s = strings.ToValidUTF8(s[:maxMessage], "")
	}
	return s
}
