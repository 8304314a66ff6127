package server_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"pallas/events"
	"pallas/internal/config"
	"pallas/internal/httpapi"
	"pallas/internal/server"
	"pallas/internal/servertest"
)

// Passwords of the tests.
const (
	goodPassword  = "four words nobody expects"
	otherPassword = "another five words for the same door"
)

// browser talks to a manager as one person's browser or program does.
type browser struct {
	t      *testing.T
	m      *servertest.Manager
	http   *http.Client
	token  string
	cookie string
	site   string // the page that makes requests, "" for none
}

func newBrowser(t *testing.T, m *servertest.Manager) *browser {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: m.TLS()}
	t.Cleanup(transport.CloseIdleConnections)
	return &browser{t: t, m: m, http: &http.Client{Transport: transport, Timeout: 30 * time.Second}}
}

// with is the browser with another token and no session.
func (b *browser) with(token string) *browser {
	c := *b
	c.token, c.cookie = token, ""
	return &c
}

func (b *browser) request(method, path string, body any) *http.Request {
	b.t.Helper()
	var r io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			b.t.Fatal(err)
		}
		r = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(b.t.Context(), method, "https://"+b.m.Config.HTTP.Listen+path, r)
	if err != nil {
		b.t.Fatal(err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if b.token != "" {
		req.Header.Set("Authorization", "Bearer "+b.token)
	}
	if b.cookie != "" {
		req.Header.Set("Cookie", b.cookie)
	}
	if b.site != "" {
		req.Header.Set("Origin", b.site)
	}
	return req
}

// reply is the head of an answer whose body was read.
type reply struct {
	Status     string
	StatusCode int
	Header     http.Header
	cookies    []*http.Cookie
}

func (a reply) Cookies() []*http.Cookie { return a.cookies }

// do sends a request and returns the answer's head and body.
func (b *browser) do(method, path string, body any) (reply, []byte) {
	b.t.Helper()
	resp, err := b.http.Do(b.request(method, path, body))
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return reply{resp.Status, resp.StatusCode, resp.Header, resp.Cookies()}, text
}

// want demands a status, and decodes the answer.
func want[T any](b *browser, status int, method, path string, body any) T {
	b.t.Helper()
	resp, text := b.do(method, path, body)
	if resp.StatusCode != status {
		b.t.Fatalf("%s %s: %s, want %d\n%s", method, path, resp.Status, status, text)
	}
	var out T
	if len(text) > 0 {
		if err := json.Unmarshal(text, &out); err != nil {
			b.t.Fatal(err)
		}
	}
	return out
}

// refused demands a problem: its status, and the parts of its text.
func (b *browser) refused(status int, method, path string, body any, says ...string) httpapi.Problem {
	b.t.Helper()
	p := want[httpapi.Problem](b, status, method, path, body)
	text, err := json.Marshal(p)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, s := range says {
		if !strings.Contains(string(text), s) {
			b.t.Errorf("%s %s: the problem does not say %q: %s", method, path, s, text)
		}
	}
	return p
}

type object = map[string]any

// signIn begins a session, and keeps its cookie.
func (b *browser) signIn(login, password string) httpapi.Session {
	b.t.Helper()
	resp, text := b.do("POST", "/api/v1/session", object{"login": login, "password": password})
	if resp.StatusCode != http.StatusOK {
		b.t.Fatalf("sign in: %s\n%s", resp.Status, text)
	}
	cookies := resp.Cookies()
	if len(cookies) != 1 {
		b.t.Fatalf("cookies %v", cookies)
	}
	c := cookies[0]
	if c.Name != "__Host-pallas" || !c.HttpOnly || !c.Secure || c.SameSite != http.SameSiteStrictMode || c.Path != "/" || c.Domain != "" || c.Expires.IsZero() {
		b.t.Errorf("cookie %v", c)
	}
	if resp.Header.Get("Cache-Control") != "no-store" {
		b.t.Errorf("Cache-Control %q", resp.Header.Get("Cache-Control"))
	}
	b.cookie, b.token = c.Name+"="+c.Value, ""
	var s httpapi.Session
	if err := json.Unmarshal(text, &s); err != nil {
		b.t.Fatal(err)
	}
	return s
}

// admin is the first administrator, by token.
func admin(t *testing.T, m *servertest.Manager) *browser { return newBrowser(t, m).with(m.Token) }

// user makes a user with a password.
func (b *browser) user(login string, grants ...object) httpapi.User {
	b.t.Helper()
	u := want[httpapi.User](b, 201, "POST", "/api/v1/users", object{"login": login, "name": "Person " + login, "grants": append([]object{}, grants...)})
	l := want[struct{ Link string }](b, 200, "POST", "/api/v1/users/"+u.ID+"/password-reset", nil)
	want[object](b.with(""), 200, "POST", "/api/v1/password/reset", object{"link": l.Link, "password": goodPassword})
	return u
}

func grantOf(role, selector string) object { return object{"role": role, "selector": selector} }

// TestFirstSignIn is what somebody does who has just run pallasd init.
func TestFirstSignIn(t *testing.T) {
	m := servertest.Start(t)
	b := newBrowser(t, m)
	base, secret, ok := strings.Cut(m.Link, "#")
	if !ok || base != "https://"+m.Config.HTTP.Listen+"/setup" {
		t.Fatalf("link %s", m.Link)
	}
	// The page has nothing inline and loads nothing from elsewhere.
	resp, page := b.do("GET", "/setup", nil)
	policy := resp.Header.Get("Content-Security-Policy")
	if resp.StatusCode != 200 || !strings.Contains(policy, "default-src 'none'") || strings.Contains(policy, "unsafe") || bytes.Contains(page, []byte("<style")) || bytes.Contains(page, []byte("http:")) {
		t.Errorf("page: %s, %s\n%s", resp.Status, policy, page)
	}
	for _, file := range []string{"/setup/setup.js", "/setup/setup.css"} {
		if resp, _ := b.do("GET", file, nil); resp.StatusCode != 200 || !bytes.Contains(page, []byte(`"`+file+`"`)) {
			t.Errorf("%s: %s", file, resp.Status)
		}
	}
	set := func(link, password string) object { return object{"link": link, "password": password} }
	const path = "/api/v1/password/reset"
	// There is no password before, not even an empty one.
	b.refused(401, "POST", "/api/v1/session", object{"login": "admin", "password": "admin"})
	// What is wrong with the password leaves the link as it is.
	for password, says := range map[string]string{"short": "at least 12", "password1234": "easy to guess", "administrator": "easy to guess"} {
		b.refused(422, "POST", path, set(m.Link, password), "body.password", says)
	}
	b.refused(401, "POST", path, set(m.Link+"x", goodPassword), "the link is wrong, was used, or has expired")
	b.refused(401, "POST", path, set("https://elsewhere.example/setup#"+strings.Repeat("a", 90), goodPassword), "the link is wrong")
	if got := want[object](b, 200, "POST", path, set(secret, goodPassword)); got["login"] != "admin" {
		t.Errorf("set: %v", got)
	}
	b.refused(401, "POST", path, set(m.Link, otherPassword), "was used")
	s := b.signIn("ADMIN", goodPassword)
	who := want[httpapi.Whoami](b, 200, "GET", "/api/v1/whoami", nil)
	if who.Login != "admin" || who.Method != "session" || who.Session != s.ID || len(who.Grants) != 1 || who.Grants[0].Role != "admin" || who.Grants[0].Selector != "" || who.Actor != "user:"+who.User {
		t.Errorf("whoami %+v", who)
	}
	want[object](b, 200, "GET", "/api/v1/users", nil)
	// The token of the same administrator says so.
	who = want[httpapi.Whoami](b.with(m.Token), 200, "GET", "/api/v1/whoami", nil)
	if who.Method != "token" || who.Token == nil || who.Token.Role != "admin" || who.Token.Name != "first token" || who.Expires.IsZero() {
		t.Errorf("whoami by token %+v", who)
	}
}

// TestPersonLeaves: what somebody has who is disabled or deleted is dead at the
// next request, and an open stream within a second or so.
func TestPersonLeaves(t *testing.T) {
	m := servertest.Start(t)
	a := admin(t, m)
	for _, how := range []struct{ name, method, path string }{
		{"disabled", "POST", "/disable"},
		{"deleted", "DELETE", ""},
	} {
		t.Run(how.name, func(t *testing.T) {
			u := a.user("leaver-"+how.name, grantOf("operator", ""))
			b := newBrowser(t, m)
			b.signIn("leaver-"+how.name, goodPassword)
			made := want[struct{ Token string }](b, 201, "POST", "/api/v1/tokens", grantOf("viewer", ""))
			tok := b.with(made.Token)
			want[object](b, 200, "GET", "/api/v1/devices", nil)
			want[object](tok, 200, "GET", "/api/v1/devices", nil)
			var streams []io.Reader
			for _, x := range []*browser{b, tok} {
				resp, err := x.http.Do(x.request("GET", "/api/v1/events/stream", nil))
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				if _, err := bufio.NewReader(resp.Body).ReadString('\n'); err != nil || resp.StatusCode != 200 {
					t.Fatalf("stream: %s, %v", resp.Status, err)
				}
				streams = append(streams, resp.Body)
			}
			if resp, text := a.do(how.method, "/api/v1/users/"+u.ID+how.path, nil); resp.StatusCode >= 300 {
				t.Fatalf("%s: %s\n%s", how.name, resp.Status, text)
			}
			gone := time.Now()
			b.refused(401, "GET", "/api/v1/devices", nil)
			tok.refused(401, "GET", "/api/v1/devices", nil)
			b.with("").refused(401, "POST", "/api/v1/session", object{"login": "leaver-" + how.name, "password": goodPassword})
			for _, s := range streams {
				_, err := io.Copy(io.Discard, s)
				if took := time.Since(gone); took > 3*time.Second {
					t.Errorf("the stream ended %v after, %v", took, err)
				}
			}
			if how.name == "deleted" {
				a.refused(404, "GET", "/api/v1/users/"+u.ID, nil)
				return
			}
			// Back again: the token works, the session does not.
			want[httpapi.User](a, 200, "POST", "/api/v1/users/"+u.ID+"/enable", nil)
			want[object](tok, 200, "GET", "/api/v1/devices", nil)
			b.refused(401, "GET", "/api/v1/devices", nil)
		})
	}
}

// TestLastAdminStays tries each way to leave the manager without one.
func TestLastAdminStays(t *testing.T) {
	m := servertest.Start(t)
	a := admin(t, m)
	who := want[httpapi.Whoami](a, 200, "GET", "/api/v1/whoami", nil)
	me := "/api/v1/users/" + who.User
	// Others who are not administrators of everything, or not enabled, do not count.
	other := a.user("other", grantOf("admin", "site=fra"), grantOf("operator", ""))
	third := a.user("third", grantOf("admin", ""))
	want[httpapi.User](a, 200, "POST", "/api/v1/users/"+third.ID+"/disable", object{"reason": "on leave"})
	before := position(t, m)
	for _, c := range []struct {
		method, path string
		body         any
	}{
		{"POST", me + "/disable", nil},
		{"DELETE", me, nil},
		{"DELETE", me + "/grants/" + who.Grants[0].ID, nil},
	} {
		p := a.refused(409, c.method, c.path, c.body, "the last one who may do everything", "admin")
		if p.Code != "last_admin" {
			t.Errorf("%s %s: code %q", c.method, c.path, p.Code)
		}
	}
	if after := position(t, m); after != before {
		t.Errorf("the log went from %d to %d", before, after)
	}
	want[httpapi.Whoami](a, 200, "GET", "/api/v1/whoami", nil)
	// With another one, it goes, and then that one is the last.
	want[httpapi.User](a, 200, "POST", "/api/v1/users/"+other.ID+"/grants", grantOf("admin", ""))
	want[httpapi.User](a, 200, "POST", me+"/disable", nil)
	a.refused(401, "GET", "/api/v1/whoami", nil)
	b := newBrowser(t, m)
	b.signIn("other", goodPassword)
	b.refused(409, "DELETE", "/api/v1/users/"+other.ID, nil, "the last one")
	want[object](b, 200, "POST", me+"/enable", nil)
}

// position is the newest position of the log.
func position(t *testing.T, m *servertest.Manager) uint64 {
	t.Helper()
	r, err := m.API.GetStatusWithResponse(t.Context(), nil)
	if err != nil || r.JSON200 == nil {
		t.Fatalf("status: %v", err)
	}
	return uint64(r.JSON200.Log.Position)
}

// TestBadInputOfPeople sends what a mistaken or hostile client may send. Each is a
// precise problem, and changes nothing.
func TestBadInputOfPeople(t *testing.T) {
	m := servertest.Start(t)
	a := admin(t, m)
	ann := a.user("ann", grantOf("operator", "site in (fra,ber)"), grantOf("viewer", ""))
	b := newBrowser(t, m)
	b.signIn("ann", goodPassword)
	weak := want[struct{ ID, Token string }](b, 201, "POST", "/api/v1/tokens", object{"role": "viewer", "selector": "site=fra", "ttl": 3600})
	w := b.with(weak.Token)
	nobody, path := events.NewID(), "/api/v1/users/"+ann.ID
	want[object](w, 200, "GET", "/api/v1/whoami", nil)
	servertest.Eventually(t, 10*time.Second, func() error { // the first use of a token is an event
		if list := want[struct{ Items []httpapi.APIToken }](b, 200, "GET", "/api/v1/tokens", nil).Items; len(list[0].Networks) == 0 {
			return servertest.ErrNotYet
		}
		return nil
	})
	before := position(t, m)
	for _, c := range []struct {
		name         string
		as           *browser
		method, path string
		body         any
		status       int
		says         []string
	}{
		{"login taken", a, "POST", "/api/v1/users", object{"login": "Ann"}, 409, []string{"login_taken", "body.login"}},
		{"login with a space", a, "POST", "/api/v1/users", object{"login": "a b"}, 422, []string{"body.login", "white space"}},
		{"no login", a, "POST", "/api/v1/users", object{"name": "x"}, 422, []string{"login"}},
		{"unprintable name", a, "POST", "/api/v1/users", object{"login": "x", "name": "a\u0007"}, 422, []string{"body.name", "printed"}},
		{"no e-mail address", a, "POST", "/api/v1/users", object{"login": "x", "email": "nope"}, 422, []string{"body.email", "ann@example.com"}},
		{"unknown field", a, "POST", "/api/v1/users", object{"login": "x", "admin": true}, 422, []string{"body.admin"}},
		{"no such role", a, "POST", "/api/v1/users", object{"login": "x", "grants": []object{grantOf("root", "")}}, 422, []string{"body.grants[0].role", "viewer, operator and admin"}},
		{"bad selector", a, "POST", "/api/v1/users", object{"login": "x", "grants": []object{grantOf("viewer", "site=")}, "name": "", "email": "bad"}, 422, []string{"body.email"}},
		{"bad selector of a grant", a, "POST", path + "/grants", grantOf("viewer", "site in fra"), 422, []string{"body.selector", "position"}},
		{"no such role of a grant", a, "POST", path + "/grants", grantOf("Admin", ""), 422, []string{"body.role", "is no role"}},
		{"grant to nobody", a, "POST", "/api/v1/users/" + nobody + "/grants", grantOf("viewer", ""), 404, []string{nobody}},
		{"revoke no grant", a, "DELETE", path + "/grants/" + nobody, nil, 404, []string{"has no grant"}},
		{"a user id that is none", a, "GET", "/api/v1/users/ann", nil, 404, []string{"path.user", "UUID"}},
		{"no user", a, "GET", "/api/v1/users/" + nobody, nil, 404, []string{"not known"}},
		{"patch of nothing", a, "PATCH", path, object{}, 422, []string{"give login, name or email"}},
		{"patch with null", a, "PATCH", path, object{"name": nil}, 422, []string{"body.name", "string"}},
		{"patch to a taken login", a, "PATCH", path, object{"login": "admin"}, 409, []string{"login_taken"}},
		{"patch of nobody", a, "PATCH", "/api/v1/users/" + nobody, object{"name": "x"}, 404, []string{"not known"}},
		{"link for nobody", a, "POST", "/api/v1/users/" + nobody + "/password-reset", nil, 404, []string{"not known"}},
		{"bad cursor", a, "GET", "/api/v1/users?cursor=x", nil, 422, []string{"query.cursor"}},

		{"token with a higher role", b, "POST", "/api/v1/tokens", grantOf("admin", ""), 422, []string{"body.role", "more than its owner may do"}},
		{"token with a wider scope", b, "POST", "/api/v1/tokens", grantOf("operator", ""), 422, []string{"body.selector", "more than its owner may do"}},
		{"token with no role", b, "POST", "/api/v1/tokens", grantOf("root", ""), 422, []string{"body.role", "is no role"}},
		{"token with a bad selector", b, "POST", "/api/v1/tokens", grantOf("viewer", "a b"), 422, []string{"body.selector", "position"}},
		{"token for two years", b, "POST", "/api/v1/tokens", object{"role": "viewer", "ttl": 2 * 31536000}, 422, []string{"body.ttl"}},
		{"token wider than the token that asks", w, "POST", "/api/v1/tokens", object{"role": "viewer", "ttl": 60}, 422, []string{"body.role", "sign in"}},
		{"token longer than the token that asks", w, "POST", "/api/v1/tokens", object{"role": "viewer", "selector": "site=fra", "ttl": 7200}, 422, []string{"body.ttl", "sign in"}},
		{"revoke no token", b, "DELETE", "/api/v1/tokens/0123456789abcdef", nil, 404, []string{"no API token"}},
		{"revoke another's token", a, "DELETE", "/api/v1/tokens/" + weak.ID, nil, 404, []string{"no API token"}},
		{"end no session", b, "DELETE", "/api/v1/sessions/x", nil, 404, []string{"session"}},

		{"weak password", b, "POST", "/api/v1/password", object{"old": goodPassword, "new": "short"}, 422, []string{"body.new", "at least 12"}},
		{"guessable password", b, "POST", "/api/v1/password", object{"old": goodPassword, "new": "passwordpassword"}, 422, []string{"body.new", "easy to guess"}},
		{"the same password", b, "POST", "/api/v1/password", object{"old": goodPassword, "new": goodPassword}, 422, []string{"body.new", "present password"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.as.t = t
			c.as.refused(c.status, c.method, c.path, c.body, c.says...)
		})
	}
	a.t, b.t = t, t
	if after := position(t, m); after != before {
		t.Errorf("the log went from %d to %d", before, after)
	}
	if r := a.request("POST", path+"/grants", grantOf("admin", "")); true {
		r.Header.Set("If-Match", `"1"`)
		resp, err := a.http.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		if resp.Body.Close(); resp.StatusCode != http.StatusPreconditionFailed {
			t.Errorf("a stale revision: %s", resp.Status)
		}
	}
	// A wrong old password is recorded, and changes nothing.
	b.refused(422, "POST", "/api/v1/password", object{"old": otherPassword, "new": "yet another good password"}, "body.old", "not the present password")
	newBrowser(t, m).signIn("ann", goodPassword)
	if list := want[struct{ Items []httpapi.User }](a, 200, "GET", "/api/v1/users?login=ANN", nil).Items; len(list) != 1 || len(list[0].Grants) != 2 || list[0].Name != "Person ann" {
		t.Errorf("ann is now %+v", list)
	}
}

// TestUsers is the life of a user by the API.
func TestUsers(t *testing.T) {
	m := servertest.Start(t)
	a := admin(t, m)
	ann := a.user("ann", grantOf("viewer", "site=fra"))
	resp, text := a.do("GET", "/api/v1/users/"+ann.ID, nil)
	var u httpapi.User
	if err := json.Unmarshal(text, &u); err != nil || !u.Password || u.State != "active" || u.Grants[0].Selector != "site=fra" || resp.Header.Get("ETag") == "" {
		t.Fatalf("%s, %v", text, err)
	}
	u = want[httpapi.User](a, 200, "PATCH", "/api/v1/users/"+ann.ID, object{"login": "annabel", "email": "ann@example.com", "name": ""})
	if u.Login != "annabel" || u.Email != "ann@example.com" || u.Name != "" {
		t.Errorf("changed to %+v", u)
	}
	for range 2 { // the same grant twice is one
		u = want[httpapi.User](a, 200, "POST", "/api/v1/users/"+ann.ID+"/grants", grantOf("operator", "site = fra"))
	}
	if len(u.Grants) != 2 || u.Grants[1].Selector != "site=fra" || !strings.HasPrefix(u.Grants[1].By, "user:") {
		t.Errorf("grants %+v", u.Grants)
	}
	u = want[httpapi.User](a, 200, "DELETE", "/api/v1/users/"+ann.ID+"/grants/"+u.Grants[0].ID, nil)
	if len(u.Grants) != 1 || u.Grants[0].Role != "operator" {
		t.Errorf("grants %+v", u.Grants)
	}
	for range 2 {
		u = want[httpapi.User](a, 200, "POST", "/api/v1/users/"+ann.ID+"/disable", object{"reason": "on leave"})
	}
	if u.State != "disabled" || u.Reason != "on leave" || u.DisabledAt.IsZero() {
		t.Errorf("disabled %+v", u)
	}
	// Pages.
	for i := range 5 {
		want[httpapi.User](a, 201, "POST", "/api/v1/users", object{"login": fmt.Sprintf("user-%d", i)})
	}
	var logins []string
	cursor := ""
	for {
		p := want[struct {
			Items []httpapi.User
			Next  string
		}](a, 200, "GET", "/api/v1/users?limit=2"+cursor, nil)
		for _, u := range p.Items {
			logins = append(logins, u.Login)
		}
		if p.Next == "" {
			break
		}
		cursor = "&cursor=" + p.Next
	}
	if got := strings.Join(logins, " "); got != "admin annabel user-0 user-1 user-2 user-3 user-4" {
		t.Errorf("users %s", got)
	}
	roles := want[struct{ Items []httpapi.Role }](a, 200, "GET", "/api/v1/roles", nil).Items
	if len(roles) != 3 || roles[0].Role != "viewer" || len(roles[2].Permissions) == 0 {
		t.Errorf("roles %+v", roles)
	}
}

// TestSessions begins, lists and ends sessions, and lets them grow old.
func TestSessions(t *testing.T) {
	now := time.Now()
	m := servertest.New(t, func(c *server.Config) {
		c.HTTP.SessionIdle, c.HTTP.SessionLife = config.Duration(time.Hour), config.Duration(3*time.Hour)
	})
	var offset time.Duration
	var mu sync.Mutex
	m.Clock = func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return now.Add(offset + time.Since(now))
	}
	forward := func(d time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		offset += d
	}
	m.Run()
	a := admin(t, m)
	ann := a.user("ann", grantOf("viewer", ""))
	first, second := newBrowser(t, m), newBrowser(t, m)
	s1 := first.signIn("ann", goodPassword)
	forward(2 * time.Second)
	s2 := second.signIn("ann", goodPassword)
	list := want[struct{ Items []httpapi.Session }](first, 200, "GET", "/api/v1/sessions", nil).Items
	if len(list) != 2 || list[0].ID != s1.ID || !list[0].Current || list[1].ID != s2.ID || list[1].Current || list[0].Method != "password" || list[0].Source != "127.0.0.1" {
		t.Errorf("sessions %+v", list)
	}
	// End another one of one's own; end the one that asks; all of a user.
	want[object](first, 204, "DELETE", "/api/v1/sessions/"+s2.ID, nil)
	second.refused(401, "GET", "/api/v1/whoami", nil)
	resp, _ := first.do("DELETE", "/api/v1/session", nil)
	if c := resp.Cookies(); resp.StatusCode != 204 || len(c) != 1 || c[0].MaxAge != -1 || c[0].Value != "" {
		t.Errorf("sign out: %s, %v", resp.Status, c)
	}
	first.refused(401, "GET", "/api/v1/whoami", nil)
	first.signIn("ann", goodPassword)
	second.signIn("ann", goodPassword)
	if n := len(want[struct{ Items []httpapi.Session }](a, 200, "GET", "/api/v1/users/"+ann.ID+"/sessions", nil).Items); n != 2 {
		t.Errorf("%d sessions", n)
	}
	want[object](a, 204, "DELETE", "/api/v1/users/"+ann.ID+"/sessions", nil)
	first.refused(401, "GET", "/api/v1/whoami", nil)
	second.refused(401, "GET", "/api/v1/whoami", nil)

	// A session that is used lives on, one that is not ends.
	first.signIn("ann", goodPassword)
	second.signIn("ann", goodPassword)
	for range 2 {
		forward(50 * time.Minute)
		want[object](first, 200, "GET", "/api/v1/whoami", nil)
	}
	second.refused(401, "GET", "/api/v1/whoami", nil)
	// It ends at its end all the same; so it is after a restart.
	forward(50 * time.Minute)
	want[object](first, 200, "GET", "/api/v1/whoami", nil)
	m.Stop()
	m.Run()
	want[object](first, 200, "GET", "/api/v1/whoami", nil)
	forward(40 * time.Minute)
	first.refused(401, "GET", "/api/v1/whoami", nil)

	// A new password ends the others' sessions.
	first.signIn("ann", goodPassword)
	second.signIn("ann", goodPassword)
	want[object](first, 204, "POST", "/api/v1/password", object{"old": goodPassword, "new": otherPassword})
	want[object](first, 200, "GET", "/api/v1/whoami", nil)
	second.refused(401, "GET", "/api/v1/whoami", nil)
	second.refused(401, "POST", "/api/v1/session", object{"login": "ann", "password": goodPassword})
	second.signIn("ann", otherPassword)
}

// TestOtherSites: a page of another site can make a browser send a cookie. It
// gets nothing done.
func TestOtherSites(t *testing.T) {
	m := servertest.Start(t)
	a := admin(t, m)
	ann := a.user("ann", grantOf("admin", ""))
	b := newBrowser(t, m)
	b.signIn("ann", goodPassword)
	own := "https://" + m.Config.HTTP.Listen
	for _, site := range []string{"https://evil.example", "null", "http://" + m.Config.HTTP.Listen + ".evil.example"} {
		b.site = site
		p := b.refused(403, "POST", "/api/v1/users", object{"login": "mallory", "grants": []object{grantOf("admin", "")}}, "another site")
		if p.Code != "cross_origin" {
			t.Errorf("code %q", p.Code)
		}
		b.refused(403, "DELETE", "/api/v1/users/"+ann.ID, nil)
		c := b.with("")
		c.refused(403, "POST", "/api/v1/session", object{"login": "ann", "password": goodPassword}) // nor sign somebody in
		want[object](b, 200, "GET", "/api/v1/whoami", nil)                                          // whose answer the page cannot read
	}
	b.site = own
	want[object](b, 200, "PATCH", "/api/v1/users/"+ann.ID, object{"name": "Ann"})
	// A token is never sent by itself, so its requests pass.
	c := a.with(m.Token)
	c.site = "https://tool.example"
	want[object](c, 200, "PATCH", "/api/v1/users/"+ann.ID, object{"name": "Annabel"})
	// With both, the token counts, not the cookie.
	r := b.request("GET", "/api/v1/whoami", nil)
	r.Header.Set("Authorization", "Bearer wrong")
	resp, err := b.http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	if resp.Body.Close(); resp.StatusCode != 401 {
		t.Errorf("a wrong token beside a session: %s", resp.Status)
	}
}

// TestGuessing: wrong passwords cost time, for whoever guesses and nobody else.
func TestGuessing(t *testing.T) {
	m := servertest.Start(t)
	a := admin(t, m)
	a.user("ann")
	b := newBrowser(t, m)
	for i := range 4 {
		p := b.refused(401, "POST", "/api/v1/session", object{"login": "ann", "password": "wrong " + strconv.Itoa(i)})
		q := b.refused(401, "POST", "/api/v1/session", object{"login": "nobody", "password": "wrong " + strconv.Itoa(i)})
		if p.Detail != q.Detail || p.RequestID != "" {
			t.Errorf("%+v and %+v tell whether there is such a login", p, q)
		}
	}
	resp, _ := b.do("POST", "/api/v1/session", object{"login": "ann", "password": goodPassword})
	if after := resp.Header.Get("Retry-After"); resp.StatusCode != 429 || after == "" {
		t.Errorf("one too many: %s, Retry-After %q", resp.Status, after)
	}
	// Another login from the same source is not held up, and sessions and tokens
	// go on.
	a.user("bob")
	newBrowser(t, m).signIn("bob", goodPassword)
	want[object](a, 200, "GET", "/api/v1/whoami", nil)
	// It is over soon.
	servertest.Eventually(t, 10*time.Second, func() error {
		if resp, _ := b.do("POST", "/api/v1/session", object{"login": "ann", "password": goodPassword}); resp.StatusCode != 200 {
			return errors.New(resp.Status)
		}
		return nil
	})
	// Failures are events, those that were not checked are none, and none says what
	// was typed.
	var failed []string
	for _, r := range records(t, m) {
		for _, en := range r.Entries {
			if e, ok := en.Event.(events.SignInFailed); ok {
				failed = append(failed, e.Reason)
				if r.Source != "127.0.0.1" {
					t.Errorf("source %q", r.Source)
				}
			}
		}
	}
	slices.Sort(failed)
	if got := strings.Join(slices.Compact(failed), ", "); got != "unknown login, wrong password" {
		t.Errorf("failures %s", got)
	}
}

// records stops the manager and returns its log.
func records(t *testing.T, m *servertest.Manager) []events.Record {
	t.Helper()
	m.Stop()
	store, done := m.OpenLog()
	defer done()
	return servertest.Records(t, store)
}

// TestTokens: what a token permits follows its owner.
func TestTokens(t *testing.T) {
	m := servertest.Start(t)
	a := admin(t, m)
	ann := a.user("ann", grantOf("admin", ""))
	made := want[httpapi.APIToken](a, 201, "POST", "/api/v1/users/"+ann.ID+"/tokens", object{"role": "operator", "name": "script"})
	if d := time.Until(made.Expires); d < 89*24*time.Hour || d > 90*24*time.Hour {
		t.Errorf("expires in %v", d)
	}
	b := newBrowser(t, m)
	b.signIn("ann", goodPassword)
	own := want[struct{ ID, Token string }](b, 201, "POST", "/api/v1/tokens", object{"role": "viewer", "name": "mine"})
	tok := b.with(own.Token)
	who := want[httpapi.Whoami](tok, 200, "GET", "/api/v1/whoami", nil)
	if who.Token == nil || who.Token.ID != own.ID || who.Token.Role != "viewer" || who.Login != "ann" {
		t.Errorf("whoami %+v", who)
	}
	servertest.Eventually(t, 10*time.Second, func() error {
		list := want[struct{ Items []httpapi.APIToken }](b, 200, "GET", "/api/v1/tokens", nil).Items
		if len(list) != 2 || list[0].Name != "mine" || list[1].Name != "script" {
			t.Fatalf("tokens %+v", list)
		}
		if list[0].UsedAt.IsZero() || list[0].UsedFrom != "127.0.0.1" || !slices.Equal(list[0].Networks, []string{"127.0.0.1/32"}) {
			return fmt.Errorf("the use is not noted: %+v", list[0])
		}
		return nil
	})
	want[object](b, 204, "DELETE", "/api/v1/tokens/"+own.ID, nil)
	tok.refused(401, "GET", "/api/v1/whoami", nil)
	want[object](a, 204, "DELETE", "/api/v1/users/"+ann.ID+"/tokens/"+made.ID, nil)
	if list := want[struct{ Items []httpapi.APIToken }](b, 200, "GET", "/api/v1/tokens", nil).Items; len(list) != 0 {
		t.Errorf("tokens %+v", list)
	}
}

// TestForgetting: of somebody who was deleted, only an id is left.
func TestForgetting(t *testing.T) {
	m := servertest.New(t, func(c *server.Config) { c.Log.Level = "debug" })
	m.Spawn()
	a := admin(t, m)
	const login, name, email = "annabel-exemplaria", "Annabel of Exemplaria", "annabel@exemplaria.example"
	u := want[httpapi.User](a, 201, "POST", "/api/v1/users", object{"login": login, "name": name, "email": email, "grants": []object{grantOf("operator", "")}})
	l := want[struct{ Link string }](a, 200, "POST", "/api/v1/users/"+u.ID+"/password-reset", nil)
	b := newBrowser(t, m)
	want[object](b, 200, "POST", "/api/v1/password/reset", object{"link": l.Link, "password": goodPassword})
	b.signIn(login, goodPassword)
	want[object](b, 201, "POST", "/api/v1/tokens", object{"role": "viewer", "name": "laptop of " + name})
	b.refused(401, "POST", "/api/v1/session", object{"login": login, "password": "wrong"})
	want[object](a, 204, "DELETE", "/api/v1/users/"+u.ID, nil)
	want[object](a, 201, "POST", "/api/v1/users", object{"login": login[:7]}) // the bucket goes on
	m.Stop()
	found := 0
	err := filepath.WalkDir(filepath.Dir(m.Config.DataDir), func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		for _, s := range []string{login, name, email, "$argon2id$"} {
			if bytes.Contains(text, []byte(s)) {
				t.Errorf("%q is in %s", s, path)
			}
		}
		if bytes.Contains(text, []byte(u.ID)) {
			found++
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if found == 0 {
		t.Error("the log has not even the id")
	}
}

// TestResetPassword makes links on the manager's own machine.
func TestResetPassword(t *testing.T) {
	m := servertest.New(t)
	reset := func(login string) (server.First, error) {
		return server.ResetPassword(t.Context(), m.Config, slog.New(slog.DiscardHandler), login)
	}
	for _, running := range []bool{false, true} {
		if running {
			m.Run()
		}
		if _, err := reset("nobody"); err == nil || !strings.Contains(err.Error(), "administrators are: admin") {
			t.Errorf("running %v, an unknown login: %v", running, err)
		}
		first, err := reset("Admin")
		if err != nil || first.Login != "admin" || first.Token != "" || !strings.Contains(first.Link, "/setup#plr_") {
			t.Fatalf("running %v: %+v, %v", running, first, err)
		}
		if !running {
			m.Run()
		}
		b := newBrowser(t, m)
		b.refused(401, "POST", "/api/v1/password/reset", object{"link": m.Link, "password": goodPassword}) // void
		want[object](b, 200, "POST", "/api/v1/password/reset", object{"link": first.Link, "password": goodPassword})
		b.signIn("admin", goodPassword)
		if !running {
			m.Stop()
		}
	}
	info, err := os.Stat(filepath.Join(m.Config.DataDir, "local.sock"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the local socket: %v, %v", info, err)
	}
}

// BenchmarkAuthenticate is what a request pays to be known, with 1,000 scoped
// users in the log: whoami less what answering costs is not told apart, so
// compare the two.
func BenchmarkAuthenticate(b *testing.B) {
	m := servertest.Start(b, func(c *server.Config) { c.HTTP.Rate = 0 })
	transport := &http.Transport{TLSClientConfig: m.TLS()}
	defer transport.CloseIdleConnections()
	c := &http.Client{Transport: transport}
	call := func(method, path, token, body string) []byte {
		b.Helper()
		req, err := http.NewRequestWithContext(b.Context(), method, "https://"+m.Config.HTTP.Listen+path, strings.NewReader(body))
		if err != nil {
			b.Fatal(err)
		}
		if body != "" {
			req.Header.Set("Content-Type", "application/json")
		}
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := c.Do(req)
		if err != nil {
			b.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode >= 300 {
			b.Fatalf("%s %s: %s, %v\n%s", method, path, resp.Status, err, text)
		}
		return text
	}
	var tokens []string
	for i := range 1000 {
		var u httpapi.User
		if err := json.Unmarshal(call("POST", "/api/v1/users", m.Token, fmt.Sprintf(`{"login":"user-%d","grants":[{"role":"operator","selector":"site=s%d"}]}`, i, i)), &u); err != nil {
			b.Fatal(err)
		}
		if i%100 == 0 {
			var made struct{ Token string }
			if err := json.Unmarshal(call("POST", "/api/v1/users/"+u.ID+"/tokens", m.Token, fmt.Sprintf(`{"role":"viewer","selector":"site=s%d"}`, i)), &made); err != nil {
				b.Fatal(err)
			}
			tokens = append(tokens, made.Token)
		}
	}
	b.Run("authenticated", func(b *testing.B) {
		i := 0
		for b.Loop() {
			call("GET", "/api/v1/roles", tokens[i%len(tokens)], "")
			i++
		}
	})
	b.Run("public", func(b *testing.B) {
		for b.Loop() {
			call("GET", "/livez", "", "")
		}
	})
}
