package enroll_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"pallas/commands"
	"pallas/events"
	"pallas/mqttgw/enroll"
	"pallas/mqttgw/pki"
	"pallas/mqttgw/wire"
)

// grace of the managers under test.
const grace = 30 * 24 * time.Hour

func (d device) renewal(t testing.TB) wire.RenewRequest {
	t.Helper()
	return wire.RenewRequest{Device: d.id, CSR: csrFor(t, d.id, d.key)}
}

// certified is a device with a certificate.
func (m *manager) certified(approve bool) device {
	m.t.Helper()
	d := newDevice(m.t)
	_, token := m.token(1, approve, time.Hour)
	if a := m.post(d.request(m.t, token)); a.status != http.StatusOK {
		m.t.Fatalf("enrol: %d %s", a.status, a.body)
	}
	return d
}

// TestRenew gives a device another certificate for its key alone: after the one
// before has ended, and also a pending one. A repeat is another certificate for
// the same key and nothing else.
func TestRenew(t *testing.T) {
	for _, approved := range []bool{true, false} {
		m := startManager(t)
		d := m.certified(approved)
		m.clock.advance(pki.DeviceLife + grace - time.Hour)
		req := d.renewal(t)
		for range 2 {
			a := m.postTo(wire.RenewPath, req)
			if a.status != http.StatusOK {
				t.Fatalf("renew: %d %s", a.status, a.body)
			}
			cert := parse(t, a.ok.Certificate)
			if !d.key.PublicKey.Equal(cert.PublicKey) || cert.Subject.CommonName != d.id || !cert.NotAfter.After(m.clock.now()) {
				t.Errorf("certificate for %s until %s", cert.Subject, cert.NotAfter)
			}
			if a.ok.Approved != approved || a.ok.CA != string(m.ca.CertificatePEM()) || a.ok.MQTT == "" || !a.ok.Time.Equal(m.clock.now()) {
				t.Errorf("answer %+v", a.ok)
			}
		}
		want := []string{"DeviceRegistered", "CertificateIssued", "CertificateIssued", "CertificateIssued"}
		if approved {
			want = slices.Insert(want, 1, "DeviceApproved")
		}
		if got := m.types(events.DeviceSubject(events.DeviceID(d.id))); !slices.Equal(got, want) {
			t.Errorf("events %q, want %q", got, want)
		}
		for r, err := range m.store.Load(t.Context(), events.DeviceSubject(events.DeviceID(d.id)), 0) {
			if err != nil {
				t.Fatal(err)
			}
			if c, ok := r.Entries[0].Event.(events.CertificateIssued); ok && c.Reason == events.CertificateLapsed && (r.Actor != events.DeviceActor(events.DeviceID(d.id)) || r.Source != "127.0.0.1") {
				t.Errorf("written by %s from %s", r.Actor, r.Source)
			}
		}
	}
}

// TestRenewRefused: each wrong request gets its answer, and nothing is written.
func TestRenewRefused(t *testing.T) {
	m := startManager(t, func(c *enroll.Config) { c.Limits = enroll.Limits{SourceBurst: 1 << 20, FailureBurst: 1 << 20} })
	d, other, retired := m.certified(true), m.certified(true), m.certified(true)
	m.do(commands.RetireDevice{Device: events.DeviceID(retired.id)})
	stranger := newDevice(t)
	good := d.renewal(t)
	with := func(f func(*wire.RenewRequest)) wire.RenewRequest { r := good; f(&r); return r }
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	forged := func() string { // signed by another key than it holds
		b, err := json.Marshal(good)
		if err != nil {
			t.Fatal(err)
		}
		text := string(b)
		i := strings.LastIndex(text, `\n-----END`)
		c := byte('A')
		if text[i-4] == c {
			c = 'B'
		}
		return text[:i-4] + string(c) + text[i-3:]
	}
	before := m.position()
	for _, tc := range []struct {
		name   string
		body   any
		status int
		field  string
		code   string
	}{
		{"no body", "", 400, "", ""},
		{"not JSON", "hello", 400, "", ""},
		{"unknown field", `{"device":"` + d.id + `","csr":"x","token":"y"}`, 422, "body.token", ""},
		{"no csr", `{"device":"` + d.id + `"}`, 422, "body", ""},
		{"device in upper case", with(func(r *wire.RenewRequest) { r.Device = strings.ToUpper(r.Device) }), 422, "body.device", ""},
		{"csr not PEM", with(func(r *wire.RenewRequest) { r.CSR = "csr" }), 422, "body.csr", ""},
		{"csr too long", with(func(r *wire.RenewRequest) { r.CSR = strings.Repeat("A", pki.MaxCSR+1) }), 422, "body.csr", ""},
		{"csr with RSA", with(func(r *wire.RenewRequest) { r.CSR = csrFor(t, d.id, rsaKey) }), 422, "body.csr", ""},
		{"csr with P-384", with(func(r *wire.RenewRequest) { r.CSR = csrFor(t, d.id, p384) }), 422, "body.csr", ""},
		{"csr for another device", with(func(r *wire.RenewRequest) { r.CSR = csrFor(t, uuid.NewString(), d.key) }), 422, "body.csr", ""},
		{"csr not signed by its key", forged(), 422, "body.csr", ""},
		{"the key of another device", with(func(r *wire.RenewRequest) { r.CSR = csrFor(t, d.id, other.key) }), 403, "", commands.CodeKey},
		{"a device that nobody knows", stranger.renewal(t), 403, "", commands.CodeKey},
		{"a device that was retired", retired.renewal(t), 403, "", commands.CodeRetired},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := m.postTo(wire.RenewPath, tc.body)
			if a.status != tc.status || a.problem.Code != tc.code {
				t.Fatalf("%d %q %s, want %d %q", a.status, a.problem.Code, a.body, tc.status, tc.code)
			}
			if tc.field != "" && (len(a.problem.Errors) == 0 || !strings.HasPrefix(a.problem.Errors[0].Field, tc.field)) {
				t.Errorf("%s does not name %s", a.body, tc.field)
			}
		})
	}
	// Whoever has not proved the key cannot tell which devices there are.
	a, b := m.postTo(wire.RenewPath, with(func(r *wire.RenewRequest) { r.CSR = csrFor(t, d.id, other.key) })), m.postTo(wire.RenewPath, stranger.renewal(t))
	if a.problem.Detail != b.problem.Detail || strings.Contains(a.body, d.id) {
		t.Errorf("%s\n%s", a.body, b.body)
	}
	// Too late.
	m.clock.advance(pki.DeviceLife + grace + time.Hour)
	if a := m.postTo(wire.RenewPath, good); a.status != 403 || a.problem.Code != commands.CodeLapsed || !strings.Contains(a.problem.Detail, "new join token") {
		t.Errorf("after the grace: %d %s", a.status, a.body)
	}
	if after := m.position(); after != before {
		t.Errorf("%d events were written by bad input", after-before)
	}
}

// TestRenewTooOften: a device gets a few certificates and no more, and who asks
// too often at all is held up like those who enrol.
func TestRenewTooOften(t *testing.T) {
	m := startManager(t)
	d := m.certified(true)
	m.clock.advance(time.Hour)
	for range 3 {
		if a := m.postTo(wire.RenewPath, d.renewal(t)); a.status != http.StatusOK {
			t.Fatalf("renew: %d %s", a.status, a.body)
		}
	}
	before := m.position()
	if a := m.postTo(wire.RenewPath, d.renewal(t)); a.status != 403 || a.problem.Code != commands.CodeRenewals {
		t.Errorf("the fifth certificate: %d %s", a.status, a.body)
	}
	if m.position() != before {
		t.Error("it was written")
	}
	limited := startManager(t, func(c *enroll.Config) { c.Limits = enroll.Limits{SourceRate: 1, SourceBurst: 20} })
	stranger := newDevice(t).renewal(t)
	for i := range 3 {
		want := []int{403, 403, 429}[i]
		if a := limited.postTo(wire.RenewPath, stranger); a.status != want || (want == 429 && a.header.Get("Retry-After") == "") {
			t.Fatalf("request %d: %d %s, want %d", i, a.status, a.body, want)
		}
	}
}
