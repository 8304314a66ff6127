package httpapi_test

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/danielgtaylor/huma/v2"

	"pallas/events"
	"pallas/events/eventstest"
	"pallas/internal/auth"
	"pallas/internal/httpapi"
)

func TestHealth(t *testing.T) {
	var down error
	m := start(t, func(o *options) {
		o.httpapi = func(c *httpapi.Config) {
			c.Checks = append(c.Checks, httpapi.DiskCheck(t.TempDir(), 1),
				httpapi.Check{Name: "part", Run: func(context.Context) (string, error) { return "fine", down }})
		}
	})
	m.device(given{name: "shop"})
	m.caughtUp()
	type ready struct {
		Status string
		Checks []struct {
			Name   string
			OK     bool
			Detail string
		}
	}
	want[map[string]string](m, 200, "GET", "/livez", "", "Authorization", "")
	eventually(t, "ready", func() bool { return m.do("GET", "/readyz", "", "Authorization", "").StatusCode == 200 })
	r, _ := want[ready](m, 200, "GET", "/readyz", "", "Authorization", "")
	if r.Status != "ready" || len(r.Checks) != 4 || !r.Checks[0].OK || r.Checks[0].Name != "projection" || !strings.Contains(r.Checks[2].Detail, "MiB free") {
		t.Errorf("ready: %+v", r)
	}
	down = errors.New("part is broken")
	r, _ = want[ready](m, 503, "GET", "/readyz", "", "Authorization", "")
	if r.Status != "not ready" || r.Checks[3].OK || r.Checks[3].Detail != "part is broken" {
		t.Errorf("not ready: %+v", r)
	}
	if detail, err := httpapi.DiskCheck(t.TempDir(), math.MaxUint64).Run(t.Context()); err == nil {
		t.Errorf("an impossible amount of space is there: %s", detail)
	}
	if a := m.do("GET", "/metrics", ""); a.StatusCode != 200 || !strings.Contains(string(a.body), `pallas_http_request_duration_seconds_count{route="GET /readyz",status="503"} 1`) {
		t.Errorf("metrics: %d %s", a.StatusCode, a.body)
	}
}

// TestStoppedProjection breaks the read model's feed: it must show.
func TestStoppedProjection(t *testing.T) {
	memory := eventstest.NewMemory()
	m := start(t, func(o *options) { o.store = func(events.Store) events.Store { return undecodable{memory} } })
	dev := m.device(given{name: "shop"})
	m.caughtUp()
	want[httpapi.DeviceIdentity](m, 200, "PATCH", "/api/v1/devices/"+string(dev), `{"name":"poison"}`)
	eventually(t, "not ready", func() bool { return m.do("GET", "/readyz", "").StatusCode == 503 })
	a := m.do("GET", "/readyz", "")
	if !strings.Contains(string(a.body), "projection") || !strings.Contains(string(a.body), "poison") {
		t.Errorf("readyz: %s", a.body)
	}
	s, _ := want[httpapi.Status](m, 200, "GET", "/api/v1/status", "")
	if !strings.Contains(s.Projection.Error, "poison") || s.Projection.Lag != 1 {
		t.Errorf("status: %+v", s.Projection)
	}
	if d, _ := want[httpapi.Device](m, 200, "GET", "/api/v1/devices/"+string(dev), ""); d.Name != "shop" {
		t.Errorf("reads went on to %q", d.Name)
	}
}

func TestFaults(t *testing.T) {
	memory := eventstest.NewMemory()
	m := start(t, func(o *options) {
		o.store = func(events.Store) events.Store { return memory }
		o.httpapi = func(c *httpapi.Config) {
			c.Register = append(c.Register, func(api huma.API) {
				huma.Register(api, huma.Operation{OperationID: "panic", Method: "GET", Path: "/api/v1/panic", Extensions: httpapi.Needs(auth.Self)}, func(context.Context, *struct{}) (*struct{}, error) { panic("inner secret") })
				huma.Register(api, huma.Operation{OperationID: "fail", Method: "GET", Path: "/api/v1/fail", Extensions: httpapi.Needs(auth.Self)}, func(context.Context, *struct{}) (*struct{}, error) { return nil, errors.New("inner secret") })
			})
		}
	})
	dev := m.device(given{name: "shop"})
	m.caughtUp()
	for _, c := range []struct {
		err    error
		status int
		kind   httpapi.Kind
	}{
		{events.ErrNoSpace, 507, httpapi.KindNoSpace}, {events.ErrUnavailable, 503, httpapi.KindUnavailable}, {errors.New("inner secret"), 500, httpapi.KindInternal},
	} {
		memory.FailAppends(func(events.Decision) error { return c.err })
		a := m.do("PATCH", "/api/v1/devices/"+string(dev), `{"name":"new"}`)
		if p := a.problem(t); a.StatusCode != c.status || p.Type != httpapi.TypePrefix+c.kind.Name || strings.Contains(string(a.body), "inner secret") {
			t.Errorf("%v: status %d: %s", c.err, a.StatusCode, a.body)
		}
		if log := m.logged.String(); !strings.Contains(log, c.err.Error()) {
			t.Errorf("%v is not in the log", c.err)
		}
		want[httpapi.Device](m, 200, "GET", "/api/v1/devices/"+string(dev), "")
	}
	memory.FailAppends(nil)
	for _, path := range []string{"/api/v1/panic", "/api/v1/fail"} {
		a := m.do("GET", path, "")
		p := a.problem(t)
		if a.StatusCode != 500 || p.Type != "urn:pallas:problem:internal" || p.RequestID == "" || strings.Contains(string(a.body), "inner secret") {
			t.Errorf("%s: %d %s", path, a.StatusCode, a.body)
		}
		if !strings.Contains(m.logged.String(), p.RequestID) || !strings.Contains(m.logged.String(), "inner secret") {
			t.Errorf("%s: the log lacks the cause or the id", path)
		}
	}
}

func TestHeaders(t *testing.T) {
	m := start(t)
	for _, path := range []string{"/livez", "/docs", "/api/v1/devices", "/nothing", "/openapi.json"} {
		a := m.do("GET", path, "")
		for name, value := range map[string]string{
			"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin",
		} {
			if got := a.Header.Get(name); got != value {
				t.Errorf("%s: %s is %q, want %q", path, name, got, value)
			}
		}
		if csp := a.Header.Get("Content-Security-Policy"); !strings.HasPrefix(csp, "default-src 'none'") || !strings.Contains(csp, "frame-ancestors 'none'") {
			t.Errorf("%s: policy %q", path, csp)
		}
		if a.Header.Get("Request-Id") == "" {
			t.Errorf("%s: no Request-Id", path)
		}
	}
	if a := m.do("DELETE", "/api/v1/devices", ""); a.Header.Get("Allow") != "GET, HEAD" {
		t.Errorf("Allow %q", a.Header.Get("Allow"))
	}
	if a := m.do("HEAD", "/api/v1/nothing", ""); a.StatusCode != 404 || len(a.body) != 0 {
		t.Errorf("HEAD: %d %q", a.StatusCode, a.body)
	}
}

// TestDocs loads the documentation page as a browser would, without a token.
func TestDocs(t *testing.T) {
	m := start(t)
	a := m.do("GET", "/docs", "", "Authorization", "")
	if a.StatusCode != 200 || !strings.HasPrefix(a.Header.Get("Content-Type"), "text/html") {
		t.Fatalf("docs: %d %s", a.StatusCode, a.body)
	}
	policy := a.Header.Get("Content-Security-Policy")
	for _, directive := range []string{"default-src 'none'", "script-src 'self';", "connect-src 'self';"} {
		if !strings.Contains(policy+";", directive) {
			t.Errorf("policy %q lacks %s", policy, directive)
		}
	}
	if strings.Contains(policy, "http") || strings.Contains(policy, "*") {
		t.Errorf("policy %q lets other hosts in", policy)
	}
	links := regexp.MustCompile(`(?:src|href)="([^"]*)"`).FindAllStringSubmatch(string(a.body), -1)
	if len(links) < 4 {
		t.Fatalf("the page has %d links", len(links))
	}
	for _, l := range links {
		if !strings.HasPrefix(l[1], "/") || strings.HasPrefix(l[1], "//") {
			t.Errorf("the page loads %s", l[1])
			continue
		}
		if b := m.do("GET", l[1], "", "Authorization", ""); b.StatusCode != 200 || len(b.body) == 0 || b.Header.Get("Content-Type") == "" {
			t.Errorf("%s: %d, %d bytes", l[1], b.StatusCode, len(b.body))
		}
	}
	for _, path := range []string{"/docs", "/docs/init.js"} {
		if b := m.do("GET", path, ""); strings.Contains(string(b.body), "://") {
			t.Errorf("%s names another host", path)
		}
	}
	if b := m.do("GET", "/docs/init.js", ""); !strings.Contains(string(b.body), "validatorUrl: null") || !strings.Contains(string(b.body), `"/openapi.json"`) {
		t.Errorf("init.js: %s", b.body)
	}
	for _, path := range []string{"/openapi.json", "/openapi.yaml", "/openapi-3.0.yaml"} {
		b := m.do("GET", path, "", "Authorization", "")
		if b.StatusCode != 200 || !strings.Contains(string(b.body), "set-vm-power") {
			t.Errorf("%s: %d", path, b.StatusCode)
		}
	}
	var doc map[string]any
	must(t, json.Unmarshal(m.do("GET", "/openapi.json", "").body, &doc))
	if doc["openapi"] != "3.1.0" {
		t.Errorf("version %v", doc["openapi"])
	}
	if b := m.do("GET", "/docs/swagger-ui.js.map", ""); b.StatusCode != http.StatusNotFound {
		t.Errorf("a file that nobody needs is served: %d", b.StatusCode)
	}
}
