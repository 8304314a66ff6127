package wire

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// JoinPrefix starts every join string, so that people and secret scanners
// recognise one.
const JoinPrefix = "pallas-join-1."

// Join is what a device needs to enrol: where, whom to trust, and a token.
type Join struct {
	// URL is the manager's, https only, without a path.
	URL string `cbor:"1,keyasint"`
	// CA is the SHA-256 of the CA certificate (DER) that the manager's server
	// certificate must chain to.
	CA []byte `cbor:"2,keyasint"`
	// Token is the join token, "<id>.<secret>". It is a secret.
	Token string `cbor:"3,keyasint"`
	// Expires is when the token ends.
	Expires time.Time `cbor:"4,keyasint"`
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

// ParseJoin reads a join string. Its errors say what is wrong without showing
// the token.
func ParseJoin(s string) (Join, error) {
	rest, ok := strings.CutPrefix(strings.TrimSpace(s), JoinPrefix)
	if !ok {
		return Join{}, fmt.Errorf("join string: want one that starts with %q", JoinPrefix)
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
	case err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return Join{}, errors.New("join string: its manager URL is not of the form https://host[:port]")
	case len(j.CA) != sha256.Size:
		return Join{}, errors.New("join string: its CA fingerprint is not a SHA-256")
	case j.Token == "" || len(j.Token) > 256:
		return Join{}, errors.New("join string: it holds no token")
	}
	j.Expires = j.Expires.UTC()
	return j, nil
}

// CAFingerprint returns the SHA-256 of a certificate's DER form.
func CAFingerprint(c *x509.Certificate) []byte {
	sum := sha256.Sum256(c.Raw)
	return sum[:]
}

// EnrollPath is where a device posts an [EnrollRequest].
const EnrollPath = "/api/v1/enroll"

// EnrollRequest asks for a certificate. It is JSON over HTTPS; the server
// certificate must chain to the CA of the join string. The same device, key
// and token may ask again and get another certificate without taking another
// use of the token, so that a lost answer does no harm.
type EnrollRequest struct {
	Token string `json:"token"`
	// Device is the permanent id that the device made: a random UUID.
	Device string `json:"device"`
	// Name is the host's name, for people.
	Name  string `json:"name"`
	Agent string `json:"agent"`
	// CSR is a PEM certificate request: P-256, common name = Device, signed by
	// the device's key.
	CSR string `json:"csr"`
}

// EnrollResponse holds the certificate and where to use it.
type EnrollResponse struct {
	Device string `json:"device"`
	// Certificate and CA are PEM.
	Certificate string `json:"certificate"`
	CA          string `json:"ca"`
	// MQTT is the host:port of the device door.
	MQTT string `json:"mqtt"`
	// Approved says whether the device may be managed at once.
	Approved bool      `json:"approved"`
	Time     time.Time `json:"time"`
}
