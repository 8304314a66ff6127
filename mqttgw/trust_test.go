package mqttgw

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"pallas/commands"
	"pallas/events"
	"pallas/mqttgw/pki"
	"pallas/mqttgw/renewal"
	"pallas/mqttgw/wire"
)

// trusted is a door that renews certificates, and the directory of its CA.
func trusted(t *testing.T) (*door, *pki.Authority, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "pki")
	must(pki.Create(dir, time.Now(), "Pallas device CA"))(t)
	a := must(pki.Open(dir))(t)
	d := newDoor(t, func(c *Config) {
		c.Renewals = must(renewal.New(renewal.Config{Commands: c.Commands, Authority: a}))(t)
		c.Authority = a
	})
	return d, a, dir
}

// request makes a certificate request, in DER.
func (dev *device) request(cn string, key any) []byte {
	t := dev.door.t
	t.Helper()
	return must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: cn}}, key))(t)
}

// certificate waits for one.
func (c *client) certificate() wire.Certificate {
	c.t.Helper()
	return *c.down(func(d wire.Down) bool { return d.Certificate != nil }).Certificate
}

// TestRenewal: the answer to a request is a certificate for the device's key, the
// answer to the same request the same certificate, and that to a wrong one an
// error, while nothing is written.
func TestRenewal(t *testing.T) {
	d, a, _ := trusted(t)
	dev, other := d.device(), d.device()
	c, _ := dev.connect(wire.Hello{})
	csr := dev.request(string(dev.id), dev.key)
	before := d.last()
	c.up(wire.Up{Renewal: &wire.Renewal{CSR: csr}})
	got := c.certificate()
	leaf := must(x509.ParseCertificate(got.Leaf))(t)
	if !dev.key.PublicKey.Equal(leaf.PublicKey) || leaf.Subject.CommonName != string(dev.id) || len(got.CAs) != 1 || !bytes.Equal(got.CAs[0], a.State().Active().Certificate().Raw) {
		t.Errorf("certificate for %s with %d CAs", leaf.Subject, len(got.CAs))
	}
	if d.last() != before+1 {
		t.Errorf("the log grew by %d", d.last()-before)
	}
	c.up(wire.Up{Renewal: &wire.Renewal{CSR: csr}})
	if again := c.certificate(); !bytes.Equal(again.Leaf, got.Leaf) || d.last() != before+1 {
		t.Error("the same request got another certificate")
	}
	state := must(d.commands.Device(t.Context(), dev.id))(t)
	if n := state.Newest; n.Serial != pki.SerialHex(leaf) || n.Reason != events.CertificateRenew || n.Issuer != pki.AnchorID(a.State().Active().Certificate()) {
		t.Errorf("the log has %+v", n)
	}

	rsaKey := must(rsa.GenerateKey(rand.Reader, 2048))(t)
	p384 := must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))(t)
	forged := bytes.Clone(csr)
	forged[len(forged)-3] ^= 1
	before = d.last()
	for name, tc := range map[string]struct {
		csr  []byte
		says string
	}{
		"garbage":            {[]byte("certificate, please"), "PKCS #10"},
		"RSA":                {dev.request(string(dev.id), rsaKey), "want ECDSA P-256"},
		"P-384":              {dev.request(string(dev.id), p384), "curve P-384"},
		"another device":     {dev.request(uuid.NewString(), dev.key), "common name"},
		"a neighbour":        {other.request(string(other.id), other.key), "common name"},
		"a neighbour's key":  {dev.request(string(dev.id), other.key), "another key"},
		"a forged signature": {forged, "signature"},
	} {
		c.up(wire.Up{Renewal: &wire.Renewal{CSR: tc.csr}})
		if e := c.failure(wire.ErrorRenewal); !strings.Contains(e.Message, tc.says) {
			t.Errorf("%s: %q, want it to say %q", name, e.Message, tc.says)
		}
	}
	c.publish(wire.UpTopic(string(dev.id)), must(wire.EncodeUp(wire.Up{Version: 1, Renewal: &wire.Renewal{CSR: make([]byte, wire.MaxCertificate+1)}}))(t), 0, false)
	if e := c.failure(wire.ErrorTooLarge); !strings.Contains(e.Message, "certificate request") {
		t.Errorf("too large: %q", e.Message)
	}
	if d.last() != before {
		t.Errorf("%d decisions were written by bad input", d.last()-before)
	}
	// Too often: what the device got so far counts.
	for range 2 {
		c.up(wire.Up{Renewal: &wire.Renewal{CSR: dev.request(string(dev.id), dev.key)}})
		c.certificate()
	}
	before = d.last()
	c.up(wire.Up{Renewal: &wire.Renewal{CSR: dev.request(string(dev.id), dev.key)}})
	if e := c.failure(wire.ErrorRenewal); !strings.Contains(e.Message, "no more before") || d.last() != before {
		t.Errorf("too often: %q", e.Message)
	}
	c.alive(wire.Hello{})

	// Before its Hello a device is not answered.
	silent := d.device()
	q := silent.link()
	q.up(wire.Up{Renewal: &wire.Renewal{CSR: silent.request(string(silent.id), silent.key)}})
	q.alive(wire.Hello{})
	for _, got := range q.drain() {
		if got.Certificate != nil {
			t.Error("a device got a certificate before its Hello")
		}
	}
}

// A pending device keeps its certificate fresh too.
func TestRenewalWhilePending(t *testing.T) {
	d, _, _ := trusted(t)
	dev := d.identity()
	dev.register(false)
	c, w := dev.connect(wire.Hello{})
	if !w.Pending {
		t.Fatal("not pending")
	}
	c.up(wire.Up{Renewal: &wire.Renewal{CSR: dev.request(string(dev.id), dev.key)}})
	if got := c.certificate(); len(got.Leaf) == 0 {
		t.Error("no certificate")
	}
}

// TestTrustChanges follows a device through the replacement of the CA: what it is
// told depends on what it says it has, and is written down when it changes.
func TestTrustChanges(t *testing.T) {
	d, a, dir := trusted(t)
	dev := d.device()
	c := dev.link()
	id := func(ca *pki.CA) []byte { return wire.AnchorID(ca.Certificate()) }
	say := func(anchors [][]byte) {
		c.up(wire.Up{Hello: &wire.Hello{Agent: "test", Epoch: 1, First: 1, Next: 1, Time: time.Now()}, Anchors: anchors})
	}
	hello := func(anchors ...[]byte) {
		say(anchors)
		c.down(func(d wire.Down) bool { return d.Welcome != nil })
	}
	// nothing has the device greet twice: whatever the first Hello led to comes
	// before the second Welcome.
	nothing := func(why string, anchors ...[]byte) {
		t.Helper()
		hello(anchors...)
		say(anchors)
		c.down(func(d wire.Down) bool {
			if d.Certificate != nil || d.Renew {
				t.Errorf("%s: told %+v", why, d)
			}
			return d.Welcome != nil
		})
	}
	step := func(f func(string, time.Time) (*pki.State, error)) {
		t.Helper()
		must(f(dir, time.Now()))(t)
		must(a.Reload())(t)
		d.gateway.TrustChanged()
	}
	anchors := func(want int) {
		t.Helper()
		eventually(t, "the log knows the anchors", func() bool {
			return len(must(d.commands.Device(t.Context(), dev.id))(t).Anchors) == want
		})
	}
	first := a.State().Active()
	nothing("a device that has what there is", id(first))
	anchors(1) // the certificate of the test is of another CA, so that it is news
	before := d.last()
	hello(id(first))
	if d.last() != before {
		t.Error("what is no news was written")
	}

	step(pki.Prepare)
	if got := c.certificate(); len(got.CAs) != 2 || len(got.Leaf) != 0 {
		t.Errorf("told %d CAs and a leaf of %d bytes", len(got.CAs), len(got.Leaf))
	}
	next := a.State().Other()
	c.up(wire.Up{Anchors: [][]byte{id(first), id(next)}})
	anchors(2)
	nothing("a device that has both", id(first), id(next))
	hello(id(first))
	if got := c.certificate(); len(got.CAs) != 2 {
		t.Error("a device that was set back is not told again")
	}
	c.up(wire.Up{Anchors: [][]byte{id(first), id(next)}})
	anchors(2)

	// The former CA's certificate is to be replaced, by one of the new CA.
	step(pki.Switch)
	c.down(func(d wire.Down) bool { return d.Renew })
	c.up(wire.Up{Renewal: &wire.Renewal{CSR: dev.request(string(dev.id), dev.key)}})
	leaf := must(x509.ParseCertificate(c.certificate().Leaf))(t)
	if leaf.CheckSignatureFrom(next.Certificate()) != nil {
		t.Error("the certificate is not of the new CA")
	}
	c.up(wire.Up{Anchors: [][]byte{id(first), id(next)}})
	nothing("a device that has all", id(first), id(next))

	step(pki.Retire)
	if got := c.certificate(); len(got.CAs) != 1 || !bytes.Equal(got.CAs[0], next.Certificate().Raw) {
		t.Errorf("told %d CAs", len(got.CAs))
	}
	// A device that does not say what it has would not understand.
	nothing("an older agent")
}

// TestRotationOverTheSession: a device is asked at once, and with each Hello
// until it has another certificate.
func TestRotationOverTheSession(t *testing.T) {
	d, _, _ := trusted(t)
	dev := d.device()
	d.do(commands.RotateCertificate{Device: dev.id})
	renew := func(d wire.Down) bool { return d.Renew }
	c, _ := dev.connect(wire.Hello{})
	c.down(renew)
	check(t, d.gateway.Refresh(t.Context(), dev.id))
	c.down(renew)
	c.up(wire.Up{Renewal: &wire.Renewal{CSR: dev.request(string(dev.id), dev.key)}})
	c.certificate()
	if n := must(d.commands.Device(t.Context(), dev.id))(t); n.Newest.Reason != events.CertificateRotate || !n.RotationAt.IsZero() {
		t.Errorf("newest %+v, rotation since %v", n.Newest, n.RotationAt)
	}
	c.alive(wire.Hello{})
	check(t, d.gateway.Refresh(t.Context(), dev.id))
	c.alive(wire.Hello{})
	for _, got := range c.drain() {
		if got.Renew {
			t.Error("asked again")
		}
	}
}
