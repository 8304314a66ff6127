package server_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"pallas/agent"
	"pallas/agent/hypervisor"
	"pallas/agent/hypervisor/esxi"
	"pallas/agent/hypervisor/esxi/vcsim"
	"pallas/agent/hypervisor/fake"
	"pallas/agent/identity"
	"pallas/events"
	"pallas/internal/client"
	"pallas/internal/servertest"
	"pallas/mqttgw/wire"
)

// machinery is a real agent with its data folder, which can be stopped, copied
// and lost.
type machinery struct {
	*agent.Agent
	dir    string
	cancel context.CancelFunc
	done   chan error
}

// install runs an agent on a data folder. One that ends by itself fails the
// test, unless ended took the error.
func install(t *testing.T, dir, join string, driver hypervisor.Driver) *machinery {
	t.Helper()
	a, err := agent.New(agent.Config{
		Dir: dir, Join: join, Driver: driver, Version: "test", Log: slog.New(slog.DiscardHandler),
		BackoffBase: 50 * time.Millisecond, BackoffCap: 300 * time.Millisecond, NoSync: true, Debounce: 10 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	x := &machinery{Agent: a, dir: dir, cancel: cancel, done: make(chan error, 1)}
	go func() { x.done <- a.Run(ctx) }()
	t.Cleanup(func() { x.stop(t) })
	return x
}

func (x *machinery) stop(t *testing.T) {
	t.Helper()
	x.cancel()
	if x.done != nil {
		if err := <-x.done; err != nil {
			t.Errorf("the agent ended: %v", err)
		}
		x.done = nil
	}
}

// ended waits until the agent ends by itself.
func (x *machinery) ended(t *testing.T) error {
	t.Helper()
	select {
	case err := <-x.done:
		x.done = nil
		return err
	case <-time.After(30 * time.Second):
		t.Fatal("the agent goes on")
		return nil
	}
}

func onESXi(t *testing.T, h *vcsim.Host) hypervisor.Driver {
	t.Helper()
	d, err := esxi.New(esxi.Config{
		URL: h.URL(), Username: h.Username(), Password: esxi.Secret(h.Password()), Thumbprint: h.Thumbprint(),
		LoginPause: -1, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// becomes waits until the device is as wanted, and returns it.
func becomes(t *testing.T, m *servertest.Manager, id, what string, ok func(client.Device) bool) (d client.Device) {
	t.Helper()
	servertest.Eventually(t, time.Minute, func() error {
		r, err := m.API.GetDeviceWithResponse(t.Context(), id, nil)
		if err != nil || r.JSON200 == nil {
			return fmt.Errorf("read device %s: %w", id, cmp.Or(err, servertest.ErrNotYet))
		}
		if d = *r.JSON200; !ok(d) {
			return fmt.Errorf("device is %s and %s, want %s", d.Trust, d.Connection, what)
		}
		return nil
	})
	return d
}

func isConnected(d client.Device) bool {
	return d.Trust == client.DeviceTrustApproved && d.Connection == "connected" && d.Host != nil
}

func isClone(d client.Device) bool {
	return d.Trust == client.DeviceTrustQuarantined && d.TrustCause != nil && *d.TrustCause == client.DeviceTrustCauseClone
}

// joinFor is a join string for one device.
func joinFor(m *servertest.Manager, id string) string {
	return m.JoinWith(client.CreateJoinTokenJSONRequestBody{Device: &id})
}

// TestStolenDevice: a device in quarantine is cut off at once, stays out however
// often it knocks, and comes back as it was when it is released.
func TestStolenDevice(t *testing.T) {
	m := servertest.Start(t)
	h := fake.Sample("van-7", 2)
	a := install(t, t.TempDir(), m.Join(1), h)
	servertest.Eventually(t, 30*time.Second, func() error { return connected(m, 1) })
	id := a.Device()
	if r, err := m.API.UpdateDeviceWithResponse(t.Context(), id, nil, client.UpdateDeviceJSONRequestBody{Name: new("van seven")}); err != nil || r.JSON200 == nil {
		t.Fatalf("rename: %v %v", err, r)
	}

	began := time.Now()
	r, err := m.API.QuarantineDeviceWithResponse(t.Context(), id, nil, client.QuarantineDeviceJSONRequestBody{Reason: new("stolen with the van")})
	if err != nil || r.JSON200 == nil || r.JSON200.Trust != client.DeviceIdentityTrustQuarantined {
		t.Fatalf("quarantine: %v %s", err, r.Body)
	}
	answered := time.Since(began)
	servertest.Eventually(t, 30*time.Second, func() error {
		if a.Stats().Connected {
			return errors.New("still connected")
		}
		return nil
	})
	cut := time.Since(began)
	t.Logf("the request was answered after %v, the connection was cut after %v; promised is 1 s", answered.Round(time.Millisecond), cut.Round(time.Millisecond))

	const refused = `pallas_device_refused_total{reason="quarantined"}`
	sessions := a.Stats().Sessions
	// What happens meanwhile is told later.
	h.PutVM(wire.VM{ID: "till", Name: "till", Power: wire.PowerOff, Tools: wire.ToolsNotRunning})
	servertest.Eventually(t, time.Minute, func() error {
		if n := m.Metrics()[refused]; n < 5 {
			return fmt.Errorf("%v attempts were refused", n)
		}
		return nil
	})
	if s := a.Stats(); s.Connected || s.Sessions != sessions {
		t.Errorf("it had a session while in quarantine: %+v", s)
	}
	d := becomes(t, m, id, "lost", func(d client.Device) bool { return d.Connection == "lost" })
	if text(d.TrustReason) != "stolen with the van" || text(d.TrustBy) == "" || *d.TrustCause != client.DeviceTrustCauseOperator || *d.TrustBefore != client.DeviceTrustBeforeApproved {
		t.Errorf("shown as %+v", d)
	}

	if r, err := m.API.ReleaseDeviceWithResponse(t.Context(), id, nil, client.ReleaseDeviceJSONRequestBody{}); err != nil || r.JSON200 == nil {
		t.Fatalf("release: %v %v", err, r)
	}
	d = becomes(t, m, id, "back", func(d client.Device) bool { return isConnected(d) && d.Vms.Total == 3 })
	if d.Name != "van seven" || d.TrustCause != nil {
		t.Errorf("it came back as %+v", d)
	}
}

// TestTasksInQuarantine: open tasks stay, and are done after the release.
// Retiring ends them.
func TestTasksInQuarantine(t *testing.T) {
	m := servertest.Start(t)
	h := fake.Sample("shop", 2)
	h.PutVM(wire.VM{ID: "till", Name: "till", Power: wire.PowerOff, Tools: wire.ToolsNotRunning})
	a := install(t, t.TempDir(), m.Join(1), h)
	servertest.Eventually(t, 30*time.Second, func() error { return connected(m, 1) })
	id := a.Device()
	vm := machine(t, m, "till")
	a.stop(t)
	task := request(t, m, vm, client.SetVMPowerActionOn)
	if r, err := m.API.QuarantineDeviceWithResponse(t.Context(), id, nil, client.QuarantineDeviceJSONRequestBody{}); err != nil || r.JSON200 == nil {
		t.Fatalf("quarantine: %v %v", err, r)
	}
	if r, err := m.API.SetVmPowerWithResponse(t.Context(), id, vm.Id, nil, client.SetVMPower{Action: client.SetVMPowerActionOn}); err != nil || r.StatusCode() != http.StatusConflict {
		t.Errorf("a task for a device in quarantine: %v %s", err, r.Body)
	}
	again := install(t, a.dir, "", h)
	servertest.Eventually(t, time.Minute, func() error {
		if m.Metrics()[`pallas_device_refused_total{reason="quarantined"}`] < 2 {
			return servertest.ErrNotYet
		}
		return nil
	})
	if got := taskIs(t, m, task.Id.String(), client.TaskStatusRequested); got.EndedAt != nil {
		t.Errorf("the task ended: %+v", got)
	}
	if r, err := m.API.ReleaseDeviceWithResponse(t.Context(), id, nil, client.ReleaseDeviceJSONRequestBody{}); err != nil || r.JSON200 == nil {
		t.Fatalf("release: %v %v", err, r)
	}
	taskIs(t, m, task.Id.String(), client.TaskStatusSucceeded)
	again.stop(t)

	becomes(t, m, id, "lost", func(d client.Device) bool { return d.Connection == "lost" })
	off := request(t, m, machine(t, m, vm.Name), client.SetVMPowerActionOff)
	if r, err := m.API.RetireDeviceWithResponse(t.Context(), id, nil, client.RetireDeviceJSONRequestBody{}); err != nil || r.JSON200 == nil {
		t.Fatalf("retire: %v %v", err, r)
	}
	taskIs(t, m, off.Id.String(), client.TaskStatusCancelled)
}

// TestRebuiltAgent deletes an agent's machine and deploys it again: it finds its
// id on the host's datastore and is the same device, once somebody who may says
// so, by a join token for it or by accepting its key.
func TestRebuiltAgent(t *testing.T) {
	t.Run("with a token for the device", func(t *testing.T) {
		m := servertest.Start(t)
		h := startHost(t, vcsim.Config{})
		a := install(t, filepath.Join(t.TempDir(), "agent"), m.Join(1), onESXi(t, h))
		was := one(t, m)
		kept(t, onESXi(t, h), a.Device())
		a.stop(t)
		remove(t, a.dir)

		b := install(t, a.dir, joinFor(m, a.Device()), onESXi(t, h))
		servertest.Eventually(t, time.Minute, func() error {
			if !b.Stats().Connected {
				return servertest.ErrNotYet
			}
			return nil
		})
		now := becomes(t, m, a.Device(), "connected", isConnected)
		if b.Device() != a.Device() || now.Name != was.Name || now.RegisteredAt == nil || !now.RegisteredAt.Equal(*was.RegisteredAt) || now.Certificate.Serial == was.Certificate.Serial {
			t.Errorf("device %+v became %+v", was, now)
		}
		if err := connected(m, 1); err != nil {
			t.Error(err)
		}
	})
	t.Run("with any token", func(t *testing.T) {
		m := servertest.Start(t)
		h := startHost(t, vcsim.Config{})
		a := install(t, filepath.Join(t.TempDir(), "agent"), m.Join(1), onESXi(t, h))
		was := one(t, m)
		kept(t, onESXi(t, h), a.Device())
		a.stop(t)
		remove(t, a.dir)

		b := install(t, a.dir, m.Join(1), onESXi(t, h))
		d := becomes(t, m, a.Device(), "quarantined as a clone", isClone)
		if d.KeyClaim == nil || d.KeyClaim.Name != h.Name() || text(d.KeyClaim.Address) != "127.0.0.1" {
			t.Fatalf("claim %+v", d.KeyClaim)
		}
		servertest.Eventually(t, time.Minute, func() error { // it waits, and asks again
			if m.Metrics()[`pallas_enrolments_total{outcome="clone"}`] < 2 {
				return servertest.ErrNotYet
			}
			return nil
		})
		r, err := m.API.RekeyDeviceWithResponse(t.Context(), a.Device(), nil, client.RekeyDeviceJSONRequestBody{KeyHash: &d.KeyClaim.KeyHash})
		if err != nil || r.JSON200 == nil || r.JSON200.Trust != client.DeviceIdentityTrustApproved {
			t.Fatalf("rekey: %v %s", err, r.Body)
		}
		now := becomes(t, m, a.Device(), "connected", isConnected)
		if b.Device() != a.Device() || now.Name != was.Name {
			t.Errorf("device %+v became %+v", was, now)
		}
	})
	t.Run("the old one is still there", func(t *testing.T) {
		m := servertest.Start(t)
		h := fake.Sample("shop", 1)
		old := install(t, filepath.Join(t.TempDir(), "agent"), m.Join(1), h)
		servertest.Eventually(t, 30*time.Second, func() error { return connected(m, 1) })
		servertest.Eventually(t, 30*time.Second, func() error {
			if h.StoredID() == "" {
				return servertest.ErrNotYet
			}
			return nil
		})
		install(t, filepath.Join(t.TempDir(), "rebuilt"), joinFor(m, old.Device()), h)
		// The old key shows up, once: both of them wait for a person then.
		becomes(t, m, old.Device(), "quarantined as a clone", isClone)
		old.stop(t)
		if r, err := m.API.ReleaseDeviceWithResponse(t.Context(), old.Device(), nil, client.ReleaseDeviceJSONRequestBody{}); err != nil || r.JSON200 == nil {
			t.Fatalf("release: %v %v", err, r)
		}
		becomes(t, m, old.Device(), "connected", isConnected)
	})
}

func kept(t *testing.T, d hypervisor.Driver, id string) {
	t.Helper()
	servertest.Eventually(t, 30*time.Second, func() error {
		got, err := d.LoadID(t.Context())
		if err != nil || got != id {
			return fmt.Errorf("the host keeps %q: %w", got, cmp.Or(err, servertest.ErrNotYet))
		}
		return nil
	})
}

func remove(t *testing.T, dir string) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
}

// TestCopiedAgent starts a copy of an agent's machine beside it: the same id,
// the same key. They take the session from each other, and are found out.
func TestCopiedAgent(t *testing.T) {
	m := servertest.Start(t)
	h := fake.Sample("shop", 1)
	a := install(t, filepath.Join(t.TempDir(), "agent"), m.Join(1), h)
	servertest.Eventually(t, 30*time.Second, func() error { return connected(m, 1) })
	a.stop(t)
	copied := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(copied, os.DirFS(a.dir)); err != nil {
		t.Fatal(err)
	}
	original := install(t, a.dir, "", h)
	becomes(t, m, a.Device(), "connected", isConnected)
	if d := becomes(t, m, a.Device(), "read", func(client.Device) bool { return true }); d.Trust != client.DeviceTrustApproved {
		t.Errorf("a restart made it %s", d.Trust)
	}
	copy := install(t, copied, "", fake.Sample("copy", 1))
	d := becomes(t, m, a.Device(), "quarantined as a clone", isClone)
	if d.KeyClaim != nil || text(d.TrustReason) == "" {
		t.Errorf("shown as %+v", d)
	}
	copy.stop(t)
	if r, err := m.API.ReleaseDeviceWithResponse(t.Context(), a.Device(), nil, client.ReleaseDeviceJSONRequestBody{}); err != nil || r.JSON200 == nil {
		t.Fatalf("release: %v %v", err, r)
	}
	becomes(t, m, a.Device(), "connected", isConnected)
	original.stop(t)
}

// TestRetiredAgent: an agent that is connected is told that it is retired, and
// erases what it is. The join string that it had makes no device of it again; a
// new one makes a new device.
func TestRetiredAgent(t *testing.T) {
	m := servertest.Start(t)
	h := startHost(t, vcsim.Config{})
	join := m.Join(5)
	a := install(t, filepath.Join(t.TempDir(), "agent"), join, onESXi(t, h))
	was := one(t, m)
	kept(t, onESXi(t, h), a.Device())
	if r, err := m.API.RetireDeviceWithResponse(t.Context(), a.Device(), nil, client.RetireDeviceJSONRequestBody{Reason: new("sold")}); err != nil || r.JSON200 == nil {
		t.Fatalf("retire: %v %v", err, r)
	}
	retired := new(identity.RetiredError)
	if err := a.ended(t); !errors.As(err, &retired) || retired.Device != a.Device() {
		t.Fatalf("the agent ended: %v", err)
	}
	var left []string
	if err := fs.WalkDir(os.DirFS(a.dir), ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			left = append(left, path)
		}
		return err
	}); err != nil || !slices.Equal(left, []string{"retired.json"}) {
		t.Errorf("left in the folder: %v, %v", left, err)
	}
	kept(t, onESXi(t, h), "")

	again := install(t, a.dir, join, onESXi(t, h))
	if err := again.ended(t); !errors.As(err, &retired) {
		t.Errorf("started again with its join string: %v", err)
	}
	next := install(t, a.dir, m.Join(1), onESXi(t, h))
	servertest.Eventually(t, time.Minute, func() error {
		if !next.Stats().Connected {
			return servertest.ErrNotYet
		}
		return nil
	})
	if next.Device() == a.Device() {
		t.Error("the new device has the id of the retired one")
	}
	d := becomes(t, m, next.Device(), "connected", isConnected)
	kept(t, onESXi(t, h), next.Device())
	if d.Name != was.Name {
		t.Errorf("named %q", d.Name)
	}
	old := becomes(t, m, a.Device(), "retired", func(d client.Device) bool { return d.Trust == client.DeviceTrustRetired })
	if text(old.RetiredReason) != "sold" {
		t.Errorf("history: %+v", old)
	}
	next.stop(t)

	// What one decides about one device concerns no other.
	m.Stop()
	store, done := m.OpenLog()
	defer done()
	for _, r := range servertest.Records(t, store) {
		for _, e := range r.Entries {
			if q, ok := e.Event.(events.DeviceQuarantined); ok {
				t.Errorf("%s was quarantined: %+v", r.Subject, q)
			}
		}
	}
}
