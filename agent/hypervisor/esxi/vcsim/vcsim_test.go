package vcsim_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/view"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"pallas/agent/hypervisor/esxi/vcsim"
)

func start(t *testing.T, cfg vcsim.Config) *vcsim.Host {
	t.Helper()
	h, err := vcsim.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

func client(t *testing.T, h *vcsim.Host) *govmomi.Client {
	t.Helper()
	c, err := dial(t.Context(), h, h.Username(), h.Password())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func dial(ctx context.Context, h *vcsim.Host, user, password string) (*govmomi.Client, error) {
	u, err := url.Parse(h.URL())
	if err != nil {
		return nil, err
	}
	u.User = url.UserPassword(user, password)
	return govmomi.NewClient(ctx, u, true)
}

func vms(t *testing.T, c *govmomi.Client) map[string]mo.VirtualMachine {
	t.Helper()
	v, err := view.NewManager(c.Client).CreateContainerView(t.Context(), c.ServiceContent.RootFolder, []string{"VirtualMachine"}, true)
	if err != nil {
		t.Fatal(err)
	}
	var all []mo.VirtualMachine
	if err := v.Retrieve(t.Context(), []string{"VirtualMachine"}, []string{"name", "config", "guest", "runtime"}, &all); err != nil {
		t.Fatal(err)
	}
	out := map[string]mo.VirtualMachine{}
	for _, vm := range all {
		out[vm.Name] = vm
	}
	return out
}

func TestHostsDifferAndAreStable(t *testing.T) {
	first := start(t, vcsim.Config{Name: "esx-1.test", Count: 3, Seed: 1})
	other := start(t, vcsim.Config{Name: "esx-2.test", Count: 3, Seed: 2})
	ids, err := first.VMs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(ids) != 3 {
		t.Fatalf("got %v, want 3 virtual machines", ids)
	}
	others, err := other.VMs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for id := range others {
		if ids[id] != "" {
			t.Errorf("both hosts have %s", id)
		}
	}
	if first.Thumbprint() == other.Thumbprint() {
		t.Error("both hosts have the same certificate")
	}
	a, b := client(t, first).ServiceContent.About, client(t, other).ServiceContent.About
	if a.Version == "6.5.0" || a.Build == b.Build {
		t.Errorf("builds are %s and %s", a.FullName, b.FullName)
	}

	addr := first.Addr()
	first.Close()
	again := start(t, vcsim.Config{Name: "esx-1.test", Count: 3, Seed: 1, Listen: addr})
	now, err := again.VMs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(ids, now); d != "" {
		t.Errorf("instance UUIDs changed (-before +after):\n%s", d)
	}
	if first.Thumbprint() != again.Thumbprint() {
		t.Error("the certificate changed")
	}
}

func TestPowerStartsTools(t *testing.T) {
	h := start(t, vcsim.Config{Name: "esx.test", VMs: []vcsim.VMSpec{{Name: "a", IPs: []string{"10.1.2.3"}}, {Name: "b", NoTools: true, On: true}}})
	c := client(t, h)
	if vm := vms(t, c)["a"]; vm.Runtime.PowerState != "poweredOff" || vm.Guest.IpAddress != "" {
		t.Errorf("before: %v %q", vm.Runtime.PowerState, vm.Guest.IpAddress)
	}
	if err := h.Power(t.Context(), "a", true); err != nil {
		t.Fatal(err)
	}
	vm := vms(t, c)["a"]
	if vm.Runtime.PowerState != "poweredOn" || vm.Guest.IpAddress != "10.1.2.3" || vm.Runtime.BootTime == nil ||
		vm.Guest.ToolsRunningStatus != "guestToolsRunning" || len(vm.Guest.Net) != 1 {
		t.Errorf("on: %v, guest %+v", vm.Runtime, vm.Guest)
	}
	if err := h.Power(t.Context(), "a", false); err != nil {
		t.Fatal(err)
	}
	if vm := vms(t, c)["a"]; vm.Guest.IpAddress != "" || vm.Guest.ToolsRunningStatus != "guestToolsNotRunning" || vm.Runtime.BootTime != nil {
		t.Errorf("off: %v, guest %+v", vm.Runtime, vm.Guest)
	}
	// The guest of b has no tools.
	err := object.NewVirtualMachine(c.Client, vms(t, c)["b"].Self).ShutdownGuest(t.Context())
	if _, ok := fault.As(err, new(*types.ToolsUnavailable)); !ok {
		t.Errorf("shutdown without tools: %v", err)
	}
}

func TestChangesBehindTheBack(t *testing.T) {
	h := start(t, vcsim.Config{Name: "esx.test", Count: 2})
	before, err := h.VMs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := h.AddVM(t.Context(), vcsim.VMSpec{Name: "new", On: true}); err != nil {
		t.Fatal(err)
	}
	if err := h.RenameVM(t.Context(), "new", "newer"); err != nil {
		t.Fatal(err)
	}
	if state, err := h.PowerState(t.Context(), "newer"); err != nil || state != "poweredOn" {
		t.Errorf("state %q, %v", state, err)
	}
	if err := h.RemoveVM(t.Context(), "newer"); err != nil {
		t.Fatal(err)
	}
	after, err := h.VMs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(before, after); d != "" {
		t.Error(d)
	}
}

func TestRefusals(t *testing.T) {
	h := start(t, vcsim.Config{Name: "esx.test", ReadOnly: true, Count: 1})
	c := client(t, h)
	for _, vm := range vms(t, c) {
		o := object.NewVirtualMachine(c.Client, vm.Self)
		_, err := o.PowerOff(t.Context())
		if _, ok := fault.As(err, new(*types.RestrictedVersion)); !ok || !strings.Contains(err.Error(), "Current license") {
			t.Errorf("power off on a free licence: %v", err)
		}
	}

	h = start(t, vcsim.Config{Name: "esx.test", VMs: []vcsim.VMSpec{{Name: "a"}}})
	c = client(t, h)
	o := object.NewVirtualMachine(c.Client, vms(t, c)["a"].Self)
	_, err := o.Clone(t.Context(), object.NewFolder(c.Client, types.ManagedObjectReference{Type: "Folder", Value: "ha-folder-vm"}), "x", types.VirtualMachineCloneSpec{})
	if _, ok := fault.As(err, new(*types.NotSupported)); !ok {
		t.Errorf("clone: %v", err)
	}
	h.TaskFault("PowerOnVM_Task", new(types.RestrictedVersion), 1)
	task, err := o.PowerOn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = task.Wait(t.Context())
	if _, ok := fault.As(err, new(*types.RestrictedVersion)); !ok || !strings.Contains(err.Error(), "Current license") {
		t.Errorf("task error: %v", err)
	}
	task, err = o.PowerOff(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err = task.Wait(t.Context()); err == nil || !strings.Contains(err.Error(), "current state (Powered off)") {
		t.Errorf("power off twice: %v", err)
	}
}

func TestSessions(t *testing.T) {
	h := start(t, vcsim.Config{Name: "esx.test"})
	c := client(t, h)
	if h.Sessions() != 1 {
		t.Errorf("%d sessions", h.Sessions())
	}
	h.DropSessions()
	_, err := methods.GetCurrentTime(t.Context(), c)
	if _, ok := fault.As(err, new(*types.NotAuthenticated)); !ok {
		t.Errorf("after the drop: %v", err)
	}
	_, err = property.DefaultCollector(c.Client).RetrieveProperties(t.Context(), types.RetrieveProperties{SpecSet: []types.PropertyFilterSpec{{
		PropSet:   []types.PropertySpec{{Type: "HostSystem", PathSet: []string{"name"}}},
		ObjectSet: []types.ObjectSpec{{Obj: types.ManagedObjectReference{Type: "HostSystem", Value: "ha-host"}}},
	}}})
	if _, ok := fault.As(err, new(*types.NotAuthenticated)); !ok {
		t.Errorf("reading after the drop: %v", err)
	}
	h.ChangePassword("another")
	if _, err := dial(t.Context(), h, h.Username(), vcsim.DefaultPassword); err == nil {
		t.Error("the old password is accepted")
	}
	if _, err := dial(t.Context(), h, h.Username(), "another"); err != nil {
		t.Error(err)
	}
}

func TestFolderNeedsLogin(t *testing.T) {
	h := start(t, vcsim.Config{Name: "esx.test", Seed: 1})
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(h.CertificatePEM()) {
		t.Fatal("no certificate")
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	defer tr.CloseIdleConnections()
	get := func(user string) int {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "https://"+h.Addr()+"/folder/x?dcPath=ha-datacenter&dsName=datastore1", strings.NewReader("y"))
		if err != nil {
			t.Fatal(err)
		}
		if user != "" {
			r.SetBasicAuth(user, h.Password())
		}
		res, err := (&http.Client{Transport: tr}).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		return res.StatusCode
	}
	if code := get(""); code != http.StatusUnauthorized {
		t.Errorf("without login: %d", code)
	}
	if code := get(h.Username()); code != http.StatusOK {
		t.Errorf("with login: %d", code)
	}
}

func TestUnreachableAndBack(t *testing.T) {
	h := start(t, vcsim.Config{Name: "esx.test"})
	c := client(t, h)
	h.SetUnreachable(true)
	if _, err := methods.GetCurrentTime(t.Context(), c); err == nil {
		t.Error("it answers")
	}
	h.SetUnreachable(false)
	if _, err := methods.GetCurrentTime(t.Context(), c); err != nil {
		t.Error(err)
	}
}

// TestWaitEnds shows that a call that waits for updates sees a change at once,
// and holds up neither Close nor the end of its client.
func TestWaitEnds(t *testing.T) {
	before := runtime.NumGoroutine()
	h := start(t, vcsim.Config{Name: "esx.test", VMs: []vcsim.VMSpec{{Name: "a"}}})
	c := client(t, h)
	ref := vms(t, c)["a"].Self
	wait := func(ctx context.Context, fn func([]types.PropertyChange) bool) error {
		pc, err := property.DefaultCollector(c.Client).Create(ctx)
		if err != nil {
			return err
		}
		return property.Wait(ctx, pc, ref, []string{"runtime.powerState"}, fn)
	}
	seen := make(chan types.AnyType, 8)
	errs := make(chan error, 2)
	go func() {
		errs <- wait(t.Context(), func(ch []types.PropertyChange) bool {
			for _, c := range ch {
				seen <- c.Val
			}
			return false
		})
	}()
	<-seen
	if err := h.Power(t.Context(), "a", true); err != nil {
		t.Fatal(err)
	}
	select {
	case v := <-seen:
		if v != types.VirtualMachinePowerStatePoweredOn {
			t.Errorf("got %v", v)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the change was not reported")
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { errs <- wait(ctx, func([]types.PropertyChange) bool { cancel(); return false }) }()
	<-ctx.Done()
	<-errs //nolint:errcheck // the wait was given up
	h.Close()
	<-errs //nolint:errcheck // the host is gone
	c.DefaultTransport().CloseIdleConnections()
	deadline := time.NewTimer(10 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for runtime.NumGoroutine() > before {
		select {
		case <-tick.C:
		case <-deadline.C:
			buf := make([]byte, 1<<16)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
	}
}

// TestConcurrentUse is for the race detector.
func TestConcurrentUse(t *testing.T) {
	var hosts []*vcsim.Host
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() {
			h, err := vcsim.Start(vcsim.Config{Name: fmt.Sprintf("esx-%d.test", i), Count: 4})
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			hosts = append(hosts, h)
			mu.Unlock()
		})
	}
	wg.Wait()
	for _, h := range hosts {
		defer h.Close()
		for range 3 {
			c := client(t, h)
			wg.Go(func() {
				v, err := view.NewManager(c.Client).CreateContainerView(t.Context(), c.ServiceContent.RootFolder, []string{"VirtualMachine"}, true)
				if err != nil {
					t.Error(err)
					return
				}
				for range 8 {
					var all []mo.VirtualMachine
					if err := v.Retrieve(t.Context(), []string{"VirtualMachine"}, []string{
						"name", "runtime", "guest", "summary", "config.hardware", "config.instanceUuid",
					}, &all); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Go(func() {
			names, err := h.VMs(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			for i := range 2 {
				for _, n := range names {
					s, err := h.PowerState(t.Context(), n)
					if err == nil {
						err = h.Power(t.Context(), n, s != "poweredOn")
					}
					if err == nil {
						err = h.ResizeVM(t.Context(), n, int32(i+1), 1024)
					}
					if err != nil {
						t.Error(err)
					}
				}
				if err := h.AddVM(t.Context(), vcsim.VMSpec{Name: "x", On: true}); err != nil {
					t.Error(err)
				}
				if err := h.RemoveVM(t.Context(), "x"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}
