package wire

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"
)

// ErrPin says that the server's chain does not contain the pinned CA: the join
// string is for another manager, or somebody is in between.
var ErrPin = errors.New("the server does not present the CA of the join string")

// PinnedTLS returns a client configuration that trusts one CA, known only by
// the SHA-256 of its certificate (DER), as a join string carries it. The server
// must present that CA in its chain, and a leaf that the CA vouches for under
// host; a port in host is ignored.
//
// host is an argument because TLS does not tell a verifier under which address
// a server without a DNS name was dialled. The verification uses the result's
// Time if the caller sets one.
func PinnedTLS(ca []byte, host string) *tls.Config {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	config := &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: host,
		// The library cannot verify against a CA that it learns only from the
		// chain itself; VerifyConnection below does all of it, and runs on
		// resumed sessions too.
		InsecureSkipVerify: true,
	}
	config.VerifyConnection = func(state tls.ConnectionState) error {
		now := time.Now
		if config.Time != nil {
			now = config.Time
		}
		return verifyPinned(state.PeerCertificates, ca, host, now())
	}
	return config
}

func verifyPinned(chain []*x509.Certificate, ca []byte, host string, now time.Time) error {
	if len(chain) == 0 || len(ca) != sha256.Size || host == "" {
		return ErrPin
	}
	var root *x509.Certificate
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		if root == nil && bytes.Equal(CAFingerprint(c), ca) {
			root = c
		} else {
			between.AddCert(c)
		}
	}
	if root == nil {
		return ErrPin
	}
	roots := x509.NewCertPool()
	roots.AddCert(root)
	if _, err := chain[0].Verify(x509.VerifyOptions{
		DNSName: host, Roots: roots, Intermediates: between, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}); err != nil {
		return fmt.Errorf("server certificate: %w", err)
	}
	return nil
}

// TLS returns the configuration for enrolling with the join string's manager.
// A join string that ParseJoin would refuse leads to a configuration that no
// server satisfies.
func (j Join) TLS() *tls.Config {
	host := ""
	if u, err := url.Parse(j.URL); err == nil {
		host = u.Hostname()
	}
	return PinnedTLS(j.CA, host)
}
