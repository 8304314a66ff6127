package events

import "time"

// DeviceRegistered says that a device made itself known: it presented a valid
// join token and a certificate request for its own id.
type DeviceRegistered struct {
	Device DeviceID `json:"device"`
	// Name is what the device calls itself, usually the host's name.
	Name string `json:"name"`
	// JoinToken is the token that let it in.
	JoinToken TokenID `json:"joinToken"`
	// Labels come from the join token.
	Labels map[string]string `json:"labels,omitempty"`
	// KeyHash is the hex SHA-256 of the device's public key (SPKI, DER).
	KeyHash string `json:"keyHash"`
	// AgentVersion is the version of the agent that registered.
	AgentVersion string `json:"agentVersion"`
}

// DeviceApproved says that the device may be managed.
type DeviceApproved struct {
	// Policy is "auto" when the join token approved it, "manual" when a person
	// did.
	Policy string `json:"policy"`
}

// CertificateIssued says that the device CA signed a certificate for the
// device. Earlier certificates of the same key stay valid until they expire.
type CertificateIssued struct {
	// Serial is the certificate's serial number in lower-case hex.
	Serial string `json:"serial"`
	// KeyHash is the hex SHA-256 of the certified public key (SPKI, DER).
	KeyHash   string    `json:"keyHash"`
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
	// Issuer names the CA that signed it: the first 8 bytes of the SHA-256 of its
	// certificate, in lower-case hex.
	Issuer string `json:"issuer,omitempty"`
	// Reason is why the device got it.
	Reason CertificateReason `json:"reason,omitempty"`
}

// DeviceConnected says that the device opened a session and greeted the
// manager. A short loss within the grace time writes nothing.
type DeviceConnected struct {
	// Address is where the connection came from, without a port.
	Address      string `json:"address"`
	AgentVersion string `json:"agentVersion"`
	// Protocol is the version of the device protocol that the session uses.
	Protocol int `json:"protocol"`
}

// DeviceLost says that the device has had no session for longer than the grace
// time, or that its session ended because it is kept out.
type DeviceLost struct {
	// Reason is the broker's word for why the last session ended, or
	// "not seen since the manager started".
	Reason string `json:"reason"`
	// Since is when the last session ended; zero when that is not known.
	Since time.Time `json:"since,omitzero"`
}

// DeviceLabelled replaces the device's labels.
type DeviceLabelled struct {
	Labels map[string]string `json:"labels"`
}

// DeviceRenamed gives the device another display name.
type DeviceRenamed struct {
	Name string `json:"name"`
}

// DeviceDescribed replaces what people have written down about the device.
type DeviceDescribed struct {
	// Notes are free text. People are asked to write nothing personal there.
	Notes string `json:"notes,omitempty"`
	// Site is where the device stands; absent when nobody has said.
	Site *Site `json:"site,omitempty"`
}

// Site is a place where devices stand.
type Site struct {
	Name string `json:"name"`
	// Latitude and Longitude are WGS 84 degrees, north and east positive. Either
	// both are known or neither is.
	Latitude  *float64 `json:"latitude,omitempty"`
	Longitude *float64 `json:"longitude,omitempty"`
}

// DeviceRetired ends the device for good. Its certificates are worth nothing
// from then on; its history stays.
type DeviceRetired struct {
	Reason string `json:"reason,omitempty"`
}

func (DeviceRegistered) Type() string  { return "DeviceRegistered" }
func (DeviceApproved) Type() string    { return "DeviceApproved" }
func (CertificateIssued) Type() string { return "CertificateIssued" }
func (DeviceConnected) Type() string   { return "DeviceConnected" }
func (DeviceLost) Type() string        { return "DeviceLost" }
func (DeviceLabelled) Type() string    { return "DeviceLabelled" }
func (DeviceRenamed) Type() string     { return "DeviceRenamed" }
func (DeviceDescribed) Type() string   { return "DeviceDescribed" }
func (DeviceRetired) Type() string     { return "DeviceRetired" }

func (DeviceRegistered) sealed()  {}
func (DeviceApproved) sealed()    {}
func (CertificateIssued) sealed() {}
func (DeviceConnected) sealed()   {}
func (DeviceLost) sealed()        {}
func (DeviceLabelled) sealed()    {}
func (DeviceRenamed) sealed()     {}
func (DeviceDescribed) sealed()   {}
func (DeviceRetired) sealed()     {}
