package server_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
	"golang.org/x/sys/unix"

	"pallas/agent/identity"
	"pallas/agent/link"
	"pallas/agent/store"
	"pallas/internal/server"
	"pallas/internal/servertest"
	"pallas/mqttgw/pki"
	"pallas/mqttgw/wire"
)

// fleet is a manager in a process of its own, with the defaults of a
// configuration, and pallas-sim's devices for it.
type fleet struct {
	b       *testing.B
	m       *servertest.Manager
	devices int
	dir     string // the agents', in memory
	sim     string // the program
	join    string // files
	token   string
}

// newFleet builds pallas-sim and starts an empty manager.
func newFleet(b *testing.B, devices int, change ...func(*server.Config)) *fleet {
	b.Helper()
	// The manager holds a file for each device, and so does a client of the
	// benchmark.
	const beside = 300
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		b.Fatal(err)
	}
	if lim.Max < uint64(devices+beside) {
		b.Fatalf("%d devices take %d open files in one process, and this machine permits %d: raise the limit (ulimit -Hn), or ask for at most %d devices",
			devices, devices+beside, lim.Max, lim.Max-beside)
	}
	// A data folder on a disk would measure the disk.
	dir, err := os.MkdirTemp("/dev/shm", "pallas-fleet-") //nolint:usetesting // TempDir is on a disk
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			b.Error(err)
		}
	})
	f := &fleet{
		b: b, devices: devices, dir: filepath.Join(dir, "agents"), sim: filepath.Join(dir, "pallas-sim"),
		join: filepath.Join(dir, "join"), token: filepath.Join(dir, "token"),
	}
	if out, err := exec.Command("go", "build", "-o", f.sim, "pallas/cmd/pallas-sim").CombinedOutput(); err != nil {
		b.Fatalf("build pallas-sim: %v\n%s", err, out)
	}
	f.m = servertest.New(b, append([]func(*server.Config){func(c *server.Config) {
		d := server.Defaults()
		c.Devices, c.Events = d.Devices, d.Events
		c.HTTP.Rate = 0 // one administrator asks for all
	}}, change...)...)
	f.m.Spawn()
	for path, text := range map[string]string{f.join: f.m.Join(devices), f.token: f.m.Token} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	return f
}

// agents is a running pallas-sim.
type agents struct {
	b    *testing.B
	cmd  *exec.Cmd
	said bytes.Buffer // standard error; read when the process is gone

	mu     sync.Mutex
	state  simState
	tasks  map[string]int64 // id → when its host began it, CLOCK_MONOTONIC
	result *simResult
	news   chan struct{} // closed at the next change
	gone   chan struct{}
	err    error // of the exit
}

// simState and simResult are of what pallas-sim prints.
type simState struct {
	at        int64
	Phase     int    `json:"phase"`
	Started   int    `json:"started"`
	Connected int    `json:"connected"`
	Resent    uint64 `json:"resent"`
	Changes   int    `json:"changes"`
	Failed    int    `json:"failed"`
}

const simRunning = 2 // the phase in which all are connected

type simResult struct {
	ConnectSeconds float64 `json:"connect_seconds"`
	RunSeconds     float64 `json:"run_seconds"`
	Changes        int     `json:"changes"`
	Processes      int     `json:"processes"`
	Reports        struct {
		Made   uint64 `json:"made"`
		Resent uint64 `json:"resent"`
	} `json:"reports"`
	Receipt struct {
		P50 float64 `json:"p50_ms"`
		P99 float64 `json:"p99_ms"`
	} `json:"change_to_receipt"`
	End struct {
		AnonPerAgent uint64 `json:"rss_anon_per_agent"`
	} `json:"process_end"`
	Problems []string `json:"problems"`
}

// start runs the devices and returns when all are connected.
func (f *fleet) start(args ...string) *agents {
	f.b.Helper()
	a := &agents{b: f.b, tasks: map[string]int64{}, news: make(chan struct{}), gone: make(chan struct{})}
	a.cmd = exec.Command(f.sim, append([]string{
		"--devices", strconv.Itoa(f.devices), "--data", f.dir, "--join-file", f.join, "--metrics-token-file", f.token, "--stream", "--json",
		"--ramp", "500", "--duration", "0", "--connect-timeout", "15m", "--drain", "5m",
	}, args...)...)
	a.cmd.Stderr = &a.said
	out, err := a.cmd.StdoutPipe()
	if err != nil {
		f.b.Fatal(err)
	}
	if err := a.cmd.Start(); err != nil {
		f.b.Fatal(err)
	}
	// Wait returns when its child processes are gone too: they hold its
	// standard error.
	go a.read(out)
	f.b.Cleanup(func() { _ = a.cmd.Process.Kill(); <-a.gone })
	ready := a.await(20*time.Minute, func(s simState) bool { return s.Phase >= simRunning })
	if ready.Connected < f.devices {
		f.b.Fatalf("%d of %d devices are connected, %d ended", ready.Connected, f.devices, ready.Failed)
	}
	return a
}

func (a *agents) read(out io.Reader) {
	dec := json.NewDecoder(out)
	for {
		var l struct {
			At    int64     `json:"at"`
			State *simState `json:"state"`
			Task  *struct {
				ID string `json:"id"`
			} `json:"task"`
			Result *simResult `json:"result"`
		}
		err := dec.Decode(&l)
		a.mu.Lock()
		switch {
		case err != nil:
			a.err = a.cmd.Wait()
			if !errors.Is(err, io.EOF) {
				a.err = errors.Join(a.err, err)
			}
			close(a.gone)
			close(a.news)
			a.mu.Unlock()
			return
		case l.State != nil:
			a.state = *l.State
			a.state.at = l.At
		case l.Task != nil:
			a.tasks[l.Task.ID] = l.At
		case l.Result != nil:
			a.result = l.Result
		}
		close(a.news)
		a.news = make(chan struct{})
		a.mu.Unlock()
	}
}

// now returns the state, and what is closed when there is another.
func (a *agents) now() (simState, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.state, a.news
}

// await waits for a state.
func (a *agents) await(limit time.Duration, want func(simState) bool) simState {
	a.b.Helper()
	deadline := time.After(limit)
	for {
		s, news := a.now()
		if want(s) {
			return s
		}
		select {
		case <-a.gone:
			a.b.Fatalf("pallas-sim ended early: %v\n%s", a.err, &a.said)
		case <-deadline:
			a.b.Fatalf("not within %v; devices: %+v", limit, s)
		case <-news:
		}
	}
}

// stop ends the run and returns its result. Books that do not balance fail the
// benchmark.
func (a *agents) stop() simResult {
	a.b.Helper()
	if err := a.cmd.Process.Signal(os.Interrupt); err != nil {
		a.b.Fatal(err)
	}
	<-a.gone
	if a.result == nil {
		a.b.Fatalf("pallas-sim ended without a result: %v\n%s", a.err, &a.said)
	}
	for _, p := range a.result.Problems {
		a.b.Errorf("the books: %s", p)
	}
	return *a.result
}

// rest waits until the manager has nothing to do.
func (f *fleet) rest() {
	f.b.Helper()
	before := f.m.CPU()
	servertest.Eventually(f.b, 5*time.Minute, func() error {
		pause(f.b.Context(), time.Second)
		used := f.m.CPU() - before
		before += used
		if used > 150*time.Millisecond {
			return fmt.Errorf("the manager used %v in a second", used)
		}
		return nil
	})
}

// caller is what a bare client knows of a device.
type caller struct {
	tls    *tls.Config
	source net.TCPAddr
	opener []byte // CONNECT, SUBSCRIBE and the Hello of a device that has no news
	device string
	epoch  uint64 // of its outbox
	next   uint64 // the sequence of its next report
}

// callers reads the identities of the agents, which do not run.
func (f *fleet) callers(addr string) []caller {
	f.b.Helper()
	list := make([]caller, f.devices)
	for i := range list {
		c, err := newCaller(filepath.Join(f.dir, fmt.Sprintf("sim-%05d", i)), addr)
		if err != nil {
			f.b.Fatal(err)
		}
		c.source = net.TCPAddr{IP: net.IPv4(127, 1, byte(i/250), byte(i%250+1))}
		list[i] = c
	}
	return list
}

func newCaller(dir, addr string) (caller, error) {
	id, err := identity.Load(dir)
	if err != nil {
		return caller{}, err
	}
	cert, cas, err := id.Certificate()
	if err != nil {
		return caller{}, err
	}
	config, err := link.TLSConfig(addr, cert, cas, time.Now, false)
	if err != nil {
		return caller{}, err
	}
	config.ClientSessionCache = nil // each connects once
	st, err := store.Open(filepath.Join(dir, "agent.db"), store.Options{NoSync: true})
	if err != nil {
		return caller{}, err
	}
	sum, err := st.Summary()
	if err := errors.Join(err, st.Close()); err != nil {
		return caller{}, err
	}
	connect := packets.NewControlPacket(packets.Connect).(*packets.ConnectPacket)
	connect.ProtocolName, connect.ProtocolVersion, connect.CleanSession = "MQTT", 4, true
	connect.ClientIdentifier, connect.Keepalive = id.Device, 240
	sub := packets.NewControlPacket(packets.Subscribe).(*packets.SubscribePacket)
	sub.MessageID, sub.Topics, sub.Qoss = 1, []string{wire.DownTopic(id.Device)}, []byte{0}
	hello := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	hello.TopicName = wire.UpTopic(id.Device)
	if hello.Payload, err = wire.EncodeUp(wire.Up{Version: wire.Version, Hello: &wire.Hello{
		Agent: "bench", Epoch: sum.Epoch, First: sum.First, Next: sum.Next, Inventory: sum.Inventory, Time: time.Now().UTC(),
	}}); err != nil {
		return caller{}, err
	}
	var out bytes.Buffer
	err = errors.Join(connect.Write(&out), sub.Write(&out), hello.Write(&out))
	return caller{tls: config, opener: out.Bytes(), device: id.Device, epoch: sum.Epoch, next: sum.Next}, err
}

// welcomed speaks MQTT until the manager has welcomed the device.
func welcomed(c net.Conn, opener []byte) error {
	if _, err := c.Write(opener); err != nil {
		return err
	}
	r := bufio.NewReader(c)
	for {
		p, err := packets.ReadPacket(r)
		if err != nil {
			return err
		}
		switch p := p.(type) {
		case *packets.ConnackPacket:
			if p.ReturnCode != packets.Accepted {
				return &link.ConnectError{Code: p.ReturnCode}
			}
		case *packets.PublishPacket:
			if d, err := wire.DecodeDown(p.Payload); err != nil || d.Welcome != nil {
				return err
			}
		}
	}
}

// echoed sends a byte and waits for it: then the other side has accepted the
// certificate.
func echoed(c net.Conn, _ []byte) error {
	b := []byte{1}
	if _, err := c.Write(b); err != nil {
		return err
	}
	_, err := io.ReadFull(c, b)
	return err
}

// connect has all callers connect, 64 at a time, and returns how many did so a
// second. Connections stay until all are there.
func (f *fleet) connect(addr string, list []caller, greet func(c net.Conn, opener []byte) error) float64 {
	f.b.Helper()
	const concurrency = 64
	conns := make([]net.Conn, len(list))
	defer func() {
		for _, c := range conns {
			if c != nil {
				c.Close()
			}
		}
	}()
	var next, refused atomic.Int64
	errs := make(chan error, concurrency)
	began := time.Now()
	for range concurrency {
		go func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(list) {
					errs <- nil
					return
				}
				c, err := list[i].dial(addr, greet)
				// A busy manager refuses; devices try again and so does this.
				for attempt := 0; err != nil && attempt < 100; attempt++ {
					refused.Add(1)
					pause(f.b.Context(), 100*time.Millisecond)
					c, err = list[i].dial(addr, greet)
				}
				if err != nil {
					errs <- fmt.Errorf("connection %d of %d to %s: %w", i, len(list), addr, err)
					return
				}
				conns[i] = c
			}
		}()
	}
	for range concurrency {
		if err := <-errs; err != nil {
			f.b.Fatal(err)
		}
	}
	took := time.Since(began)
	if n := refused.Load(); n > 0 {
		f.b.Logf("%s refused %d attempts of %d connections", addr, n, len(list))
	}
	return float64(len(list)) / took.Seconds()
}

func (c *caller) dial(addr string, greet func(net.Conn, []byte) error) (net.Conn, error) {
	raw, err := (&net.Dialer{LocalAddr: &c.source, Timeout: 30 * time.Second}).Dial("tcp4", addr)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, c.tls)
	if err = conn.SetDeadline(time.Now().Add(time.Minute)); err == nil {
		err = greet(conn, c.opener)
	}
	if err != nil {
		raw.Close()
		return nil, err
	}
	return conn, nil
}

// bareEnv, when set, makes the test binary a server that does mutual TLS and
// nothing else; its value is the directory of the CA.
const bareEnv = "PALLAS_TEST_BARE"

// bare runs that server and returns its address.
func (f *fleet) bare() string {
	f.b.Helper()
	exe, err := os.Executable()
	if err != nil {
		f.b.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), bareEnv+"="+filepath.Dir(server.CAFile(f.m.Config)))
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		f.b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		f.b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		f.b.Fatal(err)
	}
	f.b.Cleanup(func() {
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			f.b.Errorf("the bare server ended: %v", err)
		}
	})
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		f.b.Fatalf("start the bare server: %v", err)
	}
	return strings.TrimSpace(addr)
}

// serveBare accepts connections with a certificate of the CA, and echoes.
func serveBare(dir string) error {
	ca, err := pki.Load(dir)
	if err != nil {
		return err
	}
	cert, err := ca.IssueServer([]string{"127.0.0.1"}, time.Now(), 0)
	if err != nil {
		return err
	}
	l, err := tls.Listen("tcp4", "127.0.0.1:0", &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, ClientCAs: ca.Pool(), ClientAuth: tls.RequireAndVerifyClientCert,
	})
	if err != nil {
		return err
	}
	go func() { _, _ = io.Copy(io.Discard, os.Stdin); l.Close() }()
	fmt.Println(l.Addr())
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil // told to end
		} else if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c) // what goes wrong the client hears of
		}()
	}
}
