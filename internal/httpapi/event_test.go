package httpapi_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pallas/commands"
	"pallas/events"
	"pallas/events/eventstest"
	"pallas/internal/httpapi"
	"pallas/projections/queryhttp"
)

type eventPage = page[httpapi.Event]

// history returns all cursors in the log, oldest first, and the events.
func (m *manager) history() (cursors []string, all []httpapi.Event) {
	m.t.Helper()
	for r, err := range m.store.Read(m.t.Context(), events.Filter{}) {
		must(m.t, err)
		for i := range r.Entries {
			e, err := httpapi.EventOf(r, i)
			must(m.t, err)
			cursors, all = append(cursors, e.Cursor), append(all, e)
		}
	}
	return cursors, all
}

func cursorsOf(list []httpapi.Event) (out []string) {
	for _, e := range list {
		out = append(out, e.Cursor)
	}
	return out
}

// walk reads all pages of a list of events.
func (m *manager) walk(query string) (out []httpapi.Event) {
	m.t.Helper()
	cursor := ""
	for range 10_000 {
		path := "/api/v1/events?" + query
		if cursor != "" {
			path += "&cursor=" + url.QueryEscape(cursor)
		}
		p, _ := want[eventPage](m, 200, "GET", path, "")
		out = append(out, p.Items...)
		if p.Next == "" {
			return out
		}
		cursor = p.Next
	}
	m.t.Fatal("the pages do not end")
	return nil
}

// export reads the NDJSON of a list of events.
func (m *manager) export(query string) (out []httpapi.Event) {
	m.t.Helper()
	a := m.do("GET", "/api/v1/events?"+query, "", "Accept", "application/x-ndjson")
	if a.StatusCode != 200 || a.Header.Get("Content-Type") != "application/x-ndjson" {
		m.t.Fatalf("export: %d %s %s", a.StatusCode, a.Header.Get("Content-Type"), a.body)
	}
	for line := range strings.Lines(string(a.body)) {
		var e httpapi.Event
		must(m.t, json.Unmarshal([]byte(line), &e))
		out = append(out, e)
	}
	return out
}

func TestEventHistory(t *testing.T) {
	m := start(t)
	var devs []events.DeviceID
	for i := range 5 {
		devs = append(devs, m.device(given{name: fmt.Sprintf("shop-%d", i), vms: []events.VM{
			machine("vm-1", "a", events.PowerOn, events.ToolsRunning), machine("vm-2", "b", events.PowerOff, events.ToolsRunning),
		}}))
	}
	middle := time.Now().UTC()
	want[httpapi.DeviceIdentity](m, 200, "PATCH", "/api/v1/devices/"+string(devs[0]), `{"name":"new","labels":{"a":"b"}}`)
	want[map[string]any](m, 201, "POST", "/api/v1/join-tokens", `{}`)
	_, all := m.history()

	keep := func(ok func(httpapi.Event) bool) []httpapi.Event {
		return slices.DeleteFunc(slices.Clone(all), func(e httpapi.Event) bool { return !ok(e) })
	}
	for query, ok := range map[string]func(httpapi.Event) bool{
		"":                                func(httpapi.Event) bool { return true },
		"device=" + string(devs[2]):       func(e httpapi.Event) bool { return strings.HasSuffix(e.Subject, string(devs[2])) },
		"type=VMObserved":                 func(e httpapi.Event) bool { return e.Type == "VMObserved" },
		"type=VMObserved,DeviceRenamed":   func(e httpapi.Event) bool { return e.Type == "VMObserved" || e.Type == "DeviceRenamed" },
		"actor=user:admin":                func(e httpapi.Event) bool { return e.Actor == "user:admin" },
		"actor=device:" + string(devs[1]): func(e httpapi.Event) bool { return e.Actor == "device:"+string(devs[1]) },
		"actor=device:*":                  func(httpapi.Event) bool { return false },
		"actor=user:nobody":               func(httpapi.Event) bool { return false },
		"since=" + middle.Format(time.RFC3339Nano): func(e httpapi.Event) bool { return !e.Time.Before(middle) },
		"until=" + middle.Format(time.RFC3339Nano): func(e httpapi.Event) bool { return e.Time.Before(middle) },
		"after=3":      func(e httpapi.Event) bool { return e.Position > 3 },
		"after=1.2":    func(e httpapi.Event) bool { return e.Position > 1 || strings.HasSuffix(e.Cursor, ".3") },
		"after=100000": func(httpapi.Event) bool { return false },
		"type=HostObserved&after=3&device=" + string(devs[4]): func(e httpapi.Event) bool {
			return e.Type == "HostObserved" && e.Position > 3 && strings.HasSuffix(e.Subject, string(devs[4]))
		},
	} {
		expect := cursorsOf(keep(ok))
		reversed := slices.Clone(expect)
		slices.Reverse(reversed)
		for _, limit := range []int{1, 4, 1000} {
			if diff := cmp.Diff(expect, cursorsOf(m.walk(fmt.Sprintf("limit=%d&order=asc&%s", limit, query)))); diff != "" {
				t.Errorf("%s, limit %d, asc:\n%s", query, limit, diff)
			}
			if diff := cmp.Diff(reversed, cursorsOf(m.walk(fmt.Sprintf("limit=%d&order=desc&%s", limit, query)))); diff != "" {
				t.Errorf("%s, limit %d, desc:\n%s", query, limit, diff)
			}
		}
		if diff := cmp.Diff(expect, cursorsOf(m.export(query))); diff != "" {
			t.Errorf("%s, export:\n%s", query, diff)
		}
		if diff := cmp.Diff(reversed, cursorsOf(m.export("order=desc&"+query))); diff != "" {
			t.Errorf("%s, export desc:\n%s", query, diff)
		}
		if got := m.export("limit=2&" + query); len(got) != min(2, len(expect)) {
			t.Errorf("%s: export with a limit has %d events", query, len(got))
		}
	}
	// What an event looks like.
	e := m.walk("type=VMObserved&limit=1")[0]
	if e.SpecVersion != "1.0" || e.Source != "pallas" || e.Version != 1 || e.Report == nil || e.Report.Epoch != 1 || e.DeviceTime == nil || !strings.HasSuffix(e.Cursor, ".2") || e.Data == nil {
		t.Errorf("event %+v", e)
	}
	seen := map[string]bool{}
	for _, e := range all {
		if seen[e.ID] {
			t.Errorf("two events have id %s", e.ID)
		}
		seen[e.ID] = true
	}
}

// TestEventPagesBounded looks for a rare event in a log too long for one page.
func TestEventPagesBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("fills a log")
	}
	memory := eventstest.NewMemory()
	m := start(t, func(o *options) { o.store = func(events.Store) events.Store { return memory } })
	dev := m.device(given{name: "rare"})
	fill := events.TokenID(events.NewID())
	at := uint64(0)
	for range 21_000 {
		a, err := memory.Append(t.Context(), at, eventstest.Decide(events.TokenSubject(fill), events.JoinTokenRevoked{}))
		must(t, err)
		at = a.Position
	}
	m.device(given{name: "rarer"})
	for _, order := range []string{"asc", "desc"} {
		p, _ := want[eventPage](m, 200, "GET", "/api/v1/events?type=DeviceRetired&order="+order, "")
		if order == "asc" && (len(p.Items) != 0 || p.Next == "") {
			t.Errorf("first page %s: %d events, next %q", order, len(p.Items), p.Next)
		}
		if got := m.walk("type=HostObserved&order=" + order); len(got) != 2 {
			t.Errorf("%s: found %d events", order, len(got))
		}
		if got := m.walk("order=" + order + "&device=" + string(dev)); len(got) != 5 {
			t.Errorf("%s: found %d events of the device", order, len(got))
		}
	}
	if got := m.export("type=JoinTokenRevoked"); len(got) != 21_000 {
		t.Errorf("export has %d events", len(got))
	}
}

// sse reads a stream until n events came, and returns them with their ids.
func (m *manager) sse(ctx context.Context, query, last string, n int, opened func()) (ids []string, list []httpapi.Event) {
	m.t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", m.url+"/api/v1/events/stream?"+query, nil)
	must(m.t, err)
	req.Header.Set("Authorization", "Bearer "+m.token)
	if last != "" {
		req.Header.Set("Last-Event-ID", last)
	}
	resp, err := m.client.Do(req)
	must(m.t, err)
	defer resp.Body.Close()
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		b, _ := io.ReadAll(resp.Body)
		m.t.Fatalf("stream: %d %s", resp.StatusCode, b)
	}
	if opened != nil {
		opened()
	}
	id := ""
	s := bufio.NewScanner(resp.Body)
	s.Buffer(nil, 1<<20)
	for len(list) < n && s.Scan() {
		switch line := s.Text(); {
		case strings.HasPrefix(line, "id: "):
			id = strings.TrimPrefix(line, "id: ")
		case strings.HasPrefix(line, "data: "):
			var e httpapi.Event
			must(m.t, json.Unmarshal([]byte(strings.TrimPrefix(line, "data: ")), &e))
			ids, list = append(ids, id), append(list, e)
		}
	}
	if len(list) < n {
		m.t.Fatalf("the stream ended after %d of %d events: %v", len(list), n, s.Err())
	}
	return ids, list
}

// TestEventStreamResume cuts a stream again and again while events are
// written; put together, the pieces are the log.
func TestEventStreamResume(t *testing.T) {
	m := start(t)
	before := m.last()
	writing := make(chan struct{})
	go func() {
		defer close(writing)
		for i := range 40 {
			m.device(given{name: fmt.Sprintf("shop-%d", i), vms: []events.VM{
				machine("vm-1", "a", events.PowerOn, events.ToolsRunning), machine("vm-2", "b", events.PowerOff, events.ToolsRunning),
			}})
		}
	}()
	const total = 40 * 7 // registered, approved, certificate; connected; host, two machines
	var got []string
	last := fmt.Sprint(before)
	for piece := 1; len(got) < total; piece++ {
		ids, list := m.sse(t.Context(), "", last, min(piece%5+1, total-len(got)), nil)
		got = append(got, cursorsOf(list)...)
		last = ids[len(ids)-1]
	}
	<-writing
	expect, _ := m.history()
	if diff := cmp.Diff(expect, got); diff != "" {
		t.Errorf("the stream is not the log:\n%s", diff)
	}
}

func TestEventStream(t *testing.T) {
	m := start(t, func(o *options) {
		o.queries = func(c *queryhttp.Config) { c.Heartbeat = 5 * time.Millisecond }
	})
	a := m.device(given{name: "old"})
	// From now on, and filtered.
	var b events.DeviceID
	ids, list := m.sse(t.Context(), "type=DeviceRegistered,CertificateIssued", "", 2, func() { b = m.device(given{name: "new"}) })
	if list[0].Type != "DeviceRegistered" || list[1].Type != "CertificateIssued" || !strings.HasSuffix(list[0].Subject, string(b)) {
		t.Errorf("events %v", cursorsOf(list))
	}
	if ids[0] != list[0].Cursor || ids[1] != fmt.Sprint(list[1].Position) {
		t.Errorf("ids %v for %v: want the cursor, then the position", ids, cursorsOf(list))
	}
	// From the beginning, of one device.
	_, list = m.sse(t.Context(), "after=0&device="+string(a), "", 5, nil)
	for _, e := range list {
		if !strings.HasSuffix(e.Subject, string(a)) {
			t.Errorf("event of %s", e.Subject)
		}
	}
	// Last-Event-ID goes before after.
	_, list = m.sse(t.Context(), "after=0", "2", 1, nil)
	if list[0].Position != 3 {
		t.Errorf("position %d, want 3", list[0].Position)
	}
	_, list = m.sse(t.Context(), "since=2020-01-01T00:00:00Z", "", 1, nil)
	if list[0].Position != 1 {
		t.Errorf("position %d, want 1", list[0].Position)
	}
	// A silent stream shows that it lives.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", m.url+"/api/v1/events/stream", nil)
	must(t, err)
	req.Header.Set("Authorization", "Bearer "+m.token)
	resp, err := m.client.Do(req)
	must(t, err)
	defer resp.Body.Close()
	beats := 0
	for s := bufio.NewScanner(resp.Body); beats < 3 && s.Scan(); {
		if s.Text() == ":" {
			beats++
		}
	}
	if beats < 3 {
		t.Errorf("%d heartbeats", beats)
	}
}

// TestEventReadsWhatItWrote follows a change from its answer to its event.
func TestEventReadsWhatItWrote(t *testing.T) {
	m := start(t)
	dev := m.device(given{name: "shop"})
	_, a := want[httpapi.DeviceIdentity](m, 200, "PATCH", "/api/v1/devices/"+string(dev), `{"name":"new"}`)
	e := m.walk("type=DeviceRenamed")[0]
	if fmt.Sprint(e.Position) != a.position(t) || string(e.Data) != `{"name":"new"}` {
		t.Errorf("event %+v, answer at %s", e, a.position(t))
	}
	if r := m.command(commands.ApproveDevice{Device: dev}); r.Changed {
		t.Error("approved twice")
	}
}
