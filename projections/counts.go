package projections

import (
	"context"
	"database/sql"
	"fmt"

	"pallas/events"
)

// Counts is the fleet, or a scope of it, in numbers, at one position.
type Counts struct {
	Position uint64
	// Trust counts all devices. Connection, Condition and Version count those
	// that are not retired.
	Trust      map[Trust]int
	Connection map[Connection]int
	Condition  map[events.Condition]int
	Version    map[string]int
	// Power counts the virtual machines.
	Power map[events.PowerState]int
	// OpenTasks counts the tasks that have not ended.
	OpenTasks map[events.TaskStatus]int
}

// Counts returns the devices of a scope in numbers. Those of everything are kept
// at hand; others are counted now.
func (d *DB) Counts(ctx context.Context, scope Scope) (Counts, error) {
	if !scope.Everything() {
		return d.countWithin(ctx, scope)
	}
	var c Counts
	err := d.snapshot(ctx, func(tx *sql.Tx) (err error) {
		if err := tx.QueryRowContext(ctx, "SELECT position FROM meta").Scan(&c.Position); err != nil {
			return err
		}
		if err := c.devices(ctx, tx, deviceStates); err != nil {
			return err
		}
		if c.Power, err = count[events.PowerState](ctx, tx, `SELECT power, n FROM vm_counts WHERE n > 0`); err != nil {
			return err
		}
		c.OpenTasks, err = count[events.TaskStatus](ctx, tx,
			`SELECT status, count(*) FROM tasks INDEXED BY tasks_open WHERE ended_at IS NULL GROUP BY status`)
		return err
	})
	if err != nil {
		return Counts{}, fmt.Errorf("count the fleet: %w", err)
	}
	return c, nil
}

// deviceStates reads what the schema's triggers count.
const deviceStates = `SELECT trust, connection, condition, version, n FROM device_counts WHERE n > 0`

// countWithin counts the rows of a scope.
func (d *DB) countWithin(ctx context.Context, scope Scope) (Counts, error) {
	var c Counts
	devices, err := d.members(ctx, scope)
	if err != nil {
		return c, fmt.Errorf("count a scope: %w", err)
	}
	open := query{from: "SELECT t.status, count(*) FROM tasks t INDEXED BY tasks_open", tail: "GROUP BY t.status"}
	open.and("t.ended_at IS NULL")
	open.within(scope, ofDevice("t.device"))
	err = d.snapshot(ctx, func(tx *sql.Tx) (err error) {
		if err := tx.QueryRowContext(ctx, "SELECT position FROM meta").Scan(&c.Position); err != nil {
			return err
		}
		if err := c.devices(ctx, tx, `SELECT d.trust, d.connection, d.condition, d.version, count(*)
			FROM (`+devices.sql()+`) m CROSS JOIN devices d ON d.id = m.device GROUP BY 1, 2, 3, 4`, devices.args...); err != nil {
			return err
		}
		if c.Power, err = count[events.PowerState](ctx, tx, `SELECT v.power, count(*)
			FROM (`+devices.sql()+`) m CROSS JOIN vms v INDEXED BY vms_by_device ON v.device = m.device GROUP BY 1`, devices.args...); err != nil {
			return err
		}
		c.OpenTasks, err = count[events.TaskStatus](ctx, tx, open.sql(), open.args...)
		return err
	})
	if err != nil {
		return Counts{}, fmt.Errorf("count a scope: %w", err)
	}
	return c, nil
}

func (c *Counts) devices(ctx context.Context, tx *sql.Tx, text string, args ...any) error {
	c.Trust, c.Connection = map[Trust]int{}, map[Connection]int{}
	c.Condition, c.Version = map[events.Condition]int{}, map[string]int{}
	type group struct {
		trust      Trust
		connection Connection
		condition  events.Condition
		version    string
		n          int
	}
	groups, err := collect(ctx, tx, text, args, func(rows *sql.Rows) (g group, err error) {
		return g, rows.Scan(&g.trust, &g.connection, &g.condition, &g.version, &g.n)
	})
	for _, g := range groups {
		c.Trust[g.trust] += g.n
		if g.trust == TrustRetired {
			continue
		}
		c.Connection[g.connection] += g.n
		c.Condition[g.condition] += g.n
		c.Version[g.version] += g.n
	}
	return err
}

func count[K ~string](ctx context.Context, tx *sql.Tx, text string, args ...any) (map[K]int, error) {
	type row struct {
		key K
		n   int
	}
	rows, err := collect(ctx, tx, text, args, func(rows *sql.Rows) (r row, err error) {
		return r, rows.Scan(&r.key, &r.n)
	})
	if err != nil {
		return nil, err
	}
	m := make(map[K]int, len(rows))
	for _, r := range rows {
		m[r.key] = r.n
	}
	return m, nil
}
