package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pallas/agent/hypervisor/fake"
	"pallas/agent/link"
	"pallas/events"
	"pallas/internal/servertest"
)

// simEnv makes the test binary the program itself, which starts itself again
// for a fleet of several processes.
const simEnv = "PALLAS_SIM_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(simEnv) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// TestProcesses runs a fleet in two processes and compares their books with the
// manager's, which runs in this one.
func TestProcesses(t *testing.T) {
	m := servertest.Start(t)
	dir := t.TempDir()
	join, token := filepath.Join(dir, "join"), filepath.Join(dir, "token")
	for path, text := range map[string]string{join: m.Join(40), token: m.Token + "\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv(simEnv, "1")
	args := []string{
		"--processes", "2", "--devices", "40", "--vms", "2", "--change-rate", "30", "--ramp", "100", "--duration", "2s", "--stream",
		"--data", filepath.Join(dir, "data"), "--join-file", join, "--metrics-token-file", token,
	}
	for _, churn := range []string{"0", "3"} {
		var out bytes.Buffer
		progress, err := os.Create(filepath.Join(dir, "progress-"+churn)) // a file, because several processes write to it
		if err != nil {
			t.Fatal(err)
		}
		defer progress.Close()
		if code := run(t.Context(), append(args, "--churn", churn), &out, progress); code != 0 {
			text, _ := os.ReadFile(progress.Name())
			t.Fatalf("exit code %d: %s", code, text)
		}
		var at int64
		var r *result
		seen := map[phase]int{}
		for dec := json.NewDecoder(&out); ; {
			var l line
			if err := dec.Decode(&l); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			if l.At < at {
				t.Errorf("line of %d after one of %d", l.At, at)
			}
			at = l.At
			if l.State != nil {
				seen[l.State.Phase]++
			}
			if r != nil {
				t.Error("the result is not the last line")
			}
			r = l.Result
		}
		if seen[connecting] == 0 || seen[running] == 0 || r == nil {
			t.Fatalf("phases %v, result %+v", seen, r)
		}
		if r.Processes != 2 || r.Devices != 40 || r.Started != 40 || r.Connected+r.Sessions.Cuts < 40 || r.ConnectSeconds <= 0 {
			t.Errorf("result %+v", r)
		}
		// Each of the two rounds its part of the changes down.
		if r.Changes < 58 || r.Changes > 60 || r.Receipts.Count == 0 || r.Receipts.P99 < r.Receipts.P50 || r.Receipts.By != nil {
			t.Errorf("%d changes, to receipt %+v", r.Changes, r.Receipts)
		}
		if r.Reports.Made == 0 || r.Reports.Made != r.Reports.Receipted || r.Manager == nil || r.Manager.Restarted ||
			r.Manager.Sessions != 40 || r.Manager.Reports != int64(r.Reports.Made) {
			t.Errorf("agents: %+v; manager: %+v", r.Reports, r.Manager)
		}
		if r.End.RSSPerAgent == 0 || r.End.RSSPerAgent > r.End.RSS/40 || r.End.GoroutinesPerAgent < 2 {
			t.Errorf("processes %+v", r.End)
		}
	}
}

// TestProcessLost is a fleet of which a process dies.
func TestProcessLost(t *testing.T) {
	m := servertest.Start(t)
	t.Setenv(simEnv, "1")
	t.Setenv(joinEnv, m.Join(4))
	var out, progress bytes.Buffer
	w := &watched{Writer: &progress, text: "4 connected", seen: sync.OnceFunc(func() {
		killChild(t)
	})}
	code := run(t.Context(), []string{"--processes", "2", "--devices", "4", "--duration", "0"}, &out, w)
	if want := "ended early: signal: killed"; code != exitFailed || !strings.Contains(progress.String(), want) || out.Len() > 0 {
		t.Errorf("exit code %d, %q, want %d and %q", code, &progress, exitFailed, want)
	}
}

// killChild kills one of this process's children.
func killChild(t *testing.T) {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Error(err)
		return
	}
	for _, task := range tasks {
		b, err := os.ReadFile("/proc/self/task/" + task.Name() + "/children")
		if err != nil {
			t.Error(err)
			return
		}
		for _, pid := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(pid); err == nil {
				if err := syscall.Kill(n, syscall.SIGKILL); err != nil {
					t.Error(err)
				}
				return
			}
		}
	}
	t.Error("there is no child")
}

func TestMerge(t *testing.T) {
	of := func(n int, ms ...int) *part {
		r := &result{Started: n, Connected: n, ConnectSeconds: float64(n), VMs: 3, Warnings: map[string]int{"w": n}}
		for _, d := range ms {
			r.Receipts.add(time.Duration(d) * time.Millisecond)
		}
		r.Bytes.InPerDevice, r.End = uint64(100*n), process{RSS: uint64(1000 * n), RSSPerAgent: uint64(10 * n), GoroutinesPerAgent: 6}
		return &part{devices: n, result: r}
	}
	a, b := of(1, 1, 2, 3), of(3, 5000)
	b.first, b.result.Problems = 1, []string{"oh"}
	got := merge([]*part{a, b})
	var one latency // the same durations in one process
	for _, d := range []int{1, 2, 3, 5000} {
		one.add(time.Duration(d) * time.Millisecond)
	}
	one.sum()
	if diff := cmp.Diff(one, got.Receipts); diff != "" {
		t.Errorf("latencies: %s", diff)
	}
	if got.Started != 4 || got.ConnectSeconds != 3 || got.Bytes.InPerDevice != 250 || got.End.RSS != 4000 || got.End.RSSPerAgent != 25 ||
		got.End.GoroutinesPerAgent != 6 || got.Warnings["w"] != 4 || got.Processes != 2 || got.VMs != 3 {
		t.Errorf("merged %+v", got)
	}
	if want := []string{"devices 1 to 3: oh"}; !slices.Equal(got.Problems, want) {
		t.Errorf("problems %q, want %q", got.Problems, want)
	}
	a.result.ConnectSeconds = 0
	if got := merge([]*part{a, b}); got.ConnectSeconds != 0 {
		t.Errorf("connected after %v s although a part never was", got.ConnectSeconds)
	}
}

func TestJudge(t *testing.T) {
	quiet := state{Started: 5, Connected: 5, Sessions: 5, Made: 40, Receipts: 9}
	before := counters{sessions: 2, reports: 100, receipts: 10, started: 1}
	after := counters{sessions: 7, reports: 140, receipts: 19, started: 1}
	for name, tc := range map[string]struct {
		change func(*state, *counters)
		want   string
	}{
		"agree":                  {},
		"a session too many":     {func(_ *state, c *counters) { c.sessions++ }, "6 sessions more"},
		"a session is missing":   {func(s *state, _ *counters) { s.Connected++ }, "6 devices are connected"},
		"a report is lost":       {func(_ *state, c *counters) { c.reports-- }, "took 39 reports"},
		"a report taken twice":   {func(_ *state, c *counters) { c.reports++ }, "took 41 reports"},
		"no receipt yet":         {func(s *state, c *counters) { s.Pending, c.reports = 3, 138 }, ""},
		"left by an earlier run": {func(s *state, c *counters) { s.Left, c.reports = 3, 143 }, ""},
		"a receipt not heard":    {func(s *state, _ *counters) { s.Receipts-- }, "sent 9 receipts, the agents heard 8"},
		"lost with its session":  {func(s *state, _ *counters) { s.Receipts--; s.Sessions++ }, ""},
		"a receipt not sent":     {func(_ *state, c *counters) { c.receipts-- }, "sent 8 receipts, the agents heard 9"},
		"restarted":              {func(_ *state, c *counters) { c.started, c.reports, c.receipts = 2, 0, 0 }, ""},
	} {
		s, c := quiet, after
		if tc.change != nil {
			tc.change(&s, &c)
		}
		m, problems := judge(before, c, s)
		if got := strings.Join(problems, "; "); (got == "") != (tc.want == "") || !strings.Contains(got, tc.want) {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
		if m.Restarted != (name == "restarted") {
			t.Errorf("%s: %+v", name, m)
		}
	}
	if got := (counters{files: 100, maxFiles: 1000}).carry(901); len(got) != 1 || !strings.Contains(got[0], "at most 900 devices") {
		t.Errorf("a manager with few files: %q", got)
	}
	for text, want := range map[string]string{
		"": "there is no pallas_device_sessions",
		"# HELP x\npallas_device_sessions 1\npallas_device_reports_total 2e+06\npallas_device_receipts_total{a=\"b\"} 3\n": "there is no pallas_device_receipts_total",
	} {
		if _, err := parseCounters(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestOutage(t *testing.T) {
	o, now := outage{least: 9}, time.Unix(0, 0)
	for i, connected := range []int{9, 8, 5, 7, 9, 9, 8, 9, 6} {
		o.note(now.Add(time.Duration(i)*time.Second), connected, 9)
	}
	if o.least != 5 || o.gap != 3*time.Second {
		t.Errorf("least %d, gap %v; want 5 and 3s", o.least, o.gap)
	}
}

// TestBooks compares what the agents made with what the manager wrote down.
func TestBooks(t *testing.T) {
	const devices, vms = 50, 3
	m := servertest.Start(t)
	o := options{
		devices: devices, vms: vms, ramp: 100, changeRate: 40, churn: 4, seed: 7, json: true, duration: 4 * time.Second,
		connectTimeout: time.Minute, drain: time.Minute, data: t.TempDir(), joinString: m.Join(devices),
	}
	if err := o.check(); err != nil {
		t.Fatal(err)
	}
	first := sim(t, &o)
	// The same devices once more: nothing is enrolled again.
	o.duration, o.seed = time.Second, 8
	second := sim(t, &o)
	m.Stop()

	for i, r := range []result{first, second} {
		if len(r.Problems) > 0 || r.Started != devices || r.Failed != 0 || r.ConnectSeconds == 0 {
			t.Errorf("run %d: %+v", i, r)
		}
		if r.Reports.Receipted != r.Reports.Made || r.Reports.Pending != 0 || r.Reports.Renewed != 0 || r.Reports.Left != 0 {
			t.Errorf("run %d: reports %+v, want each with a receipt", i, r.Reports)
		}
		if want := int(40 * o.duration.Seconds()); i == 1 && r.Changes != want {
			t.Errorf("run %d: %d changes, want %d", i, r.Changes, want)
		}
		if r.Receipts.Count == 0 || r.Receipts.Count > r.Changes || r.Receipts.P50 <= 0 || r.Receipts.P99 < r.Receipts.P50 {
			t.Errorf("run %d: %d changes, to receipt %+v", i, r.Changes, r.Receipts)
		}
	}
	if first.Enrolled != devices || second.Enrolled != 0 {
		t.Errorf("enrolled %d, then %d; want %d, then 0", first.Enrolled, second.Enrolled, devices)
	}
	if first.Changes != 160 || first.Sessions.Cuts != 16 {
		t.Errorf("%d changes and %d cuts, want 160 and 16", first.Changes, first.Sessions.Cuts)
	}
	// Nearly all cuts came early enough for another session.
	if first.Sessions.Made < devices+8 || second.Sessions.Made < devices {
		t.Errorf("sessions: %d, then %d", first.Sessions.Made, second.Sessions.Made)
	}

	store, done := m.OpenLog()
	defer done()
	type report struct {
		device events.DeviceID
		report events.Report
	}
	logged := make(map[report]uint64)
	last := make(map[events.DeviceID]events.Report)
	sources := make(map[string]bool)
	for _, r := range servertest.Records(t, store) {
		for _, e := range r.Entries {
			if c, ok := e.Event.(events.DeviceConnected); ok {
				sources[c.Address] = true
			}
			if e.Report == nil {
				continue
			}
			device := r.Subject.Device()
			key := report{device, *e.Report}
			// One report may be several events, all in one decision.
			if at, ok := logged[key]; ok && at != r.Position {
				t.Errorf("report %v is at positions %d and %d", key, at, r.Position)
			}
			logged[key] = r.Position
			if before := last[device]; before.Epoch != 0 && before.Epoch != e.Report.Epoch || e.Report.Seq < before.Seq {
				t.Errorf("device %s: report %v after %v", device, *e.Report, before)
			}
			last[device] = *e.Report
		}
	}
	want := 0
	for i, b := range second.books {
		if f := first.books[i]; f.device != b.device || f.epoch != b.epoch || f.begin != 1 || f.next != b.begin {
			t.Errorf("books of device %d: %+v, then %+v", i, f, b)
		}
		for seq := uint64(1); seq < b.next; seq++ {
			if logged[report{events.DeviceID(b.device), events.Report{Epoch: b.epoch, Seq: seq}}] == 0 {
				t.Errorf("device %s: report %d of %d is not in the log", b.device, seq, b.next-1)
			}
			want++
		}
	}
	if len(logged) != want || uint64(want) != first.Reports.Made+second.Reports.Made {
		t.Errorf("%d reports in the log, %d in the agents' books, %d counted", len(logged), want, first.Reports.Made+second.Reports.Made)
	}
	if len(sources) != devices {
		t.Errorf("devices connected from %d addresses, want one each", len(sources))
	}
}

func sim(t *testing.T, o *options) result {
	t.Helper()
	r, err := newFleet(o, io.Discard, slog.DiscardHandler).run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestNoManager is a run against a manager that nobody can reach.
func TestNoManager(t *testing.T) {
	m := servertest.Start(t)
	join := m.Join(2)
	m.Stop()
	t.Setenv(joinEnv, join)
	var out, progress bytes.Buffer
	code := run(t.Context(), []string{"--devices", "2", "--connect-timeout", "1s", "--duration", "1s", "--drain", "1s"}, &out, &progress)
	if code != exitFailed {
		t.Errorf("exit code %d, want %d: %s", code, exitFailed, &progress)
	}
	var r result
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatalf("%v: %s", err, &out)
	}
	if r.Connected != 0 || r.Warnings["cannot enrol yet"] == 0 || len(r.Problems) == 0 {
		t.Errorf("result %+v", r)
	}
	if got := strings.Count(progress.String(), "cannot enrol yet"); got != 1 {
		t.Errorf("the same warning was printed %d times, want once: %s", got, &progress)
	}
}

// TestSignal ends a run that has no end of its own.
func TestSignal(t *testing.T) {
	m := servertest.Start(t)
	file := filepath.Join(t.TempDir(), "join")
	if err := os.WriteFile(file, []byte(m.Join(3)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var out, progress bytes.Buffer
	w := &watched{Writer: &progress, text: "run: 3 started, 3 connected", seen: cancel}
	if code := run(ctx, []string{"--devices", "3", "--duration", "0", "--change-rate", "20", "--join-file", file}, &out, w); code != 0 {
		t.Errorf("exit code %d: %s", code, &progress)
	}
	var r result
	if err := json.Unmarshal(out.Bytes(), &r); err != nil || r.Reports.Pending != 0 || r.Reports.Made == 0 {
		t.Errorf("%v: %s", err, &out)
	}
	if strings.Contains(progress.String()+out.String(), "pallas-join") {
		t.Error("the join string was printed")
	}
}

// watched calls seen when a text was written.
type watched struct {
	mu sync.Mutex // several processes write
	io.Writer
	text string
	seen func()
}

func (w *watched) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if strings.Contains(string(b), w.text) {
		w.seen()
	}
	return w.Writer.Write(b)
}

func TestBadFlags(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv(joinEnv, "")
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"--devices", "0"}, "--devices: 0 is out of range"},
		{[]string{"--devices", "many"}, "--devices"},
		{[]string{"--vms", "-1"}, "--vms: -1 is out of range"},
		{[]string{"--ramp", "0"}, "--ramp: 0 is out of range"},
		{[]string{"--change-rate", "NaN"}, "--change-rate: NaN is out of range"},
		{[]string{"--churn", "-2"}, "--churn: -2 is out of range"},
		{[]string{"--duration", "-1s"}, "--duration: -1 is out of range"},
		{[]string{"--drain", "0"}, "--drain: 0 is out of range"},
		{[]string{"--first", fmt.Sprint(maxNumber), "--devices", "1"}, "loopback addresses"},
		{[]string{"--processes", "3", "--devices", "2"}, "--processes: 3 is out of range, want 0 to 2"},
		{[]string{"--nonsense"}, "nonsense"},
		{[]string{"extra"}, `unexpected argument "extra"`},
		{nil, "a join string is missing: give --join-file"},
		{[]string{"--join", "garbage"}, "--join: join string: want one that starts with"},
		{[]string{"--join", "a", "--join-file", "b"}, "give one of them"},
		{[]string{"--join-file", empty + "-not"}, "--join-file: open"},
		{[]string{"--join-file", empty}, "--join-file: join string: want one that starts with"},
		{[]string{"--data", filepath.Join(empty, "dir")}, "--data: "},
	} {
		var out, errs bytes.Buffer
		if code := run(t.Context(), tc.args, &out, &errs); code != exitUsage || !strings.Contains(errs.String(), tc.want) || out.Len() > 0 {
			t.Errorf("%q: exit code %d, %q; want %d and %q", tc.args, code, errs.String(), exitUsage, tc.want)
		}
	}
}

func TestCarry(t *testing.T) {
	big := machine{files: 1 << 30, maps: 1 << 30, memory: 1 << 50, disk: 1 << 50, ports: 28232}
	for name, tc := range map[string]struct {
		change  func(*machine)
		distant bool
		want    []string // how each problem begins
	}{
		"fits":              {},
		"nothing is known":  {change: func(m *machine) { *m = machine{} }},
		"files":             {change: func(m *machine) { m.files = 20000 }, want: []string{"open files: 60300 are needed, a process may have 20000: raise the limit"}},
		"maps and memory":   {change: func(m *machine) { m.maps, m.memory = 20000, 1<<30 }, want: []string{"memory mappings: 32000", "memory: about"}},
		"next to no memory": {change: func(m *machine) { m.memory = 1 << 20 }, want: []string{"memory: about"}},
		"disk":              {change: func(m *machine) { m.disk = 1 << 30 }, want: []string{"disk: about"}},
		"data in memory":    {change: func(m *machine) { m.memory, m.tmpfs = 10<<30, true }, want: []string{"memory: about"}},
		"system's files":    {change: func(m *machine) { m.allFiles = 50000 }, want: []string{"open files of the system: 60300 are needed, 50000 are left"}},
		"tracking":          {change: func(m *machine) { m.tracked = 10000 }, want: []string{"tracked connections: 30000 are needed, 10000 are left"}},
		"ports are far":     {distant: true, want: []string{"local ports: 30000 are needed, a source address has 28232"}},
	} {
		m := big
		if tc.change != nil {
			tc.change(&m)
		}
		got := m.carry(30000, 5, 1, tc.distant)
		if len(got) != len(tc.want) {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
			continue
		}
		for i, want := range tc.want {
			if !strings.HasPrefix(got[i], want) || !strings.Contains(got[i], "or ask for at most") {
				t.Errorf("%s: %q, want %q", name, got[i], want)
			}
		}
	}
	m := machine{files: 20000}
	fit := (20000 - filesBeside) / filesPerAgent
	for _, n := range []int{1, 2, 3} {
		if len(m.carry(n*fit, 5, n, false)) != 0 || len(m.carry(n*fit+1, 5, n, false)) != 1 {
			t.Errorf("%d devices should be the most that fit into %d processes", n*fit, n)
		}
		if got, more := m.processes(n*fit), m.processes(n*fit+1); got != n || more != n+1 {
			t.Errorf("%d devices take %d processes, one more %d; want %d and %d", n*fit, got, more, n, n+1)
		}
	}
	for _, none := range []machine{{}, {files: 10}} {
		if got := none.processes(1000); got != 1 {
			t.Errorf("%+v: %d processes, want 1", none, got)
		}
	}
	if m := measure(t.TempDir()); m.files == 0 || m.maps == 0 || m.memory == 0 || m.disk == 0 || m.ports == 0 {
		t.Errorf("measured %+v", m)
	}
}

func TestSources(t *testing.T) {
	seen := make(map[string]bool)
	for n := range 200_000 {
		a := source(n)
		if b := a.As4(); !a.IsLoopback() || b[1] == 0 || b[3] == 0 || b[3] == 255 || seen[a.String()] {
			t.Fatalf("device %d calls from %v", n, a)
		}
		seen[a.String()] = true
	}
	if got := source(maxNumber - 1).String(); got != "127.254.255.250" {
		t.Errorf("the last one calls from %s", got)
	}
	for addr, want := range map[string]bool{
		"127.0.0.1:8443": true, "localhost:1": true, "127.9.9.9:1": true,
		"192.0.2.1:1": false, "manager.example:1": false, "[::1]:1": false, "nonsense": false,
	} {
		if got := loopback(addr); got != want {
			t.Errorf("loopback(%q) = %v", addr, got)
		}
	}
}

// TestSeed applies the same changes to two hosts.
func TestSeed(t *testing.T) {
	host := func(seed uint64) *fake.Host {
		h, r := fake.Sample("h", 3), rand.New(rand.NewPCG(seed, 1))
		for n := range 100 {
			alteration(r, 3, n)(h)
		}
		return h
	}
	look := func(h *fake.Host) any {
		s, err := h.Observe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if diff := cmp.Diff(look(host(1)), look(host(1))); diff != "" {
		t.Errorf("the same seed: %s", diff)
	}
	if cmp.Diff(look(host(1)), look(host(2))) == "" {
		t.Error("another seed changed the same")
	}
	none := fake.Sample("none", 0)
	alteration(rand.New(rand.NewPCG(1, 1)), 0, 77)(none)
	if s, err := none.Observe(t.Context()); err != nil || s.Host.Datastores[0].FreeMiB != 77 {
		t.Errorf("a host without machines: %+v, %v", s, err)
	}
}

func TestBook(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	var b book
	var got []time.Time
	settle := func(s link.Stats) { b.settle(s, func(c time.Time) { got = append(got, c) }) }
	change := func(s int) { b.fresh = append(b.fresh, at(s)) }

	b.looked(link.Stats{}, "a")
	if b.open {
		t.Error("opened before there was an outbox")
	}
	b.looked(link.Stats{Epoch: 5, First: 3, Next: 5, Pending: 2}, "a")
	if !b.open || b.begin != 5 || b.left != 2 {
		t.Errorf("opened as %+v", b)
	}
	change(1)
	settle(link.Stats{Epoch: 5, First: 5, Next: 5})
	b.looked(link.Stats{Epoch: 5, First: 5, Next: 5}, "b")
	settle(link.Stats{Epoch: 5, First: 5, Next: 5})
	if len(got) != 0 {
		t.Error("a change that is not reported yet has a receipt")
	}
	settle(link.Stats{Epoch: 5, First: 5, Next: 7}) // two reports
	settle(link.Stats{Epoch: 5, First: 6, Next: 7})
	if len(got) != 0 {
		t.Error("a receipt of the first of two reports was enough")
	}
	change(2)
	change(3)
	b.looked(link.Stats{Epoch: 5, First: 6, Next: 7}, "c")
	settle(link.Stats{Epoch: 5, First: 7, Next: 8})
	if !slices.Equal(got, []time.Time{at(1)}) {
		t.Errorf("receipts for %v", got)
	}
	// They cancel each other out.
	settle(link.Stats{Epoch: 5, First: 8, Next: 8})
	change(4)
	change(5)
	b.looked(link.Stats{Epoch: 5, First: 8, Next: 8}, "c")
	// The outbox is full: the second look reports what the first could not.
	change(6)
	b.looked(link.Stats{Epoch: 5, First: 8, Next: 8}, "d")
	change(7)
	b.looked(link.Stats{Epoch: 5, First: 8, Next: 8}, "e")
	// The numbering begins anew, with one report in the outbox.
	settle(link.Stats{Epoch: 6, First: 1, Next: 2})
	settle(link.Stats{Epoch: 6, First: 2, Next: 2})
	if want := []time.Time{at(1), at(2), at(3), at(6), at(7)}; !slices.Equal(got, want) {
		t.Errorf("receipts for %v, want %v", got, want)
	}
	if b.renewed != 1 || b.begin != 1 || b.looks != nil {
		t.Errorf("in the end %+v", b)
	}
}
