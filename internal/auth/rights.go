package auth

import (
	"slices"

	"pallas/events/labels"
)

// Role is a set of permissions. Each role has all those of the role before it.
type Role string

// The roles, from the least to the most.
const (
	RoleViewer   Role = "viewer"   // sees devices and what happens to them
	RoleOperator Role = "operator" // works on devices and lets them in
	RoleAdmin    Role = "admin"    // decides who may do what, and ends devices
)

// Roles lists the roles, from the least to the most.
func Roles() []Role { return []Role{RoleViewer, RoleOperator, RoleAdmin} }

// Permission is what an operation needs.
type Permission string

// The permissions. Those of the fleet hold within the scope of a grant; the
// others need a grant without one.
const (
	// Self is what everybody who is signed in may do: their own password,
	// sessions and tokens.
	Self Permission = "self"
	// Of the fleet.
	ReadFleet     Permission = "fleet:read"         // devices, virtual machines, tasks, their events and usage
	OperateVMs    Permission = "vms:operate"        // ask for tasks, cancel them
	ManageDevices Permission = "devices:manage"     // approve, reject, label, quarantine, renew certificates
	ManageJoining Permission = "join-tokens:manage" // see, make and revoke join tokens
	RetireDevices Permission = "devices:retire"     // end devices for good
	// Of the manager.
	ReadManager  Permission = "manager:read"  // its own state and metrics
	ReadAccess   Permission = "access:read"   // users, grants, everybody's tokens, sign-ins and refusals
	ManageAccess Permission = "access:manage" // change them
)

// Rule says who has a permission.
type Rule struct {
	Permission Permission
	// Role is the least role that has it, "" for everybody who is signed in.
	Role Role
	// Scoped says that a grant with a selector gives it for the devices that the
	// selector picks. Otherwise only a grant for everything gives it.
	Scoped bool
	// Doc says what it permits.
	Doc string
}

// Rules is the one table of who may do what: an operation names its permission,
// and nothing else decides.
var Rules = []Rule{
	{Self, "", false, "See and change what is one's own: password, sessions, API tokens."},
	{ReadFleet, RoleViewer, true, "See devices, virtual machines, tasks, their events and what their connections cost."},
	{ReadManager, RoleViewer, false, "See the metrics of the manager, and what is wrong with it."},
	{OperateVMs, RoleOperator, true, "Ask devices for tasks, and cancel them."},
	{ManageDevices, RoleOperator, true, "Approve, reject, describe, label, quarantine and release devices, and renew their certificates."},
	{ManageJoining, RoleOperator, true, "See, make and revoke join tokens whose devices are in one's scope."},
	{RetireDevices, RoleAdmin, true, "Retire devices."},
	{ReadAccess, RoleAdmin, false, "See users, their grants, tokens and sessions, sign-ins and refusals."},
	{ManageAccess, RoleAdmin, false, "Change users, their grants, tokens and sessions."},
}

// RuleOf returns the rule of a permission.
func RuleOf(p Permission) (Rule, bool) {
	i := slices.IndexFunc(Rules, func(r Rule) bool { return r.Permission == p })
	if i < 0 {
		return Rule{}, false
	}
	return Rules[i], true
}

// Grant gives a role for the devices that a selector picks; the zero Selector
// picks everything.
type Grant struct {
	Role     Role
	Selector labels.Selector
}

// Rights are what a caller may do. The zero Rights are nothing, not even
// [Self].
type Rights struct {
	// layers must all permit: the grants of a user, and those of the token that
	// acts for the user.
	layers [][]Grant
}

// RightsOf returns the rights of grants. Without any the caller has [Self].
func RightsOf(grants ...Grant) Rights { return Rights{layers: [][]Grant{grants}} }

// Within returns the rights that both have.
func (r Rights) Within(o Rights) Rights {
	if len(r.layers) == 0 || len(o.layers) == 0 {
		return Rights{}
	}
	return Rights{layers: slices.Concat(r.layers, o.layers)}
}

// Scope returns the devices for which the rights have a permission. For one that
// is not of the fleet it is everything or nothing.
func (r Rights) Scope(p Permission) labels.Scope {
	rule, ok := RuleOf(p)
	if !ok || len(r.layers) == 0 {
		return labels.Scope{}
	}
	scope := labels.Everything()
	if rule.Role == "" {
		return scope
	}
	for _, grants := range r.layers {
		var selectors []labels.Selector
		for _, g := range grants {
			if g.Role.has(rule.Role) && (rule.Scoped || g.Selector.Empty()) {
				selectors = append(selectors, g.Selector)
			}
		}
		scope = scope.Intersect(labels.Union(selectors...))
	}
	return scope
}

// Equal says whether both rights have each permission for the same devices, as
// far as that shows in their selectors.
func (r Rights) Equal(o Rights) bool {
	for _, rule := range Rules {
		if r.Scope(rule.Permission).String() != o.Scope(rule.Permission).String() {
			return false
		}
	}
	return true
}

// has says whether a role has the permissions of another one.
func (r Role) has(o Role) bool {
	roles := Roles()
	return slices.Contains(roles, r) && slices.Index(roles, r) >= slices.Index(roles, o)
}
