package link

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"pallas/mqttgw/wire"
)

const (
	writeTimeout = 2 * time.Minute // TCP gives up earlier, unless the peer does not read
	byeTimeout   = 2 * time.Second
	maxIncoming  = wire.MaxPacket + 256 // bytes of an MQTT packet
)

// ConnectError is the broker's refusal of a connection. All refusals are tried
// again: a broker that is starting refuses too.
type ConnectError struct {
	// Code is the CONNACK return code, or 0x80 for a refused subscription.
	Code byte
}

func (e *ConnectError) Error() string {
	if e.Code == 0x80 {
		return "the manager refused the subscription"
	}
	if err := packets.ConnErrors[e.Code]; err != nil {
		return fmt.Sprintf("the manager refused the connection: %v (code %d)", err, e.Code)
	}
	return fmt.Sprintf("the manager refused the connection (code %d)", e.Code)
}

// TLSConfig is how a device talks TLS to its manager at addr, a host:port.
// With narrow the handshake is as short as it can be (1.8 kB instead of 4 kB):
// no post-quantum key exchange and no session tickets, which contain the
// device's certificate.
func TLSConfig(addr string, cert tls.Certificate, cas *x509.CertPool, now func() time.Time, narrow bool) (*tls.Config, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("MQTT address %q: want host:port", addr)
	}
	c := &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: host, RootCAs: cas, Certificates: []tls.Certificate{cert},
		NextProtos: []string{"mqtt"}, Time: now,
	}
	if narrow {
		c.CurvePreferences = []tls.CurveID{tls.X25519}
	} else {
		c.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	}
	return c, nil
}

// conn is one MQTT connection with its subscription. Its write methods are for
// one goroutine.
type conn struct {
	*tls.Conn
	tcp      *socket
	addr, up string
	deflate  bool // the manager takes deflated packets
	lastSent time.Time
}

// shut closes the socket without waiting for a peer that does not read.
func (c *conn) shut() { _ = c.NetConn().Close() }

// expires is when the first of the two certificates ends that the connection
// was made with. It is after now for whoever accepted both.
func (c *conn) expires(own []tls.Certificate) time.Time {
	end := c.ConnectionState().PeerCertificates[0].NotAfter
	if len(own) > 0 && own[0].Leaf != nil && own[0].Leaf.NotAfter.Before(end) {
		end = own[0].Leaf.NotAfter
	}
	return end
}

// A manager's own port that did not let this device through is left alone for
// longer than the longest pause between two attempts, and then, as long as it
// does not, for twice as long each time: on the shared port a connection costs
// the manager about twice as much and three files instead of one, but a look at
// a port that is blocked costs bytes.
const (
	minAvoid = 2 * time.Minute
	maxAvoid = 6 * time.Hour
)

// avoidOwn leaves the own port alone for some time.
func (l *Link) avoidOwn() {
	l.avoidFor = min(max(2*l.avoidFor, minAvoid), maxAvoid)
	l.avoid = time.Now().Add(l.avoidFor/2 + rand.N(l.avoidFor/2))
}

// errOwnPort ends a session on the shared port.
var errOwnPort = errors.New("the manager's own port can be reached")

// lookAtOwn says whether the own port can be reached by TCP at least.
func (l *Link) lookAtOwn(ctx context.Context) <-chan error {
	done := make(chan error, 1)
	go func() {
		c, err := l.dial(ctx, l.ways[0].addr)
		if err == nil {
			_ = c.Close()
		}
		done <- err
	}()
	return done
}

// maxAlerts is how many handshakes in a row may end with an alert before the
// other port is tried: a manager that is starting, or busy, gives them too.
const maxAlerts = 3

// open connects to the manager's own port, or to the shared one while the own
// one is avoided. When TCP does not get through, the other one is tried at once,
// and after a handshake that broke off with the next attempt; what the manager
// itself refuses it refuses everywhere.
func (l *Link) open(ctx context.Context, keepAlive time.Duration, hello func() (wire.Up, error)) (*conn, error) {
	l.credentials()
	closed := false // nobody listens on the own port
	var failed error
	for tries := 1; ; tries++ {
		began := time.Now()
		own := len(l.ways) == 1 || !began.Before(l.avoid)
		var c *conn
		var err error
		if own {
			c, err = l.connect(ctx, l.ways[0], keepAlive, hello, nil)
			closed = errors.Is(err, syscall.ECONNREFUSED)
		} else {
			c, err = l.connect(ctx, l.ways[1], keepAlive, hello, func(ctx context.Context) error { return l.again(ctx, closed) })
		}
		if timedOut(err) && !errors.Is(err, errDial) {
			l.path.timedOut()
		}
		var refused *refusalError
		var alert *alertError
		switch {
		case err == nil:
			l.path.connected(time.Since(began))
			l.alerts = 0
			if own {
				l.avoidFor = 0
			}
			return c, nil
		case ctx.Err() != nil || errors.As(err, &refused):
			return nil, err
		case errors.As(err, &alert) && l.alerts < maxAlerts-1:
			l.alerts++
			return nil, err
		}
		l.alerts = 0
		l.avoid = time.Time{}
		if own {
			l.avoidOwn()
		}
		if failed == nil {
			failed = err
		} else if !errors.Is(err, errStarted) {
			failed = fmt.Errorf("%w; %w", failed, err)
		}
		if again := errors.Is(err, errStarted) || tries < len(l.ways) && errors.Is(err, errDial); !again {
			return nil, failed
		}
	}
}

// errStarted says that the own port can be had now.
var errStarted = errors.New("the manager has just started")

// again looks at the own port again when nobody listened there a moment ago,
// but the manager speaks on the shared one: it may have been about to start.
func (l *Link) again(ctx context.Context, closed bool) error {
	if !closed {
		return nil
	}
	if c, err := l.dial(ctx, l.ways[0].addr); err == nil {
		_ = c.Close()
		return errStarted
	}
	return nil
}

// alertError marks what somebody answered to a handshake who did not prove to
// be the manager.
type alertError struct{ err error }

func (e *alertError) Error() string { return e.err.Error() }
func (e *alertError) Unwrap() error { return e.err }

// refusalError marks what a manager answered that had proved to be one.
type refusalError struct{ err error }

func (e *refusalError) Error() string { return e.err.Error() }
func (e *refusalError) Unwrap() error { return e.err }

// refusal marks err if it is the answer of the other side. In TLS 1.3 a client
// certificate is refused when the client's handshake is complete. A reset of the
// connection may overtake that answer; then the other port gives it again.
func refusal(c *tls.Conn, err error) error {
	var code *ConnectError
	var op *net.OpError
	alert := errors.As(err, &op) && op.Op == "remote error"
	switch complete := c.ConnectionState().HandshakeComplete; {
	case complete && (alert || errors.As(err, &code)):
		return &refusalError{err}
	case alert:
		return &alertError{err}
	}
	return err
}

// connect dials, says CONNECT, SUBSCRIBE and hello in one go and waits for the
// answers to the first two. secured, which may be nil, is asked before them.
func (l *Link) connect(ctx context.Context, w way, keepAlive time.Duration, hello func() (wire.Up, error), secured func(context.Context) error) (*conn, error) {
	ctx, cancel := context.WithTimeout(context.WithValue(ctx, segmentKey{}, segments[l.path.segment]), l.path.timeout)
	defer cancel()
	raw, err := l.dial(ctx, w.addr)
	if err != nil {
		return nil, err // names the address
	}
	tcp := socketOf(raw)
	tcp.setUserTimeout(l.path.timeout)
	c := tls.Client(&counted{Conn: raw, in: &l.in, out: &l.out}, w.tls)
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	if err = c.HandshakeContext(ctx); err != nil {
		err = fmt.Errorf("TLS with %s: %w", w.addr, err)
	} else if secured != nil {
		err = secured(ctx)
	}
	if err == nil {
		err = l.greet(c, w.addr, keepAlive, hello)
	}
	if !stop() || err != nil {
		_ = raw.Close() // perhaps a second time
		return nil, errors.Join(refusal(c, err), context.Cause(ctx))
	}
	return &conn{Conn: c, tcp: tcp, addr: w.addr, up: wire.UpTopic(l.c.Device), lastSent: time.Now()}, nil
}

// errDial marks that not even TCP got through.
var errDial = errors.New("dial")

func (l *Link) dial(ctx context.Context, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	c, err := l.c.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errDial, err)
	}
	return c, nil
}

func (l *Link) greet(c *tls.Conn, addr string, keepAlive time.Duration, up func() (wire.Up, error)) error {
	var out bytes.Buffer
	hello := packets.NewControlPacket(packets.Connect).(*packets.ConnectPacket)
	hello.ProtocolName, hello.ProtocolVersion, hello.CleanSession = "MQTT", 4, true
	hello.ClientIdentifier, hello.Keepalive = l.c.Device, uint16(keepAlive/time.Second)
	sub := packets.NewControlPacket(packets.Subscribe).(*packets.SubscribePacket)
	sub.MessageID, sub.Topics, sub.Qoss = 1, []string{wire.DownTopic(l.c.Device)}, []byte{0}
	u, err := up()
	if err != nil {
		return err
	}
	pub, err := publication(wire.UpTopic(l.c.Device), u, false)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	if err := errors.Join(hello.Write(&out), sub.Write(&out), pub.Write(&out)); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	if _, err := c.Write(out.Bytes()); err != nil {
		return fmt.Errorf("connect to %s: %w", addr, err)
	}
	p, err := readPacket(c)
	if err != nil {
		return fmt.Errorf("connect to %s: %w", addr, err)
	}
	if ack, ok := p.(*packets.ConnackPacket); !ok || ack.ReturnCode != packets.Accepted {
		if ok {
			return &ConnectError{Code: ack.ReturnCode}
		}
		return fmt.Errorf("connect to %s: %w", addr, errUnexpected)
	}
	if p, err = readPacket(c); err != nil {
		return fmt.Errorf("subscribe at %s: %w", addr, err)
	}
	if ack, ok := p.(*packets.SubackPacket); !ok || len(ack.ReturnCodes) != 1 || ack.ReturnCodes[0] > 2 {
		if ok {
			return &ConnectError{Code: 0x80}
		}
		return fmt.Errorf("subscribe at %s: %w", addr, errUnexpected)
	}
	return nil
}

var errUnexpected = errors.New("an MQTT packet that does not belong here")

// publish sends a packet of the device protocol.
func (c *conn) publish(u wire.Up) error {
	p, err := publication(c.up, u, c.deflate)
	if err != nil {
		return err
	}
	return c.write(p, writeTimeout)
}

func publication(topic string, u wire.Up, deflate bool) (*packets.PublishPacket, error) {
	u.Version = wire.Version
	encode := wire.EncodeUp
	if deflate {
		encode = wire.EncodeUpDeflated
	}
	b, err := encode(u)
	if err != nil {
		return nil, err
	}
	p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	p.TopicName, p.Payload = topic, b
	return p, nil
}

func (c *conn) write(p packets.ControlPacket, timeout time.Duration) error {
	c.lastSent = time.Now()
	if err := c.SetWriteDeadline(c.lastSent.Add(timeout)); err != nil {
		return err
	}
	return p.Write(c)
}

// bye ends the session on purpose.
func (c *conn) bye(reason string) error {
	p, err := publication(c.up, wire.Up{Bye: &wire.Bye{Reason: reason}}, false)
	if err != nil {
		return err
	}
	return errors.Join(c.write(p, byeTimeout), c.write(packets.NewControlPacket(packets.Disconnect), byeTimeout))
}

// readPacket reads one MQTT packet of bounded size. The codec itself would
// allocate whatever a packet says is its length.
func readPacket(r io.Reader) (packets.ControlPacket, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:1]); err != nil {
		return nil, err
	}
	n, length := 1, 0
	for shift := 0; ; shift += 7 {
		if n == len(head) {
			return nil, errors.New("an MQTT packet with a malformed length")
		}
		if _, err := io.ReadFull(r, head[n:n+1]); err != nil {
			return nil, err
		}
		length |= int(head[n]&0x7f) << shift
		if n++; head[n-1]&0x80 == 0 {
			break
		}
	}
	if length > maxIncoming {
		return nil, fmt.Errorf("an MQTT packet of %d bytes, at most %d", length, maxIncoming)
	}
	return packets.ReadPacket(io.MultiReader(bytes.NewReader(head[:n]), r))
}

// counted counts the bytes of a socket.
type counted struct {
	net.Conn
	in, out *atomic.Uint64
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.in.Add(uint64(n))
	return n, err
}

func (c *counted) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.out.Add(uint64(n))
	return n, err
}
