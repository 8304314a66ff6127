package accesshttp

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/mail"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/danielgtaylor/huma/v2"
	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/oauth2"
	"golang.org/x/sync/singleflight"

	"pallas/commands"
	"pallas/events"
	"pallas/events/labels"
	"pallas/internal/auth"
	"pallas/internal/httpapi"
)

// OIDC is the OpenID Connect provider by which people may sign in, and what its
// claims are worth here.
type OIDC struct {
	Issuer, ClientID string
	// ClientSecret is "" for a public client.
	ClientSecret string
	// Scopes are asked for; "openid" is one of them.
	Scopes []string
	// LoginClaim names a new user; without it EmailClaim does.
	LoginClaim, NameClaim, EmailClaim string
	// Grants are the roles that claims give.
	Grants []ClaimGrant
}

// ClaimGrant gives a role to everybody whose claim is, or has among others, a
// value.
type ClaimGrant struct {
	Claim, Value string
	Role         events.Role
	// Selector picks devices by their labels; the zero Selector is everything.
	Selector labels.Selector
}

const (
	oidcPath     = httpapi.Prefix + "/session/oidc"
	oidcCallback = oidcPath + "/callback"
	// oidcCookie ties the provider's answer to the browser that asked.
	oidcCookie = "__Host-pallas-oidc"
	// flowLife is how long somebody has to sign in at the provider.
	flowLife = 10 * time.Minute
	// A source may begin startBurst times, and then once a second.
	startRate, startBurst = 1, 60
	// askTimeout bounds one request to the provider.
	askTimeout = 10 * time.Second
	// maxSubject is the limit of OpenID Connect Core 1.0, section 2.
	maxSubject = 255
)

// oidcActor gives and takes the grants that follow from claims. By it they are
// told from those that an administrator gave.
var oidcActor = events.SystemActor("oidc")

// provider speaks with the provider, and remembers who is on the way to it.
type provider struct {
	OIDC
	callback string
	now      func() time.Time
	client   *http.Client
	starts   *httpapi.Budgets[netip.Prefix]
	// flows are the sign-ins under way, by the hash of their cookie. They are here
	// and not in the cookie, so that each is used once.
	flows *lru.Cache[[sha256.Size]byte, flow]

	asking singleflight.Group
	found  atomic.Pointer[oidc.Provider] // nil before discovery
}

// flow is a sign-in under way.
type flow struct {
	state, nonce, verifier string
	until                  time.Time
}

func newProvider(cfg OIDC, callback string, now func() time.Time) *provider {
	flows, _ := lru.New[[sha256.Size]byte, flow](remembered) // the size is positive
	return &provider{
		OIDC: cfg, callback: callback, now: now, client: &http.Client{Timeout: askTimeout},
		starts: httpapi.NewBudgets[netip.Prefix](startRate, startBurst, remembered), flows: flows,
	}
}

// discover returns what the provider says of itself. It is asked when the first
// person comes, and again while it does not answer; many who come at the same
// time ask once.
func (p *provider) discover(ctx context.Context) (*oidc.Provider, error) {
	if d := p.found.Load(); d != nil {
		return d, nil
	}
	v, err, _ := p.asking.Do("", func() (any, error) {
		ctx, cancel := httpapi.Unconditional(ctx, askTimeout)
		defer cancel()
		d, err := oidc.NewProvider(oidc.ClientContext(ctx, p.client), p.Issuer)
		if err == nil {
			p.found.Store(d)
		}
		return d, err
	})
	if err != nil {
		return nil, fmt.Errorf("discover %s: %w", p.Issuer, err)
	}
	d, _ := v.(*oidc.Provider)
	return d, nil
}

func (p *provider) oauth(d *oidc.Provider) *oauth2.Config {
	return &oauth2.Config{ClientID: p.ClientID, ClientSecret: p.ClientSecret, Endpoint: d.Endpoint(), RedirectURL: p.callback, Scopes: p.Scopes}
}

// begin remembers a new sign-in, and returns the value of its cookie.
func (p *provider) begin() (string, flow) {
	cookie := rand.Text()
	f := flow{state: rand.Text(), nonce: rand.Text(), verifier: oauth2.GenerateVerifier(), until: p.now().Add(flowLife)}
	p.flows.Add(sha256.Sum256([]byte(cookie)), f)
	return cookie, f
}

// take ends a sign-in, whether or not the state is that of it. Of several callers
// one gets it.
func (p *provider) take(cookie, state string) (flow, bool) {
	key := sha256.Sum256([]byte(cookie))
	f, ok := p.flows.Get(key)
	if !ok || !p.flows.Remove(key) || !p.now().Before(f.until) {
		return flow{}, false
	}
	return f, equal(f.state, state)
}

// equal compares in constant time.
func equal(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// errProvider says that the provider could not be asked.
var errProvider = errors.New("the provider does not answer")

// redeem exchanges a code for what the provider says of the person.
func (p *provider) redeem(ctx context.Context, f flow, code string) (auth.Identity, map[string]any, error) {
	d, err := p.discover(ctx)
	if err != nil {
		return auth.Identity{}, nil, fmt.Errorf("%w: %w", errProvider, err)
	}
	ctx = oidc.ClientContext(ctx, p.client)
	t, err := p.oauth(d).Exchange(ctx, code, oauth2.VerifierOption(f.verifier))
	var answer *oauth2.RetrieveError
	switch {
	case errors.As(err, &answer) && answer.Response != nil && answer.Response.StatusCode < 500:
		return auth.Identity{}, nil, fmt.Errorf("exchange the code: %s %s", answer.Response.Status, answer.ErrorCode)
	case err != nil:
		return auth.Identity{}, nil, fmt.Errorf("%w: exchange the code: %w", errProvider, err)
	}
	raw, _ := t.Extra("id_token").(string)
	id, err := d.Verifier(&oidc.Config{ClientID: p.ClientID, Now: p.now}).Verify(ctx, raw)
	if err != nil {
		return auth.Identity{}, nil, fmt.Errorf("verify the ID token: %w", err)
	}
	if !equal(id.Nonce, f.nonce) {
		return auth.Identity{}, nil, errors.New("verify the ID token: it has another nonce")
	}
	if id.Subject == "" || len(id.Subject) > maxSubject {
		return auth.Identity{}, nil, fmt.Errorf("verify the ID token: its subject has %d bytes, want 1 to %d", len(id.Subject), maxSubject)
	}
	var claims map[string]any
	if err := id.Claims(&claims); err != nil {
		return auth.Identity{}, nil, fmt.Errorf("read the claims: %w", err)
	}
	return auth.Identity{Issuer: p.Issuer, Subject: id.Subject}, claims, nil
}

// grants returns what claims are worth.
func (o OIDC) grants(claims map[string]any) []commands.NewGrant {
	var out []commands.NewGrant
	for _, g := range o.Grants {
		n := commands.NewGrant{Grant: events.GrantID(events.NewID()), Role: g.Role, Selector: g.Selector.String()}
		same := func(have commands.NewGrant) bool { return have.Role == n.Role && have.Selector == n.Selector }
		if has(claims, g.Claim, g.Value) && !slices.ContainsFunc(out, same) {
			out = append(out, n)
		}
	}
	return out
}

// has says whether a claim is a value, or a list with it. An e-mail address
// counts only when the provider has verified it: anybody can claim one.
func has(claims map[string]any, claim, value string) bool {
	if verified := claims["email_verified"]; claim == "email" && verified != true && verified != "true" {
		return false
	}
	switch v := claims[claim].(type) {
	case string:
		return v == value
	case bool:
		return fmt.Sprint(v) == value
	case []any:
		return slices.Contains(v, any(value))
	}
	return false
}

// person returns who somebody is by the claims. Name and e-mail address are left
// out where they could not be ours.
func (o OIDC) person(claims map[string]any) auth.Person {
	text := func(claim string) string {
		s, _ := claims[claim].(string)
		return strings.TrimSpace(s)
	}
	p := auth.Person{Login: text(o.LoginClaim), Name: text(o.NameClaim), Email: text(o.EmailClaim)}
	if len(p.Name) > auth.MaxText || strings.ContainsFunc(p.Name, func(r rune) bool { return !unicode.IsPrint(r) }) {
		p.Name = ""
	}
	if a, err := mail.ParseAddress(p.Email); err != nil || a.Address != p.Email || len(p.Email) > auth.MaxText {
		p.Email = ""
	}
	if p.Login == "" {
		p.Login = p.Email
	}
	return p
}

// OIDCBegun answers begin-oidc-session.
type OIDCBegun struct {
	Location     string `header:"Location" example:"https://login.example.com/authorize?client_id=pallas&…" doc:"The provider's page to sign in."`
	SetCookie    string `header:"Set-Cookie" example:"__Host-pallas-oidc=…; Path=/; Max-Age=600; HttpOnly; Secure; SameSite=Lax" doc:"Ties the provider's answer to this browser, for ten minutes."`
	CacheControl string `header:"Cache-Control" example:"no-store" doc:"Always no-store: the answer is for one use."`
}

// OIDCSession answers finish-oidc-session.
type OIDCSession struct {
	SetCookie    []string `header:"Set-Cookie" example:"[\"__Host-pallas=…; Path=/; HttpOnly; Secure; SameSite=Strict\"]" doc:"The session's cookie, and the end of the one that begin-oidc-session set."`
	CacheControl string   `header:"Cache-Control" example:"no-store" doc:"Always no-store: the answer holds a secret."`
	Body         httpapi.Session
}

// OIDCAnswer is what the provider sends a browser back with.
type OIDCAnswer struct {
	Code   string `query:"code" example:"SplxlOBeZQQYbYS6WxSbIA" doc:"The provider's code."`
	State  string `query:"state" example:"F6GRTXMZ5ZJQ3WLPMNBE4V7YKD" doc:"What begin-oidc-session sent along."`
	Error  string `query:"error" example:"access_denied" doc:"Why the provider signed nobody in."`
	Issuer string `query:"iss" example:"https://login.example.com" doc:"The provider, if it says so (RFC 9207)."`
	Flow   string `cookie:"__Host-pallas-oidc" example:"M5QX2J7RTC4KZL6WNBVHE3YUGD" doc:"The cookie that begin-oidc-session set."`
}

func (h *Handlers) registerOIDC(api huma.API) {
	huma.Register(api, huma.Operation{
		OperationID: "begin-oidc-session", Method: http.MethodGet, Path: oidcPath, Tags: []string{"access"}, Security: public(),
		Summary: "Sign in by OpenID Connect",
		Description: "Sends a browser to the provider of the configuration. A provider that does not answer is 503, and without one there is 404: " +
			"users with a password sign in by create-session.",
		DefaultStatus: http.StatusFound, Errors: []int{http.StatusUnauthorized, http.StatusNotFound, http.StatusTooManyRequests},
	}, h.beginOIDC)
	huma.Register(api, huma.Operation{
		OperationID: "finish-oidc-session", Method: http.MethodGet, Path: oidcCallback, Tags: []string{"access"}, Security: public(),
		Summary: "Come back from the OpenID Connect provider",
		Description: "The provider sends browsers here. Sets the cookie of a session, as create-session does. Somebody who comes for the first time becomes a user, if a claim gives a role; " +
			"the roles that claims give are given and taken at each sign-in. Works once for each begin-oidc-session, in the same browser and within ten minutes.",
		Errors:             []int{http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusConflict, http.StatusTooManyRequests, http.StatusInsufficientStorage},
		SkipValidateParams: true, // providers add parameters of their own
	}, h.finishOIDC)
}

func noOIDC() error {
	return httpapi.NewProblem(httpapi.KindNotFound, "this manager has no OpenID Connect provider: sign in with login and password")
}

// away is the problem of a provider that does not answer.
func away() error {
	return huma.ErrorWithHeaders(
		httpapi.NewProblem(httpapi.KindUnavailable, "the OpenID Connect provider does not answer, and nobody was signed in: try again, or sign in with login and password"),
		http.Header{"Retry-After": {httpapi.RetryAfter(askTimeout)}})
}

// flowCookie is the cookie of a sign-in under way. Lax: it must come along when
// the provider's page sends the browser back.
func flowCookie(value string, life time.Duration) string {
	c := http.Cookie{Name: oidcCookie, Value: value, Path: "/", HttpOnly: true, Secure: true, SameSite: http.SameSiteLaxMode, MaxAge: int(life / time.Second)}
	if life == 0 {
		c.MaxAge = -1
	}
	return c.String()
}

func (h *Handlers) beginOIDC(ctx context.Context, _ *struct{}) (*OIDCBegun, error) {
	if h.oidc == nil {
		return nil, noOIDC()
	}
	source, now := httpapi.SourceNetwork(httpapi.RequestOf(ctx).Source), h.cfg.Now()
	if wait := h.oidc.starts.Wait(source, now); wait > 0 {
		return nil, tooMany("signing in was begun too often from this address: wait and try again", wait)
	}
	h.oidc.starts.Charge(source, now, 1)
	d, err := h.oidc.discover(ctx)
	if err != nil {
		h.cfg.Log.WarnContext(ctx, "openid connect provider does not answer", slog.Any("error", err))
		return nil, away()
	}
	cookie, f := h.oidc.begin()
	return &OIDCBegun{
		Location:  h.oidc.oauth(d).AuthCodeURL(f.state, oidc.Nonce(f.nonce), oauth2.S256ChallengeOption(f.verifier)),
		SetCookie: flowCookie(cookie, flowLife), CacheControl: secretAnswer,
	}, nil
}

func (h *Handlers) finishOIDC(ctx context.Context, in *OIDCAnswer) (*OIDCSession, error) {
	if h.oidc == nil {
		return nil, noOIDC()
	}
	ctx, cancel := httpapi.Unconditional(ctx, writeTimeout+askTimeout)
	defer cancel()
	f, ok := h.oidc.take(in.Flow, in.State)
	// Who has begun is not held up by those who come with nothing.
	if wait := h.guesses.held(httpapi.RequestOf(ctx).Source, h.cfg.Now()); !ok && wait > 0 {
		return nil, tooMany("signing in failed too often: wait, then begin again at "+oidcPath, wait)
	}
	switch {
	case !ok, in.Issuer != "" && in.Issuer != h.oidc.Issuer:
		return nil, h.refuse(ctx, events.Nobody, "not a sign-in that was begun here", httpapi.NewProblem(httpapi.KindUnauthorized,
			"the sign-in was not begun in this browser, is over, or took longer than ten minutes: begin again at "+oidcPath))
	case in.Error != "" || in.Code == "":
		return nil, h.refuse(ctx, events.Nobody, "the provider signed nobody in", httpapi.NewProblem(httpapi.KindUnauthorized,
			"the OpenID Connect provider signed nobody in"+providerError(in.Error)+": begin again at "+oidcPath))
	}
	identity, claims, err := h.oidc.redeem(ctx, f, in.Code)
	if err != nil {
		h.cfg.Log.WarnContext(ctx, "openid connect sign-in failed", slog.Any("error", err))
		if errors.Is(err, errProvider) {
			return nil, h.refuse(ctx, events.Nobody, "the provider does not answer", away())
		}
		return nil, h.refuse(ctx, events.Nobody, "the provider's answer is not valid", httpapi.NewProblem(httpapi.KindUnauthorized,
			"the OpenID Connect provider's answer is not valid for this sign-in; the manager's log says why: begin again at "+oidcPath))
	}
	person, err := h.cfg.People.ByIdentity(ctx, identity)
	switch {
	case errors.Is(err, auth.ErrUnknown):
		person, err = h.welcome(ctx, identity, claims)
	case err == nil:
		err = h.welcomeBack(ctx, person, claims)
	}
	if err != nil {
		return nil, err
	}
	s, err := h.begin(ctx, person.ID, events.MethodOIDC)
	if err != nil {
		return nil, err
	}
	return &OIDCSession{SetCookie: []string{s.SetCookie, flowCookie("", 0)}, CacheControl: s.CacheControl, Body: s.Body}, nil
}

// providerError is a code of RFC 6749, section 4.1.2.1, for people. What is not
// of that form did not come from a provider.
func providerError(code string) string {
	if code == "" || len(code) > 64 || strings.Trim(code, "abcdefghijklmnopqrstuvwxyz_") != "" {
		return ""
	}
	return " (" + code + ")"
}

// welcome makes a user of somebody who comes for the first time.
func (h *Handlers) welcome(ctx context.Context, identity auth.Identity, claims map[string]any) (auth.Person, error) {
	person := h.oidc.person(claims)
	person.ID, person.Identity = events.UserID(events.NewID()), &identity
	c := commands.CreateUser{User: person.ID, Grants: h.oidc.grants(claims)}
	if len(c.Grants) == 0 {
		return person, h.refuse(ctx, events.Nobody, "no claim gives a role", noRole())
	}
	if _, err := auth.FoldLogin(person.Login); err != nil {
		return person, h.refuse(ctx, events.Nobody, "no claim gives a login", httpapi.NewProblem(httpapi.KindDenied,
			fmt.Sprintf("the OpenID Connect provider's claim %q is no login (%s): ask who runs the provider for another one", h.oidc.LoginClaim, err)))
	}
	// As in createUser: a refusal leaves nothing behind, and the person comes first.
	access, err := h.cfg.Commands.Access(ctx)
	if err == nil {
		_, err = commands.Decide(c, commands.States{Access: access}, httpapi.RequestOf(ctx).Time)
	}
	if err == nil {
		err = h.cfg.People.Add(ctx, person)
	}
	switch {
	case errors.Is(err, auth.ErrLoginTaken):
		p := httpapi.NewProblem(httpapi.KindConflict, "another user has the login that the OpenID Connect provider gives you, and keeps it: ask an administrator to rename or delete that user")
		p.Code = "login_taken"
		return person, h.refuse(ctx, events.Nobody, "another user has the login", p)
	case errors.Is(err, auth.ErrIdentityTaken):
		return person, h.refuse(ctx, events.Nobody, "the user is being made", httpapi.NewProblem(httpapi.KindConflict, "you are being made a user by another sign-in: try again in a minute"))
	case err != nil:
		return person, mapError(ctx, err)
	}
	err = h.asOIDC(ctx, c)
	if commands.KindOf(err) != "" || errors.Is(err, events.ErrNoSpace) { // nothing was written
		err = errors.Join(err, h.cfg.People.Forget(ctx, person.ID, nil))
	}
	return person, mapError(ctx, err)
}

// welcomeBack has a user's grants, name and e-mail address follow the claims.
// What an administrator granted stays.
func (h *Handlers) welcomeBack(ctx context.Context, person auth.Person, claims map[string]any) error {
	access, err := h.cfg.Commands.Access(ctx)
	if err != nil {
		return mapError(ctx, err)
	}
	standing, ok := access.Users[person.ID]
	switch {
	case !ok: // being made or deleted; what breaks off the sweep ends
		return httpapi.NewProblem(httpapi.KindUnavailable, "the user is being made or deleted: try again in some minutes")
	case standing.Disabled:
		p := httpapi.NewProblem(httpapi.KindDenied, "the user is disabled: ask an administrator")
		p.Code = commands.CodeDisabled
		return h.refuse(ctx, person.ID, "disabled", p)
	}
	kept, err := h.follow(ctx, person.ID, standing.Grants, h.oidc.grants(claims))
	if commands.KindOf(err) == commands.KindConflict {
		return h.refuse(ctx, person.ID, "the grants cannot follow the claims", mapError(ctx, err))
	}
	if err != nil {
		return mapError(ctx, err)
	}
	if kept == 0 {
		return h.refuse(ctx, person.ID, "no claim gives a role", noRole())
	}
	now := h.oidc.person(claims)
	if now.Name == person.Name && now.Email == person.Email {
		return nil
	}
	_, err = h.cfg.People.Change(ctx, person.ID, func(p *auth.Person) error { p.Name, p.Email = now.Name, now.Email; return nil })
	return mapError(ctx, err)
}

// follow takes the grants that claims gave and do not give any more, gives those
// that they give now, and returns how many the user has then. It takes before it
// gives, so that what breaks off permits less.
func (h *Handlers) follow(ctx context.Context, user events.UserID, have []commands.RoleGrant, want []commands.NewGrant) (kept int, err error) {
	for _, g := range have {
		wanted := slices.ContainsFunc(want, func(w commands.NewGrant) bool { return w.Role == g.Role && w.Selector == g.Selector })
		if g.By != oidcActor || wanted {
			kept++
			continue
		}
		// Another sign-in may have taken it meanwhile.
		if err := h.asOIDC(ctx, commands.RevokeRole{User: user, Grant: g.ID}); err != nil && commands.KindOf(err) != commands.KindNotFound {
			return kept, err
		}
	}
	for _, w := range want {
		if slices.ContainsFunc(have, func(g commands.RoleGrant) bool { return w.Role == g.Role && w.Selector == g.Selector }) {
			continue
		}
		if err := h.asOIDC(ctx, commands.GrantRole{User: user, NewGrant: w}); err != nil {
			return kept, err
		}
		kept++
	}
	return kept, nil
}

func noRole() error {
	p := httpapi.NewProblem(httpapi.KindDenied, "the OpenID Connect provider knows you, but nothing that it says of you gives a role here: ask an administrator")
	p.Code = "no_role"
	return p
}

// refuse records that somebody could not sign in, and returns the problem.
func (h *Handlers) refuse(ctx context.Context, user events.UserID, reason string, problem error) error {
	h.guesses.failed(httpapi.RequestOf(ctx).Source, h.cfg.Now())
	if _, err := h.do(ctx, commands.RecordSignInFailure{User: user, Method: events.MethodOIDC, Reason: reason}); err != nil {
		h.cfg.Log.ErrorContext(ctx, "failure to sign in not recorded", slog.Any("error", err))
	}
	return problem
}

// asOIDC gives a command that follows from claims.
func (h *Handlers) asOIDC(ctx context.Context, c commands.Command) error {
	r := httpapi.RequestOf(ctx)
	_, err := h.cfg.Commands.Do(ctx, c, commands.Meta{Actor: oidcActor, Source: r.Source, Traceparent: r.Traceparent, Time: r.Time})
	return err
}
