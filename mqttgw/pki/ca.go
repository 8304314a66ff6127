package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// CertFile and KeyFile are the names of the CA's two files in its directory.
const (
	CertFile = "ca.crt"
	KeyFile  = "ca.key"
)

// DeviceLife and ServerLife are how long certificates live when the caller
// does not say.
const (
	DeviceLife = 90 * 24 * time.Hour
	ServerLife = 30 * 24 * time.Hour
)

// A device whose clock has no battery starts at its time floor, which may be
// the day its agent was built. It must still find the CA and the server valid,
// so both begin in the past; the server's total life stays below the 398 days
// that browsers accept. A device certificate is judged by the manager's clock
// and needs only the slack between two managers.
const (
	caBackdate     = 5 * 365 * 24 * time.Hour
	caLife         = 20 * 365 * 24 * time.Hour
	serverBackdate = 365 * 24 * time.Hour
	deviceBackdate = 5 * time.Minute
)

const (
	certBlock = "CERTIFICATE"
	keyBlock  = "PRIVATE KEY"
	csrBlock  = "CERTIFICATE REQUEST"
)

// Errors of loading. A missing file is fs.ErrNotExist, an existing one that
// Create would overwrite fs.ErrExist.
var (
	ErrDamaged  = errors.New("damaged")
	ErrMismatch = errors.New("ca.crt and ca.key do not belong together")
	ErrExposed  = errors.New("can be read by others")
)

// CA is a certificate authority. Its methods are safe for concurrent use.
type CA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Create makes a new CA called name and writes it to dir, which it makes if
// needed. It never overwrites: if either file is there, the error is
// fs.ErrExist and nothing changes. The key's file has mode 0600.
func Create(dir string, now time.Time, name string) (*CA, error) {
	ca, err := create(dir, now, name)
	if err != nil {
		return nil, fmt.Errorf("create certificate authority in %s: %w", dir, err)
	}
	return ca, nil
}

func create(dir string, now time.Time, name string) (*CA, error) {
	return createAs(dir, CertFile, KeyFile, now, name)
}

// createAs is create with other names for the files.
func createAs(dir, certFile, keyFile string, now time.Time, name string) (*CA, error) {
	if name == "" || len(name) > 64 {
		return nil, fmt.Errorf("name %q: want 1 to 64 bytes", name)
	}
	for _, f := range []string{certFile, keyFile} {
		switch _, err := os.Lstat(filepath.Join(dir, f)); {
		case err == nil:
			return nil, fmt.Errorf("%s: %w", f, fs.ErrExist)
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now = now.UTC().Truncate(time.Second)
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             now.Add(-caBackdate),
		NotAfter:              now.Add(caLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		// One CA may stand below it: the one that it takes over from.
		MaxPathLen: 1,
		// The CA's own list bounds what its leaves can be used for, so that
		// whoever imports it into a browser or a system trusts it for TLS
		// only.
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	// The key first: a key without a certificate is of no use to anybody, and
	// whoever loses a race for it stops here.
	if err := writeNew(filepath.Join(dir, keyFile), encodePEM(keyBlock, pkcs8), 0o600); err != nil {
		return nil, err
	}
	if err := writeNew(filepath.Join(dir, certFile), encodePEM(certBlock, der), 0o644); err != nil {
		return nil, err
	}
	return &CA{cert: cert, key: key}, nil
}

// Load reads the CA of dir. The error says which file is wrong and why; it
// wraps fs.ErrNotExist, ErrDamaged, ErrMismatch or ErrExposed.
func Load(dir string) (*CA, error) {
	ca, err := load(dir)
	if err != nil {
		return nil, fmt.Errorf("load certificate authority from %s: %w", dir, err)
	}
	return ca, nil
}

func load(dir string) (*CA, error) { return loadAs(dir, CertFile, KeyFile) }

// loadAs is load with other names for the files.
func loadAs(dir, certFile, keyFile string) (*CA, error) {
	certDER, err := readPEM(filepath.Join(dir, certFile), certBlock)
	if err != nil {
		return nil, err
	}
	keyPath := filepath.Join(dir, keyFile)
	info, err := os.Stat(keyPath)
	if err != nil {
		return nil, err
	}
	if m := info.Mode().Perm(); m&0o077 != 0 {
		return nil, fmt.Errorf("%s has mode %04o, want 0600 (chmod 600 %s): %w", keyFile, m, keyPath, ErrExposed)
	}
	keyDER, err := readPEM(keyPath, keyBlock)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(certDER)
	if err != nil {
		return nil, fmt.Errorf("%s is %w: %w", certFile, ErrDamaged, err)
	}
	if !cert.IsCA || !cert.BasicConstraintsValid || cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		return nil, fmt.Errorf("%s is %w: not the certificate of a CA", certFile, ErrDamaged)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(keyDER)
	if err != nil {
		return nil, fmt.Errorf("%s is %w: %w", keyFile, ErrDamaged, err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("%s is %w: not an ECDSA P-256 key", keyFile, ErrDamaged)
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, ErrMismatch
	}
	return &CA{cert: cert, key: key}, nil
}

// Certificate returns the CA's certificate. Callers do not change it.
func (c *CA) Certificate() *x509.Certificate { return c.cert }

// CertificatePEM returns the CA's certificate in PEM.
func (c *CA) CertificatePEM() []byte { return encodePEM(certBlock, c.cert.Raw) }

// Pool returns a new pool that holds the CA alone.
func (c *CA) Pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(c.cert)
	return p
}

// Fingerprint returns the SHA-256 of the CA's certificate (DER), as a join
// string carries it.
func (c *CA) Fingerprint() []byte {
	sum := sha256.Sum256(c.cert.Raw)
	return sum[:]
}

// Issuer returns the [AnchorID] of the CA, which issued all certificates that it
// is asked about.
func (c *CA) Issuer(*x509.Certificate) string { return AnchorID(c.cert) }

// AnchorID names a CA in few bytes, for the device protocol and for people: the
// first 8 bytes of the SHA-256 of its certificate (DER), in lower-case hex.
func AnchorID(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:8])
}

// IssueDevice signs a certificate for the device after [VerifyCSR]. life 0
// means DeviceLife; the certificate never outlives the CA.
func (c *CA) IssueDevice(csr *x509.CertificateRequest, device string, now time.Time, life time.Duration) (certPEM []byte, cert *x509.Certificate, err error) {
	if err := VerifyCSR(csr, device); err != nil {
		return nil, nil, err
	}
	if life == 0 {
		life = DeviceLife
	}
	cert, err = c.sign(&x509.Certificate{
		Subject:     pkix.Name{CommonName: device},
		NotBefore:   now.Add(-deviceBackdate),
		NotAfter:    now.Add(life),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, csr.PublicKey, now)
	if err != nil {
		return nil, nil, fmt.Errorf("issue certificate for device %s: %w", device, err)
	}
	return encodePEM(certBlock, cert.Raw), cert, nil
}

// sign completes the template and signs it for the public key.
func (c *CA) sign(template *x509.Certificate, pub any, now time.Time) (*x509.Certificate, error) {
	if !now.Before(c.cert.NotAfter) {
		return nil, fmt.Errorf("the CA expired on %s", c.cert.NotAfter.Format(time.DateOnly))
	}
	if template.NotAfter.After(c.cert.NotAfter) {
		template.NotAfter = c.cert.NotAfter
	}
	if template.NotBefore.Before(c.cert.NotBefore) {
		template.NotBefore = c.cert.NotBefore
	}
	if !now.Before(template.NotAfter) {
		return nil, errors.New("a life of zero or less")
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	template.BasicConstraintsValid = true // and not a CA
	der, err := x509.CreateCertificate(rand.Reader, template, c.cert, pub, c.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// KeyHash returns the lower-case hex SHA-256 of a public key (SPKI, DER): the
// identity of a key whatever certificate it is in. It is empty for a type of
// key that X.509 does not have; an empty hash matches nothing.
func KeyHash(pub any) string {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// SerialHex returns a certificate's serial number in lower-case hex.
func SerialHex(cert *x509.Certificate) string { return cert.SerialNumber.Text(16) }

// newSerial returns a random positive number of 128 bits.
func newSerial() (*big.Int, error) {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return nil, err
	}
	return new(big.Int).SetBytes(b[:]), nil
}

func encodePEM(block string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: block, Bytes: der})
}

func readPEM(path, block string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	p, rest := pem.Decode(b)
	if p == nil || p.Type != block || strings.TrimSpace(string(rest)) != "" {
		return nil, fmt.Errorf("%s is %w: want one PEM block %q", filepath.Base(path), ErrDamaged, block)
	}
	return p.Bytes, nil
}

// writeNew writes a file that appears whole or not at all, and fails with
// fs.ErrExist if it is there: a hard link, unlike a rename, does not replace.
func writeNew(path string, b []byte, mode fs.FileMode) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// splitHosts sorts hosts into DNS names and addresses.
func splitHosts(hosts []string) (names []string, addrs []net.IP, err error) {
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			addrs = append(addrs, ip)
			continue
		}
		if h == "" || len(h) > 253 || strings.ContainsAny(h, " \t\r\n/:*@[]") {
			return nil, nil, fmt.Errorf("host %q: want a DNS name or an IP address without a port", h)
		}
		names = append(names, h)
	}
	return names, addrs, nil
}
