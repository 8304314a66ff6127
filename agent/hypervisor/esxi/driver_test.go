package esxi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vmware/govmomi/vim25/types"

	"pallas/agent/hypervisor"
	"pallas/agent/hypervisor/esxi"
	"pallas/agent/hypervisor/esxi/vcsim"
	"pallas/agent/hypervisor/hypervisortest"
	"pallas/mqttgw/wire"
)

func start(t *testing.T, cfg vcsim.Config) *vcsim.Host {
	t.Helper()
	if cfg.Name == "" {
		cfg.Name = "esx-01.test"
	}
	h, err := vcsim.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

func config(t *testing.T, h *vcsim.Host) esxi.Config {
	return esxi.Config{
		URL: h.URL(), Username: h.Username(), Password: esxi.Secret(h.Password()), Thumbprint: h.Thumbprint(),
		LoginPause: -1, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
}

func open(t *testing.T, cfg esxi.Config) *esxi.Driver {
	t.Helper()
	d, err := esxi.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantCode(t *testing.T, err error, code, message string) {
	t.Helper()
	var e *hypervisor.Error
	if !errors.As(err, &e) || e.Code != code || !strings.Contains(e.Message, message) {
		t.Errorf("got %#v (%v), want code %q and a message with %q", e, err, code, message)
	}
}

func find(t *testing.T, d *esxi.Driver, name string) wire.VM {
	t.Helper()
	snap, err := d.Observe(t.Context())
	must(t, err)
	i := slices.IndexFunc(snap.VMs, func(vm wire.VM) bool { return vm.Name == name })
	if i < 0 {
		t.Fatalf("no virtual machine %s in %+v", name, snap.VMs)
	}
	return snap.VMs[i]
}

func TestDriver(t *testing.T) {
	hypervisortest.TestDriver(t, func(t *testing.T) hypervisortest.Fixture {
		h := start(t, vcsim.Config{VMs: []vcsim.VMSpec{{Name: "runs", On: true}, {Name: "rests"}, {Name: "third", NoTools: true, On: true}}})
		d := open(t, config(t, h))
		ctx := t.Context()
		names := func(id string) string {
			all, err := h.VMs(ctx)
			must(t, err)
			return all[id]
		}
		id := func(name string) string {
			all, err := h.VMs(ctx)
			must(t, err)
			for id, n := range all {
				if n == name {
					return id
				}
			}
			t.Fatalf("no virtual machine %s", name)
			return ""
		}
		password := h.Password()
		return hypervisortest.Fixture{
			Driver: d, On: id("runs"), Off: id("rests"),
			SetPower: func(id, power string) { must(t, h.Power(ctx, names(id), power == wire.PowerOn)) },
			SetTools: func(id, state string) { must(t, h.SetTools(ctx, names(id), state == wire.ToolsRunning)) },
			Rename:   func(id, name string) { must(t, h.RenameVM(ctx, names(id), name)) },
			AddVM: func(name string) string {
				must(t, h.AddVM(ctx, vcsim.VMSpec{Name: name}))
				return id(name)
			},
			RemoveVM:       func(id string) { must(t, h.RemoveVM(ctx, names(id))) },
			SetUnreachable: h.SetUnreachable,
			SetDenied: func(denied bool) {
				if denied {
					h.ChangePassword("somebody changed it")
					h.DropSessions()
				} else {
					h.ChangePassword(password)
				}
			},
			SetReadOnly:  h.SetReadOnly,
			DropSessions: h.DropSessions,
		}
	})
}

func TestObserveMapsEverything(t *testing.T) {
	h := start(t, vcsim.Config{Name: "esx-fra-01.example.net", Seed: 5, VMs: []vcsim.VMSpec{
		{
			Name: "pos", CPUs: 4, MemoryMiB: 8192, GuestID: "windows2019srv_64Guest", DiskGiB: []int64{80, 200},
			Networks: []string{"Store", "Cameras"}, IPs: []string{"10.0.0.7", "fe80::1", "192.168.3.4", "10.0.0.7"}, On: true,
		},
		{Name: "off"},
		{Name: "bare", NoTools: true, On: true},
	}})
	d := open(t, config(t, h))
	must(t, h.SetFree(t.Context(), "backup", 1234567890123))
	snap, err := d.Observe(t.Context())
	must(t, err)

	host := snap.Host
	if now := time.Now().Unix(); host.BootTime <= 0 || host.BootTime > now {
		t.Errorf("boot time %d", host.BootTime)
	}
	host.BootTime = 0
	if host.Serial == "" || host.UUID == "" {
		t.Error("serial or UUID is missing")
	}
	host.Serial, host.UUID = "", ""
	nets := map[string]string{}
	for i, n := range host.Networks {
		nets[n.Name] = n.ID
		host.Networks[i].ID = ""
	}
	slices.SortFunc(host.Networks, func(a, b wire.Network) int { return strings.Compare(a.Name, b.Name) })
	stores := map[string]string{}
	for i, s := range host.Datastores {
		stores[s.Name] = s.ID
		host.Datastores[i].ID = ""
	}
	slices.SortFunc(host.Datastores, func(a, b wire.Datastore) int { return strings.Compare(a.Name, b.Name) })
	step := int64(7450 * 1024 / 100)
	want := wire.Host{
		Name: "esx-fra-01.example.net", Vendor: "Dell Inc.", Model: "PowerEdge XR4510c",
		Product: "VMware ESXi", Version: "8.0.3", Build: "24022510",
		CPUModel: "Intel(R) Xeon(R) D-2776NT CPU @ 2.10GHz", CPUSockets: 1, CPUCores: 16, CPUThreads: 32, CPUMHz: 2095,
		MemoryMiB: 128*1024 - 47,
		License:   wire.License{Name: "VMware vSphere 8 Standard", Edition: "esx.standard.cpuPackageCoreLimited", Writable: true},
		Datastores: []wire.Datastore{
			{Name: "backup", Type: "NFS", CapacityMiB: 7450 * 1024, FreeMiB: 1234567890123 / (1 << 20) / step * step, Accessible: true},
			{Name: "datastore1", Type: "VMFS", CapacityMiB: 1788 * 1024, FreeMiB: host.Datastores[1].FreeMiB, Accessible: true},
		},
		Networks: []wire.Network{{Name: "Cameras"}, {Name: "Store"}, {Name: "VM Network"}},
	}
	if diff := cmp.Diff(want, host); diff != "" {
		t.Errorf("host (-want +got):\n%s", diff)
	}
	for _, s := range snap.Host.Datastores {
		if s.FreeMiB%(s.CapacityMiB/100) != 0 {
			t.Errorf("free space %d of %d is not rounded", s.FreeMiB, s.CapacityMiB)
		}
	}

	vm := find(t, d, "pos")
	all, err := h.VMs(t.Context())
	must(t, err)
	if all[vm.ID] != "pos" {
		t.Errorf("id %s, want the instance UUID", vm.ID)
	}
	if vm.BootTime == 0 || len(vm.NICs) != 2 || vm.NICs[0].MAC == "" || vm.NICs[0].MAC == vm.NICs[1].MAC {
		t.Errorf("boot time %d, NICs %+v", vm.BootTime, vm.NICs)
	}
	wantVM := wire.VM{
		ID: vm.ID, Name: "pos", Power: wire.PowerOn, CPUs: 4, MemoryMiB: 8192,
		GuestID: "windows2019srv_64Guest", GuestName: "Microsoft Windows Server 2019 (64-bit)", Hostname: "pos",
		IPs: []string{"10.0.0.7", "192.168.3.4"}, Tools: wire.ToolsRunning, BootTime: vm.BootTime,
		Disks: []wire.Disk{
			{Key: vm.Disks[0].Key, Label: vm.Disks[0].Label, CapacityMiB: 80 << 10, Datastore: stores["datastore1"], File: "[datastore1] pos/pos.vmdk", Thin: true},
			{Key: vm.Disks[1].Key, Label: vm.Disks[1].Label, CapacityMiB: 200 << 10, Datastore: stores["datastore1"], File: "[datastore1] pos/pos_1.vmdk", Thin: true},
		},
		NICs: []wire.NIC{
			{Key: vm.NICs[0].Key, Label: vm.NICs[0].Label, MAC: vm.NICs[0].MAC, Network: nets["Store"], Connected: true},
			{Key: vm.NICs[1].Key, Label: vm.NICs[1].Label, MAC: vm.NICs[1].MAC, Network: nets["Cameras"], Connected: true},
		},
	}
	if diff := cmp.Diff(wantVM, vm); diff != "" {
		t.Errorf("virtual machine (-want +got):\n%s", diff)
	}
	if vm := find(t, d, "off"); vm.BootTime != 0 || vm.Power != wire.PowerOff || vm.Tools != wire.ToolsNotRunning || vm.IPs != nil {
		t.Errorf("off: %+v", vm)
	}
	if vm := find(t, d, "bare"); vm.Tools != wire.ToolsNotInstalled {
		t.Errorf("bare: %+v", vm)
	}
	must(t, h.SetMaintenance(t.Context(), true))
	if snap, err := d.Observe(t.Context()); err != nil || !snap.Host.Maintenance {
		t.Errorf("maintenance mode is not seen, %v", err)
	}
}

// TestCopiedMachine: a copy with the same instance UUID gets another id, the
// older machine keeps its own, and tasks go to the right one.
func TestCopiedMachine(t *testing.T) {
	id := "503e0c4f-0f2b-4d43-9d0f-3a9a4f7f1c11"
	h := start(t, vcsim.Config{VMs: []vcsim.VMSpec{{Name: "first", InstanceUUID: id}, {Name: "copy", InstanceUUID: id}}})
	d := open(t, config(t, h))
	first, second := find(t, d, "first"), find(t, d, "copy")
	if first.ID != id || second.ID == id || second.ID == "" {
		t.Fatalf("ids %q and %q", first.ID, second.ID)
	}
	must(t, d.Run(t.Context(), wire.Task{Kind: wire.TaskVMPowerOn, VM: second.ID}, nil))
	if find(t, d, "first").Power != wire.PowerOff || find(t, d, "copy").Power != wire.PowerOn {
		t.Error("the wrong machine was powered on")
	}
}

func TestFaults(t *testing.T) {
	h := start(t, vcsim.Config{VMs: []vcsim.VMSpec{{Name: "a"}, {Name: "b", On: true, NoTools: true}}})
	d := open(t, config(t, h))
	a, b := find(t, d, "a").ID, find(t, d, "b").ID
	run := func(kind, vm string) error { return d.Run(t.Context(), wire.Task{Kind: kind, VM: vm}, nil) }

	wantCode(t, run(wire.TaskVMPowerOff, a), wire.CodeInvalidState, "cannot be performed in the current state (Powered off)")
	wantCode(t, run(wire.TaskVMShutdown, b), wire.CodeTools, "VMware Tools is not running")

	for _, tt := range []struct {
		fault         types.BaseMethodFault
		code, message string
	}{
		{new(types.RestrictedVersion), wire.CodeReadOnly, "Current license or ESXi version prohibits"},
		{new(types.LicenseExpired), wire.CodeReadOnly, "license has expired"},
		{&types.NoPermission{PrivilegeId: "VirtualMachine.Interact.PowerOn"}, wire.CodeDenied, "needs the privilege VirtualMachine.Interact.PowerOn"},
		{new(types.NotSupported), wire.CodeUnsupported, "not supported"},
		{new(types.InsufficientResourcesFault), wire.CodeHost, "insufficient resources"},
		{&types.ManagedObjectNotFound{Obj: types.ManagedObjectReference{Type: "VirtualMachine", Value: "9"}}, wire.CodeNotFound, "already been deleted"},
		{new(types.TaskInProgress), wire.CodeInvalidState, "already in progress"},
		// What a licence forbids may be wrapped in something general.
		{&types.SystemError{RuntimeFault: types.RuntimeFault{MethodFault: types.MethodFault{
			FaultCause: &types.LocalizedMethodFault{Fault: new(types.RestrictedVersion)},
		}}}, wire.CodeReadOnly, ""},
	} {
		h.Fault("PowerOnVM_Task", tt.fault, 1)
		wantCode(t, run(wire.TaskVMPowerOn, a), tt.code, tt.message)
		h.TaskFault("PowerOnVM_Task", tt.fault, 1)
		wantCode(t, run(wire.TaskVMPowerOn, a), tt.code, tt.message)
	}
	if vm := find(t, d, "a"); vm.Power != wire.PowerOff {
		t.Errorf("a refused machine is %s", vm.Power)
	}
}

// TestRefusedWriteIsRemembered: a licence that looks paid and refuses all the
// same is read-only, until it permits something or is replaced.
func TestRefusedWriteIsRemembered(t *testing.T) {
	h := start(t, vcsim.Config{VMs: []vcsim.VMSpec{{Name: "a"}}})
	d := open(t, config(t, h))
	a := find(t, d, "a").ID
	license := func() wire.License {
		snap, err := d.Observe(t.Context())
		must(t, err)
		return snap.Host.License
	}
	run := func() error { return d.Run(t.Context(), wire.Task{Kind: wire.TaskVMPowerOn, VM: a}, nil) }

	h.TaskFault("PowerOnVM_Task", new(types.RestrictedVersion), 1)
	wantCode(t, run(), wire.CodeReadOnly, "")
	if l := license(); l.Writable || !strings.Contains(l.Reason, "prohibits") {
		t.Errorf("after the refusal: %+v", l)
	}
	must(t, run())
	if l := license(); !l.Writable || l.Reason != "" {
		t.Errorf("after a change: %+v", l)
	}
	h.Fault("PowerOnVM_Task", new(types.RestrictedVersion), 1)
	wantCode(t, run(), wire.CodeReadOnly, "")
	license()
	h.SetReadOnly(true)
	if l := license(); l.Writable || !strings.Contains(l.Reason, "free licence") {
		t.Errorf("free: %+v", l)
	}
	h.SetReadOnly(false)
	if l := license(); !l.Writable {
		t.Errorf("paid again: %+v", l)
	}
}

// TestVMVanishes: between being found and being powered on.
func TestVMVanishes(t *testing.T) {
	h := start(t, vcsim.Config{VMs: []vcsim.VMSpec{{Name: "a"}}})
	d := open(t, config(t, h))
	id := find(t, d, "a").ID
	h.SetDelay("PowerOnVM_Task", 500*time.Millisecond)
	done := make(chan error, 1)
	started := make(chan struct{})
	h.OnCall("PowerOnVM_Task", func() { close(started) })
	go func() { done <- d.Run(t.Context(), wire.Task{Kind: wire.TaskVMPowerOn, VM: id}, nil) }()
	<-started
	must(t, h.RemoveVM(t.Context(), "a"))
	wantCode(t, <-done, wire.CodeNotFound, "already been deleted")
	wantCode(t, d.Run(t.Context(), wire.Task{Kind: wire.TaskVMPowerOn, VM: id}, nil), wire.CodeNotFound, "no virtual machine")
}

func TestHostDoesNotAnswer(t *testing.T) {
	h := start(t, vcsim.Config{VMs: []vcsim.VMSpec{{Name: "a"}}})
	cfg := config(t, h)
	cfg.CallTimeout = 2 * time.Second
	d := open(t, cfg)
	find(t, d, "a")
	h.SetDelay("*", time.Minute)
	_, err := d.Observe(t.Context())
	wantCode(t, err, wire.CodeUnreachable, "does not answer within 2s")
	h.SetDelay("*", 0)
	find(t, d, "a")

	starting := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "", http.StatusServiceUnavailable)
	}))
	defer starting.Close()
	booting := cfg
	booting.URL, booting.Thumbprint, booting.Insecure, booting.CallTimeout = starting.URL, "", true, time.Minute
	_, err = open(t, booting).Observe(t.Context())
	wantCode(t, err, wire.CodeUnreachable, "answered 503 Service Unavailable")

	cfg.URL = "127.0.0.1:1"
	_, err = open(t, cfg).Observe(t.Context())
	wantCode(t, err, wire.CodeUnreachable, "127.0.0.1:1 does not answer")
}

func TestCertificate(t *testing.T) {
	h := start(t, vcsim.Config{})
	other := start(t, vcsim.Config{Name: "another.test"})
	dir := t.TempDir()
	ca := func(h *vcsim.Host) string {
		f := filepath.Join(dir, h.Name())
		must(t, os.WriteFile(f, h.CertificatePEM(), 0o600))
		return f
	}
	for _, tt := range []struct {
		name string
		set  func(*esxi.Config)
		want []string // of the message; none means trusted
	}{
		{"sha256", func(c *esxi.Config) { c.Thumbprint = h.Thumbprint() }, nil},
		{"sha1, lower case, no colons", func(c *esxi.Config) {
			c.Thumbprint = strings.ToLower(strings.ReplaceAll(h.ThumbprintSHA1(), ":", ""))
		}, nil},
		{"ca", func(c *esxi.Config) { c.CAFile = ca(h) }, nil},
		{"insecure", func(c *esxi.Config) { c.Insecure = true }, nil},
		{"other pin", func(c *esxi.Config) { c.Thumbprint = other.Thumbprint() }, []string{h.Thumbprint(), other.Thumbprint()}},
		{"other ca", func(c *esxi.Config) { c.CAFile = ca(other) }, []string{"not trusted", h.Thumbprint()}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := config(t, h)
			cfg.Thumbprint = ""
			tt.set(&cfg)
			d := open(t, cfg)
			_, err := d.Observe(t.Context())
			checks := d.Check(t.Context())
			if tt.want == nil {
				must(t, err)
				if len(checks) != 6 || !checks[1].OK {
					t.Errorf("check: %+v", checks)
				}
				return
			}
			for _, w := range tt.want {
				wantCode(t, err, wire.CodeUnreachable, w)
				if len(checks) != 2 || checks[1].OK || !strings.Contains(checks[1].Detail, w) {
					t.Errorf("check: %+v", checks)
				}
			}
		})
	}
}

func TestConfigErrors(t *testing.T) {
	good := esxi.Config{URL: "esx", Username: "root", Insecure: true, Log: slog.New(slog.DiscardHandler)}
	for field, spoil := range map[string]func(*esxi.Config){
		"url: missing":                        func(c *esxi.Config) { c.URL = "" },
		"url: scheme http":                    func(c *esxi.Config) { c.URL = "http://esx" },
		"url: holds credentials":              func(c *esxi.Config) { c.URL = "https://root:geheim@esx" },
		"url: path":                           func(c *esxi.Config) { c.URL = "https://esx/ui" },
		"url: not a URL":                      func(c *esxi.Config) { c.URL = "https://a b:geheim@/%" },
		"username":                            func(c *esxi.Config) { c.Username = "" },
		"thumbprint, ca_file, insecure":       func(c *esxi.Config) { c.Insecure = false },
		"thumbprint, ca_file, insecure: set ": func(c *esxi.Config) { c.Thumbprint = "AA" },
		"thumbprint: want":                    func(c *esxi.Config) { c.Insecure, c.Thumbprint = false, "AA:BB" },
		"ca_file":                             func(c *esxi.Config) { c.Insecure, c.CAFile = false, "/does/not/exist" },
		"log":                                 func(c *esxi.Config) { c.Log = nil },
	} {
		cfg := good
		spoil(&cfg)
		_, err := esxi.New(cfg)
		if err == nil || !strings.HasPrefix(err.Error(), field) || strings.Contains(err.Error(), "geheim") {
			t.Errorf("got %v, want an error that begins with %q", err, field)
		}
	}
	if _, err := esxi.New(good); err != nil {
		t.Error(err)
	}
}

// TestRefusedLoginIsNotRepeated: ESXi locks an account that tries too often.
func TestRefusedLoginIsNotRepeated(t *testing.T) {
	h := start(t, vcsim.Config{})
	cfg := config(t, h)
	cfg.LoginPause, cfg.Password = time.Hour, "wrong"
	d := open(t, cfg)
	logins := 0
	h.OnCall("Login", func() { logins++ })
	for range 5 {
		_, err := d.Observe(t.Context())
		wantCode(t, err, wire.CodeDenied, "incorrect user name or password. Check username and password of root.")
	}
	if logins != 1 {
		t.Errorf("%d logins", logins)
	}
}

func TestWatchStartsAgain(t *testing.T) {
	h := start(t, vcsim.Config{VMs: []vcsim.VMSpec{{Name: "a"}}})
	d := open(t, config(t, h))
	changed := make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- d.Watch(ctx, func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		})
	}()
	await := func(what string) {
		t.Helper()
		select {
		case <-changed:
		case err := <-done:
			t.Fatalf("%s: the watch ended: %v", what, err)
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: not told", what)
		}
	}
	await("begin")
	h.Fault("WaitForUpdatesEx", new(types.InvalidCollectorVersion), 1)
	must(t, h.Power(ctx, "a", true))
	await("a change and a forgotten version")
	for range 3 {
		h.DropSessions()
		must(t, h.RenameVM(ctx, "a", "b"))
		await("dropped session")
		must(t, h.RenameVM(ctx, "b", "a"))
		await("change after a dropped session")
	}
	must(t, h.ResizeVM(ctx, "a", 2, 2048))
	await("reconfiguration")
	cancel()
	must(t, <-done)
}

func TestShutdownThatNeverComes(t *testing.T) {
	h := start(t, vcsim.Config{VMs: []vcsim.VMSpec{{Name: "a", On: true}}})
	cfg := config(t, h)
	cfg.ShutdownTimeout = 300 * time.Millisecond
	d := open(t, cfg)
	h.IgnoreShutdown(true)
	id := find(t, d, "a").ID
	wantCode(t, d.Run(t.Context(), wire.Task{Kind: wire.TaskVMShutdown, VM: id}, nil), wire.CodeHost, "still runs after 300ms")
}

func TestIdentity(t *testing.T) {
	dir := t.TempDir()
	cfg := vcsim.Config{Dir: dir, Seed: 5}
	h := start(t, cfg)
	must(t, open(t, config(t, h)).SaveID(t.Context(), "0d9c8f3e-7d0b-4e0a-9f52-3a4f7e2f9b11"))
	h.Close()
	h = start(t, cfg)
	id, err := open(t, config(t, h)).LoadID(t.Context())
	if err != nil || id != "0d9c8f3e-7d0b-4e0a-9f52-3a4f7e2f9b11" {
		t.Errorf("after a restart: %q, %v", id, err)
	}
	// Another host that shares the datastore has an id of its own.
	h.Close()
	cfg.Name = "another.test"
	h = start(t, cfg)
	if id, err := open(t, config(t, h)).LoadID(t.Context()); err != nil || id != "" {
		t.Errorf("another host: %q, %v", id, err)
	}
	h.SetReadOnly(true)
	wantCode(t, open(t, config(t, h)).SaveID(t.Context(), "x"), wire.CodeDenied, "Forbidden")
}

func TestCheck(t *testing.T) {
	h := start(t, vcsim.Config{})
	d := open(t, config(t, h))
	line := func(name string) hypervisor.CheckResult {
		t.Helper()
		all := d.Check(t.Context())
		i := slices.IndexFunc(all, func(r hypervisor.CheckResult) bool { return r.Name == name })
		if i < 0 {
			t.Fatalf("no line %s in %+v", name, all)
		}
		return all[i]
	}
	for _, name := range []string{"host reachable", "host certificate", "host login", "host rights", "host licence", "host clock"} {
		if l := line(name); !l.OK {
			t.Errorf("%+v", l)
		}
	}
	h.Deny("VirtualMachine.Interact.PowerOn")
	if l := line("host rights"); l.OK || !strings.Contains(l.Detail, "VirtualMachine.Interact.PowerOn") {
		t.Errorf("%+v", l)
	}
	h.SetReadOnly(true)
	if l := line("host licence"); l.OK || !strings.Contains(l.Detail, "free licence") {
		t.Errorf("%+v", l)
	}
	h.SetClock(-3 * time.Hour)
	if l := line("host clock"); l.OK || !strings.Contains(l.Detail, "3h0m0s behind") {
		t.Errorf("%+v", l)
	}
	if n := h.Sessions(); n != 0 {
		t.Errorf("check left %d sessions open", n)
	}
}

func TestSecretsAreNotShown(t *testing.T) {
	var out bytes.Buffer
	h := start(t, vcsim.Config{Password: "geheim-4711"})
	cfg := config(t, h)
	cfg.Log = slog.New(slog.NewJSONHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
	d := open(t, cfg)
	find := func(what string, s string) {
		if strings.Contains(s, "geheim") {
			t.Errorf("%s shows the password: %s", what, s)
		}
	}
	_, err := d.Observe(t.Context())
	must(t, err)
	h.ChangePassword("another")
	h.DropSessions()
	_, err = d.Observe(t.Context())
	find("error", fmt.Sprintf("%v %+v %#v", err, err, err))
	cfg.Log.Info("config", "config", cfg, "password", cfg.Password)
	find("log", out.String())
	j, err := json.Marshal(cfg.Password)
	must(t, err)
	find("json", string(j))
	find("format", fmt.Sprintf("%v %+v %#v %s %q %x %d", cfg.Password, cfg, cfg.Password, cfg.Password, cfg.Password, cfg.Password, cfg.Password))
}

// TestObserveLeaksNothing compares the heap after many looks at the host.
func TestObserveLeaksNothing(t *testing.T) {
	h := start(t, vcsim.Config{Count: 4})
	d := open(t, config(t, h))
	observe := func(n int) uint64 {
		for range n {
			_, err := d.Observe(t.Context())
			must(t, err)
		}
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := observe(20)
	routines := runtime.NumGoroutine()
	after := observe(200)
	t.Logf("heap %d KiB, then %d KiB", before>>10, after>>10)
	if after > before+1<<20 {
		t.Errorf("heap grew from %d to %d bytes", before, after)
	}
	if n := runtime.NumGoroutine(); n > routines {
		t.Errorf("%d goroutines, %d before", n, routines)
	}
	if n := h.Sessions(); n != 1 {
		t.Errorf("%d sessions", n)
	}
}

func BenchmarkObserve(b *testing.B) {
	h, err := vcsim.Start(vcsim.Config{Name: "esx.test", Count: 20})
	if err != nil {
		b.Fatal(err)
	}
	defer h.Close()
	d, err := esxi.New(esxi.Config{URL: h.URL(), Username: h.Username(), Password: esxi.Secret(h.Password()), Thumbprint: h.Thumbprint(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := d.Observe(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
