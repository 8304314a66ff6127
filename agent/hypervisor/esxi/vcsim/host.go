package vcsim

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/vmware/govmomi/session"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// Defaults of [Config].
const (
	DefaultUsername = "root"
	DefaultPassword = "VMware1!"
)

// Config describes one host.
type Config struct {
	// Name is the host's DNS name, such as "esx-fra-01.example.net". Required;
	// it identifies the host.
	Name string
	// VMs are the virtual machines; nil means Count plausible ones.
	VMs   []VMSpec
	Count int
	// Username and Password of the one account, DefaultUsername and
	// DefaultPassword if empty.
	Username, Password string
	// Listen is the address, "127.0.0.1:0" if empty.
	Listen string
	// Seed picks hardware and virtual machines; 0 derives them from the name.
	Seed uint64
	// ReadOnly gives the host a free licence: its API refuses each write with
	// RestrictedVersion.
	ReadOnly bool
	// Dir keeps what is on the datastores, so that a restarted host still has
	// the files. Empty means a temporary folder that Close removes.
	Dir string
}

// Host is one simulated host. Its methods are safe for concurrent use.
type Host struct {
	cfg   Config
	model *simulator.Model
	mux   http.Handler
	cert  tls.Certificate
	vim   *vim25.Client // the session behind the manager's back
	temp  string        // removed by Close

	addr     string
	listener net.Listener
	server   *http.Server
	done     chan struct{} // closed by Close
	wg       sync.WaitGroup

	mu          sync.Mutex
	closed      bool
	password    string
	secret      string // password of the host's own session
	sessions    map[string]bool
	unreachable bool
	readOnly    bool
	conns       map[net.Conn]struct{}
	faults      []*injected
	delays      map[string]time.Duration
	denied      map[string]bool
	calls       map[string]func()
	noShutdown  bool
	clock       time.Duration
	changed     chan struct{} // closed and replaced at each change
	guests      map[types.ManagedObjectReference]VMSpec
}

// start serialises the making of models: the simulator's constructors write
// package variables.
var start sync.Mutex

// Start runs a host until Close.
func Start(cfg Config) (*Host, error) {
	if cfg.Name == "" {
		return nil, errors.New("vcsim: name: required")
	}
	if cfg.Username == "" {
		cfg.Username = DefaultUsername
	}
	if cfg.Password == "" {
		cfg.Password = DefaultPassword
	}
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	if cfg.Seed == 0 {
		cfg.Seed = number(cfg.Name, "seed")
	}
	if cfg.VMs == nil {
		cfg.VMs = plausibleVMs(cfg)
	}
	h := &Host{
		cfg: cfg, password: cfg.Password, readOnly: cfg.ReadOnly, secret: rand.Text(),
		done: make(chan struct{}), changed: make(chan struct{}),
		sessions: map[string]bool{}, conns: map[net.Conn]struct{}{},
		delays: map[string]time.Duration{}, denied: map[string]bool{},
		calls:  map[string]func(){},
		guests: map[types.ManagedObjectReference]VMSpec{},
	}
	if err := h.start(); err != nil {
		h.Close()
		return nil, fmt.Errorf("start simulated host %s: %w", cfg.Name, err)
	}
	return h, nil
}

func (h *Host) start() error {
	if h.cfg.Dir == "" {
		dir, err := os.MkdirTemp("", "pallas-vcsim-")
		if err != nil {
			return err
		}
		h.temp, h.cfg.Dir = dir, dir
	}
	var err error
	if h.cert, err = certificate(h.cfg.Name); err != nil {
		return err
	}
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", h.cfg.Listen)
	if err != nil {
		return err
	}
	h.listener, h.addr = l, l.Addr().String()

	if err := h.build(); err != nil {
		return err
	}
	h.server = &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          log.New(io.Discard, "", 0), // refused handshakes are what tests do
	}
	h.wg.Go(func() {
		tl := tls.NewListener(&gate{Listener: l, h: h}, &tls.Config{
			Certificates: []tls.Certificate{h.cert}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"},
		})
		_ = h.server.Serve(tl) // ends with Close
	})
	return nil
}

// connect opens the session behind the manager's back. It needs the SOAP
// service, not the listener.
func (h *Host) connect(ctx context.Context) error {
	u := &url.URL{Scheme: "https", Host: h.addr, Path: "/sdk"}
	sc := soap.NewClient(u, false)
	sc.Transport = inside{h}
	var err error
	if h.vim, err = vim25.NewClient(ctx, sc); err != nil {
		return err
	}
	return session.NewManager(h.vim).Login(ctx, url.UserPassword(insideUser, h.secret))
}

// Close stops the host and waits for what it runs.
func (h *Host) Close() {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return
	}
	h.closed = true
	close(h.done)
	h.mu.Unlock()
	if h.listener != nil {
		_ = h.listener.Close()
	}
	if h.server != nil {
		_ = h.server.Close()
	}
	h.wg.Wait()
	if h.model != nil {
		h.model.Remove()
	}
	if h.temp != "" {
		_ = os.RemoveAll(h.temp)
	}
}

// Name returns the host's name.
func (h *Host) Name() string { return h.cfg.Name }

// Addr returns host:port of the listener.
func (h *Host) Addr() string { return h.addr }

// URL returns the address of the SOAP service, without credentials.
func (h *Host) URL() string { return "https://" + h.addr + "/sdk" }

// Username and Password are what the host accepts at present.
func (h *Host) Username() string { return h.cfg.Username }

// Password returns the password that the host accepts at present.
func (h *Host) Password() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.password
}

// ChangePassword changes the account's password. Sessions stay.
func (h *Host) ChangePassword(password string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.password = password
}

// SetUnreachable makes the host reset each connection, present and new, until
// it is called with false. The port stays taken, so that the host is found
// again where it was.
func (h *Host) SetUnreachable(unreachable bool) {
	h.mu.Lock()
	h.unreachable = unreachable
	var conns []net.Conn
	if unreachable {
		for c := range h.conns {
			conns = append(conns, c)
		}
	}
	h.mu.Unlock()
	for _, c := range conns {
		reset(c)
	}
}

// DropSessions ends every session but the host's own, as a restart of the
// management agents does. The next call of a client gets NotAuthenticated.
func (h *Host) DropSessions() {
	h.mu.Lock()
	keys := make([]string, 0, len(h.sessions))
	for k := range h.sessions {
		keys = append(keys, k)
	}
	clear(h.sessions)
	h.mu.Unlock()
	for _, k := range keys {
		h.logout(k)
	}
	h.notify()
}

// Sessions returns how many client sessions are open.
func (h *Host) Sessions() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.sessions)
}

// SetClock sets how far the host's clock is ahead.
func (h *Host) SetClock(ahead time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock = ahead
}

// SetDelay makes each call of a SOAP method wait before it is answered; method
// "*" means all. 0 ends it.
func (h *Host) SetDelay(method string, d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.delays[method] = d
}

// SetReadOnly gives the host a free licence or a paid one, as Config.ReadOnly.
func (h *Host) SetReadOnly(readOnly bool) {
	h.mu.Lock()
	h.readOnly = readOnly
	h.mu.Unlock()
	h.update(*h.model.ServiceContent.LicenseManager, types.PropertyChange{
		Name: "licenses", Val: []types.LicenseManagerLicenseInfo{h.license()},
	})
}

func (h *Host) isReadOnly() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.readOnly
}

func (h *Host) hardware() hardware { return catalogue[h.cfg.Seed%uint64(len(catalogue))] }

// OnCall calls f when a client calls a SOAP method, before anything else
// happens. nil ends it.
func (h *Host) OnCall(method string, f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls[method] = f
}

// IgnoreShutdown makes guests accept the wish to shut down and go on.
func (h *Host) IgnoreShutdown(ignore bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.noShutdown = ignore
}

// Deny takes privileges from the account, such as
// "VirtualMachine.Interact.PowerOn".
func (h *Host) Deny(privileges ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range privileges {
		h.denied[p] = true
	}
}

// gate is the listener: it keeps account of connections and resets them while
// the host is unreachable.
type gate struct {
	net.Listener
	h *Host
}

func (g *gate) Accept() (net.Conn, error) {
	for {
		c, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		g.h.mu.Lock()
		refuse := g.h.unreachable
		t := &tracked{Conn: c, h: g.h}
		if !refuse {
			g.h.conns[t] = struct{}{}
		}
		g.h.mu.Unlock()
		if !refuse {
			return t, nil
		}
		reset(t)
	}
}

type tracked struct {
	net.Conn
	h *Host
}

func (t *tracked) Close() error {
	t.h.mu.Lock()
	delete(t.h.conns, t)
	t.h.mu.Unlock()
	return t.Conn.Close()
}

// reset closes a connection so that the peer sees it broken, not ended.
func reset(c net.Conn) {
	if t, ok := c.(*tracked); ok {
		if tcp, ok := t.Conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
	}
	_ = c.Close()
}

// notify wakes calls that wait for changes.
func (h *Host) notify() {
	h.mu.Lock()
	defer h.mu.Unlock()
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *Host) changes() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.changed
}

func (h *Host) datastoreDir(name string) string { return filepath.Join(h.cfg.Dir, name) }
