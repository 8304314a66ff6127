package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"

	"pallas/cmd/pallas/cli"
	"pallas/internal/client"
	"pallas/internal/server"
	"pallas/mqttgw/wire"
)

// running is the program, run in this process.
type running struct {
	t      *testing.T
	lines  chan string
	notes  chan string
	cancel context.CancelFunc
	code   chan int
}

func (f *fixture) start(args ...string) *running {
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{t: f.t, lines: make(chan string, 1000), notes: make(chan string, 1000), cancel: cancel, code: make(chan int, 1)}
	out, outW := io.Pipe()
	notes, notesW := io.Pipe()
	scan := func(from io.Reader, to chan<- string) {
		defer close(to)
		for s := bufio.NewScanner(from); s.Scan(); {
			to <- s.Text()
		}
	}
	go scan(out, r.lines)
	go scan(notes, r.notes)
	go func() {
		r.code <- cli.Run(ctx, args, strings.NewReader(""), outW, notesW)
		outW.Close()
		notesW.Close()
	}()
	f.t.Cleanup(func() {
		cancel()
		for range r.lines { // until the end, so that nothing is left running
		}
		for range r.notes {
		}
	})
	return r
}

// line returns the next line that holds all of these texts.
func (r *running) line(from <-chan string, texts ...string) string {
	r.t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		select {
		case l, ok := <-from:
			if !ok {
				for note := range r.notes {
					r.t.Log(note)
				}
				r.t.Fatalf("the output ended without %q", texts)
			}
			found := true
			for _, s := range texts {
				found = found && strings.Contains(l, s)
			}
			if found {
				return l
			}
		case <-deadline:
			r.t.Fatalf("no line with %q in time", texts)
		}
	}
}

// stop is Ctrl-C.
func (r *running) stop(want int) {
	r.t.Helper()
	r.cancel()
	select {
	case code := <-r.code:
		if code != want {
			r.t.Errorf("exit code %d after Ctrl-C, want %d", code, want)
		}
	case <-time.After(20 * time.Second):
		r.t.Fatal("still running after Ctrl-C")
	}
}

func (f *fixture) login() {
	f.t.Setenv("PALLAS_CONFIG", "does-not-exist")
	f.t.Setenv("PALLAS_SERVER", "https://"+f.manager.Config.HTTP.Listen)
	f.t.Setenv("PALLAS_CA_FILE", server.CAFile(f.manager.Config))
	f.t.Setenv("PALLAS_TOKEN", f.manager.Token)
}

func TestWatch(t *testing.T) {
	f := newFixture(t)
	f.login()

	vms := f.start("watch", "vms", "--device", "shop-1")
	vms.line(vms.lines, "shop-1-vm3", " on ")
	on := f.start("watch", "vms", "--power", "on", "-o", "json")
	on.line(on.lines, "shop-2-vm1", `"change":""`)
	devices := f.start("watch", "devices", "-o", "ndjson")
	devices.line(devices.lines, "shop-3", `"change":""`)
	events := f.start("watch", "events", "--since", "1h", "--type", "VMChanged,VMRemoved,VMObserved")
	events.line(events.lines, "VMObserved")
	tasks := f.start("watch", "tasks", "--open")

	f.hosts["shop-1"].SetPower("vm-3", wire.PowerOff)
	vms.line(vms.lines, "shop-1-vm3", " off ", "changed")
	on.line(on.lines, `"change":"gone"`, `"name":"shop-1-vm3"`, `"power":"off"`)
	devices.line(devices.lines, `"name":"shop-1"`, `"change":"changed"`, `"on":1`)
	events.line(events.lines, "VMChanged")

	f.hosts["shop-1"].PutVM(wire.VM{ID: "fresh", Name: "fresh", Power: wire.PowerOn, Tools: wire.ToolsNotRunning})
	vms.line(vms.lines, "fresh", " on ", "new")
	f.hosts["shop-1"].RemoveVM("fresh")
	vms.line(vms.lines, "fresh", "gone")

	release := f.hosts["shop-1"].HoldTasks()
	power := f.start("vm", "power", "on", "shop-1/shop-1-vm3", "--wait", "-o", "ndjson")
	tasks.line(tasks.lines, "vm.power-on", "shop-1-vm3", "accepted")
	release()
	var task client.Task
	if err := json.Unmarshal([]byte(power.line(power.lines, "vm.power-on")), &task); err != nil || task.Status != client.TaskStatusSucceeded {
		t.Errorf("the task that was waited for is %+v, %v", task, err)
	}
	if code := <-power.code; code != 0 {
		t.Errorf("exit code %d of the wait", code)
	}
	tasks.line(tasks.lines, "vm.power-on", "succeeded", "gone")

	for _, r := range []*running{vms, on, devices, events, tasks} {
		r.stop(0)
	}
}

// TestInterrupt leaves a wait by Ctrl-C; its task goes on.
func TestInterrupt(t *testing.T) {
	f := newFixture(t)
	f.login()
	release := f.hosts["shop-1"].HoldTasks()
	tasks := f.start("watch", "tasks", "-o", "ndjson")
	wait := f.start("vm", "power", "off", "shop-1/shop-1-vm1", "--wait")
	tasks.line(tasks.lines, `"status":"accepted"`)
	wait.stop(130)
	release()
	tasks.line(tasks.lines, `"status":"succeeded"`)
	tasks.stop(0)
}

// TestWatchRestart takes a broken stream up again where it ended.
func TestWatchRestart(t *testing.T) {
	f := newFixture(t)
	f.login()
	events := f.start("watch", "events", "--after", "0", "-o", "name")
	vms := f.start("watch", "vms")
	vms.line(vms.lines, "shop-1-vm1")
	events.line(events.lines, "1.1")

	f.manager.Stop()
	events.line(events.notes, "connecting again")
	f.hosts["shop-1"].SetPower("vm-1", wire.PowerOff) // while nobody listens
	f.manager.Run()
	vms.line(vms.lines, "shop-1-vm1", " off ", "changed")
	events.stop(0)
	vms.stop(0)

	// What came before and after the restart is the log, each event once.
	var seen []string
	for l := range events.lines {
		seen = append(seen, l)
	}
	if len(seen) == 0 {
		t.Fatal("no events")
	}
	r, err := f.manager.API.ListEventsWithResponse(t.Context(), &client.ListEventsParams{Limit: new(int64(1000))})
	if err != nil || r.JSON200 == nil {
		t.Fatalf("list events: %v", err)
	}
	for i, e := range r.JSON200.Items[1:] { // the first was read above
		if i == len(seen) {
			break // stopped before this one
		}
		if e.Cursor != seen[i] {
			t.Fatalf("event %d is %s, want %s", i, seen[i], e.Cursor)
		}
	}
}
