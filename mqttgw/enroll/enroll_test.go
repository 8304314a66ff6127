package enroll_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"pallas/commands"
	"pallas/events"
	"pallas/events/eventstest"
	"pallas/events/jsstore"
	"pallas/events/labels"
	"pallas/internal/auth"
	"pallas/internal/httpapi"
	"pallas/mqttgw/enroll"
	"pallas/mqttgw/pki"
	"pallas/mqttgw/renewal"
	"pallas/mqttgw/wire"
)

// clock is a time that the test moves.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time          { c.mu.Lock(); defer c.mu.Unlock(); return c.at }
func (c *clock) advance(d time.Duration) { c.mu.Lock(); c.at = c.at.Add(d); c.mu.Unlock() }

// nobody refuses every API token: enrolment must not need one.
type nobody struct{}

func (nobody) Authenticate(context.Context, httpapi.Credential) (httpapi.Principal, error) {
	return httpapi.Principal{}, httpapi.ErrUnauthorized
}

// buffer collects what was logged.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) { b.mu.Lock(); defer b.mu.Unlock(); return b.b.Write(p) }

func (b *buffer) String() string { b.mu.Lock(); defer b.mu.Unlock(); return b.b.String() }

type manager struct {
	t        testing.TB
	handler  http.Handler
	url      string
	ca       *pki.CA
	store    events.Store
	creds    *auth.Credentials
	commands *commands.Dispatcher
	clock    *clock
	logged   *buffer
	registry *prometheus.Registry
	client   *http.Client
}

// startManager runs enrolment behind the real API on a real TLS listener, on
// the real log and the real credential store.
func startManager(t testing.TB, change ...func(*enroll.Config)) *manager {
	t.Helper()
	s, err := server.NewServer(&server.Options{JetStream: true, StoreDir: t.TempDir(), DontListen: true, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("nats-server is not ready")
	}
	nc, err := nats.Connect("", nats.InProcessServer(s))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	creds, err := auth.Open(t.Context(), js, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	store, err := jsstore.Open(t.Context(), jsstore.Config{Conn: nc})
	if err != nil {
		t.Fatal(err)
	}
	return startOn(t, store, creds, change...)
}

func startOn(t testing.TB, store events.Store, creds *auth.Credentials, change ...func(*enroll.Config)) *manager {
	t.Helper()
	m := &manager{
		t: t, store: store, creds: creds, logged: &buffer{}, registry: prometheus.NewRegistry(),
		clock: &clock{at: time.Now().UTC().Truncate(time.Second)},
	}
	logger := slog.New(slog.NewJSONHandler(m.logged, nil))
	var err error
	if m.ca, err = pki.Create(t.TempDir(), m.clock.now(), "Test CA"); err != nil {
		t.Fatal(err)
	}
	if m.commands, err = commands.New(commands.Config{Store: store, Now: m.clock.now, Log: logger}); err != nil {
		t.Fatal(err)
	}
	cfg := enroll.Config{
		Commands: m.commands, CA: m.ca, Tokens: creds, MQTT: func() string { return "127.0.0.1:8883" },
		Now: m.clock.now, Log: logger, Registerer: m.registry,
	}
	for _, c := range change {
		c(&cfg)
	}
	if cfg.Renewals, err = renewal.New(renewal.Config{
		Commands: m.commands, Authority: m.ca, Life: cfg.Life, Grace: grace, Now: m.clock.now, Registerer: m.registry,
	}); err != nil {
		t.Fatal(err)
	}
	m.handler, err = httpapi.New(httpapi.Config{
		Auth: nobody{}, Log: logger, Register: []httpapi.Register{func(api huma.API) { enroll.Register(api, cfg) }},
	})
	if err != nil {
		t.Fatal(err)
	}
	source, err := pki.NewServerSource(pki.ServerConfig{CA: m.ca, Hosts: []string{"127.0.0.1"}, Now: m.clock.now})
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewUnstartedServer(m.handler)
	web.TLS = &tls.Config{GetCertificate: source.GetCertificate, MinVersion: tls.VersionTLS13}
	web.Config.ErrorLog = log.New(io.Discard, "", 0)
	// StartTLS would add a certificate of its own.
	web.Listener = tls.NewListener(web.Listener, web.TLS)
	web.Start()
	t.Cleanup(web.Close)
	m.url = "https://" + web.Listener.Addr().String()
	pinned := wire.Join{URL: m.url, CA: m.ca.Fingerprint()}.TLS()
	pinned.Time = m.clock.now
	transport := &http.Transport{TLSClientConfig: pinned}
	t.Cleanup(transport.CloseIdleConnections)
	m.client = &http.Client{Transport: transport, Timeout: 30 * time.Second}
	return m
}

// token issues a join token and returns its id and its text.
func (m *manager) token(uses int, auto bool, life time.Duration) (events.TokenID, string) {
	m.t.Helper()
	id := events.TokenID(events.NewID())
	secret, err := m.creds.CreateJoin(m.t.Context(), id)
	if err != nil {
		m.t.Fatal(err)
	}
	m.do(commands.IssueJoinToken{
		Token: id, Name: "test", MaxUses: uses, Expires: m.clock.now().Add(life), AutoApprove: auto,
		Labels: map[string]string{"site": "fra"},
	})
	return id, string(id) + "." + secret
}

func (m *manager) do(c commands.Command) {
	m.t.Helper()
	if _, err := m.commands.Do(m.t.Context(), c, commands.Meta{Actor: events.UserActor("admin"), Scope: new(labels.Everything())}); err != nil {
		m.t.Fatal(err)
	}
}

type device struct {
	id  string
	key *ecdsa.PrivateKey
}

func newDevice(t testing.TB) device {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return device{uuid.NewString(), key}
}

func csrFor(t testing.TB, cn string, key any) string {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: cn}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func (d device) request(t testing.TB, token string) wire.EnrollRequest {
	t.Helper()
	return wire.EnrollRequest{Token: token, Device: d.id, Name: "esx-1", Agent: "1.0.0", CSR: csrFor(t, d.id, d.key)}
}

type answer struct {
	status  int
	header  http.Header
	body    string
	problem httpapi.Problem
	ok      wire.EnrollResponse
}

func (m *manager) post(body any) answer {
	m.t.Helper()
	return m.postTo(wire.EnrollPath, body)
}

func (m *manager) postTo(path string, body any) answer {
	m.t.Helper()
	raw, isRaw := body.(string)
	if !isRaw {
		b, err := json.Marshal(body)
		if err != nil {
			m.t.Fatal(err)
		}
		raw = string(b)
	}
	req, err := http.NewRequestWithContext(m.t.Context(), http.MethodPost, m.url+path, strings.NewReader(raw))
	if err != nil {
		m.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := m.client.Do(req)
	if err != nil {
		m.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		m.t.Fatal(err)
	}
	a := answer{status: resp.StatusCode, header: resp.Header, body: string(b)}
	into := any(&a.problem)
	if resp.StatusCode == http.StatusOK {
		into = &a.ok
	}
	if err := json.Unmarshal(b, into); err != nil {
		m.t.Fatalf("%d %s: %v", resp.StatusCode, b, err)
	}
	return a
}

// types lists the types of all events of an aggregate.
func (m *manager) types(s events.Subject) (out []string) {
	m.t.Helper()
	for r, err := range m.store.Load(m.t.Context(), s, 0) {
		if err != nil {
			m.t.Fatal(err)
		}
		for _, e := range r.Entries {
			out = append(out, e.Event.Type())
		}
	}
	return out
}

func (m *manager) position() uint64 {
	m.t.Helper()
	p, err := m.store.Last(m.t.Context())
	if err != nil {
		m.t.Fatal(err)
	}
	return p
}

func (m *manager) count(outcome string) float64 {
	m.t.Helper()
	families, err := m.registry.Gather()
	if err != nil {
		m.t.Fatal(err)
	}
	for _, f := range families {
		for _, metric := range f.GetMetric() {
			if f.GetName() == "pallas_enrolments_total" && metric.GetLabel()[0].GetValue() == outcome {
				return metric.GetCounter().GetValue()
			}
		}
	}
	return 0
}

func TestEnrol(t *testing.T) {
	for _, auto := range []bool{true, false} {
		t.Run("auto approve "+strconv.FormatBool(auto), func(t *testing.T) {
			m := startManager(t)
			id, token := m.token(1, auto, time.Hour)
			d := newDevice(t)
			a := m.post(d.request(t, token))
			if a.status != http.StatusOK {
				t.Fatalf("%d %s", a.status, a.body)
			}
			if a.ok.Device != d.id || a.ok.MQTT != "127.0.0.1:8883" || a.ok.Approved != auto || !a.ok.Time.Equal(m.clock.now()) {
				t.Errorf("answer %+v", a.ok)
			}
			if a.ok.CA != string(m.ca.CertificatePEM()) {
				t.Error("another CA than that of the join string")
			}
			cert := parse(t, a.ok.Certificate)
			if !d.key.PublicKey.Equal(cert.PublicKey) || cert.Subject.CommonName != d.id {
				t.Error("the certificate is not for this device's key and id")
			}
			if _, err := cert.Verify(x509.VerifyOptions{Roots: m.ca.Pool(), CurrentTime: m.clock.now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
				t.Error(err)
			}
			want := []string{"DeviceRegistered", "CertificateIssued"}
			if auto {
				want = []string{"DeviceRegistered", "DeviceApproved", "CertificateIssued"}
			}
			if diff := cmp.Diff(want, m.types(events.DeviceSubject(events.DeviceID(d.id)))); diff != "" {
				t.Errorf("events (-want +got):\n%s", diff)
			}
			state, err := m.commands.Device(t.Context(), events.DeviceID(d.id))
			if err != nil {
				t.Fatal(err)
			}
			if state.KeyHash != pki.KeyHash(&d.key.PublicKey) || state.JoinToken != id || state.Name != "esx-1" ||
				state.Labels["site"] != "fra" || len(state.Certificates) != 1 || state.Certificates[0].Serial != pki.SerialHex(cert) {
				t.Errorf("state %+v", state)
			}
			for r, err := range m.store.Load(t.Context(), events.DeviceSubject(events.DeviceID(d.id)), 0) {
				if err != nil {
					t.Fatal(err)
				}
				if r.Actor != events.TokenActor(id) || r.Source != "127.0.0.1" || r.Cause == "" {
					t.Errorf("decided by %q from %q because of %q", r.Actor, r.Source, r.Cause)
				}
			}
		})
	}
}

func parse(t *testing.T, text string) *x509.Certificate {
	t.Helper()
	p, _ := pem.Decode([]byte(text))
	if p == nil {
		t.Fatalf("not PEM: %q", text)
	}
	c, err := x509.ParseCertificate(p.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A lost answer does no harm: the repeat works, and takes no other use, even
// of a token that has none left.
func TestRepeatTakesNoOtherUse(t *testing.T) {
	m := startManager(t)
	id, token := m.token(1, true, time.Hour)
	d := newDevice(t)
	serials := map[string]bool{}
	for range 3 {
		a := m.post(d.request(t, token))
		if a.status != http.StatusOK {
			t.Fatalf("%d %s", a.status, a.body)
		}
		serials[pki.SerialHex(parse(t, a.ok.Certificate))] = true
	}
	if len(serials) != 3 {
		t.Errorf("%d different certificates, want 3", len(serials))
	}
	if diff := cmp.Diff([]string{"JoinTokenIssued", "JoinTokenUsed"}, m.types(events.TokenSubject(id))); diff != "" {
		t.Errorf("token's events (-want +got):\n%s", diff)
	}
	want := []string{"DeviceRegistered", "DeviceApproved", "CertificateIssued", "CertificateIssued", "CertificateIssued"}
	if diff := cmp.Diff(want, m.types(events.DeviceSubject(events.DeviceID(d.id)))); diff != "" {
		t.Errorf("device's events (-want +got):\n%s", diff)
	}
	// Another device finds the token used up.
	if a := m.post(newDevice(t).request(t, token)); a.status != http.StatusUnauthorized {
		t.Errorf("second device: %d %s", a.status, a.body)
	}
}

func TestConcurrentDevicesShareUses(t *testing.T) {
	m := startManager(t)
	id, token := m.token(3, true, time.Hour)
	var (
		wg  sync.WaitGroup
		mu  sync.Mutex
		got = map[int]int{}
	)
	for range 8 {
		d := newDevice(t)
		req := d.request(t, token)
		wg.Go(func() {
			a := m.post(req)
			mu.Lock()
			got[a.status]++
			mu.Unlock()
		})
	}
	wg.Wait()
	if got[http.StatusOK] != 3 || got[http.StatusUnauthorized] != 5 {
		t.Errorf("answers %v, want 3 × 200 and 5 × 401", got)
	}
	state, err := m.commands.JoinToken(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if state.Uses != 3 {
		t.Errorf("%d uses taken, want 3", state.Uses)
	}
}

// Every token that does not open gets the same answer, writes nothing, and the
// log has the real reason without the secret.
func TestRefusedTokens(t *testing.T) {
	m := startManager(t)
	_, good := m.token(1, true, time.Hour)
	id, secret, _ := strings.Cut(good, ".")

	_, short := m.token(5, true, time.Minute)
	m.clock.advance(2 * time.Minute)
	revokedID, revoked := m.token(5, true, time.Hour)
	m.do(commands.RevokeJoinToken{Token: revokedID})
	_, used := m.token(1, true, time.Hour)
	if a := m.post(newDevice(t).request(t, used)); a.status != http.StatusOK {
		t.Fatalf("%d %s", a.status, a.body)
	}
	orphan := events.TokenID(events.NewID()) // a secret without a token in the log
	orphanSecret, err := m.creds.CreateJoin(t.Context(), orphan)
	if err != nil {
		t.Fatal(err)
	}

	before := m.position()
	var first string
	for _, tc := range []struct{ name, token, reason string }{
		{"unknown", events.NewID() + "." + secret, "no such token"},
		{"wrong secret", id + "." + strings.Repeat("x", len(secret)), "no such token"},
		{"empty secret", id + ".", "no such token"},
		{"no dot", id + secret, "form"},
		{"not an id", "hello." + secret, "form"},
		{"upper case id", strings.ToUpper(id) + "." + secret, "form"},
		{"expired", short, "expired"},
		{"revoked", revoked, "revoked"},
		{"used up", used, "no use left"},
		{"not in the log", string(orphan) + "." + orphanSecret, "not known"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			logStart := len(m.logged.String())
			a := m.post(newDevice(t).request(t, tc.token))
			if a.status != http.StatusUnauthorized || a.header.Get("WWW-Authenticate") == "" {
				t.Errorf("%d %s", a.status, a.body)
			}
			if first == "" {
				first = a.body
			}
			if a.body != first {
				t.Errorf("body %s differs from %s", a.body, first)
			}
			if got := m.logged.String()[logStart:]; !strings.Contains(got, tc.reason) {
				t.Errorf("log %s does not say %q", got, tc.reason)
			}
		})
	}
	if after := m.position(); after != before {
		t.Errorf("%d events were written by refused requests", after-before)
	}
	if n := m.count("denied"); n != 10 {
		t.Errorf("counted %v refusals, want 10", n)
	}
	for _, token := range []string{good, short, revoked, used} {
		if _, s, _ := strings.Cut(token, "."); strings.Contains(m.logged.String(), s) {
			t.Error("a secret is in the log")
		}
	}
	if strings.Contains(m.logged.String(), orphanSecret) {
		t.Error("a secret is in the log")
	}
	// The good one still has its use.
	if a := m.post(newDevice(t).request(t, good)); a.status != http.StatusOK {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// Bad input names its field, takes no use and writes nothing.
func TestBadInput(t *testing.T) {
	m := startManager(t)
	_, token := m.token(1, true, time.Hour)
	d := newDevice(t)
	good := d.request(t, token)
	with := func(f func(*wire.EnrollRequest)) wire.EnrollRequest { r := good; f(&r); return r }
	without := func(field string) string {
		b, err := json.Marshal(good)
		if err != nil {
			t.Fatal(err)
		}
		var v map[string]any
		if err := json.Unmarshal(b, &v); err != nil {
			t.Fatal(err)
		}
		delete(v, field)
		if b, err = json.Marshal(v); err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	before := m.position()
	for _, tc := range []struct {
		name   string
		body   any
		status int
		field  string
	}{
		{"no body", "", 400, ""},
		{"not JSON", "hello", 400, ""},
		{"another type", "[]", 422, "body"},
		{"no token", without("token"), 422, "body"},
		{"no device", without("device"), 422, "body"},
		{"no csr", without("csr"), 422, "body"},
		{"unknown field", strings.Replace(without("x"), "{", `{"admin":true,`, 1), 422, "body.admin"},
		{"token of a wrong type", strings.Replace(without("token"), "{", `{"token":5,`, 1), 422, "body.token"},
		{"empty token", with(func(r *wire.EnrollRequest) { r.Token = "" }), 422, "body.token"},
		{"long token", with(func(r *wire.EnrollRequest) { r.Token = strings.Repeat("s", 257) }), 422, "body.token"},
		{"device in upper case", with(func(r *wire.EnrollRequest) { r.Device = strings.ToUpper(r.Device) }), 422, "body.device"},
		{"device of version 7", with(func(r *wire.EnrollRequest) { r.Device = events.NewID() }), 422, "body.device"},
		{"device with a wildcard", with(func(r *wire.EnrollRequest) { r.Device = "*" }), 422, "body.device"},
		{"device too long", with(func(r *wire.EnrollRequest) { r.Device += "0" }), 422, "body.device"},
		{"name too long", with(func(r *wire.EnrollRequest) { r.Name = strings.Repeat("n", 254) }), 422, "body.name"},
		{"name with a newline", with(func(r *wire.EnrollRequest) { r.Name = "a\nb" }), 422, "body.name"},
		{"agent too long", with(func(r *wire.EnrollRequest) { r.Agent = strings.Repeat("v", 254) }), 422, "body.agent"},
		{"agent with a control character", with(func(r *wire.EnrollRequest) { r.Agent = "1.0\x00" }), 422, "body.agent"},
		{"csr not PEM", with(func(r *wire.EnrollRequest) { r.CSR = "csr" }), 422, "body.csr"},
		{"csr too long", with(func(r *wire.EnrollRequest) { r.CSR = strings.Repeat("A", pki.MaxCSR+1) }), 422, "body.csr"},
		{"csr for another device", with(func(r *wire.EnrollRequest) { r.CSR = csrFor(t, uuid.NewString(), d.key) }), 422, "body.csr"},
		{"csr with RSA", with(func(r *wire.EnrollRequest) { r.CSR = csrFor(t, d.id, rsaKey) }), 422, "body.csr"},
		{"csr with P-384", with(func(r *wire.EnrollRequest) { r.CSR = csrFor(t, d.id, p384) }), 422, "body.csr"},
		{"a body of 1 MB", with(func(r *wire.EnrollRequest) { r.CSR = strings.Repeat("A", 1<<20) }), 413, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := m.post(tc.body)
			if a.status != tc.status {
				t.Fatalf("%d %s, want %d", a.status, a.body, tc.status)
			}
			if _, secret, _ := strings.Cut(token, "."); strings.Contains(a.body, secret) {
				t.Error("the answer repeats the secret")
			}
			if tc.field == "" {
				return
			}
			if len(a.problem.Errors) == 0 || !strings.HasPrefix(a.problem.Errors[0].Field, tc.field) {
				t.Errorf("%s does not name %s", a.body, tc.field)
			}
		})
	}
	if after := m.position(); after != before {
		t.Errorf("%d events were written by bad input", after-before)
	}
	if a := m.post(good); a.status != http.StatusOK {
		t.Errorf("the token's use was taken: %d %s", a.status, a.body)
	}
}

func TestEmptyNameIsTheID(t *testing.T) {
	m := startManager(t)
	_, token := m.token(1, true, time.Hour)
	d := newDevice(t)
	req := d.request(t, token)
	req.Name = ""
	if a := m.post(req); a.status != http.StatusOK {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if state, err := m.commands.Device(t.Context(), events.DeviceID(d.id)); err != nil || state.Name != d.id {
		t.Errorf("name %q (%v), want the id", state.Name, err)
	}
}

func TestRetired(t *testing.T) {
	m := startManager(t)
	_, token := m.token(2, true, time.Hour)
	d := newDevice(t)
	if a := m.post(d.request(t, token)); a.status != http.StatusOK {
		t.Fatalf("%d %s", a.status, a.body)
	}
	m.do(commands.RetireDevice{Device: events.DeviceID(d.id), Reason: "sold"})
	a := m.post(d.request(t, token))
	if a.status != http.StatusForbidden || a.problem.Code != "retired" || a.ok.Certificate != "" {
		t.Errorf("%d %s, want 403 retired", a.status, a.body)
	}
}

// Guessing is slow; the good token works again after the time that the answer
// names, and a device that enrols is no failure.
func TestRateLimit(t *testing.T) {
	m := startManager(t, func(c *enroll.Config) {
		c.Limits = enroll.Limits{SourceRate: 1, SourceBurst: 30}
	})
	_, token := m.token(10, true, 24*time.Hour)
	bad := newDevice(t).request(t, events.NewID()+".guess")
	for i := range 3 {
		if a := m.post(bad); a.status != http.StatusUnauthorized {
			t.Fatalf("guess %d: %d %s", i, a.status, a.body)
		}
	}
	good := newDevice(t).request(t, token)
	before := m.position()
	a := m.post(good)
	if a.status != http.StatusTooManyRequests || a.header.Get("Retry-After") != "1" {
		t.Fatalf("%d %s, Retry-After %q", a.status, a.body, a.header.Get("Retry-After"))
	}
	if m.position() != before || m.count("limited") != 1 {
		t.Error("a limited request was carried out or not counted")
	}
	m.clock.advance(time.Second)
	if a := m.post(good); a.status != http.StatusOK {
		t.Fatalf("after Retry-After: %d %s", a.status, a.body)
	}
	// Enrolling costs a tenth of a failure: a burst of 20 passes on 20 units.
	m.clock.advance(20 * time.Second)
	for range 20 {
		if a := m.post(good); a.status != http.StatusOK {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
}

func TestRateLimitOfAllFailures(t *testing.T) {
	m := startManager(t, func(c *enroll.Config) {
		c.Limits = enroll.Limits{SourceBurst: 1000, FailureRate: 0.25, FailureBurst: 2}
	})
	_, token := m.token(1, true, time.Hour)
	bad := newDevice(t).request(t, events.NewID()+".guess")
	for range 2 {
		if a := m.post(bad); a.status != http.StatusUnauthorized {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	if a := m.post(bad); a.status != http.StatusTooManyRequests || a.header.Get("Retry-After") != "4" {
		t.Fatalf("%d %s, Retry-After %q", a.status, a.body, a.header.Get("Retry-After"))
	}
	m.clock.advance(4 * time.Second)
	if a := m.post(newDevice(t).request(t, token)); a.status != http.StatusOK {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// A log that cannot take the device is no fault of the device: the answer says
// so, no certificate leaves, and the repeat works.
func TestLogFails(t *testing.T) {
	store := eventstest.NewMemory()
	m := startOn(t, store, startManager(t).creds, func(c *enroll.Config) {
		c.Limits = enroll.Limits{FailureBurst: 1, FailureRate: 0.001}
	})
	id, token := m.token(1, true, time.Hour)
	d := newDevice(t)
	for _, tc := range []struct {
		fails  func(events.Decision) error
		status int
	}{
		{func(events.Decision) error { return events.ErrNoSpace }, http.StatusInsufficientStorage},
		{func(d events.Decision) error { // between the two appends
			if d.Subject.Kind() == events.KindDevice {
				return events.ErrNoSpace
			}
			return nil
		}, http.StatusInsufficientStorage},
		{func(d events.Decision) error {
			if d.Subject.Kind() == events.KindDevice {
				return errors.New("the secret inner workings")
			}
			return nil
		}, http.StatusInternalServerError},
	} {
		store.FailAppends(tc.fails)
		a := m.post(d.request(t, token))
		if a.status != tc.status || strings.Contains(a.body, "CERTIFICATE") || strings.Contains(a.body, "inner workings") {
			t.Errorf("%d %s, want %d", a.status, a.body, tc.status)
		}
		if _, err := m.commands.Device(t.Context(), events.DeviceID(d.id)); commands.KindOf(err) != commands.KindNotFound {
			t.Errorf("the device is there: %v", err)
		}
	}
	store.FailAppends(nil)
	if a := m.post(d.request(t, token)); a.status != http.StatusOK {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if state, err := m.commands.JoinToken(t.Context(), id); err != nil || state.Uses != 1 {
		t.Errorf("uses %d (%v), want one", state.Uses, err)
	}
}

// A device that hangs up while its request is carried out is registered whole
// or not at all.
func TestHangUp(t *testing.T) {
	store := eventstest.NewMemory()
	m := startOn(t, store, startManager(t).creds)
	_, token := m.token(1, true, time.Hour)
	d := newDevice(t)
	ctx, hangUp := context.WithCancel(t.Context())
	registered := make(chan struct{})
	store.FailAppends(func(dec events.Decision) error {
		hangUp() // as soon as the first append is under way
		if dec.Subject.Kind() == events.KindDevice {
			close(registered)
		}
		return nil
	})
	b, err := json.Marshal(d.request(t, token))
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, m.url+wire.EnrollPath, bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if resp, err := m.client.Do(req); err == nil {
		resp.Body.Close()
	}
	select {
	case <-registered:
	case <-time.After(10 * time.Second):
		t.Fatal("a use was taken, and no device registered")
	}
}

// The address of the manager and its CA are all that a join string needs.
func TestJoinStringToCertificate(t *testing.T) {
	m := startManager(t)
	_, token := m.token(1, true, time.Hour)
	j, err := wire.ParseJoin(wire.Join{URL: m.url, CA: m.ca.Fingerprint(), Token: token, Expires: m.clock.now().Add(time.Hour)}.String())
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(m.ca.Certificate().Raw)
	if !bytes.Equal(j.CA, sum[:]) {
		t.Error("the join string names another CA")
	}
	if a := m.post(newDevice(t).request(t, j.Token)); a.status != http.StatusOK {
		t.Errorf("%d %s", a.status, a.body)
	}
	// Another manager cannot pose as this one.
	other := startOn(t, eventstest.NewMemory(), m.creds)
	config := j.TLS()
	config.Time = m.clock.now
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: config}}
	if resp, err := client.Post(other.url+wire.EnrollPath, "application/json", strings.NewReader("{}")); !errors.Is(err, wire.ErrPin) {
		if err == nil {
			resp.Body.Close()
		}
		t.Errorf("another manager: %v, want ErrPin", err)
	}
}
