package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/pprof"
	"sync"
	"time"

	"pallas/agent/hypervisor/fake"
	"pallas/mqttgw/wire"
)

const (
	tickEvery     = 25 * time.Millisecond  // changes, cuts, and the look for receipts
	scanEvery     = 250 * time.Millisecond // the look at all devices
	progressEvery = time.Second
	quietEvery    = 15 * time.Second // progress without news
)

// fleet is a run. All of it but the agents is one goroutine.
type fleet struct {
	o        *options
	progress io.Writer
	log      *slog.Logger
	warnings *counts

	devices []*device
	started int
	active  map[*device]bool // with changes that have no receipt
	now     scan
	res     result

	began, shownAt, scanAt time.Time
	shown                  string
	incomplete             time.Time // since when some were not connected, in the run
}

// scan is what a look at all devices found.
type scan struct {
	enrolled, connected, failed, silent int // silent: have never been connected
	pending                             int // reports without a receipt
	sessions, resent, in, out           uint64
	tasks                               int
}

func newFleet(o *options, progress io.Writer, log slog.Handler) *fleet {
	t := newTally(log)
	return &fleet{o: o, progress: progress, log: slog.New(t), warnings: t.counts, active: map[*device]bool{}}
}

// run starts the devices, lets happen what was asked for until that is over or
// ctx is done, and waits for the last receipt. The error is for what kept it
// from starting; what went wrong later is in the result's problems.
func (f *fleet) run(ctx context.Context) (result, error) {
	empty := footprint()
	f.res = result{Devices: f.o.devices, VMs: f.o.vms, Seed: f.o.seed}
	for i := range f.o.devices {
		d, err := newDevice(f.o, f.o.first+i, f.log)
		if err != nil {
			return f.res, err
		}
		f.devices = append(f.devices, d)
	}
	agents, stop := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()

	f.began = time.Now()
	f.connect(ctx, func(d *device) {
		running.Go(func() {
			if err := d.agent.Run(agents); err != nil {
				d.mu.Lock()
				defer d.mu.Unlock()
				d.failed = err
			}
		})
	})
	f.res.Idle = footprint()
	f.res.Idle.per(f.started, empty)
	if err := f.writeHeap(); err != nil {
		return f.res, err
	}
	f.look()
	idle, start := f.now, time.Now()
	f.res.Sessions.Least = idle.connected
	f.change(ctx)
	f.look()
	f.res.Connected = f.now.connected
	f.res.RunSeconds = seconds(time.Since(start))
	f.gap(time.Now(), true)

	drain := time.Now()
	left := f.drain(context.WithoutCancel(ctx))
	f.res.DrainSeconds = seconds(time.Since(drain))
	f.res.End = footprint()
	f.res.End.per(f.started, empty)
	f.look()
	end := f.now // without the goodbyes
	stop()
	running.Wait()
	f.res.TotalSeconds = seconds(time.Since(f.began))
	f.close(idle, end, left)
	return f.res, nil
}

// connect starts agents, so many each second, and waits until all are connected
// and the manager has all that they found on their hosts.
func (f *fleet) connect(ctx context.Context, start func(*device)) {
	var last time.Time
	f.until(ctx, "connect", func(now time.Time) bool {
		if f.started < len(f.devices) {
			want := min(len(f.devices), 1+int(f.o.ramp*now.Sub(f.began).Seconds()))
			for ; f.started < want; f.started++ {
				start(f.devices[f.started])
			}
			last = now
			return false
		}
		if f.now.connected == f.started && f.now.pending == 0 {
			f.res.ConnectSeconds = seconds(now.Sub(f.began))
			return true
		}
		return f.now.failed == f.started || now.Sub(last) > f.o.connectTimeout
	})
}

// change lets hosts change and connections break, in an order that follows from
// the seed alone.
func (f *fleet) change(ctx context.Context) {
	if f.started == 0 {
		return
	}
	changes := rand.New(rand.NewPCG(f.o.seed, 1))
	cuts := rand.New(rand.NewPCG(f.o.seed, 2))
	start, tried := time.Now(), 0
	f.until(ctx, "run", func(now time.Time) bool {
		passed := now.Sub(start)
		over := f.o.duration > 0 && passed >= f.o.duration
		if over {
			passed = f.o.duration
		}
		for ; f.res.Changes < int(f.o.changeRate*passed.Seconds()); f.res.Changes++ {
			d := f.devices[changes.IntN(f.started)]
			d.change(now, alteration(changes, f.o.vms, f.res.Changes))
			f.active[d] = true
		}
		for ; tried < int(f.o.churn*passed.Seconds()); tried++ {
			// The next one that is connected, when this one is not.
			for i, n := 0, cuts.IntN(f.started); i < f.started; i++ {
				if f.devices[(n+i)%f.started].cut() {
					f.res.Sessions.Cuts++
					break
				}
			}
		}
		f.gap(now, false)
		return over
	})
}

// alteration returns the n-th change: a machine is switched on or off, its guest
// gets another address, or a datastore fills.
func alteration(r *rand.Rand, vms, n int) func(*fake.Host) {
	kind, vm := r.IntN(4), 0
	if vms > 0 {
		vm = r.IntN(vms)
	}
	return func(h *fake.Host) {
		id := fmt.Sprintf("vm-%d", vm+1)
		have, ok := h.VM(id)
		switch {
		case !ok || kind == 0:
			h.AlterHost(func(host *wire.Host) { host.Datastores[0].FreeMiB = int64(n % (60 << 10)) })
		case kind == 1 && have.Power == wire.PowerOn:
			h.AlterVM(id, func(vm *wire.VM) {
				vm.IPs = []string{netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}).String()}
			})
		case have.Power == wire.PowerOn:
			h.SetPower(id, wire.PowerOff)
		default:
			h.SetPower(id, wire.PowerOn)
		}
	}
}

// drain waits until every change has its receipt and every outbox is empty. It
// returns how many changes have none.
func (f *fleet) drain(ctx context.Context) (left int) {
	start := time.Now()
	f.until(ctx, "drain", func(now time.Time) bool {
		if len(f.active) == 0 {
			f.look() // what f.now says may be older than the last change
		}
		return (len(f.active) == 0 && f.now.pending == 0) || now.Sub(start) > f.o.drain
	})
	for d := range f.active {
		left += d.settle(func(time.Time) {})
	}
	return left
}

// until calls step each tick until it says so, or ctx is done.
func (f *fleet) until(ctx context.Context, phase string, step func(now time.Time) bool) {
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := time.Now()
		for d := range f.active {
			if d.settle(func(changed time.Time) { f.res.Receipts.add(now.Sub(changed)) }) == 0 {
				delete(f.active, d)
			}
		}
		if now.Sub(f.scanAt) >= scanEvery {
			f.scanAt = now
			f.look()
		}
		if done := step(now); done || now.Sub(f.shownAt) >= progressEvery {
			f.show(phase, now)
			if done {
				return
			}
		}
	}
}

// look brings f.now up to date.
func (f *fleet) look() {
	var s scan
	for _, d := range f.devices[:f.started] {
		st := d.agent.Stats()
		d.mu.Lock()
		s.tasks += d.tasks
		if d.failed != nil {
			s.failed++
		}
		d.mu.Unlock()
		if st.Epoch != 0 && !d.enrolledBefore {
			s.enrolled++
		}
		if st.Connected {
			s.connected++
		}
		if st.Sessions == 0 {
			s.silent++
		}
		s.pending += st.Pending
		s.sessions += st.Sessions
		s.resent += st.Resent
		s.in += st.In
		s.out += st.Out
	}
	f.now = s
}

// gap keeps the longest time that some devices were not connected, and the
// least number that were.
func (f *fleet) gap(now time.Time, over bool) {
	f.res.Sessions.Least = min(f.res.Sessions.Least, f.now.connected)
	if f.now.connected < f.started && f.incomplete.IsZero() {
		f.incomplete = now
	}
	if f.incomplete.IsZero() || (f.now.connected < f.started && !over) {
		return
	}
	f.res.Sessions.Gap = max(f.res.Sessions.Gap, seconds(now.Sub(f.incomplete)))
	f.incomplete = time.Time{}
}

func (f *fleet) show(phase string, now time.Time) {
	if f.o.json {
		return
	}
	line := fmt.Sprintf("%s: %d started, %d connected, %d sessions, %d reports without receipt, %d changes, %d cuts, %d failed",
		phase, f.started, f.now.connected, f.now.sessions, f.now.pending, f.res.Changes, f.res.Sessions.Cuts, f.now.failed)
	if line == f.shown && now.Sub(f.shownAt) < quietEvery {
		return
	}
	f.shown, f.shownAt = line, now
	fmt.Fprintf(f.progress, "%7.1fs %s\n", now.Sub(f.began).Seconds(), line)
}

// close makes up the books when all agents have stopped.
func (f *fleet) close(idle, end scan, left int) {
	r, n := &f.res, uint64(max(f.started, 1))
	problem := func(count int, format string) {
		if count > 0 {
			r.Problems = append(r.Problems, fmt.Sprintf(format, count))
		}
	}
	unopened := 0
	for _, d := range f.devices[:f.started] {
		st := d.agent.Stats()
		d.mu.Lock()
		b := d.book
		d.mu.Unlock()
		r.Reports.Pending += uint64(st.Pending)
		if !b.open {
			unopened++
			continue
		}
		r.Reports.Made += st.Next - b.begin
		r.Reports.Left += uint64(b.left)
		r.Reports.Renewed += b.renewed
		r.books = append(r.books, account{device: d.agent.Device(), epoch: st.Epoch, begin: b.begin, first: st.First, next: st.Next, renewed: b.renewed})
	}
	f.look()
	r.Started, r.Enrolled, r.Failed, r.Tasks = f.started, f.now.enrolled, f.now.failed, f.now.tasks
	r.Reports.Receipted = r.Reports.Made + r.Reports.Left - r.Reports.Pending
	r.Reports.Resent, r.Sessions.Made = f.now.resent, f.now.sessions
	r.Bytes = traffic{
		InPerDevice: end.in / n, OutPerDevice: end.out / n,
		RunIn: (end.in - idle.in) / n, RunOut: (end.out - idle.out) / n,
	}
	r.Receipts.sum()
	r.Warnings = f.warnings.all()
	problem(f.o.devices-f.started, "%d devices were not started")
	problem(end.silent, "%d devices were never connected")
	problem(unopened, "%d devices never looked at their host")
	problem(f.now.failed, "%d agents ended by themselves")
	problem(int(r.Reports.Pending), "%d reports have no receipt")
	problem(left, "%d changes have no receipt")
	for _, d := range f.devices[:f.started] {
		if d.failed != nil {
			r.Problems = append(r.Problems, fmt.Sprintf("the first of them: %v", d.failed))
			break
		}
	}
}

func (f *fleet) writeHeap() error {
	if f.o.heap == "" {
		return nil
	}
	file, err := os.Create(f.o.heap)
	if err != nil {
		return fmt.Errorf("write heap profile: %w", err)
	}
	err = pprof.WriteHeapProfile(file)
	if cerr := file.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("write heap profile: %w", err)
	}
	return nil
}

// enrolled says whether an agent's folder holds an enrolment.
func enrolled(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "enrolment.json"))
	return err == nil
}

func seconds(d time.Duration) float64 { return float64(d.Milliseconds()) / 1000 }
