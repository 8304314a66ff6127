package mqttgw

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"pallas/commands"
	"pallas/events"
	"pallas/mqttgw/pki"
	"pallas/mqttgw/wire"
)

// session is what is known of a device that is connected. There may be 100,000
// of them: no goroutine, no buffer.
type session struct {
	id events.DeviceID

	// Guarded by the shard's mutex.
	conns   []uint64 // the broker's connections of the device, oldest first
	address string   // of the newest
	greeted bool     // a Hello came on the connection live.Conn
	pending bool     // the device waits for approval
	gone    bool     // no longer in the shard's map
	in      [][]byte // packets that wait; the session is ready while there are any
	limiter *rate.Limiter
	flood   int       // packets beyond the rate
	floodAt time.Time // since when
	reason  string    // why the session is being closed, when it is known

	// Used by the shard's worker alone.
	live  commands.Session // the newest that greeted
	told  bool             // Presence heard of live
	epoch uint64
	next  uint64 // the sequence expected next
	// boundary is Hello.Next while the inventory hash is yet to be compared.
	boundary uint64
	hash     []byte
	open     map[events.TaskID]bool // Hello.Open, until the boundary
	openCut  bool                   // there was no room for all of them
	// mark is the sequence that may be receipted when markAt is old enough; 0
	// for none. lastAt is when next last moved. waiting says that the session
	// is in the shard's list of receipts.
	mark      uint64
	markAt    time.Time
	lastAt    time.Time
	waiting   bool
	receipted uint64 // the highest sequence receipted in this session
	resentAt  time.Time
	resentFor uint64
	greetAt   time.Time
	resyncAt  time.Time
	blamedAt  time.Time // when a line of the log last blamed the device
	instances []string  // the running programs that greeted last, in hex, newest last
	// anchors is the state whose CAs the device has, noAnchors when it has
	// others, nil when it does not say.
	anchors *pki.State
	held    [][]byte // beside the Hello that is being answered
	issued  *issued  // the newest certificate, until the device has it
}

// shard holds the sessions of a part of the devices. Its one worker handles
// their packets: a device's in the order of arrival, the devices in turn, and
// of each all that has come since its last turn. So a device that sends much
// has its reports written together, and holds up nobody.
type shard struct {
	g    *Gateway
	wake chan struct{} // room for one: there is work

	mu       sync.Mutex
	sessions map[events.DeviceID]*session
	ready    []*session // with packets, in turn
	jobs     []func()   // what else the worker is to do

	receipts []*session        // the worker's: sessions with a mark, oldest first
	untold   []events.DeviceID // the worker's: who is to hear of other CAs
}

func newShard(g *Gateway) *shard {
	return &shard{g: g, wake: make(chan struct{}, 1), sessions: make(map[events.DeviceID]*session)}
}

func (sh *shard) run(ctx context.Context) {
	ticker := time.NewTicker(receiptTick)
	defer ticker.Stop()
	for {
		var idle <-chan struct{} = sh.wake
		if sh.step(ctx) {
			idle = closed
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			sh.giveReceipts(sh.g.now())
			sh.tellTrust(ctx)
		case <-idle:
		}
	}
}

// closed is always ready.
var closed = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// step does one thing, and says whether there was one.
func (sh *shard) step(ctx context.Context) bool {
	sh.mu.Lock()
	if len(sh.jobs) > 0 {
		f := sh.jobs[0]
		sh.jobs = sh.jobs[1:]
		sh.mu.Unlock()
		f()
		return true
	}
	if len(sh.ready) == 0 {
		sh.mu.Unlock()
		return false
	}
	s := sh.ready[0]
	sh.ready = sh.ready[1:]
	sh.mu.Unlock()
	sh.serve(ctx, s)
	return true
}

// serve handles the packets of a session that wait.
func (sh *shard) serve(ctx context.Context, s *session) {
	sh.mu.Lock()
	in, gone := s.in, s.gone
	s.in = nil
	sh.mu.Unlock()
	size := 0
	for _, data := range in {
		size += len(data)
	}
	sh.g.queuedBytes.Add(-int64(size))
	if !gone {
		sh.packets(ctx, s, in, size)
	}
}

// rouse tells the worker that there is work.
func (sh *shard) rouse() {
	select {
	case sh.wake <- struct{}{}:
	default:
	}
}

// do has the worker run f.
func (sh *shard) do(f func()) {
	sh.mu.Lock()
	sh.jobs = append(sh.jobs, f)
	sh.mu.Unlock()
	sh.rouse()
}

// noteConn adds a connection to the device's session, and makes one if there is
// none. It says whether the connection was news.
func (g *Gateway) noteConn(id events.DeviceID, conn uint64, address string) bool {
	sh := g.shard(id)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	s := sh.sessions[id]
	if s == nil {
		s = &session{id: id, limiter: rate.NewLimiter(rate.Limit(g.cfg.Rate), g.cfg.Burst)}
		sh.sessions[id] = s
	}
	if slices.Contains(s.conns, conn) {
		return false
	}
	s.conns, s.address = append(s.conns, conn), address
	return true
}

// dropConn takes back noteConn for a connection that was refused. A Hello that
// came on an older one meanwhile was taken for the refused one's, so this is an
// end like any other.
func (g *Gateway) dropConn(id events.DeviceID, conn uint64) {
	sh := g.shard(id)
	sh.do(func() { sh.endConn(id, conn, "connection was refused") })
}

// remove forgets a connection, and the session with its last one. The shard's
// mutex is held.
func (sh *shard) remove(id events.DeviceID, conn uint64) *session {
	s := sh.sessions[id]
	if s == nil {
		return nil
	}
	s.conns = slices.DeleteFunc(s.conns, func(c uint64) bool { return c == conn })
	if len(s.conns) == 0 {
		s.gone = true
		delete(sh.sessions, id)
	}
	return s
}

// endConn handles the end of a connection. It runs in the worker, as greet
// does, so that Presence hears of both in order.
func (sh *shard) endConn(id events.DeviceID, conn uint64, reason string) {
	sh.g.broker.meter.end(conn)
	sh.mu.Lock()
	s := sh.remove(id, conn)
	ended := s != nil && s.greeted && s.live.Conn == conn
	older := false
	if ended {
		s.greeted = false
		if s.reason != "" {
			reason, s.reason = s.reason, ""
		}
		older = len(s.conns) > 0 && s.conns[len(s.conns)-1] < conn
	}
	sh.mu.Unlock()
	if !ended {
		return
	}
	sh.tellDisconnected(s, reason)
	if older {
		// The newest connection came to nothing and did not take over the
		// device's older one. That one greeted already and may have nothing to
		// say for days.
		sh.g.send(id, wire.Down{Greet: true})
	}
}

// begin notes that the device greeted: on its newest connection, since a
// packet does not say which it came on. It returns what tells Presence, once
// the device is welcomed; nil when the device has no connection any more.
func (sh *shard) begin(s *session, agent string, protocol int, pending bool, now time.Time) (connected func()) {
	sh.mu.Lock()
	if s.gone {
		sh.mu.Unlock()
		return nil
	}
	live := commands.Session{
		Conn: s.conns[len(s.conns)-1], Address: s.address, AgentVersion: agent, Protocol: protocol, At: now,
	}
	same := s.live.Conn == live.Conn
	if !same {
		s.reason = ""
	}
	s.greeted, s.pending = true, pending
	sh.mu.Unlock()
	if !same {
		sh.tellDisconnected(s, "taken over by another connection of the device")
	}
	s.live = live
	return func() {
		if s.told {
			return
		}
		s.told = true
		sh.g.log.Debug("session began", "device", s.id, "conn", live.Conn, "address", live.Address, "agent", agent)
		if p := sh.g.presence; p != nil {
			p.Connected(s.id, live)
		}
	}
}

// tellDisconnected tells Presence that s.live has ended, if it heard of it.
func (sh *shard) tellDisconnected(s *session, reason string) {
	if !s.told {
		return
	}
	s.told = false
	sh.g.log.Debug("session ended", "device", s.id, "conn", s.live.Conn, "reason", reason)
	if p := sh.g.presence; p != nil {
		p.Disconnected(s.id, s.live, reason)
	}
}

// connections returns how many there are.
func (sh *shard) connections() (n int) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for _, s := range sh.sessions {
		n += len(s.conns)
	}
	return n
}

// endDead ends connections that the broker does not have any more.
func (sh *shard) endDead() {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for id, s := range sh.sessions {
		for _, c := range s.conns {
			if !sh.g.broker.alive(c) {
				sh.jobs = append(sh.jobs, func() { sh.endConn(id, c, "connection is gone") })
			}
		}
	}
	sh.rouse()
}

// lookAtPending looks at pending devices again.
func (sh *shard) lookAtPending(ctx context.Context) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for id, s := range sh.sessions {
		if !s.greeted || !s.pending {
			continue
		}
		sh.jobs = append(sh.jobs, func() {
			if err := sh.refresh(ctx, id); err != nil && ctx.Err() == nil {
				sh.g.log.Warn("look at a pending device", "device", id, "err", err)
			}
		})
	}
	sh.rouse()
}

// blame logs what is wrong with something that the device sent. A device may
// send hundreds of such things a packet: one line a second tells of them, the
// counters and the debugging log of all.
func (sh *shard) blame(s *session, msg string, args ...any) {
	level := slog.LevelDebug
	if now := sh.g.now(); now.Sub(s.blamedAt) >= askAgain {
		s.blamedAt, level = now, slog.LevelInfo
	}
	sh.g.log.Log(context.Background(), level, msg, append([]any{"device", s.id}, args...)...) //nolint:sloglint // the callers' messages are constant
}

// state returns the session's flags.
func (sh *shard) state(s *session) (greeted, pending bool, address string) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return s.greeted && !s.gone, s.pending, s.address
}

// session returns the device's session if it greeted.
func (sh *shard) session(id events.DeviceID) (s *session, pending bool) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if s = sh.sessions[id]; s == nil || !s.greeted {
		return nil, false
	}
	return s, s.pending
}

// giveReceipts sends the receipts that are due.
func (sh *shard) giveReceipts(now time.Time) {
	for len(sh.receipts) > 0 {
		s := sh.receipts[0]
		if s.mark != 0 && now.Sub(s.markAt) < sh.g.cfg.ReceiptDelay {
			return
		}
		sh.receipts = sh.receipts[1:]
		s.waiting = false
		greeted, _, _ := sh.state(s)
		if s.mark == 0 || !greeted {
			continue
		}
		sh.receipt(s, s.mark)
		s.mark = 0
		if s.next-1 > s.receipted {
			sh.await(s, s.lastAt)
		}
	}
}

// covered notes that everything before s.next is in the log since now.
func (sh *shard) covered(s *session, now time.Time) {
	s.lastAt = now
	if sh.g.cfg.ReceiptDelay == 0 {
		sh.receipt(s, s.next-1)
		return
	}
	sh.await(s, now)
}

func (sh *shard) await(s *session, at time.Time) {
	if s.mark == 0 {
		s.mark, s.markAt = s.next-1, at
	}
	if !s.waiting {
		s.waiting = true
		sh.receipts = append(sh.receipts, s)
	}
}

// receipt lets the device forget everything up to seq.
func (sh *shard) receipt(s *session, seq uint64) {
	if seq == 0 || sh.g.broker.Err() != nil {
		return // what a failed store was given may not be on the disk
	}
	s.receipted = seq
	sh.g.receipts.Inc()
	sh.g.send(s.id, wire.Down{Receipt: &wire.Receipt{Epoch: s.epoch, Seq: seq}})
}
