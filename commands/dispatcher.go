package commands

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pallas/events"
	"pallas/events/labels"
)

// Config is what a Dispatcher needs.
type Config struct {
	// Store is the event log. Required.
	Store events.Store
	// Now is the clock; nil means the system's. It is read once per command, and
	// only for commands that bring no time of their own.
	Now func() time.Time
	// Policy judges every command; nil allows all.
	Policy Policy
	// Snapshots shorten the loading of long histories; nil means none.
	Snapshots Snapshots
	// CacheBytes bounds the folded aggregates that are kept, by an estimate;
	// 0 means 256 MiB. One that is not used for two minutes leaves anyway.
	CacheBytes int
	// Log defaults to no log.
	Log *slog.Logger
	// Registerer takes the metrics; nil means that nobody looks.
	Registerer prometheus.Registerer
}

// Dispatcher carries out commands. It is safe for concurrent use.
type Dispatcher struct {
	store     events.Store
	now       func() time.Time
	policy    Policy
	snapshots Snapshots
	log       *slog.Logger
	cache     *cache
	locks     locks
	metrics   metrics
}

// Bounds of trying again.
const (
	maxConflicts   = 24 // decisions lost to another writer
	maxUnavailable = 4  // appends without an answer
	minPause       = 2 * time.Millisecond
	maxPause       = 250 * time.Millisecond
)

// trustFor is how long a device's approval, once read, holds for the reports
// that it sends. A retirement ends the device's session at once; this bounds
// what a session on another manager could still report.
const trustFor = 5 * time.Second

const defaultCacheBytes = 256 << 20

// New returns a dispatcher.
func New(c Config) (*Dispatcher, error) {
	switch {
	case c.Store == nil:
		return nil, errors.New("commands: Store is missing")
	case c.CacheBytes < 0:
		return nil, fmt.Errorf("commands: CacheBytes %d: want 0 or more", c.CacheBytes)
	case c.CacheBytes == 0:
		c.CacheBytes = defaultCacheBytes
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	aggregates := newCache(c.CacheBytes)
	m, err := newMetrics(c.Registerer, aggregates)
	if err != nil {
		return nil, fmt.Errorf("commands: %w", err)
	}
	return &Dispatcher{
		store: c.Store, now: c.Now, policy: c.Policy, snapshots: c.Snapshots, log: c.Log,
		cache: aggregates, locks: locks{held: map[events.Subject]*lock{}}, metrics: m,
	}, nil
}

// Do carries out a command and returns when the log has taken what follows.
//
// A refusal is an *[Error]; nothing was written. Other errors wrap those of
// [events.Store]: after ErrNoSpace nothing was written, after ErrUnavailable
// and when ctx ends nobody knows, and the same command with the same CommandID
// may be given again. ErrConflict means that other writers kept coming first.
func (d *Dispatcher) Do(ctx context.Context, c Command, m Meta) (Result, error) {
	return d.DoIf(ctx, c, m, nil)
}

// DoIf is [Dispatcher.Do] for a command that is meant only for what a guard
// permits. The guard judges the states that the command is decided on, so
// nothing comes between the two; it must be pure, and its error, an *[Error], is
// the refusal.
func (d *Dispatcher) DoIf(ctx context.Context, c Command, m Meta, guard func(States) error) (Result, error) {
	r, err := d.do(ctx, c, m, guard)
	d.metrics.count(c, r, err)
	return r, err
}

func (d *Dispatcher) do(ctx context.Context, c Command, m Meta, guard func(States) error) (Result, error) {
	if err := checkMeta(m); err != nil {
		return Result{}, err
	}
	scope, err := scopeOf(c, m)
	if err != nil {
		return Result{}, err
	}
	if err := checkSubject(c.Subject()); err != nil {
		return Result{}, err
	}
	if d.policy != nil {
		if err := d.policy.Allow(c, m); err != nil {
			return Result{}, err
		}
	}
	if m.Time.IsZero() {
		m.Time = d.now()
	}
	id, err := decisionID(c, m)
	if err != nil {
		return Result{}, err
	}
	subject := c.Subject()
	release, err := d.locks.acquire(ctx, subject)
	if err != nil {
		return Result{}, fmt.Errorf("wait for %s: %w", subject, err)
	}
	defer release()

	try := attempt{Dispatcher: d, command: c, guard: guard, subject: subject, scope: scope, decision: events.Decision{
		ID: id, Subject: subject, Time: instant(m.Time), Actor: m.Actor, Source: m.Source,
		Cause: or(m.Cause, m.CommandID), Traceparent: m.Traceparent,
	}}
	return try.run(ctx)
}

// attempt is one command on its way to its answer.
type attempt struct {
	*Dispatcher
	command  Command
	guard    func(States) error // nil permits all
	subject  events.Subject
	scope    labels.Scope
	decision events.Decision

	conflicts   int
	unavailable int
	// fresh asks the log whether the cached states are the newest.
	fresh bool
	// placed is the position of the decision, once a load came upon it.
	placed uint64
}

func (a *attempt) run(ctx context.Context) (Result, error) {
	for {
		e, confirmed, err := a.load(ctx)
		if err != nil {
			return Result{}, err
		}
		if a.placed != 0 && a.scope.Everything() {
			// Either this call's append came through although nobody said so,
			// or an earlier call with the same command id did all this.
			return a.repeated(e), nil
		}
		states, othersConfirmed, err := a.states(ctx, e)
		if err != nil {
			return Result{}, err
		}
		confirmed = confirmed && othersConfirmed
		inside := reaches(a.scope, a.subject, states)
		if a.placed != 0 && inside {
			return a.repeated(e), nil
		}
		var out Outcome
		if a.guard != nil && inside { // it must not tell of what is outside
			err = a.guard(states)
		}
		if err == nil {
			out, err = DecideWithin(a.scope, a.command, states, a.decision.Time)
		}
		if (err != nil || len(out.Entries) == 0) && !confirmed {
			// Nothing to append, so the log would not find out that the state
			// is an old one: ask it before answering.
			a.fresh = true
			continue
		}
		if err != nil {
			return Result{}, err
		}
		r := Result{Position: e.revision, Resync: out.Resync, Cursor: out.Cursor, Invalid: out.Invalid}
		if len(out.Entries) == 0 {
			return r, nil
		}
		a.decision.Entries = out.Entries
		appended, err := a.store.Append(ctx, e.revision, a.decision)
		switch {
		case err == nil && !appended.Duplicate:
			next, snapshot := a.cache.advance(a.subject, e, events.Record{Decision: a.decision, Position: appended.Position})
			if snapshot {
				a.keep(ctx, a.subject, next)
			}
			r.Position, r.Changed = appended.Position, true
			return r, nil
		case err == nil:
			// The log has it already; what it holds is what counts.
			a.placed, a.fresh = appended.Position, true
		case errors.Is(err, events.ErrConflict):
			a.fresh = true
			if err := a.again(ctx, "conflict", &a.conflicts, maxConflicts, err); err != nil {
				return Result{}, err
			}
		case errors.Is(err, events.ErrUnavailable):
			a.fresh = true
			if err := a.again(ctx, "unavailable", &a.unavailable, maxUnavailable, err); err != nil {
				return Result{}, err
			}
		default:
			return Result{}, fmt.Errorf("append to %s: %w", a.subject, err)
		}
	}
}

// load returns the aggregate's entry and whether the log confirmed it. When it
// comes upon this decision's id in the log, it sets placed.
func (a *attempt) load(ctx context.Context) (*entry, bool, error) {
	if e := a.cache.get(a.subject); e != nil && !a.fresh {
		a.metrics.loads.WithLabelValues("cache").Inc()
		a.placed = e.position(a.decision.ID)
		return e, false, nil
	}
	e, err := a.refresh(ctx, a.subject, func(r events.Record) {
		if r.ID == a.decision.ID {
			a.placed = r.Position
		}
	})
	if err != nil {
		return nil, false, err
	}
	if a.placed == 0 {
		a.placed = e.position(a.decision.ID)
	}
	return e, true, nil
}

// repeated is the answer when the decision is in the log.
func (a *attempt) repeated(e *entry) Result {
	r := Result{Position: a.placed, Changed: a.unavailable > 0}
	switch c := a.command.(type) {
	case ReportInventory:
		if s, ok := e.state.(*Inventory); ok && s.Epoch == c.Epoch {
			r.Cursor = s.Seq
		}
	case ReportTasks:
		if s, ok := e.state.(*Tasks); ok && s.Epoch == c.Epoch {
			r.Cursor = s.Seq
		}
	default:
	}
	return r
}

// again pauses before another try, or gives up with err.
func (a *attempt) again(ctx context.Context, reason string, count *int, limit int, err error) error {
	if *count++; *count > limit {
		return fmt.Errorf("append to %s, %d tries: %w", a.subject, *count, err)
	}
	a.metrics.retries.WithLabelValues(reason).Inc()
	pause := min(minPause<<min(*count-1, 10), maxPause)
	t := time.NewTimer(pause/2 + rand.N(pause/2))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("append to %s: %w: %w", a.subject, ctx.Err(), err)
	}
}

// states gathers what the command is decided on, and says whether the log
// confirmed the states of other aggregates just now.
func (a *attempt) states(ctx context.Context, own *entry) (s States, confirmed bool, err error) {
	s.set(own.state)
	confirmed = true
	add := func(subject events.Subject, maxAge time.Duration) {
		if err == nil {
			var now bool
			now, err = a.other(ctx, &s, subject, maxAge)
			confirmed = confirmed && now
		}
	}
	switch c := a.command.(type) {
	case RequestTask:
		add(events.DeviceSubject(c.Device), 0)
		add(events.InventorySubject(c.Device), 0)
	case ReportInventory:
		add(events.DeviceSubject(c.Device), trustFor)
	case ReportTasks:
		add(events.DeviceSubject(c.Device), trustFor)
	case UseJoinToken:
		add(events.DeviceSubject(c.Device), trustFor)
	case IssueAPIToken, RecordSignIn, RecordPassword, IssuePasswordReset, RecordSessionsEnded:
		add(events.AccessSubject(), 0)
	case DenyAccess:
		add(events.AccessSubject(), trustFor)
	case IssueJoinToken:
		if c.Device != "" {
			add(events.DeviceSubject(c.Device), 0)
		}
	default:
		if k := c.Subject().Kind(); (k == events.KindTasks || k == events.KindInventory) && !a.scope.Everything() {
			add(events.DeviceSubject(c.Subject().Device()), 0) // its labels are judged
		}
	}
	return s, confirmed, err
}

// other adds the state of another aggregate, confirmed by the log at most
// maxAge ago; 0 means now. It says whether that was now.
func (a *attempt) other(ctx context.Context, s *States, subject events.Subject, maxAge time.Duration) (bool, error) {
	e, checked := a.cache.share(subject)
	now := e == nil || a.fresh || maxAge == 0 || a.decision.Time.Sub(checked) >= maxAge
	if now {
		var err error
		if e, err = a.refresh(ctx, subject, nil); err != nil {
			return false, err
		}
	}
	s.set(e.state)
	return now, nil
}

func (s *States) set(f folded) {
	switch f := f.(type) {
	case *Device:
		s.Device = *f
	case *Inventory:
		s.Inventory = *f
	case *Tasks:
		s.Tasks = *f
	case *JoinToken:
		s.Token = *f
	case *Access:
		s.Access = *f
	case *User:
		s.User = *f
	case *Authority:
		s.Authority = *f
	}
}

// refresh returns the aggregate's entry as the log has it now, for reading, and
// keeps it in the cache. seen, if not nil, is called for each record that was read.
func (d *Dispatcher) refresh(ctx context.Context, s events.Subject, seen func(events.Record)) (*entry, error) {
	now := d.now()
	e, _ := d.cache.share(s)
	if e != nil {
		newest, err := d.store.Revision(ctx, s)
		if err != nil {
			return nil, fmt.Errorf("revision of %s: %w", s, err)
		}
		if newest <= e.revision { // less: from a replica that lags
			d.metrics.loads.WithLabelValues("cache").Inc()
			d.cache.put(s, e, now)
			return e, nil
		}
		e = e.fork()
		if err := d.replay(ctx, s, e, e.revision, seen); err != nil {
			return nil, err
		}
	} else {
		var err error
		if e, err = d.fromLog(ctx, s, seen); err != nil {
			return nil, err
		}
	}
	d.metrics.loads.WithLabelValues("log").Inc()
	if e.revision != 0 { // what does not exist takes no room
		if e.due() {
			d.keep(ctx, s, e)
		}
		d.cache.put(s, e, now)
	}
	return e, nil
}

// fromLog folds the aggregate, from its snapshot on when the log holds the
// snapshot's decision.
func (d *Dispatcher) fromLog(ctx context.Context, s events.Subject, seen func(events.Record)) (*entry, error) {
	if e := d.restore(ctx, s); e != nil {
		if err := d.replay(ctx, s, e, e.revision-1, seen); !errors.Is(err, errOtherLog) {
			return e, err
		}
	}
	state, err := newFolded(s)
	if err != nil {
		return nil, err
	}
	e := &entry{state: state.fork()}
	return e, d.replay(ctx, s, e, 0, seen)
}

// errOtherLog says that the log does not hold a snapshot's decision.
var errOtherLog = errors.New("the snapshot is of another log")

// replay folds what the log holds after a position into e. When that is before
// e's revision, e's own decision must come first.
func (d *Dispatcher) replay(ctx context.Context, s events.Subject, e *entry, after uint64, seen func(events.Record)) error {
	own := after >= e.revision
	for r, err := range d.store.Load(ctx, s, after) {
		switch {
		case err != nil:
			return fmt.Errorf("load %s: %w", s, err)
		case own:
			e.fold(r)
		case r.Position != e.revision || r.ID != e.decision:
			return errOtherLog
		default:
			own = true
		}
		if seen != nil {
			seen(r)
		}
	}
	if !own {
		return errOtherLog
	}
	return nil
}

// Device returns a device as the log has it now. An unknown one is an [Error]
// of KindNotFound.
func (d *Dispatcher) Device(ctx context.Context, id events.DeviceID) (Device, error) {
	s, err := read[Device](ctx, d, events.DeviceSubject(id))
	if err == nil && s.Revision == 0 {
		err = unknownDevice(id)
	}
	return s, err
}

// Inventory returns what a device has reported, as the log has it now: the
// zero Inventory when it has reported nothing.
func (d *Dispatcher) Inventory(ctx context.Context, id events.DeviceID) (Inventory, error) {
	return read[Inventory](ctx, d, events.InventorySubject(id))
}

// Tasks returns a device's task queue as the log has it now: the zero Tasks
// when nothing was ever asked of it.
func (d *Dispatcher) Tasks(ctx context.Context, id events.DeviceID) (Tasks, error) {
	return read[Tasks](ctx, d, events.TasksSubject(id))
}

// JoinToken returns a join token as the log has it now. An unknown one is an
// [Error] of KindNotFound.
func (d *Dispatcher) JoinToken(ctx context.Context, id events.TokenID) (JoinToken, error) {
	s, err := read[JoinToken](ctx, d, events.TokenSubject(id))
	if err == nil && s.ID == "" {
		err = notFound("join token %s is not known", clip(string(id)))
	}
	return s, err
}

// Access returns who may do what, as the log has it now.
func (d *Dispatcher) Access(ctx context.Context) (Access, error) {
	return read[Access](ctx, d, events.AccessSubject())
}

// User returns how a user gets in, as the log has it now: the zero User for one
// that has not begun, whether or not there is such a user.
func (d *Dispatcher) User(ctx context.Context, id events.UserID) (User, error) {
	return read[User](ctx, d, events.UserSubject(id))
}

// Standing returns what a user may do, and whether there is one. What this
// manager decides it sees at once, what others decide within a few seconds. It
// is cheap: each request of the API asks it. The grants are not to be changed.
func (d *Dispatcher) Standing(ctx context.Context, id events.UserID) (Standing, bool, error) {
	a, err := recent[*Access](ctx, d, events.AccessSubject())
	if err != nil {
		return Standing{}, false, err
	}
	u, ok := a.Users[id]
	return u, ok, nil
}

// APIToken returns what a token of a user permits, and whether there is one, as
// Standing does.
func (d *Dispatcher) APIToken(ctx context.Context, id events.UserID, token events.APITokenID) (APIToken, bool, error) {
	u, err := recent[*User](ctx, d, events.UserSubject(id))
	if err != nil {
		return APIToken{}, false, err
	}
	t, ok := u.Tokens[token]
	return t, ok, nil
}

// recent returns the state of an aggregate, confirmed by the log at most
// trustFor ago, for reading alone.
func recent[P folded](ctx context.Context, d *Dispatcher, s events.Subject) (P, error) {
	var zero P
	if err := checkSubject(s); err != nil {
		return zero, err
	}
	e, checked := d.cache.share(s)
	if e == nil || d.now().Sub(checked).Abs() >= trustFor {
		var err error
		if e, err = d.refresh(ctx, s, nil); err != nil {
			return zero, err
		}
	}
	p, ok := e.state.(P)
	if !ok {
		return zero, fmt.Errorf("read %s: it is a %T", s, e.state)
	}
	return p, nil
}

// Authority returns what the log knows of the devices' CA.
func (d *Dispatcher) Authority(ctx context.Context) (Authority, error) {
	return read[Authority](ctx, d, events.AuthoritySubject())
}

// read returns a copy of an aggregate's state that the caller may change.
func read[S any, P interface {
	*S
	folded
	copy() S
}](ctx context.Context, d *Dispatcher, s events.Subject) (S, error) {
	var zero S
	if err := checkSubject(s); err != nil {
		return zero, err
	}
	e, err := d.refresh(ctx, s, nil)
	if err != nil {
		return zero, err
	}
	p, ok := e.state.(P)
	if !ok {
		return zero, fmt.Errorf("read %s: it is a %T", s, e.state)
	}
	return p.copy(), nil
}

// decisionID is the same for the same command with the same command id from
// the same actor. The command itself is a part: an id that is used for two
// different commands must not make the second one disappear.
func decisionID(c Command, m Meta) (events.ID, error) {
	if m.CommandID == "" {
		return events.ID(events.NewID()), nil
	}
	body, err := json.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("identify %s: %w", typeName(c), err)
	}
	return events.ID(events.DeriveID("decision", string(m.Actor), m.CommandID, string(c.Subject()), typeName(c), string(body))), nil
}

func checkMeta(m Meta) *Error {
	switch {
	case m.Actor == "":
		return invalid("actor", "is missing")
	case !storable(m.Time):
		return invalid("time", "is beyond the year 9999")
	case len(m.CommandID) > MaxCommandID:
		return invalid("Idempotency-Key", "has %d bytes: shorten it to at most %d", len(m.CommandID), MaxCommandID)
	}
	for _, t := range [...]struct{ field, text string }{
		{"Idempotency-Key", m.CommandID},
		{"actor", string(m.Actor)},
		{"source", m.Source},
		{"cause", m.Cause},
		{"traceparent", m.Traceparent},
	} {
		if err := checkText(t.field, t.text, MaxReason); err != nil {
			return err
		}
	}
	return nil
}
