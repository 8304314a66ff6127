package projections

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pallas/events"
	"pallas/events/labels"
)

var (
	queriesDevices = flag.Int("queries.devices", 100_000, "devices in the fleet of BenchmarkQueries, with 5 virtual machines each")
	queriesIngest  = flag.Int("queries.ingest", 2000, "decisions that BenchmarkQueries applies in a second beside the queries")
	queriesFile    = flag.String("queries.file", "", "keep the fleet of BenchmarkQueries in this file, and take it from there when it exists")
)

// bigFleet makes the decisions of a large fleet, and of its life afterwards.
type bigFleet struct {
	devices  int
	position uint64
	rnd      *rand.Rand
}

const bigFleetVMs = 5

// decide returns the next decision of the log.
func (f *bigFleet) decide(actor events.Actor, s events.Subject, es ...events.Event) events.Record {
	f.position++
	rec := events.Record{Position: f.position, Decision: events.Decision{
		ID: events.ID(fmt.Sprintf("00000000-0000-7000-8000-%012x", f.position)), Subject: s,
		Time: at(0).Add(time.Duration(f.position) * time.Millisecond), Actor: actor, Source: "192.0.2.7",
	}}
	for _, e := range es {
		rec.Entries = append(rec.Entries, events.Entry{Event: e})
	}
	return rec
}

// site is the number of the device's site: 100 devices are at each.
func (f *bigFleet) site(i int) int { return i * 7919 % f.devices / 100 }

func (f *bigFleet) vmID(i, v int) events.VMID {
	return events.VMID(fmt.Sprintf("%08x-0000-4000-9000-%06x%06x", (i*bigFleetVMs+v)*2654435761%(1<<32), i, v))
}

// enrol returns the decisions by which device i becomes a part of the fleet.
func (f *bigFleet) enrol(i int) []events.Record {
	id, site := fleetID(i), f.site(i)
	labels := map[string]string{
		"site": fmt.Sprintf("s%04d", site), "region": fmt.Sprintf("r%02d", site%20), "role": []string{"pos", "kiosk", "backoffice", "camera"}[i%4],
	}
	if i%5000 == 7 {
		labels["canary"] = "yes"
	}
	if i%1000 != 13 {
		labels["owner"] = "retail"
	}
	host := fullHost()
	host.Name = fmt.Sprintf("esx-%05d.s%04d.shop.example", i, site)
	host.Serial = fmt.Sprintf("SN%08X", uint32(i*40503+12345))
	host.UUID = fmt.Sprintf("4c4c4544-%04x-1000-8000-%012x", i%65536, i*2654435761%(1<<40))
	host.Version = []string{"8.0.2", "8.0.2", "8.0.3", "7.0.3"}[i%4]
	host.License.Writable = i%50 != 3
	found := []events.Event{events.HostObserved{Host: host}}
	for v := range bigFleetVMs {
		vm := fullVM(f.vmID(i, v))
		role := []string{"till", "kiosk", "db", "backoffice", "camera"}[v]
		vm.Name = fmt.Sprintf("%s-%04d-%d", role, site, i%100)
		vm.Hostname = fmt.Sprintf("%s%d.s%04d.shop.example", role, i%100, site)
		vm.IPs = []string{fmt.Sprintf("10.%d.%d.%d", site/256, site%256, (i*bigFleetVMs+v)%250+1)}
		vm.Power = events.PowerOn
		switch {
		case v == 4:
			vm.Power = events.PowerOff
		case i%2000 == 11:
			vm.Power = events.PowerSuspended
		}
		found = append(found, events.VMObserved{VM: vm})
	}
	recs := []events.Record{f.decide(events.TokenActor(token1), events.DeviceSubject(id),
		events.DeviceRegistered{Device: id, Name: fmt.Sprintf("s%04d-%s-%05d", site, labels["role"], i), JoinToken: token1, Labels: labels, KeyHash: "k", AgentVersion: "1.0.0"})}
	if i%500 != 9 {
		recs = append(recs, f.decide(events.UserActor("ada"), events.DeviceSubject(id), events.DeviceApproved{Policy: "manual"}),
			f.decide(events.SystemActor("presence"), events.DeviceSubject(id), events.DeviceConnected{Address: "192.0.2.1", AgentVersion: "1.0.0", Protocol: 1}),
			f.decide(events.DeviceActor(id), events.InventorySubject(id), found...))
	}
	if i%40 == 5 {
		recs = append(recs, f.decide(events.SystemActor("presence"), events.DeviceSubject(id), events.DeviceLost{Reason: "keepalive"}))
	}
	for n := range 2 {
		task := events.TaskID(fmt.Sprintf("70000000-0000-4000-800%d-%012x", n, i))
		recs = append(recs, f.decide(events.UserActor("ada"), events.TasksSubject(id),
			events.TaskRequested{Task: task, Kind: events.TaskVMReset, VM: f.vmID(i, n), Deadline: at(1000)}))
		if n == 0 || i%100 != 1 {
			recs = append(recs, f.decide(events.DeviceActor(id), events.TasksSubject(id), events.TaskAccepted{Task: task}, events.TaskSucceeded{Task: task}))
		}
	}
	return recs
}

// change returns a decision of everyday life: mostly power, at times a session,
// an address, a task.
func (f *bigFleet) change() events.Record {
	i, v := f.rnd.IntN(f.devices), f.rnd.IntN(bigFleetVMs)
	id := fleetID(i)
	inventory := func(p events.VMPatch) events.Record {
		return f.decide(events.DeviceActor(id), events.InventorySubject(id), events.VMChanged{VM: f.vmID(i, v), Patch: p})
	}
	switch n := f.rnd.IntN(100); {
	case n < 60:
		return inventory(events.VMPatch{Power: new([]events.PowerState{events.PowerOn, events.PowerOff}[n%2])})
	case n < 70:
		return inventory(events.VMPatch{Tools: new(events.ToolsRunning)})
	case n < 75:
		return inventory(events.VMPatch{IPs: &[]string{fmt.Sprintf("10.%d.%d.%d", i%250, n, i*7%250)}})
	case n < 80:
		return f.decide(events.SystemActor("presence"), events.DeviceSubject(id), events.DeviceLost{Reason: "keepalive"})
	case n < 90:
		return f.decide(events.SystemActor("presence"), events.DeviceSubject(id), events.DeviceConnected{Address: "192.0.2.9", AgentVersion: "1.0.0", Protocol: 1})
	}
	return f.decide(events.UserActor("ada"), events.TasksSubject(id),
		events.TaskRequested{Task: events.TaskID(events.NewID()), Kind: events.TaskVMReset, VM: f.vmID(i, v), Deadline: at(1000)})
}

// openBigFleet returns a read model of the fleet, built by the same rules as
// from a log.
func openBigFleet(b *testing.B) (*DB, *bigFleet) {
	b.Helper()
	path, kept := *queriesFile, false
	if path == "" {
		path = filepath.Join(b.TempDir(), "fleet.db")
	} else if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		kept = true
	}
	d := openDB(b, path)
	f := &bigFleet{devices: *queriesDevices, position: d.Position(), rnd: rand.New(rand.NewPCG(1, 2))}
	if kept && f.position > 0 {
		return d, f
	}
	begin := time.Now()
	var recs []events.Record
	n := 0
	for i := range f.devices {
		recs = append(recs, f.enrol(i)...)
		if len(recs) >= batchSize || i == f.devices-1 {
			for _, r := range recs {
				n += len(r.Entries)
			}
			if err := d.write(recs); err != nil {
				b.Fatal(err)
			}
			recs = recs[:0]
		}
	}
	b.Logf("%d devices, %d events in %s", f.devices, n, time.Since(begin).Round(time.Second))
	return d, f
}

// ingest applies changes at a steady rate until stop is called, which returns
// how many a second it was.
func (f *bigFleet) ingest(b *testing.B, d *DB, rate int) (stop func() float64) {
	if rate == 0 {
		return func() float64 { return 0 }
	}
	const interval = 50 * time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	begin, n := time.Now(), 0
	wg.Go(func() {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			var recs []events.Record
			for due := int(time.Since(begin).Seconds() * float64(rate)); n < due && len(recs) < batchSize; n++ {
				recs = append(recs, f.change())
			}
			if len(recs) == 0 {
				continue
			}
			if err := d.write(recs); err != nil {
				b.Error(err)
				return
			}
		}
	})
	return func() float64 {
		cancel()
		wg.Wait()
		return float64(n) / time.Since(begin).Seconds()
	}
}

// quantile returns the q-quantile of sorted durations, in milliseconds.
func quantile(sorted []time.Duration, q float64) float64 {
	return float64(sorted[int(q*float64(len(sorted)-1))]) / float64(time.Millisecond)
}

// BenchmarkQueries answers each kind of query over a large fleet while changes
// are applied beside it. Each query comes with its ceiling: the same number of
// the same rows, read by primary key.
func BenchmarkQueries(b *testing.B) {
	d, f := openBigFleet(b)
	sel := func(s string) Selector { return mustSelector(b, s) }
	devices := func(f DeviceFilter) func(context.Context) (int, error) {
		return func(ctx context.Context) (int, error) {
			p, err := d.Devices(ctx, f)
			return len(p.Items), err
		}
	}
	vms := func(f VMFilter) func(context.Context) (int, error) {
		return func(ctx context.Context) (int, error) {
			p, err := d.VMs(ctx, f)
			return len(p.Items), err
		}
	}
	tasks := func(f TaskFilter) func(context.Context) (int, error) {
		return func(ctx context.Context) (int, error) {
			p, err := d.Tasks(ctx, f)
			return len(p.Items), err
		}
	}
	deep := Window{Limit: MaxLimit}
	for range 50 {
		p, err := d.Devices(b.Context(), DeviceFilter{Scope: everything, Window: deep})
		if err != nil {
			b.Fatal(err)
		}
		if p.Next == "" {
			break
		}
		deep.Cursor = p.Next
	}
	deep.Limit = DefaultLimit
	// lastSites selects the sites whose devices come last in the order of names.
	lastSites := func(n int) string {
		var sites []string
		for i := range n {
			sites = append(sites, fmt.Sprintf("s%04d", f.devices/100-1-i))
		}
		return "site in (" + strings.Join(sites, ",") + ")"
	}
	vm := func(i int) events.VMID { return f.vmID(i, 1) }
	within := func(selectors ...string) Scope {
		sels := make([]Selector, len(selectors))
		for i, s := range selectors {
			sels[i] = sel(s)
		}
		return labels.Union(sels...)
	}
	// Scopes of 100, 200, 5,000 and 25,000 devices, one that no index leads to,
	// and a token's within its owner's.
	oneSite, twoSites, region, role := within("site=s0042"), within("site=s0042", "site=s0500"), within("region=r07"), within("role=pos")
	mixed, layered := within("site=s0042", "role=pos,region=r07"), within("region=r07", "region=r08").Intersect(within("role=pos"))
	for _, q := range []struct {
		name string
		of   string // table of the rows
		want int    // rows at least
		run  func(context.Context) (int, error)
	}{
		{"devices/first", "devices", 100, devices(DeviceFilter{Scope: everything})},
		{"devices/page500", "devices", 100, devices(DeviceFilter{Scope: everything, Window: deep})},
		{"devices/by-id", "devices", 100, devices(DeviceFilter{Scope: everything, Sort: SortID})},
		{"devices/label", "devices", 100, devices(DeviceFilter{Scope: everything, Selector: sel("site=s0042")})},
		{"devices/label-common", "devices", 100, devices(DeviceFilter{Scope: everything, Selector: sel("role=pos")})},
		{"devices/two-labels", "devices", 10, devices(DeviceFilter{Scope: everything, Selector: sel("role=pos,site=s0042")})},
		{"devices/two-common", "devices", 100, devices(DeviceFilter{Scope: everything, Selector: sel("role=pos,region=r07")})},
		{"devices/in-rare", "devices", 100, devices(DeviceFilter{Scope: everything, Selector: sel(lastSites(2))})},
		{"devices/in-common", "devices", 100, devices(DeviceFilter{Scope: everything, Selector: sel("role in (kiosk,camera)")})},
		{"devices/in-late", "devices", 100, devices(DeviceFilter{Scope: everything, Selector: sel(lastSites(11))})},
		{"devices/exists-rare", "devices", 10, devices(DeviceFilter{Scope: everything, Selector: sel("canary")})},
		{"devices/not-common", "devices", 100, devices(DeviceFilter{Scope: everything, Selector: sel("!canary")})},
		{"devices/not-rare", "devices", 50, devices(DeviceFilter{Scope: everything, Selector: sel("!owner")})},
		{"devices/label-by-id", "devices", 100, devices(DeviceFilter{Scope: everything, Selector: sel("site=s0042"), Sort: SortID})},
		{"devices/connected", "devices", 100, devices(DeviceFilter{Scope: everything, Connection: []Connection{ConnectionConnected}})},
		{"devices/not-connected", "devices", 100, devices(DeviceFilter{Scope: everything, Connection: []Connection{ConnectionLost, ConnectionNever}})},
		{"devices/pending", "devices", 100, devices(DeviceFilter{Scope: everything, Trust: []Trust{TrustPending}})},
		{"devices/condition-version", "devices", 100, devices(DeviceFilter{Scope: everything, Condition: []events.Condition{events.ConditionReadOnly}, Version: "8.0.2", Trust: []Trust{TrustApproved}})},
		{"devices/text-many", "devices", 100, devices(DeviceFilter{Scope: everything, Text: "pos"})},
		{"devices/text-few", "devices", 1, devices(DeviceFilter{Scope: everything, Text: "os-0471"})},
		{"devices/text-serial", "devices", 0, devices(DeviceFilter{Scope: everything, Text: "sn0f3a"})},
		{"devices/text-none", "devices", 0, devices(DeviceFilter{Scope: everything, Text: "nowhere"})},
		{"devices/text-label", "devices", 1, devices(DeviceFilter{Scope: everything, Text: "kiosk", Selector: sel("site=s0042")})},
		{"vms/first", "vms", 100, vms(VMFilter{Scope: everything})},
		{"vms/label-common", "vms", 100, vms(VMFilter{Scope: everything, Selector: sel("role=pos")})},
		{"vms/label-1pct", "vms", 100, vms(VMFilter{Scope: everything, Selector: sel("site in (s0042,s0142,s0242,s0342,s0442,s0542,s0642,s0742,s0842,s0942)")})},
		{"vms/label-rare", "vms", 100, vms(VMFilter{Scope: everything, Selector: sel("site=s0042")})},
		{"vms/label-rarest", "vms", 50, vms(VMFilter{Scope: everything, Selector: sel("canary")})},
		{"vms/power-common", "vms", 100, vms(VMFilter{Scope: everything, Power: []events.PowerState{events.PowerOff}})},
		{"vms/power-rare", "vms", 100, vms(VMFilter{Scope: everything, Power: []events.PowerState{events.PowerSuspended, events.PowerUnknown}})},
		{"vms/power-label", "vms", 10, vms(VMFilter{Scope: everything, Power: []events.PowerState{events.PowerOn}, Selector: sel("site=s0042")})},
		{"vms/text-many", "vms", 100, vms(VMFilter{Scope: everything, Text: "till"})},
		{"vms/text-few", "vms", 1, vms(VMFilter{Scope: everything, Text: "till-0471"})},
		{"vms/text-ip", "vms", 1, vms(VMFilter{Scope: everything, Text: "10.1.171."})},
		{"vms/text-guest", "vms", 100, vms(VMFilter{Scope: everything, Text: "ubuntu"})},
		{"vms/text-none", "vms", 0, vms(VMFilter{Scope: everything, Text: "nowhere"})},
		{"vms/text-label", "vms", 1, vms(VMFilter{Scope: everything, Text: "till", Selector: sel("site=s0042")})},
		{"device", "devices", 1, func(ctx context.Context) (int, error) {
			_, err := d.Device(ctx, everything, fleetID(f.devices/2))
			return 1, err
		}},
		{"device-vms", "vms", 5, vms(VMFilter{Scope: everything, Device: fleetID(f.devices / 3)})},
		{"device-tasks", "tasks", 2, tasks(TaskFilter{Scope: everything, Device: fleetID(f.devices / 3)})},
		{"vm", "vms", 1, func(ctx context.Context) (int, error) {
			_, err := d.VM(ctx, everything, fleetID(f.devices/3), vm(f.devices/3))
			return 1, err
		}},
		{"tasks/newest", "tasks", 100, tasks(TaskFilter{Scope: everything})},
		{"tasks/open", "tasks", 100, tasks(TaskFilter{Scope: everything, Open: true})},
		{"counts", "", 0, func(ctx context.Context) (int, error) {
			_, err := d.Counts(ctx, everything)
			return 0, err
		}},
		{"scope/devices/site", "devices", 100, devices(DeviceFilter{Scope: oneSite})},
		{"scope/devices/sites", "devices", 100, devices(DeviceFilter{Scope: twoSites})},
		{"scope/devices/region", "devices", 100, devices(DeviceFilter{Scope: region})},
		{"scope/devices/role", "devices", 100, devices(DeviceFilter{Scope: role})},
		{"scope/devices/layered", "devices", 100, devices(DeviceFilter{Scope: layered})},
		{"scope/devices/mixed", "devices", 100, devices(DeviceFilter{Scope: mixed})},
		{"scope/devices/label", "devices", 10, devices(DeviceFilter{Scope: oneSite, Selector: sel("role=pos")})},
		{"scope/devices/text", "devices", 1, devices(DeviceFilter{Scope: oneSite, Text: "kiosk"})},
		{"scope/devices/by-id", "devices", 100, devices(DeviceFilter{Scope: region, Sort: SortID})},
		{"scope/vms/site", "vms", 100, vms(VMFilter{Scope: oneSite})},
		{"scope/vms/region", "vms", 100, vms(VMFilter{Scope: region})},
		{"scope/vms/role", "vms", 100, vms(VMFilter{Scope: role})},
		{"scope/tasks/site", "tasks", 100, tasks(TaskFilter{Scope: oneSite})},
		{"scope/tasks/region", "tasks", 100, tasks(TaskFilter{Scope: region})},
		{"scope/tasks/role", "tasks", 100, tasks(TaskFilter{Scope: role})},
		{"scope/tasks/open", "tasks", 100, tasks(TaskFilter{Scope: within("role=kiosk"), Open: true})},
		{"scope/device", "devices", 1, func(ctx context.Context) (int, error) {
			_, err := d.Device(ctx, within(fmt.Sprintf("site=s%04d", f.site(f.devices/2))), fleetID(f.devices/2))
			return 1, err
		}},
		{"scope/device/outside", "", 0, func(ctx context.Context) (int, error) {
			_, err := d.Device(ctx, within("site=nowhere"), fleetID(f.devices/2))
			return 0, wanted(err)
		}},
		{"scope/device/unknown", "", 0, func(ctx context.Context) (int, error) {
			_, err := d.Device(ctx, within("site=nowhere"), "00000000-0000-4000-8000-000000000000")
			return 0, wanted(err)
		}},
		{"scope/counts/site", "", 0, func(ctx context.Context) (int, error) {
			_, err := d.Counts(ctx, oneSite)
			return 0, err
		}},
		{"scope/counts/region", "", 0, func(ctx context.Context) (int, error) {
			_, err := d.Counts(ctx, region)
			return 0, err
		}},
		{"scope/counts/role", "", 0, func(ctx context.Context) (int, error) {
			_, err := d.Counts(ctx, role)
			return 0, err
		}},
	} {
		b.Run(q.name, func(b *testing.B) {
			stop := sync.OnceValue(f.ingest(b, d, *queriesIngest))
			defer stop() // also when a query fails: there is one writer
			var took []time.Duration
			rows := 0
			for b.Loop() {
				begin := time.Now()
				n, err := q.run(b.Context())
				took = append(took, time.Since(begin))
				if want := q.want * min(f.devices, 100_000) / 100_000; err != nil || n < want {
					b.Fatalf("%d rows, want at least %d: %v", n, want, err)
				}
				rows = n
			}
			b.StopTimer()
			var ceiling []time.Duration
			for range min(len(took), 200) {
				begin := time.Now()
				byKey(b, d, q.of, rows)
				ceiling = append(ceiling, time.Since(begin))
			}
			ingest := stop()
			slices.Sort(took)
			slices.Sort(ceiling)
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(rows), "rows")
			b.ReportMetric(quantile(took, 0.5), "p50-ms")
			b.ReportMetric(quantile(took, 0.99), "p99-ms")
			b.ReportMetric(ingest, "ingest/s")
			if rows > 0 {
				b.ReportMetric(quantile(ceiling, 0.5), "by-key-p50-ms")
				b.ReportMetric(quantile(took, 0.5)/quantile(ceiling, 0.5), "of-by-key")
			}
		})
	}
}

// wanted is nil for ErrNotFound.
func wanted(err error) error {
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return fmt.Errorf("found, or %w", err)
}

// byKey reads so many rows of a table one after the other, from a random one
// on, as the lists do it.
func byKey(b *testing.B, d *DB, table string, n int) {
	b.Helper()
	err := d.read(func(db *sql.DB) (err error) {
		switch from := rand.IntN(10_000); table {
		case "devices":
			_, err = collect(b.Context(), db, deviceColumns+" FROM devices d WHERE d.rowid > ? LIMIT ?", []any{from, n}, scanDevice)
		case "vms":
			_, err = collect(b.Context(), db, vmColumns+" FROM vms v LEFT JOIN devices d ON d.id = v.device WHERE v.rowid > ? LIMIT ?", []any{from, n}, scanVM)
		case "tasks":
			_, err = collect(b.Context(), db, taskColumns+taskFrom+" WHERE t.rowid > ? LIMIT ?", []any{from, n}, scanTask)
		}
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
}
