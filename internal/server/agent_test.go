package server_test

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi/vim25/types"

	"pallas/agent"
	"pallas/agent/hypervisor/esxi"
	"pallas/agent/hypervisor/esxi/vcsim"
	"pallas/events"
	"pallas/internal/client"
	"pallas/internal/servertest"
)

// agentEnv, when set, makes the test binary an agent on an ESXi host: its
// value is the path of an agentFile.
const agentEnv = "PALLAS_TEST_AGENT"

type agentFile struct{ Dir, Join, URL, Username, Password, Thumbprint string }

func runAgent(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var f agentFile
	if err := json.Unmarshal(b, &f); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	d, err := esxi.New(esxi.Config{URL: f.URL, Username: f.Username, Password: esxi.Secret(f.Password), Thumbprint: f.Thumbprint, Log: log})
	if err != nil {
		return err
	}
	defer d.Close()
	a, err := agent.New(agent.Config{
		Dir: f.Dir, Join: f.Join, Driver: d, Version: "test", Log: log,
		BackoffBase: 50 * time.Millisecond, BackoffCap: 300 * time.Millisecond, Debounce: 10 * time.Millisecond,
		Settle: time.Second,
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { _, _ = io.Copy(io.Discard, os.Stdin); cancel() }()
	return a.Run(ctx)
}

// process is an agent in a process of its own.
type process struct {
	t    *testing.T
	file string
	cmd  *exec.Cmd
	in   io.Closer
	log  *os.File
}

func newProcess(t *testing.T, join string, h *vcsim.Host) *process {
	t.Helper()
	dir := t.TempDir()
	b, err := json.Marshal(agentFile{
		Dir: filepath.Join(dir, "agent"), Join: join, URL: h.URL(), Username: h.Username(), Password: h.Password(), Thumbprint: h.Thumbprint(),
	})
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, file: filepath.Join(dir, "agent.json")}
	if err := os.WriteFile(p.file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if p.log, err = os.Create(filepath.Join(dir, "agent.log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.stop()
		if t.Failed() {
			if b, err := os.ReadFile(p.log.Name()); err == nil {
				t.Logf("agent:\n%s", b)
			}
		}
		p.log.Close()
	})
	return p
}

func (p *process) start() {
	p.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		p.t.Fatal(err)
	}
	p.cmd = exec.Command(exe)
	p.cmd.Env = append(os.Environ(), agentEnv+"="+p.file)
	p.cmd.Stderr = p.log
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		p.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
}

func (p *process) kill() {
	p.t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		p.t.Fatal(err)
	}
	_ = p.cmd.Wait() // killed, so never nil
	p.in.Close()
	p.cmd = nil
}

func (p *process) stop() {
	if p.cmd == nil {
		return
	}
	p.in.Close()
	if err := p.cmd.Wait(); err != nil {
		p.t.Errorf("the agent ended: %v", err)
	}
	p.cmd = nil
}

func startHost(t *testing.T, cfg vcsim.Config) *vcsim.Host {
	t.Helper()
	if cfg.Name == "" {
		cfg.Name = "esx-test-01.example.net"
	}
	if cfg.VMs == nil {
		cfg.VMs = []vcsim.VMSpec{{Name: "pos"}, {Name: "db", On: true}, {Name: "web"}}
	}
	h, err := vcsim.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

// onHost is an agent in this process on a simulated ESXi host.
func onHost(t *testing.T, m *servertest.Manager, h *vcsim.Host) {
	t.Helper()
	d, err := esxi.New(esxi.Config{
		URL: h.URL(), Username: h.Username(), Password: esxi.Secret(h.Password()), Thumbprint: h.Thumbprint(),
		LoginPause: -1, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	startAgent(t, h.Name(), m.Join(1), d, func(c *agent.Config) { c.Reconcile = time.Second })
}

// one returns the only device once it is connected and its host is known.
func one(t testing.TB, m *servertest.Manager) client.Device {
	t.Helper()
	servertest.Eventually(t, 30*time.Second, func() error { return connected(m, 1) })
	r, err := m.API.ListDevicesWithResponse(t.Context(), nil)
	if err != nil || r.JSON200 == nil {
		t.Fatalf("list devices: %v", err)
	}
	return r.JSON200.Items[0]
}

func machine(t *testing.T, m *servertest.Manager, name string) client.VM {
	t.Helper()
	var vm client.VM
	servertest.Eventually(t, 30*time.Second, func() error {
		r, err := m.API.ListVmsWithResponse(t.Context(), &client.ListVmsParams{Q: &name})
		if err != nil || r.JSON200 == nil || len(r.JSON200.Items) != 1 {
			return fmt.Errorf("virtual machine %s is not there: %w", name, cmp.Or(err, servertest.ErrNotYet))
		}
		vm = r.JSON200.Items[0]
		return nil
	})
	return vm
}

func request(t *testing.T, m *servertest.Manager, vm client.VM, action client.SetVMPowerAction) client.Task {
	t.Helper()
	r, err := m.API.SetVmPowerWithResponse(t.Context(), vm.Device.String(), vm.Id, nil, client.SetVMPower{Action: action})
	if err != nil || r.JSON202 == nil {
		t.Fatalf("%s %s: %v %s", action, vm.Name, err, r.Body)
	}
	return *r.JSON202
}

func taskIs(t *testing.T, m *servertest.Manager, id string, want ...client.TaskStatus) client.Task {
	t.Helper()
	var task client.Task
	servertest.Eventually(t, time.Minute, func() error {
		r, err := m.API.GetTaskWithResponse(t.Context(), id, nil)
		if err != nil || r.JSON200 == nil {
			return fmt.Errorf("read task %s: %w", id, cmp.Or(err, servertest.ErrNotYet))
		}
		if task = *r.JSON200; !slices.Contains(want, task.Status) {
			return fmt.Errorf("task %s is %s, want %v", id, task.Status, want)
		}
		return nil
	})
	return task
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// TestKilledAgent kills the agent while its host carries out a task, at moments
// before, during and after: the task is done once, or failed as interrupted.
func TestKilledAgent(t *testing.T) {
	m := servertest.Start(t)
	h := startHost(t, vcsim.Config{})
	p := newProcess(t, m.Join(1), h)
	p.start()
	device := one(t, m)
	vm := machine(t, m, "pos")

	actions := []client.SetVMPowerAction{"on", "off", "on", "reset", "suspend", "on", "off"}
	next := append(actions[1:], "")
	for i, action := range actions {
		method := map[client.SetVMPowerAction]string{
			"on": "PowerOnVM_Task", "off": "PowerOffVM_Task", "reset": "ResetVM_Task", "suspend": "SuspendVM_Task",
		}[action]
		h.SetDelay(method, 300*time.Millisecond)
		task := request(t, m, vm, action)
		taskIs(t, m, task.Id.String(), "accepted", "succeeded")
		// Each round dies at another moment of the host's 300 ms.
		pause(t.Context(), time.Duration(i)*60*time.Millisecond)
		p.kill()
		h.SetDelay(method, 0)
		p.start()
		ended := taskIs(t, m, task.Id.String(), "succeeded", "failed")
		if ended.Status == "failed" && text(ended.Code) != "interrupted" {
			t.Errorf("%s failed with %q: %s", action, text(ended.Code), text(ended.Message))
		}
		t.Logf("%s, killed after %d ms: %s %s", action, i*60, ended.Status, text(ended.Message))
		// What the manager says of the machine is what its host says.
		servertest.Eventually(t, 30*time.Second, func() error {
			state, err := h.PowerState(t.Context(), "pos")
			if got := machine(t, m, "pos").Power; err == nil && strings.ToLower(strings.TrimPrefix(state, "powered")) != string(got) {
				err = fmt.Errorf("the host says %s, the manager %s", state, got)
			}
			return err
		})
		// The next verb needs a state that fits, whatever became of this one.
		want := next[i] == "off" || next[i] == "reset" || next[i] == "suspend"
		if got := machine(t, m, "pos").Power; (got == "on") != want {
			if err := h.Power(t.Context(), "pos", want); err != nil {
				t.Fatal(err)
			}
		}
		servertest.Eventually(t, 30*time.Second, func() error {
			if got := machine(t, m, "pos").Power; (got == "on") != want {
				return fmt.Errorf("%s is %s", "pos", got)
			}
			return nil
		})
	}
	p.stop()
	m.Stop()
	store, done := m.OpenLog()
	defer done()
	ends := make(map[events.TaskID]int)
	for _, r := range servertest.Records(t, store) {
		for _, e := range r.Entries {
			switch e := e.Event.(type) {
			case events.TaskSucceeded:
				ends[e.Task]++
			case events.TaskFailed:
				ends[e.Task]++
			case events.TaskReportedLate:
				t.Errorf("late report %+v", e)
			}
		}
	}
	for id, n := range ends {
		if n != 1 {
			t.Errorf("task %s of %s ended %d times", id, device.Name, n)
		}
	}
}

// TestHostTroubles is what goes wrong between an agent and its host.
func TestHostTroubles(t *testing.T) {
	m := servertest.Start(t)
	h := startHost(t, vcsim.Config{})
	onHost(t, m, h)
	one(t, m)

	condition := func(want client.DeviceCondition, words string) {
		t.Helper()
		servertest.Eventually(t, 30*time.Second, func() error {
			r, err := m.API.ListDevicesWithResponse(t.Context(), nil)
			if err != nil || r.JSON200 == nil {
				return fmt.Errorf("list devices: %w", cmp.Or(err, servertest.ErrNotYet))
			}
			d := r.JSON200.Items[0]
			if d.Condition != want || !strings.Contains(text(d.ConditionMessage), words) {
				return fmt.Errorf("condition %s %q, want %s with %q", d.Condition, text(d.ConditionMessage), want, words)
			}
			return nil
		})
	}
	fails := func(vm client.VM, action client.SetVMPowerAction, code string) {
		t.Helper()
		task := taskIs(t, m, request(t, m, vm, action).Id.String(), "failed", "rejected")
		if text(task.Code) != code || text(task.Message) == "" {
			t.Errorf("task %s with %q %q, want the code %s and a reason", task.Status, text(task.Code), text(task.Message), code)
		}
		t.Logf("%s: %s", code, text(task.Message))
	}

	t.Run("unreachable", func(t *testing.T) {
		vm := machine(t, m, "pos")
		h.SetUnreachable(true)
		fails(vm, "on", "unreachable")
		condition("unreachable", "")
		h.SetUnreachable(false)
		condition("ok", "")
	})
	t.Run("session expired", func(t *testing.T) {
		h.DropSessions()
		taskIs(t, m, request(t, m, machine(t, m, "pos"), "on").Id.String(), "succeeded")
		condition("ok", "")
	})
	t.Run("virtual machine vanished in between", func(t *testing.T) {
		// It goes while the host has the call and has not begun with it.
		h.SetDelay("PowerOnVM_Task", 500*time.Millisecond)
		defer h.SetDelay("PowerOnVM_Task", 0)
		task := request(t, m, machine(t, m, "web"), "on")
		taskIs(t, m, task.Id.String(), "accepted")
		if err := h.RemoveVM(t.Context(), "web"); err != nil {
			t.Fatal(err)
		}
		if ended := taskIs(t, m, task.Id.String(), "failed"); text(ended.Code) != "not_found" {
			t.Errorf("failed with %q %q", text(ended.Code), text(ended.Message))
		}
	})
	t.Run("licence forbids writing, as the host says in a task", func(t *testing.T) {
		h.TaskFault("PowerOffVM_Task", &types.RestrictedVersion{}, 1)
		fails(machine(t, m, "db"), "off", "read_only")
		h.ClearFaults()
	})
	t.Run("wrong password", func(t *testing.T) {
		good := h.Password()
		h.ChangePassword("another")
		h.DropSessions()
		condition("denied", "")
		h.ChangePassword(good)
		condition("readOnly", "") // the host has said once that its licence forbids writing
	})
}

// TestReadOnlyLicence is a host with the free edition.
func TestReadOnlyLicence(t *testing.T) {
	m := servertest.Start(t)
	h := startHost(t, vcsim.Config{ReadOnly: true})
	onHost(t, m, h)
	d := one(t, m)
	if d.Host.License.Writable {
		t.Errorf("the licence counts as writable: %+v", d.Host.License)
	}
	vm := machine(t, m, "pos")
	r, err := m.API.SetVmPowerWithResponse(t.Context(), vm.Device.String(), vm.Id, nil, client.SetVMPower{Action: "on"})
	if err != nil {
		t.Fatal(err)
	}
	if r.ApplicationproblemJSON409 == nil || text(r.ApplicationproblemJSON409.Code) != "read_only" {
		t.Errorf("got %s %s, want 409 with the code read_only", r.Status(), r.Body)
	}
}
