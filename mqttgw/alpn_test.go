package mqttgw

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pallas/mqttgw/wire"
)

// share runs a shared port for the broker, with an HTTPS server that answers
// "hello". change may alter it before it runs.
func share(t testing.TB, b *Broker, cert tls.Certificate, change ...func(*Shared)) (s *Shared, stop func()) {
	t.Helper()
	s = b.Share(must(net.Listen("tcp", "127.0.0.1:0"))(t))
	for _, f := range change {
		f(s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	web := &http.Server{
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hello "+r.RemoteAddr) }),
		TLSConfig:         &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}},
		ReadHeaderTimeout: time.Second,
		ErrorLog:          slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
	}
	served, ran := make(chan error, 1), make(chan error, 1)
	go func() { served <- web.ServeTLS(s, "", "") }()
	go func() { ran <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("shared port: %v", err)
		}
		// Its end is not the HTTPS server's, which is told apart.
		_ = web.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("HTTPS: %v", err)
		}
	})
	t.Cleanup(stop)
	return s, stop
}

func (d *door) share(change ...func(*Shared)) *Shared {
	d.t.Helper()
	s, _ := share(d.t, d.broker, must(d.ca.IssueServer([]string{"127.0.0.1"}, time.Now(), 0))(d.t), change...)
	return s
}

// from dials the shared port as a device at another address of this machine.
func from(s *Shared, ip string) func() (net.Conn, error) {
	return func() (net.Conn, error) {
		return (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}).Dial("tcp", s.Addr().String())
	}
}

func (d *door) get(s *Shared, protocols ...string) (version int, body string) {
	d.t.Helper()
	transport := &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: d.ca.Pool(), NextProtos: protocols},
		ForceAttemptHTTP2: len(protocols) > 0 && protocols[0] == "h2", DisableKeepAlives: true,
	}
	defer transport.CloseIdleConnections()
	r, err := (&http.Client{Transport: transport, Timeout: patience}).Get("https://" + s.Addr().String())
	check(d.t, err)
	defer r.Body.Close()
	return r.ProtoMajor, string(must(io.ReadAll(r.Body))(d.t))
}

func (d *door) addressOf(dev *device) string {
	sh := d.gateway.shard(dev.id)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if s := sh.sessions[dev.id]; s != nil {
		return s.address
	}
	return ""
}

var mqttOnly = []string{ALPN}

func TestOnePortServesHTTPSAndMQTT(t *testing.T) {
	d := newDoor(t)
	s := d.share(func(s *Shared) { s.linger = time.Second }) // the client below does not close when it is kicked
	dev, other := d.device(), d.device()
	c := dev.dial(connectOptions{client: string(dev.id), alpn: mqttOnly, dial: from(s, "127.0.0.9")})
	if c.err != nil || c.code != 0 {
		t.Fatalf("connect: %v, code %d", c.err, c.code)
	}
	if code := c.subscribe(wire.DownTopic(string(dev.id)), 0); code != 0 {
		t.Fatalf("subscribe: return code %#x", code)
	}
	c.alive(wire.Hello{})
	if a := d.addressOf(dev); a != "127.0.0.9" {
		t.Errorf("the session comes from %q, want 127.0.0.9", a)
	}
	for _, p := range []struct {
		alpn []string
		want int
	}{{[]string{"h2"}, 2}, {[]string{"http/1.1"}, 1}, {nil, 1}, {[]string{"http/1.1", ALPN}, 1}} {
		version, body := d.get(s, p.alpn...)
		if version != p.want || !strings.HasPrefix(body, "hello 127.0.0.1:") {
			t.Errorf("HTTPS with ALPN %v: HTTP/%d, %q, want HTTP/%d", p.alpn, version, body, p.want)
		}
	}

	// All that the MQTT port refuses is refused here.
	if c := dev.dial(connectOptions{client: string(other.id), alpn: mqttOnly, dial: from(s, "127.0.0.10")}); c.err != nil || c.code != 5 {
		t.Errorf("another's client id: %v, code %d, want 5", c.err, c.code)
	}
	if n := d.refusals(reasonClientID); n != 1 {
		t.Errorf("%d refusals for the client id, want 1", n)
	}
	if c := dev.dial(connectOptions{client: string(dev.id), cert: &tls.Certificate{}, alpn: mqttOnly, dial: from(s, "127.0.0.11")}); c.err == nil {
		t.Error("connected without a certificate")
	}
	eventually(t, "the refusal is counted", func() bool { return d.refusals("certificate_missing") == 1 })
	stranger := dev.issue(newCA(t), time.Now(), 0)
	if c := dev.dial(connectOptions{client: string(dev.id), cert: &stranger, alpn: mqttOnly, dial: from(s, "127.0.0.11")}); c.err == nil {
		t.Error("connected with a certificate of another CA")
	}
	// MQTT without its name is taken for HTTPS, and goes no further.
	if c := dev.dial(connectOptions{client: string(dev.id), dial: from(s, "127.0.0.11")}); c.err == nil {
		t.Error("connected without ALPN")
	}

	// The first one noticed nothing, and can be kicked.
	c.ping()
	check(t, d.gateway.Kick(t.Context(), dev.id, "test"))
	c.waitClosed(patience)
	eventually(t, "nothing is passed any more", func() bool { return s.Conns() == 0 })
	for _, want := range []string{"address=127.0.0.9", "address=127.0.0.10", "127.0.0.11:"} {
		if !strings.Contains(d.logs.String(), want) {
			t.Errorf("the log does not tell of %s", want)
		}
	}
	if strings.Contains(d.logs.String(), "127.64.") {
		t.Error("the log tells of the address of the passage")
	}
}

// The port passes connections on wherever the MQTT listener is.
func TestSharedPortFindsTheListener(t *testing.T) {
	listen := []string{"0.0.0.0:0", "[::]:0", ":0", "localhost:0", "127.0.0.5:0"}
	addrs := must(net.InterfaceAddrs())(t)
	for _, a := range addrs {
		if p := must(netip.ParsePrefix(a.String()))(t); p.Addr().Is4() && !p.Addr().IsLoopback() {
			listen = append(listen, p.Addr().String()+":0")
		}
	}
	if len(addrs) > 0 && must(netip.ParsePrefix(addrs[len(addrs)-1].String()))(t).Addr() == netip.IPv6Loopback() {
		listen = append(listen, "[::1]:0")
	}
	for _, l := range listen {
		t.Run(l, func(t *testing.T) {
			d := newDoorAt(t, l)
			s := d.share()
			dev := d.device()
			c := dev.dial(connectOptions{client: string(dev.id), alpn: mqttOnly, dial: from(s, "127.0.0.9")})
			if c.err != nil || c.code != 0 {
				t.Fatalf("connect: %v, code %d", c.err, c.code)
			}
			if a := d.addressOf(dev); a != "127.0.0.9" {
				t.Errorf("the session comes from %q, want 127.0.0.9", a)
			}
			// A gateway that finds the connection learns of its address too.
			d.stop()
			d.open()
			eventually(t, "the session is found", func() bool { return d.addressOf(dev) != "" })
			if a := d.addressOf(dev); a != "127.0.0.9" {
				t.Errorf("the session that is found comes from %q, want 127.0.0.9", a)
			}
			if strings.Contains(d.logs.String(), "127.64.") {
				t.Error("the log tells of the address of the passage")
			}
		})
	}
}

func TestAddressOfAnEndedPassageIsUnknown(t *testing.T) {
	d := newDoor(t)
	for host, want := range map[string]string{"127.64.0.1": noAddress, "127.0.0.1": noAddress, "192.0.2.1": "192.0.2.1", "": "", "x": "x"} {
		if got := d.broker.address(1<<40, host); got != want {
			t.Errorf("address of an ended connection from %q: %q, want %q", host, got, want)
		}
	}
	if got := d.broker.origins.inLine("127.64.0.1:99 - mid:7 - text"); got != "unknown - mid:7 - text" {
		t.Errorf("line %q", got)
	}
}

// choppy writes the first n bytes in pieces of 100, each its own segment.
type choppy struct {
	net.Conn
	left int
}

func (c *choppy) Write(p []byte) (done int, err error) {
	for len(p) > 0 && err == nil {
		n := len(p)
		if c.left > 0 {
			n = min(n, 100)
		}
		n, err = c.Conn.Write(p[:n])
		done, c.left, p = done+n, c.left-n, p[n:]
	}
	return done, err
}

// manyRecords writes the ClientHello as TLS records of 50 bytes.
type manyRecords struct {
	net.Conn
	wrote bool
}

func (c *manyRecords) Write(p []byte) (int, error) {
	if c.wrote {
		return c.Conn.Write(p)
	}
	c.wrote = true
	var out []byte
	for body := p[5:]; len(body) > 0; {
		n := min(50, len(body))
		out = append(append(out, p[:3]...), byte(n>>8), byte(n))
		out, body = append(out, body[:n]...), body[n:]
	}
	if _, err := c.Conn.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}

func TestClientHelloInPieces(t *testing.T) {
	d := newDoor(t)
	s := d.share()
	for name, wrap := range map[string]func(net.Conn) net.Conn{
		"segments": func(c net.Conn) net.Conn { return &choppy{Conn: c, left: 4000} },
		"records":  func(c net.Conn) net.Conn { return &manyRecords{Conn: c} },
	} {
		dev := d.device()
		c := dev.dial(connectOptions{client: string(dev.id), alpn: mqttOnly, dial: func() (net.Conn, error) {
			c, err := from(s, "127.0.0.9")()
			return wrap(c), err
		}})
		if c.err != nil || c.code != 0 {
			t.Errorf("%s: %v, code %d", name, c.err, c.code)
		}
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: d.ca.Pool()}, DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
			c, err := from(s, "127.0.0.9")()
			return wrap(c), err
		}}
		r, err := (&http.Client{Transport: transport, Timeout: patience}).Get("https://" + s.Addr().String())
		if err != nil {
			t.Errorf("%s: HTTPS: %v", name, err)
			continue
		}
		_ = r.Body.Close()
	}
}

// hello returns a ClientHello for MQTT.
func hello(t testing.TB) []byte {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	go func() { _ = tls.Client(a, &tls.Config{NextProtos: mqttOnly, ServerName: "x"}).Handshake() }()
	head := make([]byte, 5)
	must(io.ReadFull(b, head))(t)
	body := make([]byte, binary.BigEndian.Uint16(head[3:]))
	must(io.ReadFull(b, body))(t)
	return slices.Concat(head, body)
}

func TestNoClientHelloIsNotWaitedForLong(t *testing.T) {
	d := newDoor(t)
	s := d.share(func(s *Shared) {
		s.timeout = 300 * time.Millisecond
		s.slots = make(chan struct{}, 2)
	})
	half := hello(t)[:100]
	long := append([]byte{22, 3, 1, 64, 0}, bytes.Repeat([]byte{1, 0, 0xff, 0xff}, 4096)...)
	for name, sent := range map[string][]byte{"nothing": nil, "half a hello": half, "a hello without end": append(long, append(long, long...)...)} {
		var slow []net.Conn
		for range 4 { // twice as many as may wait
			c := must(from(s, "127.0.0.9")())(t)
			defer c.Close()
			_, _ = c.Write(sent) // it may be closed already
			slow = append(slow, c)
		}
		// All of them are in line before this one.
		if _, body := d.get(s); !strings.HasPrefix(body, "hello") {
			t.Errorf("%s: HTTPS answers %q", name, body)
		}
		for _, c := range slow {
			_ = c.SetReadDeadline(time.Now().Add(patience))
			if n, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) || (n > 0 && sent == nil) {
				t.Errorf("%s: %d bytes, %v, want a closed connection", name, n, err)
			}
		}
	}
	// What is no TLS at all is told so by the HTTPS server, as without MQTT.
	c := must(from(s, "127.0.0.9")())(t)
	defer c.Close()
	must(fmt.Fprintf(c, "GET / HTTP/1.0\r\n\r\n"))(t)
	_ = c.SetReadDeadline(time.Now().Add(patience))
	if b, err := io.ReadAll(c); err != nil || !bytes.Contains(b, []byte("400 Bad Request")) {
		t.Errorf("plain HTTP: %q, %v, want 400", b, err)
	}
}

// passage is a shared port in front of a listener of the test's own.
func passage(t *testing.T, serve func(net.Conn), change ...func(*Shared)) (s *Shared, stop func()) {
	t.Helper()
	b := must(NewBroker(BrokerConfig{Dir: t.TempDir()}))(t)
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				serve(c)
			})
		}
	})
	s, quit := share(t, b, tls.Certificate{}, append(change, func(s *Shared) {
		s.target = func() netip.AddrPort { return l.Addr().(*net.TCPAddr).AddrPort() }
	})...)
	stop = sync.OnceFunc(func() {
		quit()
		_ = l.Close()
		wg.Wait()
	})
	t.Cleanup(stop)
	return s, stop
}

func TestPassageKeepsEveryByte(t *testing.T) {
	const size = 900_000
	up, down := make([]byte, size), make([]byte, size)
	_, _ = rand.Read(up)
	_, _ = rand.Read(down)
	first := hello(t)
	got := make(chan []byte, 1)
	s, _ := passage(t, func(c net.Conn) {
		var wg sync.WaitGroup
		wg.Go(func() {
			b, _ := io.ReadAll(c)
			got <- b
		})
		_, _ = c.Write(down)
		wg.Wait()
		// The other side has closed its half, and still listens.
		_, _ = c.Write(down)
	})
	c := must(from(s, "127.0.0.9")())(t).(*net.TCPConn)
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(append(bytes.Clone(first), up...))
		wrote <- errors.Join(err, c.CloseWrite())
	}()
	back, err := io.ReadAll(c)
	check(t, err)
	check(t, <-wrote)
	if b := <-got; !bytes.Equal(b, append(bytes.Clone(first), up...)) {
		t.Errorf("%d bytes arrived, not the %d that were sent", len(b), len(first)+len(up))
	}
	if !bytes.Equal(back, append(bytes.Clone(down), down...)) {
		t.Errorf("%d bytes came back, not the %d that were sent", len(back), 2*len(down))
	}
	eventually(t, "the passage ends", func() bool { return s.Conns() == 0 })
}

// A peer that keeps its half open does not keep the passage.
func TestPassageEndsWithEitherSide(t *testing.T) {
	first := hello(t)
	enough := func(c net.Conn) { _, _ = io.ReadFull(c, make([]byte, len(first))) }
	linger := func(s *Shared) { s.linger = 50 * time.Millisecond }
	t.Run("inner", func(t *testing.T) {
		s, _ := passage(t, enough, linger)
		c := must(from(s, "127.0.0.9")())(t)
		defer c.Close()
		must(c.Write(first))(t)
		eventually(t, "the passage ends", func() bool { return s.Conns() == 0 && len(s.slots) <= 1 })
		_ = c.SetReadDeadline(time.Now().Add(patience))
		if n, err := c.Read(make([]byte, 1)); n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read %d bytes, %v, want the end", n, err)
		}
	})
	t.Run("outer", func(t *testing.T) {
		ended := make(chan struct{})
		s, _ := passage(t, func(c net.Conn) {
			enough(c)
			<-ended // deaf
		}, linger)
		c := must(from(s, "127.0.0.9")())(t).(*net.TCPConn)
		defer c.Close()
		must(c.Write(first))(t)
		eventually(t, "the passage is there", func() bool { return s.Conns() == 1 })
		check(t, c.CloseWrite())
		eventually(t, "the passage ends", func() bool { return s.Conns() == 0 })
		close(ended)
	})
	t.Run("reader that does not read", func(t *testing.T) {
		s, _ := passage(t, func(c net.Conn) { _, _ = c.Write(make([]byte, 64<<20)) }, func(s *Shared) {
			s.broker.cfg.UserTimeout = 300 * time.Millisecond
		})
		c := must(from(s, "127.0.0.9")())(t)
		defer c.Close()
		must(c.Write(first))(t)
		eventually(t, "the passage is there", func() bool { return s.Conns() == 1 })
		eventually(t, "the passage ends", func() bool { return s.Conns() == 0 })
	})
	t.Run("listener that is not there", func(t *testing.T) {
		s, _ := share(t, must(NewBroker(BrokerConfig{Dir: t.TempDir()}))(t), tls.Certificate{})
		c := must(from(s, "127.0.0.9")())(t)
		defer c.Close()
		must(c.Write(first))(t)
		_ = c.SetReadDeadline(time.Now().Add(patience))
		if n, err := c.Read(make([]byte, 1)); n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read %d bytes, %v, want the end", n, err)
		}
	})
}

func fds(t *testing.T) int {
	t.Helper()
	return len(must(os.ReadDir("/proc/self/fd"))(t))
}

func TestPassagesLeaveNothing(t *testing.T) {
	const n = 1000
	first := hello(t)
	s, stop := passage(t, func(c net.Conn) {
		b := make([]byte, len(first)+1)
		if _, err := io.ReadFull(c, b); err == nil && b[len(first)] == 'q' {
			return // the broker closes
		}
		_, _ = io.Copy(io.Discard, c)
	})
	goroutines, files := runtime.NumGoroutine(), fds(t)
	for round := range 2 {
		var conns []*net.TCPConn
		for i := range n / 2 {
			c := must(from(s, "127.0.0.9")())(t).(*net.TCPConn)
			defer c.Close()
			how := byte('w')
			if i%3 == 0 {
				how = 'q'
			}
			must(c.Write(append(bytes.Clone(first), how)))(t)
			conns = append(conns, c)
		}
		for i, c := range conns {
			if i%3 == 1 {
				_ = c.SetLinger(0) // a reset
			}
			if i%3 == 0 {
				_ = c.SetReadDeadline(time.Now().Add(patience))
				_, _ = io.Copy(io.Discard, c)
			}
			_ = c.Close()
		}
		eventually(t, "all is given back", func() bool {
			return s.Conns() == 0 && runtime.NumGoroutine() <= goroutines+2 && fds(t) <= files
		})
		if n := len(s.broker.origins.real); n != 0 {
			t.Errorf("round %d: %d addresses are kept", round, n)
		}
	}
	// Those that are there when it ends are closed.
	for range 100 {
		c := must(from(s, "127.0.0.9")())(t)
		defer c.Close()
		must(c.Write(first))(t)
	}
	eventually(t, "all are passed", func() bool { return s.Conns() == 100 })
	stop()
	if s.Conns() != 0 {
		t.Errorf("%d connections outlive the port", s.Conns())
	}
	if _, err := s.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept after the end: %v, want net.ErrClosed", err)
	}
}
