package reactors

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"pallas/commands"
	"pallas/events"
)

// tasks brings tasks to their devices and to their ends. A device with open
// tasks has one entry on the agenda; what the tasks need is read from the
// dispatcher when its time comes.
type tasks struct {
	commands  *commands.Dispatcher
	door      Door
	presence  *Presence
	now       func() time.Time
	resend    time.Duration
	maxResend time.Duration
	agenda    *agenda[events.DeviceID]

	mu sync.Mutex
	// queues are those of the devices that may have open tasks.
	queues map[events.DeviceID]*queue
}

// queue is how far a device's open tasks have been brought to it.
type queue struct {
	// pushes counts the repeats since something new came, 0 for none yet;
	// pushed is the time of the newest.
	pushes int
	pushed time.Time
	// news counts what has come, to see whether more came during a look.
	news int
}

func newTasks(c Config) *tasks {
	t := &tasks{
		commands: c.Commands, door: c.Door, presence: c.Presence, now: c.Now,
		resend: c.Resend, maxResend: c.MaxResend, queues: map[events.DeviceID]*queue{},
	}
	t.agenda = newAgenda(c.Now, func(id events.DeviceID, err error) {
		c.Log.LogAttrs(context.Background(), slog.LevelWarn, "tasks not brought forward, trying again",
			slog.String("device", string(id)), slog.Any("error", err))
	})
	return t
}

func (t *tasks) run(ctx context.Context) { t.agenda.run(ctx, workers, t.forward) }

// look makes a device's tasks be looked at now: there is news of them.
func (t *tasks) look(id events.DeviceID) {
	t.mu.Lock()
	q := t.queues[id]
	if q == nil {
		q = &queue{}
		t.queues[id] = q
	}
	q.news++
	q.pushes, q.pushed = 0, time.Time{}
	t.mu.Unlock()
	t.agenda.at(id, t.now())
}

// connected is told of each new session. The door has sent the device its
// open tasks by way of greeting: that counts as a first push.
func (t *tasks) connected(id events.DeviceID) {
	now := t.now()
	t.mu.Lock()
	q := t.queues[id]
	if q != nil {
		q.news++
		q.pushes, q.pushed = 1, now
	}
	t.mu.Unlock()
	if q != nil {
		t.agenda.at(id, now.Add(t.pause(1)))
	}
}

// forward does for a device's open tasks what their time demands, and returns
// when to look again.
func (t *tasks) forward(ctx context.Context, id events.DeviceID) (time.Time, error) {
	t.mu.Lock()
	q := t.queues[id]
	if q == nil {
		t.mu.Unlock()
		return time.Time{}, nil
	}
	seen := *q
	t.mu.Unlock()

	state, err := t.commands.Tasks(ctx, id)
	if err != nil {
		return time.Time{}, err
	}
	open := state.Open()
	if len(open) == 0 {
		t.forget(id, seen.news)
		return time.Time{}, nil
	}
	device, err := t.commands.Device(ctx, id)
	if err != nil && commands.KindOf(err) != commands.KindNotFound {
		return time.Time{}, err
	}
	if err != nil || device.Trust == commands.TrustRetired {
		for _, k := range open {
			if err := t.do(ctx, k, commands.EndTask{Device: id, Task: k.ID, Reason: "the device was retired"}); err != nil {
				return time.Time{}, err
			}
		}
		t.forget(id, seen.news)
		return time.Time{}, nil
	}

	var next time.Time
	var push []commands.Task
	var cancel []events.TaskID
	now := t.now()
	for _, k := range open {
		if !now.Before(k.Expiry()) {
			if err := t.do(ctx, k, commands.ExpireTask{Device: id, Task: k.ID}); err != nil {
				return time.Time{}, err
			}
			next = now // it may have been accepted just now: look again
			continue
		}
		next = earliest(next, k.Expiry())
		switch {
		case k.CancelRequested:
			cancel = append(cancel, k.ID)
		case k.Status == events.TaskStatusRequested:
			push = append(push, k)
		}
	}
	// A device without a session is reached when it connects. The first push
	// does not ask: the door knows best.
	if len(push)+len(cancel) == 0 || (seen.pushes > 0 && !t.presence.live(id)) {
		return next, nil
	}
	if again := seen.pushed.Add(t.pause(seen.pushes)); seen.pushes > 0 && now.Before(again) {
		return earliest(next, again), nil
	}
	if len(push) > 0 {
		err = t.door.PushTasks(ctx, id, push)
	}
	for _, k := range cancel {
		err = errors.Join(err, t.door.PushCancel(ctx, id, k))
	}
	if err != nil {
		return time.Time{}, err
	}
	t.mu.Lock()
	if q := t.queues[id]; q != nil && q.news == seen.news {
		q.pushes, q.pushed = seen.pushes+1, now
	}
	t.mu.Unlock()
	return earliest(next, now.Add(t.pause(seen.pushes+1))), nil
}

// pause is how long to wait after the n-th push.
func (t *tasks) pause(n int) time.Duration {
	d := t.resend
	for ; n > 1 && d < t.maxResend; n-- {
		d *= 2
	}
	return min(d, t.maxResend)
}

// do gives a command about a task. A refusal is an answer: the task is no more
// what it was, and the next look will show.
func (t *tasks) do(ctx context.Context, k commands.Task, c commands.Command) error {
	_, err := t.commands.Do(ctx, c, commands.Meta{Actor: events.SystemActor("tasks"), Cause: string(k.ID), Time: t.now()})
	if commands.KindOf(err) != "" {
		return nil
	}
	return err
}

// forget drops a device without open tasks, unless news came meanwhile.
func (t *tasks) forget(id events.DeviceID, news int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if q := t.queues[id]; q != nil && q.news == news {
		delete(t.queues, id)
	}
}
