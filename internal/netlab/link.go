package netlab

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const tunPath = "/dev/net/tun"

// servers are the ports below this one; clients get theirs from above, as is
// the kernel's custom. It tells the directions of a packet apart.
const servers = 32768

// Profile is what a link is like, the same in both directions. The zero value
// is a perfect link.
type Profile struct {
	// Rate is in bits of IP packets per second; 0 means without limit.
	Rate int
	// RTT is without what Rate adds; Jitter is added at random, up to this,
	// each way. Packets stay in order.
	RTT, Jitter time.Duration
	// Loss is the share of packets that get lost at random, 0 to 1.
	Loss float64
	// MTU is that of the interface, so that both ends know it; 0 means 1500.
	MTU int
	// Queue is how many bytes may wait for their turn; what comes then is
	// dropped. 0 means what the link carries in a second, at least 16 packets.
	Queue int
	// Every CutEvery, more or less at random, nothing passes for CutFor; 0 means
	// never. An exact period would fall in step with TCP's repeats.
	CutEvery, CutFor time.Duration
	// Reset has each cut break the connections with a RST to both ends.
	Reset bool
	// Hole is the size of packet from which on they vanish in the middle of the
	// path, without an ICMP message; 0 means none do.
	Hole int
	// Seed makes what is random repeatable.
	Seed uint64
}

// Counts is the traffic in one direction: whole IP packets, headers and
// repeats included, as they were put into the link.
type Counts struct {
	Packets, Bytes uint64
	// Lost is how many of the packets did not arrive, whatever the reason.
	Lost uint64
}

// Link is one emulated path. Its methods are safe for concurrent use.
type Link struct {
	p      Profile
	tun    *os.File
	name   string
	remote netip.Addr
	began  time.Time
	work   sync.WaitGroup
	end    chan struct{}
	up     direction
	down   direction

	mu      sync.Mutex
	local   netip.Addr
	random  *rand.Rand
	flows   map[uint16]*flow  // by the client's port
	outside map[uint16]uint16 // NAT: port of the server's view → the client's
	next    uint16            // port that the NAT takes next
	silent  bool              // whether servers' RSTs are dropped
	cut     bool
	portal  uint16
}

// direction is one way of a link.
type direction struct {
	packets, bytes, lost atomic.Uint64
	free                 time.Time // when the line has sent what it took
	last                 time.Time // when the newest packet arrives
	line                 chan transit
}

type transit struct {
	p       packet
	arrives time.Time
}

// flow is a connection that was seen to begin.
type flow struct {
	server     uint16 // the port that the client dialled
	portal     uint16 // the port that answers instead; 0: none
	outside    uint16 // the client's port as the server sees it
	dead       bool   // nothing passes
	broken     bool   // nothing passes, and what tries is answered with a RST
	clientAcks uint32 // newest acknowledgement of the client
	serverAcks uint32
}

var links atomic.Uint32

// New makes a link. Close ends it.
func New(p Profile) (*Link, error) {
	if p.MTU == 0 {
		p.MTU = 1500
	}
	if p.Queue == 0 {
		p.Queue = max(p.Rate/8, 16*p.MTU)
	}
	n := links.Add(1)
	l := &Link{
		p: p, began: time.Now(), end: make(chan struct{}),
		random: rand.New(rand.NewPCG(p.Seed, uint64(n))), //nolint:gosec // loss is not a secret
		flows:  map[uint16]*flow{}, outside: map[uint16]uint16{}, next: servers,
		name: "lab" + strconv.Itoa(int(n)), local: address(8*n + 1), remote: address(8*n + 2),
	}
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", tunPath, err)
	}
	r, err := unix.NewIfreq(l.name)
	if err == nil {
		r.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, r)
	}
	if err == nil {
		err = l.address(l.local)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("make interface %s: %w", l.name, err)
	}
	l.tun = os.NewFile(uintptr(fd), tunPath)
	for _, d := range []*direction{&l.up, &l.down} {
		d.line = make(chan transit, 4096)
		l.work.Go(func() { l.deliver(d) })
	}
	l.work.Go(l.read)
	if p.CutEvery > 0 {
		l.work.Go(l.cuts)
	}
	return l, nil
}

// address numbers those of 198.18.0.0/15, which are for tests (RFC 2544).
func address(n uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], 198<<24|18<<16+n)
	return netip.AddrFrom4(b)
}

// address gives the interface its address, in place of one that it has.
func (l *Link) address(local netip.Addr) error {
	a := local.As4()
	return configure(l.name,
		func(fd int, r *unix.Ifreq) error {
			if err := r.SetInet4Addr(a[:]); err != nil {
				return err
			}
			return unix.IoctlIfreq(fd, unix.SIOCSIFADDR, r)
		},
		func(fd int, r *unix.Ifreq) error {
			if err := r.SetInet4Addr([]byte{255, 255, 255, 248}); err != nil {
				return err
			}
			return unix.IoctlIfreq(fd, unix.SIOCSIFNETMASK, r)
		},
		func(fd int, r *unix.Ifreq) error {
			r.SetUint32(uint32(l.p.MTU))
			return unix.IoctlIfreq(fd, unix.SIOCSIFMTU, r)
		},
		func(fd int, r *unix.Ifreq) error {
			r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
			return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r)
		})
}

// Close takes the interface away.
func (l *Link) Close() error {
	close(l.end)
	err := l.tun.Close()
	l.work.Wait()
	return err
}

// DialContext dials through the link: the server of addr's port that listens
// on all addresses of the namespace. The rest is as d says.
func (l *Link) DialContext(d net.Dialer) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, _, addr string) (net.Conn, error) {
		_, port, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		return d.DialContext(ctx, "tcp4", net.JoinHostPort(l.remote.String(), port))
	}
}

// Remote returns the address at which the namespace's servers are found.
func (l *Link) Remote() netip.Addr { return l.remote }

// Readdress gives the client another address, as a network does that it has
// moved to. Connections from the old one do not exist any more for the kernel:
// what they send goes nowhere, and no end is told.
func (l *Link) Readdress() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	next := l.remote.Next()
	if l.local == next {
		next = next.Next()
	}
	if err := l.address(next); err != nil {
		return err
	}
	l.local = next
	return nil
}

// Counts returns what clients sent, and what servers did.
func (l *Link) Counts() (up, down Counts) { return l.up.counts(), l.down.counts() }

func (d *direction) counts() Counts {
	return Counts{Packets: d.packets.Load(), Bytes: d.bytes.Load(), Lost: d.lost.Load()}
}

// Freeze lets every connection that there is die without a word: nothing of it
// passes any more, as after a firewall has forgotten it. New connections are not affected.
func (l *Link) Freeze() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.flows {
		f.dead = true
	}
}

// Rebind has the NAT forget its table: the connections go on from other ports,
// as which no server knows them. With silent the servers' RSTs are dropped on
// the way.
func (l *Link) Rebind(silent bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.silent = silent
	for port, f := range l.flows {
		delete(l.outside, f.outside)
		for f.outside = l.next; l.outside[f.outside] != 0; f.outside = l.next {
			l.next = servers + (l.next+1)%servers
		}
		l.outside[f.outside] = port
	}
}

// Capture sends every new connection to the server at port, whatever it was
// meant for; 0 ends that.
func (l *Link) Capture(port uint16) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.portal = port
}

// Break ends every connection that there is with a RST to both ends.
func (l *Link) Break() {
	l.mu.Lock()
	last := l.resets()
	l.mu.Unlock()
	l.write(last)
}

// refuse answers a packet of a broken connection, unless it is a RST itself.
func (l *Link) refuse(p, answer packet) {
	if p.flags()&flagRST == 0 {
		l.write([]packet{answer})
	}
}

func (l *Link) write(packets []packet) {
	for _, p := range packets {
		_, _ = l.tun.Write(p) // one that the kernel does not take is lost
	}
}

// cuts switches the link off and on.
func (l *Link) cuts() {
	tick := time.NewTimer(l.pause())
	defer tick.Stop()
	for {
		select {
		case <-l.end:
			return
		case <-tick.C:
		}
		l.mu.Lock()
		l.cut = !l.cut
		wait := l.pause()
		var last []packet
		if l.cut {
			wait = l.p.CutFor
			if l.p.Reset {
				last = l.resets()
			}
		}
		l.mu.Unlock()
		l.write(last)
		tick.Reset(wait)
	}
}

// pause is how long the link holds until the next cut.
func (l *Link) pause() time.Duration {
	mean := l.p.CutEvery - l.p.CutFor
	return mean/2 + time.Duration(rand.Int64N(int64(mean))) //nolint:gosec // a cut is not a secret
}

// resets ends the connections of both ends.
func (l *Link) resets() (all []packet) {
	for port, f := range l.flows {
		f.broken = true
		all = append(all, l.resetClient(port, f), l.resetServer(f))
	}
	return all
}

func (l *Link) resetClient(port uint16, f *flow) packet {
	return reset(netip.AddrPortFrom(l.remote, f.server), netip.AddrPortFrom(l.local, port), f.clientAcks)
}

func (l *Link) resetServer(f *flow) packet {
	server := f.server
	if f.portal != 0 {
		server = f.portal
	}
	return reset(netip.AddrPortFrom(l.remote, f.outside), netip.AddrPortFrom(l.local, server), f.serverAcks)
}

// read takes packets from the kernel.
func (l *Link) read() {
	defer close(l.up.line)
	defer close(l.down.line)
	buf := make([]byte, 1<<16)
	for {
		n, err := l.tun.Read(buf)
		if err != nil {
			return
		}
		if p := parse(buf[:n]); p != nil && p.dst() == l.remote.As4() {
			l.take(append(packet(nil), p...))
		}
	}
}

// take puts a packet on its way.
func (l *Link) take(p packet) {
	l.mu.Lock()
	defer l.mu.Unlock()
	d := &l.down
	if p.dstPort() < servers {
		d = &l.up
	}
	d.packets.Add(1)
	d.bytes.Add(uint64(len(p)))
	now := time.Now()
	arrives, ok := l.schedule(d, len(p), now)
	if !ok || !l.route(p) || l.cut || (l.p.Hole > 0 && len(p) > l.p.Hole) || l.random.Float64() < l.p.Loss {
		d.lost.Add(1)
		return
	}
	p.turn()
	select {
	case d.line <- transit{p, arrives}:
	default:
		d.lost.Add(1)
	}
}

// schedule returns when a packet arrives, unless the queue is full.
func (l *Link) schedule(d *direction, size int, now time.Time) (time.Time, bool) {
	if d.free.Before(now) {
		d.free = now
	}
	if l.p.Rate > 0 {
		waits := int(d.free.Sub(now).Seconds() * float64(l.p.Rate) / 8)
		if waits+size > l.p.Queue {
			return time.Time{}, false
		}
		d.free = d.free.Add(time.Duration(float64(size) * 8 / float64(l.p.Rate) * float64(time.Second)))
	}
	arrives := d.free.Add(l.p.RTT / 2)
	if l.p.Jitter > 0 {
		arrives = arrives.Add(time.Duration(l.random.Int64N(int64(l.p.Jitter))))
	}
	if arrives.Before(d.last) {
		arrives = d.last
	}
	d.last = arrives
	return arrives, true
}

// route rewrites the ports and says whether the packet may pass.
func (l *Link) route(p packet) bool {
	if p.dstPort() < servers {
		port := p.srcPort()
		f := l.flows[port]
		if p.flags()&(flagSYN|flagACK) == flagSYN {
			if f != nil {
				delete(l.outside, f.outside)
			}
			f = &flow{server: p.dstPort(), portal: l.portal, outside: port}
			l.flows[port], l.outside[port] = f, port
		}
		if f == nil || f.dead {
			return false
		}
		f.clientAcks = p.ack()
		if f.broken {
			l.refuse(p, l.resetClient(port, f))
			return false
		}
		if f.portal != 0 {
			p.setDstPort(f.portal)
		}
		if f.outside != port {
			p.setSrcPort(f.outside)
		}
		return true
	}
	port, ok := l.outside[p.dstPort()]
	f := l.flows[port]
	if !ok || f == nil || f.dead || (l.silent && p.flags()&flagRST != 0) {
		return false
	}
	if p.flags()&flagACK != 0 {
		f.serverAcks = p.ack()
	}
	if f.broken {
		l.refuse(p, l.resetServer(f))
		return false
	}
	if f.portal != 0 {
		p.setSrcPort(f.server)
	}
	if port != p.dstPort() {
		p.setDstPort(port)
	}
	return true
}

// deliver hands packets to the kernel in their time.
func (l *Link) deliver(d *direction) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for t := range d.line {
		timer.Reset(time.Until(t.arrives))
		select {
		case <-l.end:
			return
		case <-timer.C:
		}
		_, _ = l.tun.Write(t.p) // a packet that the kernel does not take is lost
	}
}
