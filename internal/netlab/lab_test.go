package netlab_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"pallas/agent"
	"pallas/agent/hypervisor/fake"
	"pallas/agent/link"
	"pallas/internal/client"
	"pallas/internal/config"
	"pallas/internal/netlab"
	"pallas/internal/server"
	"pallas/internal/servertest"
	"pallas/mqttgw/wire"
)

func TestMain(m *testing.M) {
	os.Exit(netlab.Main(func() int { return servertest.Main(m) }))
}

// needLinks skips a test where there is no namespace to make links in.
func needLinks(t testing.TB) {
	t.Helper()
	if err := netlab.Unavailable(); err != nil {
		t.Skip("not run: ", err)
	}
	t.Log("runs in a network namespace of its own")
}

// newLink makes a link for as long as the test.
func newLink(t testing.TB, p netlab.Profile) *netlab.Link {
	t.Helper()
	l, err := netlab.New(p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// newManager runs a manager that links lead to.
func newManager(t testing.TB, change ...func(*server.Config)) *servertest.Manager {
	t.Helper()
	m := servertest.New(t, append([]func(*server.Config){func(c *server.Config) {
		c.HTTP.Listen, c.HTTP.URL = "0.0.0.0:8443", "https://127.0.0.1:8443"
		c.MQTT.Listen, c.MQTT.Address = "0.0.0.0:8883", "127.0.0.1:8883"
		c.Devices.Grace = config.Duration(time.Hour)
		c.Events.Sync = config.Duration(time.Second)
		c.Log.Level = "error"
	}}, change...)...)
	api, err := client.Connect(m.Config.HTTP.URL, server.CAFile(m.Config), m.Token)
	if err != nil {
		t.Fatal(err)
	}
	m.API = api
	m.Run()
	return m
}

// device is a real agent on a host in memory.
type device struct {
	host   *fake.Host
	vms    int
	config agent.Config
	agent  *agent.Agent
	cancel context.CancelFunc
	done   chan error
}

var devices int

// newDevice enrols a device without a link in between, and leaves it stopped.
// Its manager has heard nothing of the host yet.
func newDevice(t testing.TB, join string, vms int) *device {
	t.Helper()
	d := makeDevice(t, join, vms)
	d.enrol(t)
	return d
}

// makeDevice makes one that is not enrolled yet.
func makeDevice(t testing.TB, join string, vms int) *device {
	t.Helper()
	devices++
	name := fmt.Sprintf("lab-%03d", devices)
	d := &device{host: fake.Sample(name, vms), vms: vms}
	near := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 1, byte(devices>>8), byte(devices))}}
	d.config = agent.Config{
		Dir: filepath.Join(t.TempDir(), name), Join: join, Driver: d.host, Log: slog.New(slog.DiscardHandler), NoSync: true,
		DialContext: near.DialContext, Debounce: 10 * time.Millisecond, FindID: time.Millisecond,
	}
	return d
}

// enrol enrols the device from near and stops it.
func (d *device) enrol(t testing.TB) {
	d.host.SetUnreachable("is not there yet")
	d.start()
	if err := within(t.Context(), time.Minute, func() bool { s := d.agent.Stats(); return s.Connected && s.Next > 1 && s.Pending == 0 }); err != nil {
		t.Errorf("enrol %s: %v", d.config.Dir, err)
	}
	d.stop(t)
	d.host.SetUnreachable("")
}

func (d *device) start() {
	var err error
	if d.agent, err = agent.New(d.config); err != nil {
		panic(err) // the configuration is the test's own
	}
	ctx, cancel := context.WithCancel(context.Background())
	d.cancel, d.done = cancel, make(chan error, 1)
	go func() { d.done <- d.agent.Run(ctx) }()
}

func (d *device) stop(t testing.TB) {
	t.Helper()
	d.cancel()
	if err := <-d.done; err != nil {
		t.Error(err)
	}
}

// through has the device call through a link from its next start on.
func (d *device) through(l *netlab.Link, narrow bool) {
	d.config.Narrow = narrow
	d.config.DialContext = l.DialContext(*link.Dialer())
}

// within waits until f holds.
func within(ctx context.Context, limit time.Duration, f func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %v", limit)
		case <-tick.C:
		}
	}
	return nil
}

// rename changes the name of a machine, and returns when that is in the outbox.
func (d *device) rename(ctx context.Context, number int) error {
	before := d.agent.Stats().Next
	d.host.AlterVM(fmt.Sprintf("vm-%d", number%d.vms+1), func(vm *wire.VM) { vm.Name = changeName(number) })
	return within(ctx, 30*time.Second, func() bool { return d.agent.Stats().Next > before })
}

func changeName(number int) string { return fmt.Sprintf("changed-%d", number) }

// settled says whether the manager has receipted everything.
func (d *device) settled() bool {
	s := d.agent.Stats()
	return s.Pending == 0
}

// logged compares the log's changes of the device with what happened on the
// host: each once, in order.
func (d *device) logged(ctx context.Context, m *servertest.Manager, changes int) error {
	id := uuid.MustParse(d.agent.Device())
	asc, limit := client.ListEventsParamsOrder("asc"), int64(1000)
	r, err := m.API.ListEventsWithResponse(ctx, &client.ListEventsParams{
		Device: &id, Type: &[]string{"VMChanged", "VMObserved"}, Order: &asc, Limit: &limit,
	})
	if err != nil {
		return err
	}
	if r.JSON200 == nil {
		return fmt.Errorf("list events: %s", r.Body)
	}
	var got, want []string
	seen := 0
	for _, e := range r.JSON200.Items {
		if e.Type == "VMObserved" {
			seen++
			continue
		}
		if name, ok := e.Data["patch"].(map[string]any)["name"].(string); ok {
			got = append(got, name)
		}
	}
	for i := range changes {
		want = append(want, changeName(i))
	}
	if !slices.Equal(got, want) {
		return fmt.Errorf("the log has the changes %v, want %d in order", got, changes)
	}
	if seen != d.vms {
		return fmt.Errorf("the log has %d machines, want %d", seen, d.vms)
	}
	return nil
}

// task has the device power a machine on and waits for the outcome.
func (d *device) task(ctx context.Context, m *servertest.Manager, limit time.Duration) error {
	vm := "vm-2" // is off
	r, err := m.API.SetVmPowerWithResponse(ctx, d.agent.Device(), vm, nil, client.SetVmPowerJSONRequestBody{Action: client.SetVMPowerActionOn})
	if err != nil {
		return err
	}
	if r.JSON202 == nil {
		return fmt.Errorf("request a task: %s", r.Body)
	}
	status := client.TaskStatusRequested
	if err := within(ctx, limit, func() bool {
		t, err := m.API.GetTaskWithResponse(ctx, r.JSON202.Id.String(), nil)
		if err != nil || t.JSON200 == nil {
			return false
		}
		status = t.JSON200.Status
		return status == client.TaskStatusSucceeded || status == client.TaskStatusFailed || status == client.TaskStatusRejected
	}); err != nil {
		return fmt.Errorf("the task is %s: %w", status, err)
	}
	if status != client.TaskStatusSucceeded {
		return fmt.Errorf("the task %s", status)
	}
	return nil
}
