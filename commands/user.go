package commands

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"pallas/events"
)

// User is the folded state of how one user gets in: what decisions about it
// need, and no secrets.
type User struct {
	// Tokens are the API tokens that were not revoked. Those that have expired
	// leave when another one is issued.
	Tokens map[events.APITokenID]APIToken `json:"tokens,omitempty"`
	// Denials are the newest refusals, oldest first.
	Denials  []Denial `json:"denials,omitempty"`
	Revision uint64   `json:"revision"`
}

// APIToken is what a program may do for a user.
type APIToken struct {
	// Role is "" for all that the owner may do.
	Role     events.Role `json:"role,omitempty"`
	Selector string      `json:"selector,omitempty"`
	Issued   time.Time   `json:"issued"`
	Expires  time.Time   `json:"expires"`
	// Networks are those that it was used from last, the newest at the end. They
	// are never changed in place.
	Networks []string `json:"networks,omitempty"`
}

// Denial is a refusal that was recorded.
type Denial struct {
	Operation string    `json:"operation"`
	At        time.Time `json:"at"`
}

// Bounds of a user's state.
const (
	recentNetworks = 8  // of a token
	recentDenials  = 16 // of a user
	// denialsApart is how long the same refusal is not recorded again.
	denialsApart = time.Minute
)

// IssueAPIToken lets programs act for a user: with a role and a selector that
// are within one of the user's own grants, or without a role with all that the
// user may do. A token id that is taken is the same request.
type IssueAPIToken struct {
	User     events.UserID
	Token    events.APITokenID
	Role     events.Role
	Selector string
	// Expires is in the future and at most a year away.
	Expires time.Time
}

// RevokeAPIToken ends an API token.
type RevokeAPIToken struct {
	User  events.UserID
	Token events.APITokenID
}

// UseAPIToken records that a token is used from a network, if it was not lately.
type UseAPIToken struct {
	User    events.UserID
	Token   events.APITokenID
	Network netip.Prefix
}

// RecordSignIn records that a person began a session.
type RecordSignIn struct {
	User   events.UserID
	Method events.SignInMethod
}

// RecordSignInFailure records that somebody could not sign in as the user, or
// as [events.Nobody] where there is none of the login.
type RecordSignInFailure struct {
	User   events.UserID
	Method events.SignInMethod
	Reason string
}

// RecordPassword records that a user has a new password.
type RecordPassword struct {
	User events.UserID
	How  events.PasswordChange
}

// IssuePasswordReset records that a one-time link was made for a user.
type IssuePasswordReset struct {
	User    events.UserID
	Expires time.Time
}

// RecordSessionsEnded records that sessions of a user ended before their time.
type RecordSessionsEnded struct {
	User   events.UserID
	Count  int
	Reason string
}

// DenyAccess records that a user was refused an operation of the API. The same
// refusal is recorded once a minute.
type DenyAccess struct {
	User                  events.UserID
	Operation, Permission string
}

// Subject returns the user's aggregate.
func (c IssueAPIToken) Subject() events.Subject { return events.UserSubject(c.User) }

// Subject returns the user's aggregate.
func (c RevokeAPIToken) Subject() events.Subject { return events.UserSubject(c.User) }

// Subject returns the user's aggregate.
func (c UseAPIToken) Subject() events.Subject { return events.UserSubject(c.User) }

// Subject returns the user's aggregate.
func (c RecordSignIn) Subject() events.Subject { return events.UserSubject(c.User) }

// Subject returns the user's aggregate.
func (c RecordSignInFailure) Subject() events.Subject { return events.UserSubject(c.User) }

// Subject returns the user's aggregate.
func (c RecordPassword) Subject() events.Subject { return events.UserSubject(c.User) }

// Subject returns the user's aggregate.
func (c IssuePasswordReset) Subject() events.Subject { return events.UserSubject(c.User) }

// Subject returns the user's aggregate.
func (c RecordSessionsEnded) Subject() events.Subject { return events.UserSubject(c.User) }

// Subject returns the user's aggregate.
func (c DenyAccess) Subject() events.Subject { return events.UserSubject(c.User) }

func (IssueAPIToken) sealed()       {}
func (RevokeAPIToken) sealed()      {}
func (UseAPIToken) sealed()         {}
func (RecordSignIn) sealed()        {}
func (RecordSignInFailure) sealed() {}
func (RecordPassword) sealed()      {}
func (IssuePasswordReset) sealed()  {}
func (RecordSessionsEnded) sealed() {}
func (DenyAccess) sealed()          {}

// Bound is the role that bounds the token: without one of its own, the highest.
func (c IssueAPIToken) Bound() events.Role { return bound(c.Role) }

// Bound is the role that bounds the token: without one of its own, the highest.
func (t APIToken) Bound() events.Role { return bound(t.Role) }

func bound(r events.Role) events.Role {
	if r == "" {
		return events.RoleAdmin
	}
	return r
}

func (u User) issueToken(c IssueAPIToken, a Access, now time.Time) ([]events.Event, error) {
	if err := checkAPIToken(c.Token); err != nil {
		return nil, err
	}
	standing, err := a.active(c.User)
	if err != nil {
		return nil, err
	}
	if _, ok := u.Tokens[c.Token]; ok {
		return nil, nil
	}
	sel, err := checkRole("", c.Bound(), c.Selector)
	if err != nil {
		return nil, err
	}
	if err := first(checkWithin("expires", c.Expires, now, MaxTokenLife)); err != nil {
		return nil, err
	}
	if c.Role != "" && !standing.Covers(c.Role, sel) {
		return nil, wider(standing, c.Role, sel.String())
	}
	live := 0
	for _, t := range u.Tokens {
		if now.Before(t.Expires) {
			live++
		}
	}
	if live >= MaxTokens {
		return nil, conflict(CodeTokenLimit, "user %s has %d API tokens already: revoke those that are not used", c.User, live)
	}
	return []events.Event{events.APITokenIssued{Token: c.Token, Role: c.Role, Selector: sel.String(), Expires: instant(c.Expires)}}, nil
}

// wider says which part of a wish is more than the user's own grants.
func wider(u Standing, r events.Role, selector string) *Error {
	field, what := "selector", "everything"
	if selector != "" {
		what = selector
	}
	if !slices.ContainsFunc(u.Grants, func(g RoleGrant) bool { return rank(g.Role) >= rank(r) }) {
		field = "role"
	}
	own := "no role"
	for i, g := range u.Grants {
		of := "everything"
		if g.Selector != "" {
			of = g.Selector
		}
		if i == 0 {
			own = ""
		} else {
			own += ", "
		}
		own += string(g.Role) + " for " + of
	}
	return invalid(field, "%s for %s is more than its owner may do (%s): give it less", r, clip(what), own)
}

func (u User) revokeToken(c RevokeAPIToken) ([]events.Event, error) {
	if _, ok := u.Tokens[c.Token]; !ok {
		return nil, notFound("user %s has no API token %s", clip(string(c.User)), clip(string(c.Token)))
	}
	return []events.Event{events.APITokenRevoked{Token: c.Token}}, nil
}

func (u User) useToken(c UseAPIToken) ([]events.Event, error) {
	t, ok := u.Tokens[c.Token]
	if !ok {
		return nil, notFound("user %s has no API token %s", clip(string(c.User)), clip(string(c.Token)))
	}
	if slices.Contains(t.Networks, c.Network.String()) {
		return nil, nil
	}
	return []events.Event{events.APITokenUsed{Token: c.Token, Network: c.Network.String()}}, nil
}

func recordSignIn(c RecordSignIn, a Access) ([]events.Event, error) {
	if _, err := a.active(c.User); err != nil {
		return nil, err
	}
	return []events.Event{events.SignedIn{Method: c.Method}}, nil
}

func recordFailure(c RecordSignInFailure) ([]events.Event, error) {
	if err := checkText("reason", c.Reason, MaxReason); err != nil {
		return nil, err
	}
	return []events.Event{events.SignInFailed{Method: c.Method, Reason: c.Reason}}, nil
}

func recordPassword(c RecordPassword, a Access) ([]events.Event, error) {
	if _, err := a.Ready(c.User, 0); err != nil {
		return nil, err
	}
	return []events.Event{events.PasswordChanged{How: c.How}}, nil
}

func issueReset(c IssuePasswordReset, a Access, now time.Time) ([]events.Event, error) {
	if _, err := a.active(c.User); err != nil {
		return nil, err
	}
	if err := first(checkWithin("expires", c.Expires, now, MaxTokenLife)); err != nil {
		return nil, err
	}
	return []events.Event{events.PasswordResetIssued{Expires: instant(c.Expires)}}, nil
}

func recordEnded(c RecordSessionsEnded, a Access) ([]events.Event, error) {
	if err := checkText("reason", c.Reason, MaxReason); err != nil {
		return nil, err
	}
	if _, err := a.Ready(c.User, 0); err != nil || c.Count < 1 {
		return nil, err
	}
	return []events.Event{events.SessionEnded{Count: c.Count, Reason: c.Reason}}, nil
}

func (u User) deny(c DenyAccess, a Access, now time.Time) ([]events.Event, error) {
	if err := first(checkText("operation", c.Operation, MaxName), checkText("permission", c.Permission, MaxName)); err != nil {
		return nil, err
	}
	if _, err := a.Ready(c.User, 0); err != nil {
		return nil, err
	}
	if slices.ContainsFunc(u.Denials, func(d Denial) bool { return d.Operation == c.Operation && now.Sub(d.At) < denialsApart }) {
		return nil, nil
	}
	return []events.Event{events.AccessDenied{Operation: c.Operation, Permission: c.Permission}}, nil
}

// active refuses a user who does not exist or is disabled.
func (a Access) active(id events.UserID) (Standing, error) {
	u, err := a.Ready(id, 0)
	if err == nil && u.Disabled {
		err = conflict(CodeDisabled, "user %s is disabled: enable it first", id)
	}
	return u, err
}

func checkAPIToken(id events.APITokenID) *Error {
	if !apiTokenPattern.MatchString(string(id)) {
		return invalid("token", "%q: want 16 lower-case letters and digits", clip(string(id)))
	}
	return nil
}

// Evolve returns the state after a record of the user's aggregate. It is pure.
func (u User) Evolve(r events.Record) User { return evolve(u, r) }

func (u *User) fork() folded {
	c := *u
	c.Tokens = maps.Clone(c.Tokens)
	c.Denials = slices.Clip(c.Denials) // an append makes a copy
	return &c
}

func (u *User) size() int { return itemSize + len(u.Tokens)*itemSize }

func (u *User) copy() User {
	c := *u
	c.Tokens, c.Denials = maps.Clone(c.Tokens), slices.Clone(c.Denials)
	return c
}

func (u *User) fold(r events.Record) {
	for _, en := range r.Entries {
		switch e := en.Event.(type) {
		case events.APITokenIssued:
			if u.Tokens == nil {
				u.Tokens = map[events.APITokenID]APIToken{}
			}
			maps.DeleteFunc(u.Tokens, func(_ events.APITokenID, t APIToken) bool { return !r.Time.Before(t.Expires) })
			u.Tokens[e.Token] = APIToken{Role: e.Role, Selector: e.Selector, Issued: r.Time, Expires: e.Expires}
		case events.APITokenRevoked:
			delete(u.Tokens, e.Token)
		case events.APITokenUsed:
			if t, ok := u.Tokens[e.Token]; ok {
				t.Networks = append(slices.Clip(t.Networks), e.Network)
				t.Networks = t.Networks[max(0, len(t.Networks)-recentNetworks):]
				u.Tokens[e.Token] = t
			}
		case events.AccessDenied:
			u.Denials = append(u.Denials, Denial{Operation: e.Operation, At: r.Time})
			u.Denials = u.Denials[max(0, len(u.Denials)-recentDenials):]
		default:
		}
	}
	u.Revision = r.Position
}
