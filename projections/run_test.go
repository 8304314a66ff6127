package projections

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"

	"pallas/events"
)

// genEvent draws an event of any type with the aggregate it belongs to, among
// few devices, so that events meet and also come for what is not there.
var genEvent = rapid.Custom(func(t *rapid.T) (d events.Decision) {
	device := rapid.SampledFrom([]events.DeviceID{deviceA, deviceB, deviceC}).Draw(t, "device")
	vm := rapid.SampledFrom([]events.VMID{vm1, vm2}).Draw(t, "vm")
	task := rapid.SampledFrom([]events.TaskID{task1, task2}).Draw(t, "task")
	token := rapid.SampledFrom([]events.TokenID{token1, token2}).Draw(t, "token")
	text := rapid.SampledFrom([]string{"", "a", "B", "ß", "x'\"\x00\n"}).Draw(t, "text")
	n := rapid.IntRange(0, 3).Draw(t, "n")
	var when time.Time
	if n > 0 {
		when = at(n)
	}
	labels := []map[string]string{nil, {"a": text}, {"a": "1", "b": text}, {"c": "3"}}[n]
	host := fullHost()
	host.Name, host.BootTime, host.License.Writable = text, when, n > 1
	host.Datastores = host.Datastores[:n%2]
	full := fullVM(vm)
	full.Name, full.CPUs, full.BootTime, full.Disks = text, n, when, full.Disks[:n%2]
	var patch events.VMPatch
	if n&1 > 0 {
		patch.Name, patch.BootTime, patch.IPs = &text, &when, new([]string{})
	}
	if n&2 > 0 {
		patch.Power, patch.NICs, patch.Disks = new(events.PowerSuspended), &full.NICs, new([]events.Disk{})
	}
	deviceEvents := []events.Event{
		events.DeviceRegistered{Device: device, Name: text, JoinToken: token, Labels: labels, KeyHash: text, AgentVersion: text},
		events.DeviceApproved{Policy: text},
		events.CertificateIssued{Serial: text, KeyHash: text, NotBefore: when, NotAfter: when},
		events.DeviceConnected{Address: text, AgentVersion: text, Protocol: n},
		events.DeviceLost{Reason: text, Since: when},
		events.DeviceLabelled{Labels: labels},
		events.CertificateRotationRequested{},
		events.DeviceAnchorsChanged{Anchors: []string{text}},
		events.DeviceRenamed{Name: text},
		events.DeviceDescribed{Notes: text, Site: []*events.Site{nil, {Name: text}, {Name: text, Latitude: new(float64(n) / 3), Longitude: new(-1.0)}, {}}[n]},
		events.DeviceRetired{Reason: text},
		unknown(),
	}
	inventoryEvents := []events.Event{
		events.HostObserved{Host: host},
		events.HostConditionChanged{Condition: events.ConditionDenied, Message: text},
		events.VMObserved{VM: full},
		events.VMChanged{VM: vm, Patch: patch},
		events.VMRemoved{VM: vm},
		events.InventorySynced{Hash: text, VMs: n},
	}
	taskEvents := []events.Event{
		events.TaskRequested{Task: task, Kind: events.TaskVMReset, VM: vm, Deadline: at(n)},
		events.TaskAccepted{Task: task},
		events.TaskProgressed{Task: task, Percent: n, Message: text},
		events.TaskSucceeded{Task: task, Message: text},
		events.TaskFailed{Task: task, Code: text, Message: text},
		events.TaskRejected{Task: task, Code: text, Message: text},
		events.TaskCancelRequested{Task: task},
		events.TaskCancelled{Task: task, Message: text},
		events.TaskExpired{Task: task, Message: text},
		events.TaskReportedLate{Task: task, Status: events.TaskStatusFailed, Code: text, Message: text},
	}
	tokenEvents := []events.Event{
		events.JoinTokenIssued{Token: token, Name: text, MaxUses: n, Expires: at(n), AutoApprove: n > 1, Labels: labels, NamePattern: text},
		events.JoinTokenUsed{Device: device},
		events.JoinTokenRevoked{},
		events.JoinRefused{Failures: n, Limit: text},
		unknown(),
	}
	kind := rapid.SampledFrom([]string{events.KindDevice, events.KindInventory, events.KindTasks, events.KindToken, "artifact"}).Draw(t, "kind")
	from := map[string][]events.Event{
		events.KindDevice: deviceEvents, events.KindInventory: inventoryEvents, events.KindTasks: taskEvents, events.KindToken: tokenEvents,
		"artifact": {unknown()},
	}[kind]
	d.Subject = map[string]events.Subject{
		events.KindDevice: events.DeviceSubject(device), events.KindInventory: events.InventorySubject(device),
		events.KindTasks: events.TasksSubject(device), events.KindToken: events.TokenSubject(token), "artifact": "ev.artifact.x",
	}[kind]
	for _, e := range rapid.SliceOfN(rapid.SampledFrom(from), 1, 3).Draw(t, "events") {
		d.Entries = append(d.Entries, events.Entry{Event: e})
	}
	return d
})

// TestRebuildEqualsLive follows a random log that grows meanwhile, with random
// stops, crashes and restarts, and compares with a read model that is built
// from the whole log at once.
func TestRebuildEqualsLive(t *testing.T) {
	base := t.TempDir()
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		dir := filepath.Join(base, fmt.Sprint(n))
		if err := os.Mkdir(dir, 0o700); err != nil {
			rt.Fatal(err)
		}
		l := newLog(t)
		path := filepath.Join(dir, "read.db")
		life := 0
		for range rapid.IntRange(1, 4).Draw(rt, "lives") {
			life++
			d, err := Open(rt.Context(), Config{Path: path, Log: testLog(t)})
			if err != nil {
				rt.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error, 1)
			go func() { done <- d.Run(ctx, l) }()
			var last uint64
			for _, dec := range rapid.SliceOfN(genEvent, 0, 12).Draw(rt, "decisions") {
				l.n++
				dec.ID, dec.Time, dec.Actor = events.ID(events.NewID()), at(l.n), "user:ada"
				last = appendTo(t, l.Memory, dec)
			}
			end := rapid.SampledFrom([]string{"wait", "stop", "crash"}).Draw(rt, "end")
			if end == "wait" {
				wait(t, d, last)
			}
			if end == "crash" {
				// What a killed process leaves: the file and its write-ahead log
				// as they lie on the disk, here in the middle of following.
				path = crash(rt, path, filepath.Join(dir, fmt.Sprintf("life%d.db", life)))
			}
			cancel()
			if err := errors.Join(<-done, d.Close()); err != nil {
				rt.Fatal(err)
			}
		}
		d, err := Open(rt.Context(), Config{Path: path, Log: testLog(t)})
		if err != nil {
			rt.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- d.Run(ctx, l) }()
		last, _ := l.Last(rt.Context())
		wait(t, d, last)
		live, hash := dump(t, d), mustHash(t, d)
		cancel()
		if err := errors.Join(<-done, d.Close()); err != nil {
			rt.Fatal(err)
		}
		if again := rebuilt(t, l); again != live {
			rt.Fatalf("rebuilt:\n%s\nlive:\n%s", again, live)
		}
		if strings.Count(live, "\n") < 2 || hash == "" {
			rt.Fatal("an empty comparison")
		}
		// One record at a time gives the same as batches do.
		if single := oneByOne(t, l, filepath.Join(dir, "single.db")); single != hash {
			rt.Fatal("contents depend on the size of batches")
		}
	})
}

func mustHash(t testing.TB, d *DB) string {
	t.Helper()
	h, err := d.Hash(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// crash copies the database as a kill would leave it: so small a log is never
// moved from the write-ahead log to the file meanwhile.
func crash(t *rapid.T, from, to string) string {
	for _, suffix := range []string{"", "-wal"} {
		b, err := os.ReadFile(from + suffix)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		if err == nil {
			if err := os.WriteFile(to+suffix, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	return to
}

func oneByOne(t *testing.T, store events.Store, path string) string {
	d, err := Open(t.Context(), Config{Path: path, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	for rec, err := range store.Read(t.Context(), events.Filter{}) {
		if err != nil {
			t.Fatal(err)
		}
		if err := d.write([]events.Record{rec}); err != nil {
			t.Fatal(err)
		}
	}
	h, err := d.Hash(t.Context())
	if err := errors.Join(err, d.Close()); err != nil {
		t.Fatal(err)
	}
	return h
}

// killEnv names the read model that a child process of TestKill follows the log
// with.
const killEnv = "PALLAS_TEST_KILL"

// killLog is the same in every process.
func killLog(t testing.TB) *eventLog { return fleet(t, 1500) }

// TestKill kills a process that follows the log, again and again, at moments
// of chance, and then reads on from what it left.
func TestKill(t *testing.T) {
	l := killLog(t)
	path := os.Getenv(killEnv)
	if path != "" {
		d, err := Open(t.Context(), Config{Path: path, Log: testLog(t)})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("following")
		t.Fatal(d.Run(t.Context(), l)) // ends with the process
	}
	path = filepath.Join(t.TempDir(), "read.db")
	partial := 0
	last, _ := l.Last(t.Context())
	for range 8 {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKill$")
		cmd.Env = append(os.Environ(), killEnv+"="+path)
		out, err := cmd.StdoutPipe()
		check(t, err)
		check(t, cmd.Start())
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Error(err)
		}
		timer := time.NewTimer(rand.N(30 * time.Millisecond))
		<-timer.C
		check(t, cmd.Process.Kill())
		_ = cmd.Wait() // says that it was killed

		d, err := Open(t.Context(), Config{Path: path, Log: testLog(t)})
		if err != nil {
			t.Fatal(err)
		}
		if p := d.Position(); p > 0 && p < last {
			partial++
		}
		check(t, d.Close())
	}
	t.Logf("%d of 8 kills were in the middle", partial)
	d := openDB(t, path)
	run(t, d, l)
	wait(t, d, last)
	if got, want := dump(t, d), rebuilt(t, l); got != want {
		t.Error("contents differ from a rebuilt read model's")
	}
}

// TestReadYourWrites waits for the position of each append and must then find
// what was written, with several writers and readers at once.
func TestReadYourWrites(t *testing.T) {
	l := newLog(t)
	l.register(deviceA, "a")
	d := openDB(t, filepath.Join(t.TempDir(), "read.db"))
	run(t, d, l)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			id := fleetID(i)
			for n := range 50 {
				name := fmt.Sprintf("device %d name %d", i, n)
				var e events.Event = events.DeviceRenamed{Name: name}
				if n == 0 {
					e = events.DeviceRegistered{Device: id, Name: name}
				}
				p := appendTo(t, l.Memory, events.Decision{
					ID: events.ID(events.NewID()), Subject: events.DeviceSubject(id), Time: at(n), Actor: "user:ada",
					Entries: []events.Entry{{Event: e}},
				})
				wait(t, d, p)
				dev, err := d.Device(t.Context(), everything, id)
				if err != nil || dev.Name != name || dev.Revision != p {
					t.Errorf("after position %d: %q at revision %d, %v; want %q", p, dev.Name, dev.Revision, err, name)
				}
				page, err := d.Devices(t.Context(), DeviceFilter{Scope: everything, Text: name})
				if err != nil || len(page.Items) != 1 || page.Position < p {
					t.Errorf("list after position %d: %d items at %d, %v", p, len(page.Items), page.Position, err)
				}
			}
		})
	}
	wg.Wait()
}

func TestWaitBehind(t *testing.T) {
	l := newLog(t)
	l.register(deviceA, "a")
	d := given(t, l)
	synctestCtx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	err := d.Wait(synctestCtx, 2)
	is(t, err, ErrBehind)
	is(t, err, context.DeadlineExceeded)
	check(t, d.Wait(synctestCtx, 1)) // what is there needs no waiting
}

func TestStatus(t *testing.T) {
	l := newLog(t)
	l.register(deviceA, "a")
	d := openDB(t, filepath.Join(t.TempDir(), "read.db"))
	if got := d.Status(); got != (Status{}) {
		t.Errorf("before Run: %+v", got)
	}
	r := run(t, d, l)
	wait(t, d, 1)
	if got := d.Status(); got != (Status{Position: 1, Last: 1, Ready: true}) {
		t.Errorf("following: %+v", got)
	}
	if err := d.Run(t.Context(), l); err == nil {
		t.Error("a second Run began")
	}
	check(t, r.stop())
	// An empty log is reached at once.
	empty := openDB(t, filepath.Join(t.TempDir(), "read.db"))
	run(t, empty, newLog(t))
	eventually(t, "ready", func() bool { return empty.Status().Ready })
}

// TestStops puts an event in the log that cannot be decoded, or not applied.
func TestStops(t *testing.T) {
	for name, bad := range map[string]func(*eventLog){
		"undecodable":     func(l *eventLog) { l.device(deviceA, undecodable()) },
		"wrong aggregate": func(l *eventLog) { l.token(token1, events.DeviceRenamed{Name: "x"}) },
		"second event wrong": func(l *eventLog) {
			l.device(deviceA, events.DeviceRenamed{Name: "not to be seen"}, events.VMRemoved{VM: vm1})
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLog(t)
			l.register(deviceA, "a")
			l.register(deviceB, "b")
			bad(l) // position 3
			l.register(deviceC, "c")
			path := filepath.Join(t.TempDir(), "read.db")
			d := openDB(t, path)
			for range 2 { // a second Run comes no further
				r := run(t, d, l)
				<-r.done
				is(t, r.err, ErrStopped)
				if !strings.Contains(fmt.Sprint(r.err), "position 3") && !strings.Contains(fmt.Sprint(r.err), "after position 2") {
					t.Errorf("the error does not name the position: %v", r.err)
				}
				if s := d.Status(); s.Position != 2 || !errors.Is(s.Err, ErrStopped) {
					t.Errorf("status %+v", s)
				}
				// What waits is told at once, and what is there is served.
				is(t, d.Wait(t.Context(), 3), ErrStopped)
				check(t, d.Wait(t.Context(), 2))
				p, err := d.Devices(t.Context(), DeviceFilter{Scope: everything})
				if err != nil || len(p.Items) != 2 || p.Items[0].Name != "a" {
					t.Errorf("devices %+v, %v", p.Items, err)
				}
			}
		})
	}
}

// TestUnknownMovesOn also covers an aggregate of a kind not known here.
func TestUnknownMovesOn(t *testing.T) {
	l := newLog(t)
	l.register(deviceA, "a")
	l.add("user:ada", "ev.artifact.abc", unknown())
	p := l.device(deviceA, unknown())
	d := given(t, l)
	if dev := d.mustDevice(t, deviceA); dev.Revision != p {
		t.Errorf("revision %d, want %d", dev.Revision, p)
	}
}

// TestOtherLog starts on logs that the file was not built from.
func TestOtherLog(t *testing.T) {
	for name, change := range map[string]func(*eventLog){
		"shorter": func(l *eventLog) { l.register(deviceC, "c") },
		"other": func(l *eventLog) {
			for range 9 {
				l.n += 100
				l.register(deviceC, "c")
			}
		},
		"empty": func(*eventLog) {},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLog(t)
			for _, id := range []events.DeviceID{deviceA, deviceB, deviceA} {
				l.register(id, "x")
			}
			path := filepath.Join(t.TempDir(), "read.db")
			d := openDB(t, path)
			r := run(t, d, l)
			wait(t, d, 3)
			check(t, r.stop())

			other := newLog(t)
			change(other)
			last, _ := other.Last(t.Context())
			run(t, d, other)
			eventually(t, "following the other log", func() bool { s := d.Status(); return s.Ready && s.Position == last })
			if got, want := dump(t, d), rebuilt(t, other); got != want {
				t.Errorf("contents:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

// TestReadsDuringRestart queries while the file is exchanged under them.
func TestReadsDuringRestart(t *testing.T) {
	l := fleet(t, 20)
	d := openDB(t, filepath.Join(t.TempDir(), "read.db"))
	last, _ := l.Last(t.Context())
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if _, err := d.Devices(t.Context(), DeviceFilter{Scope: everything}); err != nil {
					t.Error(err)
					return
				}
				if _, _, err := d.OpenTasks(t.Context()); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range 6 {
		store := events.Store(l)
		want := last
		if i%2 > 0 {
			store, want = newLog(t), 0
		}
		r := run(t, d, store)
		eventually(t, "following", func() bool { s := d.Status(); return s.Ready && s.Position == want })
		check(t, r.stop())
	}
	cancel()
	wg.Wait()
}

// weather is a log whose reads break off.
type weather struct {
	events.Store
	follows atomic.Int64
	breaks  func(n int64) error // the error that the n-th Follow begins with, if any
}

func (w *weather) Follow(ctx context.Context, f events.Filter) iter.Seq2[events.Record, error] {
	n := w.follows.Add(1)
	return func(yield func(events.Record, error) bool) {
		sent := 0
		for rec, err := range w.Store.Follow(ctx, f) {
			if fault := w.breaks(n); fault != nil && sent == 2 {
				yield(events.Record{}, fault)
				return
			}
			if sent++; !yield(rec, err) || err != nil {
				return
			}
		}
	}
}

// TestUnavailable follows a log that breaks off several times; time is the
// test's own, so the pauses between cost none.
func TestUnavailable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "read.db")
	synctest.Test(t, func(t *testing.T) {
		l := fleet(t, 10)
		last, _ := l.Last(t.Context())
		w := &weather{Store: l, breaks: func(n int64) error {
			if n <= 4 {
				return []error{events.ErrUnavailable, context.DeadlineExceeded, fmt.Errorf("x: %w", events.ErrUnavailable), context.Canceled}[n-1]
			}
			return nil
		}}
		d, err := Open(context.Background(), Config{Path: path, Log: testLog(t)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- d.Run(ctx, w) }()
		if err := d.Wait(ctx, last); err != nil {
			t.Error(err)
		}
		if got := w.follows.Load(); got != 5 {
			t.Errorf("followed %d times, want 5", got)
		}
		cancel()
		if err := errors.Join(<-done, d.Close()); err != nil {
			t.Error(err)
		}
	})
}

// TestDamagedMeanwhile spoils the file under a projection that is following.
func TestDamagedMeanwhile(t *testing.T) {
	l := fleet(t, 60)
	d := given(t, l)
	for _, text := range []string{"PRAGMA wal_checkpoint(TRUNCATE)", "PRAGMA cache_size = 1", "PRAGMA shrink_memory"} {
		_, err := d.w.conn.ExecContext(t.Context(), text)
		check(t, err)
	}
	f, err := os.OpenFile(d.path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	info, err := f.Stat()
	check(t, err)
	for off := int64(4096); off < info.Size(); off += 4096 {
		_, err := f.WriteAt([]byte(strings.Repeat("garbage ", 500)), off)
		check(t, err)
	}
	check(t, f.Close())
	for i := range 60 {
		l.device(fleetID(i), events.DeviceRenamed{Name: "renamed"})
	}
	last, _ := l.Last(t.Context())
	wait(t, d, last)
	if got, want := dump(t, d), rebuilt(t, l); got != want {
		t.Error("contents differ from those of a rebuilt read model")
	}
	if _, err := os.Stat(d.path + ".damaged"); err != nil {
		t.Errorf("damaged file not set aside: %v", err)
	}
}

// TestDiskFull lets SQLite run out of room, and gives it some later. Reads go
// on.
func TestDiskFull(t *testing.T) {
	l := newLog(t)
	l.register(deviceA, "a")
	reg := prometheus.NewRegistry()
	d, err := Open(t.Context(), Config{Path: filepath.Join(t.TempDir(), "read.db"), Log: testLog(t), Registerer: reg})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { check(t, d.Close()) }()
	r := run(t, d, l)
	wait(t, d, 1)
	_, err = d.w.conn.ExecContext(t.Context(), "PRAGMA max_page_count = 1") // means: no more than there are
	check(t, err)
	for i := range 200 {
		l.register(fleetID(i), strings.Repeat("x", 100))
	}
	eventually(t, "a refused write", func() bool { return metric(t, reg, "pallas_projection_apply_errors_total", "") > 1 })
	if dev := d.mustDevice(t, deviceA); dev.Name != "a" {
		t.Errorf("device %+v", dev)
	}
	if s := d.Status(); s.Err != nil || s.Lag == 0 {
		t.Errorf("status %+v", s)
	}
	_, err = d.w.conn.ExecContext(t.Context(), "PRAGMA max_page_count = 4294967294")
	check(t, err)
	wait(t, d, 201)
	if got, want := dump(t, d), rebuilt(t, l); got != want {
		t.Error("contents differ from those of a rebuilt read model")
	}
	check(t, r.stop())
}

// TestGap refuses a log that leaves out a position.
func TestGap(t *testing.T) {
	l := fleet(t, 3)
	d := openDB(t, filepath.Join(t.TempDir(), "read.db"))
	err := d.Run(t.Context(), gap{l})
	is(t, err, ErrStopped)
	if got := d.Position(); got != 1 {
		t.Errorf("position %d, want 1", got)
	}
}

type gap struct{ events.Store }

func (g gap) Follow(ctx context.Context, f events.Filter) iter.Seq2[events.Record, error] {
	return func(yield func(events.Record, error) bool) {
		for rec, err := range g.Store.Follow(ctx, f) {
			if rec.Position != 2 && !yield(rec, err) {
				return
			}
		}
	}
}

// TestBatches checks when a batch ends, in the test's own time.
func TestBatches(t *testing.T) {
	rec := func(p int) item { return item{rec: events.Record{Position: uint64(p)}} }
	synctest.Test(t, func(t *testing.T) {
		ch := make(chan item, 5000)
		b := batcher{ch: ch, next: 1}
		take := func(want int, within time.Duration) {
			t.Helper()
			begin := time.Now()
			recs, err := b.batch()
			if took := time.Since(begin); err != nil || len(recs) != want || took > within {
				t.Errorf("batch of %d after %s, %v; want %d within %s", len(recs), took, err, want, within)
			}
		}
		// One that comes alone is not kept waiting.
		ch <- rec(1)
		take(1, 0)
		// Nor are the first of many.
		for p := 2; p <= 4; p++ {
			ch <- rec(p)
		}
		take(3, 0)
		// Then a batch waits a little for more.
		ch <- rec(5)
		go func() {
			<-time.After(lingerNext / 2)
			ch <- rec(6)
		}()
		take(2, 2*lingerNext)
		// It does not wait for ever, however steadily they come.
		stop := make(chan struct{})
		go func() {
			tick := time.NewTicker(lingerNext / 2)
			defer tick.Stop()
			for p := 7; ; p++ {
				select {
				case <-tick.C:
					ch <- rec(p)
				case <-stop:
					return
				}
			}
		}()
		begin := time.Now()
		recs, err := b.batch()
		if took := time.Since(begin); err != nil || took > lingerAll+2*lingerNext || len(recs) < 15 {
			t.Errorf("batch of %d after %s, %v", len(recs), took, err)
		}
		close(stop)
		synctest.Wait()
		for len(ch) > 0 {
			<-ch
			b.next++
		}
		// It is never larger than batchSize, and repeats are dropped.
		for p := range batchSize + 10 {
			ch <- rec(int(b.next) + p)
			ch <- rec(int(b.next) + p)
		}
		take(batchSize, 0)
		take(10, lingerAll)
		// What came before an error is handed over with it.
		ch <- rec(int(b.next))
		ch <- item{err: errEnded}
		if recs, err := b.batch(); len(recs) != 1 || !errors.Is(err, errEnded) {
			t.Errorf("batch of %d, %v", len(recs), err)
		}
	})
}

// TestVisibleSoon bounds how long one event takes to become visible when
// nothing else happens.
func TestVisibleSoon(t *testing.T) {
	l := newLog(t)
	l.register(deviceA, "a")
	d := openDB(t, filepath.Join(t.TempDir(), "read.db"))
	run(t, d, l)
	wait(t, d, 1)
	best := time.Hour
	for range 20 {
		begin := time.Now()
		wait(t, d, l.device(deviceA, events.DeviceRenamed{Name: fmt.Sprint(rand.Int())}))
		best = min(best, time.Since(begin))
	}
	if best > lingerAll {
		t.Errorf("visible after %s at best", best)
	}
}

// gate is a log whose records do not come before it is opened.
type gate struct {
	events.Store
	open chan struct{}
}

func (g gate) Follow(ctx context.Context, f events.Filter) iter.Seq2[events.Record, error] {
	return func(yield func(events.Record, error) bool) {
		select {
		case <-g.open:
		case <-ctx.Done():
			yield(events.Record{}, ctx.Err())
			return
		}
		g.Store.Follow(ctx, f)(yield)
	}
}

// TestWaitReady fills a read model from nothing: it is not ready before it has
// what the log had.
func TestWaitReady(t *testing.T) {
	l := newLog(t)
	l.register(deviceA, "a")
	l.register(deviceB, "b")
	d := openDB(t, filepath.Join(t.TempDir(), "read.db"))
	g := gate{l, make(chan struct{})}
	run(t, d, g)
	eventually(t, "the end of the log known", func() bool { return d.Status().Last == 2 })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	is(t, d.WaitReady(ctx), ErrBehind)
	close(g.open)
	check(t, d.WaitReady(t.Context()))
	if got := d.Status(); got.Position != 2 || !got.Ready {
		t.Errorf("ready at %+v", got)
	}
}
