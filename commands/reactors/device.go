package reactors

import (
	"context"
	"log/slog"
	"time"

	"pallas/events"
)

// doors tells live sessions what changed for their device: approval greets
// again; retirement, a rejection, a quarantine and another key end the session.
type doors struct {
	door   Door
	now    func() time.Time
	agenda *agenda[visit]
}

// visit is something to do at the door of one device.
type visit struct {
	device events.DeviceID
	what   action
}

type action string

const (
	refresh         action = "refresh"
	retire          action = "retire"
	kickRejected    action = "kick rejected"
	kickQuarantined action = "kick quarantined"
	kickRekeyed     action = "kick rekeyed"
)

func newDoors(c Config) *doors {
	return &doors{door: c.Door, now: c.Now, agenda: newAgenda(c.Now, func(v visit, err error) {
		c.Log.LogAttrs(context.Background(), slog.LevelWarn, "device not reached, trying again",
			slog.String("device", string(v.device)), slog.String("action", string(v.what)), slog.Any("error", err))
	})}
}

func (d *doors) open(v visit) { d.agenda.at(v, d.now()) }

func (d *doors) run(ctx context.Context) {
	d.agenda.run(ctx, workers, func(ctx context.Context, v visit) (time.Time, error) {
		return time.Time{}, d.visit(ctx, v)
	})
}

func (d *doors) visit(ctx context.Context, v visit) error {
	switch v.what {
	case retire:
		return d.door.Retire(ctx, v.device)
	case kickRejected:
		return d.door.Kick(ctx, v.device, "the device was rejected")
	case kickQuarantined:
		return d.door.Kick(ctx, v.device, "the device was put into quarantine")
	case kickRekeyed:
		return d.door.Kick(ctx, v.device, "the device has another key now")
	case refresh:
	}
	return d.door.Refresh(ctx, v.device)
}
