package httpapi

import "time"

// User is a person who may sign in.
type User struct {
	ID         string    `json:"id" format:"uuid" example:"019e1b7a-5a40-7c35-9d3c-2f0a1b2c3d4e" doc:"Permanent id: what the event log calls the user."`
	Login      string    `json:"login" example:"ann" doc:"What the user signs in with; one user has it."`
	Name       string    `json:"name,omitempty" example:"Ann Example" doc:"Name, for people."`
	Email      string    `json:"email,omitempty" example:"ann@example.com" doc:"E-mail address."`
	State      string    `json:"state" enum:"active,disabled" example:"active" doc:"Whether the user may do what the grants permit, or nothing."`
	DisabledAt time.Time `json:"disabledAt,omitzero" example:"2026-11-23T10:00:00Z" doc:"When the user was disabled; absent while active."`
	Reason     string    `json:"reason,omitempty" example:"left the company" doc:"Why, if somebody said."`
	Password   bool      `json:"password" example:"true" doc:"Whether the user has a password."`
	Grants     []Grant   `json:"grants" doc:"The roles that the user has. Together they are what the user may do."`
	CreatedAt  time.Time `json:"createdAt,omitzero" example:"2026-11-20T08:00:00Z" doc:"When the user was made."`
	Revision   uint64    `json:"revision" example:"1841" doc:"Position of the last change of what the user may do. The first number of the ETag."`
}

// Grant is a role that a user has.
type Grant struct {
	ID       string    `json:"id" format:"uuid" example:"019e1b7a-5a40-7c35-9d3c-2f0a1b2c3d4f" doc:"Tells the grants of a user apart."`
	Role     string    `json:"role" enum:"viewer,operator,admin" example:"operator" doc:"The role."`
	Selector string    `json:"selector,omitempty" example:"site=fra" doc:"Label selector of the devices that the role is for. Absent: it is for everything."`
	At       time.Time `json:"at,omitzero" example:"2026-11-20T08:00:00Z" doc:"Since when."`
	By       string    `json:"by,omitempty" example:"user:019e1b7a-5a40-7c35-9d3c-2f0a1b2c3d4e" doc:"Who gave it."`
}

// Role is a set of permissions.
type Role struct {
	Role        string       `json:"role" enum:"viewer,operator,admin" example:"operator" doc:"The role."`
	Permissions []Permission `json:"permissions" doc:"What it permits, with what the roles before it do."`
}

// Permission is what an operation needs.
type Permission struct {
	Permission string `json:"permission" example:"vms:operate" doc:"Name of the permission."`
	Scoped     bool   `json:"scoped" example:"true" doc:"Whether a grant with a selector gives it, for the devices that the selector picks. Otherwise only a grant for everything does."`
	Doc        string `json:"doc" example:"Ask devices for tasks, and cancel them." doc:"What it permits."`
}

// APIToken lets a program act for a user. Its secret is shown once, by the answer
// that creates it.
type APIToken struct {
	ID       string    `json:"id" example:"4f2k9d0a7b1c8e3h" doc:"Public part of the token, which stands in it after \"pls_\"."`
	Name     string    `json:"name,omitempty" example:"backup script" doc:"What it is for."`
	Role     string    `json:"role,omitempty" enum:"viewer,operator,admin" example:"viewer" doc:"The role that it has, as far as its owner has it too. Absent: all that its owner may do."`
	Selector string    `json:"selector,omitempty" example:"site=fra" doc:"Label selector of the devices that it is for. Absent: all that its owner may see or touch."`
	Expires  time.Time `json:"expires" example:"2027-02-21T09:30:00Z" doc:"When it ends."`
	State    string    `json:"state" enum:"active,expired" example:"active" doc:"Whether it can be used. A revoked one is gone."`
	IssuedAt time.Time `json:"issuedAt,omitzero" example:"2026-11-23T09:30:00Z" doc:"When it was made."`
	UsedAt   time.Time `json:"usedAt,omitzero" example:"2026-11-24T07:12:00Z" doc:"When it was used last, to the minute; absent before the first use."`
	UsedFrom string    `json:"usedFrom,omitempty" example:"203.0.113.7" doc:"Address it was used from last."`
	Networks []string  `json:"networks" example:"[\"203.0.113.7/32\"]" doc:"Networks that it was used from, the newest last."`
}

// Session is a person who has signed in with a browser.
type Session struct {
	ID        string    `json:"id" example:"4f2k9d0a7b1c8e3h" doc:"Tells the sessions of a user apart."`
	Method    string    `json:"method" enum:"password,oidc" example:"password" doc:"How the person signed in."`
	Source    string    `json:"source,omitempty" example:"203.0.113.7" doc:"Address that it was begun from."`
	CreatedAt time.Time `json:"createdAt" example:"2026-11-23T09:30:00Z" doc:"When it was begun."`
	UsedAt    time.Time `json:"usedAt,omitzero" example:"2026-11-23T11:02:00Z" doc:"When it was used last, to the minute."`
	UsedFrom  string    `json:"usedFrom,omitempty" example:"203.0.113.7" doc:"Address it was used from last."`
	Expires   time.Time `json:"expires" example:"2026-11-30T09:30:00Z" doc:"When it ends at the latest."`
	Current   bool      `json:"current" example:"true" doc:"Whether it is the one that this request came with."`
}
