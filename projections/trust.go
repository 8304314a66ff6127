package projections

import (
	"time"

	"pallas/events"
)

// Standing is why a device is trusted as it is.
type Standing struct {
	TrustSince  time.Time
	TrustBy     events.Actor
	TrustReason string
	// TrustCause and TrustBefore are those of a quarantine, "" otherwise: what led
	// to it, and the trust that a release gives back.
	TrustCause  events.QuarantineCause
	TrustBefore Trust
	// Claim is the newest claim of another key, while in quarantine; nil for none.
	Claim *Claim
}

// Claim is another key that asked for a certificate for a device's id.
type Claim struct {
	KeyHash      string
	Name         string
	AgentVersion string
	JoinToken    events.TokenID
	Address      string
	At           time.Time
}

// noQuarantine are the columns of a device that is in none.
const noQuarantine = `trust_cause = '', trust_before = '', claim_key = '', claim_name = '', claim_agent = '',
	claim_token = '', claim_address = '', claim_at = NULL`

// updateTrust sets a device's trust, an SQL expression, and with it who changed
// it, when and why, and further columns. A quarantine is over then.
func (w *writer) updateTrust(at now, id events.DeviceID, trust, reason, columns string, args ...any) error {
	if err := w.updateDevice(at, id, "trust = "+trust+", trust_since = ?, trust_by = ?, trust_reason = ?, "+noQuarantine+", "+columns,
		append([]any{at.at, at.actor, reason}, args...)...); err != nil {
		return err
	}
	return w.trustChanged(id)
}

// trustChanged keeps w.retired what the rows say, also after a log that the
// write side would not write: an approval of what is retired.
func (w *writer) trustChanged(id events.DeviceID) error {
	delete(w.retired, id)
	return w.loadRetired("SELECT id FROM devices WHERE trust = 'retired' AND id = ?", string(id))
}

func (w *writer) deviceRejected(at now, id events.DeviceID, e events.DeviceRejected) error {
	return w.updateTrust(at, id, "'rejected'", e.Reason, "")
}

func (w *writer) deviceQuarantined(at now, id events.DeviceID, e events.DeviceQuarantined) error {
	if err := w.updateDevice(at, id, `trust_before = trust, trust = 'quarantined', trust_since = ?, trust_by = ?,
		trust_reason = ?, trust_cause = ?, `, at.at, at.actor, e.Reason, string(e.Cause)); err != nil {
		return err
	}
	return w.trustChanged(id)
}

// deviceReleased does nothing to a device that is not in quarantine, as the
// write side.
func (w *writer) deviceReleased(at now, id events.DeviceID, e events.DeviceReleased) error {
	if err := w.updateDevice(at, id, ""); err != nil {
		return err
	}
	if err := w.exec("UPDATE devices SET trust = trust_before, trust_since = ?, trust_by = ?, trust_reason = ?, "+noQuarantine+
		" WHERE id = ? AND trust = 'quarantined'", at.at, at.actor, e.Reason, string(id)); err != nil {
		return err
	}
	return w.trustChanged(id)
}

func (w *writer) deviceKeyClaimed(at now, id events.DeviceID, e events.DeviceKeyClaimed) error {
	return w.updateDevice(at, id, `claim_key = ?, claim_name = ?, claim_agent = ?, claim_token = ?, claim_address = ?, claim_at = ?, `,
		e.KeyHash, e.Name, e.AgentVersion, string(e.JoinToken), at.source, at.at)
}

// deviceRekeyed forgets the certificate: it is worth nothing.
func (w *writer) deviceRekeyed(at now, id events.DeviceID, e events.DeviceRekeyed) error {
	return w.updateDevice(at, id, "key_hash = ?, join_token = ?, cert_serial = '', cert_not_after = NULL, ",
		e.KeyHash, string(e.JoinToken))
}
