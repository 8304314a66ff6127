package httpapi_test

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"pallas/commands"
	"pallas/events"
	"pallas/internal/httpapi"
)

type page[T any] struct {
	Items []T    `json:"items"`
	Next  string `json:"next"`
}

func TestDeviceChanges(t *testing.T) {
	m := start(t)
	id := m.pending("new")
	path := "/api/v1/devices/" + string(id)

	d, a := want[httpapi.DeviceIdentity](m, 200, "POST", path+"/approve", "")
	if d.Trust != "approved" || d.Connection != "never" || d.ID != string(id) {
		t.Errorf("approve: %+v", d)
	}
	got, _ := want[httpapi.Device](m, 200, "GET", path, "", "Pallas-Position", a.position(t))
	if got.Trust != "approved" || got.ApprovedBy != "user:admin" || got.Revision != d.Revision {
		t.Errorf("read after approve: %+v", got)
	}
	before := m.last()
	if _, again := want[httpapi.DeviceIdentity](m, 200, "POST", path+"/approve", ""); again.position(t) != a.position(t) || m.last() != before {
		t.Error("approving twice changed something")
	}

	// A merge patch, and its ETag.
	d, a = want[httpapi.DeviceIdentity](m, 200, "PATCH", path, `{"name":"shop-1","labels":{"site":"fra","role":"pos"}}`)
	if d.Name != "shop-1" || !cmp.Equal(d.Labels, map[string]string{"site": "fra", "role": "pos"}) {
		t.Errorf("patch: %+v", d)
	}
	etag := a.Header.Get("ETag")
	d, a = want[httpapi.DeviceIdentity](m, 200, "PATCH", path, `{"labels":{"role":null,"floor":"2"}}`, "If-Match", etag, "Content-Type", "application/merge-patch+json")
	if !cmp.Equal(d.Labels, map[string]string{"site": "fra", "floor": "2"}) {
		t.Errorf("labels: %+v", d.Labels)
	}
	if p := m.do("PATCH", path, `{"name":"lost update"}`, "If-Match", etag); p.StatusCode != http.StatusPreconditionFailed {
		t.Errorf("stale If-Match: %d", p.StatusCode)
	}
	// The ETag of a read guards a change too, whatever the host reports meanwhile.
	_, read := want[httpapi.Device](m, 200, "GET", path, "", "Pallas-Position", a.position(t))
	etag = read.Header.Get("ETag")
	if a := m.do("GET", path, "", "If-None-Match", `"1.x", `+etag); a.StatusCode != http.StatusNotModified || len(a.body) != 0 || a.Header.Get("ETag") != etag {
		t.Errorf("If-None-Match: %d %q %s", a.StatusCode, a.body, a.Header.Get("ETag"))
	}
	m.command(commands.ReportInventory{Device: id, Epoch: 1, Facts: []commands.InventoryFact{{Seq: 1, Event: events.HostConditionChanged{Condition: events.ConditionUnreachable, Message: "no route"}}}})
	m.caughtUp()
	if a := m.do("GET", path, "", "If-None-Match", etag); a.StatusCode != 200 {
		t.Errorf("If-None-Match after a report: %d", a.StatusCode)
	}
	d, _ = want[httpapi.DeviceIdentity](m, 200, "PATCH", path, `{"name":"shop-2","labels":null}`, "If-Match", etag)
	if d.Name != "shop-2" || len(d.Labels) != 0 {
		t.Errorf("patch with the read's ETag: %+v", d)
	}

	d, a = want[httpapi.DeviceIdentity](m, 200, "POST", path+"/retire", `{"reason":"sold"}`)
	if d.Trust != "retired" {
		t.Errorf("retire: %+v", d)
	}
	got, _ = want[httpapi.Device](m, 200, "GET", path, "", "Pallas-Position", a.position(t))
	if got.RetiredReason != "sold" || got.RetiredBy != "user:admin" || got.Condition != "unreachable" || got.ConditionMessage != "no route" {
		t.Errorf("read after retire: %+v", got)
	}
}

// TestPatchRace merges labels from many clients at once: none may be lost.
func TestPatchRace(t *testing.T) {
	m := start(t)
	path := "/api/v1/devices/" + string(m.device(given{name: "shop"}))
	var wg sync.WaitGroup
	var mu sync.Mutex
	added := map[string]string{}
	for i := range 8 {
		wg.Go(func() {
			key := fmt.Sprintf("k%d", i)
			a := m.do("PATCH", path, `{"labels":{"`+key+`":"v"}}`)
			switch a.StatusCode {
			case 200:
				mu.Lock()
				added[key] = "v"
				mu.Unlock()
			case 503: // gave up: too many at once
			default:
				t.Errorf("status %d: %s", a.StatusCode, a.body)
			}
		})
	}
	wg.Wait()
	m.caughtUp()
	d, _ := want[httpapi.Device](m, 200, "GET", path, "")
	if diff := cmp.Diff(added, d.Labels); diff != "" || len(added) == 0 {
		t.Errorf("labels (-answered +kept):\n%s", diff)
	}
}

func TestDeviceAnswers(t *testing.T) {
	m := start(t)
	id := m.device(given{name: "shop", labels: map[string]string{"site": "fra"}, vms: []events.VM{
		machine("vm-1", "b", events.PowerOn, events.ToolsRunning), machine("vm-2", "a", events.PowerOff, events.ToolsUnknown),
	}})
	m.device(given{name: "other", labels: map[string]string{"site": "muc"}, readOnly: true})
	m.caughtUp()
	d, a := want[httpapi.Device](m, 200, "GET", "/api/v1/devices/"+string(id), "")
	if d.Host == nil || d.Host.Datastores[0].Name != "datastore1" || d.Host.Networks[0].Name != "VM Network" || d.VMs != (httpapi.VMCounts{Total: 2, On: 1}) ||
		d.Connection != "connected" || d.Condition != "ok" || d.Certificate == nil || d.Certificate.NotAfter.IsZero() || d.Address != "203.0.113.7" {
		t.Errorf("device %+v host %+v", d, d.Host)
	}
	if a.Header.Get("Cache-Control") != "private, no-cache" {
		t.Errorf("Cache-Control %q", a.Header.Get("Cache-Control"))
	}
	for query, names := range map[string]string{
		"": "other shop", "?sort=id": "*", "?selector=site%3Dfra": "shop", "?selector=site+in+(fra,muc)": "other shop", "?q=SHO": "shop",
		"?trust=approved,pending": "other shop", "?trust=retired": "", "?connection=connected": "other shop", "?connection=lost,never": "",
		"?condition=readOnly": "other", "?version=8.0.3": "other shop", "?version=7": "", "?selector=!site": "",
	} {
		p, _ := want[page[httpapi.Device]](m, 200, "GET", "/api/v1/devices"+query, "")
		var got []string
		for _, d := range p.Items {
			got = append(got, d.Name)
			if d.Host == nil || d.Host.Version != "8.0.3" || d.Host.Datastores != nil {
				t.Errorf("%s: host in the list is %+v", query, d.Host)
			}
		}
		if names != "*" && strings.Join(got, " ") != names {
			t.Errorf("%s: got %v, want %q", query, got, names)
		}
	}
	vms, _ := want[page[httpapi.VM]](m, 200, "GET", "/api/v1/devices/"+string(id)+"/vms", "")
	if len(vms.Items) != 2 || vms.Items[0].Name != "a" || vms.Items[1].IPs[0] != "192.0.2.10" || vms.Items[0].DeviceName != "shop" {
		t.Errorf("machines %+v", vms.Items)
	}
	vms, _ = want[page[httpapi.VM]](m, 200, "GET", "/api/v1/vms?power=on&selector=site%3Dfra&q=b&device="+string(id), "")
	if len(vms.Items) != 1 || vms.Items[0].ID != "vm-1" {
		t.Errorf("machines %+v", vms.Items)
	}
	v, a := want[httpapi.VM](m, 200, "GET", "/api/v1/vms/"+string(id)+"/vm-1", "")
	if v.Name != "b" || v.Power != "on" || len(v.Disks) != 1 || len(v.NICs) != 1 {
		t.Errorf("machine %+v", v)
	}
	if a := m.do("GET", "/api/v1/vms/"+string(id)+"/vm-1", "", "If-None-Match", a.Header.Get("ETag")); a.StatusCode != http.StatusNotModified {
		t.Errorf("If-None-Match: %d", a.StatusCode)
	}
	s, _ := want[httpapi.Status](m, 200, "GET", "/api/v1/status", "")
	if s.Devices != (httpapi.DeviceCounts{Total: 2, Approved: 2, Connected: 2}) || s.VMs != (httpapi.VMCounts{Total: 2, On: 1}) || s.Log.Position != m.last() || s.Log.Bytes == 0 || s.Projection.Lag != 0 || s.Version != "test" {
		t.Errorf("status %+v", s)
	}
}

// TestPaging walks lists while rows come and go: every row that was there all
// the time must show exactly once.
func TestPaging(t *testing.T) {
	m := start(t)
	stay := map[string]int{}
	for i := range 30 {
		stay[string(m.device(given{name: fmt.Sprintf("shop-%02d", i), vms: []events.VM{machine("vm", fmt.Sprintf("vm-%02d", i), events.PowerOn, events.ToolsUnknown)}}))] = 0
	}
	m.caughtUp()
	ids := slices.Collect(func(yield func(string) bool) {
		for id := range stay {
			if !yield(id) {
				return
			}
		}
	})
	for _, list := range []struct {
		path string
		key  func(map[string]any) string
	}{
		{"/api/v1/devices?limit=7", func(r map[string]any) string { return r["id"].(string) }},
		{"/api/v1/devices?limit=7&sort=id", func(r map[string]any) string { return r["id"].(string) }},
		{"/api/v1/vms?limit=7", func(r map[string]any) string { return r["device"].(string) }},
		{"/api/v1/vms?limit=7&sort=id", func(r map[string]any) string { return r["device"].(string) }},
	} {
		seen := map[string]int{}
		cursor, pages := "", 0
		for {
			path := list.path
			if cursor != "" {
				path += "&cursor=" + url.QueryEscape(cursor)
			}
			p, _ := want[page[map[string]any]](m, 200, "GET", path, "", "Pallas-Position", fmt.Sprint(m.last()))
			for _, r := range p.Items {
				seen[list.key(r)]++
			}
			if pages++; p.Next == "" {
				break
			}
			cursor = p.Next
			// One new row before and one behind the cursor.
			m.device(given{name: fmt.Sprintf("aaa-%d", pages), vms: []events.VM{machine("vm", "aaa", events.PowerOn, events.ToolsUnknown)}})
			m.device(given{name: fmt.Sprintf("zzz-%d", pages), vms: []events.VM{machine("vm", "zzz", events.PowerOn, events.ToolsUnknown)}})
		}
		for _, id := range ids {
			if seen[id] != 1 {
				t.Errorf("%s: %s shown %d times", list.path, id, seen[id])
			}
		}
		for id, n := range seen {
			if n > 1 {
				t.Errorf("%s: %s shown %d times", list.path, id, n)
			}
		}
		if pages < 4 {
			t.Errorf("%s: %d pages", list.path, pages)
		}
	}
}

// TestBehind asks for a position that the read model never gets.
func TestBehind(t *testing.T) {
	t.Parallel() // it waits
	m := start(t)
	id := m.device(given{name: "shop"})
	m.caughtUp()
	m.stopProjection()
	_, a := want[httpapi.DeviceIdentity](m, 200, "PATCH", "/api/v1/devices/"+string(id), `{"name":"new"}`)
	b := m.do("GET", "/api/v1/devices/"+string(id), "", "Pallas-Position", a.position(t))
	if p := b.problem(t); b.StatusCode != 503 || p.Type != "urn:pallas:problem:behind" {
		t.Errorf("status %d %+v", b.StatusCode, p)
	}
	if d, _ := want[httpapi.Device](m, 200, "GET", "/api/v1/devices/"+string(id), ""); d.Name != "shop" {
		t.Errorf("without a position: %q", d.Name)
	}
}

// TestUnknownCondition finds the devices that have not reported yet: what an
// answer shows can be asked for.
func TestUnknownCondition(t *testing.T) {
	m := start(t)
	silent := string(m.pending("silent"))
	m.device(given{name: "known", vms: []events.VM{machine("vm-1", "a", events.PowerOff, events.ToolsUnknown)}})
	m.caughtUp()
	found, _ := want[page[httpapi.Device]](m, 200, "GET", "/api/v1/devices?condition=unknown", "")
	if len(found.Items) != 1 || found.Items[0].ID != silent || found.Items[0].Condition != "unknown" {
		t.Errorf("devices of unknown condition: %+v, want only %s", found.Items, silent)
	}
}
