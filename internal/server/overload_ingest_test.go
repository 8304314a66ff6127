package server_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
	"golang.org/x/sync/errgroup"

	"pallas/events"
	"pallas/internal/client"
	"pallas/internal/config"
	"pallas/internal/server"
	"pallas/mqttgw/wire"
)

// overloadIngest has 1,000 devices make three times as many reports as the
// manager takes, and compares what operators see of it with a quiet time. The
// devices have a window, as an agent has: what the manager cannot take waits
// there, and arrives in the end, once, without a session lost.
func overloadIngest(b *testing.B) {
	const devices = 1000
	f := newFleet(b, devices, func(c *server.Config) {
		// Nothing is written of the agents that bare clients replace.
		c.Devices.Grace = config.Duration(time.Hour)
	})
	f.start().stop()
	f.rest()
	l := &load{f: f}
	for _, c := range f.callers(f.m.Config.MQTT.Listen) {
		l.devices = append(l.devices, newReporter(b, c, f.m.Config.MQTT.Listen))
	}
	quiet := l.phase(1000, 2*overloadFor, true)
	full := l.phase(1e6, 2*overloadFor, false)
	over := l.phase(3*full.rate, 2*overloadFor, true)
	for _, r := range l.devices {
		r.leave()
	}
	f.m.Stop()
	l.check()
	b.ReportMetric(full.rate, "capacity/s")
	b.ReportMetric(3*full.rate, "offered/s")
	b.ReportMetric(over.rate, "taken/s")
	b.ReportMetric(over.seconds, "s-to-all")
	for name, p := range map[string]*phase{"quiet": quiet, "over": over} {
		b.ReportMetric(p.cpus, name+"-cpus")
		b.ReportMetric(p.peak, name+"-peak-MB")
		b.ReportMetric(p.lists.at(50), name+"-list-p50-ms")
		b.ReportMetric(p.lists.at(99), name+"-list-p99-ms")
		b.ReportMetric(p.tasks.at(50), name+"-task-p50-ms")
		b.ReportMetric(p.tasks.at(99), name+"-task-p99-ms")
	}
	b.ReportMetric(over.lists.at(99)/quiet.lists.at(99), "list-p99-of-quiet")
	b.ReportMetric(over.tasks.at(99)/quiet.tasks.at(99), "task-p99-of-quiet")
	b.ReportMetric(0, "ns/op")
}

// load is devices that report, and operators beside them.
type load struct {
	f       *fleet
	devices []*reporter
	asked   int // tasks
}

// phase is what was seen while the devices reported.
type phase struct {
	rate, seconds float64 // reports receipted a second, until the last receipt
	cpus, peak    float64 // of the manager; MB
	lists, tasks  times   // until an operator has a page, a device its task
}

// phase has the devices together make so many reports a second for a while;
// what they could not send by then they send later if they keep it. Beside them
// operators read 20 pages and ask for 10 tasks a second, whatever the answers
// do.
func (l *load) phase(rate float64, lasts time.Duration, keep bool) *phase {
	b := l.f.b
	b.Helper()
	// 5 has Linux forget the peak so far.
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", l.f.m.Pid()), []byte("5"), 0o200); err != nil {
		b.Fatal(err)
	}
	p := &phase{}
	get := getter(b, l.f.m)
	ctx, stop := context.WithCancel(b.Context())
	var operators, requests sync.WaitGroup
	operators.Go(func() {
		pace(ctx, 50*time.Millisecond, func() {
			requests.Go(func() {
				began := time.Now()
				if status, err := get(b.Context(), "/api/v1/devices?limit=100"); err != nil || status != http.StatusOK {
					b.Errorf("read devices: %d %v", status, err)
				}
				p.lists.add(time.Since(began))
			})
		})
	})
	operators.Go(func() {
		pace(ctx, 100*time.Millisecond, func() {
			r := l.devices[l.asked%len(l.devices)]
			l.asked++
			requests.Go(func() { l.ask(r, &p.tasks) })
		})
	})
	var g errgroup.Group
	var made atomic.Uint64
	cpu, began := l.f.m.CPU(), time.Now()
	for _, r := range l.devices {
		g.Go(func() error {
			n, err := r.report(rate/float64(len(l.devices)), lasts, keep)
			made.Add(n)
			return err
		})
	}
	err := g.Wait()
	p.seconds = time.Since(began).Seconds()
	p.cpus = (l.f.m.CPU() - cpu).Seconds() / p.seconds
	p.rate = float64(made.Load()) / p.seconds
	stop()
	operators.Wait()
	requests.Wait()
	if err != nil {
		b.Fatal(err)
	}
	p.peak = float64(l.f.m.Memory("VmHWM")) / 1e6
	return p
}

// ask asks for a task and waits until the device has it. The device never
// accepts it.
func (l *load) ask(r *reporter, lags *times) {
	b := l.f.b
	began := time.Now()
	resp, err := l.f.m.API.SetVmPowerWithResponse(b.Context(), r.device, "vm-1", nil,
		client.SetVmPowerJSONRequestBody{Action: client.SetVMPowerActionReset})
	if err != nil || resp.JSON202 == nil {
		b.Errorf("ask for a task: %v %s", err, answer(resp))
		return
	}
	timeout := time.After(time.Minute)
	for {
		select {
		case t := <-r.tasks:
			if t.id == resp.JSON202.Id.String() {
				lags.add(t.at.Sub(began))
				return
			}
		case <-timeout:
			b.Errorf("device %s did not get task %s within a minute", r.device, resp.JSON202.Id)
			return
		}
	}
}

// check compares the log of a manager that has stopped with what the devices
// made.
func (l *load) check() {
	b := l.f.b
	b.Helper()
	type report struct {
		device events.DeviceID
		seq    uint64
	}
	devices := make(map[events.DeviceID]*reporter)
	want := uint64(0)
	for _, r := range l.devices {
		devices[events.DeviceID(r.device)] = r
		want += r.next - r.first
	}
	seen := make(map[report]bool)
	log, done := l.f.m.OpenLog()
	defer done()
	for rec, err := range log.Read(b.Context(), events.Filter{}) {
		if err != nil {
			b.Fatal(err)
		}
		for _, e := range rec.Entries {
			r := devices[rec.Subject.Device()]
			if r == nil || e.Report == nil || e.Report.Epoch != r.epoch || e.Report.Seq < r.first {
				continue
			}
			at := report{rec.Subject.Device(), e.Report.Seq}
			if seen[at] {
				b.Errorf("report %d of %s is twice in the log", at.seq, at.device)
			}
			seen[at] = true
		}
	}
	if got := uint64(len(seen)); got != want {
		b.Errorf("the log has %d reports, the devices made %d", got, want)
	}
}

// reporter is a device as lean as can be: it sends reports and never anything
// again, so whatever is lost ends the benchmark.
type reporter struct {
	caller
	first   uint64 // the sequence of the first report of the benchmark
	conn    net.Conn
	tasks   chan received
	acked   atomic.Uint64
	wake    chan struct{} // room for one: acked moved, or the connection ended
	err     atomic.Pointer[error]
	reading sync.WaitGroup
}

// received is a task that came.
type received struct {
	id string
	at time.Time
}

// newReporter connects a device.
func newReporter(b *testing.B, c caller, addr string) *reporter {
	b.Helper()
	r := &reporter{caller: c, first: c.next, tasks: make(chan received, 16), wake: make(chan struct{}, 1)}
	r.acked.Store(c.next - 1)
	conn, err := c.dial(addr, welcomed)
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if err != nil {
		b.Fatalf("connect device %s: %v", c.device, err)
	}
	r.conn = conn
	r.reading.Go(r.read)
	b.Cleanup(r.leave)
	return r
}

func (r *reporter) leave() {
	_ = r.conn.Close()
	r.reading.Wait()
}

func (r *reporter) read() {
	in := bufio.NewReader(r.conn)
	for {
		p, err := packets.ReadPacket(in)
		if p, ok := p.(*packets.PublishPacket); ok && err == nil {
			var d wire.Down
			d, err = wire.DecodeDown(p.Payload)
			switch {
			case err != nil:
			case d.Receipt != nil:
				r.acked.Store(d.Receipt.Seq)
			case d.Error != nil:
				err = fmt.Errorf("%s: %s", d.Error.Code, d.Error.Message)
			case d.Resend != nil || d.Greet:
				err = errors.New("the manager misses reports, or the session")
			}
			for _, t := range d.Tasks {
				select {
				case r.tasks <- received{t.ID.String(), time.Now()}:
				default: // nobody waits for it any more
				}
			}
		}
		if err != nil {
			r.err.Store(&err)
		}
		select {
		case r.wake <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
	}
}

// report makes reports at a rate for a while and returns how many, when all
// that were sent have their receipt. What was made and could not be sent in
// time is sent later if it is kept.
func (r *reporter) report(rate float64, lasts time.Duration, keep bool) (uint64, error) {
	const (
		window = 64
		batch  = 16
		linger = 50 * time.Millisecond
	)
	// Not all at the same instant.
	first, began := r.next, time.Now().Add(-time.Duration(rand.Float64()/rate*float64(time.Second)))
	timeout := time.After(5 * time.Minute)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		elapsed := min(time.Since(began), lasts)
		due := first + uint64(rate*elapsed.Seconds())
		if elapsed == lasts && !keep {
			due = r.next
		}
		for r.next < due {
			n := min(batch, due-r.next, r.acked.Load()+window+1-r.next)
			if n == 0 {
				break
			}
			if err := r.send(n); err != nil {
				return 0, err
			}
		}
		if elapsed == lasts && r.next >= due && r.acked.Load() == r.next-1 {
			return r.next - first, nil
		}
		var more <-chan time.Time
		if elapsed < lasts {
			timer.Reset(max(linger, time.Duration(float64(r.next+1-first)/rate*float64(time.Second))-elapsed))
			more = timer.C
		}
		select {
		case <-more:
		case <-r.wake:
			if err := r.err.Load(); err != nil {
				return 0, fmt.Errorf("device %s: %w", r.device, *err)
			}
		case <-timeout:
			return 0, fmt.Errorf("device %s: no receipt of %d reports", r.device, r.next-1-r.acked.Load())
		}
	}
}

// send sends n changes of a virtual machine in one packet.
func (r *reporter) send(n uint64) error {
	up := wire.Up{Version: wire.Version, Epoch: r.epoch}
	for range n {
		memory := int64(1000 + r.next%2) // no agent has reported either
		up.Reports = append(up.Reports, wire.Report{Seq: r.next, Time: time.Now(), VMPatch: &wire.VMPatch{ID: "vm-1", MemoryMiB: &memory}})
		r.next++
	}
	p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	var err error
	if p.Payload, err = wire.EncodeUp(up); err != nil {
		return err
	}
	p.TopicName = wire.UpTopic(r.device)
	return p.Write(r.conn)
}
