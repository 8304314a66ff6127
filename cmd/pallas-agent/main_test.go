package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pallas/agent/hypervisor/esxi/vcsim"
	"pallas/agent/identity"
	"pallas/mqttgw/wire"
)

// call runs the program.
func call(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, &out, &errs)
	return code, out.String(), errs.String()
}

// ca is a manager's certificate authority.
type ca struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newCA(t *testing.T) *ca {
	c := &ca{}
	c.cert, c.key = c.issue(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, nil)
	return c
}

// issue makes a certificate, self-signed when there is no CA yet, for pub or
// for a new key.
func (c *ca) issue(t *testing.T, template *x509.Certificate, pub *ecdsa.PublicKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	if pub == nil {
		pub = &key.PublicKey
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore = time.Now().Add(-time.Hour)
	if template.NotAfter.IsZero() {
		template.NotAfter = time.Now().Add(90 * 24 * time.Hour)
	}
	parent, signer := c.cert, c.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, signer)
	must(t, err)
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	return cert, key
}

func (c *ca) server(t *testing.T) tls.Certificate {
	cert, key := c.issue(t, &x509.Certificate{
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, nil)
	return tls.Certificate{Certificate: [][]byte{cert.Raw, c.cert.Raw}, PrivateKey: key}
}

func (c *ca) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(c.cert)
	return p
}

func pemOf(c *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
}

// manager is the HTTPS side of a manager.
func manager(t *testing.T, c *ca) *httptest.Server {
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	s.TLS = &tls.Config{Certificates: []tls.Certificate{c.server(t)}, MinVersion: tls.VersionTLS12}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// door is a device door that trusts one CA and then waits, as MQTT does.
func door(t *testing.T, server, clients *ca) string {
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{server.server(t)}, ClientCAs: clients.pool(), ClientAuth: tls.RequireAndVerifyClientCert,
		MinVersion: tls.VersionTLS13, NextProtos: []string{"mqtt"},
	})
	must(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = conn.Read(make([]byte, 1)); _ = conn.Close() }()
		}
	}()
	return l.Addr().String()
}

func join(s *httptest.Server, c *ca, expires time.Time) string {
	return wire.Join{URL: s.URL, CA: wire.CAFingerprint(c.cert), Token: "id.secret-token", Expires: expires}.String()
}

// install writes a configuration for a host and returns its path.
func install(t *testing.T, h *vcsim.Host, join string) string {
	t.Helper()
	dir := t.TempDir()
	write(t, dir, "host-password", h.Password()+"\n")
	if join != "" {
		write(t, dir, "join", join+"\n")
	}
	return write(t, dir, "agent.yaml", "data_dir: "+dir+"/data\njoin_file: join\nhost:\n  url: "+h.Addr()+
		"\n  username: root\n  password_file: host-password\n  thumbprint: \""+h.Thumbprint()+"\"\n")
}

func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	must(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func startHost(t *testing.T) *vcsim.Host {
	t.Helper()
	h, err := vcsim.Start(vcsim.Config{Name: "esx-01.test", Count: 1})
	must(t, err)
	t.Cleanup(h.Close)
	return h
}

// want demands a line for each text, with this mark.
func want(t *testing.T, out, mark string, texts ...string) {
	t.Helper()
next:
	for _, text := range texts {
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, mark) && strings.Contains(line, text) {
				continue next
			}
		}
		t.Errorf("no line %q with %q in:\n%s", mark, text, out)
	}
}

func TestDoctorBeforeEnrolment(t *testing.T) {
	h, c := startHost(t), newCA(t)
	m := manager(t, c)
	config := install(t, h, join(m, c, time.Now().Add(time.Hour)))
	code, out, errs := call(t, "doctor", "--config", config)
	if code != 0 {
		t.Errorf("exit code %d, stderr %q", code, errs)
	}
	want(t, out, "ok", "data folder", "host reachable", "host certificate", "host login", "host rights", "host licence", "host clock",
		"join string", "manager https", "clock")
	want(t, out, "-", "device id", "manager mqtt", "certificate")
	want(t, out, "all 10 checks passed")
	if exists(filepath.Join(filepath.Dir(config), "data")) {
		t.Error("doctor made the data folder")
	}
	if strings.Contains(out+errs, "secret-token") || strings.Contains(out+errs, h.Password()) {
		t.Errorf("a secret is shown:\n%s%s", out, errs)
	}

	// Everything that can be wrong, at once.
	h.ChangePassword("another")
	config = install(t, h, join(m, newCA(t), time.Now().Add(-time.Hour)))
	h.ChangePassword("and another")
	code, out, _ = call(t, "doctor", "--config", config)
	if code != exitFailed {
		t.Errorf("exit code %d", code)
	}
	want(t, out, "FAIL", "host login", "join string        expired", "manager https")
	want(t, out, "3 of 7 checks failed")

	config = install(t, h, "")
	_, out, _ = call(t, "doctor", "--config", config)
	want(t, out, "FAIL", "join string        missing")
}

// enrolled makes a data folder as the agent would.
func enrolled(t *testing.T, config string, c *ca, url, mqtt string, expires time.Time) {
	t.Helper()
	dir := filepath.Join(filepath.Dir(config), "data")
	id, err := identity.Ensure(context.Background(), dir, nil)
	must(t, err)
	cert, _ := c.issue(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: id.Device}, NotAfter: expires, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, &id.Key.PublicKey)
	b, err := json.Marshal(identity.Enrolment{Manager: url, Certificate: pemOf(cert), CA: pemOf(c.cert), MQTT: mqtt, Time: time.Now()})
	must(t, err)
	write(t, dir, "enrolment.json", string(b))
}

func TestDoctorAfterEnrolment(t *testing.T) {
	h, c := startHost(t), newCA(t)
	m := manager(t, c)
	config := install(t, h, "")
	enrolled(t, config, c, m.URL, door(t, c, c), time.Now().Add(60*24*time.Hour+time.Minute))
	code, out, errs := call(t, "doctor", "--config", config)
	if code != 0 {
		t.Errorf("exit code %d, stderr %q", code, errs)
	}
	want(t, out, "ok", "device id", "enrolment          enrolled with "+m.URL, "manager https", "clock", "manager mqtt", "certificate        60 days left")
	// One of the two ports is enough, and this manager's HTTPS port takes no MQTT.
	want(t, out, "-", "manager mqtt on the https port ")

	// Both ports are good, or the shared one alone.
	shared := door(t, c, c)
	for mqtt, mark := range map[string]string{door(t, c, c): "ok", "127.0.0.1:1": "-"} {
		enrolled(t, config, c, "https://"+shared, mqtt, time.Now().Add(time.Hour))
		_, out, _ = call(t, "doctor", "--config", config)
		want(t, out, mark, "manager mqtt       "+mqtt)
		want(t, out, "ok", "manager mqtt on the https port "+shared)
	}

	// A door that trusts another CA, and a certificate that has ended.
	enrolled(t, config, c, m.URL, door(t, c, newCA(t)), time.Now().Add(-time.Minute))
	code, out, _ = call(t, "doctor", "--config", config)
	if code != exitFailed {
		t.Errorf("exit code %d", code)
	}
	want(t, out, "FAIL", "refuses this device's certificate", "certificate        expired")

	// Nobody there.
	enrolled(t, config, c, "https://127.0.0.1:1", "127.0.0.1:1", time.Now().Add(time.Hour))
	_, out, _ = call(t, "doctor", "--config", config)
	want(t, out, "FAIL", "manager https", "manager mqtt       127.0.0.1:1: dial", "manager mqtt on the https port 127.0.0.1:1: dial")

	write(t, filepath.Join(filepath.Dir(config), "data"), "enrolment.json", "{")
	_, out, _ = call(t, "doctor", "--config", config)
	want(t, out, "FAIL", "device id")
}

func TestConfigErrors(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "pw", "geheim\n")
	write(t, dir, "empty", "\n")
	must(t, os.Chmod(write(t, dir, "open", "geheim\n"), 0o644))
	good := "data_dir: d\nhost:\n  url: esx\n  username: root\n  insecure: true\n  password_file: pw\n"
	for name, tt := range map[string]struct{ yaml, want string }{
		"unknown key":         {good + "naem: x\n", `:7: unknown field "naem"`},
		"unknown nested key":  {strings.Replace(good, "username", "usrename", 1), `:4: unknown field "usrename"`},
		"wrong type":          {good + "log: 3\n", ":7: "},
		"log level":           {good + "log:\n  level: loud\n", "level"},
		"log format":          {good + "log:\n  format: xml\n", `log.format: "xml"`},
		"no data_dir":         {strings.Replace(good, "data_dir: d", "link: normal", 1), "data_dir: missing"},
		"link":                {good + "link: broad\n", `link: "broad" is none of normal, narrow`},
		"no url":              {strings.Replace(good, "  url: esx\n", "", 1), "host.url: missing"},
		"no user":             {strings.Replace(good, "  username: root\n", "", 1), "host.username: required"},
		"no trust":            {strings.Replace(good, "insecure: true", "insecure: false", 1), "host.thumbprint, ca_file, insecure: set exactly one"},
		"no password":         {strings.Replace(good, "  password_file: pw\n", "", 1), "host.password_file: missing"},
		"two passwords":       {good + "  password: geheim\n", "host.password, host.password_file: set one"},
		"password file gone":  {strings.Replace(good, "pw", "nothing", 1), "host.password_file: "},
		"password file open":  {strings.Replace(good, "password_file: pw", "password_file: open", 1), "chmod 600"},
		"password file empty": {strings.Replace(good, "pw", "empty", 1), "host.password_file: empty is empty"},
		"two joins":           {good + "join: a\njoin_file: b\n", "join, join_file: set one"},
		"join":                {good + "join: geheim\n", `join: join string: want one that starts with "pallas-join-1."`},
	} {
		t.Run(name, func(t *testing.T) {
			config := write(t, dir, "agent.yaml", tt.yaml)
			for _, command := range []string{"run", "doctor"} {
				code, out, errs := call(t, command, "--config", config)
				if code != exitUsage || !strings.Contains(errs, tt.want) || !strings.HasPrefix(errs, "pallas-agent: "+config) ||
					strings.Count(errs, "\n") != 1 || strings.Contains(errs, "geheim") || out != "" {
					t.Errorf("%s: exit code %d, stdout %q, stderr %q, want one line with %q", command, code, out, errs, tt.want)
				}
			}
		})
	}
	config := write(t, dir, "agent.yaml", strings.Replace(good, "password_file: pw", "password: geheim", 1))
	must(t, os.Chmod(config, 0o640))
	if code, _, errs := call(t, "run", "--config", config); code != exitUsage || !strings.Contains(errs, "mode 0640") {
		t.Errorf("password in an open file: exit code %d, %q", code, errs)
	}
	if code, _, errs := call(t, "run", "--config", dir+"/none.yaml"); code != exitUsage || !strings.Contains(errs, "no such file") {
		t.Errorf("no file: exit code %d, %q", code, errs)
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{{"run"}, {"dance"}, {"run", "--password", "x"}, {"doctor", "extra", "--config", "x"}} {
		code, _, errs := call(t, args...)
		if code != exitUsage || strings.Count(errs, "\n") != 1 {
			t.Errorf("%v: exit code %d, %q", args, code, errs)
		}
	}
	if code, out, _ := call(t, "version"); code != 0 || strings.TrimSpace(out) == "" {
		t.Errorf("version: %d %q", code, out)
	}
}

func TestInit(t *testing.T) {
	config := filepath.Join(t.TempDir(), "agent.yaml")
	if code, _, errs := call(t, "init", "--config", config); code != 0 {
		t.Fatalf("exit code %d, %s", code, errs)
	}
	info, err := os.Stat(config)
	must(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	// It names every key, and lacks only what nobody else can know.
	if code, _, errs := call(t, "doctor", "--config", config); code != exitUsage || !strings.Contains(errs, "host.password_file: ") {
		t.Errorf("doctor of the fresh file: exit code %d, %q", code, errs)
	}
	if code, _, errs := call(t, "init", "--config", config); code != exitUsage || !strings.Contains(errs, "is there already") {
		t.Errorf("second init: exit code %d, %q", code, errs)
	}
}

// TestSystemdCredential: systemd guards credentials, whatever their mode.
func TestSystemdCredential(t *testing.T) {
	h, c := startHost(t), newCA(t)
	config := install(t, h, join(manager(t, c), c, time.Now().Add(time.Hour)))
	must(t, os.Remove(filepath.Join(filepath.Dir(config), "host-password")))
	creds := t.TempDir()
	must(t, os.Chmod(write(t, creds, "host-password", h.Password()), 0o444))
	t.Setenv("CREDENTIALS_DIRECTORY", creds)
	if code, out, errs := call(t, "doctor", "--config", config); code != 0 {
		t.Errorf("exit code %d\n%s%s", code, out, errs)
	}
}

func TestRunIsRefused(t *testing.T) {
	h, c := startHost(t), newCA(t)
	m := manager(t, c) // knows no tokens: 404
	code, _, errs := call(t, "run", "--config", install(t, h, join(m, c, time.Now().Add(time.Hour))))
	if code != exitRefused || !strings.Contains(errs, "refused to enrol") || strings.Contains(errs, "secret-token") {
		t.Errorf("exit code %d, %q", code, errs)
	}
	code, _, errs = call(t, "run", "--config", install(t, h, join(m, c, time.Now().Add(-time.Hour))))
	if code != exitRefused || !strings.Contains(errs, "expired") {
		t.Errorf("expired join string: exit code %d, %q", code, errs)
	}
}
