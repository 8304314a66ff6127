package reactors

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"pallas/commands"
	"pallas/events"
)

// Door reaches devices. Each method is for the device's live session; without
// one it does nothing and returns nil. The methods are safe for concurrent
// use, and repeating one does no harm.
type Door interface {
	// PushTasks sends tasks in the order in which they are to be done.
	PushTasks(ctx context.Context, device events.DeviceID, tasks []commands.Task) error
	// PushCancel asks the device not to begin a task.
	PushCancel(ctx context.Context, device events.DeviceID, task events.TaskID) error
	// Kick ends the session.
	Kick(ctx context.Context, device events.DeviceID, reason string) error
	// Retire tells the device that it was retired, and ends the session.
	Retire(ctx context.Context, device events.DeviceID) error
	// Refresh greets the device again, after its approval.
	Refresh(ctx context.Context, device events.DeviceID) error
}

// ReadModel says where to begin.
type ReadModel interface {
	// OpenTasks returns the tasks that have not ended as of a position in the
	// log.
	OpenTasks(ctx context.Context) (tasks []OpenTask, position uint64, err error)
	// ConnectedDevices returns the devices whose newest presence is connected.
	ConnectedDevices(ctx context.Context) ([]events.DeviceID, error)
}

// OpenTask is a task that has not ended, and its device.
type OpenTask struct {
	Device events.DeviceID
	Task   commands.Task
}

// Config is what the reactors need.
type Config struct {
	Store     events.Store
	Commands  *commands.Dispatcher
	Door      Door
	ReadModel ReadModel
	// Presence is the one that the door reports sessions to.
	Presence *Presence
	// Log defaults to no log.
	Log *slog.Logger
	// Now is the clock; nil means the system's.
	Now func() time.Time
	// Resend is how long to wait for a device to accept a task before it is
	// pushed again; 0 means 5 s. It doubles with each repeat, up to MaxResend;
	// 0 means 5 min.
	Resend, MaxResend time.Duration
}

// Reactors are all of them. Use New.
type Reactors struct {
	store     events.Store
	readModel ReadModel
	log       *slog.Logger
	presence  *Presence
	tasks     *tasks
	doors     *doors
}

// New returns the reactors. They do nothing until Run.
func New(c Config) (*Reactors, error) {
	switch {
	case c.Store == nil:
		return nil, errors.New("reactors: Store is missing")
	case c.Commands == nil:
		return nil, errors.New("reactors: Commands is missing")
	case c.Door == nil:
		return nil, errors.New("reactors: Door is missing")
	case c.ReadModel == nil:
		return nil, errors.New("reactors: ReadModel is missing")
	case c.Presence == nil:
		return nil, errors.New("reactors: Presence is missing")
	case c.Presence.commands == nil:
		return nil, errors.New("reactors: Commands of Presence is missing")
	case c.Presence.grace < 0 || c.Presence.startGrace < 0:
		return nil, errors.New("reactors: Grace and StartGrace of Presence must not be negative")
	case c.Resend < 0 || c.MaxResend < 0:
		return nil, errors.New("reactors: Resend and MaxResend must not be negative")
	}
	c.Log, c.Now = orLog(c.Log), orNow(c.Now)
	c.Resend, c.MaxResend = or(c.Resend, 5*time.Second), or(c.MaxResend, 5*time.Minute)
	r := &Reactors{store: c.Store, readModel: c.ReadModel, log: c.Log, presence: c.Presence}
	r.tasks = newTasks(c)
	r.doors = newDoors(c)
	c.Presence.onConnected(r.tasks.connected)
	return r, nil
}

// Presence returns what the door reports sessions to.
func (r *Reactors) Presence() *Presence { return r.presence }

// Workers per reactor: enough that one slow append holds up nobody.
const workers = 8

// Run works until ctx is done, then waits for what is under way and returns
// nil. It fails only when the read model cannot say where to begin.
func (r *Reactors) Run(ctx context.Context) error {
	open, position, err := r.readModel.OpenTasks(ctx)
	if err != nil {
		return fmt.Errorf("open tasks to begin with: %w", err)
	}
	connected, err := r.readModel.ConnectedDevices(ctx)
	if err != nil {
		return fmt.Errorf("connected devices to begin with: %w", err)
	}
	// What the log has beyond the read model belongs to the time before this
	// start, too.
	last, err := r.store.Last(ctx)
	if err != nil {
		return fmt.Errorf("end of the log to begin with: %w", err)
	}
	for _, t := range open {
		r.tasks.look(t.Device)
	}
	for _, id := range connected {
		r.presence.expect(id)
	}
	var wg sync.WaitGroup
	wg.Go(func() { r.presence.run(ctx) })
	wg.Go(func() { r.tasks.run(ctx) })
	wg.Go(func() { r.doors.run(ctx) })
	wg.Go(func() { r.follow(ctx, position, last) })
	wg.Wait()
	return nil
}

// follow passes on what happens after a position. Records up to last were
// there at the start.
func (r *Reactors) follow(ctx context.Context, position, last uint64) {
	pause := minRetry
	for ctx.Err() == nil {
		for rec, err := range r.store.Follow(ctx, events.Filter{Subjects: []string{"ev.tasks.*", "ev.device.*"}, After: position}) {
			if err != nil {
				if pause == minRetry && ctx.Err() == nil {
					r.log.LogAttrs(ctx, slog.LevelError, "reactors cannot follow the event log", slog.Uint64("position", position), slog.Any("error", err))
				}
				break
			}
			position, pause = rec.Position, minRetry
			r.see(rec, rec.Position <= last)
		}
		wait(ctx, pause)
		pause = min(2*pause, maxRetry)
	}
}

// see lets the reactors know of a record; old says that it was there at the
// start.
func (r *Reactors) see(rec events.Record, old bool) {
	device := rec.Subject.Device()
	for _, en := range rec.Entries {
		switch en.Event.(type) {
		case events.TaskRequested, events.TaskCancelRequested:
			r.tasks.look(device)
		case events.DeviceApproved, events.CertificateRotationRequested:
			r.doors.open(visit{device, refresh})
		case events.DeviceRejected:
			r.doors.open(visit{device, kickRejected})
			r.presence.cutOff(device)
		case events.DeviceQuarantined:
			r.doors.open(visit{device, kickQuarantined})
			r.presence.cutOff(device)
		case events.DeviceRekeyed:
			r.doors.open(visit{device, kickRekeyed})
		case events.DeviceRetired:
			r.doors.open(visit{device, retire})
			r.presence.cutOff(device)
			r.tasks.look(device)
		case events.DeviceConnected:
			if old {
				r.presence.expect(device)
			}
		case events.DeviceLost:
			r.presence.lost(device)
		default:
		}
	}
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

func or(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}

func orLog(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}

func orNow(now func() time.Time) func() time.Time {
	if now == nil {
		return time.Now
	}
	return now
}
