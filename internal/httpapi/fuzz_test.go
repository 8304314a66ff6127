package httpapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"pallas/events"
	"pallas/internal/httpapi"
)

// timed is a recorder that has deadlines, as a connection has.
type timed struct{ *httptest.ResponseRecorder }

func (timed) SetReadDeadline(time.Time) error  { return nil }
func (timed) SetWriteDeadline(time.Time) error { return nil }

var fieldName = regexp.MustCompile(`^(body|query|path|header)($|[.\[])`)

// FuzzRequest sends anything to the API with a valid token. Whatever is asked,
// the manager answers with a status that the description has; what is wrong
// with the request is a problem of the client's that names the field.
func FuzzRequest(f *testing.F) {
	m := start(f)
	dev := m.device(given{name: "shop", labels: map[string]string{"site": "fra"}, vms: []events.VM{machine("vm-1", "pos", events.PowerOff, events.ToolsRunning)}})
	m.caughtUp()
	device, nobody := httpapi.Prefix+"/devices/"+string(dev), uuid.NewString()
	for _, s := range []struct{ method, path, query, match, key, event, body string }{
		{"GET", "/api/v1/devices", "limit=2&sort=name&trust=approved&selector=site%3Dfra", "", "", "", ""},
		{"GET", "/api/v1/devices", "q=shop&cursor=WyJkZXZpY2UtaWQiLCJ4Il0", `"1"`, "", "", ""},
		{"GET", device, "", `"1.abc"`, "", "", ""},
		{"PATCH", device, "", `"1"`, "", "", `{"name":"shop-2","labels":{"site":null,"role":"pos"}}`},
		{"POST", device + "/approve", "", `*`, "k", "", ""},
		{"POST", device + "/retire", "", `"99"`, "", "", `{"reason":"gone"}`},
		{"GET", "/api/v1/vms", "device=" + string(dev) + "&power=on,off", "", "", "", ""},
		{"POST", "/api/v1/vms/" + string(dev) + "/vm-1/power", "", "", "key-1", "", `{"action":"on","timeout":60}`},
		{"POST", "/api/v1/vms/" + string(dev) + "/vm-1/power", "", "", "key-2", "", `{"action":"off","deadline":"2031-01-01T00:00:00Z"}`},
		{"GET", "/api/v1/tasks", "open=true&status=requested", "", "", "", ""},
		{"POST", "/api/v1/tasks/" + nobody + "/cancel", "", "", "", "", ""},
		{"GET", "/api/v1/events", "since=2026-11-23T00:00:00Z&until=2027-01-01T00:00:00.5%2B01:00&order=desc&type=VMObserved", "", "", "", ""},
		{"GET", "/api/v1/events", "actor=user:admin&after=1.1&limit=3&cursor=asc.1.1", "", "", "", ""},
		{"GET", "/api/v1/events/stream", "after=0", "", "", "1.1", ""},
		{"POST", "/api/v1/join-tokens", "", "", "key-3", "", `{"name":"x","maxUses":3,"approve":"auto","labels":{"a":"b"},"expires":"2031-01-01T00:00:00Z"}`},
		{"GET", "/api/v1/join-tokens", "usable=true", "", "", "", ""},
		{"GET", "/api/v1/status", "", "", "", "", ""},
		{"DELETE", "/api/v1/none/%2f/..", "a=1&a=2&b=%zz", "", "", "", "\x00"},
	} {
		f.Add(s.method, s.path, s.query, s.match, s.key, s.event, []byte(s.body))
	}
	f.Fuzz(func(t *testing.T, method, path, query, match, key, event string, body []byte) {
		target, err := url.ParseRequestURI(path)
		if err != nil || len(body) > 2*httpapi.BodyLimit {
			return // the server in front does not let it through, or it only takes time
		}
		target.RawQuery, target.Host = query, "manager.example"
		ctx := t.Context()
		stream := strings.HasSuffix(target.Path, "/stream")
		if stream { // it ends when the client goes
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, 20*time.Millisecond)
			defer cancel()
		}
		r, err := http.NewRequestWithContext(ctx, method, target.String(), bytes.NewReader(body))
		if err != nil {
			return
		}
		r.RemoteAddr = "192.0.2.1:1234"
		r.Header.Set("Authorization", "Bearer "+m.token)
		for name, value := range map[string]string{"If-Match": match, "If-None-Match": match, "Idempotency-Key": key, "Last-Event-ID": event} {
			if value != "" {
				r.Header.Set(name, value)
			}
		}
		if len(body) > 0 {
			r.Header.Set("Content-Type", "application/json")
		}
		m.logged.mu.Lock()
		m.logged.b.Reset()
		m.logged.mu.Unlock()
		w := timed{httptest.NewRecorder()}
		m.handler.ServeHTTP(w, r)
		answer := w.Result()
		documented(t, r, answer)
		if answer.StatusCode < 400 || (stream && answer.StatusCode == http.StatusServiceUnavailable) || method == http.MethodHead {
			return
		}
		var p httpapi.Problem
		if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || answer.StatusCode >= 500 || p.Status != answer.StatusCode || !strings.HasPrefix(p.Type, httpapi.TypePrefix) {
			t.Fatalf("%s %s: status %d, %v: %s\n%s", method, target, answer.StatusCode, err, w.Body, m.logged)
		}
		if p.Status == http.StatusUnprocessableEntity && len(p.Errors) == 0 {
			t.Fatalf("%s %s: no field in %s", method, target, w.Body)
		}
		for _, e := range p.Errors {
			if !fieldName.MatchString(e.Field) || e.Message == "" {
				t.Fatalf("%s %s: field %q in %s", method, target, e.Field, w.Body)
			}
		}
	})
}
