package httpapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"pallas/commands"
	"pallas/commands/accesshttp"
	"pallas/commands/commandhttp"
	"pallas/events"
	"pallas/events/jsstore"
	"pallas/events/labels"
	"pallas/internal/auth"
	"pallas/internal/httpapi"
	"pallas/projections"
	"pallas/projections/queryhttp"
)

const patience = 20 * time.Second

// credentials takes API tokens from the real store. A user of whom rights says
// nothing is an admin.
type credentials struct {
	*auth.People
	rights *sync.Map // of users, by id
}

func (c credentials) Authenticate(ctx context.Context, cred httpapi.Credential) (httpapi.Principal, error) {
	t, err := c.VerifyToken(ctx, cred.Token)
	if errors.Is(err, auth.ErrDenied) {
		return httpapi.Principal{}, httpapi.ErrUnauthorized
	}
	rights, ok := c.rights.Load(string(t.User))
	if !ok {
		rights = auth.RightsOf(auth.Grant{Role: auth.RoleAdmin})
	}
	return httpapi.Principal{Actor: events.UserActor(string(t.User)), User: t.User, Token: t.ID, Expires: t.Expires, Rights: rights.(auth.Rights)}, err
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// manager is the API over TLS on the real log, credentials and read model.
type manager struct {
	t        testing.TB
	handler  http.Handler
	url      string
	token    string
	people   *auth.People
	rights   *sync.Map // of users who are no admins; nil when the log says them
	client   *http.Client
	store    events.Store
	commands *commands.Dispatcher
	db       *projections.DB
	logged   *logBuffer
	// stopProjection ends the projection and waits for it.
	stopProjection func()
}

type option func(*options)

// people has the users and tokens of the log authenticate.
func people(o *options) { o.people = true }

type options struct {
	store    func(events.Store) events.Store
	httpapi  func(*httpapi.Config)
	queries  func(*queryhttp.Config)
	commands func(*commandhttp.Config)
	people   bool
}

func start(t testing.TB, opts ...option) *manager {
	t.Helper()
	o := options{
		store: func(s events.Store) events.Store { return s }, httpapi: func(*httpapi.Config) {},
		queries: func(*queryhttp.Config) {}, commands: func(*commandhttp.Config) {},
	}
	for _, opt := range opts {
		opt(&o)
	}
	ns, err := server.NewServer(&server.Options{JetStream: true, StoreDir: t.TempDir(), DontListen: true, NoSigs: true, NoLog: true})
	must(t, err)
	ns.Start()
	t.Cleanup(func() { ns.Shutdown(); ns.WaitForShutdown() })
	if !ns.ReadyForConnections(patience) {
		t.Fatal("nats-server is not ready")
	}
	nc, err := nats.Connect("", nats.InProcessServer(ns))
	must(t, err)
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	must(t, err)
	creds, err := auth.Open(t.Context(), js, 1, nil)
	must(t, err)
	people, err := auth.OpenPeople(t.Context(), js, 1, nil, nil)
	must(t, err)
	real, err := jsstore.Open(t.Context(), jsstore.Config{Conn: nc})
	must(t, err)
	m := &manager{t: t, people: people, rights: &sync.Map{}, store: o.store(real), logged: &logBuffer{}}
	m.token = m.newToken("admin")
	logger := slog.New(slog.NewJSONHandler(m.logged, &slog.HandlerOptions{Level: slog.LevelDebug}))

	m.commands, err = commands.New(commands.Config{Store: m.store, Now: time.Now})
	must(t, err)
	m.db, err = projections.Open(t.Context(), projections.Config{Path: filepath.Join(t.TempDir(), "read.db"), Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.db.Run(ctx, m.store) }()
	m.stopProjection = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, projections.ErrStopped) {
			t.Error(err)
		}
	})
	t.Cleanup(func() { m.stopProjection(); must(t, m.db.Close()) })

	usage, err := projections.OpenUsage(t.Context(), projections.UsageConfig{Path: filepath.Join(t.TempDir(), "telemetry.db"), Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	t.Cleanup(func() { must(t, usage.Close()) })
	qc := queryhttp.Config{
		DB: m.db, Usage: usage, Store: m.store, Version: "test",
		LogBytes: func(ctx context.Context) (uint64, error) {
			s, err := js.Stream(ctx, "EVENTS")
			if err != nil {
				return 0, err
			}
			return s.CachedInfo().State.Bytes, nil
		},
	}
	o.queries(&qc)
	queries, err := queryhttp.New(qc)
	must(t, err)
	cc := commandhttp.Config{
		Commands: m.commands, Tokens: creds, TaskDevice: queries.TaskDevice, Select: queries.SelectDevices,
		Join: func(token string, expires time.Time) (string, error) {
			return "pallas-join-1." + token + "@" + expires.Format(time.RFC3339), nil
		},
	}
	o.commands(&cc)
	writes, err := commandhttp.New(cc)
	must(t, err)
	access, err := accesshttp.New(accesshttp.Config{Commands: m.commands, People: people, URL: "https://manager.example"})
	must(t, err)
	registry := prometheus.NewRegistry()
	hc := httpapi.Config{
		Auth: credentials{people, m.rights}, Register: []httpapi.Register{writes.Register, queries.Register, access.Register},
		Checks: []httpapi.Check{queries.Check(1000), queries.LogCheck()}, Gatherer: registry, Registerer: registry, Log: logger,
	}
	if o.people {
		hc.Auth, hc.Denied, m.rights = access, access.Denied, nil
		m.token = m.person("root", auth.Grant{Role: auth.RoleAdmin}).token
	}
	o.httpapi(&hc)
	m.handler, err = httpapi.New(hc)
	must(t, err)
	web := httptest.NewUnstartedServer(m.handler)
	web.EnableHTTP2 = true
	web.Config.ErrorLog = log.New(io.Discard, "", 0)
	web.StartTLS()
	t.Cleanup(web.Close)
	m.url, m.client = web.URL, web.Client()
	m.client.Timeout = patience
	return m
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newToken makes a token of another user.
func (m *manager) newToken(user string) string {
	m.t.Helper()
	_, token := auth.NewAPIToken()
	must(m.t, m.people.AddToken(m.t.Context(), events.UserID(user), "", token, time.Now().Add(time.Hour)))
	return token
}

// grant gives a user rights, and returns a token of theirs.
func (m *manager) grant(user string, grants ...auth.Grant) string {
	m.t.Helper()
	if m.rights == nil {
		return m.person(user, grants...).token
	}
	m.rights.Store(user, auth.RightsOf(grants...))
	return m.newToken(user)
}

// as is the manager with another caller.
func (m *manager) as(token string) *manager {
	c := *m
	c.token = token
	return &c
}

// selects is a grant of a role for the devices that a selector picks.
func selects(role auth.Role, selector string) auth.Grant {
	sel, err := labels.Parse(selector)
	if err != nil {
		panic(err)
	}
	return auth.Grant{Role: role, Selector: sel}
}

// answer is an HTTP answer with its body read.
type answer struct {
	*http.Response
	body []byte
}

func (a answer) problem(t testing.TB) httpapi.Problem {
	t.Helper()
	if got := a.Header.Get("Content-Type"); got != "application/problem+json" {
		t.Errorf("Content-Type is %q, want application/problem+json; body %s", got, a.body)
	}
	var p httpapi.Problem
	must(t, json.Unmarshal(a.body, &p))
	return p
}

func (a answer) position(t testing.TB) string {
	t.Helper()
	p := a.Header.Get(httpapi.HeaderPosition)
	if _, err := strconv.ParseUint(p, 10, 64); err != nil {
		t.Errorf("Pallas-Position is %q", p)
	}
	return p
}

// do sends a request; headers are name, value pairs. Without an Authorization
// among them the admin's token goes along.
func (m *manager) do(method, path, body string, headers ...string) answer {
	m.t.Helper()
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(m.t.Context(), method, m.url+path, r)
	must(m.t, err)
	req.Header.Set("Authorization", "Bearer "+m.token)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Authorization" && headers[i+1] == "" {
			req.Header.Del(headers[i])
		} else {
			req.Header.Set(headers[i], headers[i+1])
		}
	}
	return m.send(req)
}

func (m *manager) send(req *http.Request) answer {
	m.t.Helper()
	resp, err := m.client.Do(req)
	must(m.t, err)
	b, err := io.ReadAll(resp.Body)
	must(m.t, err)
	must(m.t, resp.Body.Close())
	documented(m.t, req, resp)
	return answer{resp, b}
}

var description = spec()

// documented demands that the description of the API has the status of an
// answer, when it has the operation.
func documented(t testing.TB, req *http.Request, resp *http.Response) {
	t.Helper()
	mux := http.NewServeMux()
	for path, item := range description.Paths {
		for method, op := range map[string]*huma.Operation{"GET": item.Get, "POST": item.Post, "PATCH": item.Patch, "DELETE": item.Delete} {
			if op == nil {
				continue
			}
			mux.HandleFunc(method+" "+path, func(http.ResponseWriter, *http.Request) {
				if op.Responses[strconv.Itoa(resp.StatusCode)] == nil {
					t.Errorf("%s answers %d, which its description does not have", op.OperationID, resp.StatusCode)
				}
			})
		}
	}
	mux.ServeHTTP(httptest.NewRecorder(), req)
}

// want sends a request that must answer the status, and decodes the answer.
func want[T any](m *manager, status int, method, path, body string, headers ...string) (T, answer) {
	m.t.Helper()
	a := m.do(method, path, body, headers...)
	if a.StatusCode != status {
		m.t.Fatalf("%s %s: status %d, want %d: %s", method, path, a.StatusCode, status, a.body)
	}
	var v T
	if len(a.body) > 0 {
		must(m.t, json.Unmarshal(a.body, &v))
	}
	return v, a
}

func (m *manager) last() uint64 {
	m.t.Helper()
	n, err := m.store.Last(m.t.Context())
	must(m.t, err)
	return n
}

// caughtUp waits until the read model has the whole log.
func (m *manager) caughtUp() {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), patience)
	defer cancel()
	must(m.t, m.db.Wait(ctx, m.last()))
}

func (m *manager) command(c commands.Command) commands.Result {
	m.t.Helper()
	r, err := m.commands.Do(m.t.Context(), c, commands.Meta{Actor: "system:test"})
	must(m.t, err)
	return r
}

type given struct {
	name     string
	labels   map[string]string
	retired  bool
	readOnly bool
	vms      []events.VM
}

// device makes a device that has reported its host and machines.
func (m *manager) device(g given) events.DeviceID {
	m.t.Helper()
	id := events.DeviceID(uuid.NewString())
	key := strings.Repeat("ab", 32)
	now := time.Now().UTC().Truncate(time.Second)
	m.command(commands.RegisterDevice{
		Device: id, Name: g.name, Token: events.TokenID(events.NewID()), AutoApprove: true, Labels: g.labels, KeyHash: key, AgentVersion: "1.0.0",
		Certificate: events.CertificateIssued{Serial: strings.ReplaceAll(string(id), "-", ""), KeyHash: key, NotBefore: now, NotAfter: now.Add(90 * 24 * time.Hour)},
	})
	m.command(commands.ConnectDevice{Device: id, Address: "203.0.113.7", AgentVersion: "1.0.0", Protocol: 1})
	report := commands.ReportInventory{Device: id, Epoch: 1}
	add := func(e events.Event) {
		report.Facts = append(report.Facts, commands.InventoryFact{Seq: uint64(len(report.Facts) + 1), Time: now, Event: e})
	}
	add(events.HostObserved{Host: events.Host{
		Name: "esx-" + g.name, Product: "VMware ESXi", Version: "8.0.3", Build: "24022510", CPUSockets: 1, CPUCores: 8, CPUThreads: 16, CPUMHz: 2100, MemoryMiB: 65536,
		License:    events.License{Name: "vSphere 8 Standard", Writable: !g.readOnly, Reason: map[bool]string{true: "the host answered RestrictedVersion"}[g.readOnly]},
		Datastores: []events.Datastore{{ID: "ds1", Name: "datastore1", Type: "VMFS", CapacityMiB: 1000, FreeMiB: 500, Accessible: true}},
		Networks:   []events.Network{{ID: "n1", Name: "VM Network"}},
	}})
	for _, vm := range g.vms {
		add(events.VMObserved{VM: vm})
	}
	m.command(report)
	if g.retired {
		m.command(commands.RetireDevice{Device: id, Reason: "broken"})
	}
	return id
}

// pending makes a device that waits for approval.
func (m *manager) pending(name string) events.DeviceID {
	m.t.Helper()
	id := events.DeviceID(uuid.NewString())
	key := strings.Repeat("cd", 32)
	now := time.Now().UTC().Truncate(time.Second)
	m.command(commands.RegisterDevice{
		Device: id, Name: name, Token: events.TokenID(events.NewID()), KeyHash: key, AgentVersion: "1.0.0",
		Certificate: events.CertificateIssued{Serial: strings.ReplaceAll(string(id), "-", ""), KeyHash: key, NotBefore: now, NotAfter: now.Add(time.Hour)},
	})
	return id
}

func machine(id, name string, power events.PowerState, tools events.ToolsState) events.VM {
	return events.VM{
		ID: events.VMID(id), Name: name, Power: power, CPUs: 2, MemoryMiB: 4096, GuestID: "debian12_64Guest", Tools: tools,
		IPs:   []string{"192.0.2.10"},
		Disks: []events.Disk{{Key: 2000, Label: "Hard disk 1", CapacityMiB: 1024}}, NICs: []events.NIC{{Key: 4000, Label: "Network adapter 1", Connected: true}},
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not happen within %s", what, patience)
		}
	}
}
