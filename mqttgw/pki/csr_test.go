package pki_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"net"
	"net/url"
	"strings"
	"testing"

	"pallas/mqttgw/pki"
)

// newCSR returns a request for the device; change may spoil the template.
func newCSR(t testing.TB, key crypto.Signer, change func(*x509.CertificateRequest)) *x509.CertificateRequest {
	t.Helper()
	template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: device}}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

func csrPEM(csr *x509.CertificateRequest) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr.Raw})
}

func TestParseCSR(t *testing.T) {
	key := newKey(t)
	good := newCSR(t, key, nil)
	got, err := pki.ParseCSR(csrPEM(good))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Raw, good.Raw) {
		t.Error("parsed another request")
	}
	if err := pki.VerifyCSR(got, device); err != nil {
		t.Error(err)
	}
}

func TestParseCSRRefuses(t *testing.T) {
	good := csrPEM(newCSR(t, newKey(t), nil))
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block := func(kind string, b []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}) }
	for _, tc := range []struct {
		name string
		in   []byte
		says string
	}{
		{"empty", nil, "not PEM"},
		{"text", []byte("hello"), "not PEM"},
		{"DER", newCSR(t, newKey(t), nil).Raw, "not PEM"},
		{"another block", block("CERTIFICATE", []byte{1}), `"CERTIFICATE"`},
		{"garbage in the block", block("CERTIFICATE REQUEST", []byte("garbage")), "not a PKCS #10 request"},
		{"trailing DER", block("CERTIFICATE REQUEST", append(newCSR(t, newKey(t), nil).Raw, 0)), "not a PKCS #10 request"},
		{"two blocks", append(bytes.Clone(good), good...), "beside"},
		{"text behind", append(bytes.Clone(good), "and more"...), "beside"},
		{"PEM headers", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED"}, Bytes: []byte{1}}), "beside"},
		{"huge", bytes.Repeat([]byte("A"), pki.MaxCSR+1), "at most"},
		{"huge block", block("CERTIFICATE REQUEST", bytes.Repeat([]byte{0x30}, 1<<20)), "at most"},
		{"RSA", csrPEM(newCSR(t, rsaKey, nil)), "RSA, want ECDSA P-256"},
		{"P-384", csrPEM(newCSR(t, p384, nil)), "P-384, want P-256"},
		{"Ed25519", csrPEM(newCSR(t, ed, nil)), "Ed25519, want ECDSA P-256"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			csr, err := pki.ParseCSR(tc.in)
			if csr != nil || !errors.Is(err, pki.ErrCSR) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("error %v, want one that says %q", err, tc.says)
			}
			if err != nil && len(err.Error()) > 300 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
		})
	}
}

// However a request was made, one that is not P-256, not self-signed or for
// another device is never signed.
func TestIssueDeviceRefuses(t *testing.T) {
	ca, key := newCA(t), newKey(t)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	// A request with somebody else's public key: the attacker signs it with
	// its own.
	stolen := newCSR(t, key, nil)
	victim := newKey(t)
	stolen.PublicKey = &victim.PublicKey
	badSignature := newCSR(t, key, nil)
	badSignature.Signature = bytes.Clone(badSignature.Signature)
	badSignature.Signature[len(badSignature.Signature)-1] ^= 1
	cn := func(s string) func(*x509.CertificateRequest) {
		return func(r *x509.CertificateRequest) { r.Subject = pkix.Name{CommonName: s} }
	}
	for _, tc := range []struct {
		name   string
		csr    *x509.CertificateRequest
		device string
		says   string
	}{
		{"stolen public key", stolen, device, "signature"},
		{"bad signature", badSignature, device, "signature"},
		{"another device's name", newCSR(t, key, cn("1c9d7e70-45ab-4d1e-8f6a-0a1b2c3d4e5f")), device, "common name"},
		{"upper case", newCSR(t, key, cn(strings.ToUpper(device))), device, "common name"},
		{"name with more behind", newCSR(t, key, cn(device+"\x00")), device, "common name"},
		{"no name", newCSR(t, key, cn("")), "", "common name"},
		{"P-384", newCSR(t, p384, nil), device, "P-384"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b, cert, err := ca.IssueDevice(tc.csr, tc.device, now, 0)
			if b != nil || cert != nil || !errors.Is(err, pki.ErrCSR) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("error %v, want one that says %q", err, tc.says)
			}
		})
	}
}

// What a request asks for besides key and name is not granted.
func TestIssueDeviceIgnoresWishes(t *testing.T) {
	ca, key := newCA(t), newKey(t)
	type basic struct {
		IsCA bool
	}
	isCA, err := asn1.Marshal(basic{IsCA: true})
	if err != nil {
		t.Fatal(err)
	}
	usage, err := asn1.Marshal([]asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 1}, {2, 5, 29, 37, 0}}) // serverAuth, any
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse("spiffe://pallas/manager")
	if err != nil {
		t.Fatal(err)
	}
	greedy := newCSR(t, key, func(r *x509.CertificateRequest) {
		r.Subject.OrganizationalUnit = []string{"system:masters"}
		r.DNSNames = []string{"manager.example", "*"}
		r.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
		r.EmailAddresses = []string{"admin@manager.example"}
		r.URIs = []*url.URL{u}
		r.ExtraExtensions = []pkix.Extension{
			{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: isCA},
			{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Value: usage},
			{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}},
		}
	})
	_, modest, err := ca.IssueDevice(newCSR(t, key, nil), device, now, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, cert, err := ca.IssueDevice(greedy, device, now, 0)
	if err != nil {
		t.Fatal(err)
	}
	if cert.IsCA || cert.KeyUsage != x509.KeyUsageDigitalSignature || cert.Subject.String() != "CN="+device {
		t.Errorf("IsCA %v, usage %b, subject %s", cert.IsCA, cert.KeyUsage, cert.Subject)
	}
	if len(cert.DNSNames)+len(cert.IPAddresses)+len(cert.EmailAddresses)+len(cert.URIs) != 0 {
		t.Error("names of the request were granted")
	}
	if len(cert.Extensions) != len(modest.Extensions) {
		t.Errorf("%d extensions, want the %d of a modest request", len(cert.Extensions), len(modest.Extensions))
	}
	for i, e := range cert.Extensions {
		if m := modest.Extensions[i]; !e.Id.Equal(m.Id) || !bytes.Equal(e.Value, m.Value) {
			t.Errorf("extension %v differs from a modest request's", e.Id)
		}
	}
}

// No input makes ParseCSR panic, and what it accepts can be verified or
// refused without one.
func FuzzParseCSR(f *testing.F) {
	f.Add(csrPEM(newCSR(f, newKey(f), nil)))
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\nMIIB\n-----END CERTIFICATE REQUEST-----\n"))
	f.Add([]byte(""))
	f.Fuzz(func(t *testing.T, b []byte) {
		csr, err := pki.ParseCSR(b)
		if err != nil {
			if !errors.Is(err, pki.ErrCSR) || csr != nil {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		if err := pki.VerifyCSR(csr, device); err != nil && !errors.Is(err, pki.ErrCSR) {
			t.Fatalf("refused with %v", err)
		}
	})
}

// The same for the binary form.
func FuzzParseCSRDER(f *testing.F) {
	f.Add(newCSR(f, newKey(f), nil).Raw)
	f.Add([]byte{0x30, 0x82})
	f.Add([]byte(""))
	f.Fuzz(func(t *testing.T, b []byte) {
		csr, err := pki.ParseCSRDER(b)
		if err != nil {
			if !errors.Is(err, pki.ErrCSR) || csr != nil {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		if err := pki.VerifyCSR(csr, device); err != nil && !errors.Is(err, pki.ErrCSR) {
			t.Fatalf("refused with %v", err)
		}
	})
}
