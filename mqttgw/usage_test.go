package mqttgw

import (
	"crypto/tls"
	"fmt"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"pallas/commands"
	"pallas/events"
	"pallas/events/jsstore"
	"pallas/events/telemetry"
	"pallas/mqttgw/wire"
)

// header is of each segment on loopback.
const header = ipv4Header + tcpHeader + timestampOption

// measured gives the door a stream for usage.
func measured(t testing.TB, d *door) *jsstore.Telemetry {
	t.Helper()
	tm, err := jsstore.OpenTelemetry(t.Context(), jsstore.TelemetryConfig{Conn: must(d.broker.Conn("telemetry"))(t)})
	check(t, err)
	return tm
}

// usage sums up what the stream says of each device.
func usage(t testing.TB, tm *jsstore.Telemetry) map[events.DeviceID]telemetry.Bytes {
	t.Helper()
	out := map[events.DeviceID]telemetry.Bytes{}
	for at := uint64(0); ; {
		u, next, err := tm.NextUsage(t.Context(), at)
		check(t, err)
		if next == 0 {
			return out
		}
		at = next
		for _, dev := range u.Devices {
			out[dev.Device] = out[dev.Device].Plus(dev.Bytes)
		}
	}
}

// costs is what the client's own socket says, seen from the other end. What was
// sent again counts as payload where it was sent alone.
func (c *client) costs() telemetry.Bytes {
	c.t.Helper()
	own := c.conn.(*tls.Conn).NetConn().(*net.TCPConn)
	b, err := (&link{conn: own}).bytes()
	check(c.t, err)
	costs := telemetry.Bytes{Received: b.Sent - again(c.t, own), Sent: b.Received}
	m := c.dev.door.broker.meter
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, slice := range m.links {
		for _, l := range slice {
			if l.device == c.dev.id {
				costs.Sent += again(c.t, l.conn)
			}
		}
	}
	return costs
}

// again is how many bytes of payload a socket sent once more.
func again(t testing.TB, conn *net.TCPConn) (n uint64) {
	t.Helper()
	check(t, must(conn.SyscallConn())(t).Control(func(fd uintptr) {
		n = must(unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO))(t).Bytes_retrans
	}))
	return n
}

// TestUsageIsWhatTheSocketsSay compares both ends of a connection. Payload must
// agree to the byte. Of the headers the door misses that of its SYN-ACK, and
// a last acknowledgement may be on its way.
func TestUsageIsWhatTheSocketsSay(t *testing.T) {
	d := newDoor(t)
	d.stop()
	tm := measured(t, d)
	d.cfg.Usage = tm
	d.open()
	shared := d.share()
	clients := map[string]*client{}
	for name, o := range map[string]connectOptions{
		"own port":    {},
		"shared port": {alpn: mqttOnly, dial: from(shared, "127.0.0.9")},
	} {
		dev := d.device()
		o.client = string(dev.id)
		c := dev.dial(o)
		if c.err != nil || c.code != 0 {
			t.Fatalf("%s: connect: %v, code %d", name, c.err, c.code)
		}
		c.subscribe(wire.DownTopic(string(dev.id)), 0)
		c.alive(wire.Hello{})
		clients[name] = c
	}
	// One that is refused costs nobody anything, whatever name it takes.
	victim, thief := clients["own port"].dev, d.device()
	if c := thief.dial(connectOptions{client: string(victim.id)}); c.code == 0 && c.err == nil {
		t.Fatal("a device connected as another")
	}
	stranger := d.identity()
	stranger.dial(connectOptions{client: string(stranger.id)})

	d.stop()
	got := usage(t, tm)
	if len(got) != len(clients) {
		t.Errorf("%d devices have usage, want %d: %v", len(got), len(clients), got)
	}
	for name, c := range clients {
		want, got := c.costs(), got[c.dev.id]
		for direction, n := range map[string][2]uint64{"received": {got.Received, want.Received}, "sent": {got.Sent, want.Sent}} {
			if diff := int64(n[0]) - int64(n[1]); diff%header != 0 || diff > 2*header || diff < -2*header || n[0] < 500 {
				t.Errorf("%s: %d bytes %s, the client's socket says %d", name, n[0], direction, n[1])
			}
		}
	}

	// The next gateway goes on where this one ended, and nothing counts twice.
	d.open()
	for _, c := range clients {
		c.alive(wire.Hello{})
	}
	d.stop()
	for name, c := range clients {
		want, got := c.costs(), usage(t, tm)[c.dev.id]
		if diff := int64(got.Total()) - int64(want.Total()); diff%header != 0 || diff > 4*header || diff < -4*header {
			t.Errorf("%s: %d bytes after another gateway, the client's socket says %d", name, got.Total(), want.Total())
		}
	}
}

// TestUsageOfEndedConnections: what was read last stays, and nothing of the
// connection does.
func TestUsageOfEndedConnections(t *testing.T) {
	d := newDoor(t)
	d.stop()
	tm := measured(t, d)
	d.cfg.Usage = tm
	d.open()
	dev := d.device()
	said, _ := dev.connect(wire.Hello{})
	said.alive(wire.Hello{})
	said.up(wire.Up{Bye: &wire.Bye{Reason: "night"}})
	eventually(t, "the goodbye counts", func() bool { return d.fresh(dev.id).Received+2*header >= said.costs().Received })
	_ = said.conn.Close()
	kicked, _ := dev.connect(wire.Hello{})
	d.do(commands.RetireDevice{Device: dev.id, Reason: "gone"})
	check(t, d.gateway.Refresh(t.Context(), dev.id))
	<-kicked.closed
	eventually(t, "nothing is left of the connections", func() bool {
		d.broker.meter.mu.Lock()
		defer d.broker.meter.mu.Unlock()
		n := len(d.broker.meter.waiting)
		for _, s := range d.broker.meter.links {
			n += len(s)
		}
		return n == 0
	})
	d.stop()
	if b := usage(t, tm)[dev.id]; b.Received < 4000 || b.Sent < 2000 {
		t.Errorf("two connections cost %+v", b)
	}
}

func (d *door) fresh(id events.DeviceID) telemetry.Bytes {
	d.broker.meter.mu.Lock()
	defer d.broker.meter.mu.Unlock()
	return d.broker.meter.fresh[id]
}

// TestUsageByDay: each message is of one day and of a bounded number of devices.
func TestUsageByDay(t *testing.T) {
	m := newMeter()
	eve := time.Date(2026, 12, 31, 23, 59, 0, 0, time.UTC)
	m.begin(eve)
	for range telemetry.MaxDevices + 1 {
		m.fresh[events.DeviceID(uuid.NewString())] = telemetry.Bytes{Sent: 1}
	}
	old := m.take(eve.Add(time.Minute))
	if len(old) != 2 || old[0].Day != "2026-12-31" || old[1].Day != "2026-12-31" || len(old[0].Devices)+len(old[1].Devices) != telemetry.MaxDevices+1 {
		t.Errorf("taken: %d messages", len(old))
	}
	m.fresh["d"] = telemetry.Bytes{Received: 1}
	if u := m.take(eve.Add(time.Hour)); len(u) != 1 || u[0].Day != "2027-01-01" {
		t.Errorf("taken on the next day: %+v", u)
	}
	if u := m.take(eve.Add(time.Hour)); len(u) != 0 {
		t.Errorf("taken twice: %+v", u)
	}
}

// TestUsageWaitsForRoom: a full disk loses nothing that fits into memory.
func TestUsageWaitsForRoom(t *testing.T) {
	d := newDoor(t)
	d.stop()
	full := true
	tm, err := jsstore.OpenTelemetry(t.Context(), jsstore.TelemetryConfig{Conn: must(d.broker.Conn("telemetry"))(t), Room: func() error {
		if full {
			return events.ErrNoSpace
		}
		return nil
	}})
	check(t, err)
	d.gateway.cfg.Usage = tm
	var queue []unwritten
	for range maxUnwritten + 3 {
		u := telemetry.Usage{Day: "2026-11-23", Devices: []telemetry.DeviceBytes{{Device: events.DeviceID(uuid.NewString()), Bytes: telemetry.Bytes{Sent: 1}}}}
		queue = append(queue, unwritten{events.ID(events.NewID()), u})
	}
	queue = d.gateway.writeUsage(t.Context(), queue)
	if len(queue) != maxUnwritten {
		t.Fatalf("%d messages wait, want %d", len(queue), maxUnwritten)
	}
	full = false
	check(t, d.gateway.cfg.Usage.AppendUsage(t.Context(), queue[0].id, queue[0].usage)) // the answer to it was lost
	if queue = d.gateway.writeUsage(t.Context(), queue); len(queue) != 0 {
		t.Errorf("%d messages still wait", len(queue))
	}
	if got := usage(t, tm); len(got) != maxUnwritten {
		t.Errorf("%d devices have usage, want %d", len(got), maxUnwritten)
	}
}

// BenchmarkUsageSweep reads the sockets of 2,000 connections, and says what all
// of 100,000 would take. The ceiling is the system call alone.
func BenchmarkUsageSweep(b *testing.B) {
	const conns, fleet = 2000, 100_000
	l := must(net.Listen("tcp", "127.0.0.1:0"))(b)
	defer l.Close()
	m := newMeter()
	m.begin(time.Now())
	sockets := make([]*net.TCPConn, conns)
	for i := range sockets {
		c := must(net.Dial("tcp", l.Addr().String()))(b)
		defer c.Close()
		sockets[i] = must(l.Accept())(b).(*net.TCPConn)
		defer sockets[i].Close()
	}
	before := heap()
	for i, c := range sockets {
		seen := c.RemoteAddr().(*net.TCPAddr).AddrPort()
		m.await(seen, c)
		m.adopt(seen, uint64(i), events.DeviceID(fmt.Sprintf("%036d", i)))
	}
	each := float64(heap()-before-36*conns) / conns // the session has the id anyway
	for b.Loop() {
		for range sweepSlices {
			m.sweep()
		}
	}
	read := b.Elapsed().Seconds() / float64(b.N) / conns
	raw := must(sockets[0].SyscallConn())(b)
	start := time.Now()
	check(b, raw.Control(func(fd uintptr) {
		for range conns {
			if _, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err != nil {
				b.Error(err)
			}
		}
	}))
	call := time.Since(start).Seconds() / conns
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(read*1e9, "ns/read")
	b.ReportMetric(call*1e9, "ns/getsockopt")
	b.ReportMetric(call/read, "getsockopt-of-read")
	b.ReportMetric(read*fleet*1e3, "ms/sweep-of-100k")
	b.ReportMetric(read*fleet*1e3/sweepSlices, "ms/slice-of-100k")
	b.ReportMetric(each, "B/conn")
	runtime.KeepAlive(m)
}

func heap() uint64 {
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return s.HeapAlloc
}
