package httpapi_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"

	"pallas/commands"
	"pallas/events"
	"pallas/internal/auth"
	"pallas/internal/httpapi"
)

// matrixBodies are the bodies of operations that need more than their required
// fields to reach what they are about: things of the site fra.
var matrixBodies = map[string]string{
	"create-join-token": `{"labels":{"site":"fra"}}`,
	"update-device":     `{"name":"matrix"}`,
}

// caller is somebody with a credential.
type caller struct {
	name  string
	token string // "" for none
	// rights are what the grants say; refused says that the credential is worth
	// nothing.
	rights  auth.Rights
	refused bool
}

// outcome is what the edge does with a request.
type outcome string

const (
	through      outcome = "through"      // the operation answers, whatever it says
	unauthorized outcome = "unauthorized" // 401
	denied       outcome = "denied"       // 403, for want of a permission
	outside      outcome = "outside"      // as if it were not there, or may not be made there
)

// TestMatrix has every caller ask for every operation of the API. What is
// expected follows from the rules and the operation's permission alone.
func TestMatrix(t *testing.T) {
	m := start(t, func(o *options) {
		people(o)
		o.httpapi = func(c *httpapi.Config) { c.Limits.FailureBurst = 10_000 } // all come from one address
	})
	callers := m.callers()
	shared := m.site("fra")
	n := 0
	for path, item := range description.Paths {
		for method, op := range map[string]*huma.Operation{"GET": item.Get, "POST": item.Post, "PUT": item.Put, "PATCH": item.Patch, "DELETE": item.Delete} {
			if op == nil || op.OperationID == "enroll-device" { // not of this API's fixture
				continue
			}
			for _, c := range callers {
				n++
				about := shared
				if method != http.MethodGet { // may be gone after it
					about = m.site("fra")
				}
				got := m.outcome(c, method, concrete(path, about), matrixBody(t, op))
				if public(op) && got.status < 500 {
					continue // what it answers is not for the edge to say
				}
				if want := c.expect(op, path); got.outcome != want {
					t.Errorf("%s as %s: %s (%d %s), want %s", op.OperationID, c.name, got.outcome, got.status, got.body, want)
				}
			}
		}
	}
	for _, c := range callers { // beside the operations
		n++
		want := through
		switch {
		case c.refused:
			want = unauthorized
		case c.rights.Scope(auth.ReadManager).Nothing():
			want = denied
		}
		if got := m.outcome(c, "GET", "/metrics", ""); got.outcome != want {
			t.Errorf("metrics as %s: %s (%d), want %s", c.name, got.outcome, got.status, want)
		}
	}
	t.Logf("%d cases", n)
	if n < 200 {
		t.Errorf("%d cases: want several hundred", n)
	}
}

// expect says what the rules say of an operation on things of the site fra.
func (c caller) expect(op *huma.Operation, path string) outcome {
	if c.refused {
		return unauthorized
	}
	scope := c.rights.Scope(httpapi.PermissionOf(op))
	switch {
	case scope.Nothing():
		return denied
	case ofSite(op, path) && !scope.Match(map[string]string{"site": "fra"}):
		return outside
	}
	return through
}

func public(op *huma.Operation) bool { return op.Security != nil && len(op.Security) == 0 }

// ofSite says whether an operation is about one thing of a site.
func ofSite(op *huma.Operation, path string) bool {
	return strings.Contains(path, "{device}") || strings.Contains(path, "{task}") || strings.HasSuffix(path, "/join-tokens/{token}") ||
		op.OperationID == "create-join-token"
}

var pathParameter = regexp.MustCompile(`\{[a-z]+\}`)

// concrete fills the parameters of a path with things of a site, and with what is
// not there.
func concrete(path string, s site) string {
	token := uuid.NewString()
	if strings.Contains(path, "/join-tokens/") {
		token = s.token
	}
	return pathParameter.ReplaceAllStringFunc(path, func(p string) string {
		if v := map[string]string{"{device}": s.device, "{vm}": "vm-1", "{task}": s.task, "{token}": token}[p]; v != "" {
			return v
		}
		return uuid.NewString()
	})
}

// matrixBody makes a body of the examples of an operation's required fields.
func matrixBody(t *testing.T, op *huma.Operation) string {
	t.Helper()
	if body, ok := matrixBodies[op.OperationID]; ok || op.RequestBody == nil {
		return body
	}
	s := op.RequestBody.Content["application/json"].Schema
	if name, ok := strings.CutPrefix(s.Ref, "#/components/schemas/"); ok {
		s = description.Components.Schemas.Map()[name]
	}
	body := map[string]any{}
	for name, p := range s.Properties {
		if slices.Contains(s.Required, name) && len(p.Examples) > 0 {
			body[name] = p.Examples[0]
		}
	}
	b, err := json.Marshal(body)
	must(t, err)
	return string(b)
}

type observed struct {
	outcome outcome
	status  int
	body    string
}

// outcome sends a request, and reads as much of the answer as it takes to see
// what was done with it.
func (m *manager) outcome(c caller, method, path, body string) observed {
	m.t.Helper()
	ctx, cancel := context.WithCancel(m.t.Context()) // streams do not end
	defer cancel()
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, m.url+path, r)
	must(m.t, err)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := m.client.Do(req)
	must(m.t, err)
	defer resp.Body.Close()
	o := observed{outcome: through, status: resp.StatusCode}
	if o.status < 400 {
		return o
	}
	b, err := io.ReadAll(resp.Body)
	must(m.t, err)
	o.body = string(b)
	var p httpapi.Problem
	must(m.t, json.Unmarshal(b, &p))
	switch {
	case o.status == 401:
		o.outcome = unauthorized
	case o.status == 403 && p.Code == commands.CodeOutOfScope, o.status == 404 && strings.Contains(path, "vm-1"), o.status == 404 && aboutSite(path):
		o.outcome = outside
	case o.status == 403:
		o.outcome = denied
	case o.status >= 500:
		o.outcome = outcome(fmt.Sprintf("broken: %d", o.status))
	}
	return o
}

func aboutSite(path string) bool {
	return strings.Contains(path, "/devices/") || strings.Contains(path, "/tasks/") || strings.Contains(path, "/join-tokens/")
}

// person is a user with a token, both in the log and in the store.
type person struct {
	id      events.UserID
	token   string
	tokenID events.APITokenID
}

// person makes a user with grants, and a token that permits all that they do
// unless within says less.
func (m *manager) person(login string, grants ...auth.Grant) person {
	m.t.Helper()
	p := person{id: events.UserID(events.NewID())}
	must(m.t, m.people.Add(m.t.Context(), auth.Person{ID: p.id, Login: login}))
	c := commands.CreateUser{User: p.id}
	for _, g := range grants {
		c.Grants = append(c.Grants, commands.NewGrant{Grant: events.GrantID(events.NewID()), Role: events.Role(g.Role), Selector: g.Selector.String()})
	}
	m.command(c)
	p.tokenID, p.token = m.issue(p.id, auth.Grant{}, time.Now())
	return p
}

// issue makes a token at some time, for an hour.
func (m *manager) issue(user events.UserID, g auth.Grant, at time.Time) (events.APITokenID, string) {
	m.t.Helper()
	id, token := auth.NewAPIToken()
	must(m.t, m.people.AddToken(m.t.Context(), user, "", token, at.Add(time.Hour)))
	_, err := m.commands.Do(m.t.Context(), commands.IssueAPIToken{
		User: user, Token: id, Role: events.Role(g.Role), Selector: g.Selector.String(), Expires: at.Add(time.Hour),
	}, commands.Meta{Actor: "system:test", Time: at})
	must(m.t, err)
	return id, token
}

// callers are everybody who may ask.
func (m *manager) callers() []caller {
	m.t.Helper()
	admin := auth.Grant{Role: auth.RoleAdmin}
	list := []caller{
		{name: "nobody", refused: true},
		{name: "garbage", token: "pls_garbage", refused: true},
		{name: "another's secret", token: m.token[:len(m.token)-8] + "00000000", refused: true},
	}
	for _, c := range []struct {
		name   string
		grants []auth.Grant
	}{
		{"signed in without a grant", nil},
		{"viewer", []auth.Grant{{Role: auth.RoleViewer}}},
		{"viewer in scope", []auth.Grant{selects(auth.RoleViewer, "site=fra")}},
		{"viewer out of scope", []auth.Grant{selects(auth.RoleViewer, "site=muc")}},
		{"operator", []auth.Grant{{Role: auth.RoleOperator}}},
		{"operator in scope", []auth.Grant{selects(auth.RoleOperator, "site in (fra,ber)")}},
		{"operator out of scope", []auth.Grant{selects(auth.RoleOperator, "site!=fra")}},
		{"operator there, viewer here", []auth.Grant{selects(auth.RoleOperator, "site=muc"), selects(auth.RoleViewer, "site=fra")}},
		{"admin", []auth.Grant{admin}},
		{"admin in scope", []auth.Grant{selects(auth.RoleAdmin, "site=fra")}},
		{"admin out of scope", []auth.Grant{selects(auth.RoleAdmin, "site=muc")}},
	} {
		p := m.person(strings.ReplaceAll(c.name, " ", "-"), c.grants...)
		list = append(list, caller{name: c.name, token: p.token, rights: auth.RightsOf(c.grants...)})
	}
	owner := m.person("owner", admin)
	narrow := selects(auth.RoleOperator, "site=fra")
	_, token := m.issue(owner.id, narrow, time.Now())
	list = append(list, caller{name: "an admin's token for less", token: token, rights: auth.RightsOf(admin).Within(auth.RightsOf(narrow))})
	_, expired := m.issue(owner.id, auth.Grant{}, time.Now().Add(-2*time.Hour))
	revokedID, revoked := m.issue(owner.id, auth.Grant{}, time.Now())
	m.command(commands.RevokeAPIToken{User: owner.id, Token: revokedID})
	disabled, deleted := m.person("disabled", admin), m.person("deleted", admin)
	m.command(commands.DisableUser{User: disabled.id})
	m.command(commands.DeleteUser{User: deleted.id})
	poor := m.person("poor", admin)
	for _, g := range m.access().Users[poor.id].Grants {
		m.command(commands.RevokeRole{User: poor.id, Grant: g.ID})
	}
	return append(list,
		caller{name: "expired token", token: expired, refused: true},
		caller{name: "revoked token", token: revoked, refused: true},
		caller{name: "disabled user", token: disabled.token, refused: true},
		caller{name: "deleted user", token: deleted.token, refused: true},
		caller{name: "an admin no more", token: poor.token, rights: auth.RightsOf()},
	)
}

func (m *manager) access() commands.Access {
	m.t.Helper()
	a, err := m.commands.Access(m.t.Context())
	must(m.t, err)
	return a
}
