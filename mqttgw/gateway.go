package mqttgw

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"

	"pallas/commands"
	"pallas/events"
	"pallas/mqttgw/pki"
	"pallas/mqttgw/renewal"
	"pallas/mqttgw/wire"
)

// Presence hears which devices have a session. Calls for one device come in
// order and alternate: Connected, Disconnected, Connected… A takeover is a
// Disconnected of the old session and then a Connected of the new one. The
// methods must not block.
type Presence interface {
	Connected(device events.DeviceID, s commands.Session)
	Disconnected(device events.DeviceID, s commands.Session, reason string)
}

// Config configures a [Gateway].
type Config struct {
	// Broker must have been started before Run.
	Broker   *Broker
	Commands *commands.Dispatcher
	// Presence may be nil.
	Presence Presence
	// Renewals gives devices new certificates; nil means that nobody does.
	Renewals *renewal.Service
	// Authority says which CAs devices are to trust. It is needed with Renewals.
	Authority *pki.Authority
	// Settings are given to devices; zero fields get defaults.
	Settings wire.Settings
	// ReceiptDelay is how old a written report must be before the device may
	// forget it: at least the broker's Sync for a promise that outlives a
	// power cut. 0 means at once.
	ReceiptDelay time.Duration
	// Rate and Burst bound what one device may send, in packets per second
	// (each 4 KiB of a packet count as another). What is beyond is dropped;
	// the device sends it again. 0 means 200 and 1,000.
	Rate  float64
	Burst int
	// Usage keeps what the devices' connections cost; nil means nobody does. It
	// gets what is new each UsageInterval (0 means 5 minutes), and when the day
	// or Run ends.
	Usage         UsageLog
	UsageInterval time.Duration
	// Workers is the number of devices served at the same time; 0 means 16.
	Workers int
	Log     *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Registerer receives the metrics; may be nil.
	Registerer prometheus.Registerer
}

const (
	// minQueue is how many packets of one device may wait, unless its window
	// is large: then it is twice that.
	minQueue = 64
	// maxQueuedBytes bounds all waiting packets together.
	maxQueuedBytes = 256 << 20
	// receiptTick is how often receipts are looked for.
	receiptTick = 100 * time.Millisecond
	// reconcileEvery is how often the sessions are compared with the broker's
	// connections: its events may be lost. reconcileAtLeast is how often that is
	// done one by one although their numbers agree.
	reconcileEvery   = time.Minute
	reconcileAtLeast = 30 * time.Minute
)

// Gateway stands between devices and the write side.
type Gateway struct {
	broker   *Broker
	commands *commands.Dispatcher
	presence Presence
	cfg      Config
	log      *slog.Logger
	now      func() time.Time

	seed        maphash.Seed
	shards      []*shard
	queuedBytes atomic.Int64
	// maxQueue is how many packets of one device may wait.
	maxQueue int
	done     chan struct{} // closed when Run has returned
	// devices is the connection that packets go through; set by Run.
	devices atomic.Pointer[nats.Conn]

	penalties  *penalties
	suspicions chan suspicion
	// reconciled is when it last was, differed what the last comparison said.
	// Run's alone.
	reconciled time.Time
	differed   bool

	reports  prometheus.Counter
	receipts prometheus.Counter
	punished prometheus.Counter
}

// New checks the configuration.
func New(cfg Config) (*Gateway, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	def(&cfg.Settings.Window, 64)
	def(&cfg.Settings.KeepAlive, 240)
	def(&cfg.Settings.Reconcile, 600)
	def(&cfg.Settings.Resend, 5000)
	def(&cfg.Burst, 1000)
	def(&cfg.Workers, 16)
	if cfg.UsageInterval == 0 {
		cfg.UsageInterval = 5 * time.Minute
	}
	if cfg.Rate == 0 {
		cfg.Rate = 200
	}
	switch {
	case cfg.Broker == nil:
		return nil, errors.New("gateway: Broker is missing")
	case cfg.Commands == nil:
		return nil, errors.New("gateway: Commands is missing")
	case cfg.Renewals != nil && cfg.Authority == nil:
		return nil, errors.New("gateway: Authority is missing, Renewals need it")
	case cfg.ReceiptDelay < 0:
		return nil, fmt.Errorf("gateway: ReceiptDelay is %v, want 0 or more", cfg.ReceiptDelay)
	case cfg.UsageInterval < 0:
		return nil, fmt.Errorf("gateway: UsageInterval is %v, want 0 or more", cfg.UsageInterval)
	case cfg.Rate < 0 || cfg.Burst < 1 || cfg.Workers < 1:
		return nil, fmt.Errorf("gateway: Rate %v, Burst %d, Workers %d: want positive numbers", cfg.Rate, cfg.Burst, cfg.Workers)
	case cfg.Burst < minBurst:
		return nil, fmt.Errorf("gateway: Burst is %d, want at least %d so that the largest packet passes", cfg.Burst, minBurst)
	case cfg.Settings.Window < 1 || cfg.Settings.KeepAlive < 1 || cfg.Settings.Reconcile < 1 || cfg.Settings.Resend < 1:
		return nil, fmt.Errorf("gateway: Settings %+v: want positive numbers", cfg.Settings)
	}
	g := &Gateway{
		broker: cfg.Broker, commands: cfg.Commands, presence: cfg.Presence, cfg: cfg, log: cfg.Log, now: cfg.Now,
		seed: maphash.MakeSeed(), maxQueue: max(minQueue, 2*cfg.Settings.Window), done: make(chan struct{}),
		penalties: newPenalties(), suspicions: make(chan suspicion, maxSuspicions),
		punished: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "pallas_device_penalties_total", Help: "How often a device was closed and kept out for a while because it flooded.",
		}),
		reports: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "pallas_device_reports_total", Help: "Reports of devices that were taken, repeats not counted.",
		}),
		receipts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "pallas_device_receipts_total", Help: "Receipts sent to devices.",
		}),
	}
	for range cfg.Workers {
		g.shards = append(g.shards, newShard(g))
	}
	if r := cfg.Registerer; r != nil {
		sessions := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "pallas_device_sessions", Help: "Devices that have a session.",
		}, func() float64 { return float64(g.Sessions()) })
		for _, c := range []prometheus.Collector{g.broker.refused, g.broker.gate, g.broker.meter.bytes, g.broker.meter.dropped, g.reports, g.receipts, g.punished, sessions} {
			if err := r.Register(c); err != nil {
				return nil, fmt.Errorf("gateway: register metrics: %w", err)
			}
		}
	}
	return g, nil
}

// Run answers for devices until ctx is done. It opens the broker's door when it
// can answer and closes it when it returns; connections that exist stay. It may
// be called once.
func (g *Gateway) Run(ctx context.Context) error {
	defer close(g.done)
	conns := make([]*nats.Conn, 3)
	for i, account := range []string{accountAuth, accountDevices, accountSystem} {
		nc, err := g.broker.connect(account, "gateway")
		if err != nil {
			return fmt.Errorf("run gateway: %w", err)
		}
		defer nc.Close()
		conns[i] = nc
	}
	auth, devices, system := conns[0], conns[1], conns[2]
	g.devices.Store(devices)

	work, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	for _, sh := range g.shards {
		wg.Go(func() { sh.run(work) })
	}
	requests := make(chan *nats.Msg, calloutQueue)
	wg.Go(func() { g.answerCallouts(work, requests) })
	wg.Go(func() { g.countUsage(work) })
	wg.Go(func() { g.lookAfterSuspicions(work) })
	// Each defer undoes what came before it: nothing is sent on requests any
	// more when it is closed.
	var subs []*nats.Subscription
	defer func() {
		g.broker.open.Store(false)
		for _, s := range subs {
			_ = s.Unsubscribe()
		}
		auth.Close()
		close(requests)
	}()

	up, err := devices.Subscribe(wire.UpSubjects, func(m *nats.Msg) {
		if conn := m.Header.Get(endHeader); conn != "" {
			g.ended(work, m.Subject, conn, string(m.Data))
			return
		}
		g.intake(m.Subject, m.Data)
	})
	if err == nil {
		subs = append(subs, up)
		err = up.SetPendingLimits(1<<20, maxQueuedBytes)
	}
	if err != nil {
		return fmt.Errorf("run gateway: subscribe to devices: %w", err)
	}
	gone, err := system.Subscribe("$SYS.ACCOUNT."+accountDevices+".DISCONNECT", func(m *nats.Msg) { g.disconnected(m.Data) })
	if err == nil {
		subs = append(subs, gone)
		err = gone.SetPendingLimits(-1, -1)
	}
	if err != nil {
		return fmt.Errorf("run gateway: subscribe to disconnects: %w", err)
	}
	callout, err := auth.ChanQueueSubscribe(calloutSubject, "gateway", requests)
	if err != nil {
		return fmt.Errorf("run gateway: subscribe to authorization requests: %w", err)
	}
	subs = append(subs, callout)
	for _, nc := range conns {
		if err := nc.FlushTimeout(startTimeout); err != nil {
			return fmt.Errorf("run gateway: %w", err)
		}
	}
	g.reconcile()
	g.broker.open.Store(true)
	g.log.Info("device door open", "mqtt", g.broker.MQTTAddr())

	ticker := time.NewTicker(reconcileEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			g.log.Info("device door closed")
			return nil
		case <-ticker.C:
			g.compare(work)
		}
	}
}

// disconnected is told of each device connection that ended.
func (g *Gateway) disconnected(data []byte) {
	var ev server.DisconnectEventMsg
	if err := json.Unmarshal(data, &ev); err != nil {
		g.log.Warn("unreadable disconnect event", "err", err)
		return
	}
	id, err := events.ParseDeviceID(ev.Client.MQTTClient)
	if err != nil || ev.Client.ClientType != "mqtt" {
		return // one of this process's own connections
	}
	if slices.Contains(abuses, ev.Reason) {
		// The connection is gone. Another of the device's did nothing wrong.
		g.keepOut(id, ev.Reason)
	}
	if err := g.devices.Load().PublishMsg(&nats.Msg{
		Subject: wire.Subject(wire.UpTopic(string(id))), Data: []byte(ev.Reason),
		Header: nats.Header{endHeader: {strconv.FormatUint(ev.Client.ID, 10)}},
	}); err != nil {
		g.log.Warn("note the end of a connection", "device", id, "conn", ev.Client.ID, "err", err)
	}
}

// endHeader marks the end of a connection, which takes the way of the
// connection's packets and so comes after the last of them: its goodbye. A
// device cannot send a header.
const endHeader = "Pallas-Connection-End"

// ended handles the end of a connection behind the packets that wait.
func (g *Gateway) ended(ctx context.Context, subject, conn, reason string) {
	id := events.DeviceID(wire.DeviceOfSubject(subject))
	n, err := strconv.ParseUint(conn, 10, 64)
	if err != nil {
		g.log.Warn("unreadable end of a connection", "device", id, "err", err)
		return
	}
	sh := g.shard(id)
	sh.do(func() {
		sh.mu.Lock()
		s := sh.sessions[id]
		sh.mu.Unlock()
		if s != nil {
			sh.serve(ctx, s)
		}
		sh.endConn(id, n, reason)
	})
}

// compare reconciles when the sessions have another number of connections than
// the broker now and a minute ago (some are always on their way in or out), or
// when that was not done for long. Listing 100,000 connections takes a while.
func (g *Gateway) compare(ctx context.Context) {
	sessions := 0
	for _, sh := range g.shards {
		sh.lookAtPending(ctx)
		sessions += sh.connections()
	}
	differ := sessions != g.broker.MQTTConns()
	if differ && g.differed || g.now().Sub(g.reconciled) >= reconcileAtLeast {
		g.reconcile()
	}
	g.differed = differ
}

// reconcile makes the sessions match the broker's connections.
func (g *Gateway) reconcile() {
	g.reconciled = g.now()
	conns, err := g.broker.deviceConns()
	if err != nil {
		g.log.Warn("list device connections", "err", err)
		return
	}
	for _, c := range conns {
		id, err := events.ParseDeviceID(c.MQTTClient)
		if err != nil {
			continue
		}
		if g.noteConn(id, c.Cid, g.broker.origins.host(c.IP, c.Port)) {
			g.send(id, wire.Down{Greet: true})
		}
	}
	for _, sh := range g.shards {
		sh.endDead()
	}
}

// Sessions returns the number of devices that have a session.
func (g *Gateway) Sessions() int {
	n := 0
	for _, sh := range g.shards {
		sh.mu.Lock()
		for _, s := range sh.sessions {
			if s.greeted {
				n++
			}
		}
		sh.mu.Unlock()
	}
	return n
}

func (g *Gateway) shard(id events.DeviceID) *shard {
	return g.shards[maphash.String(g.seed, string(id))%uint64(len(g.shards))]
}
