package commands

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"pallas/events"
	"pallas/events/eventstest"
	"pallas/events/labels"
)

// The people of the tests.
const (
	ann = events.UserID("01890a5d-ac96-774b-bcce-b302099a8001")
	bob = events.UserID("01890a5d-ac96-774b-bcce-b302099a8002")
	cay = events.UserID("01890a5d-ac96-774b-bcce-b302099a8003")
)

func grantID(n int) events.GrantID {
	return events.GrantID(fmt.Sprintf("01890a5d-ac96-774b-bcce-b302099a9%03d", n))
}

func onAccess(es ...events.Event) history { return history{happened(events.AccessSubject(), es...)} }

func onUser(es ...events.Event) history { return history{happened(events.UserSubject(ann), es...)} }

func granted(u events.UserID, n int, r events.Role, selector string) events.RoleGranted {
	return events.RoleGranted{User: u, Grant: grantID(n), Role: r, Selector: selector}
}

func TestAccess(t *testing.T) {
	alone := onAccess(events.UserCreated{User: ann}, granted(ann, 1, events.RoleAdmin, ""))
	two := with(alone, onAccess(events.UserCreated{User: bob}, granted(bob, 2, events.RoleOperator, "site=fra")))
	both := with(two, onAccess(granted(bob, 3, events.RoleAdmin, "")))
	off := with(both, onAccess(events.UserDisabled{User: bob, Reason: "left"}))
	var crowd history
	crowd = with(two)
	for i := range MaxGrants - 1 {
		crowd = with(crowd, onAccess(granted(bob, 100+i, events.RoleViewer, fmt.Sprintf("n=%d", i))))
	}
	admin := NewGrant{Grant: grantID(1), Role: events.RoleAdmin}
	last := func(name string, given history, when Command) scene {
		return scene{name: name, given: given, when: when, refused: KindConflict, code: CodeLastAdmin, says: "the last one"}
	}
	play(t, []scene{
		{name: "the first user", when: CreateUser{User: ann, Grants: []NewGrant{admin}}, then: emit(events.UserCreated{User: ann}, granted(ann, 1, events.RoleAdmin, ""))},
		{name: "the first user is no administrator", when: CreateUser{User: ann}, refused: KindConflict, code: CodeLastAdmin, says: "first user"},
		{name: "the first user is one of some devices", when: CreateUser{User: ann, Grants: []NewGrant{{Grant: grantID(1), Role: events.RoleAdmin, Selector: "a=b"}}}, refused: KindConflict, code: CodeLastAdmin, says: "first user"},
		{name: "another user", given: alone, when: CreateUser{User: bob}, then: emit(events.UserCreated{User: bob})},
		{name: "the same user again", given: alone, when: CreateUser{User: ann}},
		{
			name: "selectors are written one way", given: alone, when: CreateUser{User: bob, Grants: []NewGrant{{Grant: grantID(2), Role: events.RoleViewer, Selector: " site in (b, a) ,!old"}}},
			then: emit(events.UserCreated{User: bob}, granted(bob, 2, events.RoleViewer, "site in (a,b),!old")),
		},
		{name: "a malformed id", given: alone, when: CreateUser{User: "x"}, refused: KindInvalid, field: "user", says: "UUID"},
		{name: "nobody", given: alone, when: CreateUser{User: events.Nobody}, refused: KindInvalid, field: "user", says: "nobody"},
		{name: "no such role at the making", given: alone, when: CreateUser{User: bob, Grants: []NewGrant{{Grant: grantID(2), Role: "root"}}}, refused: KindInvalid, field: "grants[0].role", says: "viewer, operator and admin"},
		{name: "a grant twice", given: alone, when: CreateUser{User: bob, Grants: []NewGrant{{Grant: grantID(2), Role: "viewer"}, {Grant: grantID(3), Role: "viewer"}}}, refused: KindInvalid, field: "grants[1]", says: "twice"},
		{name: "too many grants", given: alone, when: CreateUser{User: bob, Grants: make([]NewGrant, MaxGrants+1)}, refused: KindInvalid, field: "grants", says: "at most 32"},

		{name: "grant", given: two, when: GrantRole{User: bob, NewGrant: NewGrant{Grant: grantID(3), Role: events.RoleAdmin}}, then: emit(granted(bob, 3, events.RoleAdmin, ""))},
		{name: "grant the same again", given: two, when: GrantRole{User: bob, NewGrant: NewGrant{Grant: grantID(3), Role: events.RoleOperator, Selector: "site = fra"}}},
		{name: "grant under a taken id", given: two, when: GrantRole{User: bob, NewGrant: NewGrant{Grant: grantID(2), Role: events.RoleAdmin}}, refused: KindInvalid, field: "Idempotency-Key", says: "another grant"},
		{name: "grant to nobody", given: two, when: GrantRole{User: cay, NewGrant: admin}, refused: KindNotFound, says: "not known"},
		{name: "grant what is no role", given: two, when: GrantRole{User: bob, NewGrant: NewGrant{Grant: grantID(3), Role: "Admin"}}, refused: KindInvalid, field: "role", says: `"Admin" is no role`},
		{name: "grant for a bad selector", given: two, when: GrantRole{User: bob, NewGrant: NewGrant{Grant: grantID(3), Role: events.RoleAdmin, Selector: "site=,"}}, refused: KindInvalid, field: "selector", says: "position"},
		{name: "grant at a stale revision", given: two, when: GrantRole{User: bob, NewGrant: NewGrant{Grant: grantID(3), Role: events.RoleAdmin}, IfRevision: 1}, refused: KindStale, field: "If-Match", says: "revision 2"},
		{name: "grant one too many", given: crowd, when: GrantRole{User: bob, NewGrant: NewGrant{Grant: grantID(3), Role: events.RoleAdmin}}, refused: KindConflict, code: CodeGrantLimit, says: "32 grants"},

		{name: "revoke", given: both, when: RevokeRole{User: ann, Grant: grantID(1)}, then: emit(events.RoleRevoked{User: ann, Grant: grantID(1)})},
		{name: "revoke what is not there", given: both, when: RevokeRole{User: ann, Grant: grantID(9)}, refused: KindNotFound, says: "has no grant"},
		{name: "disable", given: two, when: DisableUser{User: bob, Reason: "left"}, then: emit(events.UserDisabled{User: bob, Reason: "left"})},
		{name: "disable again", given: off, when: DisableUser{User: bob}},
		{name: "disable nobody", given: two, when: DisableUser{User: cay}, refused: KindNotFound, says: "not known"},
		{name: "enable", given: off, when: EnableUser{User: bob}, then: emit(events.UserEnabled{User: bob})},
		{name: "enable again", given: both, when: EnableUser{User: bob}},
		{name: "delete", given: both, when: DeleteUser{User: ann}, then: emit(events.UserDeleted{User: ann})},
		{name: "delete again", given: with(both, onAccess(events.UserDeleted{User: ann})), when: DeleteUser{User: ann}, refused: KindNotFound, says: "not known"},

		last("the last administrator cannot be disabled", two, DisableUser{User: ann}),
		last("the last administrator cannot be deleted", two, DeleteUser{User: ann}),
		last("the last administrator cannot be demoted", two, RevokeRole{User: ann, Grant: grantID(1)}),
		last("a disabled administrator does not count", off, DisableUser{User: ann}),
		last("an administrator of some devices does not count", with(two, onAccess(granted(bob, 4, events.RoleAdmin, "site=fra"))), DeleteUser{User: ann}),
		last("a deleted administrator does not count", with(both, onAccess(events.UserDeleted{User: bob})), RevokeRole{User: ann, Grant: grantID(1)}),
		{
			name:  "one of two grants for everything may go",
			given: with(alone, onAccess(granted(ann, 5, events.RoleAdmin, ""))), when: RevokeRole{User: ann, Grant: grantID(5)}, then: emit(events.RoleRevoked{User: ann, Grant: grantID(5)}),
		},
	})
}

func TestUser(t *testing.T) {
	const token, other = events.APITokenID("0123456789abcdef"), events.APITokenID("0123456789abcdeg")
	operator := onAccess(events.UserCreated{User: bob}, granted(bob, 1, events.RoleAdmin, ""), events.UserCreated{User: ann}, granted(ann, 2, events.RoleOperator, "site in (fra,ber)"), granted(ann, 3, events.RoleViewer, ""))
	disabled := with(operator, onAccess(events.UserDisabled{User: ann}))
	issued := events.APITokenIssued{Token: token, Role: events.RoleViewer, Expires: t0.Add(time.Hour)}
	owns := with(operator, onUser(issued))
	issue := func(r events.Role, selector string) IssueAPIToken {
		return IssueAPIToken{User: ann, Token: other, Role: r, Selector: selector, Expires: t0.Add(time.Hour)}
	}
	wants := func(r events.Role, selector string) []events.Event {
		return emit(events.APITokenIssued{Token: other, Role: r, Selector: selector, Expires: t0.Add(time.Hour)})
	}
	full := with(operator)
	for i := range MaxTokens {
		full = with(full, onUser(events.APITokenIssued{Token: events.APITokenID(fmt.Sprintf("%016d", i)), Role: events.RoleViewer, Expires: t0.Add(time.Hour)}))
	}
	past := with(operator)
	for i := range MaxTokens {
		past = with(past, onUser(events.APITokenIssued{Token: events.APITokenID(fmt.Sprintf("%016d", i)), Role: events.RoleViewer, Expires: t0}))
	}
	used := with(owns, onUser(events.APITokenUsed{Token: token, Network: "203.0.113.7/32"}))
	refusal := events.AccessDenied{Operation: "retire-device", Permission: "devices:retire"}
	denial := DenyAccess{User: ann, Operation: "retire-device", Permission: "devices:retire"}
	before := func(d time.Duration) history {
		dec := happened(events.UserSubject(ann), refusal)
		dec.Time = t0.Add(-d)
		return with(operator, history{dec})
	}
	play(t, []scene{
		{name: "issue the own role", given: operator, when: issue(events.RoleOperator, "site=fra"), then: wants(events.RoleOperator, "site=fra")},
		{name: "issue less", given: operator, when: issue(events.RoleViewer, ""), then: wants(events.RoleViewer, "")},
		{name: "issue all of it", given: operator, when: issue("", ""), then: wants("", "")},
		{name: "issue all of it for some devices", given: operator, when: issue("", "a=b"), then: wants("", "a=b")},
		{name: "issue again", given: owns, when: IssueAPIToken{User: ann, Token: token}},
		{name: "issue a higher role", given: operator, when: issue(events.RoleAdmin, "site=fra"), refused: KindInvalid, field: "role", says: "admin for site=fra is more than its owner may do (operator for site in (fra,ber)"},
		{name: "issue a wider scope", given: operator, when: issue(events.RoleOperator, ""), refused: KindInvalid, field: "selector", says: "operator for everything is more"},
		{name: "issue another scope", given: operator, when: issue(events.RoleOperator, "site=muc"), refused: KindInvalid, field: "selector", says: "more than its owner"},
		{name: "issue what is no role", given: operator, when: issue("root", ""), refused: KindInvalid, field: "role", says: "is no role"},
		{name: "issue for a bad selector", given: operator, when: issue(events.RoleViewer, "a b"), refused: KindInvalid, field: "selector", says: "position 3"},
		{name: "issue for two years", given: operator, when: IssueAPIToken{User: ann, Token: other, Role: events.RoleViewer, Expires: t0.AddDate(2, 0, 0)}, refused: KindInvalid, field: "expires", says: "365 days"},
		{name: "issue for a disabled user", given: disabled, when: issue(events.RoleViewer, ""), refused: KindConflict, code: CodeDisabled, says: "disabled"},
		{name: "issue for nobody", when: issue(events.RoleViewer, ""), refused: KindNotFound, says: "not known"},
		{name: "issue under a malformed id", given: operator, when: IssueAPIToken{User: ann, Token: "x"}, refused: KindInvalid, field: "token", says: "16"},
		{name: "issue one too many", given: full, when: issue(events.RoleViewer, ""), refused: KindConflict, code: CodeTokenLimit, says: "100 API tokens"},
		{name: "those that have expired do not count", given: past, when: issue(events.RoleViewer, ""), then: wants(events.RoleViewer, "")},

		{name: "revoke", given: owns, when: RevokeAPIToken{User: ann, Token: token}, then: emit(events.APITokenRevoked{Token: token})},
		{name: "revoke again", given: with(owns, onUser(events.APITokenRevoked{Token: token})), when: RevokeAPIToken{User: ann, Token: token}, refused: KindNotFound, says: "no API token"},
		{name: "use from a new network", given: owns, when: UseAPIToken{User: ann, Token: token, Network: prefix("203.0.113.7/32")}, then: emit(events.APITokenUsed{Token: token, Network: "203.0.113.7/32"})},
		{name: "use from a known network", given: used, when: UseAPIToken{User: ann, Token: token, Network: prefix("203.0.113.7/32")}},
		{name: "use an unknown one", given: used, when: UseAPIToken{User: ann, Token: other, Network: prefix("203.0.113.7/32")}, refused: KindNotFound, says: "no API token"},

		{name: "sign in", given: operator, when: RecordSignIn{User: ann, Method: events.MethodPassword}, then: emit(events.SignedIn{Method: events.MethodPassword})},
		{name: "sign in while disabled", given: disabled, when: RecordSignIn{User: ann, Method: events.MethodPassword}, refused: KindConflict, code: CodeDisabled, says: "disabled"},
		{name: "fail as nobody", when: RecordSignInFailure{User: events.Nobody, Method: events.MethodPassword, Reason: "unknown login"}, then: emit(events.SignInFailed{Method: events.MethodPassword, Reason: "unknown login"})},
		{name: "a new password", given: operator, when: RecordPassword{User: ann, How: events.PasswordOwn}, then: emit(events.PasswordChanged{How: events.PasswordOwn})},
		{name: "a link", given: operator, when: IssuePasswordReset{User: ann, Expires: t0.Add(time.Hour)}, then: emit(events.PasswordResetIssued{Expires: t0.Add(time.Hour)})},
		{name: "a link for a disabled user", given: disabled, when: IssuePasswordReset{User: ann, Expires: t0.Add(time.Hour)}, refused: KindConflict, code: CodeDisabled, says: "disabled"},
		{name: "sessions end", given: operator, when: RecordSessionsEnded{User: ann, Count: 2, Reason: "x"}, then: emit(events.SessionEnded{Count: 2, Reason: "x"})},
		{name: "no sessions end", given: operator, when: RecordSessionsEnded{User: ann, Reason: "x"}},
		{name: "a refusal", given: operator, when: denial, then: emit(refusal)},
		{name: "a refusal within a minute", given: before(time.Minute - time.Second), when: denial},
		{name: "a refusal after a minute", given: before(time.Minute), when: denial, then: emit(refusal)},
		{name: "another refusal", given: before(0), when: DenyAccess{User: ann, Operation: "x", Permission: "y"}, then: emit(events.AccessDenied{Operation: "x", Permission: "y"})},
	})
}

// TestUserIsBounded folds more of everything than a state keeps.
func TestUserIsBounded(t *testing.T) {
	h := onUser(events.APITokenIssued{Token: "0123456789abcdef", Role: events.RoleViewer, Expires: t0.AddDate(1, 0, 0)})
	for i := range 100 {
		h = with(h, onUser(events.APITokenUsed{Token: "0123456789abcdef", Network: fmt.Sprintf("203.0.113.%d/32", i)}, events.AccessDenied{Operation: fmt.Sprint(i)}))
	}
	u := h.states().User
	if n := u.Tokens["0123456789abcdef"].Networks; len(n) != recentNetworks || n[len(n)-1] != "203.0.113.99/32" {
		t.Errorf("networks %q", n)
	}
	if len(u.Denials) != recentDenials || u.Denials[len(u.Denials)-1].Operation != "99" {
		t.Errorf("denials %v", u.Denials)
	}
}

// TestAdminRemains gives random commands about users to two managers on one log,
// several at the same time: whatever they are, somebody enabled administers
// everything after each of them, and no token is wider than its owner was when it
// was issued.
func TestAdminRemains(t *testing.T) {
	users := []events.UserID{ann, bob, cay}
	roleOf := rapid.SampledFrom([]events.Role{events.RoleViewer, events.RoleOperator, events.RoleAdmin, events.RoleAdmin})
	selector := rapid.SampledFrom([]string{"", "", "site=fra", "site in (fra,ber)", "!old", "a="})
	rapid.Check(t, func(t *rapid.T) {
		store := eventstest.NewMemory()
		var managers []*Dispatcher
		for range 2 {
			d, err := New(Config{Store: store, CacheBytes: 3000})
			if err != nil {
				t.Fatal(err)
			}
			managers = append(managers, d)
		}
		do := func(d *Dispatcher, c Command) error {
			_, err := d.Do(context.Background(), c, Meta{Actor: "user:x"})
			if err != nil && KindOf(err) == "" {
				return fmt.Errorf("%T: %w", c, err)
			}
			return nil
		}
		if err := do(managers[0], CreateUser{User: ann, Grants: []NewGrant{{Grant: grantID(1), Role: events.RoleAdmin}}}); err != nil {
			t.Fatal(err)
		}
		draw := func() Command {
			u := rapid.SampledFrom(users).Draw(t, "user")
			g := NewGrant{Grant: grantID(rapid.IntRange(1, 6).Draw(t, "grant")), Role: roleOf.Draw(t, "role"), Selector: selector.Draw(t, "selector")}
			switch rapid.IntRange(0, 7).Draw(t, "command") {
			case 0:
				return CreateUser{User: u, Grants: []NewGrant{g}}
			case 1, 2:
				return GrantRole{User: u, NewGrant: g}
			case 3:
				return RevokeRole{User: u, Grant: g.Grant}
			case 4:
				return DisableUser{User: u}
			case 5:
				return EnableUser{User: u}
			case 6:
				return DeleteUser{User: u}
			default:
				return IssueAPIToken{User: u, Token: events.APITokenID(fmt.Sprintf("%016d", rapid.IntRange(0, 99).Draw(t, "token"))), Role: g.Role, Selector: g.Selector, Expires: time.Now().Add(time.Hour)}
			}
		}
		for range rapid.IntRange(1, 12).Draw(t, "rounds") {
			batch := make([]Command, rapid.IntRange(1, 4).Draw(t, "at once"))
			for i := range batch {
				batch[i] = draw()
			}
			errs := make([]error, len(batch))
			var wg sync.WaitGroup
			for i, c := range batch {
				wg.Go(func() { errs[i] = do(managers[i%len(managers)], c) })
			}
			wg.Wait()
			for _, err := range errs {
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		var access Access
		for r, err := range store.Read(context.Background(), events.Filter{}) {
			if err != nil {
				t.Fatal(err)
			}
			if r.Subject.Kind() == events.KindAccess {
				access = access.Evolve(r)
				admins := 0
				for _, u := range access.Users {
					if u.Admin() {
						admins++
					}
				}
				if admins == 0 {
					t.Fatalf("nobody administers everything after position %d", r.Position)
				}
				continue
			}
			for _, en := range r.Entries {
				e, ok := en.Event.(events.APITokenIssued)
				if !ok {
					continue
				}
				if _, err := labels.Parse(e.Selector); err != nil || strings.Contains(e.Selector, " = ") {
					t.Fatalf("token with the selector %q", e.Selector)
				}
			}
		}
		for i, d := range managers {
			got, err := d.Access(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			if len(got.Users) != len(access.Users) || got.Revision != access.Revision {
				t.Fatalf("manager %d sees revision %d with %d users, the log has %d with %d", i, got.Revision, len(got.Users), access.Revision, len(access.Users))
			}
		}
	})
}

// TestStandingIsFresh: what a manager decides, it sees at once; what another one
// decides, when the answer it has is old.
func TestStandingIsFresh(t *testing.T) {
	store := eventstest.NewMemory()
	now := t0
	var managers [2]*Dispatcher
	for i := range managers {
		d, err := New(Config{Store: store, Now: func() time.Time { return now }})
		if err != nil {
			t.Fatal(err)
		}
		managers[i] = d
	}
	do := func(c Command) {
		t.Helper()
		if _, err := managers[0].Do(t.Context(), c, Meta{Actor: "user:x"}); err != nil {
			t.Fatal(err)
		}
	}
	disabled := func(i int) bool {
		t.Helper()
		s, ok, err := managers[i].Standing(t.Context(), bob)
		if err != nil || !ok {
			t.Fatalf("manager %d: %v, %v", i, ok, err)
		}
		return s.Disabled
	}
	do(CreateUser{User: ann, Grants: []NewGrant{{Grant: grantID(1), Role: events.RoleAdmin}}})
	do(CreateUser{User: bob})
	if disabled(0) || disabled(1) {
		t.Fatal("disabled from the start")
	}
	do(DisableUser{User: bob})
	if !disabled(0) {
		t.Error("the manager that decided does not see it")
	}
	now = now.Add(trustFor)
	if !disabled(1) {
		t.Errorf("the other manager does not see it after %v", trustFor)
	}
	if _, ok, err := managers[0].Standing(t.Context(), cay); ok || err != nil {
		t.Errorf("an unknown user: %v, %v", ok, err)
	}
	if _, ok, err := managers[0].APIToken(t.Context(), bob, "0123456789abcdef"); ok || err != nil {
		t.Errorf("an unknown token: %v, %v", ok, err)
	}
}
