package vcsim

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"math/big"
	"net"
	"time"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/vim25/soap"
)

// digest derives everything of a host that must be the same at each start.
func digest(parts ...string) [sha256.Size]byte {
	h := sha256.New()
	for _, p := range parts {
		h.Write([]byte(p))
		h.Write([]byte{0})
	}
	return [sha256.Size]byte(h.Sum(nil))
}

func number(parts ...string) uint64 {
	d := digest(parts...)
	return binary.BigEndian.Uint64(d[:]) | 1 // never 0, which means unset
}

func stableUUID(parts ...string) string {
	d := digest(parts...)
	d[6] = d[6]&0x0f | 0x40
	d[8] = d[8]&0x3f | 0x80
	return uuid.UUID(d[:16]).String()
}

// certificate makes the host's self-signed certificate. Its key comes from the
// name: it protects nothing, and a pinned thumbprint stays right over a
// restart.
func certificate(name string) (tls.Certificate, error) {
	d := digest(name, "key")
	key := ed25519.NewKeyFromSeed(d[:])
	from := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: new(big.Int).SetUint64(number(name, "serial")),
		Subject:      pkix.Name{CommonName: name, Organization: []string{"VMware"}, OrganizationalUnit: []string{"VMware ESX Server Default Certificate"}},
		NotBefore:    from,
		NotAfter:     from.AddDate(12, 0, 0),
		KeyUsage:     x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IsCA:         true, BasicConstraintsValid: true,
		DNSNames:    []string{name, "localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}, new(x509.Certificate), key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, err
}

// CertificatePEM returns the certificate, to trust it as a CA.
func (h *Host) CertificatePEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: h.cert.Certificate[0]})
}

// Thumbprint returns the SHA-256 of the certificate, as "AA:BB:…".
func (h *Host) Thumbprint() string { return soap.ThumbprintSHA256(h.cert.Leaf) }

// ThumbprintSHA1 is Thumbprint in the older form.
func (h *Host) ThumbprintSHA1() string { return soap.ThumbprintSHA1(h.cert.Leaf) }
