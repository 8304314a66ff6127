package server_test

import (
	"encoding/json"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/oauth2-proxy/mockoidc"

	"pallas/events"
	"pallas/internal/config"
	"pallas/internal/httpapi"
	"pallas/internal/server"
	"pallas/internal/servertest"
)

// idp is an OpenID Connect provider that can be down.
type idp struct {
	t    *testing.T
	addr string
	*mockoidc.MockOIDC
}

// newIDP takes an address for a provider that does not run.
func newIDP(t *testing.T) *idp {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p, err := mockoidc.NewServer(nil)
	if err != nil {
		t.Fatal(err)
	}
	p.ClientID, p.ClientSecret = "pallas", "the client's secret"
	return &idp{t, l.Addr().String(), p}
}

func (p *idp) run() {
	p.t.Helper()
	l, err := net.Listen("tcp", p.addr)
	if err != nil {
		p.t.Fatal(err)
	}
	if err := p.Start(l, nil); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { p.Server.Close() })
}

// setting has a manager trust the provider.
func (p *idp) setting(grants ...server.OIDCGrant) func(*server.Config) {
	file := filepath.Join(p.t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(p.ClientSecret+"\n"), 0o600); err != nil {
		p.t.Fatal(err)
	}
	return func(c *server.Config) {
		c.OIDC.Issuer, c.OIDC.ClientID, c.OIDC.ClientSecretFile = "http://"+p.addr+mockoidc.IssuerBase, p.ClientID, file
		c.OIDC.Scopes = append(c.OIDC.Scopes, "groups")
		c.OIDC.Grants = grants
	}
}

const oidcPath = "/api/v1/session/oidc"

// oidcBrowser is a browser that stops at each redirect.
func oidcBrowser(t *testing.T, m *servertest.Manager) *browser {
	b := newBrowser(t, m)
	b.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return b
}

// leave begins a sign-in, and returns where the browser is sent. The cookie is
// the browser's.
func (b *browser) leave() *url.URL {
	b.t.Helper()
	resp, text := b.do("GET", oidcPath, nil)
	if resp.StatusCode != http.StatusFound || len(resp.Cookies()) != 1 {
		b.t.Fatalf("begin: %s, %v\n%s", resp.Status, resp.Cookies(), text)
	}
	c := resp.Cookies()[0]
	if c.Name != "__Host-pallas-oidc" || !c.HttpOnly || !c.Secure || c.SameSite != http.SameSiteLaxMode || c.Path != "/" || c.Domain != "" || c.MaxAge != 600 {
		b.t.Errorf("cookie %v", c)
	}
	b.cookie = c.Name + "=" + c.Value
	to, err := url.Parse(resp.Header.Get("Location"))
	if err != nil {
		b.t.Fatal(err)
	}
	q := to.Query()
	if q.Get("code_challenge_method") != "S256" || len(q.Get("code_challenge")) != 43 || q.Get("state") == "" || q.Get("nonce") == "" || strings.Contains(to.String(), c.Value) {
		b.t.Errorf("sent to %s", to)
	}
	return to
}

// visit signs in at the provider, and returns where it sends the browser back to.
func (p *idp) visit(b *browser, to *url.URL, user *mockoidc.MockUser) *url.URL {
	b.t.Helper()
	p.QueueUser(user)
	req, err := http.NewRequestWithContext(b.t.Context(), http.MethodGet, to.String(), nil)
	if err != nil {
		b.t.Fatal(err)
	}
	resp, err := b.http.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	back, err := url.Parse(resp.Header.Get("Location"))
	if err != nil || resp.StatusCode != http.StatusFound || back.Path != oidcPath+"/callback" || back.Host != b.m.Config.HTTP.Listen {
		b.t.Fatalf("the provider: %s, %v, %v", resp.Status, back, err)
	}
	return back
}

// come signs a user in, and keeps the session.
func (p *idp) come(b *browser, user *mockoidc.MockUser) httpapi.Whoami {
	b.t.Helper()
	back := p.visit(b, b.leave(), user)
	resp, text := b.do("GET", back.RequestURI()+"&session_state=4711", nil)
	if resp.StatusCode != http.StatusOK || len(resp.Cookies()) != 2 || resp.Header.Get("Cache-Control") != "no-store" {
		b.t.Fatalf("come back: %s, %v\n%s", resp.Status, resp.Cookies(), text)
	}
	c := resp.Cookies()[0]
	if c.Name != "__Host-pallas" || !c.HttpOnly || !c.Secure || c.SameSite != http.SameSiteStrictMode {
		b.t.Errorf("cookie %v", c)
	}
	if over := resp.Cookies()[1]; over.Name != "__Host-pallas-oidc" || over.MaxAge != -1 {
		b.t.Errorf("cookie %v", over)
	}
	var s httpapi.Session
	if err := json.Unmarshal(text, &s); err != nil || s.Method != "oidc" {
		b.t.Errorf("session %+v, %v", s, err)
	}
	b.cookie = c.Name + "=" + c.Value
	return want[httpapi.Whoami](b, 200, "GET", "/api/v1/whoami", nil)
}

func rolesOf(grants []httpapi.Grant) string {
	var out []string
	for _, g := range grants {
		out = append(out, g.Role+"["+g.Selector+"]")
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// TestOIDC is the journey of people who come by a provider.
func TestOIDC(t *testing.T) {
	p := newIDP(t)
	m := servertest.Start(t, p.setting(
		server.OIDCGrant{Claim: "groups", Value: "fra", Role: "operator", Selector: "site = fra"},
		server.OIDCGrant{Claim: "groups", Value: "ops", Role: "operator", Selector: "site=fra"},
		server.OIDCGrant{Claim: "groups", Value: "staff", Role: "viewer"},
		server.OIDCGrant{Claim: "email", Value: "root@example.com", Role: "admin"},
	))
	a := admin(t, m)
	// The manager has started without the provider, and local users get in.
	a.user("local", grantOf("viewer", ""))
	b := oidcBrowser(t, m)
	b.refused(503, "GET", oidcPath, nil, "does not answer", "login and password")
	newBrowser(t, m).signIn("local", goodPassword)
	p.run()

	ann := func(groups ...string) *mockoidc.MockUser {
		return &mockoidc.MockUser{Subject: "4711", PreferredUsername: "ann", Email: "ann@example.com", EmailVerified: true, Groups: groups}
	}
	who := p.come(b, ann("fra", "ops", "chess"))
	if who.Login != "ann" || rolesOf(who.Grants) != "operator[site=fra]" || who.Grants[0].By != "system:oidc" {
		t.Fatalf("whoami %+v", who)
	}
	want[object](b, 200, "GET", "/api/v1/devices", nil)
	b.refused(403, "GET", "/api/v1/users", nil)
	u := want[httpapi.User](a, 200, "GET", "/api/v1/users/"+who.User, nil)
	if u.Email != "ann@example.com" || u.Password {
		t.Errorf("user %+v", u)
	}

	// The claims are others at the second sign-in; what was given by hand stays.
	want[httpapi.User](a, 200, "POST", "/api/v1/users/"+who.User+"/grants", grantOf("operator", "site=ber"))
	first := *b
	again := p.come(b, ann("staff"))
	if again.User != who.User || rolesOf(again.Grants) != "operator[site=ber] viewer[]" {
		t.Errorf("second sign-in: %+v", again)
	}
	if now := want[httpapi.Whoami](&first, 200, "GET", "/api/v1/whoami", nil); rolesOf(now.Grants) != rolesOf(again.Grants) {
		t.Errorf("the first session has %s", rolesOf(now.Grants))
	}
	if third := p.come(b, ann()); rolesOf(third.Grants) != "operator[site=ber]" {
		t.Errorf("third sign-in: %+v", third)
	}

	// An address that nobody verified gives nothing, and one that was does.
	back := func(user *mockoidc.MockUser) string {
		b.t.Helper()
		return p.visit(b, b.leave(), user).RequestURI()
	}
	root := &mockoidc.MockUser{Subject: "0", PreferredUsername: "root", Email: "root@example.com"}
	b.refused(403, "GET", back(root), nil, "no_role")
	root.EmailVerified = true
	if who := p.come(b, root); rolesOf(who.Grants) != "admin[]" {
		t.Errorf("root: %+v", who)
	}
	// The last administrator stays one, and is not let in as what the claims say.
	all := want[struct{ Items []httpapi.User }](a, 200, "GET", "/api/v1/users?login=admin", nil).Items
	want[object](b, 204, "DELETE", "/api/v1/users/"+all[0].ID, nil)
	rootSession := *b
	root.EmailVerified = false
	b.refused(409, "GET", back(root), nil, "last_admin")
	a = &rootSession
	if who := want[httpapi.Whoami](a, 200, "GET", "/api/v1/whoami", nil); rolesOf(who.Grants) != "admin[]" {
		t.Errorf("root: %+v", who)
	}

	// A user who is deleted is forgotten by the provider's name too, and comes anew.
	want[object](a, 204, "DELETE", "/api/v1/users/"+who.User, nil)
	if anew := p.come(b, ann("staff")); anew.User == who.User || rolesOf(anew.Grants) != "viewer[]" {
		t.Errorf("after the deletion: %+v", anew)
	}
	// Without a mapping a user who has no other grant is out, and has nothing left.
	b.refused(403, "GET", back(ann()), nil, "no_role")

	var got []string
	for _, r := range records(t, m) {
		for _, en := range r.Entries {
			switch e := en.Event.(type) {
			case events.SignedIn:
				got = append(got, "in:"+string(e.Method))
			case events.SignInFailed:
				got = append(got, "failed:"+string(e.Method)+":"+e.Reason)
			case events.RoleGranted:
				if r.Actor == "system:oidc" {
					got = append(got, "granted:"+string(e.Role)+"["+e.Selector+"]")
				}
			case events.RoleRevoked:
				got = append(got, "revoked:"+string(r.Actor))
			default:
			}
		}
	}
	wanted := []string{
		"in:password", "granted:operator[site=fra]", "in:oidc", "revoked:system:oidc", "granted:viewer[]", "in:oidc", "revoked:system:oidc", "in:oidc",
		"failed:oidc:no claim gives a role", "granted:admin[]", "in:oidc", "failed:oidc:the grants cannot follow the claims",
		"granted:viewer[]", "in:oidc", "revoked:system:oidc", "failed:oidc:no claim gives a role",
	}
	if !slices.Equal(got, wanted) {
		t.Errorf("events %q\nwant   %q", got, wanted)
	}
}

// TestOIDCRefused has people come who must not get in. Nothing is changed by any
// of them.
func TestOIDCRefused(t *testing.T) {
	p := newIDP(t)
	p.run()
	m := servertest.New(t, p.setting(server.OIDCGrant{Claim: "groups", Value: "staff", Role: "viewer"}))
	m.Run()
	a := admin(t, m)
	a.user("bob", grantOf("viewer", "site=fra"))
	staff := &mockoidc.MockUser{Subject: "1", PreferredUsername: "carol", Groups: []string{"staff"}}
	disabled := &mockoidc.MockUser{Subject: "2", PreferredUsername: "dave", Groups: []string{"staff"}}
	dave := p.come(oidcBrowser(t, m), disabled).User
	want[object](a, 200, "POST", "/api/v1/users/"+dave+"/disable", nil)
	disabled.Groups = nil // would lose the grant
	before := want[object](a, 200, "GET", "/api/v1/users", nil)["items"]

	other := oidcBrowser(t, m)
	code := p.visit(other, other.leave(), staff).Query().Get("code")
	for _, tc := range []struct {
		name   string
		user   *mockoidc.MockUser
		to     func(url.Values) // changes what goes to the provider
		back   func(*browser, url.Values)
		status int
		says   string
	}{
		{name: "wrong state", back: func(_ *browser, q url.Values) { q.Set("state", "x"+q.Get("state")[1:]) }, status: 401, says: "begin again"},
		{name: "no state", back: func(_ *browser, q url.Values) { q.Del("state") }, status: 401, says: "begin again"},
		{name: "wrong nonce", to: func(q url.Values) { q.Set("nonce", "another") }, status: 401, says: "not valid for this sign-in"},
		{name: "no nonce", to: func(q url.Values) { q.Del("nonce") }, status: 401, says: "not valid for this sign-in"},
		{name: "no cookie", back: func(b *browser, _ url.Values) { b.cookie = "" }, status: 401, says: "not begun in this browser"},
		{name: "another browser's cookie", back: func(b *browser, _ url.Values) { b.cookie = "__Host-pallas-oidc=AAAA" }, status: 401, says: "not begun in this browser"},
		{name: "another browser's code", back: func(_ *browser, q url.Values) { q.Set("code", code) }, status: 401, says: "not valid for this sign-in"},
		{name: "a code that nobody got", back: func(_ *browser, q url.Values) { q.Set("code", "guess") }, status: 401, says: "not valid for this sign-in"},
		{name: "no code", back: func(_ *browser, q url.Values) { q.Del("code") }, status: 401, says: "signed nobody in"},
		{name: "refused by the provider", back: func(_ *browser, q url.Values) { q.Set("error", "access_denied") }, status: 401, says: "(access_denied)"},
		{name: "another provider", back: func(_ *browser, q url.Values) { q.Set("iss", "https://evil.example") }, status: 401, says: "begin again"},
		{name: "disabled", user: disabled, status: 403, says: "the user is disabled"},
		{name: "no mapping", user: &mockoidc.MockUser{Subject: "3", PreferredUsername: "eve", Groups: []string{"guests"}}, status: 403, says: "no_role"},
		{name: "no login", user: &mockoidc.MockUser{Subject: "4", PreferredUsername: "two words", Groups: []string{"staff"}}, status: 403, says: "is no login"},
		{name: "a local user's login", user: &mockoidc.MockUser{Subject: "5", PreferredUsername: "BOB", Groups: []string{"staff"}}, status: 409, says: "login_taken"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := oidcBrowser(t, m)
			to := b.leave()
			if tc.to != nil {
				q := to.Query()
				tc.to(q)
				to.RawQuery = q.Encode()
			}
			user := tc.user
			if user == nil {
				user = staff
			}
			q := p.visit(b, to, user).Query()
			if tc.back != nil {
				tc.back(b, q)
			}
			resp, text := b.do("GET", oidcPath+"/callback?"+q.Encode(), nil)
			if resp.StatusCode != tc.status || !strings.Contains(string(text), tc.says) || len(resp.Cookies()) != 0 {
				t.Errorf("%s, %v, want %d, %q\n%s", resp.Status, resp.Cookies(), tc.status, tc.says, text)
			}
			if after := want[object](a, 200, "GET", "/api/v1/users", nil)["items"]; !equalJSON(before, after) {
				t.Errorf("users %v, before %v", after, before)
			}
			if tc.name == "disabled" { // whatever came of it, it is over
				b.refused(401, "GET", oidcPath+"/callback?"+q.Encode(), nil, "is over")
			}
		})
	}
	t.Run("replay", func(t *testing.T) {
		b := oidcBrowser(t, m)
		back := p.visit(b, b.leave(), staff).RequestURI()
		want[object](b, 200, "GET", back, nil)
		b.refused(401, "GET", back, nil, "is over")
	})
	t.Run("the provider goes away", func(t *testing.T) {
		b := oidcBrowser(t, m)
		back := p.visit(b, b.leave(), staff).RequestURI()
		p.Server.Close()
		b.refused(503, "GET", back, nil, "does not answer")
	})
	t.Run("a flood of answers", func(t *testing.T) {
		b := oidcBrowser(t, m)
		begun := b.leave()
		flood := newBrowser(t, m)
		for range 30 {
			if resp, _ := flood.do("GET", oidcPath+"/callback?code=a&state=b", nil); resp.StatusCode == 429 {
				if resp.Header.Get("Retry-After") == "" {
					t.Error("no Retry-After")
				}
				// Who has begun goes on: the provider is away, and that is what is said.
				b.refused(503, "GET", oidcPath+"/callback?code=a&state="+begun.Query().Get("state"), nil, "does not answer")
				return
			}
		}
		t.Error("the flood is not held up")
	})
	failed := map[string]int{}
	for _, r := range records(t, m) {
		for _, en := range r.Entries {
			if e, ok := en.Event.(events.SignInFailed); ok && e.Method == events.MethodOIDC {
				failed[e.Reason]++
				of := events.UserSubject(events.Nobody)
				if e.Reason == "disabled" {
					of = events.UserSubject(events.UserID(dave))
				}
				if r.Subject != of {
					t.Errorf("failure %q of %s", e.Reason, r.Subject)
				}
			}
		}
	}
	for reason, n := range map[string]int{
		"disabled": 1, "no claim gives a role": 1, "no claim gives a login": 1, "another user has the login": 1,
		"the provider signed nobody in": 2, "the provider's answer is not valid": 4, "the provider does not answer": 2,
	} {
		if failed[reason] != n {
			t.Errorf("%d failures are events that say %q, want %d", failed[reason], reason, n)
		}
	}
}

func equalJSON(a, b any) bool {
	x, _ := json.Marshal(a)
	y, _ := json.Marshal(b)
	return string(x) == string(y)
}

// TestWithoutOIDC: a manager without a provider says so.
func TestWithoutOIDC(t *testing.T) {
	m := servertest.Start(t)
	b := newBrowser(t, m)
	b.refused(404, "GET", oidcPath, nil, "no OpenID Connect provider")
	b.refused(404, "GET", oidcPath+"/callback?code=a&state=b", nil, "no OpenID Connect provider")
}

// TestOIDCSettings demands precise words for what cannot be.
func TestOIDCSettings(t *testing.T) {
	good := func(c *server.OIDCConfig) {
		c.Issuer, c.ClientID = "https://login.example.com/realms/x", "pallas"
		c.Grants = []server.OIDCGrant{{Claim: "groups", Value: "ops", Role: "operator", Selector: "site=fra"}}
	}
	for _, tc := range []struct {
		change func(*server.OIDCConfig)
		says   string
	}{
		{func(*server.OIDCConfig) {}, ""},
		{func(c *server.OIDCConfig) { c.Issuer = "http://127.0.0.1:8080" }, ""},
		{func(c *server.OIDCConfig) { c.Issuer = "" }, "oidc.issuer: is missing"},
		{func(c *server.OIDCConfig) { c.Issuer = "http://login.example.com" }, `oidc.issuer: "http://login.example.com" is not of the form https://`},
		{func(c *server.OIDCConfig) { c.Issuer = "https://login.example.com?x=y" }, "oidc.issuer"},
		{func(c *server.OIDCConfig) { c.ClientID = "" }, "oidc.client_id: is missing"},
		{func(c *server.OIDCConfig) { c.Scopes = []string{"email"} }, "oidc.scopes"},
		{func(c *server.OIDCConfig) { c.Scopes = []string{"openid", "a b"} }, "oidc.scopes"},
		{func(c *server.OIDCConfig) { c.LoginClaim = "" }, "oidc.login_claim: is empty"},
		{func(c *server.OIDCConfig) { c.Grants = nil }, "oidc.grants: has 0 entries"},
		{func(c *server.OIDCConfig) { c.Grants[0].Claim = "" }, "oidc.grants[0].claim: is missing"},
		{func(c *server.OIDCConfig) { c.Grants[0].Value = "" }, "oidc.grants[0].value: is missing"},
		{func(c *server.OIDCConfig) { c.Grants[0].Role = "root" }, `oidc.grants[0].role: "root" is no role`},
		{func(c *server.OIDCConfig) { c.Grants[0].Selector = "site=" + "=" }, "oidc.grants[0].selector"},
	} {
		c := server.Defaults()
		c.DataDir = "data"
		good(&c.OIDC)
		tc.change(&c.OIDC)
		err := c.Validate()
		switch {
		case tc.says == "" && err != nil:
			t.Errorf("%v, want nothing", err)
		case tc.says != "" && (err == nil || !strings.HasPrefix(err.Error(), tc.says)):
			t.Errorf("%v, want %q", err, tc.says)
		}
	}
	// The secret's file is read at the start.
	m := servertest.New(t, func(c *server.Config) { good(&c.OIDC); c.OIDC.ClientSecretFile = filepath.Join(t.TempDir(), "none") })
	// What init writes down means the same.
	written := server.Defaults()
	if err := config.Load(filepath.Join(m.Config.DataDir, server.ConfigFile), &written); err != nil || !reflect.DeepEqual(written.OIDC, m.Config.OIDC) {
		t.Errorf("written %+v, %v", written.OIDC, err)
	}
	s, err := server.New(m.Config, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "oidc.client_secret_file: open ") {
		t.Errorf("a missing secret: %v", err)
	}
}
