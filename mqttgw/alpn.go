package mqttgw

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// ALPN is the protocol name (RFC 7301) by which a connection to a shared port
// asks for MQTT.
const ALPN = "mqtt"

const (
	// peekTimeout bounds the wait for a whole ClientHello.
	peekTimeout = 10 * time.Second
	// maxPeeks is how many connections may be without a ClientHello; with more
	// the next ones wait to be accepted. Together with maxHello it bounds what
	// strangers can have in memory.
	maxPeeks = 4096
	// maxHello bounds the bytes up to the end of a ClientHello; honest ones
	// have 300 to 4,000.
	maxHello = 32 << 10
	// innerTimeout bounds the dial to the MQTT listener.
	innerTimeout = 5 * time.Second
	// lingerTimeout is how long one direction may outlive the other. The
	// broker closes both at once; a client need not.
	lingerTimeout = 10 * time.Second
	// chunk is how much one read moves.
	chunk = 16 << 10
)

// Shared is a listener for HTTPS whose port serves MQTT as well. A connection
// whose ClientHello offers [ALPN] and nothing else goes to the broker's MQTT
// listener, byte for byte: TLS ends there, with all its checks. Every other
// connection comes out of Accept, with nothing taken from it.
type Shared struct {
	l       net.Listener
	broker  *Broker
	timeout time.Duration         // peekTimeout
	linger  time.Duration         // lingerTimeout
	target  func() netip.AddrPort // the MQTT listener; the zero value if there is none
	web     chan net.Conn
	slots   chan struct{}
	closed  chan struct{} // Close was called
	shut    func()        // closes that
	unbind  func() error  // closes the listener
	dials   atomic.Uint32
	conns   sync.WaitGroup

	mu       sync.Mutex
	passages map[*spliced]struct{}
}

// Share takes over a TCP listener. Its connections are accepted while Run runs.
func (b *Broker) Share(l net.Listener) *Shared {
	s := &Shared{
		l: l, broker: b, timeout: peekTimeout, linger: lingerTimeout, target: b.mqttTarget,
		web: make(chan net.Conn), slots: make(chan struct{}, maxPeeks), closed: make(chan struct{}), passages: make(map[*spliced]struct{}),
	}
	s.shut = sync.OnceFunc(func() { close(s.closed) })
	s.unbind = sync.OnceValue(l.Close)
	b.shared.Store(s)
	return s
}

// mqttTarget is where this process reaches its own MQTT listener. A listener on
// a name is dialled where it resolved to.
func (b *Broker) mqttTarget() netip.AddrPort {
	tcp, err := net.ResolveTCPAddr("tcp", b.MQTTAddr())
	if err != nil || tcp.Port == 0 {
		return netip.AddrPort{}
	}
	a := tcp.AddrPort()
	if a.Addr().IsUnspecified() {
		// A listener on all IPv6 addresses is one on all IPv4 addresses too.
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), a.Port())
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// Accept returns the next connection that is not for the broker. After the end
// of Run there is none, and it waits for Close: it is for the HTTPS server to
// say when it ends.
func (s *Shared) Accept() (net.Conn, error) {
	select {
	case c := <-s.web:
		return c, nil
	case <-s.closed:
		return nil, net.ErrClosed
	}
}

// Addr is the listener's address.
func (s *Shared) Addr() net.Addr { return s.l.Addr() }

// Close closes the listener and has Run end.
func (s *Shared) Close() error {
	s.shut()
	return s.unbind()
}

// Conns returns the number of connections that are passed to the broker.
func (s *Shared) Conns() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.passages)
}

// giveUp closes one of the connections that are passed to the broker, for the
// files that it holds.
func (s *Shared) giveUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p := range s.passages {
		delete(s.passages, p) // another one the next time
		p.shut()
		return
	}
}

// Run serves until ctx is done or the listener is closed, which is no error. On
// its way out it closes the connections that it passes to the broker and waits
// for them; those that Accept returned are their owner's.
func (s *Shared) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer s.conns.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = s.unbind() })()
	pause := time.NewTimer(0)
	defer pause.Stop()
	for failures := 0; ; {
		select {
		case s.slots <- struct{}{}:
		case <-s.closed:
			return nil
		case <-ctx.Done():
			return nil
		}
		c, err := s.l.Accept()
		if err == nil && crowded(c, int(s.broker.maxFiles.Load())) {
			<-s.slots
			_ = c.Close()
			s.broker.refuse("files")
			continue
		}
		if err == nil {
			failures = 0
			s.conns.Go(func() {
				defer func() { <-s.slots }()
				s.route(ctx, c)
			})
			continue
		}
		<-s.slots
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		// File descriptors ran out, as a rule. Some will be given back.
		s.broker.cfg.Log.Warn("accept on the shared port", "err", err)
		pause.Reset(min(time.Second, 5*time.Millisecond<<min(failures, 8)))
		failures++
		select {
		case <-pause.C:
		case <-s.closed:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// route decides about one connection and lets go of it.
func (s *Shared) route(ctx context.Context, c net.Conn) {
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	hello := &recorder{Conn: c}
	_ = c.SetReadDeadline(time.Now().Add(s.timeout))
	mqtt := offersMQTT(ctx, hello)
	_ = c.SetReadDeadline(time.Time{})
	outer, tcp := c.(*net.TCPConn)
	switch {
	case hello.err != nil:
		_ = c.Close()
	case mqtt && tcp:
		if err := s.pass(ctx, outer, hello.buf.Bytes()); err != nil && ctx.Err() == nil {
			s.broker.refuse("listener")
			s.broker.cfg.Log.Warn("cannot pass a connection to the MQTT listener", "address", c.RemoteAddr().String(), "err", err)
		}
	default:
		stop() // the next owner closes it
		select {
		case s.web <- &replayed{Conn: c, head: hello.buf.Bytes()}:
		case <-s.closed:
			_ = c.Close()
		case <-ctx.Done():
			_ = c.Close()
		}
	}
}

// offersMQTT reads a ClientHello, with the reader of crypto/tls.
func offersMQTT(ctx context.Context, c net.Conn) (yes bool) {
	_ = tls.Server(c, &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		yes = len(h.SupportedProtos) == 1 && h.SupportedProtos[0] == ALPN
		return nil, errPeeked
	}}).HandshakeContext(ctx)
	return yes
}

var (
	errPeeked  = errors.New("the ClientHello was read")
	errTooLong = errors.New("no ClientHello in what was sent")
)

// recorder keeps what is read, and answers nothing.
type recorder struct {
	net.Conn
	buf bytes.Buffer
	err error // of the connection, or that it sent too much
}

func (r *recorder) Read(p []byte) (int, error) {
	if r.buf.Len() >= maxHello {
		r.err = errTooLong
		return 0, r.err
	}
	n, err := r.Conn.Read(p[:min(len(p), maxHello-r.buf.Len())])
	r.buf.Write(p[:n])
	if n == 0 {
		r.err = err
	}
	return n, err
}

func (r *recorder) Write(p []byte) (int, error) { return len(p), nil }

// replayed gives back what was read.
type replayed struct {
	net.Conn
	head []byte
}

func (c *replayed) Read(p []byte) (int, error) {
	if len(c.head) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.head)
	if c.head = c.head[n:]; len(c.head) == 0 {
		c.head = nil
	}
	return n, nil
}

// pass connects outer with the MQTT listener and returns when both directions
// have their goroutine. On an error outer is closed.
func (s *Shared) pass(ctx context.Context, outer *net.TCPConn, hello []byte) error {
	inner, err := s.dial(ctx)
	if err != nil {
		_ = outer.Close()
		return err
	}
	from := inner.LocalAddr().(*net.TCPAddr).AddrPort()
	s.broker.origins.add(from, outer.RemoteAddr().(*net.TCPAddr).AddrPort())
	s.broker.watchPeer(outer)
	socket := s.broker.meter.await(from, outer)
	sp := &spliced{outer: outer, inner: inner, linger: s.linger, stall: s.broker.cfg.UserTimeout}
	stop := context.AfterFunc(ctx, sp.shut)
	s.mu.Lock()
	s.passages[sp] = struct{}{}
	s.mu.Unlock()
	end := func() {
		stop()
		s.broker.meter.read(socket)
		sp.shut()
		s.broker.origins.remove(from)
		s.mu.Lock()
		delete(s.passages, sp)
		s.mu.Unlock()
	}
	if err := sp.write(inner, hello); err != nil {
		end()
		return err
	}
	var left atomic.Int32
	left.Store(2)
	// Goroutines of their own, whose stacks no handshake has grown.
	for dst, src := range map[*net.TCPConn]*net.TCPConn{inner: outer, outer: inner} {
		s.conns.Go(func() {
			sp.pump(dst, src)
			if left.Add(-1) == 0 {
				end()
			}
		})
	}
	return nil
}

// loopbacks are the addresses that connections to the MQTT listener come from:
// all of 127/8 is this machine's on Linux, and one address has only 28,000
// ports.
var loopbacks = netip.MustParsePrefix("127.64.0.0/10")

func (s *Shared) dial(ctx context.Context) (*net.TCPConn, error) {
	target := s.target()
	if !target.IsValid() {
		return nil, errors.New("there is no MQTT listener")
	}
	d := net.Dialer{Timeout: innerTimeout, KeepAlive: -1}
	if a := target.Addr(); a.Is4() && a.IsLoopback() {
		n := s.dials.Add(1)
		d.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, byte(64|n>>16&63), byte(n>>8), byte(n))}
	}
	c, err := d.DialContext(ctx, "tcp", target.String())
	if err != nil && errors.Is(err, unix.EADDRNOTAVAIL) && d.LocalAddr != nil {
		d.LocalAddr = nil
		c, err = d.DialContext(ctx, "tcp", target.String())
	}
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// spliced is a pair of connections.
type spliced struct {
	outer, inner  *net.TCPConn
	linger, stall time.Duration
}

func (p *spliced) shut() {
	_ = p.outer.Close()
	_ = p.inner.Close()
}

// write gives up on a reader that takes nothing for too long: TCP alone would
// wait for a closed window for ever.
func (p *spliced) write(dst *net.TCPConn, b []byte) error {
	if err := dst.SetWriteDeadline(time.Now().Add(p.stall)); err != nil {
		return err
	}
	_, err := dst.Write(b)
	return err
}

var chunks = sync.Pool{New: func() any { return new([chunk]byte) }}

// pump moves bytes from src to dst until one of them ends. It takes a buffer
// only when there is something to read: there may be 100,000 idle connections.
func (p *spliced) pump(dst, src *net.TCPConn) {
	raw, err := src.SyscallConn()
	if err != nil {
		p.shut()
		return
	}
	var buf *[chunk]byte
	var n int
	var failed error
	read := func(fd uintptr) bool {
		buf = chunks.Get().(*[chunk]byte)
		for {
			n, failed = unix.Read(int(fd), buf[:])
			if !errors.Is(failed, unix.EINTR) {
				break
			}
		}
		if errors.Is(failed, unix.EAGAIN) {
			chunks.Put(buf)
			buf = nil
			return false
		}
		return true
	}
	for {
		err := raw.Read(read)
		if err == nil {
			err = failed
		}
		if err == nil && n == 0 {
			err = io.EOF
		}
		if err == nil {
			err = p.write(dst, buf[:n])
		}
		if buf != nil {
			chunks.Put(buf)
			buf = nil
		}
		switch {
		case errors.Is(err, io.EOF):
			// What goes the other way may still arrive.
			if dst.CloseWrite() != nil || dst.SetReadDeadline(time.Now().Add(p.linger)) != nil {
				p.shut()
			}
			return
		case err != nil:
			p.shut()
			return
		}
	}
}

// origins knows where passed connections really come from, by the address that
// the broker sees.
type origins struct {
	mu   sync.RWMutex
	real map[netip.AddrPort]netip.AddrPort
}

func (o *origins) add(seen, from netip.AddrPort) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.real == nil {
		o.real = make(map[netip.AddrPort]netip.AddrPort)
	}
	o.real[plain(seen)] = plain(from)
}

func (o *origins) remove(seen netip.AddrPort) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.real, plain(seen))
}

// passed says whether a connection came through a shared port and is there.
func (o *origins) passed(seen netip.AddrPort) bool {
	o.mu.RLock()
	defer o.mu.RUnlock()
	_, ok := o.real[plain(seen)]
	return ok
}

// of returns the real address; seen itself when the connection was not passed.
// The zero value says that it was and has ended.
func (o *origins) of(seen netip.AddrPort) netip.AddrPort {
	seen = plain(seen)
	o.mu.RLock()
	defer o.mu.RUnlock()
	if from, ok := o.real[seen]; ok {
		return from
	}
	if loopbacks.Contains(seen.Addr()) {
		return netip.AddrPort{}
	}
	return seen
}

// host is of for what the broker calls host and port.
func (o *origins) host(host string, port int) string {
	seen, err := netip.ParseAddr(host)
	if err != nil {
		return host
	}
	if from := o.of(netip.AddrPortFrom(seen, uint16(port))); from.IsValid() {
		return from.Addr().String()
	}
	return noAddress
}

// inLine puts the real address into a line of the broker that begins with one.
func (o *origins) inLine(s string) string {
	host, rest, ok := strings.Cut(s, mqttLine)
	if !ok {
		return s
	}
	seen, err := netip.ParseAddrPort(host)
	if err != nil {
		return s
	}
	if from := o.of(seen); from.IsValid() {
		return from.String() + mqttLine + rest
	}
	return noAddress + mqttLine + rest
}

func plain(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// noAddress stands for the address of a connection that has ended meanwhile.
const noAddress = "unknown"

// address returns the host that a connection of the broker comes from. host is
// what the broker takes it for.
func (b *Broker) address(conn uint64, host string) string {
	if seen, ok := b.seen(conn); ok {
		return b.origins.host(host, int(seen.Port()))
	}
	// It has ended. Only that it is not a passed one can still be known.
	if seen, err := netip.ParseAddr(host); err == nil && seen.Unmap() == b.mqttTarget().Addr() {
		return noAddress
	}
	return b.origins.host(host, 0)
}
