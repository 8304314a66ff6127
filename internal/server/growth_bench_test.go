package server_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sys/unix"

	"pallas/events"
	"pallas/events/jsstore"
	"pallas/internal/client"
	"pallas/internal/server"
	"pallas/internal/servertest"
	"pallas/mqttgw"
)

var (
	growthEvents  = flag.String("growth.events", "100000,1000000", "how many decisions are in the logs of BenchmarkGrowth, smallest first, separated by commas")
	growthRebuild = flag.Bool("growth.rebuild", true, "whether BenchmarkGrowth builds the read model and starts whole managers too")
)

// BenchmarkGrowth measures what the length of the log costs: to start, in
// memory, on disk, to build the read model anew, and to read history. Each
// start is that of a fresh process. It is meant for -benchtime 1x.
//
// An event here is a message of the log: a decision, of one event or a few.
// Slopes are between the two longest logs.
func BenchmarkGrowth(b *testing.B) {
	var sizes []int
	for s := range strings.SplitSeq(*growthEvents, ",") {
		n, err := strconv.Atoi(s)
		if err != nil || n < 10_000 || len(sizes) > 0 && n <= sizes[len(sizes)-1] {
			b.Fatalf("-growth.events %q: want rising numbers from 10000, such as 1000000,10000000", *growthEvents)
		}
		sizes = append(sizes, n)
	}
	var before map[string]float64
	for i, n := range sizes {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			found := growth(b, n)
			for unit, v := range found {
				b.ReportMetric(v, unit)
			}
			for _, unit := range []string{"s-to-open", "s-to-open-killed", "s-to-open-window", "MB-open", "MB-open-killed", "MB-open-window", "s-to-ready", "MB-ready"} {
				if _, ok := found[unit]; ok && i > 0 {
					b.ReportMetric((found[unit]-before[unit])/float64(n-sizes[i-1])*1e6, unit+"/M")
				}
			}
			b.ReportMetric(0, "ns/op")
			before = found
		})
	}
}

func growth(b *testing.B, n int) map[string]float64 {
	l := newGrowthLog(b, n)
	found := make(map[string]float64)

	began := time.Now()
	l.write()
	found["written/s"] = float64(n) / time.Since(began).Seconds()
	found["B/event"] = float64(l.bytes) / float64(n)
	found["log-B/event"] = diskBytes(b, l.dir()) / float64(n)
	b.Logf("%d decisions of %d devices, %.0f B each, written in %.0f s", n, l.devices, found["B/event"], time.Since(began).Seconds())

	// As the log is after ten quiet minutes: nothing in it is within the
	// window in which JetStream knows ids.
	p := l.start()
	found["s-to-open"], found["MB-open"] = p.took.Seconds(), p.rss
	p.ask("append") // what JetStream wrote of the log's state at its end no longer fits
	p.kill()
	p = l.start()
	found["s-to-open-killed"], found["MB-open-killed"] = p.took.Seconds(), p.rss
	p.ask("window")
	p.stop()

	// As it is right after all of it was written.
	p = l.start()
	found["s-to-open-window"], found["MB-open-window"] = p.took.Seconds(), p.rss
	b.Logf("opened in %.1f s, after a kill in %.1f s, with all ids in the window in %.1f s; %.0f, %.0f, %.0f MB; %.0f B on disk for a decision",
		found["s-to-open"], found["s-to-open-killed"], found["s-to-open-window"], found["MB-open"], found["MB-open-killed"], found["MB-open-window"], found["log-B/event"])
	found["load-ms"] = 1000 * p.ask("load")
	p.stop()

	if !*growthRebuild {
		return found
	}
	// The first start has no read model and builds it from the whole log.
	l.m.Spawn()
	get := getter(b, l.m)
	ready := func() {
		servertest.Eventually(b, time.Hour, func() error {
			status, err := get(b.Context(), "/readyz")
			if err == nil && status != http.StatusOK {
				err = fmt.Errorf("readyz: %d", status)
			}
			return err
		})
	}
	began = time.Now()
	ready()
	took := time.Since(began).Seconds()
	found["rebuild-s"], found["rebuilt/s"] = took, float64(n)/took
	l.m.Stop()
	found["readmodel-B/event"] = diskBytes(b, filepath.Join(l.m.Config.DataDir, "readmodel.db")) / float64(n)

	began = time.Now()
	l.m.Spawn()
	ready()
	found["s-to-ready"] = time.Since(began).Seconds()
	found["MB-ready"] = float64(l.m.Memory("VmRSS")) / 1e6
	for name, page := range map[string]client.ListEventsParams{
		"newest": {},
		"device": {Device: new(uuid.MustParse(string(growthDevice(0))))},
		"type":   {Type: &[]string{"TaskRequested"}},
		"rare":   {Type: &[]string{"TaskFailed"}},
		"actor":  {Actor: new("user:operator")},
	} {
		page.Order = new(client.Desc)
		var took []time.Duration
		items := 0
		for range 5 {
			began := time.Now()
			r, err := l.m.API.ListEventsWithResponse(b.Context(), &page)
			if err != nil || r.JSON200 == nil {
				b.Fatalf("list events, %s: %v, %v", name, err, r)
			}
			took, items = append(took, time.Since(began)), len(r.JSON200.Items)
		}
		slices.Sort(took)
		found["page-"+name+"-ms"] = ms(took[len(took)/2])
		found["page-"+name+"-items"] = float64(items)
	}
	l.m.Stop()
	return found
}

const (
	growthVMs = 3
	// growthBusy is how many devices have inventories of growthLong decisions,
	// spread over the log.
	growthBusy, growthLong = 20, 100
)

// growthLog is the log of a manager, with a fleet's life in it.
type growthLog struct {
	b          *testing.B
	m          *servertest.Manager
	n, devices int
	rnd        *rand.Rand
	js         jetstream.JetStream
	position   uint64
	last       map[events.Subject]uint64
	reports    []uint64        // by device
	open       []events.TaskID // by device, "" for none; their deadlines are far, so that no start ends them
	bytes      int64           // of subjects, headers and data
}

func newGrowthLog(b *testing.B, n int) *growthLog {
	devices := min(100_000, n/10)
	dir := b.TempDir()
	var disk unix.Statfs_t
	if err := unix.Statfs(dir, &disk); err != nil {
		b.Fatal(err)
	}
	need, free := uint64(n)*900+uint64(devices)*30_000, disk.Bavail*uint64(disk.Bsize)
	if free < need {
		b.Fatalf("a log of %d events and its read model take up to %d MB, and %s has %d MB free: set TMPDIR to a larger disk, or ask for less by -growth.events",
			n, need/1e6, dir, free/1e6)
	}
	return &growthLog{
		b: b, n: n, devices: devices, rnd: rand.New(rand.NewPCG(1, 2)), last: make(map[events.Subject]uint64, 3*devices),
		reports: make([]uint64, devices), open: make([]events.TaskID, devices),
		m: servertest.New(b, func(c *server.Config) {
			c.Events, c.Devices = server.Defaults().Events, server.Defaults().Devices
		}),
	}
}

func (l *growthLog) dir() string { return filepath.Join(l.m.Config.DataDir, "nats") }

func growthDevice(i int) events.DeviceID {
	return events.DeviceID(fmt.Sprintf("%08x-0d5b-4c67-9c3e-%012x", uint32(i)*2654435761, i))
}

func growthVM(i, v int) events.VMID {
	return events.VMID(fmt.Sprintf("52c1a7d0-4b8e-9f31-%04x-%012x", v, i))
}

// write fills the log: all devices enrol, then they live.
func (l *growthLog) write() {
	broker, conn := openBroker(l.b, l.dir())
	defer broker.Shutdown()
	// The stream is the store's own, but for the ids that it remembers
	// meanwhile.
	if _, err := jsstore.Open(l.b.Context(), jsstore.Config{Conn: conn, MustExist: true}); err != nil {
		l.b.Fatal(err)
	}
	failed := make(chan error, 1)
	var err error
	l.js, err = jetstream.New(conn, jetstream.WithPublishAsyncMaxPending(4000),
		jetstream.WithPublishAsyncErrHandler(func(_ jetstream.JetStream, m *nats.Msg, err error) {
			select {
			case failed <- fmt.Errorf("append to %s: %w", m.Subject, err):
			default:
			}
		}))
	if err != nil {
		l.b.Fatal(err)
	}
	if err := setWindow(l.b.Context(), l.js, 100*time.Millisecond); err != nil {
		l.b.Fatal(err)
	}
	for i := range l.devices {
		l.enrol(i)
	}
	changes := l.n - int(l.position)
	every := changes / (growthBusy * (growthLong - 1))
	for c := range changes {
		if busy := c / every; c%every == 0 && busy < growthBusy*(growthLong-1) {
			i := busy % growthBusy
			l.report(i, events.InventorySubject(growthDevice(i)), events.VMChanged{VM: growthVM(i, 0), Patch: events.VMPatch{Power: new(events.PowerOn)}})
			continue
		}
		l.change(growthBusy + l.rnd.IntN(l.devices-growthBusy))
	}
	<-l.js.PublishAsyncComplete()
	select {
	case err := <-failed:
		l.b.Fatal(err)
	default:
	}
	s, err := l.js.Stream(l.b.Context(), growthStream)
	if err != nil {
		l.b.Fatal(err)
	}
	if got := s.CachedInfo().State.LastSeq; got != uint64(l.n) {
		l.b.Fatalf("the log ends at %d, want %d", got, l.n)
	}
	l.bytes = int64(s.CachedInfo().State.Bytes)
}

// enrol has a device registered, connected, and its host known.
func (l *growthLog) enrol(i int) {
	id, now := growthDevice(i), l.now()
	key := fmt.Sprintf("%064x", i)
	l.add(events.TokenActor("018f6a10-7c1e-7d52-9b1a-000000000001"), events.DeviceSubject(id), events.Entry{Event: events.DeviceRegistered{
		Device: id, Name: fmt.Sprintf("esx-%05d.example.net", i), JoinToken: "018f6a10-7c1e-7d52-9b1a-000000000001",
		Labels: map[string]string{"site": fmt.Sprintf("s%04d", i/100), "role": []string{"pos", "kiosk"}[i%2]}, KeyHash: key, AgentVersion: "1.0.0",
	}}, events.Entry{Event: events.DeviceApproved{Policy: "auto"}}, events.Entry{Event: events.CertificateIssued{
		Serial: fmt.Sprintf("%032x", i), KeyHash: key, NotBefore: now, NotAfter: now.AddDate(0, 3, 0),
	}})
	l.add(events.SystemActor("presence"), events.DeviceSubject(id), events.Entry{Event: events.DeviceConnected{Address: "192.0.2.1", AgentVersion: "1.0.0", Protocol: 1}})
	found := []events.Event{events.HostObserved{Host: events.Host{
		Name: fmt.Sprintf("esx-%05d.example.net", i), Vendor: "Dell Inc.", Model: "PowerEdge XR4000", Serial: fmt.Sprintf("SN%08X", i),
		UUID: fmt.Sprintf("4c4c4544-0000-1000-8000-%012x", i), Product: "VMware ESXi", Version: "8.0.2", Build: "22380479", CPUModel: "Intel(R) Xeon(R) D-2776NT",
		CPUSockets: 1, CPUCores: 16, CPUThreads: 32, CPUMHz: 2095, MemoryMiB: 131072, BootTime: now,
		License:    events.License{Name: "vSphere 8 Standard", Edition: "esx.standard", Writable: true},
		Datastores: []events.Datastore{{ID: "ds-1", Name: "datastore1", Type: "VMFS", CapacityMiB: 1 << 20, FreeMiB: 1 << 19, Accessible: true}},
		Networks:   []events.Network{{ID: "net-1", Name: "VM Network"}},
	}}}
	for v := range growthVMs {
		found = append(found, events.VMObserved{VM: events.VM{
			ID: growthVM(i, v), Name: fmt.Sprintf("till-%05d-%d", i, v), Power: events.PowerOn, CPUs: 4, MemoryMiB: 8192, GuestID: "ubuntu64Guest",
			GuestName: "Ubuntu Linux (64-bit)", Hostname: "till.example.net", IPs: []string{"192.0.2.10"}, Tools: events.ToolsRunning,
			Disks: []events.Disk{{Key: 2000, Label: "Hard disk 1", CapacityMiB: 40960, Datastore: "ds-1", File: "till/till.vmdk", Thin: true}},
			NICs:  []events.NIC{{Key: 4000, Label: "Network adapter 1", MAC: "00:50:56:00:00:01", Network: "net-1", Connected: true}},
		}})
	}
	l.report(i, events.InventorySubject(id), found...)
}

// change lets something happen at a device: mostly a change of power, at times
// an address, a session, a task.
func (l *growthLog) change(i int) {
	id, vm := growthDevice(i), growthVM(i, l.rnd.IntN(growthVMs))
	tasks := events.TasksSubject(id)
	if task := l.open[i]; task != "" {
		l.open[i] = ""
		var end events.Event = events.TaskSucceeded{Task: task}
		if l.rnd.IntN(200) == 0 {
			end = events.TaskFailed{Task: task, Code: "invalid_state", Message: "The attempted operation cannot be performed in the current state (Powered off)."}
		}
		l.report(i, tasks, events.TaskAccepted{Task: task}, end)
		return
	}
	switch n := l.rnd.IntN(100); {
	case n < 70:
		l.report(i, events.InventorySubject(id), events.VMChanged{VM: vm, Patch: events.VMPatch{Power: new([]events.PowerState{events.PowerOn, events.PowerOff}[n%2])}})
	case n < 80:
		l.report(i, events.InventorySubject(id), events.VMChanged{VM: vm, Patch: events.VMPatch{IPs: &[]string{fmt.Sprintf("10.%d.%d.%d", i/250%250, i%250, n)}}})
	case n < 85:
		l.add(events.SystemActor("presence"), events.DeviceSubject(id), events.Entry{Event: events.DeviceLost{Reason: "Client Closed", Since: l.now()}})
	case n < 90:
		l.add(events.SystemActor("presence"), events.DeviceSubject(id), events.Entry{Event: events.DeviceConnected{Address: "192.0.2.9", AgentVersion: "1.0.0", Protocol: 1}})
	default:
		l.open[i] = events.TaskID(fmt.Sprintf("70000000-0000-4000-8000-%012x", l.position))
		l.add(events.UserActor("operator"), tasks, events.Entry{Event: events.TaskRequested{Task: l.open[i], Kind: events.TaskVMReset, VM: vm, Deadline: l.now().AddDate(50, 0, 0)}})
	}
}

// now is the time of the next decision.
func (l *growthLog) now() time.Time {
	return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(l.position) * 1234567 * time.Microsecond)
}

// report adds what a device says.
func (l *growthLog) report(i int, s events.Subject, es ...events.Event) {
	at := l.now().Add(-time.Second)
	entries := make([]events.Entry, len(es))
	for n, e := range es {
		l.reports[i]++
		entries[n] = events.Entry{Event: e, DeviceTime: &at, Report: &events.Report{Epoch: 1796256000000, Seq: l.reports[i]}}
	}
	l.add(events.DeviceActor(growthDevice(i)), s, entries...)
}

// add appends a decision, as the store does, without waiting for the answer.
func (l *growthLog) add(actor events.Actor, s events.Subject, entries ...events.Entry) {
	d := events.Decision{
		ID: events.ID(events.NewID()), Subject: s, Time: l.now(), Actor: actor, Source: "192.0.2.1", Entries: entries,
	}
	m, err := growthMessage(d, l.last[s])
	if err != nil {
		l.b.Fatal(err)
	}
	if _, err := l.js.PublishMsgAsync(m, jetstream.WithStallWait(time.Minute)); err != nil {
		l.b.Fatal(err)
	}
	l.position++ // one connection keeps the order
	l.last[s] = l.position
}

func growthMessage(d events.Decision, revision uint64) (*nats.Msg, error) {
	data, err := events.Encode(d)
	return &nats.Msg{Subject: string(d.Subject), Data: data, Header: nats.Header{
		jetstream.MsgIDHeader:               {string(d.ID)},
		jetstream.ExpectedLastSubjSeqHeader: {strconv.FormatUint(revision, 10)},
		jetstream.ExpectedStreamHeader:      {growthStream},
	}}, err
}

// diskBytes returns what the disk holds for a file, or for all in a folder.
func diskBytes(b *testing.B, path string) float64 {
	b.Helper()
	var sum int64
	if err := filepath.WalkDir(path, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil {
			sum += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return err
	}); err != nil {
		b.Fatal(err)
	}
	return float64(sum)
}

// growthStream is the name of the event log's stream.
const growthStream = "EVENTS"

func openBroker(b *testing.B, dir string) (*mqttgw.Broker, *nats.Conn) {
	b.Helper()
	broker, conn, err := startBroker(b.Context(), dir)
	if err != nil {
		b.Fatal(err)
	}
	return broker, conn
}

func startBroker(ctx context.Context, dir string) (*mqttgw.Broker, *nats.Conn, error) {
	broker, err := mqttgw.NewBroker(mqttgw.BrokerConfig{Dir: dir, Sync: time.Second})
	if err != nil {
		return nil, nil, err
	}
	if err := broker.Start(ctx); err != nil {
		return nil, nil, err
	}
	conn, err := broker.Conn("growth")
	if err != nil {
		broker.Shutdown()
	}
	return broker, conn, err
}

// setWindow sets how long JetStream remembers the ids of decisions.
func setWindow(ctx context.Context, js jetstream.JetStream, d time.Duration) error {
	s, err := js.Stream(ctx, growthStream)
	if err != nil {
		return err
	}
	c := s.CachedInfo().Config
	c.Duplicates = d
	_, err = js.UpdateStream(ctx, c)
	return err
}

// growthEnv, when set, makes the test binary a process that opens a log: its
// value is the manager's folder.
const growthEnv = "PALLAS_TEST_GROWTH"

// serveGrowth opens the log, says so, and does what standard input asks, line
// by line, with an answer in seconds to each. It stops at the input's end.
func serveGrowth(dir string) error {
	ctx := context.Background()
	broker, conn, err := startBroker(ctx, filepath.Join(dir, "nats"))
	if err != nil {
		return err
	}
	defer broker.Shutdown()
	js, err := jetstream.New(conn)
	if err != nil {
		return err
	}
	if _, err := js.Stream(ctx, growthStream); err != nil {
		return err
	}
	answers := json.NewEncoder(os.Stdout)
	if err := answers.Encode(0.0); err != nil {
		return err
	}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		begin := time.Now()
		count := 1
		switch in.Text() {
		case "append":
			var m *nats.Msg
			if m, err = growthMessage(events.Decision{
				ID: events.ID(events.NewID()), Subject: events.DeviceSubject(growthDevice(1 << 20)), Time: begin.UTC(), Actor: "system:growth",
				Entries: []events.Entry{{Event: events.DeviceRenamed{Name: "last"}}},
			}, 0); err == nil {
				_, err = js.PublishMsg(ctx, m)
			}
		case "window":
			err = setWindow(ctx, js, 10*time.Minute)
		case "load":
			count = growthBusy
			err = loadGrowth(ctx, conn)
		default:
			err = fmt.Errorf("%q is nothing to do", in.Text())
		}
		if err == nil {
			err = answers.Encode(time.Since(begin).Seconds() / float64(count))
		}
		if err != nil {
			return err
		}
	}
	return in.Err()
}

// loadGrowth loads the long aggregates, each once and for the first time.
func loadGrowth(ctx context.Context, conn *nats.Conn) error {
	store, err := jsstore.Open(ctx, jsstore.Config{Conn: conn})
	if err != nil {
		return err
	}
	for i := range growthBusy {
		n := 0
		for _, err := range store.Load(ctx, events.InventorySubject(growthDevice(i)), 0) {
			if err != nil {
				return err
			}
			n++
		}
		if n != growthLong {
			return fmt.Errorf("device %d has %d decisions, want %d", i, n, growthLong)
		}
	}
	return nil
}

// growthProcess is a process that has a log open.
type growthProcess struct {
	b    *testing.B
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *json.Decoder
	took time.Duration // until the log was open
	rss  float64       // then, in MB
}

func (l *growthLog) start() *growthProcess {
	l.b.Helper()
	p := &growthProcess{b: l.b, cmd: exec.Command(os.Args[0])}
	p.cmd.Env = append(os.Environ(), growthEnv+"="+l.m.Config.DataDir)
	p.cmd.Stderr = os.Stderr
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		l.b.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		l.b.Fatal(err)
	}
	p.out = json.NewDecoder(out)
	began := time.Now()
	if err := p.cmd.Start(); err != nil {
		l.b.Fatal(err)
	}
	l.b.Cleanup(func() { _ = p.cmd.Process.Kill(); _ = p.cmd.Wait() }) // if it still runs
	p.answer("open")
	p.took = time.Since(began)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		l.b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	var kib float64
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		l.b.Fatalf("no VmRSS in\n%s", status)
	}
	p.rss = kib * 1024 / 1e6
	return p
}

// ask has the process do something, and returns the seconds that it took.
func (p *growthProcess) ask(what string) float64 {
	p.b.Helper()
	if _, err := fmt.Fprintln(p.in, what); err != nil {
		p.b.Fatalf("%s: %v", what, err)
	}
	return p.answer(what)
}

func (p *growthProcess) answer(what string) (seconds float64) {
	p.b.Helper()
	if err := p.out.Decode(&seconds); err != nil {
		p.b.Fatalf("%s: %v", what, err)
	}
	return seconds
}

// stop ends the process as an operator does, kill as a fault does.
func (p *growthProcess) stop() {
	p.b.Helper()
	if err := errors.Join(p.in.Close(), p.cmd.Wait()); err != nil {
		p.b.Fatal(err)
	}
}

func (p *growthProcess) kill() {
	p.b.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		p.b.Fatal(err)
	}
	_ = p.cmd.Wait() // killed, so never nil
}
