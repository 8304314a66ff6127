package netlab_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"sync/atomic"
	"time"

	"pallas/agent/link"
	"pallas/internal/netlab"
)

// dnsOutage is longer than a lookup takes to give up.
const dnsOutage = 12 * time.Second

// resolver is a name server that fails for a time: it says so, or nothing.
type resolver struct {
	fails  bool
	until  atomic.Int64 // when names resolve again, in nanoseconds of Unix time
	failed atomic.Int64 // questions
}

// outage breaks the connections and has names not resolve for a while.
func (r *resolver) outage(l *netlab.Link) error {
	r.until.Store(time.Now().Add(dnsOutage).UnixNano())
	l.Break()
	return nil
}

// dialContext dials the manager by a name, and otherwise as an agent does.
func (r *resolver) dialContext(l *netlab.Link) func(ctx context.Context, network, addr string) (net.Conn, error) {
	d := link.Dialer()
	d.Resolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		near, far := net.Pipe()
		go r.serve(far, l.Remote().As4())
		return near, nil
	}}
	return func(ctx context.Context, _, addr string) (net.Conn, error) {
		_, port, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		return d.DialContext(ctx, "tcp4", net.JoinHostPort("manager.example.", port))
	}
}

// serve answers questions for an IPv4 address, as over TCP (RFC 1035 §4.2.2),
// until the other end closes.
func (r *resolver) serve(c net.Conn, address [4]byte) {
	defer c.Close()
	for {
		var size [2]byte
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return
		}
		query := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(c, query); err != nil {
			return
		}
		const head, response, servfail = 12, 0x8180, 2
		name := bytes.IndexByte(query[head:], 0) + 1 // it has no pointers
		flags, answers := uint16(response), byte(1)
		if time.Now().UnixNano() < r.until.Load() {
			if r.failed.Add(1); !r.fails {
				continue
			}
			flags, answers = response|servfail, 0
		}
		reply := append(query[:2:2], byte(flags>>8), byte(flags), 0, 1, 0, answers, 0, 0, 0, 0)
		reply = append(reply, query[head:head+name+4]...) // the question
		if answers > 0 {
			reply = append(reply, 0xc0, head, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4) // its name, A, IN, no TTL
			reply = append(reply, address[:]...)
		}
		binary.BigEndian.PutUint16(size[:], uint16(len(reply)))
		if _, err := c.Write(append(size[:], reply...)); err != nil {
			return
		}
	}
}
