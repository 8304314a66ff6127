package commands

import (
	"regexp"
	"slices"
	"time"

	"pallas/events"
)

// RenewCertificate records that a device gets another certificate for the key
// that it registered with.
type RenewCertificate struct {
	Device events.DeviceID
	// Certificate was just signed for that key. Its Reason is set here.
	Certificate events.CertificateIssued
	// Lapsed says that the device proved its key and nothing else: it asked
	// without a session. Grace is how long after the end of its newest
	// certificate it may; 0 means never.
	Lapsed bool
	Grace  time.Duration
}

// RotateCertificate wants another certificate for a device before its time.
type RotateCertificate struct {
	Device     events.DeviceID
	IfRevision uint64
}

// ReportAnchors records which CAs a device accepts the manager by. It writes
// only what is news.
type ReportAnchors struct {
	Device events.DeviceID
	// Anchors name the CAs as [events.DeviceAnchorsChanged] does.
	Anchors []string
}

// A device gets at most maxRenewals certificates in renewalWindow of a
// certificate's life, so that one that cannot keep what it is given does not
// fill the log.
const (
	maxRenewals   = 4
	renewalWindow = 12 // parts of the life
	maxAnchors    = 4
)

// Subject returns the device's aggregate.
func (c RenewCertificate) Subject() events.Subject { return events.DeviceSubject(c.Device) }

// Subject returns the device's aggregate.
func (c RotateCertificate) Subject() events.Subject { return events.DeviceSubject(c.Device) }

// Subject returns the device's aggregate.
func (c ReportAnchors) Subject() events.Subject { return events.DeviceSubject(c.Device) }

func (RenewCertificate) sealed()  {}
func (RotateCertificate) sealed() {}
func (ReportAnchors) sealed()     {}

var anchor = regexp.MustCompile(`^[0-9a-f]{16}$`)

func (d Device) renew(c RenewCertificate, now time.Time) ([]events.Event, error) {
	cert := c.Certificate
	cert.NotBefore, cert.NotAfter = instant(cert.NotBefore), instant(cert.NotAfter)
	if err := first(checkKeyHash("certificate.keyHash", cert.KeyHash), d.ready(c.Device, 0)); err != nil {
		return nil, err
	}
	switch {
	case !serial.MatchString(cert.Serial):
		return nil, invalid("certificate.serial", "%q: want lower-case hex", clip(cert.Serial))
	case cert.Issuer != "" && !anchor.MatchString(cert.Issuer):
		return nil, invalid("certificate.issuer", "%q: want 16 lower-case hex digits", clip(cert.Issuer))
	case !storable(cert.NotBefore) || !storable(cert.NotAfter) || !cert.NotAfter.After(cert.NotBefore) || !cert.NotAfter.After(now):
		return nil, invalid("certificate.notAfter", "the certificate is not valid after %s", now.Format(time.RFC3339))
	case d.KeyHash != cert.KeyHash:
		return nil, denied(CodeKey, "device %s is registered with another key", d.ID)
	}
	if err := d.mayRenew(); err != nil {
		return nil, err
	}
	if ends := d.Newest.NotAfter; c.Lapsed && (c.Grace <= 0 || now.After(ends.Add(c.Grace))) {
		return nil, denied(CodeLapsed, "the certificate of device %s ended at %s, too long ago to be renewed by its key: give the device a new join token", d.ID, ends.Format(time.RFC3339))
	}
	switch {
	case slices.ContainsFunc(d.Certificates, func(k events.CertificateIssued) bool { return k.Serial == cert.Serial }):
		return nil, nil
	case c.Lapsed:
		cert.Reason = events.CertificateLapsed
	case d.RotationAt.IsZero():
		cert.Reason = events.CertificateRenew
	default:
		cert.Reason = events.CertificateRotate
		return []events.Event{cert}, nil // as often as an operator wants it
	}
	window := cert.NotAfter.Sub(cert.NotBefore) / renewalWindow
	if recent := d.certificatesAfter(cert.NotBefore.Add(-window)); len(recent) >= maxRenewals {
		return nil, denied(CodeRenewals, "device %s got %d certificates since %s: it gets no more before %s", d.ID, len(recent),
			recent[0].NotBefore.Format(time.RFC3339), recent[len(recent)-maxRenewals].NotBefore.Add(window).Format(time.RFC3339))
	}
	return []events.Event{cert}, nil
}

// certificatesAfter returns those that began to be valid after an instant.
func (d Device) certificatesAfter(t time.Time) []events.CertificateIssued {
	i := slices.IndexFunc(d.Certificates, func(c events.CertificateIssued) bool { return c.NotBefore.After(t) })
	if i < 0 {
		return nil
	}
	return d.Certificates[i:]
}

// mayRenew says whether the device's trust permits another certificate.
func (d Device) mayRenew() *Error {
	switch d.Trust {
	case TrustPending, TrustApproved:
		return nil
	case TrustRejected, TrustQuarantined, TrustRetired:
	}
	return d.keptOut("it gets no certificate")
}

func (d Device) rotate(c RotateCertificate) ([]events.Event, error) {
	if err := d.ready(c.Device, c.IfRevision); err != nil {
		return nil, err
	}
	switch {
	case d.Trust == TrustRetired:
		return nil, d.isRetired()
	case d.mayRenew() != nil:
		return nil, conflict(string(d.Trust), "device %s is %s: it gets no certificate", d.ID, d.Trust)
	case !d.RotationAt.IsZero():
		return nil, nil
	}
	return []events.Event{events.CertificateRotationRequested{}}, nil
}

func (d Device) reportAnchors(c ReportAnchors) ([]events.Event, error) {
	if err := d.ready(c.Device, 0); err != nil {
		return nil, err
	}
	list := slices.Compact(slices.Sorted(slices.Values(c.Anchors)))
	switch bad := slices.IndexFunc(list, func(s string) bool { return !anchor.MatchString(s) }); {
	case len(list) == 0 || len(list) > maxAnchors:
		return nil, invalid("anchors", "%d: want 1 to %d", len(list), maxAnchors)
	case bad >= 0:
		return nil, invalid("anchors", "%q: want 16 lower-case hex digits", clip(list[bad]))
	case d.Trust == TrustRetired:
		return nil, denied(CodeRetired, "device %s was retired", d.ID)
	case slices.Equal(list, d.Anchors):
		return nil, nil
	case d.Anchors == nil && len(list) == 1 && list[0] == d.Newest.Issuer:
		return nil, nil // as every device that has seen one CA only
	}
	return []events.Event{events.DeviceAnchorsChanged{Anchors: list}}, nil
}
