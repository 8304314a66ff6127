package projections

import (
	"context"
	"database/sql"
	"fmt"

	"pallas/events"
)

// members returns the query for the devices of a scope, as a column device.
func (d *DB) members(ctx context.Context, scope Scope) (query, error) {
	common, rest := scope.Common()
	starts := selectorStarts(common, start{max: maxSorted, weight: 1})
	from, err := choose(starts, d.sizer(ctx))
	if err != nil {
		return query{}, err
	}
	if from == nil && len(starts) > 0 {
		from = &starts[0] // many devices have each of the labels, and yet not all
	}
	q, id := query{from: "SELECT d.id AS device FROM devices d"}, "d.id"
	if from != nil {
		q.from, id = "SELECT l.device AS device FROM "+from.from, "l.device"
		q.and(from.cond, from.args...)
		common = common.Without(from.requirement)
	}
	q.selects(common, ofDevice(id))
	q.within(rest, ofDevice(id))
	return q, nil
}

// DevicesWithin returns the ids of the devices of a scope, retired ones too.
func (d *DB) DevicesWithin(ctx context.Context, scope Scope) ([]events.DeviceID, error) {
	var ids []events.DeviceID
	q, err := d.members(ctx, scope)
	if err == nil {
		err = d.read(func(db *sql.DB) (err error) {
			ids, err = collect(ctx, db, q.sql(), q.args, func(rows *sql.Rows) (id events.DeviceID, err error) {
				return id, rows.Scan(&id)
			})
			return err
		})
	}
	if err != nil {
		return nil, fmt.Errorf("list the devices of a scope: %w", err)
	}
	return ids, nil
}

// LabelsOf returns the labels that decide who may see an aggregate: those of its
// device, or those that the devices of its join token get. ErrNotFound says that
// it has none, not even no labels.
func (d *DB) LabelsOf(ctx context.Context, s events.Subject) (map[string]string, error) {
	q := query{from: "SELECT d.labels FROM devices d"}
	switch s.Kind() {
	case events.KindDevice, events.KindInventory, events.KindTasks:
		q.and("d.id = ?", s.Key())
	case events.KindToken:
		q.from = "SELECT t.labels FROM join_tokens t"
		q.and("t.id = ?", s.Key())
	default:
		return nil, fmt.Errorf("labels of %s: %w", s, ErrNotFound)
	}
	m, err := one(ctx, d, q, func(rows *sql.Rows) (m map[string]string, err error) { return m, rows.Scan(listed{&m}) })
	if err != nil {
		return nil, fmt.Errorf("labels of %s: %w", s, err)
	}
	return m, nil
}
