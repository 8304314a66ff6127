package server_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pallas/agent/hypervisor/esxi/vcsim"
	"pallas/internal/httpapi"
	"pallas/internal/server"
	"pallas/internal/servertest"
	"pallas/mqttgw/wire"
)

// stranger is a device that nobody knows.
const stranger = "6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f"

// secret is something that must be nowhere but in one file, if in any.
type secret struct {
	name string
	// forms are what it may look like: as itself, or as a log or a file would
	// write it.
	forms [][]byte
	file  string // where it has to be, "" for nowhere
}

func textSecret(name, text string) secret {
	if len(text) < 12 {
		panic(name + " is too short to be looked for")
	}
	return secret{name: name, forms: [][]byte{
		[]byte(text),
		[]byte(base64.StdEncoding.EncodeToString([]byte(text))[:len(text)]), // of any text that begins with it
	}}
}

// keySecret is a private key in a PEM file: as text, as DER, and its number
// alone.
func keySecret(t *testing.T, name, path string) secret {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		t.Fatalf("%s is not PEM", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	number, err := parsed.(*ecdsa.PrivateKey).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	body := bytes.SplitN(b, []byte("\n"), 4)
	return secret{name: name, file: path, forms: [][]byte{
		body[1], body[2], block.Bytes, number,
		[]byte(base64.StdEncoding.EncodeToString(number)[:40]),
	}}
}

// found says where in a text a secret is, or "".
func (s secret) found(b []byte) string {
	for _, f := range s.forms {
		if i := bytes.Index(b, f); i >= 0 {
			return string(b[max(0, i-80):min(len(b), i+20)])
		}
	}
	return ""
}

// TestSecretsStayWhereTheyBelong makes a whole journey with everything that can
// be logged being logged, and then looks for each secret in all that was
// written: logs, events, and every file of both sides.
func TestSecretsStayWhereTheyBelong(t *testing.T) {
	m := servertest.New(t, func(c *server.Config) { c.Log.Level = "debug" })
	m.Spawn()
	const password, wrong = "Hunter2-of-the-host!", "Another-wrong-password!"
	h := startHost(t, vcsim.Config{Password: password})

	join := m.Join(2)
	parsed, err := wire.ParseJoin(join)
	if err != nil {
		t.Fatal(err)
	}
	_, joinSecret, _ := strings.Cut(parsed.Token, ".")
	secrets := []secret{
		textSecret("administrator's token", m.Token),
		textSecret("join token", joinSecret),
		textSecret("join string", strings.TrimPrefix(join, wire.JoinPrefix)),
		textSecret("password of the host", password),
		textSecret("wrong password of the host", wrong),
	}

	p := newProcess(t, join, h)
	p.start()
	one(t, m)
	managerArgs, agentArgs := arguments(t, m.Pid()), arguments(t, p.cmd.Process.Pid)

	// Work that succeeds, that the host refuses, that nobody can do.
	taskIs(t, m, request(t, m, machine(t, m, "pos"), "on").Id.String(), "succeeded")
	h.ChangePassword(wrong)
	h.DropSessions()
	failed := request(t, m, machine(t, m, "web"), "on")
	taskIs(t, m, failed.Id.String(), "failed", "rejected")
	h.ChangePassword(password)
	h.SetUnreachable(true)
	p.kill()
	h.SetUnreachable(false)
	p.start()
	one(t, m)

	// Credentials that are wrong, in every place for one.
	secrets = append(secrets, wrongCredentials(t, m, parsed)...)

	secrets = append(secrets, passwordsAndSessions(t, m)...)

	p.stop()
	m.Stop()

	agentDir := filepath.Join(filepath.Dir(p.file), "agent")
	secrets = append(
		secrets,
		keySecret(t, "device's key", filepath.Join(agentDir, "device.key")),
		keySecret(t, "CA's key", filepath.Join(m.Config.DataDir, "pki", "ca.key")),
	)
	// The test's own file stands for the agent's configuration.
	for i := range secrets {
		if secrets[i].name == "password of the host" || secrets[i].name == "join string" {
			secrets[i].file = p.file
		}
	}
	look := func(where string, b []byte) {
		for _, s := range secrets {
			if at := s.found(b); at != "" && where != s.file {
				t.Errorf("%s is in %s: …%q…", s.name, where, at)
			}
		}
	}
	look("the manager's arguments", managerArgs)
	look("the agent's arguments", agentArgs)
	logs := m.Log()
	if !strings.Contains(logs, "level=DEBUG") || !strings.Contains(logs, "enrolment refused") || !strings.Contains(logs, "device enrolled") {
		t.Errorf("the manager's log does not tell of the journey:\n%s", logs)
	}
	// Both logs are among the files.
	for _, dir := range []string{filepath.Dir(p.file), filepath.Dir(m.Config.DataDir)} {
		files := 0
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			files++
			look(path, b)
			return nil
		})
		if err != nil || files < 3 {
			t.Errorf("read %d files of %s: %v", files, dir, err)
		}
	}
	// The log's files may be compressed one day; its records are looked at as such.
	store, done := m.OpenLog()
	defer done()
	records := servertest.Records(t, store)
	if len(records) < 5 {
		t.Errorf("%d records in the log", len(records))
	}
	for _, r := range records {
		b, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		look("event "+string(r.ID), b)
	}
	// The search itself must find what is there.
	for _, s := range secrets {
		if s.file == "" {
			continue
		}
		if b, err := os.ReadFile(s.file); err != nil || s.found(b) == "" {
			t.Errorf("%s is not found in %s, where it has to be: %v", s.name, s.file, err)
		}
	}
}

// wrongCredentials shows the manager credentials that it has to refuse, and
// returns them: what somebody mistyped is nearly a secret.
func wrongCredentials(t *testing.T, m *servertest.Manager, join wire.Join) (secrets []secret) {
	t.Helper()
	spoil := func(s string) string {
		b := []byte(s)
		slices.Reverse(b[len(b)-16:])
		return string(b)
	}
	id, good, _ := strings.Cut(join.Token, ".")
	bad := spoil(good)
	secrets = append(secrets, textSecret("mistyped join token", bad))
	httpc := &http.Client{Transport: &http.Transport{TLSClientConfig: m.TLS()}}
	defer httpc.CloseIdleConnections()
	base := "https://" + m.Config.HTTP.Listen
	post := func(token, csr string) {
		b, err := json.Marshal(wire.EnrollRequest{Token: token, Device: stranger, Name: "x", Agent: "x", CSR: csr})
		if err != nil {
			t.Fatal(err)
		}
		r, err := httpc.Post(base+wire.EnrollPath, "application/json", bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Body.Close(); err != nil || r.StatusCode < 400 {
			t.Errorf("enrol with %d characters of a token: %s, %v", len(token), r.Status, err)
		}
	}
	csr := signingRequest(t)
	for _, token := range []string{id + "." + bad, bad, good, id + "." + good + "x"} {
		post(token, csr)
	}
	post(join.Token, "-----BEGIN PRIVATE KEY-----\n"+good+"\n-----END PRIVATE KEY-----\n")

	admin := spoil(m.Token)
	secrets = append(secrets, textSecret("mistyped token", admin[len("pls_"):]))
	for _, authorization := range []string{"Bearer " + admin, "Bearer  " + m.Token + "x", "Basic " + m.Token, m.Token} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/api/v1/devices", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", authorization)
		r, err := httpc.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Body.Close(); err != nil || r.StatusCode != http.StatusUnauthorized {
			t.Errorf("a wrong token got %s, %v", r.Status, err)
		}
	}
	return secrets
}

// passwordsAndSessions is what people have that nobody else may see: it makes a
// journey with them, wrong ones too, and returns them.
func passwordsAndSessions(t *testing.T, m *servertest.Manager) (secrets []secret) {
	t.Helper()
	const password, second, wrong, weak = "the first password of ann", "the second password of ann", "not the password of anybody", "passwordpassword"
	keep := func(name, text string) { secrets = append(secrets, textSecret(name, text)) }
	for name, text := range map[string]string{"password": password, "second password": second, "mistyped password": wrong, "weak password": weak} {
		keep(name, text)
	}
	a := admin(t, m)
	u := want[httpapi.User](a, 201, "POST", "/api/v1/users", object{"login": "ann", "grants": []object{grantOf("admin", "")}})
	l := want[struct{ Link string }](a, 200, "POST", "/api/v1/users/"+u.ID+"/password-reset", nil)
	for _, link := range []string{l.Link, m.Link} {
		_, text, _ := strings.Cut(link, "#")
		keep("one-time link", text[len("plr_")+33:])
	}
	b := newBrowser(t, m)
	b.refused(422, "POST", "/api/v1/password/reset", object{"link": l.Link, "password": weak})
	want[object](b, 200, "POST", "/api/v1/password/reset", object{"link": l.Link, "password": password})
	b.refused(401, "POST", "/api/v1/password/reset", object{"link": l.Link, "password": password})
	b.refused(401, "POST", "/api/v1/session", object{"login": "ann", "password": wrong})
	b.refused(401, "POST", "/api/v1/session", object{"login": wrong, "password": password}) // in the wrong field
	b.signIn("ann", password)
	keep("session's cookie", b.cookie[strings.LastIndexByte(b.cookie, '.')+1:])
	made := want[struct{ Token string }](b, 201, "POST", "/api/v1/tokens", object{"role": "viewer"})
	keep("API token", made.Token[len("pls_")+17:])
	b.refused(422, "POST", "/api/v1/password", object{"old": wrong, "new": second})
	want[object](b, 204, "POST", "/api/v1/password", object{"old": password, "new": second})
	want[object](b, 200, "GET", "/api/v1/whoami", nil)
	spoiled := *b
	spoiled.cookie = b.cookie[:len(b.cookie)-16] + strings.Repeat("0", 16)
	spoiled.refused(401, "GET", "/api/v1/whoami", nil)
	keep("mistyped cookie", spoiled.cookie[strings.LastIndexByte(spoiled.cookie, '.')+1:])
	return secrets
}

// signingRequest is a certificate request such as a device makes.
func signingRequest(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: stranger}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// arguments returns the command line of a process.
func arguments(t *testing.T, pid int) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	if err != nil {
		t.Logf("this system does not show command lines: %v", err)
	}
	return b
}
