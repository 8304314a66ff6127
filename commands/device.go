package commands

import (
	"maps"
	"regexp"
	"slices"
	"time"

	"pallas/events"
)

// Trust says what a device is allowed.
type Trust string

// The levels of trust. A device begins as pending. A person approves or rejects
// it; a quarantine interrupts any of these until it is released; nothing leads
// out of retired.
const (
	TrustPending     Trust = "pending"     // registered; waits for approval, may hold a session and say hello
	TrustApproved    Trust = "approved"    // may be managed
	TrustRejected    Trust = "rejected"    // not wanted: gets nothing, unless it is approved after all
	TrustQuarantined Trust = "quarantined" // gets nothing until it is released
	TrustRetired     Trust = "retired"     // gets nothing any more
)

// Device is the folded state of a device's aggregate. Revision 0 means that
// there is no such device.
type Device struct {
	ID     events.DeviceID   `json:"id"`
	Name   string            `json:"name"`
	Labels map[string]string `json:"labels,omitempty"`
	Trust  Trust             `json:"trust"`
	Notes  string            `json:"notes,omitempty"`
	Site   *events.Site      `json:"site,omitempty"`
	// Connected says that the device has a session, or lost it within the grace
	// time. Address, AgentVersion and Protocol are those of the newest
	// DeviceConnected.
	Connected    bool   `json:"connected"`
	Address      string `json:"address,omitempty"`
	AgentVersion string `json:"agentVersion,omitempty"`
	Protocol     int    `json:"protocol,omitempty"`
	// KeyHash is the hex SHA-256 of the device's public key.
	KeyHash string `json:"keyHash"`
	// Quarantine is what there is to know of the quarantine that the device is
	// in; nil otherwise.
	Quarantine *Quarantine `json:"quarantine,omitempty"`
	// Rekeyed is the position of the newest DeviceRekeyed, 0 for none. Join tokens
	// for the device that were issued before it rekey no more.
	Rekeyed uint64 `json:"rekeyed,omitempty"`
	// FormerKeys are those that a join token for the device replaced, and that
	// have not shown up since; the newest 4, oldest first.
	FormerKeys []string `json:"formerKeys,omitempty"`
	// Certificates are those that have not expired, at most the newest 8,
	// oldest first.
	Certificates []events.CertificateIssued `json:"certificates,omitempty"`
	// Newest is the certificate that was issued last, also when it has expired.
	Newest events.CertificateIssued `json:"newest,omitzero"`
	// RotationAt is since when the device is to get another certificate, zero
	// when it is not.
	RotationAt time.Time `json:"rotationAt,omitzero"`
	// Anchors name the CAs that the device accepts the manager by, sorted; nil
	// while it has only ever had the one that issued its certificate.
	Anchors   []string       `json:"anchors,omitempty"`
	JoinToken events.TokenID `json:"joinToken"`
	Revision  uint64         `json:"revision"`
}

// maxCertificates is how many certificates of a device are remembered.
const maxCertificates = 8

// RegisterDevice makes a device known and records its certificate. The same
// device with the same key may register again: that records another
// certificate and changes nothing else.
type RegisterDevice struct {
	Device events.DeviceID
	Name   string
	// Token is the join token that was used; required for a new device.
	Token events.TokenID
	// AutoApprove and Labels are the join token's.
	AutoApprove bool
	Labels      map[string]string
	// Rekey is the position at which a join token for this very device was
	// issued: the key becomes the device's, whatever that was, unless the device
	// got another key after that. 0 for any other token.
	Rekey uint64
	// KeyHash is the hex SHA-256 of the device's public key (SPKI, DER).
	KeyHash      string
	AgentVersion string
	// Certificate was just signed for that key.
	Certificate events.CertificateIssued
}

// ApproveDevice lets a pending device be managed.
type ApproveDevice struct {
	Device events.DeviceID
	// IfRevision refuses the command unless the device is at this revision; 0
	// means any.
	IfRevision uint64
}

// RetireDevice ends a device for good.
type RetireDevice struct {
	Device     events.DeviceID
	Reason     string
	IfRevision uint64
}

// ConnectDevice records that a device has a session. It writes only what is
// news: a device that was not connected, or a changed agent or protocol. A new
// address alone is not: NAT changes it at will.
type ConnectDevice struct {
	Device       events.DeviceID
	Address      string
	AgentVersion string
	Protocol     int
}

// LoseDevice records that a connected device has had no session for longer
// than the grace time.
type LoseDevice struct {
	Device events.DeviceID
	Reason string
	// Since is when the last session ended; zero when that is not known.
	Since time.Time
}

// Subject returns the device's aggregate.
func (c RegisterDevice) Subject() events.Subject { return events.DeviceSubject(c.Device) }

// Subject returns the device's aggregate.
func (c ApproveDevice) Subject() events.Subject { return events.DeviceSubject(c.Device) }

// Subject returns the device's aggregate.
func (c RetireDevice) Subject() events.Subject { return events.DeviceSubject(c.Device) }

// Subject returns the device's aggregate.
func (c ConnectDevice) Subject() events.Subject { return events.DeviceSubject(c.Device) }

// Subject returns the device's aggregate.
func (c LoseDevice) Subject() events.Subject { return events.DeviceSubject(c.Device) }

func (RegisterDevice) sealed() {}
func (ApproveDevice) sealed()  {}
func (RetireDevice) sealed()   {}
func (ConnectDevice) sealed()  {}
func (LoseDevice) sealed()     {}

var serial = regexp.MustCompile(`^[0-9a-f]{1,64}$`)

func (d Device) register(c RegisterDevice, now time.Time) ([]events.Event, error) {
	cert := c.Certificate
	cert.NotBefore, cert.NotAfter = instant(cert.NotBefore), instant(cert.NotAfter)
	if err := first(
		checkName("name", c.Name),
		checkKeyHash("keyHash", c.KeyHash),
		checkText("agentVersion", c.AgentVersion, MaxName),
		checkLabels(c.Labels),
		checkKeyHash("certificate.keyHash", cert.KeyHash),
	); err != nil {
		return nil, err
	}
	switch {
	case !serial.MatchString(cert.Serial):
		return nil, invalid("certificate.serial", "%q: want lower-case hex", clip(cert.Serial))
	case cert.KeyHash != c.KeyHash:
		return nil, invalid("certificate.keyHash", "the certificate is for another key than the device's")
	case !storable(cert.NotBefore) || !storable(cert.NotAfter) || !cert.NotAfter.After(cert.NotBefore) || !cert.NotAfter.After(now):
		return nil, invalid("certificate.notAfter", "the certificate is not valid after %s", now.Format(time.RFC3339))
	}
	switch {
	case d.Revision == 0:
		if err := checkToken(c.Token); err != nil {
			return nil, err
		}
		out := []events.Event{events.DeviceRegistered{
			Device: c.Device, Name: c.Name, JoinToken: c.Token, Labels: copyLabels(c.Labels),
			KeyHash: c.KeyHash, AgentVersion: c.AgentVersion,
		}}
		if c.AutoApprove {
			out = append(out, events.DeviceApproved{Policy: "auto"})
		}
		return append(out, cert), nil
	case d.Trust == TrustRetired:
		return nil, denied(CodeRetired, "device %s was retired: give the device a new identity before it joins again", c.Device)
	case c.Rekey > d.Rekeyed:
		return d.rekeyByToken(c, cert)
	case d.KeyHash != c.KeyHash:
		return nil, conflict(CodeClone, "device %s is registered with another key: if this device is a copy, give it a new identity; otherwise an operator has to accept its new key", c.Device)
	case d.Trust == TrustRejected || d.Trust == TrustQuarantined:
		return nil, d.keptOut("it gets no certificate")
	case slices.ContainsFunc(d.Certificates, func(k events.CertificateIssued) bool { return k.Serial == cert.Serial }):
		return nil, nil
	}
	return []events.Event{cert}, nil
}

func (d Device) approve(c ApproveDevice) ([]events.Event, error) {
	if err := d.ready(c.Device, c.IfRevision); err != nil {
		return nil, err
	}
	switch d.Trust {
	case TrustApproved:
		return nil, nil
	case TrustRetired:
		return nil, d.isRetired()
	case TrustQuarantined:
		return nil, d.isQuarantined()
	case TrustPending, TrustRejected:
	}
	return []events.Event{events.DeviceApproved{Policy: "manual"}}, nil
}

func (d Device) retire(c RetireDevice) ([]events.Event, error) {
	if err := first(checkText("reason", c.Reason, MaxReason), d.ready(c.Device, c.IfRevision)); err != nil {
		return nil, err
	}
	if d.Trust == TrustRetired {
		return nil, nil
	}
	return []events.Event{events.DeviceRetired{Reason: c.Reason}}, nil
}

func (d Device) connect(c ConnectDevice) ([]events.Event, error) {
	if err := first(
		checkText("address", c.Address, MaxName),
		checkText("agentVersion", c.AgentVersion, MaxName),
		d.ready(c.Device, 0),
	); err != nil {
		return nil, err
	}
	switch {
	case c.Protocol < 1:
		return nil, invalid("protocol", "%d: want at least 1", c.Protocol)
	case d.Trust != TrustApproved && d.Trust != TrustPending:
		return nil, d.keptOut("it may not connect")
	case d.Connected && d.AgentVersion == c.AgentVersion && d.Protocol == c.Protocol:
		return nil, nil
	}
	return []events.Event{events.DeviceConnected{Address: c.Address, AgentVersion: c.AgentVersion, Protocol: c.Protocol}}, nil
}

func (d Device) lose(c LoseDevice) ([]events.Event, error) {
	if err := first(checkText("reason", c.Reason, MaxReason), d.ready(c.Device, 0)); err != nil {
		return nil, err
	}
	switch {
	case !storable(c.Since):
		return nil, invalid("since", "is beyond the year 9999")
	case !d.Connected:
		return nil, nil
	}
	return []events.Event{events.DeviceLost{Reason: c.Reason, Since: instant(c.Since)}}, nil
}

// ready refuses an unknown device and a stale revision.
func (d Device) ready(id events.DeviceID, ifRevision uint64) *Error {
	switch {
	case d.Revision == 0:
		return unknownDevice(id)
	case ifRevision != 0 && ifRevision != d.Revision:
		return &Error{Kind: KindStale, Field: "If-Match", Message: staleMessage("device "+string(d.ID), ifRevision, d.Revision)}
	}
	return nil
}

func unknownDevice(id events.DeviceID) *Error {
	return notFound("device %s is not known", clip(string(id)))
}

func (d Device) isRetired() *Error {
	return conflict(CodeRetired, "device %s was retired: it cannot be changed any more", d.ID)
}

// mayReport refuses the reports of a device that may not be managed.
func (d Device) mayReport(id events.DeviceID) *Error {
	if err := d.ready(id, 0); err != nil {
		return err
	}
	switch d.Trust {
	case TrustPending:
		return denied(CodePending, "device %s waits for approval: its reports are not taken", d.ID)
	case TrustRejected, TrustQuarantined, TrustRetired:
		return d.keptOut("its reports are not taken")
	case TrustApproved:
	}
	return nil
}

// Evolve returns the state after a record of the device's aggregate. It is
// pure.
func (d Device) Evolve(r events.Record) Device { return evolve(d, r) }

func (d *Device) fork() folded { c := *d; return &c }

func (d *Device) fold(r events.Record) {
	for _, en := range r.Entries {
		switch e := en.Event.(type) {
		case events.DeviceRegistered:
			d.ID, d.Name, d.Labels, d.Trust = e.Device, e.Name, copyLabels(e.Labels), TrustPending
			d.JoinToken, d.KeyHash, d.AgentVersion = e.JoinToken, e.KeyHash, e.AgentVersion
		case events.DeviceApproved:
			d.Trust = TrustApproved
		case events.CertificateIssued:
			d.Certificates = append(slices.Clone(d.Certificates), e)
			d.Newest, d.RotationAt = e, time.Time{}
		case events.CertificateRotationRequested:
			d.RotationAt = r.Time
		case events.DeviceAnchorsChanged:
			d.Anchors = slices.Clone(e.Anchors)
		case events.DeviceConnected:
			d.Connected, d.Address, d.AgentVersion, d.Protocol = true, e.Address, e.AgentVersion, e.Protocol
		case events.DeviceLost:
			d.Connected = false
		case events.DeviceLabelled:
			d.Labels = copyLabels(e.Labels)
		case events.DeviceRenamed:
			d.Name = e.Name
		case events.DeviceDescribed:
			d.Notes, d.Site = e.Notes, copySite(e.Site)
		case events.DeviceRetired:
			d.Trust, d.Quarantine, d.FormerKeys = TrustRetired, nil, nil
		default:
			d.foldTrust(en.Event, r.Position)
		}
	}
	d.dropCertificates(r.Time)
	d.Revision = r.Position
}

// dropCertificates forgets the certificates that had expired at the instant,
// and the oldest beyond the limit. It never changes the list in place.
func (d *Device) dropCertificates(now time.Time) {
	expired := func(c events.CertificateIssued) bool { return !c.NotAfter.After(now) }
	if slices.ContainsFunc(d.Certificates, expired) {
		d.Certificates = slices.DeleteFunc(slices.Clone(d.Certificates), expired)
	}
	if n := len(d.Certificates); n > maxCertificates {
		d.Certificates = slices.Clone(d.Certificates[n-maxCertificates:])
	}
	if len(d.Certificates) == 0 {
		d.Certificates = nil
	}
}

// copyLabels copies labels; none is nil.
func copyLabels(m map[string]string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	return maps.Clone(m)
}
