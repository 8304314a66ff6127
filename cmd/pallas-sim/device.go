package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"time"

	"pallas/agent"
	"pallas/agent/hypervisor"
	"pallas/agent/hypervisor/fake"
	"pallas/agent/link"
	"pallas/internal/version"
	"pallas/mqttgw/wire"
)

// device is a real agent on a host in memory. It is the agent's driver, so
// that it knows which changes each look at the host has seen.
type device struct {
	*fake.Host
	agent  *agent.Agent
	source netip.Addr

	mu   sync.Mutex // held over a change together with its note, and over a look
	conn net.Conn   // the newest one to the manager
	book book
	// tasks is how many tasks the host has begun; each is told to began.
	tasks int
	began func(began)
	// failed is why the agent ended before it was told to.
	failed error

	enrolledBefore bool
}

// book is what is known of one agent's reports.
type book struct {
	open  bool   // the agent has looked at its host since it has an outbox
	epoch uint64 // of the outbox
	begin uint64 // sequence of the first report of this run
	left  int    // reports that an earlier run left without a receipt
	// renewed is how often the numbering began anew; begin is then 1.
	renewed int

	hash  string      // of the newest look
	fresh []time.Time // changes since then
	looks []look      // with changes that have no receipt yet; all but the last are in the outbox
}

// look is one look at the host that saw changes.
type look struct {
	changes []time.Time
	after   uint64 // the next report's sequence before what it saw was reported
	upTo    uint64 // … and after that; 0: is not reported yet
}

func newDevice(o *options, number int, log *slog.Logger, tell func(began)) (*device, error) {
	name := fmt.Sprintf("sim-%05d", number)
	d := &device{Host: fake.Sample(name, o.vms), source: source(number), began: tell}
	dir := filepath.Join(o.data, name)
	d.enrolledBefore = enrolled(dir)
	var err error
	d.agent, err = agent.New(agent.Config{
		Dir: dir, Join: o.joinString, Driver: d, Version: version.String(), Log: log.With("name", name),
		DialContext: d.dial, Narrow: o.narrow, NoSync: true,
	})
	return d, err
}

// source is the loopback address that a device calls from: one of its own, so
// that every device has all ports of an address for itself, and the manager's
// limits on each source see many sources.
func source(number int) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], 127<<24+1<<16+uint32(number/250)<<8+uint32(number%250+1))
	return netip.AddrFrom4(b)
}

// maxNumber keeps sources below 127.255.0.0.
const maxNumber = 254 * 256 * 250

// dial connects to the manager, from the device's own address when the manager
// is on this machine.
func (d *device) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	dialer := link.Dialer()
	if loopback(addr) {
		network = "tcp4"
		dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(d.source, 0))
	}
	c, err := dialer.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.conn = c
	return c, nil
}

// loopback says whether host:port is at an IPv4 address of this machine alone.
func loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.Is4() && ip.IsLoopback()
}

// cut breaks the connection as a network does, and says whether there was one.
func (d *device) cut() bool {
	d.mu.Lock()
	c := d.conn
	d.mu.Unlock()
	if c == nil || !d.agent.Stats().Connected {
		return false
	}
	if tc, ok := c.(*net.TCPConn); ok {
		_ = tc.SetLinger(0) // a reset instead of a goodbye
	}
	return c.Close() == nil
}

// Observe implements hypervisor.Driver. The agent looks once at a time, and
// what one look saw is in its outbox before the next.
func (d *device) Observe(ctx context.Context) (hypervisor.Snapshot, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	snap, err := d.Host.Observe(ctx)
	if err == nil {
		d.book.looked(d.agent.Stats(), string(wire.HashInventory(snap.Host, snap.VMs)))
	}
	return snap, err
}

// Run implements hypervisor.Driver.
func (d *device) Run(ctx context.Context, task wire.Task, progress func(percent int)) error {
	d.began(began{ID: task.ID.String(), Device: d.agent.Device()})
	d.mu.Lock()
	d.tasks++
	d.mu.Unlock()
	return d.Host.Run(ctx, task, progress)
}

// change lets something happen on the host at the instant now.
func (d *device) change(now time.Time, alter func(*fake.Host)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	alter(d.Host)
	d.book.fresh = append(d.book.fresh, now)
}

// settle compares the book with the agent's counters. It calls receipted for
// each change whose report has got its receipt, and returns how many wait
// still.
func (d *device) settle(receipted func(changed time.Time)) (waiting int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.book.settle(d.agent.Stats(), receipted)
	waiting = len(d.book.fresh)
	for _, l := range d.book.looks {
		waiting += len(l.changes)
	}
	return waiting
}

// looked notes a look at the host that found contents of this hash.
func (b *book) looked(s link.Stats, hash string) {
	if s.Epoch == 0 {
		return // before there is an outbox: it asks for the host's name
	}
	if !b.open {
		// What is reported of this look is the first of this run.
		b.open, b.epoch, b.begin, b.left = true, s.Epoch, s.Next, s.Pending
		b.hash, b.fresh = hash, nil
		return
	}
	b.reported(s)
	last := len(b.looks) - 1
	switch {
	case last >= 0 && b.looks[last].upTo == 0: // the outbox had no room for it
		b.looks[last].changes = append(b.looks[last].changes, b.fresh...)
	case hash != b.hash && len(b.fresh) > 0:
		b.looks = append(b.looks, look{changes: b.fresh, after: s.Next})
	default:
		// They cancelled each other out: there is nothing to report.
	}
	b.hash, b.fresh = hash, nil
}

// reported finds out whether the outbox holds what the newest look saw. It gets
// there whole, in one transaction.
func (b *book) reported(s link.Stats) {
	if b.epoch != s.Epoch {
		// What waited has new numbers, from 1.
		b.epoch, b.begin, b.left = s.Epoch, 1, 0
		b.renewed++
		for i := range b.looks {
			b.looks[i].after, b.looks[i].upTo = 0, min(b.looks[i].upTo, s.Next)
		}
	}
	if last := len(b.looks) - 1; last >= 0 && b.looks[last].upTo == 0 && s.Next > b.looks[last].after {
		b.looks[last].upTo = s.Next
	}
}

func (b *book) settle(s link.Stats, receipted func(changed time.Time)) {
	if !b.open {
		return
	}
	b.reported(s)
	n := 0
	for _, l := range b.looks {
		if l.upTo == 0 || s.First < l.upTo {
			break
		}
		for _, t := range l.changes {
			receipted(t)
		}
		n++
	}
	b.looks = b.looks[n:]
	if len(b.looks) == 0 {
		b.looks = nil
	}
}
