package projections

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"pallas/events"
)

// Trust says whether a device may be managed.
type Trust string

// The states of trust.
const (
	TrustPending     Trust = "pending"
	TrustApproved    Trust = "approved"
	TrustRejected    Trust = "rejected"
	TrustQuarantined Trust = "quarantined"
	TrustRetired     Trust = "retired"
)

// Connection says whether a device has a session.
type Connection string

// The states of a connection.
const (
	ConnectionNever     Connection = "never"
	ConnectionConnected Connection = "connected"
	ConnectionLost      Connection = "lost"
)

// Device is a device with its host, as of the read model's position.
type Device struct {
	ID     events.DeviceID
	Name   string
	Labels map[string]string
	Trust  Trust
	// Notes and Site are what people wrote down; Site is nil when nobody has.
	Notes string
	Site  *events.Site

	Connection Connection
	// ConnectionSince is when the device connected, or when its last session
	// ended; zero when it never connected.
	ConnectionSince time.Time
	// LostReason says why the last session ended while the connection is lost.
	LostReason string
	// Address and Protocol are those of the newest session.
	Address      string
	Protocol     int
	AgentVersion string

	// KeyHash is the hex SHA-256 of the device's public key; CertSerial and
	// CertNotAfter are those of the newest certificate.
	KeyHash      string
	CertSerial   string
	CertNotAfter time.Time
	// CertIssuer names the CA that signed it, CertReason says why.
	CertIssuer string
	CertReason events.CertificateReason
	// RotationAt is since when the device is to get another certificate, zero
	// when it is not.
	RotationAt time.Time
	// Anchors name the CAs that the device accepts the manager by; nil while it
	// has only ever said the one that issued its certificate.
	Anchors   []string
	JoinToken events.TokenID

	RegisteredAt time.Time
	ApprovedAt   time.Time // zero while pending
	ApprovedBy   events.Actor
	// Approval is "auto" or "manual", "" while pending.
	Approval      string
	RetiredAt     time.Time // zero unless retired
	RetiredBy     events.Actor
	RetiredReason string
	Standing

	// Condition is how well the agent can manage the host: "" before the
	// first word of it. Until the agent reports one it follows from the
	// licence that the host was observed with, and ConditionSince is zero.
	Condition        events.Condition
	ConditionMessage string
	ConditionSince   time.Time

	// Host is what the host says of itself, nil before the first report;
	// HostAt is when it last said something else.
	Host   *events.Host
	HostAt time.Time
	// InventoryHash and InventorySyncedAt are those of the newest complete
	// inventory.
	InventoryHash     string
	InventorySyncedAt time.Time

	// VMs counts the device's virtual machines, VMsOn those powered on.
	VMs, VMsOn int

	// Revision is that of the aggregate ev.device.<id>.
	Revision uint64
	// ChangedPosition and ChangedAt are those of the newest decision that
	// touched anything here except the VMs.
	ChangedPosition uint64
	ChangedAt       time.Time
}

// DeviceFilter selects devices of a scope, all when nothing else is set. A set
// with several values means any of them.
type DeviceFilter struct {
	// Scope holds the devices that may be seen; the zero Scope none.
	Scope      Scope
	Trust      []Trust
	Connection []Connection
	Condition  []events.Condition
	// Version is the hypervisor's version, such as "8.0.2".
	Version  string
	Selector Selector
	// CertificateExpiresBefore picks those whose newest certificate ends before
	// an instant; zero picks all.
	CertificateExpiresBefore time.Time
	// Text must be a part of the device's name, or of its host's name, serial
	// number or UUID, or the beginning of the device's id (from 4 characters
	// on). Case does not matter.
	Text string
	// Sort is SortName or SortID; "" is SortName.
	Sort Sort
	Window
}

func (w *writer) deviceRegistered(at now, id events.DeviceID, e events.DeviceRegistered) error {
	labels, err := labelText(e.Labels)
	if err != nil {
		return err
	}
	if err := w.exec(`
		INSERT INTO devices (id, name, name_key, trust, revision, changed_position, changed_at,
			agent_version, labels, key_hash, join_token, registered_at, trust_since, trust_by)
		VALUES (?, ?, ?, 'pending', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET name = excluded.name, name_key = excluded.name_key,
			agent_version = excluded.agent_version, labels = excluded.labels,
			key_hash = excluded.key_hash, join_token = excluded.join_token, revision = excluded.revision,
			changed_position = excluded.changed_position, changed_at = excluded.changed_at`,
		string(id), e.Name, fold(e.Name), at.position, at.position, at.at,
		e.AgentVersion, labels, e.KeyHash, string(e.JoinToken), at.at, at.at, at.actor); err != nil {
		return err
	}
	return w.replaceLabels(id, e.Labels)
}

// updateDevice sets columns of a device and, with them, its revision.
func (w *writer) updateDevice(at now, id events.DeviceID, columns string, args ...any) error {
	return w.exec("UPDATE devices SET "+columns+"revision = ?, changed_position = ?, changed_at = ? WHERE id = ?",
		append(args, at.position, at.position, at.at, string(id))...)
}

func (w *writer) deviceApproved(at now, id events.DeviceID, e events.DeviceApproved) error {
	return w.updateTrust(at, id, "'approved'", "", "approved_at = ?, approved_by = ?, approval = ?, ",
		at.at, at.actor, e.Policy)
}

func (w *writer) certificateIssued(at now, id events.DeviceID, e events.CertificateIssued) error {
	return w.updateDevice(at, id, `key_hash = ?, cert_serial = ?, cert_not_after = ?,
		cert_issuer = ?, cert_reason = ?, rotation_at = NULL, `,
		e.KeyHash, e.Serial, micros(e.NotAfter), e.Issuer, string(e.Reason))
}

func (w *writer) deviceConnected(at now, id events.DeviceID, e events.DeviceConnected) error {
	return w.updateDevice(at, id, `connection = 'connected', connection_since = ?, lost_reason = '',
		address = ?, agent_version = ?, protocol = ?, `,
		at.at, e.Address, e.AgentVersion, e.Protocol)
}

func (w *writer) deviceLost(at now, id events.DeviceID, e events.DeviceLost) error {
	since := micros(e.Since)
	if since == nil {
		since = at.at
	}
	return w.updateDevice(at, id, "connection = 'lost', connection_since = ?, lost_reason = ?, ", since, e.Reason)
}

func (w *writer) deviceLabelled(at now, id events.DeviceID, e events.DeviceLabelled) error {
	labels, err := labelText(e.Labels)
	if err != nil {
		return err
	}
	if err := w.updateDevice(at, id, "labels = ?, ", labels); err != nil {
		return err
	}
	return w.replaceLabels(id, e.Labels)
}

func (w *writer) replaceLabels(id events.DeviceID, labels map[string]string) error {
	if err := w.exec(`DELETE FROM device_labels WHERE device = ?`, string(id)); err != nil {
		return err
	}
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		if err := w.exec(`
			INSERT INTO device_labels (device, key, value, name_key)
			SELECT id, ?, ?, name_key FROM devices WHERE id = ?`,
			key, labels[key], string(id)); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) deviceRenamed(at now, id events.DeviceID, e events.DeviceRenamed) error {
	key := fold(e.Name)
	if err := w.updateDevice(at, id, "name = ?, name_key = ?, ", e.Name, key); err != nil {
		return err
	}
	return w.exec(`UPDATE device_labels SET name_key = ? WHERE device = ?`, key, string(id))
}

func (w *writer) deviceDescribed(at now, id events.DeviceID, e events.DeviceDescribed) error {
	site, err := json.Marshal(e.Site)
	if err != nil {
		return err
	}
	return w.updateDevice(at, id, "notes = ?, site = ?, ", e.Notes, string(site))
}

// deviceRetired also forgets the device's virtual machines: nobody reports
// them any more, and a list must not show them for ever.
func (w *writer) deviceRetired(at now, id events.DeviceID, e events.DeviceRetired) error {
	if err := w.updateTrust(at, id, "'retired'", e.Reason, "retired_at = ?, retired_by = ?, retired_reason = ?, ",
		at.at, at.actor, e.Reason); err != nil {
		return err
	}
	return w.exec(`DELETE FROM vms WHERE device = ?`, string(id))
}

const deviceColumns = `
	SELECT d.id, d.name, d.name_key, d.labels, d.notes, d.site, d.trust, d.connection, d.connection_since, d.lost_reason,
		d.address, d.protocol, d.agent_version, d.key_hash, d.cert_serial, d.cert_not_after, d.cert_issuer, d.cert_reason, d.rotation_at, d.anchors, d.join_token,
		d.registered_at, d.approved_at, d.approved_by, d.approval, d.retired_at, d.retired_by, d.retired_reason,
		d.trust_since, d.trust_by, d.trust_reason, d.trust_cause, d.trust_before,
		d.claim_key, d.claim_name, d.claim_agent, d.claim_token, d.claim_address, d.claim_at,
		d.condition, d.condition_message, d.condition_since, d.inventory_hash, d.inventory_synced_at,
		d.revision, d.changed_position, d.changed_at,
		d.host_at, d.host_name, d.vendor, d.model, d.serial, d.uuid, d.product, d.version, d.build,
		d.cpu_model, d.cpu_sockets, d.cpu_cores, d.cpu_threads, d.cpu_mhz, d.memory_mib, d.boot_time, d.maintenance,
		d.license_name, d.license_edition, d.license_expires, d.license_writable, d.license_reason,
		d.datastores, d.networks,
		(SELECT count(*) FROM vms v INDEXED BY vms_by_device WHERE v.device = d.id),
		(SELECT count(*) FROM vms v INDEXED BY vms_by_device WHERE v.device = d.id AND v.power = 'on')`

// deviceRow is a device with the key that lists are sorted by.
type deviceRow struct {
	Device
	nameKey string
}

func scanDevice(rows *sql.Rows) (deviceRow, error) {
	var d deviceRow
	var h events.Host
	var claim Claim
	err := rows.Scan(&d.ID, &d.Name, &d.nameKey, listed{&d.Labels}, &d.Notes, listed{&d.Site}, &d.Trust, &d.Connection, instant{&d.ConnectionSince}, &d.LostReason,
		&d.Address, &d.Protocol, &d.AgentVersion, &d.KeyHash, &d.CertSerial, instant{&d.CertNotAfter}, &d.CertIssuer, &d.CertReason, instant{&d.RotationAt}, listed{&d.Anchors}, &d.JoinToken,
		instant{&d.RegisteredAt}, instant{&d.ApprovedAt}, &d.ApprovedBy, &d.Approval, instant{&d.RetiredAt}, &d.RetiredBy, &d.RetiredReason,
		instant{&d.TrustSince}, &d.TrustBy, &d.TrustReason, &d.TrustCause, &d.TrustBefore,
		&claim.KeyHash, &claim.Name, &claim.AgentVersion, &claim.JoinToken, &claim.Address, instant{&claim.At},
		&d.Condition, &d.ConditionMessage, instant{&d.ConditionSince}, &d.InventoryHash, instant{&d.InventorySyncedAt},
		&d.Revision, &d.ChangedPosition, instant{&d.ChangedAt},
		instant{&d.HostAt}, &h.Name, &h.Vendor, &h.Model, &h.Serial, &h.UUID, &h.Product, &h.Version, &h.Build,
		&h.CPUModel, &h.CPUSockets, &h.CPUCores, &h.CPUThreads, &h.CPUMHz, &h.MemoryMiB, instant{&h.BootTime}, &h.Maintenance,
		&h.License.Name, &h.License.Edition, instant{&h.License.Expires}, &h.License.Writable, &h.License.Reason,
		listed{&h.Datastores}, listed{&h.Networks},
		&d.VMs, &d.VMsOn)
	if !d.HostAt.IsZero() {
		d.Host = &h
	}
	if claim.KeyHash != "" {
		d.Claim = &claim
	}
	return d, err
}

// starts are the ways to begin the list.
func (f DeviceFilter) starts() []start {
	const table, key, id = "devices d", "d.name_key", "d.id"
	starts := selectorStarts(f.Selector, start{
		key: "l.name_key", id: "l.device", join: "CROSS JOIN devices d ON d.id = l.device", max: maxFetched, weight: 1,
	})
	if f.Version != "" {
		starts = column(starts, table, "devices_by_version", "d.version", key, id, []string{f.Version})
	}
	starts = column(starts, table, "devices_by_condition", "d.condition", key, id, f.Condition)
	starts = column(starts, table, "devices_by_connection", "d.connection", key, id, f.Connection)
	starts = column(starts, table, "devices_by_trust", "d.trust", key, id, f.Trust)
	if t := f.CertificateExpiresBefore; !t.IsZero() {
		starts = append(starts, start{
			from: table + " INDEXED BY devices_by_certificate", cond: "d.cert_not_after < ?", args: []any{micros(t)},
			requirement: -1, max: maxSorted, weight: 1, id: id,
		})
	}
	starts = append(starts, textStarts(start{
		join: "CROSS JOIN devices d ON d.rowid = x.docid", requirement: -1, max: maxFetched, weight: 1,
	}, "device_text", fold(f.Text))...)
	if f.Sort == SortID { // no index yields that order
		for i := range starts {
			starts[i].key = ""
		}
	}
	return starts
}

// query builds the list's SELECT. The index that it begins with is named, so
// that its order never depends on what the planner guesses. Either it yields
// rows in the list's order, and the rest are conditions on them; or the rows
// are few, and their keys are sorted before the page is fetched.
func (f DeviceFilter) query(size sizer) (query, error) {
	if err := checkText(f.Text); err != nil {
		return query{}, err
	}
	if f.Sort != SortID && f.Sort != SortName && f.Sort != "" {
		return query{}, &FieldError{"sort", fmt.Sprintf("want %s or %s", SortName, SortID)}
	}
	common, rest := f.Scope.Common() // one more reason to begin with a label
	f.Selector = f.Selector.And(common)
	from, err := choose(f.starts(), size)
	if err != nil {
		return query{}, err
	}
	sel := f.Selector
	q := query{from: deviceColumns}
	key, id := "d.name_key", "d.id"
	switch {
	case from != nil:
		sel = sel.Without(from.requirement)
		q.and(from.cond, from.args...)
		if from.ordered() {
			key, id = from.key, from.id
			q.from += " FROM " + from.from + " " + from.join
		} else {
			q.outer = deviceColumns + " FROM devices d WHERE d.rowid IN"
			q.from = "SELECT d.rowid FROM " + from.from + " " + from.join
		}
	case f.Sort == SortID:
		q.from += " FROM devices d INDEXED BY sqlite_autoindex_devices_1"
	default:
		q.from += " FROM devices d INDEXED BY devices_by_name"
	}
	in(&q, "d.trust", f.Trust)
	in(&q, "d.connection", f.Connection)
	in(&q, "d.condition", f.Condition)
	if f.Version != "" {
		q.and("d.version = ?", f.Version)
	}
	if t := f.CertificateExpiresBefore; !t.IsZero() {
		// The plus sign keeps the planner from the other index.
		q.and("+d.cert_not_after < ?", micros(t))
	}
	q.selects(sel, ofDevice("d.id"))
	q.within(rest, ofDevice("d.id"))
	if f.Text != "" {
		q.textIn(fold(f.Text), "d.id", "d.name_key", "d.host_key")
	}
	if f.Sort == SortID {
		q.tail = "ORDER BY d.id"
		if f.Cursor != "" {
			var after string
			if err := decodeCursor(f.Cursor, "device-id", &after); err != nil {
				return query{}, err
			}
			q.and("d.id > ?", after)
		}
		return q, nil
	}
	q.tail = "ORDER BY " + key + ", " + id
	if f.Cursor != "" {
		var afterName, afterID string
		if err := decodeCursor(f.Cursor, "device-name", &afterName, &afterID); err != nil {
			return query{}, err
		}
		q.and("("+key+", "+id+") > (?, ?)", afterName, afterID)
	}
	return q, nil
}

// Devices returns a page of the devices that the filter selects.
func (d *DB) Devices(ctx context.Context, f DeviceFilter) (Page[Device], error) {
	limit, err := f.limit()
	if err != nil {
		return Page[Device]{}, fmt.Errorf("list devices: %w", err)
	}
	q, err := f.query(d.sizer(ctx))
	if err != nil {
		return Page[Device]{}, fmt.Errorf("list devices: %w", err)
	}
	p, err := page(ctx, d, q, limit, scanDevice, func(r deviceRow) string {
		if f.Sort == SortID {
			return encodeCursor("device-id", r.ID)
		}
		return encodeCursor("device-name", r.nameKey, r.ID)
	})
	if err != nil {
		return Page[Device]{}, fmt.Errorf("list devices: %w", err)
	}
	return Page[Device]{Items: plainDevices(p.Items), Next: p.Next, Position: p.Position}, nil
}

func plainDevices(rows []deviceRow) []Device {
	items := make([]Device, len(rows))
	for i, r := range rows {
		items[i] = r.Device
	}
	return items
}

// Device returns one device of the scope, or ErrNotFound.
func (d *DB) Device(ctx context.Context, scope Scope, id events.DeviceID) (Device, error) {
	q := query{from: deviceColumns + " FROM devices d"}
	q.and("d.id = ?", string(id))
	q.within(scope, ofDevice("d.id"))
	r, err := one(ctx, d, q, scanDevice)
	if err != nil {
		return Device{}, fmt.Errorf("device %q: %w", id, err)
	}
	return r.Device, nil
}

// maxMatches bounds what DevicesNamed and VMsNamed return.
const maxMatches = 20

// minPrefix is how many characters of an id are enough to look for it.
const minPrefix = 4

// DevicesNamed returns what a person may mean by a word, of the devices of a
// scope: the device with that id, else those with that name in whatever case, else those whose id begins
// with it (from 4 characters on). At most 20, in the order of names; none is
// no error.
func (d *DB) DevicesNamed(ctx context.Context, scope Scope, word string) ([]Device, error) {
	var rows []deviceRow
	err := d.read(func(db *sql.DB) (err error) {
		for _, step := range []struct {
			skip bool
			cond string
			args []any
		}{
			{false, "d.id = ?", []any{word}},
			{word == "", "d.name_key = ?", []any{fold(word)}},
			{len(word) < minPrefix, "d.id >= ? AND d.id < ?", []any{fold(word), fold(word) + "\x7f"}},
		} {
			if step.skip {
				continue
			}
			q := query{from: deviceColumns + " FROM devices d", tail: "ORDER BY d.name_key, d.id LIMIT ?"}
			q.and(step.cond, step.args...)
			q.within(scope, ofDevice("d.id"))
			rows, err = collect(ctx, db, q.sql(), append(q.args, maxMatches), scanDevice)
			if err != nil || len(rows) > 0 {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("find device %q: %w", word, err)
	}
	return plainDevices(rows), nil
}

// ConnectedDevices returns the ids of the devices that are connected, sorted.
func (d *DB) ConnectedDevices(ctx context.Context) ([]events.DeviceID, error) {
	var ids []events.DeviceID
	err := d.read(func(db *sql.DB) (err error) {
		ids, err = collect(ctx, db, "SELECT id FROM devices WHERE connection = 'connected' ORDER BY id", nil,
			func(rows *sql.Rows) (id events.DeviceID, err error) {
				return id, rows.Scan(&id)
			})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list connected devices: %w", err)
	}
	return ids, nil
}
