package httpapi_test

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"pallas/commands"
	"pallas/events"
	"pallas/internal/auth"
	"pallas/internal/httpapi"
	"pallas/projections/queryhttp"
)

// site is a device at a site, with a machine, a task and a join token.
type site struct {
	name   string
	device string
	task   string
	token  string
}

func (m *manager) site(name string) site {
	m.t.Helper()
	s := site{name: name}
	s.device = string(m.device(given{name: name, labels: map[string]string{"site": name}, vms: []events.VM{machine("vm-1", "till of "+name, events.PowerOff, events.ToolsRunning)}}))
	k, _ := want[httpapi.Task](m, 202, "POST", "/api/v1/vms/"+s.device+"/vm-1/power", `{"action":"on"}`)
	s.task = k.ID
	tok, _ := want[httpapi.JoinToken](m, 201, "POST", "/api/v1/join-tokens", `{"name":"`+name+`","labels":{"site":"`+name+`"}}`)
	s.token = tok.ID
	m.caughtUp()
	return s
}

var requestID = regexp.MustCompile(`"requestId":"[^"]+"`)

// TestScopedOperator follows an operator of one site through every operation.
func TestScopedOperator(t *testing.T) {
	m := start(t, people)
	fra, muc := m.site("fra"), m.site("muc")
	sam := m.as(m.grant("sam", selects(auth.RoleOperator, "site=fra")))
	names := func(path string) (out []string) {
		t.Helper()
		p, _ := want[page[map[string]any]](sam, 200, "GET", path, "")
		for _, it := range p.Items {
			for _, key := range []string{"deviceName", "name"} {
				if s, ok := it[key].(string); ok {
					out = append(out, s)
					break
				}
			}
		}
		return out
	}
	for path, expect := range map[string][]string{
		"/api/v1/devices":                            {"fra"},
		"/api/v1/devices?sort=id":                    {"fra"},
		"/api/v1/devices?selector=site=muc":          nil,
		"/api/v1/devices?selector=site!=fra":         nil,
		"/api/v1/devices?q=muc":                      nil,
		"/api/v1/devices?q=" + muc.device[:8]:        nil,
		"/api/v1/devices?connection=connected":       {"fra"},
		"/api/v1/vms":                                {"fra"},
		"/api/v1/vms?q=till":                         {"fra"},
		"/api/v1/vms?device=" + muc.device:           nil,
		"/api/v1/vms?power=off":                      {"fra"},
		"/api/v1/devices/" + fra.device + "/vms":     {"fra"},
		"/api/v1/tasks":                              {"fra"},
		"/api/v1/tasks?open=true":                    {"fra"},
		"/api/v1/tasks?status=requested":             {"fra"},
		"/api/v1/tasks?device=" + muc.device:         nil,
		"/api/v1/tasks?vm=vm-1&device=" + muc.device: nil,
		"/api/v1/join-tokens":                        {"fra"},
		"/api/v1/join-tokens?active=true":            {"fra"},
	} {
		if diff := cmp.Diff(expect, names(path)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", path, diff)
		}
	}

	// What is outside is not there: the same answer as for what never was.
	nobody := uuid.NewString()
	for _, c := range []struct{ method, path, body, id string }{
		{"GET", "/api/v1/devices/%s", "", muc.device},
		{"GET", "/api/v1/devices/%s/vms", "", muc.device},
		{"GET", "/api/v1/devices/%s/usage", "", muc.device},
		{"GET", "/api/v1/vms/%s/vm-1", "", muc.device},
		{"GET", "/api/v1/tasks/%s", "", muc.task},
		{"GET", "/api/v1/join-tokens/%s", "", muc.token},
		{"GET", "/api/v1/events?device=%s", "", muc.device},
		{"GET", "/api/v1/tasks?device=%s", "", muc.device},
		{"PATCH", "/api/v1/devices/%s", `{"name":"x"}`, muc.device},
		{"PATCH", "/api/v1/devices/%s", `{"labels":{"site":"fra"}}`, muc.device},
		{"POST", "/api/v1/devices/%s/approve", "", muc.device},
		{"POST", "/api/v1/vms/%s/vm-1/power", `{"action":"on"}`, muc.device},
		{"POST", "/api/v1/vms/%s/vm-1/power", `{"action":"on","deadline":"2020-01-01T00:00:00Z"}`, muc.device},
		{"POST", "/api/v1/tasks/%s/cancel", "", muc.task},
		{"DELETE", "/api/v1/join-tokens/%s", "", muc.token},
	} {
		before := m.last()
		outside := sam.do(c.method, fmt.Sprintf(c.path, c.id), c.body)
		unknown := sam.do(c.method, fmt.Sprintf(c.path, nobody), c.body)
		plain := func(a answer, id string) string {
			return fmt.Sprint(a.StatusCode, requestID.ReplaceAllString(strings.ReplaceAll(string(a.body), id, "…"), ""))
		}
		if a, b := plain(outside, c.id), plain(unknown, nobody); a != b {
			t.Errorf("%s %s: outside %s, unknown %s", c.method, c.path, a, b)
		}
		if after := m.last(); after != before {
			t.Errorf("%s %s: the log went from %d to %d", c.method, c.path, before, after)
		}
		if c.method == "GET" {
			want[any](m, 200, c.method, fmt.Sprintf(c.path, c.id), "") // to an admin it is there
		}
	}

	// Within the scope it is an operator's day.
	want[httpapi.DeviceIdentity](sam, 200, "PATCH", "/api/v1/devices/"+fra.device, `{"labels":{"role":"pos"}}`)
	want[httpapi.DeviceIdentity](sam, 200, "POST", "/api/v1/devices/"+fra.device+"/approve", "")
	want[httpapi.Task](sam, 202, "POST", "/api/v1/tasks/"+fra.task+"/cancel", "")
	want[map[string]any](sam, 201, "POST", "/api/v1/join-tokens", `{"labels":{"site":"fra","role":"pos"}}`)
	sam.do("DELETE", "/api/v1/join-tokens/"+fra.token, "")
	for _, c := range []struct{ method, path, body string }{
		{"PATCH", "/api/v1/devices/" + fra.device, `{"name":"away","labels":{"site":"muc"}}`},
		{"PATCH", "/api/v1/devices/" + fra.device, `{"labels":null}`},
		{"POST", "/api/v1/join-tokens", `{"labels":{"site":"muc"}}`},
		{"POST", "/api/v1/join-tokens", `{}`},
	} {
		before := m.last()
		a := sam.do(c.method, c.path, c.body)
		if a.StatusCode != 403 {
			t.Fatalf("%s %s %s: status %d, want 403: %s", c.method, c.path, c.body, a.StatusCode, a.body)
		}
		if p := a.problem(t); p.Code != commands.CodeOutOfScope || len(p.Errors) != 1 || p.Errors[0].Field != "body.labels" || strings.Contains(p.Detail, "fra") {
			t.Errorf("%s %s %s: %+v", c.method, c.path, c.body, p)
		}
		if after := m.last(); after != before {
			t.Errorf("%s %s %s: the log went from %d to %d", c.method, c.path, c.body, before, after)
		}
	}

	m.caughtUp()
	s, _ := want[httpapi.Status](sam, 200, "GET", "/api/v1/status", "")
	if s.Devices.Total != 1 || s.Devices.Connected != 1 || s.VMs.Total != 1 || s.Tasks.Open != 1 {
		t.Errorf("status %+v", s)
	}
	if s, _ := want[httpapi.Status](m, 200, "GET", "/api/v1/status", ""); s.Devices.Total != 2 || s.VMs.Total != 2 || s.Tasks.Open != 2 {
		t.Errorf("status of an admin %+v", s)
	}

	// Events: the naive filter of what an admin sees.
	_, all := m.history()
	var mine []httpapi.Event
	tokens := map[string]bool{fra.token: true}
	for _, e := range all {
		id := e.Subject[strings.LastIndex(e.Subject, ".")+1:]
		if e.Type == "JoinTokenIssued" && strings.Contains(string(e.Data), `"site":"fra"`) {
			tokens[id] = true
		}
		if id == fra.device || tokens[id] {
			mine = append(mine, e)
		}
	}
	back := slices.Clone(mine)
	slices.Reverse(back)
	for what, got := range map[string][]httpapi.Event{
		"pages": sam.walk("limit=3"), "export": sam.export(""), "one device": sam.walk("device=" + muc.device), "its export": sam.export("device=" + muc.device),
		"an actor": sam.walk("actor=device:" + muc.device),
	} {
		expect := mine
		if strings.Contains(what, "device") || strings.Contains(what, "its") || strings.Contains(what, "actor") {
			expect = nil
		}
		if diff := cmp.Diff(cursorsOf(expect), cursorsOf(got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	if diff := cmp.Diff(cursorsOf(back), cursorsOf(sam.walk("order=desc&limit=2"))); diff != "" {
		t.Errorf("newest first (-want +got):\n%s", diff)
	}
	_, streamed := sam.sse(t.Context(), "after=0", "", len(mine), nil)
	if diff := cmp.Diff(cursorsOf(mine), cursorsOf(streamed)); diff != "" {
		t.Errorf("stream (-want +got):\n%s", diff)
	}
	// A viewer sees devices, and nothing of how devices get in.
	for _, e := range m.as(m.grant("vera", auth.Grant{Role: auth.RoleViewer})).export("") {
		if kind := strings.Split(e.Subject, ".")[1]; kind == "token" || kind == "access" || kind == "user" {
			t.Errorf("a viewer sees %s of %s", e.Type, e.Subject)
		}
	}
}

// TestScopedStream has devices come into a scope and leave it while somebody
// follows: what counts is the labels after each decision.
func TestScopedStream(t *testing.T) {
	m := start(t, people)
	fra, muc := m.site("fra"), m.site("muc")
	// The labels of those that stay are looked up when their first event comes,
	// and what is looked up may be newer than the event.
	in, out := m.device(given{name: "in", labels: map[string]string{"site": "fra"}}), m.device(given{name: "out", labels: map[string]string{"site": "ham"}})
	sam := m.as(m.grant("sam", selects(auth.RoleOperator, "site=fra"), selects(auth.RoleViewer, "site=ber")))
	rename := func(device, name string) {
		want[httpapi.DeviceIdentity](m, 200, "PATCH", "/api/v1/devices/"+device, `{"name":"`+name+`"}`)
	}
	label := func(device, site string) {
		want[httpapi.DeviceIdentity](m, 200, "PATCH", "/api/v1/devices/"+device, `{"labels":{"site":"`+site+`"}}`)
	}
	_, got := sam.sse(t.Context(), "type=DeviceRenamed,DeviceLabelled,JoinTokenRevoked,TaskCancelRequested,DeviceRegistered", "", 9, func() {
		rename(string(out), "hidden-1")
		rename(string(in), "seen-1")
		label(muc.device, "ber") // seen
		rename(muc.device, "seen-2")
		m.do("POST", "/api/v1/tasks/"+muc.task+"/cancel", "") // seen: a task of it
		label(fra.device, "muc")                              // hidden
		rename(fra.device, "hidden-2")
		m.do("POST", "/api/v1/tasks/"+fra.task+"/cancel", "") // hidden
		m.do("DELETE", "/api/v1/join-tokens/"+muc.token, "")  // hidden
		m.do("DELETE", "/api/v1/join-tokens/"+fra.token, "")  // seen
		m.device(given{name: "new-hidden", labels: map[string]string{"site": "muc"}})
		m.device(given{name: "new-seen", labels: map[string]string{"site": "fra"}})
		label(fra.device, "fra") // seen
		label(muc.device, "")    // hidden
		rename(muc.device, "hidden-3")
		rename(fra.device, "seen-3")
		rename(fra.device, "seen-4")
	})
	var told []string
	for _, e := range got {
		told = append(told, e.Type+" "+string(e.Data))
		if strings.Contains(string(e.Data), "hidden") {
			t.Errorf("shown: %s", e.Data)
		}
	}
	for i, want := range []string{"seen-1", "ber", "seen-2", muc.task, "JoinTokenRevoked", "new-seen", "fra", "seen-3", "seen-4"} {
		if !strings.Contains(told[i], want) {
			t.Errorf("event %d is %s, want %s", i, told[i], want)
		}
	}
}

// TestStreamEndsWithRights takes a caller's rights away while a stream is open.
func TestStreamEndsWithRights(t *testing.T) {
	m := start(t, func(o *options) { o.queries = func(c *queryhttp.Config) { c.Heartbeat = 5 * time.Millisecond } })
	fra := m.site("fra")
	for name, change := range map[string]func(){
		"other rights": func() { m.grant("sam", selects(auth.RoleOperator, "site=muc")) },
		"none":         func() { m.grant("sam") },
	} {
		sam := m.as(m.grant("sam", selects(auth.RoleOperator, "site=fra")))
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		req, err := http.NewRequestWithContext(ctx, "GET", m.url+"/api/v1/events/stream", nil)
		must(t, err)
		req.Header.Set("Authorization", "Bearer "+sam.token)
		resp, err := m.client.Do(req)
		must(t, err)
		lines := bufio.NewScanner(resp.Body)
		for beats := 0; beats < 3 && lines.Scan(); {
			if lines.Text() == ":" {
				beats++
			}
		}
		change()
		want[httpapi.DeviceIdentity](m, 200, "PATCH", "/api/v1/devices/"+fra.device, `{"name":"n`+events.NewID()+`"}`)
		for lines.Scan() { // ends
		}
		if ctx.Err() != nil {
			t.Errorf("%s: the stream goes on", name)
		}
		must(t, resp.Body.Close())
		cancel()
	}
}
