package events

import "time"

// JoinTokenIssued says that devices may register with a new token. The secret
// part of the token is not here, nor is its hash.
//
// Version 1 had no name pattern, version 2 no device.
type JoinTokenIssued struct {
	Token TokenID `json:"token"`
	Name  string  `json:"name,omitempty"`
	// MaxUses is how many devices may register with it, at least 1.
	MaxUses int       `json:"maxUses"`
	Expires time.Time `json:"expires"`
	// AutoApprove approves a device at once when it registers.
	AutoApprove bool `json:"autoApprove"`
	// Labels are those that its devices get; for a token with a device, those that
	// the device had.
	Labels map[string]string `json:"labels,omitempty"`
	// NamePattern makes the names of its devices: {host} stands for what the
	// device calls itself, {id8} for the first 8 digits of its id, {n} for which
	// use of the token it took. Absent, a device has the name of its host.
	NamePattern string `json:"namePattern,omitempty"`
	// Device is the one device that it is for, which is known already and may
	// come back with another key; "" for a token that makes new devices.
	Device DeviceID `json:"device,omitempty"`
}

// JoinTokenUsed says that one device took one use of the token.
type JoinTokenUsed struct {
	Device DeviceID `json:"device"`
}

// JoinTokenRevoked says that nobody may register with the token any more.
type JoinTokenRevoked struct{}

// JoinRefused says that so many attempts to register were refused that no more
// were heard for a while: somebody guesses, or a roll-out goes on with an old
// join string. It is written at most once an hour for a source; the source is
// the decision's.
//
// Attempts that name no token there is are in the aggregate of [NoToken].
type JoinRefused struct {
	// Failures is how many were refused since the last such event.
	Failures int `json:"failures"`
	// Limit is "source" when the attempts of one source were too many, "all"
	// when those of all sources together were.
	Limit string `json:"limit"`
}

func (JoinTokenIssued) Type() string  { return "JoinTokenIssued" }
func (JoinTokenUsed) Type() string    { return "JoinTokenUsed" }
func (JoinTokenRevoked) Type() string { return "JoinTokenRevoked" }
func (JoinRefused) Type() string      { return "JoinRefused" }

func (JoinTokenIssued) sealed()  {}
func (JoinTokenUsed) sealed()    {}
func (JoinTokenRevoked) sealed() {}
func (JoinRefused) sealed()      {}
