package projections

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"pallas/events"
)

// VM is a virtual machine as of the read model's position.
type VM struct {
	events.VM
	Device events.DeviceID
	// DeviceName is the device's name now, "" when the device is not known.
	DeviceName string
	// FirstSeenAt is when it was first reported since it was last gone.
	FirstSeenAt     time.Time
	ChangedAt       time.Time
	ChangedPosition uint64
}

// VMFilter selects virtual machines on the devices of a scope, all when nothing
// else is set. A set with several values means any of them.
type VMFilter struct {
	// Scope holds the devices that may be seen; the zero Scope none.
	Scope  Scope
	Device events.DeviceID
	Power  []events.PowerState
	Tools  []events.ToolsState
	// Selector is over the labels of the device.
	Selector Selector
	// Text must be a part of the machine's name, guest OS, host name or one of
	// its addresses, or the beginning of its id (from 4 characters on). Case
	// does not matter.
	Text string
	// Sort is SortName, or SortID for the order of device and id; "" is
	// SortName.
	Sort Sort
	Window
}

func (w *writer) hostObserved(at now, id events.DeviceID, e events.HostObserved) error {
	h := e.Host
	datastores, err := list(h.Datastores)
	if err != nil {
		return err
	}
	networks, err := list(h.Networks)
	if err != nil {
		return err
	}
	if err := w.exec(`
		UPDATE devices SET host_at = ?, host_key = ?, host_name = ?, vendor = ?, model = ?, serial = ?, uuid = ?,
			product = ?, version = ?, build = ?, cpu_model = ?, cpu_sockets = ?, cpu_cores = ?, cpu_threads = ?,
			cpu_mhz = ?, memory_mib = ?, boot_time = ?, maintenance = ?,
			license_name = ?, license_edition = ?, license_expires = ?, license_writable = ?, license_reason = ?,
			datastores = ?, networks = ?, changed_position = ?, changed_at = ?
		WHERE id = ?`,
		at.at, fold(h.Name+"\n"+h.Serial+"\n"+h.UUID), h.Name, h.Vendor, h.Model, h.Serial, h.UUID,
		h.Product, h.Version, h.Build, h.CPUModel, h.CPUSockets, h.CPUCores, h.CPUThreads,
		h.CPUMHz, h.MemoryMiB, micros(h.BootTime), h.Maintenance,
		h.License.Name, h.License.Edition, micros(h.License.Expires), h.License.Writable, h.License.Reason,
		datastores, networks, at.position, at.at, string(id)); err != nil {
		return err
	}
	// A host that was observed is in reach. Until the agent says more, how far
	// it can be managed follows from its licence.
	condition, message := events.ConditionOK, ""
	if !h.License.Writable {
		condition, message = events.ConditionReadOnly, h.License.Reason
	}
	return w.exec(`
		UPDATE devices SET condition = ?1, condition_message = ?2
		WHERE id = ?3 AND condition_since IS NULL AND (condition, condition_message) IS NOT (?1, ?2)`,
		string(condition), message, string(id))
}

func (w *writer) hostConditionChanged(at now, id events.DeviceID, e events.HostConditionChanged) error {
	return w.exec(`
		UPDATE devices SET condition = ?, condition_message = ?, condition_since = ?, changed_position = ?, changed_at = ?
		WHERE id = ?`,
		string(e.Condition), e.Message, at.at, at.position, at.at, string(id))
}

func (w *writer) inventorySynced(at now, id events.DeviceID, e events.InventorySynced) error {
	return w.exec(`
		UPDATE devices SET inventory_hash = ?, inventory_synced_at = ?, changed_position = ?, changed_at = ?
		WHERE id = ?`,
		e.Hash, at.at, at.position, at.at, string(id))
}

// vmObserved leaves out what a device still reported while it was retired: the
// two are aggregates of their own, and nobody would remove it again.
func (w *writer) vmObserved(at now, device events.DeviceID, e events.VMObserved) error {
	if w.retired[device] {
		return nil
	}
	ips, err := list(e.VM.IPs)
	if err != nil {
		return err
	}
	disks, err := list(e.VM.Disks)
	if err != nil {
		return err
	}
	nics, err := list(e.VM.NICs)
	if err != nil {
		return err
	}
	return w.exec(`
		INSERT INTO vms (device, id, name, name_key, power, tools, cpus, memory_mib,
			guest_id, guest_name, hostname, ips, disks, nics, boot_time,
			first_seen_at, changed_at, changed_position)
		VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?16, ?17)
		ON CONFLICT (device, id) DO UPDATE SET
			name = excluded.name, name_key = excluded.name_key, power = excluded.power, tools = excluded.tools,
			cpus = excluded.cpus, memory_mib = excluded.memory_mib,
			guest_id = excluded.guest_id, guest_name = excluded.guest_name, hostname = excluded.hostname,
			ips = excluded.ips, disks = excluded.disks, nics = excluded.nics, boot_time = excluded.boot_time,
			changed_at = excluded.changed_at, changed_position = excluded.changed_position`,
		string(device), string(e.VM.ID), e.VM.Name, fold(e.VM.Name), string(e.VM.Power), string(e.VM.Tools), e.VM.CPUs, e.VM.MemoryMiB,
		e.VM.GuestID, e.VM.GuestName, e.VM.Hostname, ips, disks, nics, micros(e.VM.BootTime),
		at.at, at.position)
}

// vmChanged writes the columns that the patch names and no others, so that
// only their indexes are touched. The statements of the few shapes that
// patches have are kept prepared.
func (w *writer) vmChanged(at now, device events.DeviceID, e events.VMChanged) error {
	p := e.Patch
	text := "UPDATE vms SET changed_at = ?, changed_position = ?"
	args := make([]any, 0, 16)
	args = append(args, at.at, at.position)
	set := func(column string, value any) {
		text += ", " + column + " = ?"
		args = append(args, value)
	}
	if p.Name != nil {
		set("name", *p.Name)
		set("name_key", fold(*p.Name))
	}
	if p.Power != nil {
		set("power", string(*p.Power))
	}
	if p.Tools != nil {
		set("tools", string(*p.Tools))
	}
	if p.CPUs != nil {
		set("cpus", *p.CPUs)
	}
	if p.MemoryMiB != nil {
		set("memory_mib", *p.MemoryMiB)
	}
	if p.GuestID != nil {
		set("guest_id", *p.GuestID)
	}
	if p.GuestName != nil {
		set("guest_name", *p.GuestName)
	}
	if p.Hostname != nil {
		set("hostname", *p.Hostname)
	}
	if p.IPs != nil {
		ips, err := list(*p.IPs)
		if err != nil {
			return err
		}
		set("ips", ips)
	}
	if p.Disks != nil {
		disks, err := list(*p.Disks)
		if err != nil {
			return err
		}
		set("disks", disks)
	}
	if p.NICs != nil {
		nics, err := list(*p.NICs)
		if err != nil {
			return err
		}
		set("nics", nics)
	}
	if p.BootTime != nil {
		set("boot_time", micros(*p.BootTime))
	}
	return w.exec(text+" WHERE device = ? AND id = ?", append(args, string(device), string(e.VM))...)
}

func (w *writer) vmRemoved(device events.DeviceID, e events.VMRemoved) error {
	return w.exec(`DELETE FROM vms WHERE device = ? AND id = ?`, string(device), string(e.VM))
}

const vmColumns = `
	SELECT v.device, coalesce(d.name, ''), v.id, v.name, v.name_key, v.power, v.tools, v.cpus, v.memory_mib,
		v.guest_id, v.guest_name, v.hostname, v.ips, v.disks, v.nics, v.boot_time,
		v.first_seen_at, v.changed_at, v.changed_position`

// vmRow is a virtual machine with the key that lists are sorted by.
type vmRow struct {
	VM
	nameKey string
}

func scanVM(rows *sql.Rows) (vmRow, error) {
	var r vmRow
	v := &r.VM.VM
	err := rows.Scan(&r.Device, &r.DeviceName, &v.ID, &v.Name, &r.nameKey, &v.Power, &v.Tools, &v.CPUs, &v.MemoryMiB,
		&v.GuestID, &v.GuestName, &v.Hostname, listed{&v.IPs}, listed{&v.Disks}, listed{&v.NICs}, instant{&v.BootTime},
		instant{&r.FirstSeenAt}, instant{&r.ChangedAt}, &r.ChangedPosition)
	return r, err
}

// starts are the ways to begin the list.
func (f VMFilter) starts() []start {
	const table, key, id = "vms v", "v.name_key", "v.id"
	if f.Device != "" {
		return column(nil, table, "vms_by_device", "v.device", key, id, []events.DeviceID{f.Device})
	}
	starts := selectorStarts(f.Selector, start{
		join: "CROSS JOIN vms v INDEXED BY vms_by_device ON v.device = l.device", max: maxSorted / vmsOfDevice, weight: vmsOfDevice,
	})
	starts = column(starts, table, "vms_by_power", "v.power", key, id, f.Power)
	starts = append(starts, textStarts(start{
		join: "CROSS JOIN vms v ON v.rowid = x.docid", requirement: -1, max: maxFetched, weight: 1,
	}, "vm_text", fold(f.Text))...)
	for i := range starts {
		if f.Sort == SortID || starts[i].requirement >= 0 { // no index yields that order
			starts[i].key = ""
		}
	}
	return starts
}

// query builds the list's SELECT; see [DeviceFilter.query].
func (f VMFilter) query(size sizer) (query, error) {
	if err := checkText(f.Text); err != nil {
		return query{}, err
	}
	if f.Sort != SortID && f.Sort != SortName && f.Sort != "" {
		return query{}, &FieldError{"sort", fmt.Sprintf("want %s or %s", SortName, SortID)}
	}
	const names = " LEFT JOIN devices d ON d.id = v.device"
	common, rest := f.Scope.Common()
	f.Selector = f.Selector.And(common)
	q := query{from: vmColumns + " FROM vms v"}
	var from *start
	if f.Device == "" || f.Sort != SortID {
		var err error
		if from, err = choose(f.starts(), size); err != nil {
			return query{}, err
		}
	}
	sel := f.Selector
	switch {
	case from != nil:
		sel = sel.Without(from.requirement)
		q.and(from.cond, from.args...)
		if from.ordered() {
			q.from = vmColumns + " FROM " + from.from + names
		} else {
			q.outer = vmColumns + " FROM vms v" + names + " WHERE v.rowid IN"
			q.from = "SELECT v.rowid FROM " + from.from + " " + from.join
		}
	case f.Sort == SortID:
		q.from += " INDEXED BY sqlite_autoindex_vms_1" + names
		if f.Device != "" {
			q.and("v.device = ?", string(f.Device))
		}
	default:
		q.from += " INDEXED BY vms_by_name" + names
	}
	in(&q, "v.power", f.Power)
	in(&q, "v.tools", f.Tools)
	q.selects(sel, ofDevice("v.device"))
	q.within(rest, ofDevice("v.device"))
	if f.Text != "" {
		q.textIn(fold(f.Text), "v.id", "v.name_key", "lower(v.guest_name)", "lower(v.hostname)", "lower(v.ips)")
	}
	if f.Sort == SortID {
		q.tail = "ORDER BY v.device, v.id"
		if f.Cursor != "" {
			var device, id string
			if err := decodeCursor(f.Cursor, "vm-id", &device, &id); err != nil {
				return query{}, err
			}
			q.and("(v.device, v.id) > (?, ?)", device, id)
		}
		return q, nil
	}
	q.tail = "ORDER BY v.name_key, v.device, v.id"
	if f.Cursor != "" {
		var name, device, id string
		if err := decodeCursor(f.Cursor, "vm-name", &name, &device, &id); err != nil {
			return query{}, err
		}
		q.and("(v.name_key, v.device, v.id) > (?, ?, ?)", name, device, id)
	}
	return q, nil
}

// VMs returns a page of the virtual machines that the filter selects.
func (d *DB) VMs(ctx context.Context, f VMFilter) (Page[VM], error) {
	limit, err := f.limit()
	if err != nil {
		return Page[VM]{}, fmt.Errorf("list vms: %w", err)
	}
	q, err := f.query(d.sizer(ctx))
	if err != nil {
		return Page[VM]{}, fmt.Errorf("list vms: %w", err)
	}
	p, err := page(ctx, d, q, limit, scanVM, func(r vmRow) string {
		if f.Sort == SortID {
			return encodeCursor("vm-id", r.Device, r.ID)
		}
		return encodeCursor("vm-name", r.nameKey, r.Device, r.ID)
	})
	if err != nil {
		return Page[VM]{}, fmt.Errorf("list vms: %w", err)
	}
	return Page[VM]{Items: plainVMs(p.Items), Next: p.Next, Position: p.Position}, nil
}

func plainVMs(rows []vmRow) []VM {
	items := make([]VM, len(rows))
	for i, r := range rows {
		items[i] = r.VM
	}
	return items
}

// VM returns one virtual machine on a device of the scope, or ErrNotFound.
func (d *DB) VM(ctx context.Context, scope Scope, device events.DeviceID, id events.VMID) (VM, error) {
	q := query{from: vmColumns + " FROM vms v LEFT JOIN devices d ON d.id = v.device"}
	q.and("v.device = ? AND v.id = ?", string(device), string(id))
	q.within(scope, ofDevice("v.device"))
	r, err := one(ctx, d, q, scanVM)
	if err != nil {
		return VM{}, fmt.Errorf("vm %q of device %q: %w", id, device, err)
	}
	return r.VM, nil
}

// VMsNamed returns what a person may mean by a word on a device of the scope: the virtual
// machine with that id, else those with that name in whatever case. At most
// 20; none is no error.
func (d *DB) VMsNamed(ctx context.Context, scope Scope, device events.DeviceID, word string) ([]VM, error) {
	var rows []vmRow
	err := d.read(func(db *sql.DB) (err error) {
		for _, step := range []struct{ cond, arg string }{{"v.id = ?", word}, {"v.name_key = ?", fold(word)}} {
			q := query{from: vmColumns + " FROM vms v LEFT JOIN devices d ON d.id = v.device", tail: "ORDER BY v.name_key, v.id LIMIT ?"}
			q.and("v.device = ? AND "+step.cond, string(device), step.arg)
			q.within(scope, ofDevice("v.device"))
			rows, err = collect(ctx, db, q.sql(), append(q.args, maxMatches), scanVM)
			if err != nil || len(rows) > 0 {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("find vm %q of device %q: %w", word, device, err)
	}
	return plainVMs(rows), nil
}
