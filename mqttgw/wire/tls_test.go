package wire_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"pallas/mqttgw/wire"
)

// authority is a CA made here, because this package imports nothing of ours.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := signCert(t, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, nil, &key.PublicKey, key)
	return authority{cert, key}
}

func signCert(t *testing.T, template, parent *x509.Certificate, pub any, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// leaf returns a server certificate with the chain as given.
func (a authority) leaf(t *testing.T, usage x509.ExtKeyUsage, chain ...*x509.Certificate) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := signCert(t, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "server"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"manager.example"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		ExtKeyUsage: []x509.ExtKeyUsage{usage},
	}, a.cert, &key.PublicKey, a.key)
	out := tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
	for _, c := range chain {
		out.Certificate = append(out.Certificate, c.Raw)
	}
	return out
}

func TestPinnedTLS(t *testing.T) {
	ours, theirs := newAuthority(t, "ours"), newAuthority(t, "theirs")
	pin := wire.CAFingerprint(ours.cert)
	server := x509.ExtKeyUsageServerAuth
	good := ours.leaf(t, server, ours.cert)
	future := func() time.Time { return time.Now().Add(2 * time.Hour) }
	for _, tc := range []struct {
		name  string
		chain tls.Certificate
		pin   []byte
		host  string
		clock func() time.Time
		want  error  // nil: no particular one
		says  string // "": must succeed
	}{
		{name: "address", chain: good, pin: pin, host: "127.0.0.1"},
		{name: "address and port", chain: good, pin: pin, host: "127.0.0.1:443"},
		{name: "IPv6", chain: good, pin: pin, host: "[::1]:443"},
		{name: "bare IPv6", chain: good, pin: pin, host: "::1"},
		{name: "name", chain: good, pin: pin, host: "manager.example"},
		{name: "CA last of three", chain: ours.leaf(t, server, theirs.cert, ours.cert), pin: pin, host: "manager.example"},
		{name: "another name", chain: good, pin: pin, host: "other.example", says: "other.example"},
		{name: "another address", chain: good, pin: pin, host: "127.0.0.2", says: "127.0.0.2"},
		{name: "no host", chain: good, pin: pin, host: "", want: wire.ErrPin, says: "CA"},
		{name: "another pin", chain: good, pin: wire.CAFingerprint(theirs.cert), host: "127.0.0.1", want: wire.ErrPin, says: "CA"},
		{name: "a short pin", chain: good, pin: pin[:16], host: "127.0.0.1", want: wire.ErrPin, says: "CA"},
		{name: "no pin", chain: good, pin: nil, host: "127.0.0.1", want: wire.ErrPin, says: "CA"},
		{name: "chain without the CA", chain: ours.leaf(t, server), pin: pin, host: "127.0.0.1", want: wire.ErrPin, says: "CA"},
		{name: "foreign leaf, our CA appended", chain: theirs.leaf(t, server, ours.cert), pin: pin, host: "127.0.0.1", says: "server certificate"},
		{name: "foreign leaf and CA, our CA appended", chain: theirs.leaf(t, server, theirs.cert, ours.cert), pin: pin, host: "127.0.0.1", says: "server certificate"},
		{name: "a client's certificate", chain: ours.leaf(t, x509.ExtKeyUsageClientAuth, ours.cert), pin: pin, host: "127.0.0.1", says: "server certificate"},
		{name: "expired by the caller's clock", chain: good, pin: pin, host: "127.0.0.1", clock: future, says: "expired"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			config := wire.PinnedTLS(tc.pin, tc.host)
			config.Time = tc.clock
			err := handshake(t, &tls.Config{Certificates: []tls.Certificate{tc.chain}}, config)
			switch {
			case tc.says == "" && err != nil:
				t.Error(err)
			case tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says)):
				t.Errorf("error %v, want one that says %q", err, tc.says)
			case tc.want != nil && !errors.Is(err, tc.want):
				t.Errorf("error %v, want %v", err, tc.want)
			}
		})
	}
}

// handshake dials a real listener with the client's configuration.
func handshake(t *testing.T, server, client *tls.Config) error {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if c, err := l.Accept(); err == nil {
			io.Copy(io.Discard, c) //nolint:errcheck // its error is the client's
			c.Close()
		}
	}()
	defer func() { l.Close(); <-done }()
	c, err := tls.Dial("tcp", l.Addr().String(), client)
	if err != nil {
		return err
	}
	return c.Close()
}

// The way an agent uses it: net/http clones the configuration.
func TestJoinTLSOverHTTP(t *testing.T) {
	ours := newAuthority(t, "ours")
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{ours.leaf(t, x509.ExtKeyUsageServerAuth, ours.cert)}}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	defer s.Close()

	get := func(j wire.Join, url string) error {
		tr := &http.Transport{TLSClientConfig: j.TLS()}
		defer tr.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := tr.RoundTrip(req)
		if err != nil {
			return err
		}
		return resp.Body.Close()
	}
	pin := wire.CAFingerprint(ours.cert)
	if err := get(wire.Join{URL: s.URL, CA: pin}, s.URL); err != nil {
		t.Error(err)
	}
	// A redirect to a host that is not the join string's fails closed.
	if err := get(wire.Join{URL: "https://elsewhere.example", CA: pin}, s.URL); err == nil {
		t.Error("a server of another name accepted")
	}
	if err := get(wire.Join{URL: "::bad::", CA: pin}, s.URL); !errors.Is(err, wire.ErrPin) {
		t.Errorf("a bad URL: %v, want ErrPin", err)
	}
}
