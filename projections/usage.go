package projections

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"pallas/events"
	"pallas/events/telemetry"
)

// usageDDL creates the tables of usage. This file is not disposable as the read
// model is: it remembers days that the stream has forgotten. So a later version
// has to change the tables in place.
//
// The day comes first in the key. A message is about one day, so that it
// touches neighbouring pages, and a device's days are as many look-ups.
const usageDDL = `
CREATE TABLE IF NOT EXISTS source (
	id       INTEGER PRIMARY KEY CHECK (id = 1),
	made     INTEGER NOT NULL,  -- when the stream was, in Unix nanoseconds: tells one from another
	position INTEGER NOT NULL
) STRICT;
INSERT OR IGNORE INTO source VALUES (1, 0, 0);

CREATE TABLE IF NOT EXISTS device_usage (
	day      TEXT NOT NULL,
	device   BLOB NOT NULL,  -- the 16 bytes of its id
	received INTEGER NOT NULL,
	sent     INTEGER NOT NULL,
	PRIMARY KEY (day, device)
) STRICT, WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS fleet_usage (
	day      TEXT PRIMARY KEY,
	stale    INTEGER NOT NULL,  -- device_usage has changed since
	devices  INTEGER NOT NULL DEFAULT 0,
	received INTEGER NOT NULL DEFAULT 0,
	sent     INTEGER NOT NULL DEFAULT 0,
	p50      INTEGER NOT NULL DEFAULT 0,
	p99      INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
`

const (
	// usagePoll is how often the stream is asked for more, usagePause how long
	// nothing is tried after a failure.
	usagePoll  = time.Second
	usagePause = 30 * time.Second
)

// UsageSource is the stream that usage comes from.
type UsageSource interface {
	// Bounds says when the stream was made, and its newest position.
	Bounds(ctx context.Context) (made time.Time, last uint64, err error)
	// NextUsage returns the first usage after a position, and its own position:
	// 0 for none. An error with a position is about that message alone.
	NextUsage(ctx context.Context, after uint64) (telemetry.Usage, uint64, error)
}

// UsageConfig is what a Usage needs.
type UsageConfig struct {
	// Path of the SQLite file, as for [Config].
	Path string
	// Keep is how many days are kept; 0 means all.
	Keep int
	// Log is where faults are told. Required.
	Log *slog.Logger
	// Registerer takes the metrics; nil for none.
	Registerer prometheus.Registerer
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Usage is what the devices' connections cost each day, in a SQLite file of its
// own that follows the stream of measurements.
type Usage struct {
	cfg    UsageConfig
	w, r   *sql.DB
	pruned telemetry.Day
	gauges []prometheus.Collector
}

// DayUsage is what one device's connections cost on a day.
type DayUsage struct {
	Day telemetry.Day
	telemetry.Bytes
}

// FleetDay is a day of all devices together. P50 and P99 are the bytes of both
// directions that this part of the devices did not exceed (nearest rank).
type FleetDay struct {
	DayUsage
	Devices  int
	P50, P99 uint64
}

// OpenUsage opens the file, or makes it. A damaged one is set aside as
// <path>.damaged; Run fills the new one with what the stream still has.
func OpenUsage(ctx context.Context, cfg UsageConfig) (*Usage, error) {
	switch {
	case cfg.Path == "":
		return nil, errors.New("open usage: Path is empty")
	case cfg.Log == nil:
		return nil, errors.New("open usage: Log is missing")
	case cfg.Keep < 0:
		return nil, fmt.Errorf("open usage: Keep is %d, want 0 or more", cfg.Keep)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	path, err := filepath.Abs(cfg.Path) // a relative one is no URI
	if err != nil {
		return nil, fmt.Errorf("open usage: %w", err)
	}
	cfg.Path = path
	u := &Usage{cfg: cfg}
	err = u.open(ctx)
	if errors.Is(err, errDamaged) {
		cfg.Log.Warn("usage file is damaged, starting another", "path", cfg.Path, "error", err)
		if err = setAside(cfg.Path); err == nil {
			err = u.open(ctx)
		}
	}
	if err == nil {
		err = u.register()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open usage %s: %w", cfg.Path, err), u.Close())
	}
	return u, nil
}

func (u *Usage) open(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(classify(err), u.Close())
			u.w, u.r = nil, nil
		}
	}()
	if u.w, err = sql.Open("sqlite3", dsn(u.cfg.Path, url.Values{
		"_busy_timeout": {busyTimeout}, "_journal_mode": {"WAL"}, "_synchronous": {"NORMAL"}, "_txlock": {"immediate"},
	})); err != nil {
		return err
	}
	u.w.SetMaxOpenConns(1)
	var result string
	if err := u.w.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&result); err != nil {
		return fmt.Errorf("quick_check: %w", err)
	}
	if result != "ok" {
		return fmt.Errorf("%w: %s", errDamaged, result)
	}
	if _, err := u.w.ExecContext(ctx, usageDDL); err != nil {
		return fmt.Errorf("create tables: %w", err)
	}
	if u.r, err = sql.Open("sqlite3", dsn(u.cfg.Path, url.Values{"mode": {"ro"}, "_query_only": {"1"}, "_busy_timeout": {busyTimeout}})); err != nil {
		return err
	}
	return u.r.PingContext(ctx)
}

func (u *Usage) register() error {
	if u.cfg.Registerer == nil {
		return nil
	}
	for quantile, of := range map[string]func(FleetDay) uint64{
		"0.5":  func(d FleetDay) uint64 { return d.P50 },
		"0.99": func(d FleetDay) uint64 { return d.P99 },
	} {
		g := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "pallas_device_day_bytes", ConstLabels: prometheus.Labels{"quantile": quantile},
			Help: "Bytes on the wire of a device on the last whole day (UTC), both directions.",
		}, func() float64 {
			yesterday := telemetry.DayOf(u.cfg.Now()).Add(-1)
			days, err := u.Fleet(context.Background(), yesterday, yesterday)
			if err != nil || len(days) == 0 {
				return 0
			}
			return float64(of(days[0]))
		})
		if err := u.cfg.Registerer.Register(g); err != nil {
			return err
		}
		u.gauges = append(u.gauges, g)
	}
	return nil
}

// Close closes the file. Run must have returned.
func (u *Usage) Close() error {
	for _, g := range u.gauges {
		u.cfg.Registerer.Unregister(g)
	}
	u.gauges = nil
	var errs []error
	for _, db := range []*sql.DB{u.r, u.w} { // the last to close tidies up, and only the writer may
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	return errors.Join(errs...)
}

// Run follows the stream until ctx is done, which is no error. It waits out a
// stream or a disk that does not answer.
func (u *Usage) Run(ctx context.Context, src UsageSource) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		wait := usagePoll
		if err := u.catchUp(ctx, src); err != nil && ctx.Err() == nil {
			wait = usagePause
			u.cfg.Log.Warn("usage of devices is not up to date", "retry_in", wait, "error", err)
		}
		timer.Reset(wait)
	}
}

// catchUp applies what the stream has, and then sums up the days that changed.
func (u *Usage) catchUp(ctx context.Context, src UsageSource) error {
	position, err := u.resume(ctx, src)
	if err != nil {
		return err
	}
	for {
		usage, next, err := src.NextUsage(ctx, position)
		switch {
		case err != nil && next == 0:
			return err
		case err != nil:
			u.cfg.Log.Error("usage of devices cannot be read and is left out", "position", next, "error", err)
			usage = telemetry.Usage{}
		case next == 0:
			if err := u.sumUp(ctx); err != nil {
				return err
			}
			return u.prune(ctx)
		}
		if err := u.apply(ctx, usage, next); err != nil {
			return fmt.Errorf("apply usage at %d: %w", next, err)
		}
		position = next
	}
}

// resume returns the position to go on after. Another stream is read from its
// beginning, and one that lost its end from there: what is here already cannot
// be told from what comes, so it stays.
func (u *Usage) resume(ctx context.Context, src UsageSource) (uint64, error) {
	made, last, err := src.Bounds(ctx)
	if err != nil {
		return 0, err
	}
	var was int64
	var position uint64
	if err := u.w.QueryRowContext(ctx, "SELECT made, position FROM source").Scan(&was, &position); err != nil {
		return 0, err
	}
	switch {
	case was != made.UnixNano():
		position = 0
	case last < position:
		position = last
	default:
		return position, nil
	}
	_, err = u.w.ExecContext(ctx, "UPDATE source SET made = ?, position = ?", made.UnixNano(), position)
	return position, err
}

// apply adds one message, with its position, in one transaction.
func (u *Usage) apply(ctx context.Context, usage telemetry.Usage, position uint64) (err error) {
	tx, err := u.w.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // after Commit there is nothing to take back
	add, err := tx.PrepareContext(ctx, `INSERT INTO device_usage VALUES (?, ?, ?, ?)
		ON CONFLICT DO UPDATE SET received = received + excluded.received, sent = sent + excluded.sent`)
	if err != nil {
		return err
	}
	defer add.Close() //nolint:errcheck // ends with the transaction
	for _, d := range usage.Devices {
		id := uuid.MustParse(string(d.Device)) // checked when it was decoded
		if _, err := add.ExecContext(context.WithoutCancel(ctx), usage.Day, id[:], int64(d.Received), int64(d.Sent)); err != nil {
			return err
		}
	}
	if len(usage.Devices) > 0 {
		if _, err := tx.ExecContext(ctx, "INSERT INTO fleet_usage (day, stale) VALUES (?, 1) ON CONFLICT DO UPDATE SET stale = 1", usage.Day); err != nil {
			return err
		}
	}
	if _, err := tx.ExecContext(ctx, "UPDATE source SET position = ?", position); err != nil {
		return err
	}
	return tx.Commit()
}

// sumUp makes the rows of all devices together for days that changed.
func (u *Usage) sumUp(ctx context.Context) error {
	days, err := collect(ctx, u.w, "SELECT day FROM fleet_usage WHERE stale", nil, func(rows *sql.Rows) (day telemetry.Day, err error) { return day, rows.Scan(&day) })
	if err != nil {
		return fmt.Errorf("look for days that changed: %w", err)
	}
	for _, day := range days {
		var sum telemetry.Bytes
		totals, err := collect(ctx, u.w, "SELECT received, sent FROM device_usage WHERE day = ?", []any{day}, func(rows *sql.Rows) (uint64, error) {
			var b telemetry.Bytes
			err := rows.Scan(&b.Received, &b.Sent)
			sum = sum.Plus(b)
			return b.Total(), err
		})
		if err == nil && len(totals) == 0 {
			err = ErrNotFound
		}
		if err != nil {
			return fmt.Errorf("sum up %s: %w", day, err)
		}
		slices.Sort(totals)
		if _, err := u.w.ExecContext(ctx, "UPDATE fleet_usage SET stale = 0, devices = ?, received = ?, sent = ?, p50 = ?, p99 = ? WHERE day = ?",
			len(totals), int64(sum.Received), int64(sum.Sent), int64(rank(totals, 50)), int64(rank(totals, 99)), day); err != nil {
			return fmt.Errorf("sum up %s: %w", day, err)
		}
	}
	return nil
}

// rank returns what this part of the sorted numbers does not exceed: the nearest
// rank.
func rank(sorted []uint64, percent int) uint64 { return sorted[(len(sorted)*percent+99)/100-1] }

// prune forgets the days that are not kept, once a day.
func (u *Usage) prune(ctx context.Context) error {
	today := telemetry.DayOf(u.cfg.Now())
	if u.cfg.Keep == 0 || u.pruned == today {
		return nil
	}
	for _, table := range []string{"fleet_usage", "device_usage"} { // no sum without its rows
		if _, err := u.w.ExecContext(ctx, "DELETE FROM "+table+" WHERE day <= ?", today.Add(-u.cfg.Keep)); err != nil {
			return fmt.Errorf("forget old days: %w", err)
		}
	}
	u.pruned = today
	return nil
}

const (
	deviceUsageQuery = `WITH RECURSIVE days (day) AS (SELECT ?1 UNION ALL SELECT date(day, '+1 day') FROM days WHERE day < ?2)
		SELECT u.day, u.received, u.sent FROM days d CROSS JOIN device_usage u ON u.day = d.day AND u.device = ?3`
	scopeUsageQuery = `WITH RECURSIVE days (day) AS (SELECT ?1 UNION ALL SELECT date(day, '+1 day') FROM days WHERE day < ?2)
		SELECT u.day, u.received, u.sent FROM json_each(?3) j CROSS JOIN days d CROSS JOIN device_usage u ON u.day = d.day AND u.device = unhex(j.value)`
	fleetUsageQuery = `SELECT day, received, sent, devices, p50, p99 FROM fleet_usage WHERE day BETWEEN ?1 AND ?2 AND devices > 0 ORDER BY day`
)

// Device returns what a device's connections cost, day by day from since to
// until. Days on which there was nothing are left out.
func (u *Usage) Device(ctx context.Context, device events.DeviceID, since, until telemetry.Day) ([]DayUsage, error) {
	id, err := uuid.Parse(string(device))
	if err != nil || since > until {
		return nil, err
	}
	days, err := collect(ctx, u.r, deviceUsageQuery, []any{since, until, id[:]}, func(rows *sql.Rows) (d DayUsage, err error) {
		return d, rows.Scan(&d.Day, &d.Received, &d.Sent)
	})
	if err != nil {
		return nil, fmt.Errorf("usage of %s: %w", device, err)
	}
	return days, nil
}

// Fleet returns what all connections cost, day by day from since to until. Days
// on which there was nothing are left out.
func (u *Usage) Fleet(ctx context.Context, since, until telemetry.Day) ([]FleetDay, error) {
	days, err := collect(ctx, u.r, fleetUsageQuery, []any{since, until}, func(rows *sql.Rows) (d FleetDay, err error) {
		return d, rows.Scan(&d.Day, &d.Received, &d.Sent, &d.Devices, &d.P50, &d.P99)
	})
	if err != nil {
		return nil, fmt.Errorf("usage of all devices: %w", err)
	}
	return days, nil
}

// Of returns what the connections of some devices cost together, day by day from
// since to until. Days on which there was nothing are left out.
func (u *Usage) Of(ctx context.Context, devices []events.DeviceID, since, until telemetry.Day) ([]FleetDay, error) {
	if since > until {
		return nil, nil
	}
	ids := make([]string, len(devices))
	for i, id := range devices {
		ids[i] = strings.ReplaceAll(string(id), "-", "")
	}
	set, err := json.Marshal(ids)
	if err != nil {
		return nil, fmt.Errorf("usage of some devices: %w", err)
	}
	days, totals := map[telemetry.Day]*FleetDay{}, map[telemetry.Day][]uint64{}
	if _, err := collect(ctx, u.r, scopeUsageQuery, []any{since, until, string(set)}, func(rows *sql.Rows) (struct{}, error) {
		var day telemetry.Day
		var b telemetry.Bytes
		err := rows.Scan(&day, &b.Received, &b.Sent)
		if days[day] == nil {
			days[day] = &FleetDay{DayUsage: DayUsage{Day: day}}
		}
		days[day].Bytes = days[day].Plus(b)
		totals[day] = append(totals[day], b.Total())
		return struct{}{}, err
	}); err != nil {
		return nil, fmt.Errorf("usage of some devices: %w", err)
	}
	var out []FleetDay
	for _, day := range slices.Sorted(maps.Keys(days)) {
		d, t := days[day], totals[day]
		slices.Sort(t)
		d.Devices, d.P50, d.P99 = len(t), rank(t, 50), rank(t, 99)
		out = append(out, *d)
	}
	return out, nil
}
