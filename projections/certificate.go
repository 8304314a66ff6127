package projections

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pallas/events"
)

func (w *writer) rotationRequested(at now, id events.DeviceID) error {
	return w.updateDevice(at, id, "rotation_at = ?, ", at.at)
}

func (w *writer) anchorsChanged(at now, id events.DeviceID, e events.DeviceAnchorsChanged) error {
	anchors, err := list(e.Anchors)
	if err != nil {
		return err
	}
	return w.updateDevice(at, id, "anchors = ?, ", anchors)
}

// Expiry counts the newest certificates of devices that are not retired by when
// they end.
type Expiry struct {
	// Expired ended before the instant; In7 and In30 end within so many days
	// after it.
	Expired, In7, In30 int
}

const day = 24 * time.Hour

const expiryQuery = `
	SELECT count(*) FILTER (WHERE cert_not_after < ?1),
		count(*) FILTER (WHERE cert_not_after >= ?1 AND cert_not_after < ?2),
		count(*) FILTER (WHERE cert_not_after >= ?1)
	FROM devices INDEXED BY devices_by_certificate WHERE cert_not_after < ?3 AND trust <> 'retired'`

// Expiry returns the counts as of an instant.
func (d *DB) Expiry(ctx context.Context, at time.Time) (Expiry, error) {
	e, err := one(ctx, d, query{from: expiryQuery, args: []any{micros(at), micros(at.Add(7 * day)), micros(at.Add(30 * day))}},
		func(rows *sql.Rows) (e Expiry, err error) { return e, rows.Scan(&e.Expired, &e.In7, &e.In30) })
	if err != nil {
		return Expiry{}, fmt.Errorf("count certificates: %w", err)
	}
	return e, nil
}

// expiryTimeout bounds what a look at the metrics waits for.
const expiryTimeout = 5 * time.Second

// ExpiryCollector returns the counts as metrics.
func (d *DB) ExpiryCollector(now func() time.Time) prometheus.Collector {
	return &expiryCollector{
		db: d, now: now,
		expired:  prometheus.NewDesc("pallas_certificates_expired", "Devices, not retired, whose newest certificate has ended.", nil, nil),
		expiring: prometheus.NewDesc("pallas_certificates_expiring", "Devices, not retired, whose newest certificate ends within so many days.", []string{"days"}, nil),
	}
}

type expiryCollector struct {
	db                *DB
	now               func() time.Time
	expired, expiring *prometheus.Desc
}

func (c *expiryCollector) Describe(ch chan<- *prometheus.Desc) { ch <- c.expired; ch <- c.expiring }

func (c *expiryCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), expiryTimeout)
	defer cancel()
	e, err := c.db.Expiry(ctx, c.now())
	if err != nil {
		return // being built anew, or closed: no number is better than a wrong one
	}
	ch <- prometheus.MustNewConstMetric(c.expired, prometheus.GaugeValue, float64(e.Expired))
	ch <- prometheus.MustNewConstMetric(c.expiring, prometheus.GaugeValue, float64(e.In7), "7")
	ch <- prometheus.MustNewConstMetric(c.expiring, prometheus.GaugeValue, float64(e.In30), "30")
}

// DeviceTrust is what a device shows and whom it trusts.
type DeviceTrust struct {
	ID     events.DeviceID
	Issuer string
	// Anchors are those that the device has, as far as is known.
	Anchors []string
}

// DeviceTrusts reads those of all devices that are not retired from a read model
// that another process may be working with, sorted by id. A file that is not
// there, damaged or of another build of this program is an error.
func DeviceTrusts(ctx context.Context, path string) (list []DeviceTrust, err error) {
	db, err := openReaders(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("read model %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	var version int
	if err := db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return nil, fmt.Errorf("read model %s: %w", path, err)
	}
	if version != schemaVersion {
		return nil, fmt.Errorf("read model %s: it is of another version of this program: start the manager once", path)
	}
	list, err = collect(ctx, db, "SELECT id, cert_issuer, anchors FROM devices WHERE trust <> 'retired' ORDER BY id", nil,
		func(rows *sql.Rows) (t DeviceTrust, err error) {
			return t, rows.Scan(&t.ID, &t.Issuer, listed{&t.Anchors})
		})
	if err != nil {
		return nil, fmt.Errorf("read model %s: %w", path, err)
	}
	for i := range list {
		if t := &list[i]; t.Anchors == nil && t.Issuer != "" {
			t.Anchors = []string{t.Issuer}
		}
	}
	return list, nil
}

// Trusts says whether the device accepts the manager by a CA.
func (t DeviceTrust) Trusts(anchor string) bool { return slices.Contains(t.Anchors, anchor) }
