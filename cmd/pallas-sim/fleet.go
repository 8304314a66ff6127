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

	stream *stream
	// hold is called between the phases; it lets the fleet go on. nil: at once.
	hold func(ctx context.Context, f *fleet, at phase)

	devices []*device
	active  map[*device]bool // with changes that have no receipt
	now     state
	outage  outage
	res     result

	began, scanAt time.Time
	shown         shown
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
	f.res = result{Devices: f.o.devices, VMs: f.o.vms, Seed: f.o.seed, Processes: 1}
	for i := range f.o.devices {
		d, err := newDevice(f.o, f.o.first+i, f.log, func(t began) { f.stream.line(line{At: monotonic(), Task: &t}) })
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
	f.res.Idle.per(f.now.Started, empty)
	if err := f.writeHeap(); err != nil {
		return f.res, err
	}
	f.pause(ctx, ready)
	f.look()
	idle, start := f.now, time.Now()
	f.outage.least = idle.Connected
	f.change(ctx)
	f.look()
	f.outage.note(time.Now(), f.now.Connected, f.now.Started)
	f.res.Connected = f.now.Connected
	f.res.RunSeconds = seconds(time.Since(start))

	drain := time.Now()
	left := f.drain(context.WithoutCancel(ctx))
	f.res.DrainSeconds = seconds(time.Since(drain))
	f.res.End = footprint()
	f.res.End.per(f.now.Started, empty)
	f.pause(context.WithoutCancel(ctx), drained)
	f.look()
	end := f.now // without the goodbyes
	stop()
	running.Wait()
	f.res.TotalSeconds = seconds(time.Since(f.began))
	f.close(idle, end, left)
	return f.res, f.stream.failure()
}

// pause tells that the phase is reached, and goes on when it may.
func (f *fleet) pause(ctx context.Context, at phase) {
	f.now.Phase = at
	f.look()
	if f.hold != nil && ctx.Err() == nil {
		f.hold(ctx, f, at)
	}
}

// connect starts agents, so many each second, and waits until all are connected
// and the manager has all that they found on their hosts.
func (f *fleet) connect(ctx context.Context, start func(*device)) {
	var last time.Time
	f.until(ctx, connecting, func(now time.Time) bool {
		if n := f.now.Started; n < len(f.devices) {
			want := min(len(f.devices), 1+int(f.o.ramp*now.Sub(f.began).Seconds()))
			for ; n < want; n++ {
				start(f.devices[n])
			}
			f.now.Started, last = n, now
			return false
		}
		if f.now.Connected == f.now.Started && f.now.Pending == 0 {
			f.res.ConnectSeconds = seconds(now.Sub(f.began))
			return true
		}
		return f.now.Failed == f.now.Started || now.Sub(last) > f.o.connectTimeout
	})
}

// change lets hosts change and connections break, in an order that follows from
// the seed alone.
func (f *fleet) change(ctx context.Context) {
	if f.now.Started == 0 {
		return
	}
	// Another stream of numbers for each process of a fleet.
	changes := rand.New(rand.NewPCG(f.o.seed, uint64(2*f.o.first+1)))
	cuts := rand.New(rand.NewPCG(f.o.seed, uint64(2*f.o.first+2)))
	start, tried := time.Now(), 0
	f.until(ctx, running, func(now time.Time) bool {
		passed := now.Sub(start)
		over := f.o.duration > 0 && passed >= f.o.duration
		if over {
			passed = f.o.duration
		}
		for ; f.now.Changes < int(f.o.changeRate*passed.Seconds()); f.now.Changes++ {
			d := f.devices[changes.IntN(f.now.Started)]
			d.change(now, alteration(changes, f.o.vms, f.now.Changes))
			f.active[d] = true
		}
		for ; tried < int(f.o.churn*passed.Seconds()); tried++ {
			// The next one that is connected, when this one is not.
			for i, n := 0, cuts.IntN(f.now.Started); i < f.now.Started; i++ {
				if f.devices[(n+i)%f.now.Started].cut() {
					f.now.Cuts++
					break
				}
			}
		}
		f.outage.note(now, f.now.Connected, f.now.Started)
		return over
	})
}

// alteration returns the n-th change: a machine is switched on or off, its guest
// gets another address, or a datastore fills. The first machine of several keeps
// its power, so that a task may rely on it.
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
		case vm == 0 && vms > 1:
			h.SetTools(id, [...]string{wire.ToolsRunning, wire.ToolsNotRunning}[n%2])
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
	f.until(ctx, draining, func(now time.Time) bool {
		if len(f.active) == 0 {
			f.look() // what f.now says may be older than the last change
		}
		return (len(f.active) == 0 && f.now.Pending == 0) || now.Sub(start) > f.o.drain
	})
	for d := range f.active {
		left += d.settle(func(time.Time) {})
	}
	return left
}

// until calls step each tick until it says so, or ctx is done.
func (f *fleet) until(ctx context.Context, at phase, step func(now time.Time) bool) {
	f.now.Phase = at
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
		done := step(now)
		if !f.o.json {
			f.shown.show(f.progress, now.Sub(f.began), f.now, done)
		}
		if done {
			return
		}
	}
}

// look brings f.now up to date.
func (f *fleet) look() {
	s := state{Phase: f.now.Phase, Started: f.now.Started, Changes: f.now.Changes, Cuts: f.now.Cuts}
	for _, d := range f.devices[:s.Started] {
		st := d.agent.Stats()
		d.mu.Lock()
		s.Tasks += d.tasks
		if d.failed != nil {
			s.Failed++
		}
		if b := &d.book; b.open {
			b.reported(st)
			s.Made += st.Next - b.begin
			s.Left += uint64(b.left)
			s.Renewed += b.renewed
		} else {
			s.Unopened++
		}
		d.mu.Unlock()
		if st.Epoch != 0 && !d.enrolledBefore {
			s.Enrolled++
		}
		if st.Connected {
			s.Connected++
		}
		if st.Sessions == 0 {
			s.Silent++
		}
		s.Pending += uint64(st.Pending)
		s.Sessions += st.Sessions
		s.Receipts += st.Receipts
		s.Resent += st.Resent
		s.In += st.In
		s.Out += st.Out
	}
	f.now = s
	f.stream.state(s)
}

// shown is the last line of progress.
type shown struct {
	text string
	at   time.Duration
}

// show prints s when it is news, or nothing was printed for long. Now is
// whether it must not wait.
func (l *shown) show(w io.Writer, at time.Duration, s state, now bool) {
	if !now && at-l.at < progressEvery {
		return
	}
	text := fmt.Sprintf("%v: %d started, %d connected, %d sessions, %d reports without receipt, %d changes, %d cuts, %d failed",
		s.Phase, s.Started, s.Connected, s.Sessions, s.Pending, s.Changes, s.Cuts, s.Failed)
	if text == l.text && at-l.at < quietEvery {
		return
	}
	l.text, l.at = text, at
	fmt.Fprintf(w, "%7.1fs %s\n", at.Seconds(), text)
}

// close makes up the books when all agents have stopped.
func (f *fleet) close(idle, end state, left int) {
	f.look()
	r, s := &f.res, f.now
	for _, d := range f.devices[:s.Started] {
		if b, st := &d.book, d.agent.Stats(); b.open {
			r.books = append(r.books, account{device: d.agent.Device(), epoch: st.Epoch, begin: b.begin, first: st.First, next: st.Next, renewed: b.renewed})
		}
	}
	r.Started, r.Enrolled, r.Failed, r.Tasks, r.Changes = s.Started, s.Enrolled, s.Failed, s.Tasks, s.Changes
	r.Reports = reports{
		Made: s.Made, Receipted: s.Made + s.Left - s.Pending, Left: s.Left, Pending: s.Pending,
		Resent: s.Resent, Renewed: s.Renewed, Receipts: s.Receipts,
	}
	r.Sessions = sessions{Made: s.Sessions, Cuts: s.Cuts, Least: f.outage.least, Gap: seconds(f.outage.gap)}
	n := uint64(max(s.Started, 1))
	r.Bytes = traffic{
		InPerDevice: end.In / n, OutPerDevice: end.Out / n,
		RunIn: (end.In - idle.In) / n, RunOut: (end.Out - idle.Out) / n,
	}
	r.Receipts.sum()
	r.Warnings = f.warnings.all()
	problem := func(count int, format string) {
		if count > 0 {
			r.Problems = append(r.Problems, fmt.Sprintf(format, count))
		}
	}
	problem(f.o.devices-s.Started, "%d devices were not started")
	problem(end.Silent, "%d devices were never connected")
	problem(s.Unopened, "%d devices never looked at their host")
	problem(s.Failed, "%d agents ended by themselves")
	problem(int(s.Pending), "%d reports have no receipt")
	problem(left, "%d changes have no receipt")
	for _, d := range f.devices[:s.Started] {
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
