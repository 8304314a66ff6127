package agent_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"pallas/agent"
	"pallas/agent/hypervisor"
	"pallas/agent/hypervisor/fake"
	"pallas/mqttgw/pki"
	"pallas/mqttgw/wire"
)

// manager is a device manager for one device, played by the test: a real
// nats-server with its MQTT listener behind mutual TLS, a real HTTPS door for
// enrolment, and the protocol by hand, against the naive model of package wire.
type manager struct {
	t      *testing.T
	ca     *pki.CA
	conn   *nats.Conn
	mqtt   string
	token  string
	https  *httptest.Server
	enrols []wire.EnrollRequest

	mu sync.Mutex
	// What it does.
	lossy     bool                           // drop some packets of either direction
	mute      bool                           // send no receipts
	pending   bool                           // not approved
	answer    func(http.ResponseWriter) bool // of the enrolment, instead of a certificate
	keepAlive int
	// What it knows.
	device  string
	epoch   uint64
	next    uint64
	hellos  []wire.Hello
	byes    int
	reports []wire.Report // in order, each once
	epochs  []uint64      // of reports
	lost    int           // packets it dropped
	host    wire.Host
	vms     map[string]wire.VM
	resync  bool // asked and not answered
	news    chan struct{}
}

func newManager(t *testing.T) *manager {
	t.Helper()
	ca, err := pki.Create(filepath.Join(t.TempDir(), "ca"), time.Now(), "Test CA")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.IssueServer([]string{"127.0.0.1"}, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca.Certificate())
	opts := &server.Options{
		ServerName: "test", DontListen: true, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true,
		MQTT: server.MQTTOpts{
			Host: "127.0.0.1", Port: -1,
			TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13},
		},
	}
	srv, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	if !srv.ReadyForConnections(10 * time.Second) {
		t.Fatal("nats-server does not start")
	}
	conn, err := nats.Connect("", nats.InProcessServer(srv))
	if err != nil {
		t.Fatal(err)
	}
	m := &manager{token: token, t: t, ca: ca, conn: conn, news: make(chan struct{}, 1), vms: map[string]wire.VM{}, next: 1}
	m.mqtt = net.JoinHostPort("127.0.0.1", fmt.Sprint(opts.MQTT.Port))
	if _, err := conn.Subscribe(wire.UpSubjects, m.up); err != nil {
		t.Fatal(err)
	}
	m.https = httptest.NewUnstartedServer(http.HandlerFunc(m.enrol))
	m.https.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}
	m.https.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	m.https.StartTLS()
	t.Cleanup(func() {
		m.https.Close()
		conn.Close()
		srv.Shutdown()
		srv.WaitForShutdown()
	})
	return m
}

const token = "tok.secret-of-the-join-token"

func (m *manager) join() string {
	return wire.Join{URL: m.https.URL, CA: m.ca.Fingerprint(), Token: m.token, Expires: time.Now().Add(time.Hour)}.String()
}

func (m *manager) enrol(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var req wire.EnrollRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil || r.URL.Path != wire.EnrollPath || r.Method != http.MethodPost {
		m.t.Errorf("%s %s: %v", r.Method, r.URL, err)
	}
	m.enrols = append(m.enrols, req)
	if m.answer != nil && m.answer(w) {
		return
	}
	csr, err := pki.ParseCSR([]byte(req.CSR))
	if err != nil || req.Token != m.token {
		m.t.Errorf("request %+v: %v", req, err)
		return
	}
	cert, _, err := m.ca.IssueDevice(csr, req.Device, time.Now(), time.Hour)
	if err != nil {
		m.t.Errorf("issue: %v", err)
		return
	}
	w.WriteHeader(http.StatusCreated)
	if err := json.NewEncoder(w).Encode(wire.EnrollResponse{
		Device: req.Device, Certificate: string(cert), CA: string(m.ca.CertificatePEM()), MQTT: m.mqtt, Approved: true, Time: time.Now(),
	}); err != nil {
		m.t.Error(err)
	}
}

// up takes what a device published.
func (m *manager) up(msg *nats.Msg) {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer func() {
		select {
		case m.news <- struct{}{}:
		default:
		}
	}()
	m.device = wire.DeviceOfSubject(msg.Subject)
	u, err := wire.DecodeUp(msg.Data)
	if err != nil {
		m.t.Errorf("packet from the device: %v", err)
		return
	}
	if m.lossy && u.Hello == nil && rand.IntN(4) == 0 {
		m.lost++
		return
	}
	if u.Bye != nil {
		m.byes++
	}
	if u.Hello != nil {
		m.hellos = append(m.hellos, *u.Hello)
		if u.Hello.Epoch != m.epoch {
			m.epoch, m.next = u.Hello.Epoch, u.Hello.First
		}
		m.welcome()
		if !m.pending && m.next == u.Hello.Next && len(u.Hello.Inventory) > 0 && !bytes.Equal(u.Hello.Inventory, m.hash()) {
			m.resync = true
			m.down(wire.Down{Resync: true})
		}
	}
	if len(u.Reports) == 0 {
		return
	}
	if m.pending {
		m.t.Error("a device that waits for approval reports")
	}
	if u.Epoch != m.epoch {
		m.down(wire.Down{Greet: true})
		return
	}
	for _, r := range u.Reports {
		switch {
		case r.Seq < m.next: // a repeat
		case r.Seq > m.next:
			m.down(wire.Down{Resend: &wire.Resend{Epoch: m.epoch, Seq: m.next}})
			return
		default:
			m.next++
			m.reports, m.epochs = append(m.reports, r), append(m.epochs, u.Epoch)
			m.apply(r)
		}
	}
	if !m.mute {
		m.down(wire.Down{Receipt: &wire.Receipt{Epoch: m.epoch, Seq: m.next - 1}})
	}
}

// welcome answers a Hello; the caller holds mu.
func (m *manager) welcome() {
	m.down(wire.Down{Welcome: &wire.Welcome{
		Time: time.Now(), Next: m.next, Pending: m.pending,
		Settings: wire.Settings{Window: 16, KeepAlive: max(m.keepAlive, 60), Reconcile: 600, Resend: 100},
	}})
}

func (m *manager) apply(r wire.Report) {
	switch {
	case r.Host != nil:
		m.host = *r.Host
	case r.VM != nil:
		m.vms[r.VM.ID] = *r.VM
	case r.VMPatch != nil:
		vm, ok := m.vms[r.VMPatch.ID]
		if !ok {
			m.t.Errorf("report %d patches an unknown machine", r.Seq)
		}
		m.vms[vm.ID] = r.VMPatch.Apply(vm)
	case r.VMGone != nil:
		delete(m.vms, r.VMGone.ID)
	case r.Inventory != nil:
		for id := range m.vms {
			if !slices.Contains(r.Inventory.VMs, id) {
				delete(m.vms, id)
			}
		}
		if !bytes.Equal(r.Inventory.Hash, m.hash()) {
			m.t.Errorf("report %d: the hash of the complete inventory does not fit", r.Seq)
		}
		m.resync = false
	}
}

func (m *manager) hash() []byte {
	var vms []wire.VM
	for _, vm := range m.vms {
		vms = append(vms, vm)
	}
	return wire.HashInventory(m.host, vms)
}

// down sends to the device; the caller holds mu.
func (m *manager) down(d wire.Down) {
	if m.lossy && d.Welcome == nil && rand.IntN(4) == 0 {
		m.lost++
		return
	}
	d.Version = wire.Version
	b, err := wire.EncodeDown(d)
	if err != nil {
		m.t.Errorf("encode: %v", err)
		return
	}
	if err := m.conn.Publish(wire.Subject(wire.DownTopic(m.device)), b); err != nil {
		m.t.Errorf("publish: %v", err)
	}
}

func (m *manager) set(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

// until waits until ok, which is called after each packet from the device and
// at least ten times a second.
func (m *manager) until(what string, ok func() bool) {
	m.t.Helper()
	late := time.After(30 * time.Second)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		m.mu.Lock()
		done := ok()
		m.mu.Unlock()
		if done {
			return
		}
		select {
		case <-m.news:
		case <-tick.C:
		case <-late:
			m.mu.Lock()
			defer m.mu.Unlock()
			m.t.Fatalf("not within 30 s: %s; %d hellos, next report %d, reports:\n%s", what, len(m.hellos), m.next, m.story())
		}
	}
}

// story is what was reported, a line each, without the details.
func (m *manager) story() string {
	var out []string
	for _, r := range m.reports {
		switch {
		case r.Host != nil:
			out = append(out, "host")
		case r.Condition != nil:
			out = append(out, "condition "+r.Condition.Condition)
		case r.VM != nil:
			out = append(out, "vm "+r.VM.ID)
		case r.VMPatch != nil && r.VMPatch.Power != nil:
			out = append(out, "patch "+r.VMPatch.ID+" "+*r.VMPatch.Power)
		case r.VMPatch != nil:
			out = append(out, "patch "+r.VMPatch.ID)
		case r.VMGone != nil:
			out = append(out, "gone "+r.VMGone.ID)
		case r.Inventory != nil:
			out = append(out, "inventory")
		case r.Task != nil:
			out = append(out, strings.TrimSpace("task "+r.Task.State+" "+r.Task.Code))
		}
	}
	return strings.Join(out, "\n")
}

// knows says whether what was reported is what the host has; the caller holds mu.
func (m *manager) knows(h *fake.Host) bool {
	snap, err := h.Observe(context.Background())
	return err == nil && bytes.Equal(m.hash(), wire.HashInventory(snap.Host, snap.VMs))
}

func (m *manager) push(task wire.Task) {
	m.set(func() { m.down(wire.Down{Tasks: []wire.Task{task}}) })
}

func task(kind, vm string) wire.Task {
	return wire.Task{ID: uuid.New(), Kind: kind, VM: vm, Deadline: time.Now().Add(time.Hour)}
}

// ends returns how often the task's end was reported, and the last of them; the
// caller holds mu.
func (m *manager) ends(id uuid.UUID) (n int, last wire.TaskState) {
	for _, r := range m.reports {
		if r.Task != nil && r.Task.ID == id && r.Task.State != wire.StateAccepted && r.Task.State != wire.StateProgress {
			n, last = n+1, *r.Task
		}
	}
	return n, last
}

// running is an agent that runs.
type running struct {
	*agent.Agent
	t    *testing.T
	dir  string
	stop func() error // ends Run and returns what it returned
	// ended waits until Run returns of itself, and returns what it returned.
	ended func() error
	done  chan error
	log   *syncBuffer
	wire  *cable
}

// start runs an agent in dir for the manager.
func start(t *testing.T, m *manager, dir string, h hypervisor.Driver, change ...func(*agent.Config)) *running {
	t.Helper()
	r := &running{t: t, dir: dir, done: make(chan error, 1), log: &syncBuffer{}, wire: &cable{}}
	c := agent.Config{
		Dir: dir, Join: m.join(), Driver: h, Version: "1.2.3", Log: slog.New(slog.NewTextHandler(r.log, nil)), DialContext: r.wire.dial,
		BackoffBase: 10 * time.Millisecond, BackoffCap: 100 * time.Millisecond, Debounce: 5 * time.Millisecond, Settle: 10 * time.Millisecond,
		FindID: 50 * time.Millisecond,
	}
	for _, f := range change {
		f(&c)
	}
	a, err := agent.New(c)
	if err != nil {
		t.Fatal(err)
	}
	r.Agent = a
	ctx, cancel := context.WithCancel(context.Background())
	go func() { r.done <- a.Run(ctx) }()
	r.stop = sync.OnceValue(func() error { cancel(); return <-r.done })
	r.ended = sync.OnceValue(func() error {
		select {
		case err := <-r.done:
			r.done <- nil
			return err
		case <-time.After(30 * time.Second):
			t.Error("run goes on")
			return nil
		}
	})
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Errorf("run: %v", err)
		}
		if t.Failed() {
			t.Logf("agent's log:\n%s", r.log)
		}
	})
	return r
}

// cable makes connections that can be cut.
type cable struct {
	mu    sync.Mutex
	conns []net.Conn
}

func (c *cable) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	if err == nil {
		c.mu.Lock()
		c.conns = append(c.conns, conn)
		c.mu.Unlock()
	}
	return conn, err
}

// cut resets every connection.
func (c *cable) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		_ = conn.(*net.TCPConn).SetLinger(0)
		_ = conn.Close()
	}
	c.conns = nil
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
