package server_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pallas/agent"
	"pallas/agent/hypervisor"
	"pallas/agent/hypervisor/fake"
	"pallas/agent/identity"
	"pallas/events"
	"pallas/internal/client"
	"pallas/internal/config"
	"pallas/internal/server"
	"pallas/internal/servertest"
	"pallas/mqttgw/wire"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(agentEnv); path != "" {
		if err := runAgent(path); err != nil {
			fmt.Fprintln(os.Stderr, "agent:", err)
			os.Exit(1)
		}
		return
	}
	if dir := os.Getenv(growthEnv); dir != "" {
		if err := serveGrowth(dir); err != nil {
			fmt.Fprintln(os.Stderr, "log:", err)
			os.Exit(1)
		}
		return
	}
	if dir := os.Getenv(bareEnv); dir != "" {
		if err := serveBare(dir); err != nil {
			fmt.Fprintln(os.Stderr, "bare server:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(servertest.Main(m))
}

// device is a real agent on a host in memory.
type device struct {
	host *fake.Host
	a    *agent.Agent
}

func startAgent(t *testing.T, name, join string, driver hypervisor.Driver, change ...func(*agent.Config)) *agent.Agent {
	t.Helper()
	cfg := agent.Config{
		Dir: filepath.Join(t.TempDir(), "agent"), Join: join, Driver: driver, Version: "test",
		Log: slog.New(slog.DiscardHandler), BackoffBase: 50 * time.Millisecond, BackoffCap: 300 * time.Millisecond, NoSync: true, Debounce: 10 * time.Millisecond,
	}
	for _, f := range change {
		f(&cfg)
	}
	a, err := agent.New(cfg)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		var retired *identity.RetiredError // by the test
		if err := <-done; err != nil && !errors.As(err, &retired) {
			t.Errorf("%s: %v", name, err)
		}
	})
	return a
}

// TestKilledManager is the promise itself: whatever moment the manager dies,
// every report is in the log once and in order, every task has one outcome and
// ran at most once, and the read model is what the log says.
func TestKilledManager(t *testing.T) {
	const (
		devices = 20
		changes = 200
		kills   = 20
	)
	if testing.Short() {
		t.Skip("kills a manager 20 times")
	}
	m := servertest.New(t, func(c *server.Config) {
		c.Devices.Grace = config.Duration(time.Minute)
		c.Log.Level = "error"
	})
	m.Spawn()
	join := m.Join(devices)

	fleet := make([]device, devices)
	for i := range fleet {
		h := fake.Sample(fmt.Sprintf("host-%02d", i), 2)
		fleet[i] = device{host: h, a: startAgent(t, fmt.Sprint("agent ", i), join, h)}
	}
	servertest.Eventually(t, time.Minute, func() error { return connected(m, devices) })

	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	// Each change is a virtual machine of its own, so that no two can be
	// folded into one report.
	for i, d := range fleet {
		wg.Go(func() {
			for n := range changes {
				d.host.PutVM(wire.VM{ID: fmt.Sprintf("change-%02d-%03d", i, n), Name: fmt.Sprintf("change %d", n), Power: wire.PowerOff, Tools: wire.ToolsNotRunning})
				pause(ctx, time.Duration(20+rand.IntN(60))*time.Millisecond)
			}
		})
	}
	// Tasks run meanwhile. Each request is repeated with its key until it is
	// answered, as a careful client does.
	asked := make(map[string]int) // task id → how many times it was answered
	var mu sync.Mutex
	for i, d := range fleet[:8] {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil && n < 12; n++ {
				vm := fmt.Sprintf("task-%02d-%03d", i, n)
				d.host.PutVM(wire.VM{ID: vm, Name: vm, Power: wire.PowerOff, Tools: wire.ToolsNotRunning})
				key := fmt.Sprintf("key-%d-%d", i, n)
				for range 2 { // the second one must get the answer of the first
					id, err := powerOn(ctx, m, d.a.Device(), vm, key)
					if err != nil {
						t.Errorf("power on %s: %v", vm, err)
						return
					}
					mu.Lock()
					asked[id]++
					mu.Unlock()
				}
			}
		})
	}
	for range kills {
		pause(ctx, time.Duration(rand.IntN(700))*time.Millisecond)
		m.Kill()
		m.Spawn()
	}
	wg.Wait()
	servertest.Eventually(t, 2*time.Minute, func() error {
		for i, d := range fleet {
			if n := d.a.Stats().Pending; n > 0 {
				return fmt.Errorf("device %d has %d reports without a receipt", i, n)
			}
		}
		return nil
	})
	servertest.Eventually(t, time.Minute, func() error { return noOpenTasks(m) })
	m.Stop()

	store, done := m.OpenLog()
	defer done()
	records := servertest.Records(t, store)
	outcomes := make(map[events.TaskID][]string)
	for i, d := range fleet {
		id := events.DeviceID(d.a.Device())
		seen := make(map[events.VMID]int)
		last := make(map[events.Subject]events.Report)
		for _, r := range records {
			if r.Subject.Device() != id {
				continue
			}
			for _, e := range r.Entries {
				if e.Report != nil {
					before := last[r.Subject]
					if e.Report.Epoch != before.Epoch && before.Epoch != 0 || e.Report.Seq < before.Seq {
						t.Errorf("device %d: report %v after %v at position %d", i, *e.Report, before, r.Position)
					}
					last[r.Subject] = *e.Report
				}
				switch e := e.Event.(type) {
				case events.VMObserved:
					seen[e.VM.ID]++
				case events.DeviceLost:
					t.Errorf("device %d: lost at position %d: %s", i, r.Position, e.Reason)
				case events.TaskSucceeded:
					outcomes[e.Task] = append(outcomes[e.Task], e.Type())
				case events.TaskFailed:
					outcomes[e.Task] = append(outcomes[e.Task], e.Type())
				case events.TaskRejected:
					outcomes[e.Task] = append(outcomes[e.Task], e.Type())
				case events.TaskCancelled:
					outcomes[e.Task] = append(outcomes[e.Task], e.Type())
				case events.TaskExpired:
					outcomes[e.Task] = append(outcomes[e.Task], e.Type())
				case events.TaskReportedLate:
					t.Errorf("device %d: late report %+v", i, e)
				}
			}
		}
		for n := range changes {
			if c := seen[events.VMID(fmt.Sprintf("change-%02d-%03d", i, n))]; c != 1 {
				t.Errorf("device %d: change %d is %d times in the log", i, n, c)
			}
		}
		ran := make(map[string]int)
		for _, task := range d.host.Runs() {
			ran[task.ID.String()]++
		}
		for id, n := range ran {
			if n != 1 {
				t.Errorf("device %d: task %s ran %d times", i, id, n)
			}
		}
	}
	if len(asked) != 8*12 {
		t.Errorf("%d tasks were asked for, want %d: a repeated request made another task", len(asked), 8*12)
	}
	for id := range asked {
		if got := outcomes[events.TaskID(id)]; !slices.Equal(got, []string{"TaskSucceeded"}) {
			t.Errorf("task %s ended as %v", id, got)
		}
	}
	if diff := cmp.Diff(m.RebuiltHash(store), m.LiveHash()); diff != "" {
		t.Errorf("the rebuilt read model is not the live one: %s", diff)
	}
	t.Logf("%d decisions, %d tasks, %d kills", len(records), len(asked), kills)
}

// TestCutLink cuts the link 50 times while a device reports.
func TestCutLink(t *testing.T) {
	const cuts, changes = 50, 300
	m := servertest.Start(t, func(c *server.Config) { c.Devices.Grace = config.Duration(10 * time.Second) })
	link := servertest.NewProxy(t, m.Config.MQTT.Listen)
	h := fake.Sample("host", 1)
	a := startAgent(t, "agent", m.Join(1), h, func(c *agent.Config) {
		c.DialContext = link.Dial
		c.BackoffCap = 50 * time.Millisecond
	})
	servertest.Eventually(t, 30*time.Second, func() error { return connected(m, 1) })

	var wg sync.WaitGroup
	wg.Go(func() {
		for n := range changes {
			h.PutVM(wire.VM{ID: fmt.Sprintf("change-%03d", n), Name: fmt.Sprint(n), Power: wire.PowerOff, Tools: wire.ToolsNotRunning})
			pause(t.Context(), time.Duration(rand.IntN(30))*time.Millisecond)
		}
	})
	for range cuts {
		link.Cut()
		pause(t.Context(), time.Duration(rand.IntN(40))*time.Millisecond)
		link.Restore()
		pause(t.Context(), time.Duration(rand.IntN(160))*time.Millisecond)
	}
	wg.Wait()
	servertest.Eventually(t, time.Minute, func() error {
		if n := a.Stats().Pending; n > 0 {
			return fmt.Errorf("%d reports without a receipt", n)
		}
		return nil
	})
	m.Stop()
	store, done := m.OpenLog()
	defer done()
	seen, presence := make(map[events.VMID]int), 0
	for _, r := range servertest.Records(t, store) {
		for _, e := range r.Entries {
			switch e := e.Event.(type) {
			case events.VMObserved:
				seen[e.VM.ID]++
			case events.DeviceConnected, events.DeviceLost:
				presence++
			}
		}
	}
	for n := range changes {
		if c := seen[events.VMID(fmt.Sprintf("change-%03d", n))]; c != 1 {
			t.Errorf("change %d is %d times in the log", n, c)
		}
	}
	if presence != 1 {
		t.Errorf("%d events of presence for %d cuts within the grace time, want the first connect only", presence, cuts)
	}
}

func powerOn(ctx context.Context, m *servertest.Manager, device, vm, key string) (task string, err error) {
	var last error
	for {
		if ctx.Err() != nil {
			return "", fmt.Errorf("gave up: %w", last)
		}
		r, err := m.API.SetVmPowerWithResponse(ctx, device, vm, &client.SetVmPowerParams{IdempotencyKey: &key}, client.SetVmPowerJSONRequestBody{Action: client.SetVMPowerActionOn})
		switch {
		case err != nil:
			last = err // the manager is down
		case r.JSON202 != nil:
			return r.JSON202.Id.String(), nil
		case r.StatusCode() == http.StatusNotFound || r.StatusCode() >= 500:
			last = fmt.Errorf("%s: %s", r.Status(), r.Body) // not reported yet, or coming up
		default:
			return "", fmt.Errorf("%s: %s", r.Status(), r.Body)
		}
		pause(ctx, 20*time.Millisecond)
	}
}

func connected(m *servertest.Manager, want int) error {
	r, err := m.API.ListDevicesWithResponse(context.Background(), nil)
	if err != nil {
		return err
	}
	if r.JSON200 == nil {
		return fmt.Errorf("%s: %s", r.Status(), r.Body)
	}
	n := 0
	for _, d := range r.JSON200.Items {
		if d.Connection == "connected" && d.Host != nil {
			n++
		}
	}
	if n != want {
		return fmt.Errorf("%d devices are connected, want %d", n, want)
	}
	return nil
}

func noOpenTasks(m *servertest.Manager) error {
	open := true
	r, err := m.API.ListTasksWithResponse(context.Background(), &client.ListTasksParams{Open: &open})
	if err != nil {
		return err
	}
	if r.JSON200 == nil {
		return fmt.Errorf("%s: %s", r.Status(), r.Body)
	}
	if n := len(r.JSON200.Items); n > 0 {
		return fmt.Errorf("%d tasks are open: %+v", n, r.JSON200.Items[0])
	}
	return nil
}

// pause spaces out the load; nothing depends on its length.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
