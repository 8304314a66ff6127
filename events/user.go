package events

import "time"

// SignInMethod says how a person showed who they are.
type SignInMethod string

// The ways to sign in.
const (
	MethodPassword SignInMethod = "password"
	MethodOIDC     SignInMethod = "oidc" // by an OpenID Connect provider
)

// PasswordChange says how a password came to be.
type PasswordChange string

// The ways to a password.
const (
	PasswordFirst PasswordChange = "first" // by a one-time link, where there was none
	PasswordReset PasswordChange = "reset" // by a one-time link
	PasswordOwn   PasswordChange = "own"   // by its owner, who knew the old one
)

// PasswordChanged says that a user has a new password.
type PasswordChanged struct {
	How PasswordChange `json:"how"`
}

// PasswordResetIssued says that a one-time link was made with which the user can
// set a password. A link that was made before it is void.
type PasswordResetIssued struct {
	Expires time.Time `json:"expires"`
}

// APITokenIssued says that programs may act for the user with a new token. It
// never permits more than the user may do at the time of a request. Its secret is not
// here, nor is its hash.
type APITokenIssued struct {
	Token APITokenID `json:"token"`
	// Role bounds what the token permits; without one it is all that its owner
	// may do.
	Role Role `json:"role,omitempty"`
	// Selector picks devices by their labels; without one the token is for all
	// devices that its owner may see or touch.
	Selector string    `json:"selector,omitempty"`
	Expires  time.Time `json:"expires"`
}

// APITokenRevoked says that nobody may use a token any more.
type APITokenRevoked struct {
	Token APITokenID `json:"token"`
}

// APITokenUsed says that a token was used from a network that it was not used
// from lately.
type APITokenUsed struct {
	Token APITokenID `json:"token"`
	// Network is what counts as one source: an IPv4 address or an IPv6 /64.
	Network string `json:"network"`
}

// SignedIn says that a person began a session.
type SignedIn struct {
	Method SignInMethod `json:"method"`
}

// SignInFailed says that somebody tried to sign in as the user and could not.
// What was typed is not here.
type SignInFailed struct {
	Method SignInMethod `json:"method"`
	Reason string       `json:"reason"`
}

// SessionEnded says that sessions of the user ended before their time.
type SessionEnded struct {
	// Count is how many sessions ended together.
	Count  int    `json:"count"`
	Reason string `json:"reason"`
}

// AccessDenied says that the user asked for something that the grants do not
// permit. Repeats within a minute are not recorded one by one.
type AccessDenied struct {
	// Operation is the operation of the API that was asked for.
	Operation string `json:"operation"`
	// Permission is the one that was missing.
	Permission string `json:"permission"`
}

func (PasswordChanged) Type() string     { return "PasswordChanged" }
func (PasswordResetIssued) Type() string { return "PasswordResetIssued" }
func (APITokenIssued) Type() string      { return "APITokenIssued" }
func (APITokenRevoked) Type() string     { return "APITokenRevoked" }
func (APITokenUsed) Type() string        { return "APITokenUsed" }
func (SignedIn) Type() string            { return "SignedIn" }
func (SignInFailed) Type() string        { return "SignInFailed" }
func (SessionEnded) Type() string        { return "SessionEnded" }
func (AccessDenied) Type() string        { return "AccessDenied" }

func (PasswordChanged) sealed()     {}
func (PasswordResetIssued) sealed() {}
func (APITokenIssued) sealed()      {}
func (APITokenRevoked) sealed()     {}
func (APITokenUsed) sealed()        {}
func (SignedIn) sealed()            {}
func (SignInFailed) sealed()        {}
func (SessionEnded) sealed()        {}
func (AccessDenied) sealed()        {}
