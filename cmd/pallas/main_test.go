package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"pallas/agent"
	"pallas/agent/hypervisor/fake"
	"pallas/agent/identity"
	"pallas/internal/client"
	"pallas/internal/server"
	"pallas/internal/servertest"
	"pallas/mqttgw/wire"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"pallas": main})
}

// fixture is a manager with two devices: shop-1 with three virtual machines
// (shop-1-vm1 and shop-1-vm3 are on) and shop-2 with two. A third waits for
// approval.
type fixture struct {
	t       *testing.T
	manager *servertest.Manager
	hosts   map[string]*fake.Host
	agents  map[string]*agent.Agent
	release map[string]func()
}

func newFixture(t *testing.T) *fixture {
	f := &fixture{t: t, manager: servertest.Start(t), hosts: map[string]*fake.Host{}, agents: map[string]*agent.Agent{}, release: map[string]func(){}}
	f.device("shop-1", 3, f.manager.JoinWith(client.CreateJoinTokenJSONRequestBody{Approve: new(client.CreateJoinTokenApproveAuto), Labels: &map[string]string{"site": "fra"}}))
	f.device("shop-2", 2, f.manager.Join(1))
	f.device("shop-3", 0, f.manager.JoinWith(client.CreateJoinTokenJSONRequestBody{Name: new("by hand")}))
	servertest.Eventually(t, 30*time.Second, func() error {
		s, err := f.manager.API.GetStatusWithResponse(t.Context(), nil)
		if err != nil {
			return err
		}
		if v := s.JSON200; v == nil || v.Devices.Connected != 3 || v.Vms.Total != 5 {
			return fmt.Errorf("not all is reported: %s", s.Body)
		}
		return nil
	})
	return f
}

func (f *fixture) device(name string, vms int, join string) {
	h := fake.Sample(name, vms)
	a, err := agent.New(agent.Config{
		Dir: filepath.Join(f.t.TempDir(), name), Join: join, Driver: h, Version: "test", Log: slog.New(slog.DiscardHandler),
		BackoffBase: 50 * time.Millisecond, BackoffCap: 300 * time.Millisecond, NoSync: true, Debounce: 10 * time.Millisecond,
	})
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	f.t.Cleanup(func() {
		cancel()
		var retired *identity.RetiredError // scripts retire devices
		if err := <-done; err != nil && !errors.As(err, &retired) {
			f.t.Errorf("%s: %v", name, err)
		}
	})
	f.hosts[name], f.agents[name] = h, a
}

// TestScripts runs each script of testdata/script against a manager of its own.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			f := newFixture(t)
			testscript.Run(t, testscript.Params{
				Files: []string{file}, Setup: f.setup, RequireExplicitExec: true, RequireUniqueNames: true,
				Cmds: map[string]func(*testscript.TestScript, bool, []string){
					"code": code, "eventually": eventually, "host": f.host,
				},
			})
		})
	}
}

// setup gives a script the environment of an operator who has not logged in,
// with the means to do so in $SERVER, $CA, $TOKEN and the file token.
func (f *fixture) setup(env *testscript.Env) error {
	env.Setenv("GORACE", "atexit_sleep_ms=0") // a program built with -race waits a second at its end otherwise
	for k, v := range map[string]string{
		"SERVER": "https://" + f.manager.Config.HTTP.Listen, "CA": server.CAFile(f.manager.Config), "TOKEN": f.manager.Token, "LINK": f.manager.Link,
		"SHOP1": f.agents["shop-1"].Device(), "SHOP2": f.agents["shop-2"].Device(), "SHOP3": f.agents["shop-3"].Device(), "PALLAS_CONFIG": filepath.Join(env.WorkDir, "home", "config.yaml"),
		"NOBODY": "https://127.0.0.1:1",
	} {
		env.Setenv(k, v)
	}
	return os.WriteFile(filepath.Join(env.WorkDir, "token"), []byte(f.manager.Token+"\n"), 0o600)
}

// code runs a program and checks its exit code: code 4 pallas approve x.
func code(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N command…")
	}
	got := "0"
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		got = strings.TrimPrefix(err.Error(), "exit status ")
	}
	if got != args[0] {
		ts.Fatalf("exit code %s, want %s", got, args[0])
	}
}

// eventually repeats a program until its output holds a text: eventually on
// pallas get vms.
func eventually(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: eventually TEXT command…")
	}
	deadline, tick := time.After(20*time.Second), time.NewTicker(50*time.Millisecond)
	defer tick.Stop()
	for {
		err := ts.Exec(args[1], args[2:]...)
		if err == nil && strings.Contains(ts.ReadFile("stdout"), args[0]) {
			return
		}
		select {
		case <-deadline:
			ts.Fatalf("not in time: %v", err)
		case <-tick.C:
		}
	}
}

// host does something to a simulated host: host NAME fail CODE MESSAGE, hold,
// release, power VM STATE, readonly REASON, hostile.
func (f *fixture) host(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || f.hosts[args[0]] == nil {
		ts.Fatalf("usage: host NAME verb…")
	}
	h := f.hosts[args[0]]
	switch verb, rest := args[1], args[2:]; verb {
	case "fail":
		h.FailNext(rest[0], rest[1])
	case "hold":
		f.release[args[0]] = h.HoldTasks()
	case "release":
		f.release[args[0]]()
	case "power":
		h.SetPower(rest[0], rest[1])
	case "readonly":
		h.SetReadOnly(rest[0], true)
	case "hostile":
		h.PutVM(wire.VM{ID: "evil", Name: "e\x1b[31mvil\u009b\u202e", Power: wire.PowerOff, Tools: wire.ToolsNotRunning})
	case "twin":
		h.PutVM(wire.VM{Name: rest[0], Power: wire.PowerOff, Tools: wire.ToolsNotRunning})
	default:
		ts.Fatalf("host: no verb %q", verb)
	}
}
