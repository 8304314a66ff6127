package esxi

import (
	"bytes"
	"crypto/sha1" //nolint:gosec // the form in which ESXi shows thumbprints
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// trust decides whether a certificate is the host's.
type trust struct {
	pin      []byte // SHA-256 or SHA-1
	roots    *x509.CertPool
	insecure bool
}

func newTrust(cfg Config) (trust, error) {
	n := 0
	for _, set := range []bool{cfg.Thumbprint != "", cfg.CAFile != "", cfg.Insecure} {
		if set {
			n++
		}
	}
	if n != 1 {
		return trust{}, errors.New("thumbprint, ca_file, insecure: set exactly one of them")
	}
	switch {
	case cfg.Insecure:
		return trust{insecure: true}, nil
	case cfg.Thumbprint != "":
		pin, err := hex.DecodeString(strings.NewReplacer(":", "", " ", "").Replace(cfg.Thumbprint))
		if err != nil || (len(pin) != sha256.Size && len(pin) != sha1.Size) {
			return trust{}, errors.New("thumbprint: want the SHA-256 (or SHA-1) of the host's certificate in hex, such as AB:CD:…")
		}
		return trust{pin: pin}, nil
	}
	pem, err := os.ReadFile(cfg.CAFile)
	if err != nil {
		return trust{}, fmt.Errorf("ca_file: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return trust{}, fmt.Errorf("ca_file: %s holds no PEM certificate", cfg.CAFile)
	}
	return trust{roots: pool}, nil
}

// errPin is a certificate that is not the pinned one.
type errPin struct{ want, got string }

func (e *errPin) Error() string {
	return fmt.Sprintf("the certificate has thumbprint %s, pinned is %s", e.got, e.want)
}

// verify checks the certificate chain that a server showed.
func (t trust) verify(host string, chain []*x509.Certificate, now time.Time) error {
	if t.insecure {
		return nil
	}
	if len(chain) == 0 {
		return errors.New("the host showed no certificate")
	}
	if t.pin != nil {
		if got := fingerprint(chain[0], len(t.pin)); !bytes.Equal(got, t.pin) {
			return &errPin{want: colons(t.pin), got: colons(got)}
		}
		return nil
	}
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: t.roots, Intermediates: intermediates, DNSName: host, CurrentTime: now})
	return err
}

// config returns the TLS configuration of the connection.
func (t trust) config(host string) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		ServerName:         host,
		InsecureSkipVerify: true, // verify below decides, so that its errors name what was found
		VerifyConnection: func(s tls.ConnectionState) error {
			if err := t.verify(host, s.PeerCertificates, time.Now()); err != nil {
				return &certificateError{chain: s.PeerCertificates, err: err}
			}
			return nil
		},
	}
}

// certificateError is a refused certificate.
type certificateError struct {
	chain []*x509.Certificate
	err   error
}

func (e *certificateError) Unwrap() error { return e.err }

func (e *certificateError) Error() string {
	var pin *errPin
	if errors.As(e.err, &pin) {
		return fmt.Sprintf("this is not the host that was pinned: its certificate has thumbprint %s, pinned is %s;"+
			" if the host got a new certificate, put the new thumbprint into the configuration", pin.got, pin.want)
	}
	if len(e.chain) == 0 {
		return e.err.Error()
	}
	return fmt.Sprintf("the host's certificate is not trusted: %v; its thumbprint is %s", e.err, thumbprint(e.chain[0]))
}

func fingerprint(c *x509.Certificate, size int) []byte {
	if size == sha1.Size {
		sum := sha1.Sum(c.Raw) //nolint:gosec // compared with a pin that is a SHA-1
		return sum[:]
	}
	sum := sha256.Sum256(c.Raw)
	return sum[:]
}

func thumbprint(c *x509.Certificate) string { return colons(fingerprint(c, sha256.Size)) }

func colons(b []byte) string { return strings.ReplaceAll(fmt.Sprintf("% X", b), " ", ":") }
