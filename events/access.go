package events

// Role names a set of permissions. Each role has all those of the role before
// it.
type Role string

// The roles, from the least to the most.
const (
	RoleViewer   Role = "viewer"   // sees devices and what happens to them
	RoleOperator Role = "operator" // works on devices and lets them in
	RoleAdmin    Role = "admin"    // decides who may do what, and ends devices
)

// UserCreated says that there is a new user. Login, name and e-mail address are
// not here: a person must be forgettable, and the log forgets nothing.
type UserCreated struct {
	User UserID `json:"user"`
}

// RoleGranted says that a user has a role from now on, for the devices that a
// selector picks.
type RoleGranted struct {
	User UserID `json:"user"`
	// Grant tells the grants of a user apart.
	Grant GrantID `json:"grant"`
	Role  Role    `json:"role"`
	// Selector picks devices by their labels; without one the role holds for
	// everything.
	Selector string `json:"selector,omitempty"`
}

// RoleRevoked says that a grant ended.
type RoleRevoked struct {
	User  UserID  `json:"user"`
	Grant GrantID `json:"grant"`
}

// UserDisabled says that a user may do nothing until enabled again.
type UserDisabled struct {
	User   UserID `json:"user"`
	Reason string `json:"reason,omitempty"`
}

// UserEnabled says that a user may do again what the grants permit.
type UserEnabled struct {
	User UserID `json:"user"`
}

// UserDeleted says that a user is gone for good, and that what was kept of the
// person outside the log was destroyed.
type UserDeleted struct {
	User UserID `json:"user"`
}

func (UserCreated) Type() string  { return "UserCreated" }
func (RoleGranted) Type() string  { return "RoleGranted" }
func (RoleRevoked) Type() string  { return "RoleRevoked" }
func (UserDisabled) Type() string { return "UserDisabled" }
func (UserEnabled) Type() string  { return "UserEnabled" }
func (UserDeleted) Type() string  { return "UserDeleted" }

func (UserCreated) sealed()  {}
func (RoleGranted) sealed()  {}
func (RoleRevoked) sealed()  {}
func (UserDisabled) sealed() {}
func (UserEnabled) sealed()  {}
func (UserDeleted) sealed()  {}
