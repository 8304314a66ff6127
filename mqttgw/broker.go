package mqttgw

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"pallas/mqttgw/pki"
	"pallas/mqttgw/wire"
)

// The broker's accounts. They share nothing: a device cannot name, let alone
// reach, a subject of the account that holds the log.
const (
	accountAuth    = "AUTH"
	accountApp     = "APP"
	accountDevices = "DEVICES"
	accountSystem  = "SYS"
)

// MaxPayload is the largest message of the APP account in bytes, and so the
// largest decision that the log can hold.
const MaxPayload = 1 << 20

const (
	// devicePayload bounds one MQTT publish: a packet and some room for its
	// topic. The broker closes the connection of a device that sends more.
	devicePayload = wire.MaxPacket + 1<<10
	// authTimeout bounds one answer of the callout. A burst of thousands of
	// connects waits in line for it.
	authTimeout = 30 * time.Second
	// tlsTimeout bounds a handshake; narrow links and reconnect storms are slow.
	tlsTimeout = 3 * time.Minute
	// startTimeout bounds the wait for an in-process connection.
	startTimeout = 10 * time.Second
)

// Errors of a broker that cannot start.
var (
	// ErrLocked says that another process uses the directory.
	ErrLocked = errors.New("data directory is in use by another process")
	// errClosedDoor refuses a handshake while no gateway answers for devices.
	errClosedDoor = errors.New("the device door is closed")
)

// BrokerConfig configures a [Broker].
type BrokerConfig struct {
	// Dir holds the streams. It is made when it does not exist.
	Dir string
	// MQTT is the listener's host:port; port 0 picks a free one. Empty means
	// no MQTT listener.
	MQTT string
	// TLS serves the MQTT listener. It needs ClientCAs and a certificate; the
	// broker raises the minimum version to TLS 1.3 and demands a verified
	// client certificate whatever it says.
	TLS *tls.Config
	// ClientCAs returns the CAs of devices when they may change: another pool
	// stands for other CAs. nil means TLS.ClientCAs.
	ClientCAs func() *x509.CertPool
	// TicketKeys is the file with the keys of TLS session tickets, so that a
	// device's session outlives this process. It is made when it does not
	// exist. Empty means keys that nobody else has.
	TicketKeys string
	// Sync is the interval of fsync: what a power cut can take. 0 means to
	// sync before each write is acknowledged.
	Sync time.Duration
	// MaxConn bounds connections; 0 means 200,000, or as many as the process may
	// have open files, less some for everything else.
	MaxConn int
	// UserTimeout is how long sent bytes may stay unacknowledged by a device's
	// TCP before its connection is closed; 0 means 2 minutes. It bounds what a
	// client that turned MQTT's keepalive off can hold on to.
	UserTimeout time.Duration
	Log         *slog.Logger
}

// Broker is the embedded message broker.
type Broker struct {
	cfg    BrokerConfig
	log    *serverLog
	host   string
	port   int // -1 = any, 0 = no listener
	keys   map[string]nkeys.KeyPair
	issuer nkeys.KeyPair
	// refused counts connections and packets that were turned away, by reason.
	refused *prometheus.CounterVec
	origins origins // of connections that come through a shared port
	meter   *meter  // of what connections cost
	gate    *admission
	tickets *pki.TicketKeys

	open  atomic.Bool // whether the door lets anybody in
	fault *storeFault

	maxFiles atomic.Int64 // that connections may take the process to
	shared   atomic.Pointer[Shared]

	mu    sync.Mutex
	srv   *server.Server
	opts  *server.Options
	lock  *os.File
	conns map[*nats.Conn]string // in-process connections and their accounts
}

// NewBroker checks the configuration. It touches nothing.
func NewBroker(cfg BrokerConfig) (*Broker, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	files := maxFiles()
	if cfg.MaxConn == 0 {
		cfg.MaxConn = min(200_000, files)
	}
	if cfg.UserTimeout == 0 {
		cfg.UserTimeout = 2 * time.Minute
	}
	b := &Broker{cfg: cfg, meter: newMeter(), gate: newAdmission(), keys: make(map[string]nkeys.KeyPair), conns: make(map[*nats.Conn]string), refused: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "pallas_device_refused_total",
		Help: "Connections and packets of devices that were turned away, by reason.",
	}, []string{"reason"})}
	b.maxFiles.Store(int64(files))
	b.fault = &storeFault{done: make(chan struct{})}
	b.log = &serverLog{log: cfg.Log, refused: b.refuse, origins: &b.origins, fault: b.fault}
	switch {
	case cfg.Dir == "":
		return nil, errors.New("broker: Dir is empty, want a directory")
	case cfg.Sync < 0:
		return nil, fmt.Errorf("broker: Sync is %v, want 0 or more", cfg.Sync)
	case cfg.MaxConn < 0:
		return nil, fmt.Errorf("broker: MaxConn is %d, want 0 or more", cfg.MaxConn)
	}
	if cfg.MQTT != "" {
		host, port, err := net.SplitHostPort(cfg.MQTT)
		if err != nil {
			return nil, fmt.Errorf("broker: MQTT %q: want host:port", cfg.MQTT)
		}
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("broker: MQTT %q: want a port from 0 to 65535", cfg.MQTT)
		}
		switch b.host, b.port = host, int(n); {
		case host == "":
			b.host = "0.0.0.0"
		case cfg.TLS == nil:
			return nil, errors.New("broker: TLS is missing, MQTT is served over TLS only")
		}
		if cfg.TLS == nil || (cfg.TLS.ClientCAs == nil && cfg.ClientCAs == nil) {
			return nil, errors.New("broker: TLS has no ClientCAs, want the device CA")
		}
		if n == 0 {
			b.port = -1
		}
	}
	var err error
	for _, account := range []string{accountAuth, accountApp, accountDevices, accountSystem} {
		if b.keys[account], err = nkeys.CreateUser(); err != nil {
			return nil, fmt.Errorf("broker: make a key: %w", err)
		}
	}
	if b.issuer, err = nkeys.CreateAccount(); err != nil {
		return nil, fmt.Errorf("broker: make a key: %w", err)
	}
	return b, nil
}

// Start opens the directory and runs the broker. When it returns, in-process
// connections work; MQTT clients are refused until a [Gateway] runs. On an
// error nothing is left running.
func (b *Broker) Start(ctx context.Context) (err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.srv != nil {
		return errors.New("start broker: it was started already")
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("start broker: %w", err)
	}
	if b.lock, err = lockDir(b.cfg.Dir); err != nil {
		return fmt.Errorf("start broker in %s: %w", b.cfg.Dir, err)
	}
	defer func() {
		if err != nil {
			_ = b.lock.Close()
			b.lock = nil
		}
	}()
	if b.cfg.TicketKeys != "" {
		b.tickets = pki.LoadTicketKeys(b.cfg.TicketKeys, b.cfg.Log)
	}
	if err := b.probe(ctx); err != nil {
		return fmt.Errorf("start broker: listen for MQTT: %w", err)
	}
	if b.opts, err = b.options(); err != nil {
		return fmt.Errorf("start broker: %w", err)
	}
	srv, err := server.NewServer(b.opts)
	if err != nil {
		return fmt.Errorf("start broker: %w", err)
	}
	srv.SetLoggerV2(b.log, false, false, false)
	// With DontListen Start returns when everything runs, or after it told the
	// logger of a fatal error, which does not end the process.
	srv.Start()
	if fatal := b.log.fatal.Load(); fatal != nil {
		srv.Shutdown()
		srv.WaitForShutdown()
		return fmt.Errorf("start broker in %s: %s", b.cfg.Dir, *fatal)
	}
	if !srv.ReadyForConnections(startTimeout) {
		srv.Shutdown()
		srv.WaitForShutdown()
		return fmt.Errorf("start broker in %s: not ready after %v", b.cfg.Dir, startTimeout)
	}
	b.srv = srv
	b.cfg.Log.Info("broker started", "dir", b.cfg.Dir, "mqtt", b.mqttAddr(), "sync", b.cfg.Sync)
	return nil
}

// lockDir makes the directory and takes it for this process. The lock ends
// with the returned file, or with the process.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrLocked
		}
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return f, nil
}

// probe listens on the MQTT address for a moment, so that an address in use is
// an error with a cause and not a line in the broker's log.
func (b *Broker) probe(ctx context.Context) error {
	if b.port == 0 {
		return nil
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(b.host, strconv.Itoa(max(b.port, 0))))
	if err != nil {
		return err
	}
	return l.Close()
}

// options returns the server's configuration. Accounts with limits can be
// described only in its configuration language.
func (b *Broker) options() (*server.Options, error) {
	pub := make(map[string]string, len(b.keys))
	for account, key := range b.keys {
		p, err := key.PublicKey()
		if err != nil {
			return nil, fmt.Errorf("read a key: %w", err)
		}
		pub[account] = p
	}
	issuer, err := b.issuer.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("read a key: %w", err)
	}
	// Nobody but this process has the keys of these users, and no connection
	// but an in-process one may use them.
	conf := fmt.Sprintf(`
server_name: pallas
max_payload: %d
mqtt { reject_qos2_publish: true, downgrade_qos2_subscribe: true }
accounts {
  AUTH    { users: [ {nkey: %s, allowed_connection_types: ["IN_PROCESS"]} ] }
  APP     { users: [ {nkey: %s, allowed_connection_types: ["IN_PROCESS"]} ], jetstream: enabled }
  DEVICES { users: [ {nkey: %s, allowed_connection_types: ["IN_PROCESS"]} ], jetstream: { max_file: 4GB, max_memory: 256MB }, limits: { max_payload: %d } }
  SYS     { users: [ {nkey: %s, allowed_connection_types: ["IN_PROCESS"]} ] }
}
system_account: SYS
authorization {
  timeout: %d
  auth_callout { issuer: %s, account: AUTH, auth_users: [ %[2]s, %[3]s, %[4]s, %[6]s ] }
}`, MaxPayload, pub[accountAuth], pub[accountApp], pub[accountDevices], devicePayload, pub[accountSystem],
		int(authTimeout.Seconds()), issuer)
	o := &server.Options{}
	if err := o.ProcessConfigString(conf); err != nil {
		return nil, err
	}
	o.DontListen = true
	o.NoSigs = true
	o.JetStream = true
	o.StoreDir = b.cfg.Dir
	o.SyncAlways = b.cfg.Sync == 0
	o.SyncInterval = b.cfg.Sync
	o.MaxConn = b.cfg.MaxConn
	// The server remembers its last 10,000 connections that ended, with all that
	// there is to know of each, and nobody asks.
	o.MaxClosedClients = 1
	if o.JetStreamMaxStore, err = diskSize(b.cfg.Dir); err != nil {
		return nil, fmt.Errorf("size of the disk of %s: %w", b.cfg.Dir, err)
	}
	o.JetStreamLimits.DefaultMaxConsumers = -1
	o.JetStreamRequestQueueLimit = 100_000
	if b.port != 0 {
		o.MQTT.Host, o.MQTT.Port = b.host, b.port
		o.MQTT.TLSConfig = b.tlsConfig()
		o.MQTT.TLSTimeout = tlsTimeout.Seconds()
		o.MQTT.JSAPITimeout = authTimeout
	}
	return o, nil
}

// diskSize bounds what streams may hold. Left to itself, nats-server takes three
// quarters of what is free at its start, and a log larger than that would take
// no more writes. That the disk does not run full is for the store's caller.
func diskSize(dir string) (int64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 0, err
	}
	return int64(fs.Blocks) * fs.Bsize, nil
}

// tlsConfig is the caller's with what is not open to discussion.
func (b *Broker) tlsConfig() *tls.Config {
	harden := func(c *tls.Config) *tls.Config {
		c = c.Clone()
		c.MinVersion = tls.VersionTLS13
		c.ClientAuth = tls.RequireAndVerifyClientCert
		return c
	}
	c := harden(b.cfg.TLS)
	if b.cfg.ClientCAs != nil {
		c.ClientCAs = b.cfg.ClientCAs()
	}
	// The one that handshakes use: only its own ticket keys are looked at.
	var own atomic.Pointer[tls.Config]
	own.Store(harden(c))
	inner := c.GetConfigForClient
	c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if !b.open.Load() {
			return nil, errClosedDoor
		}
		if crowded(hello.Conn, int(b.maxFiles.Load())) {
			// A device that came through the shared port holds three files, and
			// finds this one by itself. Without that, those that came there while
			// the manager started could keep others out for long.
			if s := b.shared.Load(); s != nil && !b.origins.passed(peer(hello.Conn)) {
				s.giveUp()
			}
			b.refuse("files")
			return nil, errNoFiles
		}
		if err := b.gate.enter(hello.Context(), peer(hello.Conn)); err != nil {
			return nil, err
		}
		b.watchPeer(hello.Conn)
		b.awaitPeer(hello)
		if inner != nil {
			switch c, err := inner(hello); {
			case err != nil:
				return nil, err
			case c != nil:
				return harden(c), nil
			}
		}
		config := own.Load()
		if b.cfg.ClientCAs != nil {
			// A handshake that is under way goes by what it began with.
			if pool := b.cfg.ClientCAs(); pool != config.ClientCAs {
				config = harden(config)
				config.ClientCAs = pool
				own.Store(config)
			}
		}
		if b.tickets != nil {
			b.tickets.Apply(config, time.Now())
		}
		return config, nil
	}
	return c
}

// peer is the address of the other side; the zero value if that has none.
func peer(c net.Conn) netip.AddrPort {
	if tcp, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		return plain(tcp.AddrPort())
	}
	return netip.AddrPort{}
}

// watchPeer lets the kernel find out that a device is gone. nats-server never
// pings MQTT clients, and a client may turn its own keepalive off. The probes
// of an idle connection are rare: they are bytes on a metered link.
func (b *Broker) watchPeer(conn net.Conn) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	_ = tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 10 * time.Minute, Interval: 30 * time.Second, Count: 4})
	if raw, err := tcp.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(b.cfg.UserTimeout.Milliseconds()))
		})
	}
}

// Conn opens an in-process connection to the APP account. The broker closes it
// when it shuts down.
func (b *Broker) Conn(name string) (*nats.Conn, error) { return b.connect(accountApp, name) }

// SystemConn is Conn for the broker's own account, where its events are.
func (b *Broker) SystemConn(name string) (*nats.Conn, error) { return b.connect(accountSystem, name) }

// DeviceConn is Conn for the account of the devices.
func (b *Broker) DeviceConn(name string) (*nats.Conn, error) { return b.connect(accountDevices, name) }

func (b *Broker) connect(account, name string) (*nats.Conn, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.srv == nil {
		return nil, fmt.Errorf("connect %s to the broker: it does not run", name)
	}
	key := b.keys[account]
	pub, err := key.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("connect %s to the broker: %w", name, err)
	}
	log := b.cfg.Log.With("conn", name)
	nc, err := nats.Connect("", nats.InProcessServer(b.srv), nats.Name(name), nats.Nkey(pub, key.Sign),
		nats.Timeout(startTimeout), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond),
		nats.ReconnectBufSize(-1),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			log.Warn("broker connection", "err", err)
		}))
	if err != nil {
		return nil, fmt.Errorf("connect %s to the broker: %w", name, err)
	}
	maps.DeleteFunc(b.conns, func(nc *nats.Conn, _ string) bool { return nc.IsClosed() })
	b.conns[nc] = account
	return nc, nil
}

// MQTTAddr returns the host:port that the MQTT listener has, or "".
func (b *Broker) MQTTAddr() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.srv == nil {
		return ""
	}
	return b.mqttAddr()
}

func (b *Broker) mqttAddr() string {
	if b.port == 0 {
		return ""
	}
	return net.JoinHostPort(b.opts.MQTT.Host, strconv.Itoa(b.opts.MQTT.Port))
}

// MQTTConns returns the number of connected devices.
func (b *Broker) MQTTConns() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.srv == nil {
		return 0
	}
	a, err := b.srv.LookupAccount(accountDevices)
	if err != nil {
		return 0
	}
	n := a.NumLocalConnections()
	for nc, account := range b.conns {
		if account == accountDevices && nc.IsConnected() {
			n--
		}
	}
	return max(0, n)
}

// Accepted returns how many connections the door has let in so far.
func (b *Broker) Accepted() uint64 { return b.gate.accepted.Load() }

// answered says that the callout about a connection is over.
func (b *Broker) answered(conn uint64) {
	if seen, ok := b.seen(conn); ok {
		b.gate.leave(seen)
	}
}

// Kick closes a connection by the broker's number for it. A connection that is
// not there is no error.
func (b *Broker) Kick(conn uint64) {
	if srv := b.server(); srv != nil {
		b.meter.count(conn)
		_ = srv.DisconnectClientByID(conn)
	}
}

// alive says whether the connection exists.
func (b *Broker) alive(conn uint64) bool {
	srv := b.server()
	return srv != nil && srv.GetClient(conn) != nil
}

// deviceConns yields the connections of devices that exist now: for a gateway
// that starts beside a running broker.
func (b *Broker) deviceConns() ([]*server.ConnInfo, error) {
	srv := b.server()
	if srv == nil {
		return nil, errors.New("list connections: the broker does not run")
	}
	c, err := srv.Connz(&server.ConnzOptions{Account: accountDevices, Limit: b.cfg.MaxConn})
	if err != nil {
		return nil, fmt.Errorf("list connections: %w", err)
	}
	return c.Conns, nil
}

func (b *Broker) server() *server.Server {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.srv
}

func (b *Broker) refuse(reason string) { b.refused.WithLabelValues(reason).Inc() }

// Shutdown ends the broker and waits for it. In-process connections are closed.
func (b *Broker) Shutdown() {
	b.open.Store(false)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.srv == nil {
		return
	}
	for nc := range b.conns {
		nc.Close()
	}
	b.srv.Shutdown()
	b.srv.WaitForShutdown()
	_ = b.lock.Close()
	b.srv, b.lock = nil, nil
	clear(b.conns)
	b.cfg.Log.Info("broker stopped")
}
