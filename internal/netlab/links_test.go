package netlab_test

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"pallas/internal/config"
	"pallas/internal/netlab"
	"pallas/internal/server"
	"pallas/internal/servertest"
)

var (
	full  = flag.Bool("netlab.full", false, "run the whole matrix of links and print it as a Markdown table")
	limit = flag.Duration("netlab.limit", 8*time.Minute, "how long a step in a cell of the whole matrix may take")
)

// cell is one link and what is to be done over it.
type cell struct {
	name    string
	p       netlab.Profile
	vms     int
	changes int
	trouble func(*netlab.Link) error // in the middle of the changes
	captive bool                     // a proxy answers the first two connections with a page
	enrol   bool                     // over the link too
	named   *resolver                // resolves the manager's name
	row     row
}

// row is what a cell found.
type row struct {
	connected, inventory, changes, task time.Duration
	up, down                            netlab.Counts
	resent, sessions                    uint64
	err                                 error
}

func (c *cell) run(t testing.TB, m *servertest.Manager, d *device, l *netlab.Link, limit time.Duration) {
	if !c.enrol {
		d.enrol(t)
	}
	d.through(l, c.p.Rate > 0 && c.p.Rate <= 64_000)
	if c.named != nil {
		d.config.DialContext = c.named.dialContext(l)
	}
	defer func() {
		s := d.agent.Stats()
		c.row.up, c.row.down = l.Counts()
		c.row.resent, c.row.sessions = s.Resent, s.Sessions
	}()
	ctx, began := t.Context(), time.Now()
	step := func(what string, took *time.Duration, f func() bool) bool {
		err := within(ctx, limit, f)
		*took = time.Since(began)
		began = time.Now()
		if err != nil {
			c.row.err = fmt.Errorf("%s %w", what, err)
		}
		return err == nil
	}
	if c.captive {
		l.Capture(portal(t, func() { l.Capture(0) }))
	}
	d.start()
	defer d.stop(t)
	if !step("connected", &c.row.connected, func() bool { return d.agent.Stats().Connected }) ||
		!step("inventory receipted", &c.row.inventory, func() bool { return d.agent.Stats().Next > uint64(c.vms) && d.settled() }) {
		return
	}
	for i := range c.changes {
		if i == c.changes/2 && c.trouble != nil {
			if c.row.err = c.trouble(l); c.row.err != nil {
				return
			}
		}
		if err := d.rename(ctx, i); err != nil {
			c.row.err = fmt.Errorf("change %d: %w", i, err)
			return
		}
	}
	if !step("changes receipted", &c.row.changes, d.settled) {
		return
	}
	if c.row.err = d.task(ctx, m, limit); c.row.err != nil {
		return
	}
	c.row.task = time.Since(began)
	if c.row.err = d.logged(ctx, m, c.changes); c.row.err == nil && c.named != nil && c.named.failed.Load() == 0 {
		c.row.err = errors.New("no name failed to resolve")
	}
}

// portal is a proxy that wants to be read first. It calls served when two
// connections have got its page.
func portal(t testing.TB, served func()) uint16 {
	const port = 8080
	ln, err := net.Listen("tcp4", fmt.Sprintf("0.0.0.0:%d", port))
	if err != nil {
		t.Error(err)
		return 0
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for n := 1; ; n++ {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 4096))
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n<h1>Accept our terms</h1>\n")
			c.Close()
			if n == 2 {
				served()
			}
		}
	})
	t.Cleanup(func() { ln.Close(); serving.Wait() })
	return port
}

// runCells runs all cells at the same time against one manager, which brings
// its log to the disk after durable.
func runCells(t testing.TB, cells []*cell, limit, durable time.Duration) {
	t.Helper()
	m := newManager(t, func(c *server.Config) { c.Events.Sync = config.Duration(durable) })
	join := m.Join(len(cells))
	var running sync.WaitGroup
	defer running.Wait()
	for _, c := range cells {
		d, l := makeDevice(t, join, c.vms), newLink(t, c.p)
		running.Go(func() { c.run(t, m, d, l, limit) })
	}
}

// rates, losses and delays are the matrix.
var (
	rates = []struct {
		name string
		rate int
		mtu  int
	}{{"1,200 bit/s", 1200, 576}, {"9.6 kbit/s", 9600, 576}, {"64 kbit/s", 64_000, 1500}, {"1 Mbit/s", 1_000_000, 1500}}
	losses = []struct {
		name string
		set  func(*netlab.Profile)
	}{
		{"none", func(*netlab.Profile) {}},
		{"5 %", func(p *netlab.Profile) { p.Loss = 0.05 }},
		{"30 %", func(p *netlab.Profile) { p.Loss = 0.3 }},
		{"cut 3 s in 10", func(p *netlab.Profile) { p.CutEvery, p.CutFor = 10*time.Second, 3*time.Second }},
	}
	delays = []time.Duration{50 * time.Millisecond, 600 * time.Millisecond, 2 * time.Second}
)

func matrix() (cells []*cell) {
	for _, r := range rates {
		for _, loss := range losses {
			for _, rtt := range delays {
				p := netlab.Profile{Rate: r.rate, MTU: r.mtu, RTT: rtt, Jitter: rtt / 10, Seed: uint64(len(cells) + 1)}
				loss.set(&p)
				name := fmt.Sprintf("%s | %s | %d ms", r.name, loss.name, rtt.Milliseconds())
				vms := 5
				if rtt == 600*time.Millisecond {
					vms = 20
				}
				cells = append(cells, &cell{name: name, p: p, vms: vms, changes: 50})
			}
		}
	}
	return append(append(cells, special(50)...), enrolments(50)...)
}

// enrolments are the cells in which the device is not enrolled beforehand. A
// manager does not wait for what takes 1,200 bit/s to ask.
func enrolments(changes int) (cells []*cell) {
	r := rates[1]
	for _, loss := range losses[:2] {
		p := netlab.Profile{Rate: r.rate, MTU: r.mtu, RTT: 600 * time.Millisecond, Jitter: 60 * time.Millisecond, Seed: uint64(len(cells) + 1)}
		loss.set(&p)
		cells = append(cells, &cell{name: r.name + ", enrolment | " + loss.name + " | 600 ms", p: p, vms: 5, changes: changes, enrol: true})
	}
	return cells
}

// special are the cells with another trouble than slowness.
func special(changes int) []*cell {
	quietly := func(f func(*netlab.Link)) func(*netlab.Link) error {
		return func(l *netlab.Link) error { f(l); return nil }
	}
	silent, failing := &resolver{}, &resolver{fails: true}
	p := netlab.Profile{Rate: 1_000_000, RTT: 50 * time.Millisecond}
	with := func(change func(*netlab.Profile)) netlab.Profile { p := p; change(&p); return p }
	return []*cell{
		{name: "NAT rebinding, RST | none | 50 ms", p: p, vms: 5, changes: changes, trouble: quietly(func(l *netlab.Link) { l.Rebind(false) })},
		{name: "NAT rebinding, silent | none | 50 ms", p: p, vms: 5, changes: changes, trouble: quietly(func(l *netlab.Link) { l.Rebind(true) })},
		{name: "half-open | none | 50 ms", p: p, vms: 5, changes: changes, trouble: quietly((*netlab.Link).Freeze)},
		{name: "change of address | none | 50 ms", p: p, vms: 5, changes: changes, trouble: (*netlab.Link).Readdress},
		{name: "broken by RST | none | 50 ms", p: p, vms: 5, changes: changes, trouble: quietly((*netlab.Link).Break)},
		{name: "broken, DNS silent for 12 s | none | 50 ms", p: p, vms: 5, changes: changes, named: silent, trouble: silent.outage},
		{name: "broken, DNS SERVFAIL for 12 s | none | 50 ms", p: p, vms: 5, changes: changes, named: failing, trouble: failing.outage},
		{name: "MTU black hole of 1,280 | none | 50 ms", p: with(func(p *netlab.Profile) { p.Hole = 1280 }), vms: 20, changes: changes},
		{name: "captive HTML page | none | 50 ms", p: p, vms: 5, changes: changes, captive: true},
	}
}

// TestLinks sees that devices work over bad links: a part of the matrix, or
// with -netlab.full all of it.
func TestLinks(t *testing.T) {
	needLinks(t)
	cells, wait, durable := special(10), 2*time.Minute, 200*time.Millisecond
	if *full {
		cells, wait, durable = matrix(), *limit, time.Second
	} else {
		for _, name := range []string{"9.6 kbit/s, enrolment | 5 % | 600 ms", "64 kbit/s | 5 % | 600 ms", "1 Mbit/s | 30 % | 50 ms"} {
			for _, c := range matrix() {
				if c.name == name {
					c.vms, c.changes = 5, 10
					cells = append(cells, c)
				}
			}
		}
	}
	runCells(t, cells, wait, durable)
	if *full {
		table(cells)
	}
	for _, c := range cells {
		t.Logf("%s: %+v", c.name, c.row)
		if c.row.err != nil {
			t.Errorf("%s: %v", c.name, c.row.err)
		}
	}
}

// table prints the cells in Markdown.
func table(cells []*cell) {
	var b strings.Builder
	b.WriteString("| link | loss | RTT | machines | connected | inventory | 50 changes | task | up, bytes | down, bytes | sessions | sent again | |\n")
	b.WriteString("|---|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, c := range cells {
		r, verdict := c.row, "once, in order"
		if r.err != nil {
			verdict = r.err.Error()
		}
		fmt.Fprintf(&b, "| %s | %d | %s | %s | %s | %s | %d | %d | %d | %d | %s |\n", c.name, c.vms,
			seconds(r.connected), seconds(r.inventory), seconds(r.changes), seconds(r.task), r.up.Bytes, r.down.Bytes, r.sessions, r.resent, verdict)
	}
	fmt.Fprint(os.Stdout, b.String())
}

func seconds(d time.Duration) string {
	if d == 0 {
		return "–"
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}
