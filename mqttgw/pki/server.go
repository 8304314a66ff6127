package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"sync"
	"time"
)

// IssueServer makes a key and a certificate for a server that is reached under
// the hosts: DNS names and IP addresses, without ports. The chain includes the
// CA, so that a client that knows only its fingerprint can find it. life 0
// means ServerLife.
func (c *CA) IssueServer(hosts []string, now time.Time, life time.Duration) (tls.Certificate, error) {
	cert, err := c.issueServer(hosts, now, life)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("issue server certificate: %w", err)
	}
	return cert, nil
}

func (c *CA) issueServer(hosts []string, now time.Time, life time.Duration) (tls.Certificate, error) {
	if len(hosts) == 0 {
		return tls.Certificate{}, errors.New("no host")
	}
	names, addrs, err := splitHosts(hosts)
	if err != nil {
		return tls.Certificate{}, err
	}
	if life == 0 {
		life = ServerLife
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	// The names are in the SAN, which is all that verifiers read; the common
	// name is for people and must not exceed 64 bytes.
	leaf, err := c.sign(&x509.Certificate{
		Subject:     pkix.Name{CommonName: "Pallas device manager"},
		DNSNames:    names,
		IPAddresses: addrs,
		NotBefore:   now.Add(-serverBackdate),
		NotAfter:    now.Add(life),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, &key.PublicKey, now)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{leaf.Raw, c.cert.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

// ServerConfig says what a [ServerSource] issues. Hosts, Now and one of CA and
// Authority are needed; Life 0 means ServerLife.
type ServerConfig struct {
	CA *CA
	// Authority is for a CA that may be replaced: the certificate follows.
	Authority *Authority
	Hosts     []string
	Life      time.Duration
	Now       func() time.Time
}

// ServerSource holds a server certificate and makes a new one in time. It is
// safe for concurrent use.
type ServerSource struct {
	config ServerConfig

	mu    sync.Mutex
	cert  *tls.Certificate
	of    *State    // of the Authority, when the certificate was issued
	renew time.Time // when the next one is due
}

// NewServerSource issues the first certificate.
func NewServerSource(config ServerConfig) (*ServerSource, error) {
	if (config.CA == nil) == (config.Authority == nil) || config.Now == nil {
		return nil, errors.New("server certificate source without a CA or a clock")
	}
	if config.Life == 0 {
		config.Life = ServerLife
	}
	s := &ServerSource{config: config}
	if err := s.issue(config.Now()); err != nil {
		return nil, err
	}
	return s, nil
}

// GetCertificate is for tls.Config. It renews once two thirds of the
// certificate's life have passed, and when the CAs are others than before. A
// failed renewal keeps the certificate as long as it is valid; the next handshake
// tries again.
func (s *ServerSource) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := s.config.Authority != nil && s.config.Authority.State() != s.of
	if now := s.config.Now(); changed || !now.Before(s.renew) {
		if err := s.issue(now); err != nil && !now.Before(s.cert.Leaf.NotAfter) {
			return nil, err
		}
	}
	return s.cert, nil
}

func (s *ServerSource) issue(now time.Time) error {
	issue, of := s.config.CA.IssueServer, (*State)(nil)
	if s.config.Authority != nil {
		of = s.config.Authority.State()
		issue = of.IssueServer
	}
	cert, err := issue(s.config.Hosts, now, s.config.Life)
	if err != nil {
		return err
	}
	s.cert, s.of = &cert, of
	s.renew = now.Add(cert.Leaf.NotAfter.Sub(now) * 2 / 3)
	return nil
}
