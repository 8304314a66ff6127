package wire

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"time"

	"github.com/google/uuid"
)

// JoinPrefix starts every join string, so that people and secret scanners
// recognise one.
const JoinPrefix = "pallas-join-1."

// maxJoin bounds the text behind the prefix; an honest one has about 250 bytes.
const maxJoin = 4 << 10

// Join is what a device needs to enrol: where, whom to trust, and a token.
type Join struct {
	// URL is the manager's, https only, without a path.
	URL string `cbor:"1,keyasint" json:"url"`
	// CA is the SHA-256 of the CA certificate (DER) that the manager's server
	// certificate must chain to.
	CA []byte `cbor:"2,keyasint" json:"ca"`
	// Token is the join token, "<id>.<secret>". It is a secret.
	Token string `cbor:"3,keyasint" json:"-"`
	// Expires is when the token ends.
	Expires time.Time `cbor:"4,keyasint" json:"expires"`
}

// String returns the join string. It contains the token: show it once, log it
// never.
func (j Join) String() string {
	b, err := encMode.Marshal(j)
	if err != nil {
		panic(err) // plain data: cannot fail
	}
	return JoinPrefix + base64.RawURLEncoding.EncodeToString(b)
}

// LogValue shows everything but the secret of the token.
func (j Join) LogValue() slog.Value {
	return slog.GroupValue(
		slog.String("url", j.URL),
		slog.String("ca", hex.EncodeToString(j.CA)),
		slog.String("token", redact(j.Token)),
		slog.Time("expires", j.Expires),
	)
}

// redact keeps the public id of a token.
func redact(token string) string {
	id, _, ok := strings.Cut(token, ".")
	if _, err := uuid.Parse(id); !ok || err != nil {
		return "[redacted]"
	}
	return id + ".[redacted]"
}

// ParseJoin reads a join string. Its errors say what is wrong without showing
// the token.
func ParseJoin(s string) (Join, error) {
	rest, ok := strings.CutPrefix(strings.TrimSpace(s), JoinPrefix)
	if !ok {
		return Join{}, fmt.Errorf("join string: want one that starts with %q", JoinPrefix)
	}
	if len(rest) > maxJoin {
		return Join{}, errors.New("join string: too long, copy it again alone")
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(rest)
	if err != nil {
		return Join{}, errors.New("join string: damaged, copy it again whole")
	}
	var j Join
	if err := decMode.Unmarshal(b, &j); err != nil {
		return Join{}, errors.New("join string: damaged, copy it again whole")
	}
	u, err := url.Parse(j.URL)
	switch {
	case err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return Join{}, errors.New("join string: its manager URL is not of the form https://host[:port]")
	case len(j.CA) != sha256.Size:
		return Join{}, errors.New("join string: its CA fingerprint is not a SHA-256")
	case j.Token == "" || len(j.Token) > 256:
		return Join{}, errors.New("join string: it holds no token")
	case !tidy(&j.Expires):
		return Join{}, errors.New("join string: its expiry is not a date")
	}
	return j, nil
}

// CAFingerprint returns the SHA-256 of a certificate's DER form.
func CAFingerprint(c *x509.Certificate) []byte {
	sum := sha256.Sum256(c.Raw)
	return sum[:]
}

// AnchorID names a CA in few bytes: the first AnchorSize of its CAFingerprint.
func AnchorID(c *x509.Certificate) []byte { return CAFingerprint(c)[:AnchorSize] }

// EnrollPath is where a device posts an [EnrollRequest].
const EnrollPath = "/api/v1/enroll"

// EnrollRequest asks for a certificate. It is JSON over HTTPS; the server
// certificate must chain to the CA of the join string. The same device, key
// and token may ask again and get another certificate without taking another
// use of the token, so that a lost answer does no harm.
type EnrollRequest struct {
	Token string `json:"token" minLength:"1" maxLength:"256" example:"019e1b7a-5a40-7c35-9d3c-2f0a1b2c3d4e.kq3v…" doc:"The join token, <id>.<secret>."`
	// Device is the permanent id that the device made: a random UUID.
	Device string `json:"device" minLength:"36" maxLength:"36" example:"6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f" doc:"The permanent id that the device made: a random UUID (version 4), in lower case."`
	// Name is the host's name, for people; empty when it is not known yet.
	Name  string `json:"name" maxLength:"253" example:"esx-fra-07" doc:"What the device calls itself, usually the host's name; empty when it is not known yet."`
	Agent string `json:"agent" maxLength:"253" example:"1.4.0" doc:"Version of the agent."`
	// CSR is a PEM certificate request: P-256, common name = Device, signed by
	// the device's key.
	CSR string `json:"csr" maxLength:"8192" example:"-----BEGIN CERTIFICATE REQUEST-----…" doc:"PEM certificate request: ECDSA P-256, common name = device, signed by the device's key. Anything else it asks for is ignored."`
}

// RenewPath is where a device posts a [RenewRequest].
const RenewPath = "/api/v1/renew"

// RenewRequest asks for another certificate in place of one that is not good any
// more: it ended while the device was away, or its CA was replaced. It is JSON
// over HTTPS, answered by an [EnrollResponse]. The device's key, by which the CSR
// is signed, is all the proof; a repeat yields certificates for that key only.
type RenewRequest struct {
	Device string `json:"device" minLength:"36" maxLength:"36" example:"6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f" doc:"The device's id."`
	CSR    string `json:"csr" maxLength:"8192" example:"-----BEGIN CERTIFICATE REQUEST-----…" doc:"PEM certificate request: ECDSA P-256, common name = device, signed by the key that the device registered with. Anything else it asks for is ignored."`
}

// EnrollResponse holds the certificate and where to use it.
type EnrollResponse struct {
	Device string `json:"device" example:"6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f" doc:"The device's id."`
	// Certificate and CA are PEM.
	Certificate string `json:"certificate" example:"-----BEGIN CERTIFICATE-----…" doc:"The device's certificate, PEM. It is for client authentication only."`
	CA          string `json:"ca" example:"-----BEGIN CERTIFICATE-----…" doc:"The certificate authorities that the device door's certificate chains to, PEM: one, or two while one takes over from the other."`
	// MQTT is the host:port of the device door.
	MQTT string `json:"mqtt" example:"manager.example:8883" doc:"Where the device door is: host:port, MQTT 3.1.1 over mutual TLS."`
	// Approved says whether the device may be managed at once.
	Approved bool      `json:"approved" example:"true" doc:"Whether the device may be managed at once; otherwise it connects and waits."`
	Time     time.Time `json:"time" example:"2026-11-23T09:30:00Z" doc:"The manager's clock."`
}
