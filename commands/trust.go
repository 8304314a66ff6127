package commands

import (
	"slices"

	"pallas/events"
)

// Quarantine is what there is to know of a device's quarantine.
type Quarantine struct {
	Cause events.QuarantineCause `json:"cause"`
	// Before is the trust that a release gives back.
	Before Trust `json:"before"`
	// Claim is the newest claim of another key; nil when there is none. Claims
	// counts them.
	Claim  *Claim `json:"claim,omitempty"`
	Claims int    `json:"claims,omitempty"`
}

// Claim is another key that asked for a certificate for the device's id.
type Claim struct {
	KeyHash   string         `json:"keyHash"`
	JoinToken events.TokenID `json:"joinToken"`
}

// maxFormerKeys is how many replaced keys of a device are remembered.
const maxFormerKeys = 4

// maxClaims is how many claims of a quarantine are written down. Who has a
// valid join token could make new keys all day.
const maxClaims = 16

// RejectDevice turns a pending device down.
type RejectDevice struct {
	Device     events.DeviceID
	Reason     string
	IfRevision uint64
}

// QuarantineDevice keeps a device out until it is released. A device that is in
// quarantine already stays there for the first cause.
type QuarantineDevice struct {
	Device events.DeviceID
	Cause  events.QuarantineCause
	Reason string
	// KeyHash, Serial, Other and Instances are the evidence, as in
	// [events.DeviceQuarantined]. A key hash is that of a former key, and counts
	// once.
	KeyHash    string
	Serial     string
	Other      events.DeviceID
	Instances  []string
	IfRevision uint64
}

// ReleaseDevice ends a quarantine. A claim of another key is void.
type ReleaseDevice struct {
	Device     events.DeviceID
	Reason     string
	IfRevision uint64
}

// ClaimKey records that a device's id was asked for with another key and a
// valid join token, and puts the device into quarantine.
type ClaimKey struct {
	Device       events.DeviceID
	KeyHash      string
	Token        events.TokenID
	Name         string
	AgentVersion string
}

// RekeyDevice accepts the claim of another key: it becomes the device's, and
// the quarantine ends.
type RekeyDevice struct {
	Device events.DeviceID
	// KeyHash is the key to accept; "" means that of the newest claim.
	KeyHash    string
	IfRevision uint64
}

// Subject returns the device's aggregate.
func (c RejectDevice) Subject() events.Subject { return events.DeviceSubject(c.Device) }

// Subject returns the device's aggregate.
func (c QuarantineDevice) Subject() events.Subject { return events.DeviceSubject(c.Device) }

// Subject returns the device's aggregate.
func (c ReleaseDevice) Subject() events.Subject { return events.DeviceSubject(c.Device) }

// Subject returns the device's aggregate.
func (c ClaimKey) Subject() events.Subject { return events.DeviceSubject(c.Device) }

// Subject returns the device's aggregate.
func (c RekeyDevice) Subject() events.Subject { return events.DeviceSubject(c.Device) }

func (RejectDevice) sealed()     {}
func (QuarantineDevice) sealed() {}
func (ReleaseDevice) sealed()    {}
func (ClaimKey) sealed()         {}
func (RekeyDevice) sealed()      {}

func (d Device) reject(c RejectDevice) ([]events.Event, error) {
	if err := first(checkText("reason", c.Reason, MaxReason), d.ready(c.Device, c.IfRevision)); err != nil {
		return nil, err
	}
	switch d.Trust {
	case TrustRejected:
		return nil, nil
	case TrustApproved:
		return nil, conflict(CodeApproved, "device %s is approved: quarantine or retire it", d.ID)
	case TrustQuarantined:
		return nil, d.isQuarantined()
	case TrustRetired:
		return nil, d.isRetired()
	case TrustPending:
	}
	return []events.Event{events.DeviceRejected{Reason: c.Reason}}, nil
}

func (d Device) quarantine(c QuarantineDevice) ([]events.Event, error) {
	if err := first(checkText("reason", c.Reason, MaxReason), d.ready(c.Device, c.IfRevision)); err != nil {
		return nil, err
	}
	switch c.Cause {
	case events.QuarantineOperator, events.QuarantineClone, events.QuarantineClientID, events.QuarantineFlood:
	default:
		return nil, invalid("cause", "%q: want operator, clone, client_id or flood", clip(string(c.Cause)))
	}
	switch {
	case d.Trust == TrustRetired:
		return nil, d.isRetired()
	case d.Trust == TrustQuarantined, c.KeyHash != "" && !slices.Contains(d.FormerKeys, c.KeyHash):
		return nil, nil
	}
	return []events.Event{events.DeviceQuarantined{
		Cause: c.Cause, Reason: c.Reason, KeyHash: c.KeyHash, Serial: c.Serial, Other: c.Other, Instances: slices.Clone(c.Instances),
	}}, nil
}

func (d Device) release(c ReleaseDevice) ([]events.Event, error) {
	if err := first(checkText("reason", c.Reason, MaxReason), d.ready(c.Device, c.IfRevision)); err != nil {
		return nil, err
	}
	switch d.Trust {
	case TrustRetired:
		return nil, d.isRetired()
	case TrustPending, TrustApproved, TrustRejected:
		return nil, nil
	case TrustQuarantined:
	}
	return []events.Event{events.DeviceReleased{Reason: c.Reason}}, nil
}

func (d Device) claim(c ClaimKey) ([]events.Event, error) {
	if err := first(
		checkKeyHash("keyHash", c.KeyHash),
		checkToken(c.Token),
		checkName("name", c.Name),
		checkText("agentVersion", c.AgentVersion, MaxName),
		d.ready(c.Device, 0),
	); err != nil {
		return nil, err
	}
	switch {
	case d.Trust == TrustRetired:
		return nil, d.isRetired()
	case d.KeyHash == c.KeyHash: // it became the device's key meanwhile
		return nil, nil
	}
	claimed := events.DeviceKeyClaimed{KeyHash: c.KeyHash, JoinToken: c.Token, Name: c.Name, AgentVersion: c.AgentVersion}
	if q := d.Quarantine; q != nil {
		if q.Claims >= maxClaims || (q.Claim != nil && q.Claim.KeyHash == c.KeyHash) {
			return nil, nil
		}
		return []events.Event{claimed}, nil
	}
	return []events.Event{events.DeviceQuarantined{
		Cause: events.QuarantineClone, KeyHash: c.KeyHash, Reason: "another key asked for a certificate with a valid join token",
	}, claimed}, nil
}

func (d Device) rekey(c RekeyDevice) ([]events.Event, error) {
	if err := first(d.ready(c.Device, c.IfRevision)); err != nil {
		return nil, err
	}
	if c.KeyHash != "" {
		if err := first(checkKeyHash("keyHash", c.KeyHash)); err != nil {
			return nil, err
		}
	}
	switch q := d.Quarantine; {
	case d.Trust == TrustRetired:
		return nil, d.isRetired()
	case c.KeyHash != "" && c.KeyHash == d.KeyHash: // accepted before
		return nil, nil
	case q == nil || q.Claim == nil:
		return nil, conflict(CodeNoClaim, "nobody claims the id of device %s with another key", d.ID)
	case c.KeyHash != "" && c.KeyHash != q.Claim.KeyHash:
		return nil, conflict(CodeNoClaim, "the key that claims the id of device %s now is %s: read it again and decide anew", d.ID, q.Claim.KeyHash)
	default:
		return []events.Event{
			events.DeviceRekeyed{KeyHash: q.Claim.KeyHash, Policy: policyManual, JoinToken: q.Claim.JoinToken},
			events.DeviceReleased{},
		}, nil
	}
}

// Policies of a rekey.
const (
	policyManual = "manual"
	policyToken  = "token"
)

// rekeyByToken is the first registration with a join token for this device. A
// quarantine as a clone ends by it, because somebody who may decide so has made
// the token; any other stays.
func (d Device) rekeyByToken(c RegisterDevice, cert events.CertificateIssued) ([]events.Event, error) {
	rekeyed := events.DeviceRekeyed{KeyHash: c.KeyHash, Policy: policyToken, JoinToken: c.Token}
	switch q := d.Quarantine; {
	case d.Trust == TrustRejected, q != nil && (q.Cause != events.QuarantineClone || q.Before == TrustRejected):
		return nil, d.keptOut("it gets no certificate")
	case q != nil:
		return []events.Event{rekeyed, events.DeviceReleased{}, cert}, nil
	}
	return []events.Event{rekeyed, cert}, nil
}

// keptOut is the refusal of a device that gets nothing.
func (d Device) keptOut(so string) *Error {
	switch d.Trust {
	case TrustRejected:
		return denied(CodeRejected, "device %s was rejected: %s unless an operator approves it", d.ID, so)
	case TrustQuarantined:
		return denied(CodeQuarantined, "device %s is in quarantine: %s until an operator releases it", d.ID, so)
	default:
		return denied(CodeRetired, "device %s was retired: %s", d.ID, so)
	}
}

func (d Device) isQuarantined() *Error {
	return conflict(CodeQuarantined, "device %s is in quarantine: release it first", d.ID)
}

// foldTrust folds the events of trust. What it puts into the state it never
// changes later: others may read it.
func (d *Device) foldTrust(e events.Event, position uint64) {
	switch e := e.(type) {
	case events.DeviceRejected:
		d.Trust = TrustRejected
	case events.DeviceQuarantined:
		d.Quarantine = &Quarantine{Cause: e.Cause, Before: d.Trust}
		d.Trust = TrustQuarantined
		d.dropFormerKey(e.KeyHash)
	case events.DeviceReleased:
		if d.Quarantine != nil {
			d.Trust, d.Quarantine = d.Quarantine.Before, nil
		}
	case events.DeviceKeyClaimed:
		if d.Quarantine != nil {
			q := *d.Quarantine
			q.Claim, q.Claims = &Claim{KeyHash: e.KeyHash, JoinToken: e.JoinToken}, q.Claims+1
			d.Quarantine = &q
		}
	case events.DeviceRekeyed:
		if old := d.KeyHash; old != e.KeyHash {
			// A person who accepted a claim has decided against the old key.
			if d.dropFormerKey(e.KeyHash); e.Policy == policyToken {
				keys := append(slices.Clone(d.FormerKeys), old)
				d.FormerKeys = keys[max(0, len(keys)-maxFormerKeys):]
			}
			d.Certificates = nil
		}
		d.KeyHash, d.JoinToken, d.Rekeyed = e.KeyHash, e.JoinToken, position
	default:
	}
}

func (d *Device) dropFormerKey(hash string) {
	if slices.Contains(d.FormerKeys, hash) {
		d.FormerKeys = slices.DeleteFunc(slices.Clone(d.FormerKeys), func(k string) bool { return k == hash })
	}
	if len(d.FormerKeys) == 0 {
		d.FormerKeys = nil
	}
}

func (q *Quarantine) copy() *Quarantine {
	if q == nil {
		return nil
	}
	c := *q
	if q.Claim != nil {
		claim := *q.Claim
		c.Claim = &claim
	}
	return &c
}
