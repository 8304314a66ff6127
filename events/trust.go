package events

// QuarantineCause says what led to a quarantine.
type QuarantineCause string

// The causes.
const (
	QuarantineOperator QuarantineCause = "operator"  // a person decided it
	QuarantineClone    QuarantineCause = "clone"     // two keys or two running agents use the device's id
	QuarantineClientID QuarantineCause = "client_id" // its certificate came with another device's id
	QuarantineFlood    QuarantineCause = "flood"     // it kept sending far more than it may
)

// DeviceRejected says that a pending device is not wanted: it gets nothing. It
// may be approved later.
type DeviceRejected struct {
	Reason string `json:"reason,omitempty"`
}

// DeviceQuarantined says that the device gets nothing until it is released. Its
// open tasks stay.
type DeviceQuarantined struct {
	Cause QuarantineCause `json:"cause"`
	// Reason is for people.
	Reason string `json:"reason,omitempty"`
	// KeyHash is, for a clone, the hex SHA-256 of the other public key.
	KeyHash string `json:"keyHash,omitempty"`
	// Serial is that of the certificate that was shown, in lower-case hex.
	Serial string `json:"serial,omitempty"`
	// Other is the device whose id was used.
	Other DeviceID `json:"other,omitempty"`
	// Instances are the running agents that took turns, in hex.
	Instances []string `json:"instances,omitempty"`
}

// DeviceReleased says that the quarantine is over: the device is trusted as it
// was before. A claim of another key is void.
type DeviceReleased struct {
	Reason string `json:"reason,omitempty"`
}

// DeviceKeyClaimed says that somebody with a valid join token wants a
// certificate for the device's id with another key. Nothing was given.
type DeviceKeyClaimed struct {
	// KeyHash is the hex SHA-256 of the claimed public key (SPKI, DER).
	KeyHash string `json:"keyHash"`
	// JoinToken is the token that was presented.
	JoinToken TokenID `json:"joinToken"`
	// Name is what the claimant calls itself.
	Name         string `json:"name"`
	AgentVersion string `json:"agentVersion"`
}

// DeviceRekeyed says that the device is the one with this key from now on.
// Certificates for any other are worth nothing.
type DeviceRekeyed struct {
	// KeyHash is the hex SHA-256 of the device's public key (SPKI, DER).
	KeyHash string `json:"keyHash"`
	// Policy is "token" when a join token for this device did it, "manual" when a
	// person accepted a claim.
	Policy string `json:"policy"`
	// JoinToken is the token that the key came with.
	JoinToken TokenID `json:"joinToken"`
}

func (DeviceRejected) Type() string    { return "DeviceRejected" }
func (DeviceQuarantined) Type() string { return "DeviceQuarantined" }
func (DeviceReleased) Type() string    { return "DeviceReleased" }
func (DeviceKeyClaimed) Type() string  { return "DeviceKeyClaimed" }
func (DeviceRekeyed) Type() string     { return "DeviceRekeyed" }

func (DeviceRejected) sealed()    {}
func (DeviceQuarantined) sealed() {}
func (DeviceReleased) sealed()    {}
func (DeviceKeyClaimed) sealed()  {}
func (DeviceRekeyed) sealed()     {}
