package httpapi_test

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"pallas/events/labels"
	"pallas/internal/auth"
	"pallas/internal/httpapi"
)

// TestNoPermission wants an API that lets everybody in by mistake not to start.
func TestNoPermission(t *testing.T) {
	noop := func(context.Context, *struct{}) (*struct{}, error) { return nil, nil }
	public := []map[string][]string{}
	for name, c := range map[string]struct {
		op  huma.Operation
		say string // "" when it is well
	}{
		"none":               {huma.Operation{}, "Needs"},
		"unknown":            {huma.Operation{Extensions: httpapi.Needs("fleet:explode")}, "fleet:explode"},
		"public with one":    {huma.Operation{Extensions: httpapi.Needs(auth.ReadFleet), Security: public}, "public"},
		"public":             {huma.Operation{Security: public}, ""},
		"with a permission":  {huma.Operation{Extensions: httpapi.Needs(auth.ReadFleet)}, ""},
		"what everybody may": {huma.Operation{Extensions: httpapi.Needs(auth.Self)}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c.op.OperationID, c.op.Method, c.op.Path = "an-operation", "GET", "/api/v1/operation"
			defer func() {
				said, _ := recover().(string)
				if (said == "") != (c.say == "") || !strings.Contains(said, c.say) {
					t.Errorf("panics with %q, want %q", said, c.say)
				}
				if said != "" && !strings.Contains(said, "an-operation") {
					t.Errorf("%q does not name the operation", said)
				}
			}()
			_, err := httpapi.New(httpapi.Config{Auth: failing{}, Log: slog.New(slog.DiscardHandler), Register: []httpapi.Register{
				func(api huma.API) { huma.Register(api, c.op, noop) },
			}})
			must(t, err)
		})
	}
}

// TestDenied wants a refusal that says what is missing, and one report of it a
// minute.
func TestDenied(t *testing.T) {
	type report struct {
		user, operation string
		need            auth.Permission
	}
	var mu sync.Mutex
	var reports []report
	now := time.Now()
	m := start(t, func(o *options) {
		o.httpapi = func(c *httpapi.Config) {
			c.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
			c.Denied = func(_ context.Context, p httpapi.Principal, operation string, need auth.Permission) {
				mu.Lock()
				defer mu.Unlock()
				reports = append(reports, report{string(p.User), operation, need})
			}
		}
	})
	viewer := m.as(m.grant("vera", auth.Grant{Role: auth.RoleViewer}))
	scoped := m.as(m.grant("sam", selects(auth.RoleAdmin, "site=fra")))
	nobody := m.as(m.grant("nora"))
	before := m.last()
	for _, c := range []struct {
		as                 *manager
		method, path, body string
		operation          string
		need               auth.Permission
		say                []string
	}{
		{viewer, "POST", "/api/v1/join-tokens", `{}`, "create-join-token", auth.ManageJoining, []string{"operator"}},
		{viewer, "POST", "/api/v1/join-tokens", `{"bad`, "create-join-token", auth.ManageJoining, nil},
		{viewer, "GET", "/api/v1/join-tokens", "", "list-join-tokens", auth.ManageJoining, nil},
		{viewer, "POST", "/api/v1/devices/nope/retire", "", "retire-device", auth.RetireDevices, []string{"admin"}},
		{scoped, "GET", "/metrics", "", "metrics", auth.ReadManager, []string{"viewer", "all devices"}},
		{nobody, "GET", "/api/v1/devices", "", "list-devices", auth.ReadFleet, []string{"viewer"}},
	} {
		a := c.as.do(c.method, c.path, c.body)
		if a.StatusCode != 403 {
			t.Fatalf("%s %s: status %d, want 403: %s", c.method, c.path, a.StatusCode, a.body)
		}
		p := a.problem(t)
		if p.Type != "urn:pallas:problem:denied" || p.RequestID == "" {
			t.Errorf("%s %s: %+v", c.method, c.path, p)
		}
		for _, word := range append(c.say, string(c.need)) {
			if !strings.Contains(p.Detail, word) {
				t.Errorf("%s %s: %q does not say %q", c.method, c.path, p.Detail, word)
			}
		}
	}
	if a := nobody.do("GET", "/api/v1/roles", ""); a.StatusCode != 200 {
		t.Errorf("roles: status %d", a.StatusCode)
	}
	if after := m.last(); after != before {
		t.Errorf("the log went from %d to %d", before, after)
	}
	want := []report{
		{"vera", "create-join-token", auth.ManageJoining},
		{"vera", "list-join-tokens", auth.ManageJoining},
		{"vera", "retire-device", auth.RetireDevices},
		{"sam", "metrics", auth.ReadManager},
		{"nora", "list-devices", auth.ReadFleet},
	}
	if !slices.Equal(reports, want) {
		t.Errorf("told %v, want %v", reports, want)
	}
	mu.Lock()
	now = now.Add(time.Minute)
	mu.Unlock()
	nobody.do("GET", "/api/v1/devices", "")
	if len(reports) != len(want)+1 {
		t.Errorf("a minute later told %v", reports[len(want):])
	}
}

// TestScope wants the devices of a caller's grants with the request.
func TestScope(t *testing.T) {
	var got labels.Scope
	m := start(t, func(o *options) {
		o.httpapi = func(c *httpapi.Config) {
			c.Register = append(c.Register, func(api huma.API) {
				huma.Register(api, huma.Operation{OperationID: "look", Method: "GET", Path: "/api/v1/look", Extensions: httpapi.Needs(auth.OperateVMs)},
					func(ctx context.Context, _ *struct{}) (*struct{}, error) {
						got = httpapi.RequestOf(ctx).Scope
						return nil, nil
					})
			})
		}
	})
	for token, want := range map[string]string{
		m.token: "everything",
		m.grant("ann", selects(auth.RoleOperator, "site=fra"), selects(auth.RoleAdmin, "site=muc"), selects(auth.RoleViewer, "site=ber")): "site=fra or site=muc",
	} {
		if a := m.do("GET", "/api/v1/look", "", "Authorization", "Bearer "+token); a.StatusCode != 204 || got.String() != want {
			t.Errorf("status %d, scope %s, want %s", a.StatusCode, got, want)
		}
	}
}
