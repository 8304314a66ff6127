package mqttgw

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"pallas/commands"
	"pallas/events"
	"pallas/events/jsstore"
	"pallas/events/labels"
	"pallas/mqttgw/pki"
	"pallas/mqttgw/wire"
)

// patience bounds every wait for something that must happen, on a busy machine.
const patience = 20 * time.Second

// door is a real broker, log, dispatcher and gateway, and a device authority.
type door struct {
	t        testing.TB // of the running subtest
	root     testing.TB
	ca       *pki.CA
	broker   *Broker
	store    *gatedStore
	commands *commands.Dispatcher
	gateway  *Gateway
	presence *presence
	cfg      Config
	logs     *lockedBuffer
	stop     func()
}

func newDoor(t testing.TB, change ...func(*Config)) *door {
	t.Helper()
	return newDoorAt(t, "127.0.0.1:0", change...)
}

// newDoorAt is newDoor with the MQTT listener somewhere else.
func newDoorAt(t testing.TB, listen string, change ...func(*Config)) *door {
	t.Helper()
	d := &door{t: t, root: t, ca: newCA(t), presence: &presence{}, logs: &lockedBuffer{}}
	log := slog.New(slog.NewTextHandler(d.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(d.logs.String())
		}
	})
	server := must(d.ca.IssueServer([]string{"127.0.0.1"}, time.Now(), 0))(t)
	var err error
	d.broker, err = NewBroker(BrokerConfig{
		Dir: t.TempDir(), MQTT: listen, Sync: time.Second, Log: log,
		TLS: &tls.Config{Certificates: []tls.Certificate{server}, ClientCAs: d.ca.Pool()},
	})
	check(t, err)
	check(t, d.broker.Start(t.Context()))
	t.Cleanup(d.broker.Shutdown)
	store, err := jsstore.Open(t.Context(), jsstore.Config{Conn: must(d.broker.Conn("log"))(t), Log: log})
	check(t, err)
	d.store = &gatedStore{Store: store}
	d.commands, err = commands.New(commands.Config{Store: d.store, Now: time.Now, Log: log})
	check(t, err)
	d.cfg = Config{
		Broker: d.broker, Commands: d.commands, Presence: d.presence, Log: log,
		Settings: wire.Settings{Resend: 500},
	}
	for _, f := range change {
		f(&d.cfg)
	}
	d.open()
	t.Cleanup(func() { d.stop() })
	return d
}

// open runs a new gateway on the broker.
func (d *door) open() {
	d.t.Helper()
	var err error
	d.gateway, err = New(d.cfg)
	check(d.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.gateway.Run(ctx) }()
	d.stop = sync.OnceFunc(func() {
		cancel()
		check(d.t, <-done)
	})
	eventually(d.t, "the door opens", d.broker.open.Load)
}

// last is the position of the newest decision.
func (d *door) last() uint64 {
	d.t.Helper()
	return must(d.store.Last(d.t.Context()))(d.t)
}

// refusals returns how often devices were refused for the reason.
func (d *door) refusals(reason string) int {
	d.t.Helper()
	r := prometheus.NewRegistry()
	check(d.t, r.Register(d.broker.refused))
	families, err := r.Gather()
	check(d.t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if m.GetLabel()[0].GetValue() == reason {
				return int(m.GetCounter().GetValue())
			}
		}
	}
	return 0
}

func (d *door) do(c commands.Command) {
	d.t.Helper()
	must(d.commands.Do(d.t.Context(), c, commands.Meta{Actor: events.UserActor("test"), Scope: new(labels.Everything())}))(d.t)
}

// device is what a test knows of a device.
type device struct {
	door *door
	id   events.DeviceID
	key  *ecdsa.PrivateKey
	cert tls.Certificate
}

// identity makes a device that nobody knows, with a good certificate.
func (d *door) identity() *device {
	d.t.Helper()
	dev := &device{door: d, id: events.DeviceID(uuid.NewString()), key: must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(d.t)}
	dev.cert = dev.issue(d.ca, time.Now(), 0)
	return dev
}

// register makes the device known, approved or pending.
func (dev *device) register(approve bool) {
	d := dev.door
	d.t.Helper()
	leaf := dev.cert.Leaf
	hash := pki.KeyHash(leaf.PublicKey)
	d.do(commands.RegisterDevice{
		Device: dev.id, Name: "host", Token: events.TokenID(events.NewID()), AutoApprove: approve,
		KeyHash: hash, AgentVersion: "test",
		Certificate: events.CertificateIssued{Serial: pki.SerialHex(leaf), KeyHash: hash, NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter},
	})
}

// device makes a device that is approved.
func (d *door) device() *device {
	d.t.Helper()
	dev := d.identity()
	dev.register(true)
	return dev
}

// issue has a CA sign a certificate for the device's key.
func (dev *device) issue(ca *pki.CA, now time.Time, life time.Duration) tls.Certificate {
	t := dev.door.t
	t.Helper()
	der := must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: string(dev.id)}}, dev.key))(t)
	csr := must(pki.ParseCSR(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})))(t)
	_, leaf, err := ca.IssueDevice(csr, string(dev.id), now, life)
	check(t, err)
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: dev.key, Leaf: leaf}
}

// connect opens a session as a good device does, and takes the Welcome.
func (dev *device) connect(h wire.Hello) (*client, wire.Welcome) {
	t := dev.door.t
	t.Helper()
	c := dev.link()
	c.hello(h)
	return c, *c.down(func(d wire.Down) bool { return d.Welcome != nil }).Welcome
}

// link connects and subscribes.
func (dev *device) link() *client {
	t := dev.door.t
	t.Helper()
	c := dev.dial(connectOptions{client: string(dev.id)})
	if c.code != 0 {
		t.Fatalf("connect: return code %d", c.code)
	}
	if code := c.subscribe(wire.DownTopic(string(dev.id)), 0); code != 0 {
		t.Fatalf("subscribe: return code %#x", code)
	}
	return c
}

type connectOptions struct {
	client             string
	username, password string
	willTopic          string
	will               []byte
	willQoS            byte
	willRetain         bool
	keepAlive          uint16
	persistent         bool
	cert               *tls.Certificate // instead of the device's
	alpn               []string
	sessions           tls.ClientSessionCache
	dial               func() (net.Conn, error) // instead of the MQTT port
	then               []byte                   // sent with CONNECT, before its answer
}

// client is a small MQTT 3.1.1 client that sends what it is told, however
// wrong.
type client struct {
	t    testing.TB
	dev  *device
	conn net.Conn
	code byte // of the CONNACK
	err  error

	mu     sync.Mutex // of writes
	in     chan wire.Down
	acks   chan []byte // SUBACK, PUBACK, PINGRESP…
	closed chan struct{}
}

// dial connects; c.err says what went wrong on the way.
func (dev *device) dial(o connectOptions) *client {
	t := dev.door.t
	t.Helper()
	cert := dev.cert
	if o.cert != nil {
		cert = *o.cert
	}
	c := &client{t: t, dev: dev, in: make(chan wire.Down, 4096), acks: make(chan []byte, 4096), closed: make(chan struct{})}
	cfg := &tls.Config{RootCAs: dev.door.ca.Pool(), ServerName: "127.0.0.1", NextProtos: o.alpn, ClientSessionCache: o.sessions}
	if len(cert.Certificate) > 0 {
		// Sent even when the server does not ask for its CA.
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
	}
	dial := o.dial
	if dial == nil {
		dial = func() (net.Conn, error) { return net.Dial("tcp", dev.door.broker.MQTTAddr()) }
	}
	raw, err := dial()
	check(t, err)
	c.conn = tls.Client(raw, cfg)
	dev.door.root.Cleanup(func() { _ = raw.Close() })
	var flags byte
	if !o.persistent {
		flags |= 2
	}
	payload := mqttString(o.client)
	if o.willTopic != "" {
		flags |= 4 | o.willQoS<<3
		if o.willRetain {
			flags |= 32
		}
		payload = append(append(payload, mqttString(o.willTopic)...), mqttString(string(o.will))...)
	}
	if o.username != "" {
		flags |= 0xC0
		payload = append(append(payload, mqttString(o.username)...), mqttString(o.password)...)
	}
	body := append(mqttString("MQTT"), 4, flags, byte(o.keepAlive>>8), byte(o.keepAlive))
	_ = c.conn.SetDeadline(time.Now().Add(patience))
	if _, c.err = c.conn.Write(append(mqttPacket(0x10, append(body, payload...)), o.then...)); c.err != nil {
		close(c.closed)
		return c
	}
	r := bufio.NewReader(c.conn)
	kind, b, err := readMQTT(r)
	if err == nil && kind>>4 != 2 {
		err = fmt.Errorf("packet type %d instead of CONNACK", kind>>4)
	}
	if c.err = err; err != nil {
		close(c.closed)
		return c
	}
	c.code = b[1]
	_ = c.conn.SetDeadline(time.Time{})
	go c.read(r)
	return c
}

func (c *client) read(r *bufio.Reader) {
	defer close(c.closed)
	for {
		kind, b, err := readMQTT(r)
		if err != nil {
			return
		}
		if kind>>4 != 3 {
			c.acks <- append([]byte{kind}, b...)
			continue
		}
		n := int(binary.BigEndian.Uint16(b)) + 2
		if kind&6 != 0 {
			n += 2
		}
		d, err := wire.DecodeDown(b[n:])
		if err != nil {
			c.t.Errorf("device %s received a packet it cannot read: %v", c.dev.id, err)
			return
		}
		c.in <- d
	}
}

func (c *client) write(p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.conn.SetWriteDeadline(time.Now().Add(patience))
	_, _ = c.conn.Write(p) // a closed connection is what some tests want
}

// ack waits for a packet of the type.
func (c *client) ack(kind byte) []byte {
	c.t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case b := <-c.acks:
			if b[0]>>4 == kind {
				return b
			}
		case <-c.closed:
			c.t.Fatalf("connection closed while waiting for packet type %d", kind)
		case <-timeout:
			c.t.Fatalf("no packet of type %d", kind)
		}
	}
}

func (c *client) subscribe(topic string, qos byte) byte {
	c.t.Helper()
	c.write(subscription(topic, qos))
	b := c.ack(9)
	return b[len(b)-1]
}

func subscription(topic string, qos byte) []byte {
	return mqttPacket(0x82, append(append([]byte{0, 1}, mqttString(topic)...), qos))
}

// publish sends a payload; with QoS 1 it does not wait for the PUBACK.
func (c *client) publish(topic string, payload []byte, qos byte, retain bool) {
	c.write(publication(topic, payload, qos, retain))
}

func publication(topic string, payload []byte, qos byte, retain bool) []byte {
	b := mqttString(topic)
	if qos > 0 {
		b = append(b, 0, 7)
	}
	kind := 0x30 | qos<<1
	if retain {
		kind |= 1
	}
	return mqttPacket(kind, append(b, payload...))
}

// ping is answered once all before it was processed by the broker.
func (c *client) ping() {
	c.t.Helper()
	c.write([]byte{0xC0, 0})
	c.ack(13)
}

func (c *client) up(u wire.Up) {
	c.t.Helper()
	u.Version = wire.Version
	c.publish(wire.UpTopic(string(c.dev.id)), must(wire.EncodeUp(u))(c.t), 0, false)
}

func (c *client) hello(h wire.Hello) {
	c.t.Helper()
	if h.Agent == "" {
		h.Agent = "test"
	}
	if h.Epoch == 0 {
		h.Epoch = 1
	}
	if h.First == 0 {
		h.First = 1
	}
	h.Next = max(h.Next, h.First)
	h.Time = time.Now()
	c.up(wire.Up{Hello: &h})
}

func (c *client) report(reports ...wire.Report) {
	c.t.Helper()
	c.up(wire.Up{Epoch: 1, Reports: reports})
}

// down returns the first packet that is wanted, and drops those before it.
func (c *client) down(want func(wire.Down) bool) wire.Down {
	c.t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case d := <-c.in:
			if want(d) {
				return d
			}
		case <-c.closed:
			c.t.Fatal("connection closed while waiting for a packet")
		case <-timeout:
			c.t.Fatal("no such packet")
		}
	}
}

// receipt waits until everything up to seq is receipted.
func (c *client) receipt(seq uint64) wire.Receipt {
	c.t.Helper()
	return *c.down(func(d wire.Down) bool { return d.Receipt != nil && d.Receipt.Seq >= seq }).Receipt
}

// failure waits for an error of the code.
func (c *client) failure(code string) wire.Error {
	c.t.Helper()
	return *c.down(func(d wire.Down) bool { return d.Error != nil && d.Error.Code == code }).Error
}

// alive proves that the session works in both directions: a Hello is welcomed.
func (c *client) alive(h wire.Hello) wire.Welcome {
	c.t.Helper()
	c.hello(h)
	return *c.down(func(d wire.Down) bool { return d.Welcome != nil }).Welcome
}

func (c *client) waitClosed(within time.Duration) {
	c.t.Helper()
	select {
	case <-c.closed:
	case <-time.After(within):
		c.t.Fatalf("connection still open after %v", within)
	}
}

// leave ends the connection as a good device does, and waits until the gateway
// knows: the broker is slow to accept a third connection within a second that
// takes over the one before.
func (c *client) leave() {
	c.t.Helper()
	c.write([]byte{0xE0, 0})
	_ = c.conn.Close()
	sh := c.dev.door.gateway.shard(c.dev.id)
	eventually(c.t, "the session is gone", func() bool {
		sh.mu.Lock()
		defer sh.mu.Unlock()
		return sh.sessions[c.dev.id] == nil
	})
}

func (c *client) isClosed() bool {
	select {
	case <-c.closed:
		return true
	default:
		return false
	}
}

// drain returns what has arrived.
func (c *client) drain() (out []wire.Down) {
	for {
		select {
		case d := <-c.in:
			out = append(out, d)
		default:
			return out
		}
	}
}

func mqttString(s string) []byte {
	return append([]byte{byte(len(s) >> 8), byte(len(s))}, s...)
}

func mqttPacket(kind byte, body []byte) []byte {
	return append(binary.AppendUvarint([]byte{kind}, uint64(len(body))), body...)
}

func readMQTT(r *bufio.Reader) (kind byte, body []byte, err error) {
	if kind, err = r.ReadByte(); err != nil {
		return 0, nil, err
	}
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return 0, nil, err
	}
	body = make([]byte, n)
	_, err = io.ReadFull(r, body)
	return kind, body, err
}

// vm is a report of a whole virtual machine.
func vm(seq uint64, id, name string) wire.Report {
	return wire.Report{Seq: seq, Time: time.Now(), VM: &wire.VM{ID: id, Name: name, Power: wire.PowerOff, Tools: wire.ToolsUnknown}}
}

// host is a report of a host.
func host(seq uint64, name string) wire.Report {
	return wire.Report{Seq: seq, Time: time.Now(), Host: &wire.Host{Name: name, License: wire.License{Writable: true}}}
}

// presence records what it hears.
type presence struct {
	mu    sync.Mutex
	calls []string
}

func (p *presence) Connected(id events.DeviceID, s commands.Session) {
	p.add("%s connected %d", id, s.Conn)
}

func (p *presence) Disconnected(id events.DeviceID, s commands.Session, reason string) {
	p.add("%s disconnected %d %s", id, s.Conn, reason)
}

func (p *presence) add(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls = append(p.calls, fmt.Sprintf(format, args...))
}

// of returns the calls about a device, without its id.
func (p *presence) of(id events.DeviceID) (out []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.calls {
		if rest, ok := strings.CutPrefix(c, string(id)+" "); ok {
			out = append(out, rest)
		}
	}
	return out
}

// gatedStore is a real log whose appends a test can watch and refuse.
type gatedStore struct {
	*jsstore.Store
	mu     sync.Mutex
	refuse error
	// refuseKind is the kind of aggregate that cannot be read.
	refuseKind string
	// appended is the highest report sequence in the log, by device.
	appended map[events.DeviceID]uint64
}

func (s *gatedStore) Append(ctx context.Context, expected uint64, d events.Decision) (events.Appended, error) {
	s.mu.Lock()
	err := s.refuse
	s.mu.Unlock()
	if err != nil {
		return events.Appended{}, err
	}
	a, err := s.Store.Append(ctx, expected, d)
	if err == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.appended == nil {
			s.appended = make(map[events.DeviceID]uint64)
		}
		for _, e := range d.Entries {
			if e.Report != nil {
				s.appended[d.Subject.Device()] = max(s.appended[d.Subject.Device()], e.Report.Seq)
			}
		}
	}
	return a, err
}

func (s *gatedStore) Revision(ctx context.Context, subject events.Subject) (uint64, error) {
	s.mu.Lock()
	refuse := s.refuseKind == subject.Kind()
	s.mu.Unlock()
	if refuse {
		return 0, events.ErrUnavailable
	}
	return s.Store.Revision(ctx, subject)
}

func (s *gatedStore) setRefuseKind(kind string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuseKind = kind
}

func (s *gatedStore) setRefuse(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = err
}

func (s *gatedStore) appendedSeq(id events.DeviceID) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.appended[id]
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newCA(t testing.TB) *pki.CA {
	t.Helper()
	return must(pki.Create(t.TempDir(), time.Now(), "test"))(t)
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		check(t, err)
		return v
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	if ok() {
		return
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(patience)
	for {
		select {
		case <-tick.C:
			if ok() {
				return
			}
		case <-timeout:
			t.Fatalf("not in %v: %s", patience, what)
		}
	}
}

var errTest = errors.New("test")

// forget drops the newest n calls about a device.
func (p *presence) forget(id events.DeviceID, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := len(p.calls) - 1; i >= 0 && n > 0; i-- {
		if strings.HasPrefix(p.calls[i], string(id)+" ") {
			p.calls = append(p.calls[:i], p.calls[i+1:]...)
			n--
		}
	}
}
