package mqttgw

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"pallas/commands"
	"pallas/events"
	"pallas/mqttgw/wire"
)

// What goes to a device is fire and forget: each message is sent again, or made
// superfluous, by the protocol's own repeats.

// PushTasks sends tasks to the device if it has a session and is approved.
// Otherwise it does nothing: the next Hello brings them.
func (g *Gateway) PushTasks(_ context.Context, id events.DeviceID, tasks []commands.Task) error {
	if s, pending := g.shard(id).session(id); s == nil || pending {
		return nil
	}
	return g.sendTasks(id, tasks)
}

// PushCancel tells the device not to begin a task, if it has a session.
func (g *Gateway) PushCancel(_ context.Context, id events.DeviceID, task events.TaskID) error {
	if s, pending := g.shard(id).session(id); s == nil || pending {
		return nil
	}
	return g.sendCancels(id, []events.TaskID{task})
}

// Kick closes the device's connections, also those that are just being made.
// The reason becomes that of Presence.Disconnected. To keep a device out,
// retire or quarantine it first.
func (g *Gateway) Kick(_ context.Context, id events.DeviceID, reason string) error {
	sh := g.shard(id)
	sh.mu.Lock()
	var conns []uint64
	if s := sh.sessions[id]; s != nil {
		conns = slices.Clone(s.conns)
		s.reason = reason
	}
	sh.mu.Unlock()
	for _, c := range conns {
		g.log.Info("device closed", "device", id, "conn", c, "reason", reason)
		g.broker.Kick(c)
	}
	return nil
}

// Retire tells the device that it was retired, if it has a session, and closes
// its connections. It is told once: what it does not hear now it learns from the
// door that stays shut.
func (g *Gateway) Retire(ctx context.Context, id events.DeviceID) error {
	if err := g.publish(id, wire.Down{Retired: true}); err != nil {
		return fmt.Errorf("tell device %s of its retirement: %w", id, err)
	}
	// The broker sends what it has for a connection before it closes it.
	if nc := g.devices.Load(); nc != nil {
		_ = nc.FlushTimeout(tellTimeout)
	}
	return g.Kick(ctx, id, "the device was retired")
}

// tellTimeout bounds how long the broker may take to have a last word for a
// device in its hands.
const tellTimeout = 5 * time.Second

// turnOut closes the connections of a device that may have none.
func (g *Gateway) turnOut(ctx context.Context, d commands.Device) error {
	if d.Trust == commands.TrustRetired {
		return g.Retire(ctx, d.ID)
	}
	return g.Kick(ctx, d.ID, "device is "+string(d.Trust))
}

// Refresh looks the device up again and tells it what changed: that it was
// approved, or, by closing its connection, that it was retired. It returns when
// that is done.
func (g *Gateway) Refresh(ctx context.Context, id events.DeviceID) error {
	if g.devices.Load() == nil {
		return nil // nobody has a session
	}
	sh := g.shard(id)
	done := make(chan error, 1)
	sh.do(func() { done <- sh.refresh(ctx, id) })
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("refresh device %s: %w", id, err)
		}
		return nil
	case <-g.done:
		return nil // nor has anybody now
	case <-ctx.Done():
		return fmt.Errorf("refresh device %s: %w", id, ctx.Err())
	}
}

func (g *Gateway) sendTasks(id events.DeviceID, tasks []commands.Task) error {
	out := make([]wire.Task, 0, len(tasks))
	for _, t := range tasks {
		u, err := uuid.Parse(string(t.ID))
		if err != nil {
			return fmt.Errorf("send task %q to %s: %w", t.ID, id, err)
		}
		out = append(out, wire.Task{ID: u, Kind: string(t.Kind), VM: string(t.VM), Deadline: t.Deadline.UTC()})
	}
	for part := range slices.Chunk(out, wire.MaxTasks) {
		if err := g.publish(id, wire.Down{Tasks: part, Time: g.now().UTC()}); err != nil {
			return fmt.Errorf("send tasks to %s: %w", id, err)
		}
	}
	return nil
}

func (g *Gateway) sendCancels(id events.DeviceID, tasks []events.TaskID) error {
	out := make([]uuid.UUID, 0, len(tasks))
	for _, t := range tasks {
		u, err := uuid.Parse(string(t))
		if err != nil {
			return fmt.Errorf("send cancel of %q to %s: %w", t, id, err)
		}
		out = append(out, u)
	}
	for part := range slices.Chunk(out, wire.MaxItems) {
		if err := g.publish(id, wire.Down{Cancels: part}); err != nil {
			return fmt.Errorf("send cancels to %s: %w", id, err)
		}
	}
	return nil
}

// send is publish for what the protocol repeats anyway.
func (g *Gateway) send(id events.DeviceID, d wire.Down) {
	if err := g.publish(id, d); err != nil {
		g.log.Warn("send to a device", "device", id, "err", err)
	}
}

func (g *Gateway) publish(id events.DeviceID, d wire.Down) error {
	nc := g.devices.Load()
	if nc == nil {
		return nil // not running: nobody is connected
	}
	d.Version = wire.Version
	if d.Error != nil {
		e := *d.Error
		e.Message = wire.Clip(e.Message)
		d.Error = &e
	}
	b, err := wire.EncodeDown(d)
	if err != nil {
		return err
	}
	return nc.Publish(wire.Subject(wire.DownTopic(string(id))), b)
}
