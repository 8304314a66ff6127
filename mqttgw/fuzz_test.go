package mqttgw

import (
	"bytes"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"

	"pallas/events"
	"pallas/mqttgw/pki"
)

// sent is a connection whose peer has sent some bytes and waits.
type sent struct {
	net.Conn // nothing else is called
	r        *bytes.Reader
}

func (c sent) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if errors.Is(err, io.EOF) {
		err = errors.New("test: it took too long")
	}
	return n, err
}

func (c sent) Write(p []byte) (int, error)        { return len(p), nil }
func (c sent) Close() error                       { return nil }
func (c sent) SetDeadline(time.Time) error        { return nil }
func (c sent) SetReadDeadline(time.Time) error    { return nil }
func (c sent) SetWriteDeadline(t time.Time) error { return nil }

// clientHello returns what a TLS client sends first.
func clientHello(t testing.TB, protocols ...string) []byte {
	t.Helper()
	c, s := net.Pipe()
	go func() {
		_ = tls.Client(c, &tls.Config{ServerName: "manager.example", NextProtos: protocols}).HandshakeContext(t.Context())
		_ = c.Close()
	}()
	b := make([]byte, maxHello)
	n, err := s.Read(b)
	check(t, err)
	check(t, s.Close())
	return b[:n]
}

// FuzzClientHello checks that the shared port decides about whatever arrives,
// reads no more than it may, and loses no byte of it.
func FuzzClientHello(f *testing.F) {
	for _, protocols := range [][]string{nil, {ALPN}, {"h2", "http/1.1"}, {ALPN, "h2"}} {
		f.Add(clientHello(f, protocols...))
	}
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Add([]byte{0x10, 0x10, 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 60, 0, 4, 'a', 'b', 'c', 'd'})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := &recorder{Conn: sent{r: bytes.NewReader(b)}}
		mqtt := offersMQTT(t.Context(), r)
		kept := r.buf.Bytes()
		if len(kept) > maxHello || !bytes.HasPrefix(b, kept) {
			t.Fatalf("kept %d bytes of %d, the first ones: %t", len(kept), len(b), bytes.HasPrefix(b, kept))
		}
		if mqtt && (r.err != nil || !bytes.Contains(kept, []byte("\x00\x10\x00\x07\x00\x05\x04mqtt"))) {
			t.Fatalf("taken for MQTT (%v): %x", r.err, kept)
		}
	})
}

// FuzzIdentify checks that a connection is nobody's but the device's whose id
// the certificate and the client both name.
func FuzzIdentify(f *testing.F) {
	now := time.Now()
	ca := must(pki.Create(f.TempDir(), now, "Test CA"))(f)
	const id = "6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f"
	server := must(ca.IssueServer([]string{id}, now, 0))(f)
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate[0]})
	f.Add("mqtt", id, cert)
	f.Add("mqtt", "", ca.CertificatePEM())
	f.Add("nats", id, []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, kind, client string, certificate []byte) {
		var req jwt.AuthorizationRequestClaims
		req.ClientInformation.Type, req.ClientInformation.MQTT = kind, client
		req.TLS = &jwt.ClientTLS{VerifiedChains: []jwt.StringList{{string(certificate)}}}
		got, leaf, err := identify(&req, now)
		if err != nil {
			var r *refusedError
			if !errors.As(err, &r) || r.reason == "" || got != "" || leaf != nil {
				t.Fatalf("%q, %v", got, err)
			}
			return
		}
		if _, err := events.ParseDeviceID(client); err != nil || string(got) != client || leaf.Subject.CommonName != client || now.After(leaf.NotAfter) {
			t.Fatalf("client %q is device %q with the certificate of %q", client, got, leaf.Subject.CommonName)
		}
	})
}
