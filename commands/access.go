package commands

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"pallas/events"
	"pallas/events/labels"
)

// Access is the folded state of who may do what: every user there is, and what
// each may do. It is one aggregate for all users, so that a decision sees them
// all: at every time one user that is not disabled is an administrator of
// everything.
type Access struct {
	Users    map[events.UserID]Standing `json:"users,omitempty"`
	Revision uint64                     `json:"revision"`
}

// Standing is what the log knows of a user. Who it is, it does not know.
type Standing struct {
	Created  time.Time `json:"created"`
	Disabled bool      `json:"disabled,omitempty"`
	// DisabledAt and Reason are of the disabling, while it lasts.
	DisabledAt time.Time `json:"disabledAt,omitzero"`
	Reason     string    `json:"reason,omitempty"`
	// Grants are never changed in place.
	Grants []RoleGrant `json:"grants,omitempty"`
	// Revision is the position of the newest decision about the user.
	Revision uint64 `json:"revision"`
}

// RoleGrant is a role that a user has.
type RoleGrant struct {
	ID   events.GrantID `json:"id"`
	Role events.Role    `json:"role"`
	// Selector picks devices, in its canonical spelling; "" is everything.
	Selector string       `json:"selector,omitempty"`
	At       time.Time    `json:"at"`
	By       events.Actor `json:"by"`
}

// NewGrant is a role to give.
type NewGrant struct {
	Grant events.GrantID
	Role  events.Role
	// Selector picks devices by their labels; "" is everything.
	Selector string
}

// CreateUser makes a user with grants. A user that is there stays as it is. The
// first user must be an administrator of everything.
type CreateUser struct {
	User   events.UserID
	Grants []NewGrant
}

// GrantRole gives a user a role. The same role with the same selector is given
// once.
type GrantRole struct {
	User events.UserID
	NewGrant
	// IfRevision refuses the command unless the user is at this revision; 0
	// means any. So it is in the commands below.
	IfRevision uint64
}

// RevokeRole ends a grant.
type RevokeRole struct {
	User       events.UserID
	Grant      events.GrantID
	IfRevision uint64
}

// DisableUser takes everything from a user until EnableUser.
type DisableUser struct {
	User       events.UserID
	Reason     string
	IfRevision uint64
}

// EnableUser gives a disabled user back what the grants permit.
type EnableUser struct {
	User       events.UserID
	IfRevision uint64
}

// DeleteUser ends a user for good.
type DeleteUser struct {
	User       events.UserID
	IfRevision uint64
}

// Subject returns the aggregate of who may do what.
func (CreateUser) Subject() events.Subject { return events.AccessSubject() }

// Subject returns the aggregate of who may do what.
func (GrantRole) Subject() events.Subject { return events.AccessSubject() }

// Subject returns the aggregate of who may do what.
func (RevokeRole) Subject() events.Subject { return events.AccessSubject() }

// Subject returns the aggregate of who may do what.
func (DisableUser) Subject() events.Subject { return events.AccessSubject() }

// Subject returns the aggregate of who may do what.
func (EnableUser) Subject() events.Subject { return events.AccessSubject() }

// Subject returns the aggregate of who may do what.
func (DeleteUser) Subject() events.Subject { return events.AccessSubject() }

func (CreateUser) sealed()  {}
func (GrantRole) sealed()   {}
func (RevokeRole) sealed()  {}
func (DisableUser) sealed() {}
func (EnableUser) sealed()  {}
func (DeleteUser) sealed()  {}

func (a Access) create(c CreateUser) ([]events.Event, error) {
	if err := checkUser(c.User); err != nil {
		return nil, err
	}
	if _, ok := a.Users[c.User]; ok {
		return nil, nil
	}
	switch {
	case len(a.Users) >= MaxUsers:
		return nil, conflict(CodeUserLimit, "there are %d users already, and there can be no more: delete some", len(a.Users))
	case len(c.Grants) > MaxGrants:
		return nil, invalid("grants", "%d grants: give at most %d", len(c.Grants), MaxGrants)
	}
	out := []events.Event{events.UserCreated{User: c.User}}
	admin := false
	seen := map[NewGrant]bool{}
	for i, g := range c.Grants {
		g, err := checkGrant(fmt.Sprintf("grants[%d].", i), g)
		if err != nil {
			return nil, err
		}
		same := NewGrant{Role: g.Role, Selector: g.Selector}
		if seen[same] {
			return nil, invalid(fmt.Sprintf("grants[%d]", i), "is given twice: leave it out")
		}
		seen[same] = true
		admin = admin || isAdmin(g.Role, g.Selector)
		out = append(out, events.RoleGranted{User: c.User, Grant: g.Grant, Role: g.Role, Selector: g.Selector})
	}
	if len(a.Users) == 0 && !admin {
		return nil, conflict(CodeLastAdmin, "the first user must have the role %s for everything", events.RoleAdmin)
	}
	return out, nil
}

func (a Access) grant(c GrantRole) ([]events.Event, error) {
	u, err := a.Ready(c.User, c.IfRevision)
	if err != nil {
		return nil, err
	}
	g, err := checkGrant("", c.NewGrant)
	if err != nil {
		return nil, err
	}
	for _, have := range u.Grants {
		switch {
		case have.Role == g.Role && have.Selector == g.Selector:
			return nil, nil
		case have.ID == g.Grant:
			return nil, invalid("Idempotency-Key", "was used for another grant: use a new key")
		}
	}
	if len(u.Grants) >= MaxGrants {
		return nil, conflict(CodeGrantLimit, "user %s has %d grants already: revoke some, or put several values in one selector", c.User, len(u.Grants))
	}
	return []events.Event{events.RoleGranted{User: c.User, Grant: g.Grant, Role: g.Role, Selector: g.Selector}}, nil
}

func (a Access) revoke(c RevokeRole) ([]events.Event, error) {
	u, err := a.Ready(c.User, c.IfRevision)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(u.Grants, func(g RoleGrant) bool { return g.ID == c.Grant })
	if i < 0 {
		return nil, notFound("user %s has no grant %s", c.User, clip(string(c.Grant)))
	}
	if err := a.without(c.User, Standing{Disabled: u.Disabled, Grants: slices.Delete(slices.Clone(u.Grants), i, i+1)}); err != nil {
		return nil, err
	}
	return []events.Event{events.RoleRevoked{User: c.User, Grant: c.Grant}}, nil
}

func (a Access) disable(c DisableUser) ([]events.Event, error) {
	if err := checkText("reason", c.Reason, MaxReason); err != nil {
		return nil, err
	}
	u, err := a.Ready(c.User, c.IfRevision)
	if err != nil {
		return nil, err
	}
	if u.Disabled {
		return nil, nil
	}
	if err := a.without(c.User, Standing{Disabled: true, Grants: u.Grants}); err != nil {
		return nil, err
	}
	return []events.Event{events.UserDisabled{User: c.User, Reason: c.Reason}}, nil
}

func (a Access) enable(c EnableUser) ([]events.Event, error) {
	u, err := a.Ready(c.User, c.IfRevision)
	if err != nil || !u.Disabled {
		return nil, err
	}
	return []events.Event{events.UserEnabled{User: c.User}}, nil
}

func (a Access) remove(c DeleteUser) ([]events.Event, error) {
	if _, err := a.Ready(c.User, c.IfRevision); err != nil {
		return nil, err
	}
	if err := a.without(c.User, Standing{Disabled: true}); err != nil {
		return nil, err
	}
	return []events.Event{events.UserDeleted{User: c.User}}, nil
}

// Ready refuses an unknown user and a stale revision.
func (a Access) Ready(id events.UserID, ifRevision uint64) (Standing, error) {
	u, ok := a.Users[id]
	switch {
	case !ok:
		return u, notFound("user %s is not known", clip(string(id)))
	case ifRevision != 0 && ifRevision != u.Revision:
		return u, &Error{Kind: KindStale, Field: "If-Match", Message: staleMessage("user "+string(id), ifRevision, u.Revision)}
	}
	return u, nil
}

// without refuses to put a user in another state when nobody would be left to
// administer everything.
func (a Access) without(id events.UserID, after Standing) error {
	if !a.Users[id].Admin() || after.Admin() {
		return nil
	}
	for other, u := range a.Users {
		if other != id && u.Admin() {
			return nil
		}
	}
	return conflict(CodeLastAdmin, "user %s is the last one who may do everything: give somebody else the role %s without a selector first", id, events.RoleAdmin)
}

// Admin says whether the user is an administrator of everything now.
func (u Standing) Admin() bool {
	return !u.Disabled && slices.ContainsFunc(u.Grants, func(g RoleGrant) bool { return isAdmin(g.Role, g.Selector) })
}

func isAdmin(r events.Role, selector string) bool { return r == events.RoleAdmin && selector == "" }

// Covers says whether one of the user's grants permits all that a role for a
// selector would. Like [labels.Selector.Within] it may be false where that takes
// more than one requirement to see.
func (u Standing) Covers(r events.Role, sel labels.Selector) bool {
	return slices.ContainsFunc(u.Grants, func(g RoleGrant) bool {
		own, err := labels.Parse(g.Selector)
		return err == nil && rank(g.Role) >= rank(r) && sel.Within(own)
	})
}

// roles are the roles from the least to the most.
var roles = []events.Role{events.RoleViewer, events.RoleOperator, events.RoleAdmin}

func rank(r events.Role) int { return slices.Index(roles, r) }

// checkGrant returns the grant with its selector in canonical spelling.
func checkGrant(prefix string, g NewGrant) (NewGrant, error) {
	if _, err := events.ParseUUID("grant id", string(g.Grant)); err != nil {
		return g, invalid(prefix+"grant", "%s", err)
	}
	sel, err := checkRole(prefix, g.Role, g.Selector)
	if err != nil {
		return g, err
	}
	g.Selector = sel.String()
	return g, nil
}

// checkRole accepts a role that exists and a selector that can be read.
func checkRole(prefix string, r events.Role, selector string) (labels.Selector, error) {
	if rank(r) < 0 {
		return labels.Selector{}, invalid(prefix+"role", "%q is no role; there are %s, %s and %s", clip(string(r)), roles[0], roles[1], roles[2])
	}
	sel, err := labels.Parse(selector)
	var syntax *labels.SyntaxError
	if errors.As(err, &syntax) {
		return sel, invalid(prefix+"selector", "position %d: %s", syntax.Position, syntax.Message)
	}
	return sel, err
}

func checkUser(id events.UserID) *Error {
	if _, err := events.ParseUUID("user id", string(id)); err != nil {
		return invalid("user", "%s", err)
	}
	if id == events.Nobody {
		return invalid("user", "%s is nobody", id)
	}
	return nil
}

// Evolve returns the state after a record of the aggregate. It is pure.
func (a Access) Evolve(r events.Record) Access { return evolve(a, r) }

func (a *Access) fork() folded {
	c := *a
	c.Users = maps.Clone(c.Users)
	return &c
}

func (a *Access) size() int { return itemSize + len(a.Users)*itemSize }

func (a *Access) copy() Access {
	c := *a
	c.Users = maps.Clone(c.Users) // grants are never changed in place
	return c
}

func (a *Access) fold(r events.Record) {
	if a.Users == nil {
		a.Users = map[events.UserID]Standing{}
	}
	for _, en := range r.Entries {
		switch e := en.Event.(type) {
		case events.UserCreated:
			a.Users[e.User] = Standing{Created: r.Time, Revision: r.Position}
		case events.RoleGranted:
			a.change(e.User, r, func(u *Standing) {
				u.Grants = append(slices.Clip(u.Grants), RoleGrant{ID: e.Grant, Role: e.Role, Selector: e.Selector, At: r.Time, By: r.Actor})
			})
		case events.RoleRevoked:
			a.change(e.User, r, func(u *Standing) {
				u.Grants = slices.DeleteFunc(slices.Clone(u.Grants), func(g RoleGrant) bool { return g.ID == e.Grant })
			})
		case events.UserDisabled:
			a.change(e.User, r, func(u *Standing) { u.Disabled, u.DisabledAt, u.Reason = true, r.Time, e.Reason })
		case events.UserEnabled:
			a.change(e.User, r, func(u *Standing) { u.Disabled, u.DisabledAt, u.Reason = false, time.Time{}, "" })
		case events.UserDeleted:
			delete(a.Users, e.User)
		default:
		}
	}
	a.Revision = r.Position
}

func (a *Access) change(id events.UserID, r events.Record, f func(*Standing)) {
	u, ok := a.Users[id]
	if !ok {
		return
	}
	f(&u)
	u.Revision = r.Position
	a.Users[id] = u
}
