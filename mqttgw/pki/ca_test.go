package pki_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"pallas/mqttgw/pki"
)

const device = "6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f"

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func newCA(t testing.TB) *pki.CA {
	t.Helper()
	ca, err := pki.Create(t.TempDir(), now, "Test CA")
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestCreateThenLoad(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made", "here")
	made, err := pki.Create(dir, now, "Test CA")
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := pki.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !loaded.Certificate().Equal(made.Certificate()) || !bytes.Equal(loaded.Fingerprint(), made.Fingerprint()) {
		t.Error("loaded another CA than was made")
	}
	sum := sha256.Sum256(made.Certificate().Raw)
	if !bytes.Equal(made.Fingerprint(), sum[:]) {
		t.Error("fingerprint is not the SHA-256 of the DER")
	}
	// The loaded one can sign what the made one verifies.
	_, cert, err := loaded.IssueDevice(newCSR(t, newKey(t), nil), device, now, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: made.Pool(), CurrentTime: now, KeyUsages: clientAuth}); err != nil {
		t.Error(err)
	}

	c := made.Certificate()
	if !c.IsCA || c.MaxPathLen != 1 || c.Subject.CommonName != "Test CA" || c.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign {
		t.Errorf("CA certificate: IsCA %v, path length %d, usage %b, subject %s", c.IsCA, c.MaxPathLen, c.KeyUsage, c.Subject)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if len(names) != 2 {
		t.Errorf("files %v, want ca.crt and ca.key alone", names)
	}
	for name, want := range map[string]fs.FileMode{pki.KeyFile: 0o600, pki.CertFile: 0o644} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %04o, want %04o", name, info.Mode().Perm(), want)
		}
	}
}

func TestCreateNeverOverwrites(t *testing.T) {
	for _, present := range []string{pki.CertFile, pki.KeyFile} {
		t.Run(present, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, present)
			if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := pki.Create(dir, now, "Test CA")
			if !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), present) {
				t.Errorf("error %v, want fs.ErrExist for %s", err, present)
			}
			b, err := os.ReadFile(path)
			if err != nil || string(b) != "precious" {
				t.Errorf("file now holds %q (%v)", b, err)
			}
			if entries, _ := os.ReadDir(dir); len(entries) != 1 {
				t.Errorf("%d files after a refused Create, want 1", len(entries))
			}
		})
	}
	for _, name := range []string{"", strings.Repeat("x", 65)} {
		if _, err := pki.Create(t.TempDir(), now, name); err == nil {
			t.Errorf("name of %d bytes accepted", len(name))
		}
	}
}

// Two programs that start at once in one directory end with one CA.
func TestCreateConcurrently(t *testing.T) {
	dir := t.TempDir()
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		works []*pki.CA
	)
	for range 8 {
		wg.Go(func() {
			ca, err := pki.Create(dir, now, "Test CA")
			if err == nil {
				mu.Lock()
				works = append(works, ca)
				mu.Unlock()
			} else if !errors.Is(err, fs.ErrExist) {
				t.Errorf("loser: %v", err)
			}
		})
	}
	wg.Wait()
	if len(works) != 1 {
		t.Fatalf("%d of 8 made a CA, want 1", len(works))
	}
	loaded, err := pki.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !loaded.Certificate().Equal(works[0].Certificate()) {
		t.Error("the files are not the winner's")
	}
}

func TestLoadRefuses(t *testing.T) {
	other := t.TempDir()
	if _, err := pki.Create(other, now, "Other CA"); err != nil {
		t.Fatal(err)
	}
	leaf, _, err := newCA(t).IssueDevice(newCSR(t, newKey(t), nil), device, now, 0)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384DER, err := x509.MarshalPKCS8PrivateKey(p384)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, b []byte) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, tc := range []struct {
		name  string
		spoil func(t *testing.T, dir string)
		want  error
		says  string
	}{
		{"no certificate", func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, pki.CertFile)) }, fs.ErrNotExist, pki.CertFile},
		{"no key", func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, pki.KeyFile)) }, fs.ErrNotExist, pki.KeyFile},
		{"empty certificate", write(pki.CertFile, nil), pki.ErrDamaged, pki.CertFile},
		{"empty key", write(pki.KeyFile, nil), pki.ErrDamaged, pki.KeyFile},
		{"certificate not PEM", write(pki.CertFile, []byte("hello")), pki.ErrDamaged, pki.CertFile},
		{"certificate not DER", write(pki.CertFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte{1, 2}})), pki.ErrDamaged, pki.CertFile},
		{"key not DER", write(pki.KeyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1, 2}})), pki.ErrDamaged, pki.KeyFile},
		{"key of another curve", write(pki.KeyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: p384DER})), pki.ErrDamaged, pki.KeyFile},
		{"two blocks", write(pki.CertFile, append(bytes.Clone(leaf), leaf...)), pki.ErrDamaged, pki.CertFile},
		{"a leaf in place of the CA", write(pki.CertFile, leaf), pki.ErrDamaged, pki.CertFile},
		{"key in place of certificate", func(t *testing.T, dir string) {
			b, err := os.ReadFile(filepath.Join(dir, pki.KeyFile))
			if err != nil {
				t.Fatal(err)
			}
			write(pki.CertFile, b)(t, dir)
		}, pki.ErrDamaged, pki.CertFile},
		{"key of another CA", func(t *testing.T, dir string) {
			b, err := os.ReadFile(filepath.Join(other, pki.KeyFile))
			if err != nil {
				t.Fatal(err)
			}
			write(pki.KeyFile, b)(t, dir)
		}, pki.ErrMismatch, "do not belong together"},
		{"readable key", func(t *testing.T, dir string) {
			if err := os.Chmod(filepath.Join(dir, pki.KeyFile), 0o644); err != nil {
				t.Fatal(err)
			}
		}, pki.ErrExposed, "chmod 600"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			if _, err := pki.Create(dir, now, "Test CA"); err != nil {
				t.Fatal(err)
			}
			tc.spoil(t, dir)
			ca, err := pki.Load(dir)
			if ca != nil || !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("error %v, want %v saying %q", err, tc.want, tc.says)
			}
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("error is more than one line: %q", err)
			}
		})
	}
}

var (
	clientAuth = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	serverAuth = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
)

func TestIssueDevice(t *testing.T) {
	ca, key := newCA(t), newKey(t)
	certPEM, cert, err := ca.IssueDevice(newCSR(t, key, nil), device, now, 0)
	if err != nil {
		t.Fatal(err)
	}
	p, rest := pem.Decode(certPEM)
	if p == nil || len(rest) != 0 || !bytes.Equal(p.Bytes, cert.Raw) {
		t.Error("the PEM is not the certificate")
	}
	if cert.Subject.String() != "CN="+device {
		t.Errorf("subject %s", cert.Subject)
	}
	if want := now.Add(pki.DeviceLife); !cert.NotAfter.Equal(want) {
		t.Errorf("ends %s, want %s", cert.NotAfter, want)
	}
	if back := now.Sub(cert.NotBefore); back < time.Minute || back > time.Hour {
		t.Errorf("begins %s before now", back)
	}
	if n := cert.SerialNumber.BitLen(); n > 128 || n < 64 { // < 64 has a chance of 2^-64
		t.Errorf("serial of %d bits", n)
	}
	if pki.KeyHash(cert.PublicKey) != pki.KeyHash(&key.PublicKey) || len(pki.KeyHash(cert.PublicKey)) != 64 {
		t.Error("key hash of the certificate is not that of the key")
	}
	if pki.KeyHash("no key") != "" {
		t.Error("key hash of something that is no key")
	}
	if got := pki.SerialHex(cert); got != strings.ToLower(got) || got != cert.SerialNumber.Text(16) {
		t.Errorf("serial %q", got)
	}
	verify := func(usage []x509.ExtKeyUsage, at time.Time) error {
		_, err := cert.Verify(x509.VerifyOptions{Roots: ca.Pool(), CurrentTime: at, KeyUsages: usage})
		return err
	}
	if err := verify(clientAuth, now); err != nil {
		t.Error(err)
	}
	if verify(serverAuth, now) == nil {
		t.Error("a device certificate serves")
	}
	if verify(clientAuth, now.Add(pki.DeviceLife+time.Second)) == nil {
		t.Error("valid beyond its life")
	}
	// A device is no CA: what it signs is worth nothing.
	forged := signWith(t, cert, key)
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	if _, err := forged.Verify(x509.VerifyOptions{Roots: ca.Pool(), Intermediates: pool, CurrentTime: now, KeyUsages: clientAuth}); err == nil {
		t.Error("a certificate signed by a device verifies")
	}
	_, again, err := ca.IssueDevice(newCSR(t, key, nil), device, now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if again.SerialNumber.Cmp(cert.SerialNumber) == 0 {
		t.Error("the same serial twice")
	}
	if !again.NotAfter.Equal(now.Add(time.Hour)) {
		t.Errorf("life of an hour ends %s", again.NotAfter)
	}
	if _, _, err := ca.IssueDevice(newCSR(t, key, nil), device, now, -time.Hour); err == nil {
		t.Error("a negative life accepted")
	}
}

func TestIssueNearTheEndOfTheCA(t *testing.T) {
	ca := newCA(t)
	end := ca.Certificate().NotAfter
	_, cert, err := ca.IssueDevice(newCSR(t, newKey(t), nil), device, end.Add(-time.Hour), 0)
	if err != nil {
		t.Fatal(err)
	}
	if !cert.NotAfter.Equal(end) {
		t.Errorf("ends %s, want with the CA at %s", cert.NotAfter, end)
	}
	if _, _, err := ca.IssueDevice(newCSR(t, newKey(t), nil), device, end, 0); err == nil {
		t.Error("an expired CA signs")
	}
	if _, err := ca.IssueServer([]string{"a.example"}, end, 0); err == nil {
		t.Error("an expired CA signs for a server")
	}
}

func TestIssueServer(t *testing.T) {
	ca := newCA(t)
	cert, err := ca.IssueServer([]string{"manager.example", "127.0.0.1", "::1"}, now, 0)
	if err != nil {
		t.Fatal(err)
	}
	if len(cert.Certificate) != 2 || !bytes.Equal(cert.Certificate[1], ca.Certificate().Raw) {
		t.Error("the chain does not end with the CA")
	}
	for _, host := range []string{"manager.example", "127.0.0.1", "::1"} {
		if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: ca.Pool(), DNSName: host, CurrentTime: now, KeyUsages: serverAuth}); err != nil {
			t.Errorf("%s: %v", host, err)
		}
		// The floor of a clock without a battery.
		if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: ca.Pool(), DNSName: host, CurrentTime: now.AddDate(0, -11, 0)}); err != nil {
			t.Errorf("%s, clock 11 months behind: %v", host, err)
		}
	}
	if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: ca.Pool(), DNSName: "other.example", CurrentTime: now}); err == nil {
		t.Error("valid for a host that was not asked for")
	}
	if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: ca.Pool(), CurrentTime: now, KeyUsages: clientAuth}); err == nil {
		t.Error("a server certificate authenticates a client")
	}
	if life := cert.Leaf.NotAfter.Sub(cert.Leaf.NotBefore); life > 398*24*time.Hour {
		t.Errorf("a total life of %s, browsers accept 398 days", life)
	}
	for _, hosts := range [][]string{nil, {""}, {"host:443"}, {"https://host"}, {"a b"}, {"[::1]"}} {
		if _, err := ca.IssueServer(hosts, now, 0); err == nil {
			t.Errorf("hosts %q accepted", hosts)
		}
	}
}

func TestServerSourceRenews(t *testing.T) {
	ca := newCA(t)
	var mu sync.Mutex
	at := now
	clock := func() time.Time { mu.Lock(); defer mu.Unlock(); return at }
	set := func(x time.Time) { mu.Lock(); at = x; mu.Unlock() }
	s, err := pki.NewServerSource(pki.ServerConfig{CA: ca, Hosts: []string{"a.example"}, Life: 30 * time.Hour, Now: clock})
	if err != nil {
		t.Fatal(err)
	}
	get := func() *tls.Certificate {
		t.Helper()
		c, err := s.GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	first := get()
	set(now.Add(20*time.Hour - time.Second))
	if get() != first {
		t.Error("renewed before two thirds of its life")
	}
	set(now.Add(20 * time.Hour))
	var wg sync.WaitGroup
	got := make([]*tls.Certificate, 8)
	for i := range got {
		wg.Go(func() { got[i] = get() })
	}
	wg.Wait()
	for _, c := range got {
		if c == first || c != got[0] {
			t.Fatal("concurrent handshakes did not all get the one new certificate")
		}
	}
	if !got[0].Leaf.NotAfter.Equal(now.Add(50 * time.Hour)) {
		t.Errorf("the new one ends %s", got[0].Leaf.NotAfter)
	}
	// Beyond the CA's own end there is nothing to renew with: an error, not
	// an expired certificate.
	set(ca.Certificate().NotAfter)
	if _, err := s.GetCertificate(nil); err == nil {
		t.Error("an expired CA still serves")
	}
	for _, c := range []pki.ServerConfig{{}, {CA: ca, Hosts: []string{"a"}}, {CA: ca, Now: clock}} {
		if _, err := pki.NewServerSource(c); err == nil {
			t.Errorf("config %+v accepted", c)
		}
	}
}

func signWith(t *testing.T, parent *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	sub := newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: parent.SerialNumber, Subject: pkix.Name{CommonName: "another"},
		NotBefore: now, NotAfter: now.Add(time.Hour), ExtKeyUsage: clientAuth,
	}, parent, &sub.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
