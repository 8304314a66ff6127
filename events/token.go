package events

import "time"

// JoinTokenIssued says that devices may register with a new token. The secret
// part of the token is not here, nor is its hash.
type JoinTokenIssued struct {
	Token TokenID `json:"token"`
	Name  string  `json:"name,omitempty"`
	// MaxUses is how many devices may register with it, at least 1.
	MaxUses int       `json:"maxUses"`
	Expires time.Time `json:"expires"`
	// AutoApprove approves a device at once when it registers.
	AutoApprove bool              `json:"autoApprove"`
	Labels      map[string]string `json:"labels,omitempty"`
}

// JoinTokenUsed says that one device took one use of the token.
type JoinTokenUsed struct {
	Device DeviceID `json:"device"`
}

// JoinTokenRevoked says that nobody may register with the token any more.
type JoinTokenRevoked struct{}

func (JoinTokenIssued) Type() string  { return "JoinTokenIssued" }
func (JoinTokenUsed) Type() string    { return "JoinTokenUsed" }
func (JoinTokenRevoked) Type() string { return "JoinTokenRevoked" }

func (JoinTokenIssued) sealed()  {}
func (JoinTokenUsed) sealed()    {}
func (JoinTokenRevoked) sealed() {}
