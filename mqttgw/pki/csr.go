package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
)

// MaxCSR is the largest certificate request that ParseCSR reads, in bytes of
// PEM. An honest one has about 400.
const MaxCSR = 8 << 10

// ErrCSR is what every refusal of a certificate request wraps.
var ErrCSR = errors.New("certificate request refused")

// ParseCSR reads one PEM certificate request. It checks the form and the kind
// of key, which is cheap; whether the request is signed by its key and for the
// right device is for [VerifyCSR]. The errors name what is wrong and wrap
// ErrCSR.
func ParseCSR(b []byte) (*x509.CertificateRequest, error) {
	if len(b) > MaxCSR {
		return nil, refuse("%d bytes, at most %d", len(b), MaxCSR)
	}
	p, rest := pem.Decode(b)
	switch {
	case p == nil:
		return nil, refuse("not PEM")
	case p.Type != csrBlock:
		return nil, refuse("PEM block %q, want %q", clip(p.Type), csrBlock)
	case len(p.Headers) != 0 || strings.TrimSpace(string(rest)) != "":
		return nil, refuse("something beside the one PEM block")
	}
	return parseCSR(p.Bytes)
}

// ParseCSRDER is [ParseCSR] for the binary form, as the device protocol has it.
func ParseCSRDER(b []byte) (*x509.CertificateRequest, error) {
	if len(b) > MaxCSR {
		return nil, refuse("%d bytes, at most %d", len(b), MaxCSR)
	}
	return parseCSR(b)
}

func parseCSR(der []byte) (*x509.CertificateRequest, error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, refuse("not a PKCS #10 request")
	}
	if err := checkKey(csr); err != nil {
		return nil, err
	}
	return csr, nil
}

// VerifyCSR says whether the request has a P-256 key, is signed by it, and is
// for the device: its common name is the device's id. The error wraps ErrCSR.
func VerifyCSR(csr *x509.CertificateRequest, device string) error {
	if err := checkKey(csr); err != nil {
		return err
	}
	if device == "" || csr.Subject.CommonName != device {
		return refuse("common name %q, want the device id %q", clip(csr.Subject.CommonName), clip(device))
	}
	if err := csr.CheckSignature(); err != nil {
		return refuse("signature: not made by the request's own key")
	}
	return nil
}

func checkKey(csr *x509.CertificateRequest) error {
	pub, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return refuse("public key: %v, want ECDSA P-256", csr.PublicKeyAlgorithm)
	}
	if pub.Curve != elliptic.P256() {
		return refuse("public key: curve %s, want P-256", pub.Curve.Params().Name)
	}
	return nil
}

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrCSR}, args...)...)
}

func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}
