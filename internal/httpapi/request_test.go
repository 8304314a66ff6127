package httpapi_test

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"pallas/events"
	"pallas/internal/httpapi"
)

func TestUnauthorized(t *testing.T) {
	m := start(t)
	wrong := m.token[:len(m.token)-1] + "x"
	headers := map[string][]string{
		"missing": {"Authorization", ""}, "wrong": {"Authorization", "Bearer " + wrong}, "noise": {"Authorization", "Bearer x"},
		"basic": {"Authorization", "Basic YTpi"}, "no scheme": {"Authorization", m.token}, "empty": {"Authorization", "Bearer "},
		"long": {"Authorization", "Bearer " + strings.Repeat("a", 8<<10)},
	}
	before := m.last()
	var first []byte
	for name, h := range headers {
		for _, target := range []struct{ method, path, body string }{
			{"GET", "/api/v1/devices", ""},
			{"GET", "/api/v1/devices/nope?x=1", ""},
			{"POST", "/api/v1/join-tokens", `{"bad`},
			{"GET", "/api/v1/events/stream", ""},
			{"GET", "/metrics", ""},
		} {
			a := m.do(target.method, target.path, target.body, h...)
			if a.StatusCode != http.StatusUnauthorized {
				t.Fatalf("%s: %s %s: status %d", name, target.method, target.path, a.StatusCode)
			}
			if first == nil {
				first = a.body
			}
			if !bytes.Equal(a.body, first) {
				t.Errorf("%s: %s %s: body %s, want %s", name, target.method, target.path, a.body, first)
			}
			if got := a.Header.Get("WWW-Authenticate"); got != `Bearer realm="pallas"` {
				t.Errorf("%s: WWW-Authenticate %q", name, got)
			}
			if a.Header.Get("Request-Id") == "" {
				t.Errorf("%s: no Request-Id", name)
			}
		}
	}
	if p := (answer{&http.Response{Header: http.Header{"Content-Type": {"application/problem+json"}}}, first}).problem(t); p.Type != "urn:pallas:problem:unauthorized" || p.Detail == "" {
		t.Errorf("problem %+v", p)
	}
	if after := m.last(); after != before {
		t.Errorf("the log went from %d to %d", before, after)
	}
	if _, a := want[httpapi.Status](m, 200, "GET", "/api/v1/status", "", "Authorization", "bearer "+m.token); a.StatusCode != 200 {
		t.Error("the scheme's case matters")
	}
}

// failing answers every token in the same way.
type failing struct {
	err   error
	calls *[]string
}

func (f failing) Authenticate(_ context.Context, c httpapi.Credential) (httpapi.Principal, error) {
	*f.calls = append(*f.calls, c.Token)
	return httpapi.Principal{}, f.err
}

// TestAuthenticatorAlwaysAsked says that a missing token costs the same look-up
// as a wrong one, and that a store that is down is no refusal.
func TestAuthenticatorAlwaysAsked(t *testing.T) {
	for _, c := range []struct {
		err    error
		status int
	}{{httpapi.ErrUnauthorized, 401}, {events.ErrUnavailable, 503}, {errors.New("secret detail"), 500}} {
		var calls []string
		m := start(t, func(o *options) {
			o.httpapi = func(c2 *httpapi.Config) { c2.Auth = failing{c.err, &calls} }
		})
		for _, h := range []string{"", "Bearer pls_x"} {
			a := m.do("GET", "/api/v1/whoami", "", "Authorization", h)
			if a.StatusCode != c.status {
				t.Errorf("%v: status %d, want %d", c.err, a.StatusCode, c.status)
			}
			if strings.Contains(string(a.body), "secret detail") {
				t.Errorf("%s shows the inner error", a.body)
			}
		}
		if diff := cmp.Diff([]string{"", "pls_x"}, calls); diff != "" {
			t.Error(diff)
		}
	}
}

func TestProvenance(t *testing.T) {
	m := start(t)
	dev := m.device(given{name: "shop"})
	const trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	for _, c := range []struct{ header, want string }{
		{trace, trace},
		{"", ""},
		{"rubbish", ""},
		{trace + "-more", ""},
		{strings.ToUpper(trace), ""},
		{"00-00000000000000000000000000000000-00f067aa0ba902b7-01", ""},
		{"00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", ""},
	} {
		_, a := want[httpapi.DeviceIdentity](m, 200, "PATCH", "/api/v1/devices/"+string(dev), `{"name":"n`+events.NewID()+`"}`,
			"Traceparent", c.header, "X-Forwarded-For", "198.51.100.1", "Forwarded", "for=198.51.100.1")
		page, _ := want[eventPage](m, 200, "GET", "/api/v1/events?order=desc&limit=1&type=DeviceRenamed", "", "Pallas-Position", "")
		e := page.Items[0]
		if e.Traceparent != c.want || e.Address != "127.0.0.1" || e.Actor != "user:admin" {
			t.Errorf("traceparent %q: event has traceparent %q, address %q, actor %q", c.header, e.Traceparent, e.Address, e.Actor)
		}
		if got := a.position(t); got == "0" {
			t.Error("position 0")
		}
	}
}

// TestLogSecrets looks for tokens in the log of a session that used them.
func TestLogSecrets(t *testing.T) {
	m := start(t)
	tok, _ := want[map[string]any](m, 201, "POST", "/api/v1/join-tokens", `{"name":"x"}`)
	m.do("GET", "/api/v1/devices?q=looking-for-this", "")
	m.do("GET", "/api/v1/devices", "", "Authorization", "Bearer pls_thisIsWrongButSecret")
	log := m.logged.String()
	for _, secret := range []string{m.token, tok["token"].(string), tok["join"].(string), "pls_", "thisIsWrong", "looking-for-this"} {
		if strings.Contains(log, secret) {
			t.Errorf("the log has %q", secret)
		}
	}
	for _, word := range []string{`"route":"POST /api/v1/join-tokens"`, `"status":201`, `"actor":"user:admin"`, `"request_id"`, `"status":401`} {
		if !strings.Contains(log, word) {
			t.Errorf("the log lacks %s:\n%s", word, log)
		}
	}
}
