package httpapi_test

import (
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	"pallas/commands"
	"pallas/events"
	"pallas/internal/httpapi"
)

func TestPower(t *testing.T) {
	m := start(t)
	dev := m.device(given{name: "shop", vms: []events.VM{
		machine("vm-1", "pos", events.PowerOff, events.ToolsRunning), machine("vm-2", "kiosk", events.PowerOn, events.ToolsRunning),
	}})
	begin := time.Now()
	task, a := want[httpapi.Task](m, 202, "POST", "/api/v1/vms/"+string(dev)+"/vm-1/power", `{"action":"on","timeout":60}`)
	if a.Header.Get("Location") != "/api/v1/tasks/"+task.ID || task.Status != "requested" || task.Kind != "vm.power-on" || task.VM != "vm-1" || task.Device != string(dev) {
		t.Errorf("task %+v, Location %q", task, a.Header.Get("Location"))
	}
	if d := task.Deadline.Sub(begin); d < 55*time.Second || d > 65*time.Second {
		t.Errorf("deadline in %s, want 60 s", d)
	}
	got, read := want[httpapi.Task](m, 200, "GET", a.Header.Get("Location"), "", "Pallas-Position", a.position(t))
	if got.Status != "requested" || got.RequestedBy != "user:admin" || got.VMName != "pos" || !got.Deadline.Equal(task.Deadline) {
		t.Errorf("read %+v", got)
	}
	if b := m.do("GET", a.Header.Get("Location"), "", "If-None-Match", read.Header.Get("ETag")); b.StatusCode != 304 {
		t.Errorf("If-None-Match: %d", b.StatusCode)
	}
	m.command(commands.ReportTasks{Device: dev, Epoch: 1, Facts: []commands.TaskFact{
		{Seq: 50, Task: events.TaskID(task.ID), Status: events.TaskStatusAccepted},
		{Seq: 51, Task: events.TaskID(task.ID), Status: events.TaskStatusFailed, Code: "host", Message: "no memory left"},
	}})
	m.caughtUp()
	got, _ = want[httpapi.Task](m, 200, "GET", a.Header.Get("Location"), "")
	if got.Status != "failed" || got.Code != "host" || got.Message != "no memory left" || got.EndedAt.IsZero() || got.AcceptedAt.IsZero() {
		t.Errorf("ended %+v", got)
	}

	for action, kind := range map[string]string{"off": "vm.power-off", "reset": "vm.reset", "suspend": "vm.suspend", "shutdown": "vm.shutdown"} {
		deadline := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
		task, _ := want[httpapi.Task](m, 202, "POST", "/api/v1/vms/"+string(dev)+"/vm-2/power", `{"action":"`+action+`","deadline":"`+deadline.Format(time.RFC3339)+`"}`)
		if task.Kind != kind || !task.Deadline.Equal(deadline) {
			t.Errorf("%s: %+v", action, task)
		}
	}
	m.caughtUp()
	for query, n := range map[string]int{"": 5, "?open=true": 4, "?status=failed": 1, "?status=failed,requested": 5, "?kind=vm.reset": 1, "?device=" + string(dev): 5, "?device=" + string(dev) + "&vm=vm-1": 1} {
		if p, _ := want[page[httpapi.Task]](m, 200, "GET", "/api/v1/tasks"+query, ""); len(p.Items) != n {
			t.Errorf("%q: %d tasks, want %d", query, len(p.Items), n)
		}
	}
}

func TestIdempotencyKey(t *testing.T) {
	m := start(t)
	dev := m.device(given{name: "shop", vms: []events.VM{machine("vm-1", "pos", events.PowerOff, events.ToolsRunning)}})
	other := m.device(given{name: "other", vms: []events.VM{machine("vm-1", "pos", events.PowerOff, events.ToolsRunning)}})
	path := "/api/v1/vms/" + string(dev) + "/vm-1/power"
	before := m.last()
	var wg sync.WaitGroup
	ids := make([]string, 6)
	for i := range ids {
		wg.Go(func() {
			a := m.do("POST", path, `{"action":"on"}`, "Idempotency-Key", "key-1")
			var task httpapi.Task
			if err := json.Unmarshal(a.body, &task); err != nil || a.StatusCode != 202 {
				t.Errorf("status %d: %s", a.StatusCode, a.body)
			}
			ids[i] = task.ID
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] || id == "" {
			t.Errorf("tasks %v, want the same", ids)
		}
	}
	if after := m.last(); after != before+1 {
		t.Errorf("the log went from %d to %d, want one decision", before, after)
	}
	// A repeat answers although the machine's state would refuse a new task.
	m.command(commands.ReportInventory{Device: dev, Epoch: 1, Facts: []commands.InventoryFact{{Seq: 60, Event: events.VMObserved{VM: machine("vm-1", "pos", events.PowerOn, events.ToolsRunning)}}}})
	if task, _ := want[httpapi.Task](m, 202, "POST", path, `{"action":"on"}`, "Idempotency-Key", "key-1"); task.ID != ids[0] {
		t.Errorf("repeat made task %s, want %s", task.ID, ids[0])
	}
	// The same key for another device is another request, with an id of its own.
	if task, _ := want[httpapi.Task](m, 202, "POST", "/api/v1/vms/"+string(other)+"/vm-1/power", `{"action":"on"}`, "Idempotency-Key", "key-1"); task.ID == ids[0] {
		t.Error("two devices share a task id")
	}
}

func TestCancel(t *testing.T) {
	m := start(t)
	dev := m.device(given{name: "shop", vms: []events.VM{machine("vm-1", "pos", events.PowerOff, events.ToolsRunning)}})
	task, _ := want[httpapi.Task](m, 202, "POST", "/api/v1/vms/"+string(dev)+"/vm-1/power", `{"action":"on"}`)
	// At once, whether or not the read model knows the task yet.
	got, a := want[httpapi.Task](m, 202, "POST", "/api/v1/tasks/"+task.ID+"/cancel", "")
	if !got.CancelRequested || got.ID != task.ID || a.Header.Get("Location") != "/api/v1/tasks/"+task.ID {
		t.Errorf("cancel: %+v", got)
	}
	before := m.last()
	want[httpapi.Task](m, 202, "POST", "/api/v1/tasks/"+task.ID+"/cancel", "")
	if m.last() != before {
		t.Error("cancelling twice wrote twice")
	}
}

func TestJoinTokens(t *testing.T) {
	m := start(t)
	begin := time.Now()
	made, a := want[map[string]any](m, 201, "POST", "/api/v1/join-tokens", `{}`)
	if a.Header.Get("Cache-Control") != "no-store" || a.Header.Get("Location") != "/api/v1/join-tokens/"+made["id"].(string) {
		t.Errorf("headers %v", a.Header)
	}
	if !strings.HasPrefix(made["token"].(string), made["id"].(string)+".") || !strings.Contains(made["join"].(string), made["token"].(string)) {
		t.Errorf("token %v join %v", made["token"], made["join"])
	}
	var tok httpapi.JoinToken
	must(t, json.Unmarshal(a.body, &tok))
	if d := tok.Expires.Sub(begin); tok.MaxUses != 1 || tok.Approve != "manual" || tok.State != "active" || d < 23*time.Hour || d > 25*time.Hour {
		t.Errorf("defaults: %+v", tok)
	}
	read, _ := want[httpapi.JoinToken](m, 200, "GET", a.Header.Get("Location"), "", "Pallas-Position", a.position(t))
	if read.CreatedBy != "user:admin" || !read.Expires.Equal(tok.Expires) || read.Revision != tok.Revision {
		t.Errorf("read %+v, made %+v", read, tok)
	}
	if b := m.do("GET", a.Header.Get("Location"), ""); strings.Contains(string(b.body), strings.SplitN(made["token"].(string), ".", 2)[1]) {
		t.Error("the secret is shown again")
	}
	want[map[string]any](m, 201, "POST", "/api/v1/join-tokens", `{"name":"many","ttl":60,"maxUses":5,"approve":"auto","labels":{"site":"fra"}}`)
	m.caughtUp()
	list, _ := want[page[httpapi.JoinToken]](m, 200, "GET", "/api/v1/join-tokens", "")
	if len(list.Items) != 2 || list.Items[0].Name != "many" || list.Items[0].Approve != "auto" || list.Items[0].Labels["site"] != "fra" {
		t.Errorf("list %+v", list.Items)
	}
	_, a = want[map[string]any](m, 204, "DELETE", "/api/v1/join-tokens/"+tok.ID, "")
	read, _ = want[httpapi.JoinToken](m, 200, "GET", "/api/v1/join-tokens/"+tok.ID, "", "Pallas-Position", a.position(t))
	if read.State != "revoked" || read.RevokedBy != "user:admin" {
		t.Errorf("revoked %+v", read)
	}
	before := m.last()
	want[map[string]any](m, 204, "DELETE", "/api/v1/join-tokens/"+tok.ID, "")
	if m.last() != before {
		t.Error("revoking twice wrote twice")
	}
	if list, _ := want[page[httpapi.JoinToken]](m, 200, "GET", "/api/v1/join-tokens?active=true", ""); len(list.Items) != 1 {
		t.Errorf("active tokens %+v", list.Items)
	}
}

// TestJoinTokenKeyRace makes a token from many clients with one key: one gets
// the secret, and that secret works.
func TestJoinTokenKeyRace(t *testing.T) {
	m := start(t)
	before := m.last()
	var wg sync.WaitGroup
	statuses := make([]int, 5)
	for i := range statuses {
		wg.Go(func() {
			a := m.do("POST", "/api/v1/join-tokens", `{"name":"x"}`, "Idempotency-Key", "k")
			statuses[i] = a.StatusCode
			if a.StatusCode != 201 && a.StatusCode != 409 {
				t.Errorf("status %d: %s", a.StatusCode, a.body)
			}
		})
	}
	wg.Wait()
	made := 0
	for _, s := range statuses {
		if s == 201 {
			made++
		}
	}
	if made != 1 || m.last() != before+1 {
		t.Errorf("statuses %v, log %d → %d", statuses, before, m.last())
	}
}
