package commands

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"pallas/events"
	"pallas/events/labels"
)

const (
	tok2 = events.TokenID("01890a5d-ac96-774b-bcce-b302099a8058")
	key3 = "c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3"
)

func TestTrust(t *testing.T) {
	rejected := with(pending, onDevice(events.DeviceRejected{Reason: "nobody ordered it"}))
	stolen := events.DeviceQuarantined{Cause: events.QuarantineOperator, Reason: "stolen"}
	quarantined := with(approved, onDevice(stolen))
	cloned := events.DeviceQuarantined{Cause: events.QuarantineClone, KeyHash: key2, Reason: "another key asked for a certificate with a valid join token"}
	claimed := events.DeviceKeyClaimed{KeyHash: key2, JoinToken: tok2, Name: "shop-1", AgentVersion: "1.0"}
	clone := with(approved, onDevice(cloned, claimed))
	claim := ClaimKey{Device: dev, KeyHash: key2, Token: tok2, Name: "shop-1", AgentVersion: "1.0"}
	other := registerWith(func(c *RegisterDevice) { c.KeyHash, c.Certificate = key2, certificate("0b", key2) })
	// back is the registration with a token for this device, issued at position 9.
	back := func(key string) RegisterDevice {
		return registerWith(func(c *RegisterDevice) {
			c.Token, c.Rekey, c.KeyHash, c.Certificate = tok2, 9, key, certificate("0c", key)
		})
	}
	rekeyed := events.DeviceRekeyed{KeyHash: key2, Policy: "token", JoinToken: tok2}
	byToken := with(approved, onDevice(rekeyed)) // key1 is a former key, position 3
	accepted := with(clone, onDevice(events.DeviceRekeyed{KeyHash: key2, Policy: "manual", JoinToken: tok2}, events.DeviceReleased{}))
	former := QuarantineDevice{Device: dev, Cause: events.QuarantineClone, KeyHash: key1, Serial: "0a"}
	long := strings.Repeat("x", MaxReason+1)
	many := clone
	for i := range maxClaims {
		c := claimed
		c.KeyHash = fmt.Sprintf("%064x", i)
		many = with(many, onDevice(c))
	}
	play(t, []scene{
		{name: "reject", given: pending, when: RejectDevice{Device: dev, Reason: "no"}, then: emit(events.DeviceRejected{Reason: "no"})},
		{name: "reject again", given: rejected, when: RejectDevice{Device: dev}},
		{name: "reject an approved device", given: approved, when: RejectDevice{Device: dev}, refused: KindConflict, code: CodeApproved, says: "quarantine or retire"},
		{name: "reject a device in quarantine", given: quarantined, when: RejectDevice{Device: dev}, refused: KindConflict, code: CodeQuarantined, says: "release it first"},
		{name: "reject a retired device", given: retired, when: RejectDevice{Device: dev}, refused: KindConflict, code: CodeRetired, says: "was retired"},
		{name: "reject an unknown device", when: RejectDevice{Device: dev}, refused: KindNotFound, says: "is not known"},
		{name: "reject for a long reason", given: pending, when: RejectDevice{Device: dev, Reason: long}, refused: KindInvalid, field: "reason", says: "at most 1024"},
		{name: "reject at another revision", given: pending, when: RejectDevice{Device: dev, IfRevision: 9}, refused: KindStale, field: "If-Match", says: "at revision 1"},
		{name: "approve a rejected device", given: rejected, when: ApproveDevice{Device: dev}, then: emit(events.DeviceApproved{Policy: "manual"})},
		{name: "approve a device in quarantine", given: quarantined, when: ApproveDevice{Device: dev}, refused: KindConflict, code: CodeQuarantined, says: "release it first"},
		{name: "retire a rejected device", given: rejected, when: RetireDevice{Device: dev}, then: emit(events.DeviceRetired{})},
		{name: "retire a device in quarantine", given: quarantined, when: RetireDevice{Device: dev}, then: emit(events.DeviceRetired{})},
		{name: "connect a rejected device", given: rejected, when: ConnectDevice{Device: dev, Protocol: 1}, refused: KindDenied, code: CodeRejected, says: "was rejected"},
		{name: "connect a device in quarantine", given: quarantined, when: ConnectDevice{Device: dev, Protocol: 1}, refused: KindDenied, code: CodeQuarantined, says: "in quarantine"},
		{name: "reports of a rejected device", given: rejected, when: ReportTasks{Device: dev, Epoch: 1}, refused: KindDenied, code: CodeRejected, says: "not taken"},
		{name: "reports of a device in quarantine", given: quarantined, when: ReportTasks{Device: dev, Epoch: 1}, refused: KindDenied, code: CodeQuarantined, says: "not taken"},
		{
			name: "a task for a rejected device", given: rejected, when: RequestTask{Device: dev, Task: task1, Kind: events.TaskVMPowerOn, VM: web, Deadline: t0.Add(time.Hour)},
			refused: KindConflict, code: CodeRejected, says: "approve it first",
		},
		{
			name: "a task for a device in quarantine", given: quarantined, when: RequestTask{Device: dev, Task: task1, Kind: events.TaskVMPowerOn, VM: web, Deadline: t0.Add(time.Hour)},
			refused: KindConflict, code: CodeQuarantined, says: "release it first",
		},
		{name: "label a device in quarantine", given: quarantined, when: UpdateDevice{Device: dev, Labels: map[string]*string{"a": new("b")}}, then: emit(events.DeviceLabelled{Labels: map[string]string{"site": "fra", "a": "b"}})},

		{name: "quarantine", given: approved, when: QuarantineDevice{Device: dev, Cause: events.QuarantineOperator, Reason: "stolen"}, then: emit(stolen)},
		{name: "quarantine a pending device", given: pending, when: QuarantineDevice{Device: dev, Cause: events.QuarantineOperator}, then: emit(events.DeviceQuarantined{Cause: events.QuarantineOperator})},
		{name: "quarantine a rejected device", given: rejected, when: QuarantineDevice{Device: dev, Cause: events.QuarantineFlood}, then: emit(events.DeviceQuarantined{Cause: events.QuarantineFlood})},
		{name: "quarantine again, for another cause", given: quarantined, when: QuarantineDevice{Device: dev, Cause: events.QuarantineFlood}},
		{name: "quarantine a retired device", given: retired, when: QuarantineDevice{Device: dev, Cause: events.QuarantineOperator}, refused: KindConflict, code: CodeRetired, says: "was retired"},
		{name: "quarantine an unknown device", when: QuarantineDevice{Device: dev, Cause: events.QuarantineOperator}, refused: KindNotFound, says: "is not known"},
		{name: "quarantine for no cause", given: approved, when: QuarantineDevice{Device: dev}, refused: KindInvalid, field: "cause", says: "want operator"},
		{name: "quarantine for a long reason", given: approved, when: QuarantineDevice{Device: dev, Cause: events.QuarantineOperator, Reason: long}, refused: KindInvalid, field: "reason", says: "at most"},
		{name: "quarantine at another revision", given: approved, when: QuarantineDevice{Device: dev, Cause: events.QuarantineOperator, IfRevision: 1}, refused: KindStale, field: "If-Match", says: "at revision 2"},
		{name: "release", given: quarantined, when: ReleaseDevice{Device: dev, Reason: "found"}, then: emit(events.DeviceReleased{Reason: "found"})},
		{name: "release an approved device", given: approved, when: ReleaseDevice{Device: dev}},
		{name: "release a pending device", given: pending, when: ReleaseDevice{Device: dev}},
		{name: "release a retired device", given: with(quarantined, onDevice(events.DeviceRetired{})), when: ReleaseDevice{Device: dev}, refused: KindConflict, code: CodeRetired, says: "was retired"},
		{name: "release an unknown device", when: ReleaseDevice{Device: dev}, refused: KindNotFound, says: "is not known"},
		{name: "release for a long reason", given: quarantined, when: ReleaseDevice{Device: dev, Reason: long}, refused: KindInvalid, field: "reason", says: "at most"},
		{name: "release at another revision", given: quarantined, when: ReleaseDevice{Device: dev, IfRevision: 1}, refused: KindStale, field: "If-Match", says: "at revision 3"},

		{name: "claim", given: approved, when: claim, then: emit(cloned, claimed)},
		{name: "claim a pending device", given: pending, when: claim, then: emit(cloned, claimed)},
		{name: "claim again", given: clone, when: claim},
		{name: "claim with a third key", given: clone, when: ClaimKey{Device: dev, KeyHash: key3, Token: tok, Name: "b"}, then: emit(events.DeviceKeyClaimed{KeyHash: key3, JoinToken: tok, Name: "b"})},
		{name: "claim too often", given: many, when: ClaimKey{Device: dev, KeyHash: key3, Token: tok, Name: "b"}},
		{name: "claim a device in quarantine for something else", given: quarantined, when: claim, then: emit(claimed)},
		{name: "claim with the device's own key", given: approved, when: ClaimKey{Device: dev, KeyHash: key1, Token: tok2, Name: "shop-1"}},
		{name: "claim a retired device", given: retired, when: claim, refused: KindConflict, code: CodeRetired, says: "was retired"},
		{name: "claim an unknown device", when: claim, refused: KindNotFound, says: "is not known"},
		{name: "claim with no key", given: approved, when: ClaimKey{Device: dev, Token: tok2, Name: "a"}, refused: KindInvalid, field: "keyHash", says: "SHA-256"},
		{name: "claim with no token", given: approved, when: ClaimKey{Device: dev, KeyHash: key2, Name: "a"}, refused: KindInvalid, field: "token", says: "UUID"},
		{name: "register with another key while a claim waits", given: clone, when: other, refused: KindConflict, code: CodeClone, says: "an operator has to accept"},
		{name: "register with the old key while a claim waits", given: clone, when: registerWith(nil), refused: KindDenied, code: CodeQuarantined, says: "no certificate until"},
		{name: "register a rejected device", given: rejected, when: registerWith(nil), refused: KindDenied, code: CodeRejected, says: "unless an operator approves"},

		{
			name: "accept the claim", given: clone, when: RekeyDevice{Device: dev},
			then: emit(events.DeviceRekeyed{KeyHash: key2, Policy: "manual", JoinToken: tok2}, events.DeviceReleased{}),
		},
		{
			name: "accept the claim of this key", given: clone, when: RekeyDevice{Device: dev, KeyHash: key2},
			then: emit(events.DeviceRekeyed{KeyHash: key2, Policy: "manual", JoinToken: tok2}, events.DeviceReleased{}),
		},
		{name: "accept the claim of another key", given: clone, when: RekeyDevice{Device: dev, KeyHash: key3}, refused: KindConflict, code: CodeNoClaim, says: key2},
		{name: "accept a claim again", given: accepted, when: RekeyDevice{Device: dev, KeyHash: key2}},
		{name: "accept no claim", given: quarantined, when: RekeyDevice{Device: dev}, refused: KindConflict, code: CodeNoClaim, says: "nobody claims"},
		{name: "accept no claim of an approved device", given: approved, when: RekeyDevice{Device: dev}, refused: KindConflict, code: CodeNoClaim, says: "nobody claims"},
		{name: "accept a claim that was released", given: with(clone, onDevice(events.DeviceReleased{})), when: RekeyDevice{Device: dev, KeyHash: key2}, refused: KindConflict, code: CodeNoClaim, says: "nobody claims"},
		{name: "accept for a retired device", given: with(clone, onDevice(events.DeviceRetired{})), when: RekeyDevice{Device: dev}, refused: KindConflict, code: CodeRetired, says: "was retired"},
		{name: "accept for an unknown device", when: RekeyDevice{Device: dev}, refused: KindNotFound, says: "is not known"},
		{name: "accept what is no key", given: clone, when: RekeyDevice{Device: dev, KeyHash: "x"}, refused: KindInvalid, field: "keyHash", says: "SHA-256"},
		{name: "accept at another revision", given: clone, when: RekeyDevice{Device: dev, IfRevision: 1}, refused: KindStale, field: "If-Match", says: "at revision 3"},
		{name: "register with the accepted key", given: accepted, when: other, then: emit(certificate("0b", key2))},
		{name: "register with the key that was decided against", given: accepted, when: registerWith(nil), refused: KindConflict, code: CodeClone, says: "another key"},
		{name: "the key that was decided against shows up", given: accepted, when: former},

		{name: "come back with a token for the device", given: approved, when: back(key2), then: emit(rekeyed, certificate("0c", key2))},
		{name: "come back with the same key", given: approved, when: back(key1), then: emit(events.DeviceRekeyed{KeyHash: key1, Policy: "token", JoinToken: tok2}, certificate("0c", key1))},
		{name: "come back as a clone", given: clone, when: back(key3), then: emit(events.DeviceRekeyed{KeyHash: key3, Policy: "token", JoinToken: tok2}, events.DeviceReleased{}, certificate("0c", key3))},
		{name: "come back while in quarantine for something else", given: quarantined, when: back(key2), refused: KindDenied, code: CodeQuarantined, says: "no certificate"},
		{name: "come back although rejected", given: rejected, when: back(key2), refused: KindDenied, code: CodeRejected, says: "no certificate"},
		{name: "come back as a clone although rejected", given: with(rejected, onDevice(cloned)), when: back(key2), refused: KindDenied, code: CodeQuarantined, says: "no certificate"},
		{name: "come back although retired", given: retired, when: back(key2), refused: KindDenied, code: CodeRetired, says: "was retired"},
		{name: "ask again after coming back", given: with(byToken, onDevice(certificate("0b", key2))), when: registerWith(func(c *RegisterDevice) {
			c.Token, c.Rekey, c.KeyHash, c.Certificate = tok2, 2, key2, certificate("0c", key2)
		}), then: emit(certificate("0c", key2))},
		{name: "use a token for the device once more, with a third key", given: byToken, when: registerWith(func(c *RegisterDevice) {
			c.Token, c.Rekey, c.KeyHash, c.Certificate = tok2, 2, key3, certificate("0c", key3)
		}), refused: KindConflict, code: CodeClone, says: "another key"},
		{
			name: "a former key shows up", given: byToken, when: former,
			then: emit(events.DeviceQuarantined{Cause: events.QuarantineClone, KeyHash: key1, Serial: "0a"}),
		},
		{
			name:  "a former key shows up once more",
			given: with(byToken, onDevice(events.DeviceQuarantined{Cause: events.QuarantineClone, KeyHash: key1}, events.DeviceReleased{})), when: former,
		},
		{name: "a key that never was the device's shows up", given: approved, when: QuarantineDevice{Device: dev, Cause: events.QuarantineClone, KeyHash: key3}},
	})
}

func TestTokenForADevice(t *testing.T) {
	issue := func(f func(*IssueJoinToken)) IssueJoinToken {
		c := IssueJoinToken{Token: tok2, MaxUses: 1, Expires: t0.Add(time.Hour), Device: dev}
		if f != nil {
			f(&c)
		}
		return c
	}
	issued := events.JoinTokenIssued{Token: tok2, MaxUses: 1, Expires: t0.Add(time.Hour), Device: dev, Labels: registered.Labels}
	onIt := func(es ...events.Event) history { return history{happened(events.TokenSubject(tok2), es...)} }
	play(t, []scene{
		{name: "issue", given: approved, when: issue(nil), then: emit(issued)},
		{name: "issue again", given: with(approved, onIt(issued)), when: issue(nil)},
		{name: "issue again for another device", given: with(approved, onIt(issued)), when: issue(func(c *IssueJoinToken) { c.Device = dev2 }), refused: KindInvalid, field: "Idempotency-Key", says: "another join token"},
		{name: "issue for an unknown device", when: issue(nil), refused: KindNotFound, says: "is not known"},
		{name: "issue for a retired device", given: retired, when: issue(nil), refused: KindConflict, code: CodeRetired, says: "was retired"},
		{name: "issue for what is no device", given: approved, when: issue(func(c *IssueJoinToken) { c.Device = "x" }), refused: KindInvalid, field: "device", says: "UUID"},
		{name: "issue with two uses", given: approved, when: issue(func(c *IssueJoinToken) { c.MaxUses = 2 }), refused: KindInvalid, field: "maxUses", says: "one use"},
		{name: "issue with labels", given: approved, when: issue(func(c *IssueJoinToken) { c.Labels = map[string]string{"a": "b"} }), refused: KindInvalid, field: "labels", says: "keeps its own"},
		{name: "issue with a name pattern", given: approved, when: issue(func(c *IssueJoinToken) { c.NamePattern = "till-{n}" }), refused: KindInvalid, field: "namePattern", says: "keeps its own"},
		{name: "issue with approval", given: approved, when: issue(func(c *IssueJoinToken) { c.AutoApprove = true }), refused: KindInvalid, field: "approve", says: "trusted as before"},
		{name: "use", given: with(approved, onIt(issued)), when: UseJoinToken{Token: tok2, Device: dev}, then: emit(events.JoinTokenUsed{Device: dev})},
		{name: "use again", given: with(approved, onIt(issued), onIt(events.JoinTokenUsed{Device: dev})), when: UseJoinToken{Token: tok2, Device: dev}},
		{name: "use by another device", given: onIt(issued), when: UseJoinToken{Token: tok2, Device: dev2}, refused: KindDenied, code: CodeTokenDevice, says: "for another device"},
	})
}

// trustModel is what trust is, in the plainest words.
type trustModel struct {
	trust, before Trust
	cause         events.QuarantineCause
	key, claim    string
	former        []string // replaced by a token, and not seen since
}

// apply says what a command does to the model, and whether it is refused.
func (m trustModel) apply(c Command, fresh bool) (trustModel, bool) {
	in := m.trust == TrustQuarantined
	out := func() trustModel {
		m.trust, m.before, m.cause, m.claim = m.before, "", "", ""
		return m
	}
	enter := func(cause events.QuarantineCause) {
		m.trust, m.before, m.cause = TrustQuarantined, m.trust, cause
	}
	forget := func(key string) {
		m.former = slices.DeleteFunc(slices.Clone(m.former), func(k string) bool { return k == key })
	}
	switch c := c.(type) {
	case RegisterDevice:
		switch {
		case m.trust == "":
			m.trust, m.key = TrustPending, c.KeyHash
			if c.AutoApprove {
				m.trust = TrustApproved
			}
		case m.trust == TrustRetired:
			return m, true
		case fresh && (m.trust == TrustRejected || in && (m.cause != events.QuarantineClone || m.before == TrustRejected)):
			return m, true
		case fresh:
			if in {
				m = out()
			}
			if old := m.key; old != c.KeyHash {
				forget(c.KeyHash)
				m.former, m.key = append(m.former, old), c.KeyHash
			}
		case c.KeyHash != m.key, m.trust == TrustRejected, in:
			return m, true
		}
	case ApproveDevice:
		if in || m.trust == TrustRetired || m.trust == "" {
			return m, true
		}
		m.trust = TrustApproved
	case RejectDevice:
		switch m.trust {
		case TrustPending, TrustRejected:
			m.trust = TrustRejected
		default:
			return m, true
		}
	case QuarantineDevice:
		if m.trust == TrustRetired || m.trust == "" {
			return m, true
		}
		if !in && (c.KeyHash == "" || slices.Contains(m.former, c.KeyHash)) {
			enter(c.Cause)
			forget(c.KeyHash)
		}
	case ReleaseDevice:
		if m.trust == TrustRetired || m.trust == "" {
			return m, true
		}
		if in {
			m = out()
		}
	case ClaimKey:
		if m.trust == TrustRetired || m.trust == "" {
			return m, true
		}
		if c.KeyHash != m.key {
			if !in {
				enter(events.QuarantineClone)
				forget(c.KeyHash)
			}
			m.claim = c.KeyHash
		}
	case RekeyDevice:
		switch {
		case m.trust == TrustRetired, m.trust == "":
			return m, true
		case c.KeyHash == m.key:
		case m.claim == "", c.KeyHash != "" && c.KeyHash != m.claim:
			return m, true
		default:
			m.key = m.claim
			m = out()
			forget(m.key)
		}
	case RetireDevice:
		if m.trust == "" {
			return m, true
		}
		m = trustModel{trust: TrustRetired, key: m.key}
	default:
	}
	return m, false
}

// TestTrustModel gives any commands in any order, and compares the device with
// the model after each. Nothing leads out of retired.
func TestTrustModel(t *testing.T) {
	keys := rapid.SampledFrom([]string{key1, key2, key3})
	causes := rapid.SampledFrom([]events.QuarantineCause{events.QuarantineOperator, events.QuarantineClone, events.QuarantineClientID, events.QuarantineFlood})
	rapid.Check(t, func(t *rapid.T) {
		var d Device
		var m trustModel
		position, serial := uint64(0), 0
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			position++
			var c Command
			fresh := false
			switch rapid.IntRange(0, 9).Draw(t, "command") {
			case 0, 1:
				serial++
				key := keys.Draw(t, "key")
				r := RegisterDevice{
					Device: dev, Name: "shop-1", Token: tok, AutoApprove: rapid.Bool().Draw(t, "auto"), KeyHash: key,
					Certificate: certificate(fmt.Sprintf("%x", serial), key),
				}
				// A token for the device: one from before its newest key, or a fresh one.
				switch rapid.IntRange(0, 2).Draw(t, "for the device") {
				case 1:
					r.Token, r.Rekey = tok2, d.Rekeyed
				case 2:
					r.Token, r.Rekey, fresh = tok2, position, d.Revision != 0
				}
				c = r
			case 2:
				c = ApproveDevice{Device: dev}
			case 3:
				c = RejectDevice{Device: dev}
			case 4:
				c = QuarantineDevice{Device: dev, Cause: causes.Draw(t, "cause")}
			case 5:
				c = QuarantineDevice{Device: dev, Cause: events.QuarantineClone, KeyHash: keys.Draw(t, "former")}
			case 6:
				c = ReleaseDevice{Device: dev}
			case 7:
				c = ClaimKey{Device: dev, KeyHash: keys.Draw(t, "claimed"), Token: tok, Name: "b"}
			case 8:
				c = RekeyDevice{Device: dev, KeyHash: rapid.SampledFrom([]string{"", key1, key2, key3}).Draw(t, "accepted")}
			case 9:
				if rapid.IntRange(0, 3).Draw(t, "really") == 0 {
					c = RetireDevice{Device: dev}
				} else {
					c = ConnectDevice{Device: dev, Protocol: 1}
				}
			}
			was := m.trust
			next, refused := m.apply(c, fresh)
			if _, ok := c.(ConnectDevice); ok {
				refused = m.trust != TrustPending && m.trust != TrustApproved
			}
			out, err := Decide(c, States{Device: d}, t0)
			if (err != nil) != refused || (err != nil && KindOf(err) == "") {
				t.Fatalf("%T in %q: error %v, want a refusal: %v", c, was, err, refused)
			}
			if len(out.Entries) > 0 {
				d = d.Evolve(events.Record{Decision: events.Decision{Subject: events.DeviceSubject(dev), Time: t0, Entries: out.Entries}, Position: position})
			}
			m = next
			got := trustModel{trust: d.Trust, key: d.KeyHash, former: d.FormerKeys}
			if q := d.Quarantine; q != nil {
				got.before, got.cause = q.Before, q.Cause
				if q.Claim != nil {
					got.claim = q.Claim.KeyHash
				}
			}
			if got.trust != m.trust || got.before != m.before || got.cause != m.cause || got.key != m.key || got.claim != m.claim || !slices.Equal(got.former, m.former) {
				t.Fatalf("after %+v:\nthe device is %+v\nthe model says %+v", c, got, m)
			}
			if was == TrustRetired && m.trust != TrustRetired {
				t.Fatalf("%T led out of retired", c)
			}
		}
	})
}

// A token for a device can be made by whoever may touch the device, and is seen
// by the same.
func TestTokenForADeviceWithinAScope(t *testing.T) {
	c := IssueJoinToken{Token: tok2, MaxUses: 1, Expires: t0.Add(time.Hour), Device: dev}
	for selector, ok := range map[string]bool{"site=fra": true, "site=muc": false, "!site": false} {
		s, err := labels.Parse(selector)
		if err != nil {
			t.Fatal(err)
		}
		scope := labels.Union(s)
		out, err := DecideWithin(scope, c, approved.states(), t0)
		if (err == nil) != ok {
			t.Errorf("issue within %s: %v", selector, err)
		}
		if ok && !reaches(scope, c.Subject(), States{Token: JoinToken{}.Evolve(events.Record{Decision: events.Decision{Entries: out.Entries}, Position: 3})}) {
			t.Errorf("the token is not seen within %s", selector)
		}
		for _, c := range []Command{QuarantineDevice{Device: dev, Cause: events.QuarantineOperator}, ReleaseDevice{Device: dev}, RekeyDevice{Device: dev}, RejectDevice{Device: dev}} {
			if _, err := DecideWithin(scope, c, approved.states(), t0); !ok && KindOf(err) != KindNotFound {
				t.Errorf("%T within %s: %v, want that there is no such device", c, selector, err)
			}
		}
	}
}
