package mqttgw

import (
	"context"
	"errors"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// errBusy refuses a handshake that would not end in time.
var errBusy = errors.New("too many devices connect at once")

const (
	// admitted is how many devices may be on their way in for each processor:
	// between the ClientHello and the answer of the callout. A connection takes
	// about 2.6 ms of a processor, so one lets in 380 a second and each device
	// is through within a second. Fewer would idle on slow links and be easier
	// to fill for strangers; 64 left no less memory behind.
	admitted = 256
	// admitWait is how long a handshake may wait for its turn. An agent gives up
	// 30 seconds after its first packet, and what was done for it by then was
	// done for nothing.
	admitWait = 10 * time.Second
	// maxWaiting is how many may wait; the next ones are refused at once. More
	// could not be served within admitWait.
	maxWaiting = 8192
	// handshakeLease and calloutLease are how long a handshake, and what comes
	// after it, counts as on its way: one that is slow, or has ended early,
	// must not keep others out.
	handshakeLease = 3 * time.Second
	calloutLease   = time.Second
)

// admission bounds how many devices are on their way in. When all come at once
// each of them would get a small part of the processor, all would run into
// their timeouts, and come again. Who waits costs memory only, and has sent
// nothing but a ClientHello.
type admission struct {
	slots      chan struct{}
	wait       time.Duration
	maxWaiting int64
	waiting    atomic.Int64
	accepted   atomic.Uint64
	waited     prometheus.Histogram

	mu     sync.Mutex
	leases map[netip.AddrPort]*lease // by what the broker takes for the device's address
}

type lease struct {
	timer *time.Timer
	ended bool // guarded by admission.mu
}

func newAdmission() *admission {
	return &admission{
		slots: make(chan struct{}, admitted*runtime.GOMAXPROCS(0)), wait: admitWait, maxWaiting: maxWaiting,
		leases: make(map[netip.AddrPort]*lease),
		waited: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "pallas_device_admission_seconds", Help: "How long handshakes of devices waited for their turn.",
			Buckets: []float64{.001, .01, .1, .5, 1, 2, 5, 10},
		}),
	}
}

// enter waits for a turn. It ends by leave, or some time after done, which is
// when the handshake ends, or when that takes too long.
func (a *admission) enter(done context.Context, from netip.AddrPort) error {
	began := time.Now()
	if err := a.take(done); err != nil {
		return err
	}
	a.waited.Observe(time.Since(began).Seconds())
	a.accepted.Add(1)
	l := &lease{}
	a.mu.Lock()
	old := a.leases[from]
	a.leases[from] = l
	l.timer = time.AfterFunc(handshakeLease, func() { a.end(from, l) })
	a.mu.Unlock()
	if old != nil { // of a connection before it with the same port
		a.end(from, old)
	}
	context.AfterFunc(done, func() { a.extend(l) })
	return nil
}

// extend gives what comes after the handshake its time.
func (a *admission) extend(l *lease) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !l.ended {
		l.timer.Reset(calloutLease)
	}
}

func (a *admission) take(done context.Context) error {
	select {
	case a.slots <- struct{}{}:
		return nil
	default:
	}
	defer a.waiting.Add(-1)
	if a.waiting.Add(1) > a.maxWaiting {
		return errBusy
	}
	timeout := time.NewTimer(a.wait)
	defer timeout.Stop()
	select {
	case a.slots <- struct{}{}: // in the order of arrival
		return nil
	case <-timeout.C:
		return errBusy
	case <-done.Done():
		return done.Err()
	}
}

// leave says that the connection from there is in, or refused.
func (a *admission) leave(from netip.AddrPort) {
	from = plain(from)
	a.mu.Lock()
	l := a.leases[from]
	a.mu.Unlock()
	if l != nil {
		a.end(from, l)
	}
}

// end gives the slot back, once.
func (a *admission) end(from netip.AddrPort, l *lease) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if l.ended {
		return
	}
	l.ended = true
	l.timer.Stop()
	if a.leases[from] == l {
		delete(a.leases, from)
	}
	<-a.slots
}

// Describe and Collect make it a prometheus.Collector.
func (a *admission) Describe(c chan<- *prometheus.Desc) { prometheus.DescribeByCollect(a, c) }

// Collect implements [prometheus.Collector].
func (a *admission) Collect(c chan<- prometheus.Metric) {
	for desc, n := range map[*prometheus.Desc]int{admittedDesc: len(a.slots), waitingDesc: int(a.waiting.Load())} {
		c <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(n))
	}
	a.waited.Collect(c)
}

var (
	admittedDesc = prometheus.NewDesc("pallas_device_handshakes", "Devices on their way in: in the TLS handshake or waiting for their authorization.", nil, nil)
	waitingDesc  = prometheus.NewDesc("pallas_device_handshakes_waiting", "Devices whose handshake waits for its turn.", nil, nil)
)
