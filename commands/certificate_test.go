package commands

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"pallas/events"
)

const (
	oldCA = "00112233445566aa"
	newCA = "8899aabbccddeeff"
)

// issuedAt is a certificate of 90 days that was issued some days before t0.
func issuedAt(serial string, days float64) events.CertificateIssued {
	at := t0.Add(-time.Duration(days * float64(24*time.Hour)))
	return events.CertificateIssued{Serial: serial, KeyHash: key1, NotBefore: at, NotAfter: at.Add(90 * 24 * time.Hour), Issuer: oldCA}
}

// on makes each event a decision of the device, at the time of its certificate.
func on(es ...events.Event) (out history) {
	for _, e := range es {
		d := happened(events.DeviceSubject(dev), e)
		if c, ok := e.(events.CertificateIssued); ok {
			d.Time = c.NotBefore
		}
		out = append(out, d)
	}
	return out
}

func TestRenewCertificate(t *testing.T) {
	const day = 24 * time.Hour
	fresh := issuedAt("ff", 0)
	fresh.Issuer = newCA
	reason := func(r events.CertificateReason) []events.Event {
		c := fresh
		c.Reason = r
		return emit(c)
	}
	renew := func(f func(*RenewCertificate)) RenewCertificate {
		c := RenewCertificate{Device: dev, Certificate: fresh}
		if f != nil {
			f(&c)
		}
		return c
	}
	lapsed := func(grace time.Duration) RenewCertificate {
		return renew(func(c *RenewCertificate) { c.Lapsed, c.Grace = true, grace })
	}
	certified := with(approved, on(issuedAt("01", 60)))
	ended := with(approved, on(issuedAt("01", 100))) // ten days ago
	forgotten := with(ended, on(events.DeviceLost{Reason: "gone"}))
	rotating := with(certified, on(events.CertificateRotationRequested{}))
	many := func(days ...float64) history {
		h := approved
		for i, d := range days {
			h = with(h, on(issuedAt(fmt.Sprintf("0%d", i), d)))
		}
		return h
	}
	bad := func(name, field, says string, f func(*RenewCertificate)) scene {
		return scene{name: "renew refuses " + name, given: certified, when: renew(f), refused: KindInvalid, field: field, says: says}
	}
	play(t, []scene{
		{name: "renew", given: certified, when: renew(nil), then: reason(events.CertificateRenew)},
		{name: "renew while pending", given: with(pending, on(issuedAt("01", 60))), when: renew(nil), then: reason(events.CertificateRenew)},
		{name: "renew because an operator wants it", given: rotating, when: renew(nil), then: reason(events.CertificateRotate)},
		{name: "renew the same certificate again", given: with(certified, on(fresh)), when: renew(nil)},
		{name: "renew an unknown device", when: renew(nil), refused: KindNotFound, says: "is not known"},
		{name: "renew a retired device", given: retired, when: renew(nil), refused: KindDenied, code: CodeRetired, says: "gets no certificate"},
		{
			name: "renew with another key", given: certified, when: renew(func(c *RenewCertificate) { c.Certificate.KeyHash = key2 }),
			refused: KindDenied, code: CodeKey, says: "another key",
		},
		bad("no serial", "certificate.serial", "hex", func(c *RenewCertificate) { c.Certificate.Serial = "" }),
		bad("an issuer that is none", "certificate.issuer", "16 lower-case hex", func(c *RenewCertificate) { c.Certificate.Issuer = "CA" }),
		bad("a key hash that is none", "certificate.keyHash", "64 lower-case hex", func(c *RenewCertificate) { c.Certificate.KeyHash = "x" }),
		bad("a certificate that has ended", "certificate.notAfter", "not valid", func(c *RenewCertificate) { c.Certificate.NotAfter = t0 }),

		{name: "too often", given: many(60, 3, 2, 1, 0.5), when: renew(nil), refused: KindDenied, code: CodeRenewals, says: "got 4 certificates since"},
		{name: "often, but not too often", given: many(60, 3, 2, 1), when: renew(nil), then: reason(events.CertificateRenew)},
		{name: "often, a while ago", given: many(12, 11, 10, 9, 8), when: renew(nil), then: reason(events.CertificateRenew)},
		{
			name: "too often, but an operator wants it", given: with(many(60, 3, 2, 1, 0.5), on(events.CertificateRotationRequested{})),
			when: renew(nil), then: reason(events.CertificateRotate),
		},

		{name: "lapsed, within the grace", given: ended, when: lapsed(11 * day), then: reason(events.CertificateLapsed)},
		{name: "lapsed, within the grace, forgotten meanwhile", given: forgotten, when: lapsed(11 * day), then: reason(events.CertificateLapsed)},
		{name: "lapsed, at its very end", given: ended, when: lapsed(10 * day), then: reason(events.CertificateLapsed)},
		{name: "lapsed, after the grace", given: ended, when: lapsed(9 * day), refused: KindDenied, code: CodeLapsed, says: "new join token"},
		{name: "lapsed, no grace", given: ended, when: lapsed(0), refused: KindDenied, code: CodeLapsed, says: "new join token"},
		{name: "not lapsed at all", given: certified, when: lapsed(day), then: reason(events.CertificateLapsed)},
		{name: "not lapsed at all, no grace", given: certified, when: lapsed(0), refused: KindDenied, code: CodeLapsed, says: "new join token"},
		{name: "lapsed without a session, too often", given: many(60, 3, 2, 1, 0.5), when: lapsed(day), refused: KindDenied, code: CodeRenewals, says: "no more before"},
		{name: "lapsed and retired", given: with(ended, on(events.DeviceRetired{})), when: lapsed(30 * day), refused: KindDenied, code: CodeRetired, says: "gets no certificate"},

		{name: "rotate", given: certified, when: RotateCertificate{Device: dev}, then: emit(events.CertificateRotationRequested{})},
		{name: "rotate a pending device", given: pending, when: RotateCertificate{Device: dev}, then: emit(events.CertificateRotationRequested{})},
		{name: "rotate twice", given: rotating, when: RotateCertificate{Device: dev}},
		{name: "rotate again later", given: with(rotating, on(fresh)), when: RotateCertificate{Device: dev}, then: emit(events.CertificateRotationRequested{})},
		{name: "rotate an unknown device", when: RotateCertificate{Device: dev}, refused: KindNotFound, says: "is not known"},
		{name: "rotate a retired device", given: retired, when: RotateCertificate{Device: dev}, refused: KindConflict, code: CodeRetired, says: "was retired"},
		{name: "rotate at another revision", given: certified, when: RotateCertificate{Device: dev, IfRevision: 1}, refused: KindStale, field: "If-Match", says: "at revision 3"},

		{name: "the one CA that the certificate is of", given: certified, when: ReportAnchors{Device: dev, Anchors: []string{oldCA}}},
		{name: "another CA", given: certified, when: ReportAnchors{Device: dev, Anchors: []string{newCA}}, then: emit(events.DeviceAnchorsChanged{Anchors: []string{newCA}})},
		{
			name: "two CAs", given: certified, when: ReportAnchors{Device: dev, Anchors: []string{newCA, oldCA, newCA}},
			then: emit(events.DeviceAnchorsChanged{Anchors: []string{oldCA, newCA}}),
		},
		{
			name: "the same two", given: with(certified, on(events.DeviceAnchorsChanged{Anchors: []string{oldCA, newCA}})),
			when: ReportAnchors{Device: dev, Anchors: []string{newCA, oldCA}},
		},
		{
			name: "one of two", given: with(certified, on(events.DeviceAnchorsChanged{Anchors: []string{oldCA, newCA}})),
			when: ReportAnchors{Device: dev, Anchors: []string{oldCA}}, then: emit(events.DeviceAnchorsChanged{Anchors: []string{oldCA}}),
		},
		{name: "no CA", given: certified, when: ReportAnchors{Device: dev}, refused: KindInvalid, field: "anchors", says: "want 1 to 4"},
		{name: "five CAs", given: certified, when: ReportAnchors{Device: dev, Anchors: []string{"1", "2", "3", "4", "5"}}, refused: KindInvalid, field: "anchors", says: "want 1 to 4"},
		{name: "a CA that is none", given: certified, when: ReportAnchors{Device: dev, Anchors: []string{"x"}}, refused: KindInvalid, field: "anchors", says: "16 lower-case hex"},
		{name: "of an unknown device", when: ReportAnchors{Device: dev, Anchors: []string{oldCA}}, refused: KindNotFound, says: "is not known"},
		{name: "of a retired device", given: retired, when: ReportAnchors{Device: dev, Anchors: []string{oldCA}}, refused: KindDenied, code: CodeRetired, says: "was retired"},
	})
}

func TestRecordAuthority(t *testing.T) {
	a, b, c := strings.Repeat("aa", 32), strings.Repeat("bb", 32), strings.Repeat("cc", 32)
	authority := func(es ...events.Event) (out history) {
		for _, e := range es {
			out = append(out, happened(events.AuthoritySubject(), e))
		}
		return out
	}
	ends := t0.AddDate(20, 0, 0)
	record := func(p AuthorityPhase, active, other string) RecordAuthority {
		return RecordAuthority{Phase: p, Active: active, Other: other, NotAfter: ends, Since: t0}
	}
	prepare := func(from, to string) events.Event {
		return events.AuthorityPrepared{Active: from, Next: to, NotAfter: instant(ends), Since: instant(t0)}
	}
	change := func(from, to string) events.Event {
		return events.AuthoritySwitched{Active: to, Former: from, Since: instant(t0)}
	}
	retire := func(from, to string) events.Event { return events.AuthorityRetired{Active: to, Former: from} }
	adopt := func(x string) events.Event { return events.AuthorityAdopted{Active: x} }
	play(t, []scene{
		{name: "a CA that was never replaced", when: record(AuthoritySteady, a, "")},
		{name: "prepared", when: record(AuthorityPrepared, a, b), then: emit(prepare(a, b))},
		{name: "prepared again", given: authority(prepare(a, b)), when: record(AuthorityPrepared, a, b)},
		{name: "switched", given: authority(prepare(a, b)), when: record(AuthoritySwitched, b, a), then: emit(change(a, b))},
		{name: "retired", given: authority(prepare(a, b), change(a, b)), when: record(AuthoritySteady, b, ""), then: emit(retire(a, b))},
		{name: "the next one", given: authority(prepare(a, b), change(a, b), retire(a, b)), when: record(AuthorityPrepared, b, c), then: emit(prepare(b, c))},
		{name: "switched unseen", when: record(AuthoritySwitched, b, a), then: emit(prepare(a, b), change(a, b))},
		{name: "switched and retired unseen", given: authority(prepare(a, b)), when: record(AuthoritySteady, b, ""), then: emit(change(a, b), retire(a, b))},
		{name: "and prepared once more", given: authority(prepare(a, b)), when: record(AuthorityPrepared, b, c), then: emit(change(a, b), retire(a, b), prepare(b, c))},
		{name: "given up", given: authority(prepare(a, b)), when: record(AuthoritySteady, a, ""), then: emit(adopt(a))},
		{name: "begun anew", given: authority(prepare(a, b)), when: record(AuthorityPrepared, a, c), then: emit(adopt(a), prepare(a, c))},
		{name: "another one altogether", given: authority(prepare(a, b), change(a, b)), when: record(AuthoritySteady, c, ""), then: emit(adopt(c))},
		{name: "no phase", when: record("", a, ""), refused: KindInvalid, field: "phase", says: "want steady"},
		{name: "no CA", when: record(AuthoritySteady, "", ""), refused: KindInvalid, field: "active", says: "SHA-256"},
		{name: "two in a steady phase", when: record(AuthoritySteady, a, b), refused: KindInvalid, field: "other", says: "does not fit"},
		{name: "one while there are two", when: record(AuthorityPrepared, a, ""), refused: KindInvalid, field: "other", says: "does not fit"},
		{name: "the same twice", when: record(AuthoritySwitched, a, a), refused: KindInvalid, field: "other", says: "does not fit"},
	})
}

// Whatever the files said before, after a decision the log says what they say.
func TestAuthorityFollows(t *testing.T) {
	names := rapid.SampledFrom([]string{strings.Repeat("aa", 32), strings.Repeat("bb", 32), strings.Repeat("cc", 32)})
	rapid.Check(t, func(rt *rapid.T) {
		var s States
		for i := range rapid.IntRange(1, 8).Draw(rt, "changes") {
			c := RecordAuthority{Phase: rapid.SampledFrom([]AuthorityPhase{AuthoritySteady, AuthorityPrepared, AuthoritySwitched}).Draw(rt, "phase"), Active: names.Draw(rt, "active")}
			if c.Phase != AuthoritySteady {
				c.Other = names.Filter(func(x string) bool { return x != c.Active }).Draw(rt, "other")
			}
			out, err := Decide(c, s, t0)
			if err != nil {
				rt.Fatal(err)
			}
			if len(out.Entries) > 0 {
				s.Authority.fold(events.Record{Decision: events.Decision{Subject: c.Subject(), Time: t0, Entries: out.Entries}, Position: uint64(i + 1)})
			}
			if s.Authority.Revision == 0 {
				continue // a CA that was never replaced
			}
			if a := s.Authority; a.Phase != c.Phase || a.Active != c.Active || a.Other != c.Other {
				rt.Fatalf("the log says %+v, the files %+v", a, c)
			}
			if again, err := Decide(c, s, t0); err != nil || len(again.Entries) > 0 {
				rt.Fatalf("twice: %v, %v", again.Entries, err)
			}
		}
	})
}
