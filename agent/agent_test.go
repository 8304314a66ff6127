package agent_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"pallas/agent"
	"pallas/agent/hypervisor/fake"
	"pallas/agent/identity"
	"pallas/agent/store"
	"pallas/mqttgw/wire"
)

func TestMainJob(t *testing.T) {
	m := newManager(t)
	h := fake.Sample("shop-1", 3)
	dir := filepath.Join(t.TempDir(), "data")
	busy := 2
	m.answer = func(w http.ResponseWriter) bool {
		if busy--; busy < 0 {
			return false
		}
		w.WriteHeader([]int{http.StatusServiceUnavailable, http.StatusTooManyRequests}[busy])
		return true
	}
	a := start(t, m, dir, h)
	m.until("the host is known", func() bool { return m.knows(h) })
	m.set(func() {
		if n := len(m.enrols); n != 3 || m.enrols[0].Name != "shop-1" || m.enrols[0].Device != m.device || m.enrols[0].Agent != "1.2.3" {
			t.Errorf("%d enrolments, %+v", n, m.enrols)
		}
	})
	m.until("the id is kept on the host", func() bool { return h.StoredID() == a.Device() })

	off := task(wire.TaskVMShutdown, "vm-1")
	m.push(off)
	m.push(off)
	m.until("the task ends", func() bool { n, _ := m.ends(off.ID); return n > 0 })
	m.set(func() {
		if n, end := m.ends(off.ID); n != 1 || end.State != wire.StateSucceeded {
			t.Errorf("%d ends, the last %+v", n, end)
		}
		if story := m.story(); !strings.HasSuffix(story, "task accepted\npatch vm-1 off\ntask succeeded") {
			t.Errorf("the change was not reported between acceptance and outcome:\n%s", story)
		}
	})

	h.SetPower("vm-2", wire.PowerOn) // behind everybody's back
	m.until("the change shows up", func() bool { return m.vms["vm-2"].Power == wire.PowerOn })
	h.SetDenied("wrong password")
	m.until("the refusal shows up", func() bool { return strings.HasSuffix(m.story(), "condition denied") })
	h.SetDenied("")
	m.until("its end shows up", func() bool { return strings.HasSuffix(m.story(), "condition ok") })

	if err := a.stop(); err != nil {
		t.Errorf("run: %v", err)
	}
	m.until("goodbye", func() bool { return m.byes == 1 })
	var reported int
	m.set(func() { reported = len(m.reports) })
	b := start(t, m, dir, h, func(c *agent.Config) { c.Join = "" })
	m.until("it is back", func() bool { return b.Stats().Connected && len(m.hellos) == 2 })
	h.RemoveVM("vm-3")
	m.until("the removal shows up", func() bool { return m.knows(h) })
	m.set(func() {
		if n := len(m.reports) - reported; n != 1 {
			t.Errorf("%d reports after a restart and one change:\n%s", n, m.story())
		}
	})
	if a.Device() != b.Device() || a.Device() == "" {
		t.Errorf("device %q and then %q", a.Device(), b.Device())
	}
	if s := a.log.String() + b.log.String(); strings.Contains(s, token) || strings.Contains(s, "PRIVATE KEY") {
		t.Error("a secret is in the log")
	}
}

func TestWeather(t *testing.T) {
	m := newManager(t)
	m.lossy = true
	h := fake.Sample("train", 4)
	a := start(t, m, t.TempDir(), h)
	m.until("the first reports", func() bool { return len(m.reports) > 0 })
	var tasks []wire.Task
	for i := range 50 {
		vm := fmt.Sprint("vm-", rand.IntN(4)+1)
		h.AlterVM(vm, func(vm *wire.VM) { vm.CPUs = 100 + i })
		if i%5 == 0 {
			tk := task([]string{wire.TaskVMPowerOn, wire.TaskVMPowerOff}[i/5%2], "vm-2")
			tasks = append(tasks, tk)
		}
		for _, tk := range tasks {
			m.push(tk) // a manager that has not heard of the acceptance
		}
		before := 0
		m.set(func() { before = len(m.hellos) })
		a.wire.cut()
		m.until("it is back", func() bool { return len(m.hellos) > before })
	}
	for _, tk := range tasks {
		m.until("task "+tk.Kind+" ends", func() bool {
			if n, _ := m.ends(tk.ID); n > 0 {
				return true
			}
			m.down(wire.Down{Tasks: []wire.Task{tk}})
			return false
		})
	}
	m.set(func() { m.lossy = false })
	m.until("the host is known", func() bool { return m.knows(h) })
	m.set(func() {
		for i, r := range m.reports {
			if r.Seq != uint64(i+1) {
				t.Fatalf("report %d has sequence %d", i+1, r.Seq)
			}
		}
		if m.lost == 0 {
			t.Error("no packet was lost: the weather was too good")
		}
	})
	ran := map[string]int{}
	for _, r := range h.Runs() {
		if ran[r.ID.String()]++; ran[r.ID.String()] > 1 {
			t.Errorf("task %s ran twice", r.ID)
		}
	}
	if got := strings.Count(a.log.String(), "level=ERROR"); got > 0 {
		t.Errorf("%d errors in the log:\n%s", got, a.log)
	}
}

func TestPending(t *testing.T) {
	m := newManager(t)
	m.pending = true
	h := fake.Sample("one", 1)
	start(t, m, t.TempDir(), h)
	m.until("hello", func() bool { return len(m.hellos) == 1 })
	h.SetPower("vm-1", wire.PowerOff)
	m.set(func() {
		if len(m.reports) != 0 {
			t.Errorf("reports before approval:\n%s", m.story())
		}
		m.pending = false
		m.welcome()
	})
	m.until("the host is known", func() bool { return m.knows(h) })
}

func TestManagerLostItsCopy(t *testing.T) {
	m := newManager(t)
	h := fake.Sample("one", 2)
	a := start(t, m, t.TempDir(), h)
	m.until("the host is known", func() bool { return m.knows(h) })
	m.set(func() { m.vms, m.host = map[string]wire.VM{}, wire.Host{} })
	a.wire.cut()
	m.until("the hash at the hello led to a complete inventory", func() bool { return m.knows(h) && !m.resync && len(m.hellos) == 2 })
	m.set(func() {
		if m.epochs[0] != m.epochs[len(m.epochs)-1] {
			t.Error("the epoch changed")
		}
	})
}

// TestAgentWasSetBack brings the agent's disk back to an older state, as
// reverting a snapshot of its machine does.
func TestAgentWasSetBack(t *testing.T) {
	m := newManager(t)
	h := fake.Sample("one", 2)
	dir := t.TempDir()
	a := start(t, m, dir, h)
	m.until("the host is known", func() bool { return m.knows(h) })
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	old, err := os.ReadFile(filepath.Join(dir, "agent.db"))
	if err != nil {
		t.Fatal(err)
	}
	b := start(t, m, dir, h)
	for i := range 5 {
		h.AlterVM("vm-1", func(vm *wire.VM) { vm.CPUs = 50 + i })
		m.until("the change shows up", func() bool { return m.vms["vm-1"].CPUs == 50+i })
	}
	if err := b.stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "agent.db"), old, 0o600); err != nil {
		t.Fatal(err)
	}
	h.AlterVM("vm-2", func(vm *wire.VM) { vm.CPUs = 77 })
	start(t, m, dir, h)
	m.until("the host is known", func() bool { return m.knows(h) && m.vms["vm-2"].CPUs == 77 })
	m.set(func() {
		if m.epochs[0] == m.epochs[len(m.epochs)-1] {
			t.Error("the epoch is still the same")
		}
	})
}

func TestRebuiltAgentIsTheSameDevice(t *testing.T) {
	m := newManager(t)
	h := fake.Sample("one", 1)
	a := start(t, m, t.TempDir(), h)
	m.until("the id is kept on the host", func() bool { return h.StoredID() != "" })
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	b := start(t, m, t.TempDir(), h)
	m.until("it is back", func() bool { return m.knows(h) && len(m.enrols) == 2 })
	if a.Device() != b.Device() {
		t.Errorf("device %s became %s", a.Device(), b.Device())
	}
	if err := b.stop(); err != nil {
		t.Fatal(err)
	}
	h.SetStoredID("11111111-2222-4333-8444-555555555555")
	c := start(t, m, b.dir, h)
	m.until("the local id wins", func() bool { return h.StoredID() == c.Device() && c.Device() == a.Device() })
	if !strings.Contains(c.log.String(), "another device id") {
		t.Error("the mismatch is not in the log")
	}
}

func TestPermanentFaultsEndRun(t *testing.T) {
	t.Run("refused", func(t *testing.T) {
		m := newManager(t)
		m.answer = func(w http.ResponseWriter) bool {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, `{"title":"Forbidden","detail":"the join token is used up","status":403}`)
			return true
		}
		a := start(t, m, t.TempDir(), fake.Sample("one", 1))
		err := a.ended()
		var refused *identity.RefusedError
		if !errors.As(err, &refused) || refused.Status != http.StatusForbidden || !strings.Contains(err.Error(), "used up") || strings.Contains(err.Error(), token) {
			t.Errorf("run: %v", err)
		}
	})
	t.Run("not enrolled", func(t *testing.T) {
		m := newManager(t)
		a := start(t, m, t.TempDir(), fake.Sample("one", 1), func(c *agent.Config) { c.Join = "" })
		if err := a.ended(); err == nil || !strings.Contains(err.Error(), "join string") {
			t.Errorf("run: %v", err)
		}
	})
	t.Run("folder in use", func(t *testing.T) {
		m := newManager(t)
		h := fake.Sample("one", 1)
		dir := t.TempDir()
		start(t, m, dir, h)
		m.until("the host is known", func() bool { return m.knows(h) })
		b := start(t, m, dir, h)
		if err := b.ended(); !errors.Is(err, store.ErrBusy) {
			t.Errorf("run: %v, want ErrBusy", err)
		}
	})
	t.Run("wrong configuration", func(t *testing.T) {
		log := slog.New(slog.DiscardHandler)
		for _, c := range []agent.Config{
			{},
			{Dir: "x", Log: log},
			{Dir: "x", Driver: fake.Sample("one", 1)},
			{Driver: fake.Sample("one", 1), Log: log},
			{Dir: "x", Driver: fake.Sample("one", 1), Log: log, Join: "pallas-join-1.damaged"},
		} {
			if _, err := agent.New(c); err == nil {
				t.Errorf("no error for %+v", c)
			}
		}
	})
}

// TestWrongManager has a manager in between that is not the one of the join
// string: nothing must be told to it.
func TestWrongManager(t *testing.T) {
	m, other := newManager(t), newManager(t)
	j := wire.Join{URL: other.https.URL, CA: m.ca.Fingerprint(), Token: token, Expires: time.Now().Add(time.Hour)}
	a := start(t, m, t.TempDir(), fake.Sample("one", 1), func(c *agent.Config) { c.Join = j.String() })
	m.until("the agent complains", func() bool { return strings.Contains(a.log.String(), "cannot enrol yet") })
	other.set(func() {
		if len(other.enrols) != 0 {
			t.Error("the token was told to a stranger")
		}
	})
}

// TestFootprint counts what many agents in one process cost.
func TestFootprint(t *testing.T) {
	m := newManager(t)
	m.pending = true // the test's manager keeps books of one device only
	const agents = 20
	count := func() int {
		buf := make([]byte, 8<<20)
		buf = buf[:runtime.Stack(buf, true)]
		n := 0
		for g := range strings.SplitSeq(string(buf), "\n\n") {
			if strings.Contains(g, "pallas/agent.") || strings.Contains(g, "pallas/agent/") {
				n++
			}
		}
		return n
	}
	before := count()
	var all []*running
	for i := range agents {
		h := fake.Sample(fmt.Sprint("h", i), 20)
		all = append(all, start(t, m, t.TempDir(), h, func(c *agent.Config) { c.NoSync = true }))
	}
	for _, a := range all {
		m.until("connected", func() bool { return a.Stats().Connected })
	}
	each := float64(count()-before) / agents
	t.Logf("%.1f goroutines each, of them one of this test", each)
	if each > 8 {
		t.Errorf("%.1f goroutines for each agent, want at most 8", each)
	}
	for _, a := range all {
		if err := a.stop(); err != nil {
			t.Error(err)
		}
	}
	late := time.After(10 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for count() > before {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%d goroutines are left after all agents stopped", count()-before)
		}
	}
}

func TestStopsAtOnceWhereverItIs(t *testing.T) {
	for name, prepare := range map[string]func(*manager, *fake.Host){
		"host unreachable":    func(_ *manager, h *fake.Host) { h.SetUnreachable("cable") },
		"manager unreachable": func(m *manager, _ *fake.Host) { m.https.Close() },
		"task running": func(m *manager, h *fake.Host) {
			h.HoldTasks()
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := newManager(t)
			h := fake.Sample("one", 1)
			prepare(m, h)
			a := start(t, m, t.TempDir(), h)
			if name == "task running" {
				m.until("the host is known", func() bool { return m.knows(h) })
				m.push(task(wire.TaskVMPowerOff, "vm-1"))
				m.until("it runs", func() bool { return len(h.Runs()) == 1 })
			} else {
				m.until("it is at it", func() bool { return a.log.String() != "" || a.Device() != "" })
			}
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			stopped := make(chan error, 1)
			go func() { stopped <- a.stop() }()
			select {
			case err := <-stopped:
				if err != nil {
					t.Errorf("run: %v", err)
				}
			case <-ctx.Done():
				t.Error("the agent does not stop within 5 s")
			}
		})
	}
}

// A device keeps the address of the device door that it was told when it
// enrolled. A new join string tells it another; one that is of no use must not
// cost it the manager that it has.
func TestNewJoinStringMovesTheDevice(t *testing.T) {
	m := newManager(t)
	h := fake.Sample("one", 1)
	dir := t.TempDir()
	moved := m.mqtt
	m.mqtt = "127.0.0.1:1" // where nobody listens any more
	a := start(t, m, dir, h)
	m.until("it cannot connect", func() bool { return strings.Contains(a.log.String(), "connection to the manager lost") })
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	enrols := func() (n int) { m.set(func() { n = len(m.enrols) }); return n }

	m.mqtt = moved
	b := start(t, m, dir, h)
	m.until("it tries the old address", func() bool { return strings.Contains(b.log.String(), "connection to the manager lost") })
	if n := enrols(); n != 1 {
		t.Errorf("%d enrolments with one join string", n)
	}
	if err := b.stop(); err != nil {
		t.Fatal(err)
	}

	m.token = "another.secret-of-another-join-token"
	c := start(t, m, dir, h)
	m.until("it is back", func() bool { return c.Stats().Connected && m.knows(h) })
	if n := enrols(); n != 2 || c.Device() != a.Device() {
		t.Errorf("%d enrolments, device %s was %s", n, c.Device(), a.Device())
	}
	if err := c.stop(); err != nil {
		t.Fatal(err)
	}

	m.set(func() {
		m.token = "third.secret-of-a-third-join-token"
		m.answer = func(w http.ResponseWriter) bool {
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
	})
	d := start(t, m, dir, h)
	m.until("it is back all the same", func() bool { return d.Stats().Connected })
	if s := d.log.String(); !strings.Contains(s, "going on with the enrolment that there is") || strings.Contains(s, "secret-of") {
		t.Errorf("log: %s", s)
	}
}
