package link

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	dialTimeout    = 30 * time.Second // of TCP, and of TLS and CONNECT on a good path
	maxDialTimeout = 4 * time.Minute
	minUserTimeout = 30 * time.Second
	maxUserTimeout = 2 * time.Minute
	// minSilence is the shortest interval of pings that a path can teach: what
	// the most forgetful of NATs are said to grant.
	minSilence = 30 * time.Second
	firstHolds = 16 // pings answered before a longer interval is tried; doubles
	maxHolds   = 256
	maxPaths   = 16 // networks that are remembered
)

// segments are the sizes of TCP segment that are tried in turn, in bytes; 0 is
// the kernel's. A path that swallows large packets without a word (RFC 2923)
// lets the smaller ones through.
var segments = [...]int{0, 1200, 536}

// path is what was learned of the ways to the manager.
type path struct {
	timeout time.Duration // of the next attempt to connect
	took    time.Duration // the last one that succeeded
	segment int           // index of segments
	// receipts is how long they take.
	receipts rtt
	// quiet is by the network that the agent was in.
	quiet map[netip.Prefix]*quiet
}

// connected notes how long it took.
func (p *path) connected(took time.Duration) {
	p.took = took
	p.timeout = min(max(dialTimeout, 4*took), maxDialTimeout)
}

// timedOut notes that an attempt got no answer, or that a connection died with
// bytes on their way: the path is slower than thought, or swallows packets.
func (p *path) timedOut() {
	p.timeout = min(2*p.timeout, maxDialTimeout)
	p.segment = (p.segment + 1) % len(segments)
}

// scale returns d, or a multiple of what connecting took if that is longer.
func (p *path) scale(d time.Duration, n int) time.Duration {
	return max(d, time.Duration(n)*p.took)
}

// userTimeout is how long sent bytes may stay without an acknowledgement.
func (p *path) userTimeout() time.Duration {
	return min(p.scale(minUserTimeout, 4), maxUserTimeout)
}

// from returns what was learned in the network of a connection.
func (p *path) from(c net.Conn) *quiet {
	var network netip.Prefix
	if tcp, ok := c.LocalAddr().(*net.TCPAddr); ok {
		a := tcp.AddrPort().Addr().Unmap()
		bits := 64
		if a.Is4() {
			bits = 24
		}
		network, _ = a.Prefix(bits) // fits the address
	}
	q := p.quiet[network]
	if q == nil {
		if len(p.quiet) >= maxPaths {
			clear(p.quiet)
		}
		q = &quiet{need: firstHolds}
		p.quiet[network] = q
	}
	return q
}

// quiet is how long a path remembers a connection on which nothing is said.
type quiet struct {
	limit time.Duration // 0: not known to be shorter than the manager's
	holds int           // pings answered in a row
	need  int           // … until a longer limit is tried
}

// interval is when to ping, at most the manager's.
func (q *quiet) interval(manager time.Duration) time.Duration {
	if q.limit == 0 || q.limit > manager {
		return manager
	}
	return q.limit
}

// held notes that the path was open after a silence of the interval.
func (q *quiet) held(manager time.Duration) {
	if q.limit == 0 {
		return
	}
	if q.holds++; q.holds < q.need {
		return
	}
	q.holds = 0
	if q.limit += q.limit / 4; q.limit >= manager {
		q.limit = 0
	}
}

// lost notes that it was not.
func (q *quiet) lost(manager time.Duration) {
	if q.limit != 0 {
		q.need = min(2*q.need, maxHolds)
	}
	q.holds = 0
	if half := q.interval(manager) / 2; half >= minSilence {
		q.limit = half
	}
}

// rtt is the smoothed time until an answer and its deviation (RFC 6298).
type rtt struct{ mean, deviation time.Duration }

func (r *rtt) add(sample time.Duration) {
	if r.mean == 0 {
		r.mean, r.deviation = sample, sample/2
		return
	}
	r.deviation += ((r.mean - sample).Abs() - r.deviation) / 4
	r.mean += (sample - r.mean) / 8
}

// timeout is when an answer is overdue.
func (r *rtt) timeout() time.Duration { return r.mean + 4*r.deviation }

type segmentKey struct{}

// Control sets the segment size of a connection that a [Link] makes. It is for
// the ControlContext of a net.Dialer behind [Config].DialContext.
func Control(ctx context.Context, _, _ string, c syscall.RawConn) (err error) {
	size, ok := ctx.Value(segmentKey{}).(int)
	if !ok || size == 0 {
		return nil
	}
	if e := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, size)
	}); e != nil {
		return e
	}
	return err
}

// Dialer dials as an agent should: with [Control], and without the kernel's
// keepalive, whose probes every 15 s would be most of an idle device's bytes.
func Dialer() *net.Dialer { return &net.Dialer{KeepAlive: -1, ControlContext: Control} }

// socket is what a connection lets know of its TCP. It is nil for one that is
// none.
type socket struct{ syscall.RawConn }

func socketOf(c net.Conn) *socket {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	return &socket{raw}
}

// setUserTimeout bounds how long TCP repeats itself (RFC 5482). The kernel's
// own bound is a quarter of an hour.
func (s *socket) setUserTimeout(d time.Duration) {
	if s != nil {
		_ = s.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
		})
	}
}

// unacknowledged is how many bytes the other end's TCP has not confirmed. What
// waits there cannot be lost as long as the connection lives, so nothing is
// sent again meanwhile.
func (s *socket) unacknowledged() (n int) {
	if s != nil {
		_ = s.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
	}
	return n
}

// timedOut says whether a connection or an attempt ended for want of an answer.
func timedOut(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, unix.ETIMEDOUT)
}
