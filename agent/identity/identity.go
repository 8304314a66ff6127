package identity

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"

	"pallas/agent/hypervisor"
	"pallas/mqttgw/wire"
)

const (
	fileID        = "device.id"
	fileKey       = "device.key"
	fileEnrolment = "enrolment.json"
)

// Identity is what a data folder says.
type Identity struct {
	// Device is the permanent id, "" before the first start.
	Device string
	// Key is the device's key, nil before the first start.
	Key *ecdsa.PrivateKey
	// Enrolment is nil until a manager took the device in.
	Enrolment *Enrolment
}

// Enrolment is what the manager answered.
type Enrolment struct {
	// Manager is the URL that was asked.
	Manager string `json:"manager"`
	// JoinToken is the public id of the join token that it was asked with.
	JoinToken string `json:"joinToken,omitempty"`
	// Certificate and CA are PEM.
	Certificate string `json:"certificate"`
	CA          string `json:"ca"`
	// MQTT is the host:port of the device door.
	MQTT string    `json:"mqtt"`
	Time time.Time `json:"time"`

	leaf *x509.Certificate
}

// IsOf says whether the enrolment was made with the join string, or with
// another one of the same token.
func (e *Enrolment) IsOf(j wire.Join) bool { return e.JoinToken == tokenID(j) }

// tokenID is the public half of the join string's token.
func tokenID(j wire.Join) string {
	id, _, ok := strings.Cut(j.Token, ".")
	if !ok {
		return "" // no form that we know: it may be secret as a whole
	}
	return id
}

// HTTPS is the host:port that was asked, "" when the URL is none.
func (e *Enrolment) HTTPS() string {
	u, err := url.Parse(e.Manager)
	if err != nil || u.Hostname() == "" {
		return ""
	}
	return net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "443"))
}

// Expires is when the certificate ends, by the manager's clock.
func (e *Enrolment) Expires() time.Time { return e.leaf.NotAfter.UTC() }

// Load reads a data folder. Parts that are not there yet are zero. An error
// names the file that is damaged.
func Load(dir string) (Identity, error) {
	var id Identity
	b, err := readFile(dir, fileID)
	if err != nil {
		return Identity{}, err
	}
	if b != nil {
		u, err := uuid.Parse(strings.TrimSpace(string(b)))
		if err != nil {
			return Identity{}, fmt.Errorf("%s holds no UUID: write the device's id into it", filepath.Join(dir, fileID))
		}
		id.Device = u.String()
	}
	if b, err = readFile(dir, fileKey); err != nil {
		return Identity{}, err
	}
	if b != nil {
		if id.Key, err = parseKey(b); err != nil {
			return Identity{}, fmt.Errorf("%s holds no P-256 key: remove it and enrol the device again", filepath.Join(dir, fileKey))
		}
	}
	if b, err = readFile(dir, fileEnrolment); err != nil || b == nil || id.Key == nil {
		return id, err
	}
	var e Enrolment
	if err := json.Unmarshal(b, &e); err != nil {
		return Identity{}, fmt.Errorf("%s is damaged: remove it and enrol the device again", filepath.Join(dir, fileEnrolment))
	}
	if err := e.check(id.Device, id.Key); err != nil {
		return Identity{}, fmt.Errorf("%s: %w: remove it and enrol the device again", filepath.Join(dir, fileEnrolment), err)
	}
	id.Enrolment = &e
	return id, nil
}

// Ensure loads a data folder and makes what every device has of its own: the
// folder, the id and the key. find is asked for an id that the device had
// before; it may be nil or return "".
func Ensure(ctx context.Context, dir string, find func(context.Context) string) (Identity, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return Identity{}, fmt.Errorf("make data folder: %w", err)
	}
	id, err := Load(dir)
	if err != nil {
		return Identity{}, err
	}
	if id.Device == "" {
		if find != nil {
			id.Device = find(ctx)
		}
		if err := ctx.Err(); err != nil {
			return Identity{}, err
		}
		if id.Device == "" {
			id.Device = uuid.New().String()
		}
		if err := writeFile(dir, fileID, []byte(id.Device+"\n")); err != nil {
			return Identity{}, err
		}
	}
	if id.Key == nil {
		if id.Key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return Identity{}, fmt.Errorf("make key: %w", err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(id.Key)
		if err != nil {
			return Identity{}, fmt.Errorf("make key: %w", err)
		}
		if err := writeFile(dir, fileKey, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})); err != nil {
			return Identity{}, err
		}
		id.Enrolment = nil // of another key
	}
	return id, nil
}

// Find asks the host for the id that a former agent kept there, "" for none.
func Find(ctx context.Context, driver hypervisor.Driver) (string, error) {
	kept, err := driver.LoadID(ctx)
	if err != nil {
		return "", fmt.Errorf("look for a former id on the host: %w", err)
	}
	if u, err := uuid.Parse(strings.TrimSpace(kept)); err == nil {
		return u.String(), nil
	}
	return "", nil // none, not ours, or damaged
}

// Keep puts the id on the host. What is there already gives way: the id in the
// data folder is the device's.
func Keep(ctx context.Context, driver hypervisor.Driver, device string, log *slog.Logger) error {
	kept, err := driver.LoadID(ctx)
	if err != nil {
		return fmt.Errorf("look for the id on the host: %w", err)
	}
	if kept == device {
		return nil
	}
	if kept != "" {
		log.Warn("host holds another device id; replacing it with this agent's", "host_has", kept, "device", device)
	}
	if err := driver.SaveID(ctx, device); err != nil {
		return fmt.Errorf("keep the id on the host: %w", err)
	}
	return nil
}

// Certificate returns what the device shows to the manager, and the CAs that
// it accepts the manager by.
func (id Identity) Certificate() (tls.Certificate, *x509.CertPool, error) {
	if id.Enrolment == nil {
		return tls.Certificate{}, nil, errors.New("the device is not enrolled")
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(id.Enrolment.CA)) {
		return tls.Certificate{}, nil, errors.New("the enrolment holds no CA certificate")
	}
	cert := tls.Certificate{PrivateKey: id.Key, Leaf: id.Enrolment.leaf}
	rest := []byte(id.Enrolment.Certificate)
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return cert, pool, nil
		}
		cert.Certificate = append(cert.Certificate, block.Bytes)
	}
}

// check parses the certificate and compares it with what it must be for.
func (e *Enrolment) check(device string, key *ecdsa.PrivateKey) error {
	block, _ := pem.Decode([]byte(e.Certificate))
	if block == nil || block.Type != "CERTIFICATE" {
		return errors.New("no certificate")
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	pub, ok := leaf.PublicKey.(*ecdsa.PublicKey)
	if !ok || !pub.Equal(&key.PublicKey) {
		return errors.New("the certificate is not for this device's key")
	}
	if leaf.Subject.CommonName != device {
		return fmt.Errorf("the certificate is for %q, not for this device", leaf.Subject.CommonName)
	}
	if _, err := parseCAs(e.CA); err != nil {
		return err
	}
	if e.MQTT == "" {
		return errors.New("no MQTT address")
	}
	e.leaf = leaf
	return nil
}

// checkPin demands that one of the CAs is the one of the join string.
func checkPin(text string, pin []byte) error {
	rest := []byte(text)
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return errors.New("the CA in the answer is not the one of the join string")
		}
		if ca, err := x509.ParseCertificate(block.Bytes); err == nil && string(wire.CAFingerprint(ca)) == string(pin) {
			return nil
		}
	}
}

func parseKey(b []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, errors.New("no PEM")
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("not P-256")
	}
	return key, nil
}

// readFile returns nil for a file that is not there.
func readFile(dir, name string) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read identity: %w", err)
	}
	return b, nil
}

// writeFile replaces a file whole or not at all, also through a power cut.
func writeFile(dir, name string, content []byte) (err error) {
	f, err := os.CreateTemp(dir, name+".new-*") // mode 0600
	if err != nil {
		return fmt.Errorf("write identity: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("write identity: %w", err), os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), filepath.Join(dir, name)); err != nil {
		return err
	}
	d, err2 := os.Open(dir)
	if err2 != nil {
		return fmt.Errorf("write identity: %w", err2)
	}
	return errors.Join(d.Sync(), d.Close())
}
