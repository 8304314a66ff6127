package projections

import (
	"context"
	"database/sql"
	"fmt"

	"pallas/events"
)

// Selection says which devices a change is meant for.
type Selection struct {
	Selector Selector
	// Scope holds those that the caller may change: the zero Scope none.
	Scope Scope
	// Trust leaves out those in other states; none leaves out nothing.
	Trust []Trust
	// Limit is how many are returned at most.
	Limit int
}

func (s Selection) query() query {
	// The index has all that labels are looked up by. Whoever changes devices
	// waits for thousands of decisions, so a walk over all of it is cheap.
	q := query{from: "SELECT d.id FROM devices d INDEXED BY sqlite_autoindex_devices_1", tail: "ORDER BY d.id LIMIT ?"}
	q.selects(s.Selector, ofDevice("d.id"))
	q.within(s.Scope, ofDevice("d.id"))
	in(&q, "d.trust", s.Trust)
	q.args = append(q.args, s.Limit)
	return q
}

// SelectDevices returns the ids, sorted, of the devices that are meant.
func (d *DB) SelectDevices(ctx context.Context, s Selection) ([]events.DeviceID, error) {
	q := s.query()
	var ids []events.DeviceID
	err := d.read(func(db *sql.DB) (err error) {
		ids, err = collect(ctx, db, q.sql(), q.args, func(rows *sql.Rows) (id events.DeviceID, err error) { return id, rows.Scan(&id) })
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("select devices: %w", err)
	}
	return ids, nil
}
