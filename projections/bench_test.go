package projections

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"pallas/events"
	"pallas/events/eventstest"
)

// benchDevices and benchVMs are the fleet of the benchmarks: devices, and
// virtual machines on each.
const (
	benchDevices = 2000
	benchVMs     = 4
)

// benchVM is a virtual machine as hosts report them, with its power state.
func benchVM(device, vm int, power events.PowerState) events.VM {
	v := fullVM(events.VMID(fmt.Sprintf("50000000-0000-4000-8000-%06x%06x", device, vm)))
	v.Name, v.Power = fmt.Sprintf("vm %d of %d", vm, device), power
	return v
}

// benchLog holds a decision per event for devices with their hosts and
// virtual machines, and then changes of power.
func benchLog(b testing.TB, devices int) (store events.Store, changes int) {
	b.Helper()
	m := eventstest.NewMemory()
	n := 0
	add := func(s events.Subject, e events.Event) {
		n++
		appendTo(b, m, events.Decision{
			ID: events.ID(events.NewID()), Subject: s, Time: at(n), Actor: "system:bench", Entries: []events.Entry{{Event: e}},
		})
	}
	for i := range devices {
		id := fleetID(i)
		labels := map[string]string{"site": fmt.Sprintf("s%d", i%100), "role": []string{"pos", "kiosk"}[i%2]}
		add(events.DeviceSubject(id), events.DeviceRegistered{Device: id, Name: fmt.Sprintf("device-%06d", i), JoinToken: token1, Labels: labels, KeyHash: "k", AgentVersion: "1"})
		add(events.DeviceSubject(id), events.DeviceConnected{Address: "192.0.2.1", AgentVersion: "1", Protocol: 1})
		add(events.InventorySubject(id), events.HostObserved{Host: fullHost()})
		for v := range benchVMs {
			add(events.InventorySubject(id), events.VMObserved{VM: benchVM(i, v, events.PowerOff)})
		}
	}
	for v := range benchVMs {
		for i := range devices {
			add(events.InventorySubject(fleetID(i)), events.VMChanged{VM: benchVM(i, v, "").ID, Patch: events.VMPatch{Power: new(events.PowerOn)}})
		}
	}
	return m, n
}

// BenchmarkRebuild compares building the read model from a log with raw
// batched upserts that write the same rows in the same order, 1000 to a
// transaction, with everything at hand that the rows are made of.
func BenchmarkRebuild(b *testing.B) {
	store, n := benchLog(b, benchDevices)
	var recs []events.Record
	for rec, err := range store.Read(b.Context(), events.Filter{}) {
		if err != nil {
			b.Fatal(err)
		}
		recs = append(recs, rec)
	}
	dir := b.TempDir()
	var rebuild, raw time.Duration
	b.ReportAllocs()
	runs := 0
	for b.Loop() {
		runs++
		begin := time.Now()
		if _, err := Rebuild(b.Context(), filepath.Join(dir, "read.db"), store); err != nil {
			b.Fatal(err)
		}
		rebuild += time.Since(begin)

		b.StopTimer()
		begin = time.Now()
		rawUpsert(b, filepath.Join(dir, "raw.db"), recs)
		raw += time.Since(begin)
		b.StartTimer()
	}
	b.ReportMetric(float64(runs*n)/rebuild.Seconds(), "events/s")
	b.ReportMetric(float64(runs*n)/raw.Seconds(), "raw-upserts/s")
	b.ReportMetric(raw.Seconds()/rebuild.Seconds(), "of-raw")
}

// rawUpsert writes the rows of the bench log with prepared statements and
// nothing around them: a program that has the values in memory, and keeps
// neither counts nor a text index.
func rawUpsert(b *testing.B, path string, recs []events.Record) {
	b.Helper()
	must := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	must(removeFiles(path))
	w, err := openWriter(b.Context(), path)
	must(err)
	ctx := context.Background()
	triggers, err := collect(ctx, w.conn, "SELECT name FROM sqlite_schema WHERE type = 'trigger'", nil,
		func(rows *sql.Rows) (name string, err error) { return name, rows.Scan(&name) })
	must(err)
	for _, name := range triggers {
		_, err := w.conn.ExecContext(ctx, "DROP TRIGGER "+name)
		must(err)
	}
	prepare := func(text string) *sql.Stmt {
		s, err := w.conn.PrepareContext(ctx, text)
		must(err)
		return s
	}
	device := prepare(`INSERT INTO devices (id, name, name_key, trust, revision, changed_position, changed_at, agent_version, labels, key_hash, join_token, registered_at)
		VALUES (?, ?, ?, 'pending', ?, ?, ?, '1', '{"role":"pos","site":"s1"}', 'k', ?, ?) ON CONFLICT (id) DO UPDATE SET name = excluded.name`)
	label := prepare(`INSERT INTO device_labels VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET value = excluded.value`)
	connected := prepare(`UPDATE devices SET connection = 'connected', connection_since = ?, address = ?, agent_version = '1', protocol = 1, revision = ?, changed_position = ?, changed_at = ? WHERE id = ?`)
	h := fullHost()
	datastores, err := list(h.Datastores)
	must(err)
	networks, err := list(h.Networks)
	must(err)
	host := prepare(`UPDATE devices SET host_at = ?, host_key = ?, host_name = ?, vendor = ?, model = ?, serial = ?, uuid = ?,
		product = ?, version = ?, build = ?, cpu_model = ?, cpu_sockets = 1, cpu_cores = 16, cpu_threads = 32, cpu_mhz = 2095, memory_mib = 131072,
		boot_time = 1, maintenance = 1, license_name = ?, license_edition = ?, license_expires = 1, license_writable = 1, license_reason = ?,
		datastores = ?, networks = ?, condition = 'ok', changed_position = ?, changed_at = ? WHERE id = ?`)
	v := fullVM(vm1)
	ips, err := list(v.IPs)
	must(err)
	disks, err := list(v.Disks)
	must(err)
	nics, err := list(v.NICs)
	must(err)
	vm := prepare(`INSERT INTO vms VALUES (?, ?, ?, ?, 'off', 'running', 4, 8192, ?, ?, ?, ?, ?, ?, 1, ?, ?, ?)
		ON CONFLICT (device, id) DO UPDATE SET power = excluded.power, changed_at = excluded.changed_at, changed_position = excluded.changed_position`)
	power := prepare(`UPDATE vms SET changed_at = ?, changed_position = ?, power = ? WHERE device = ? AND id = ?`)
	meta := prepare(`UPDATE meta SET position = ?, decision = ?`)
	exec := func(s *sql.Stmt, args ...any) {
		b.Helper()
		_, err := s.ExecContext(ctx, args...)
		must(err)
	}
	begin, commit := prepare("BEGIN IMMEDIATE"), prepare("COMMIT")
	for i := range recs {
		rec := &recs[i]
		if i%batchSize == 0 {
			exec(begin)
		}
		id, p, at := rec.Subject.Key(), int64(rec.Position), rec.Time.UnixMicro()
		switch e := rec.Entries[0].Event.(type) {
		case events.DeviceRegistered:
			exec(device, id, e.Name, e.Name, p, p, at, string(e.JoinToken), at)
			exec(label, id, "role", "pos", e.Name)
			exec(label, id, "site", "s1", e.Name)
		case events.DeviceConnected:
			exec(connected, at, e.Address, p, p, at, id)
		case events.HostObserved:
			exec(host, at, h.Name, h.Name, h.Vendor, h.Model, h.Serial, h.UUID, h.Product, h.Version, h.Build, h.CPUModel,
				h.License.Name, h.License.Edition, h.License.Reason, datastores, networks, p, at, id)
		case events.VMObserved:
			exec(vm, id, string(e.VM.ID), e.VM.Name, e.VM.Name, v.GuestID, v.GuestName, v.Hostname, ips, disks, nics, at, at, p)
		case events.VMChanged:
			exec(power, at, p, string(*e.Patch.Power), id, string(e.VM))
		default:
			b.Fatalf("no raw statement for %T", e)
		}
		if i%batchSize == batchSize-1 || i == len(recs)-1 {
			exec(meta, p, string(rec.ID))
			exec(commit)
		}
	}
	for _, s := range []*sql.Stmt{device, label, connected, host, vm, power, meta, begin, commit} {
		must(s.Close())
	}
	must(w.close())
}

// BenchmarkFollow brings an empty read model to the end of the log by Run, as
// a manager does when it starts.
func BenchmarkFollow(b *testing.B) {
	store, n := benchLog(b, benchDevices)
	dir := b.TempDir()
	b.ReportAllocs()
	runs := 0
	for b.Loop() {
		runs++
		d := openDB(b, filepath.Join(dir, fmt.Sprint(runs)))
		r := run(b, d, store)
		wait(b, d, uint64(n))
		if err := r.stop(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(runs*n)/b.Elapsed().Seconds(), "events/s")
}

// BenchmarkVisible measures from an append to the answer of a query that
// includes it, when nothing else happens.
func BenchmarkVisible(b *testing.B) {
	l := newLog(b)
	l.register(deviceA, "a")
	d := openDB(b, filepath.Join(b.TempDir(), "read.db"))
	run(b, d, l)
	wait(b, d, 1)
	b.ReportAllocs()
	for b.Loop() {
		p := l.device(deviceA, events.DeviceRenamed{Name: "b"})
		wait(b, d, p)
		if dev := d.mustDevice(b, deviceA); dev.Revision != p {
			b.Fatalf("revision %d, want %d", dev.Revision, p)
		}
	}
}

// BenchmarkChange applies changes of virtual machines, one to a transaction and
// as many as fit in: of their power, which no text index sees, and of their
// addresses, which it does.
func BenchmarkChange(b *testing.B) {
	f := &bigFleet{devices: benchDevices, rnd: rand.New(rand.NewPCG(1, 2))}
	d := openDB(b, filepath.Join(b.TempDir(), "read.db"))
	for i := range f.devices {
		if err := d.write(f.enrol(i)); err != nil {
			b.Fatal(err)
		}
	}
	change := map[string]func(n int) events.VMPatch{
		"power": func(n int) events.VMPatch {
			return events.VMPatch{Power: new([]events.PowerState{events.PowerOn, events.PowerOff}[n/f.devices%2])}
		},
		"address": func(n int) events.VMPatch {
			return events.VMPatch{IPs: &[]string{fmt.Sprintf("10.%d.%d.%d", n>>16&255, n>>8&255, n&255)}}
		},
	}
	for _, kind := range []string{"power", "address"} {
		for _, size := range []int{1, batchSize} {
			b.Run(fmt.Sprintf("%s/%d", kind, size), func(b *testing.B) {
				n := 0
				recs := make([]events.Record, size)
				for b.Loop() {
					for i := range recs {
						n++
						device := n % f.devices
						recs[i] = f.decide(events.DeviceActor(fleetID(device)), events.InventorySubject(fleetID(device)),
							events.VMChanged{VM: f.vmID(device, 1), Patch: change[kind](n)})
					}
					if err := d.write(recs); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(n), "us/change")
			})
		}
	}
}

// BenchmarkList reads pages of 100 of a fleet of 10,000 devices.
func BenchmarkList(b *testing.B) {
	store, _ := benchLog(b, 10_000)
	path := filepath.Join(b.TempDir(), "read.db")
	if _, err := Rebuild(b.Context(), path, store); err != nil {
		b.Fatal(err)
	}
	d := openDB(b, path)
	for _, bc := range []struct {
		name   string
		filter DeviceFilter
		want   int
	}{
		{"first", DeviceFilter{Scope: everything}, 100},
		{"middle", DeviceFilter{Scope: everything, Window: Window{Cursor: encodeCursor("device-name", "device-005000", "")}}, 100},
		{"label", DeviceFilter{Scope: everything, Selector: mustSelector(b, "site=s7")}, 100},
		{"labels", DeviceFilter{Scope: everything, Selector: mustSelector(b, "site in (s7,s9),role!=pos")}, 100},
		{"connection", DeviceFilter{Scope: everything, Connection: []Connection{ConnectionConnected}}, 100},
		{"text", DeviceFilter{Scope: everything, Text: "99"}, 100},
		{"text, none", DeviceFilter{Scope: everything, Text: "nobody"}, 0},
	} {
		b.Run(bc.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				p, err := d.Devices(b.Context(), bc.filter)
				if err != nil || len(p.Items) != bc.want {
					b.Fatal(len(p.Items), err)
				}
			}
		})
	}
	b.Run("vms", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			p, err := d.VMs(b.Context(), VMFilter{Scope: everything, Selector: mustSelector(b, "site=s7")})
			if err != nil || len(p.Items) != 100 {
				b.Fatal(len(p.Items), err)
			}
		}
	})
	b.Run("counts", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := d.Counts(b.Context(), everything); err != nil {
				b.Fatal(err)
			}
		}
	})
}
