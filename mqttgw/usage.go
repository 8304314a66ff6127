package mqttgw

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"pallas/events"
	"pallas/events/telemetry"
)

// The kernel counts what a connection costs, TLS and handshakes included, and
// says it of the socket that the device is connected to (TCP_INFO). A device is
// asked nothing. What the kernel does not tell is left out: the SYN-ACK, the
// options of a SYN, SACK blocks, and whatever lies below IP.
const (
	ipv4Header, ipv6Header = 20, 40
	tcpHeader              = 20
	timestampOption        = 12 // of each segment, when both sides want it
	tcpiTimestamps         = 1  // TCPI_OPT_TIMESTAMPS of linux/tcp.h
)

const (
	// sweepSlices parts the connections: one slice is read in each sweepTick,
	// so that every connection is read once a minute and never all at once.
	sweepSlices = 60
	sweepTick   = time.Second
	// maxUnwritten bounds the messages that wait for a log with room. Beyond it
	// the oldest go: telemetry gives way to everything else.
	maxUnwritten = 1024
	// lastFlush bounds the writing of what is left when the gateway ends.
	lastFlush = 5 * time.Second
)

// UsageLog keeps what the devices' connections cost. An id counts once.
type UsageLog interface {
	AppendUsage(ctx context.Context, id events.ID, u telemetry.Usage) error
}

// link is a connection whose socket is read.
type link struct {
	device events.DeviceID // "" until its certificate was checked
	conn   *net.TCPConn
	read   telemetry.Bytes
}

// bytes asks the kernel. A closed connection is an error.
func (l *link) bytes() (b telemetry.Bytes, err error) {
	raw, err := l.conn.SyscallConn()
	if err != nil {
		return b, err
	}
	var info *unix.TCPInfo
	var failed error
	err = raw.Control(func(fd uintptr) { info, failed = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	if err = errors.Join(err, failed); err != nil {
		return b, err
	}
	return wireBytes(info, l.conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap().Is4()), nil
}

// wireBytes adds a header for each segment to the payload. Payload that was
// sent again counts again; payload that came again shows as headers only.
func wireBytes(info *unix.TCPInfo, v4 bool) telemetry.Bytes {
	header := uint64(ipv6Header + tcpHeader)
	if v4 {
		header = ipv4Header + tcpHeader
	}
	if info.Options&tcpiTimestamps != 0 {
		header += timestampOption
	}
	return telemetry.Bytes{
		Received: info.Bytes_received + header*uint64(info.Segs_in),
		Sent:     cmp.Or(info.Bytes_sent, info.Bytes_acked) + header*uint64(info.Segs_out), // Linux before 4.19 has no Bytes_sent
	}
}

// meter reads the sockets of devices.
type meter struct {
	bytes                   *prometheus.CounterVec
	received, sent, dropped prometheus.Counter

	mu sync.Mutex
	// waiting has connections of which the device is not known yet, by the
	// address that the broker sees; links those of devices, by the broker's
	// number, in slices.
	waiting map[netip.AddrPort]*link
	links   [sweepSlices]map[uint64]*link
	turn    int
	// day has begun with fresh empty: what was read and is not written.
	day   telemetry.Day
	fresh map[events.DeviceID]telemetry.Bytes
}

func newMeter() *meter {
	bytes := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "pallas_device_bytes_total",
		Help: "Bytes on the wire between devices and the device door, with IP and TCP headers, by direction as the manager sees it.",
	}, []string{"direction"})
	m := &meter{
		bytes: bytes, received: bytes.WithLabelValues("received"), sent: bytes.WithLabelValues("sent"),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "pallas_telemetry_dropped_total", Help: "Messages of telemetry that could not be written and were given up.",
		}),
		waiting: make(map[netip.AddrPort]*link), fresh: make(map[events.DeviceID]telemetry.Bytes),
	}
	for i := range m.links {
		m.links[i] = make(map[uint64]*link)
	}
	return m
}

// await notes a connection before anybody knows whose it is.
func (m *meter) await(seen netip.AddrPort, conn *net.TCPConn) *link {
	l := &link{conn: conn}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.waiting[plain(seen)] = l
	return l
}

// adopt gives a connection to the device that it was authorized for.
func (m *meter) adopt(seen netip.AddrPort, conn uint64, device events.DeviceID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l := m.waiting[plain(seen)]; l != nil {
		delete(m.waiting, plain(seen))
		l.device = device
		m.links[conn%sweepSlices][conn] = l
	}
}

// count reads a connection now, if it still answers.
func (m *meter) count(conn uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l := m.links[conn%sweepSlices][conn]; l != nil {
		_ = m.readLocked(l)
	}
}

// end reads a connection for the last time, and forgets it.
func (m *meter) end(conn uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l := m.links[conn%sweepSlices][conn]; l != nil {
		_ = m.readLocked(l)
		delete(m.links[conn%sweepSlices], conn)
	}
}

// read is count by the link itself.
func (m *meter) read(l *link) {
	m.mu.Lock()
	defer m.mu.Unlock()
	_ = m.readLocked(l)
}

// readLocked adds what is new to its device's. The mutex is held.
func (m *meter) readLocked(l *link) error {
	if l.device == "" {
		return nil
	}
	now, err := l.bytes()
	if err != nil {
		return err
	}
	b := telemetry.Bytes{Received: now.Received - l.read.Received, Sent: now.Sent - l.read.Sent}
	if b.Total() == 0 {
		return nil
	}
	l.read = now
	m.fresh[l.device] = m.fresh[l.device].Plus(b)
	m.received.Add(float64(b.Received))
	m.sent.Add(float64(b.Sent))
	return nil
}

// sweep reads the next slice, and forgets connections that have ended.
func (m *meter) sweep() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for seen, l := range m.waiting {
		if l.closed() {
			delete(m.waiting, seen)
		}
	}
	slice := m.links[m.turn]
	m.turn = (m.turn + 1) % sweepSlices
	for conn, l := range slice {
		if m.readLocked(l) != nil {
			delete(slice, conn)
		}
	}
}

// closed says whether the connection was closed on this side.
func (l *link) closed() bool {
	raw, err := l.conn.SyscallConn()
	return err != nil || raw.Control(func(uintptr) {}) != nil
}

// begin sets the day, unless an earlier gateway of the broker has.
func (m *meter) begin(now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.day == "" {
		m.day = telemetry.DayOf(now)
	}
}

// take returns what was read and not taken yet, and the day of it. The time is
// the beginning of what comes next.
func (m *meter) take(now time.Time) []telemetry.Usage {
	m.mu.Lock()
	fresh, day := m.fresh, m.day
	m.fresh, m.day = make(map[events.DeviceID]telemetry.Bytes), telemetry.DayOf(now)
	m.mu.Unlock()
	var out []telemetry.Usage
	for device, b := range fresh {
		if n := len(out); n == 0 || len(out[n-1].Devices) == telemetry.MaxDevices {
			out = append(out, telemetry.Usage{Day: day})
		}
		u := &out[len(out)-1]
		u.Devices = append(u.Devices, telemetry.DeviceBytes{Device: device, Bytes: b})
	}
	return out
}

// unwritten is a message that the log has not answered for. It keeps its id, so
// that one that was written after all is not written twice.
type unwritten struct {
	id    events.ID
	usage telemetry.Usage
}

// countUsage reads the sockets and writes what they say, until ctx is done. A
// crash loses what was not written: up to cfg.UsageInterval.
func (g *Gateway) countUsage(ctx context.Context) {
	m := g.broker.meter
	ticker := time.NewTicker(sweepTick)
	defer ticker.Stop()
	at := g.now()
	m.begin(at)
	var queue []unwritten
	flush := func(ctx context.Context, now time.Time) {
		at = now
		for _, u := range m.take(now) {
			queue = append(queue, unwritten{events.ID(events.NewID()), u})
		}
		queue = g.writeUsage(ctx, queue)
	}
	for {
		select {
		case <-ctx.Done():
			for range sweepSlices {
				m.sweep()
			}
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastFlush)
			defer cancel()
			flush(last, g.now())
			return
		case <-ticker.C:
			m.sweep()
			if now := g.now(); now.Sub(at) >= g.cfg.UsageInterval || telemetry.DayOf(now) != telemetry.DayOf(at) {
				flush(ctx, now)
			}
		}
	}
}

// writeUsage returns what could not be written and may be later.
func (g *Gateway) writeUsage(ctx context.Context, queue []unwritten) []unwritten {
	if g.cfg.Usage == nil {
		return nil
	}
	if n := len(queue) - maxUnwritten; n > 0 {
		g.broker.meter.dropped.Add(float64(n))
		queue = queue[n:]
	}
	for i, u := range queue {
		err := g.cfg.Usage.AppendUsage(ctx, u.id, u.usage)
		switch {
		case err == nil:
		case errors.Is(err, events.ErrNoSpace), errors.Is(err, events.ErrUnavailable):
			g.log.Warn("usage of devices is not written yet", "messages", len(queue)-i, "err", err)
			return queue[i:]
		default:
			g.broker.meter.dropped.Inc()
			g.log.Error("usage of devices is lost", "devices", len(u.usage.Devices), "day", u.usage.Day, "err", err)
		}
	}
	return nil
}

// awaitPeer notes the socket of a connection that comes to the MQTT listener
// itself. That of one which comes by a shared port is noted there.
func (b *Broker) awaitPeer(hello *tls.ClientHelloInfo) {
	tcp, ok := hello.Conn.(*net.TCPConn)
	if !ok {
		return
	}
	if seen := tcp.RemoteAddr().(*net.TCPAddr).AddrPort(); !b.origins.passed(seen) {
		b.meter.await(seen, tcp)
	}
}

// seen returns the address that the broker sees a connection come from, while
// there is the connection.
func (b *Broker) seen(conn uint64) (netip.AddrPort, bool) {
	if srv := b.server(); srv != nil {
		if c := srv.GetClient(conn); c != nil {
			if tcp, ok := c.RemoteAddress().(*net.TCPAddr); ok {
				return tcp.AddrPort(), true
			}
		}
	}
	return netip.AddrPort{}, false
}
