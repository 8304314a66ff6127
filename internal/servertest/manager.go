package servertest

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"pallas/internal/client"
	"pallas/internal/config"
	"pallas/internal/server"
)

// serveEnv, when set, makes the test binary a device manager: its value is the
// path of the configuration, as JSON.
const serveEnv = "PALLAS_SERVERTEST_SERVE"

// Main is for TestMain of a package that uses [Manager.Kill]: it runs the
// tests, or a device manager if this is a child process.
func Main(m *testing.M) int {
	path := os.Getenv(serveEnv)
	if path == "" {
		return m.Run()
	}
	if err := serve(path); err != nil {
		fmt.Fprintln(os.Stderr, "serve:", err)
		return 1
	}
	return 0
}

func serve(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var cfg server.Config
	if err := json.Unmarshal(b, &cfg); err != nil {
		return err
	}
	log, err := server.NewLogger(cfg.Log, os.Stderr)
	if err != nil {
		return err
	}
	s, err := server.New(cfg, log)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	// The parent holds standard input open; its end is the order to stop.
	go func() { _, _ = io.Copy(io.Discard, os.Stdin); cancel() }()
	go func() { <-s.Ready(); fmt.Println("ready") }()
	return s.Run(ctx)
}

// Manager is a device manager on a data directory of its own and on ports that
// it keeps over restarts.
type Manager struct {
	Config server.Config
	// Token is the administrator's, Link the one-time link with which the
	// administrator sets a password.
	Token, Link string
	// API talks to it as the administrator.
	API *client.ClientWithResponses
	// Clock is what Run gives the manager instead of the system's clock; nil
	// means nothing.
	Clock func() time.Time

	t testing.TB

	// In this process.
	cancel context.CancelFunc
	done   chan error
	srv    *server.Server

	// As a process.
	cmd   *exec.Cmd
	stdin io.Closer
	log   *os.File
}

// New makes a manager that does not run yet. change may alter the
// configuration before its directory is made.
func New(t testing.TB, change ...func(*server.Config)) *Manager {
	t.Helper()
	m := &Manager{t: t, Config: server.Defaults()}
	m.Config.DataDir = filepath.Join(t.TempDir(), "manager")
	m.Config.HTTP.Listen, m.Config.MQTT.Listen = freeAddr(t), freeAddr(t)
	m.Config.Devices.Grace = config.Duration(5 * time.Second)
	m.Config.Events.Sync = config.Duration(100 * time.Millisecond)
	m.Config.Log.Level = "warn"
	m.Config.HTTP.Rate = 0 // a test asks as often as it likes
	for _, f := range change {
		f(&m.Config)
	}
	first, err := server.Init(t.Context(), m.Config, slog.New(slog.DiscardHandler), server.FirstAdmin{Token: true})
	if err != nil {
		t.Fatalf("initialise the manager: %v", err)
	}
	m.Token, m.Link = first.Token, first.Link
	if m.API, err = client.Connect("https://"+m.Config.HTTP.Listen, server.CAFile(m.Config), m.Token); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Stop)
	return m
}

// Start is New and Run.
func Start(t testing.TB, change ...func(*server.Config)) *Manager {
	t.Helper()
	m := New(t, change...)
	m.Run()
	return m
}

// Run runs the manager in this process until Stop or the end of the test.
func (m *Manager) Run() {
	m.t.Helper()
	log, err := server.NewLogger(m.Config.Log, testWriter{m.t})
	if err != nil {
		m.t.Fatal(err)
	}
	var options []server.Option
	if m.Clock != nil {
		options = append(options, server.WithClock(m.Clock))
	}
	s, err := server.New(m.Config, log, options...)
	if err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	select {
	case <-s.Ready():
	case err := <-done:
		cancel()
		m.t.Fatalf("run the manager: %v", err)
	}
	m.cancel, m.done, m.srv = cancel, done, s
}

// Spawn runs the manager as a process of its own and returns when it is ready.
func (m *Manager) Spawn() {
	m.t.Helper()
	b, err := json.Marshal(m.Config)
	if err != nil {
		m.t.Fatal(err)
	}
	path := m.Config.DataDir + ".json"
	if err := os.WriteFile(path, b, 0o600); err != nil {
		m.t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		m.t.Fatal(err)
	}
	if m.log == nil {
		if m.log, err = os.Create(m.Config.DataDir + ".log"); err != nil {
			m.t.Fatal(err)
		}
	}
	cmd := exec.Command(exe) // Stop and Kill end it
	cmd.Env = append(os.Environ(), serveEnv+"="+path)
	cmd.Stderr = m.log
	stdin, err := cmd.StdinPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.cmd, m.stdin = cmd, stdin
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "ready\n" {
		_ = cmd.Wait()
		m.cmd = nil
		m.t.Fatalf("the manager did not come up: %q, %v\n%s", line, err, m.Log())
	}
}

// Log returns what a spawned manager has logged so far.
func (m *Manager) Log() string {
	b, err := os.ReadFile(m.Config.DataDir + ".log")
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Pid is the process id of a spawned manager.
func (m *Manager) Pid() int { return m.cmd.Process.Pid }

// Kill ends a spawned manager with SIGKILL and waits until it is gone.
func (m *Manager) Kill() {
	m.t.Helper()
	if err := m.cmd.Process.Kill(); err != nil {
		m.t.Fatal(err)
	}
	_ = m.cmd.Wait() // killed, so never nil
	_ = m.stdin.Close()
	m.cmd = nil
}

// Stop ends the manager as an operator does. A manager that does not run is
// left alone; one that ends with an error fails the test.
func (m *Manager) Stop() {
	m.t.Helper()
	if m.cancel != nil {
		m.cancel()
		if err := <-m.done; err != nil {
			m.t.Errorf("the manager ended: %v", err)
		}
		m.cancel = nil
	}
	if m.cmd != nil {
		_ = m.stdin.Close()
		if err := m.cmd.Wait(); err != nil {
			m.t.Errorf("the manager ended: %v\n%s", err, m.Log())
		}
		m.cmd = nil
	}
	if m.log != nil {
		_ = m.log.Close()
		m.log = nil
	}
}

// Join issues a join string that approves devices at once.
func (m *Manager) Join(uses int) string {
	m.t.Helper()
	return m.JoinWith(client.CreateJoinTokenJSONRequestBody{MaxUses: new(int64(uses)), Approve: new(client.CreateJoinTokenApproveAuto)})
}

// TLS trusts the manager's CA.
func (m *Manager) TLS() *tls.Config {
	m.t.Helper()
	cfg, err := client.TLS(server.CAFile(m.Config))
	if err != nil {
		m.t.Fatal(err)
	}
	return cfg
}

// JoinWith issues a join string.
func (m *Manager) JoinWith(body client.CreateJoinTokenJSONRequestBody) string {
	m.t.Helper()
	r, err := m.API.CreateJoinTokenWithResponse(m.t.Context(), nil, body)
	if err != nil || r.JSON201 == nil {
		m.t.Fatalf("create a join token: %v, %v", err, r)
	}
	return r.JSON201.Join
}

// Eventually polls until f returns nil, and fails the test with its last error
// when that takes longer than limit.
func Eventually(t testing.TB, limit time.Duration, f func() error) {
	t.Helper()
	deadline, tick := time.After(limit), time.NewTicker(20*time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("not within %v: %v", limit, err)
		case <-tick.C:
		}
	}
}

// freeAddr returns a loopback address that nothing listened on a moment ago.
func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", b)
	return len(b), nil
}

// Proxy is a TCP link between devices and a manager that can be cut.
type Proxy struct {
	target string
	l      net.Listener

	mu    sync.Mutex
	conns map[net.Conn]struct{}
	down  bool
}

// NewProxy listens on loopback and forwards to target until the test ends.
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{target: target, l: l, conns: map[net.Conn]struct{}{}}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { p.forward(c) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		p.Cut()
		wg.Wait()
	})
	return p
}

// Addr is where the proxy listens.
func (p *Proxy) Addr() string { return p.l.Addr().String() }

// Dial sends every connection through the proxy, whatever its address.
func (p *Proxy) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if addr != p.target {
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
	return new(net.Dialer).DialContext(ctx, network, p.l.Addr().String())
}

// Cut breaks every connection and refuses new ones until Restore.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = true
	for c := range p.conns {
		if tc, ok := c.(*net.TCPConn); ok {
			_ = tc.SetLinger(0) // a reset, as of a link that is gone
		}
		_ = c.Close()
	}
}

// Restore lets connections through again.
func (p *Proxy) Restore() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = false
}

func (p *Proxy) forward(a net.Conn) {
	defer a.Close()
	b, err := net.Dial("tcp", p.target)
	if err != nil {
		return
	}
	defer b.Close()
	p.mu.Lock()
	if p.down {
		p.mu.Unlock()
		return
	}
	p.conns[a], p.conns[b] = struct{}{}, struct{}{}
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.conns, a)
		delete(p.conns, b)
		p.mu.Unlock()
	}()
	done := make(chan struct{})
	go func() { _, _ = io.Copy(a, b); _ = a.Close(); close(done) }()
	_, _ = io.Copy(b, a)
	_ = b.Close()
	<-done
}

// ErrNotYet is for Eventually.
var ErrNotYet = errors.New("not yet")
