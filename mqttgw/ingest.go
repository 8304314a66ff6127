package mqttgw

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"pallas/commands"
	"pallas/events"
	"pallas/mqttgw/wire"
)

const (
	// packetUnit is how many bytes of a packet count as one more packet.
	packetUnit = 4 << 10
	// largePacket is a packet whose facts may be more than one decision can
	// hold; decisionSize is where they are parted.
	largePacket  = 32 << 10
	decisionSize = MaxPayload / 2
	// maxErrors is how many errors one packet is answered with.
	maxErrors = 16
	// askAgain is how long a question to a device is not repeated.
	askAgain = time.Second
	// resyncAgain is the same for the expensive one.
	resyncAgain = time.Minute
	// maxAgent bounds the agent's version in the log, in bytes.
	maxAgent = 128
)

// intake puts a packet in its session's line. It never waits: one device's
// flood must not hold up the others.
func (g *Gateway) intake(subject string, data []byte) {
	id := events.DeviceID(wire.DeviceOfSubject(subject))
	sh := g.shard(id)
	sh.mu.Lock()
	s := sh.sessions[id]
	if s == nil {
		sh.mu.Unlock()
		g.broker.refuse("no_session")
		return
	}
	var reason string
	kick := false
	now := g.now()
	switch {
	case !s.limiter.AllowN(now, 1+len(data)/packetUnit):
		reason = "flood"
		kick = s.excess(now)
	case len(s.in) >= g.maxQueue, g.queuedBytes.Load() > maxQueuedBytes:
		reason = "overload"
	default:
		if s.in = append(s.in, data); len(s.in) == 1 {
			sh.ready = append(sh.ready, s)
		}
		g.queuedBytes.Add(int64(len(data)))
	}
	sh.mu.Unlock()
	if reason == "" {
		sh.rouse()
		return
	}
	g.broker.refuse(reason)
	if kick {
		g.punish(id, whyFlood)
	}
}

// packets handles what came from one device, size bytes in all, in the worker.
// Reports that go on where those of the packet before ended are taken together.
func (sh *shard) packets(ctx context.Context, s *session, in [][]byte, size int) {
	var reports []wire.Report
	var epoch uint64
	ok := true
	flush := func() {
		if len(reports) > 0 && ok {
			ok = sh.reports(ctx, s, epoch, reports, size > largePacket || slices.ContainsFunc(in, wire.Deflated))
		}
		reports = nil
	}
	for _, data := range in {
		up, err := wire.DecodeUp(data)
		if err != nil {
			sh.unreadable(s, err)
			continue
		}
		if up.Hello != nil && sh.mayGreet(s) {
			flush()
			s.held = up.Anchors
			err := sh.hello(ctx, s, up.Version, *up.Hello)
			s.held = nil
			if ok = err == nil; !ok {
				sh.g.fail(ctx, s.id, "answer hello", err)
			}
		}
		if len(up.Anchors) > 0 && up.Hello == nil {
			if err := sh.heldAnchors(ctx, s, up.Anchors, nil); err != nil {
				sh.g.fail(ctx, s.id, "note anchors", err)
			}
		}
		if up.Renewal != nil {
			sh.renew(ctx, s, *up.Renewal)
		}
		if n := len(reports); n > 0 && len(up.Reports) > 0 &&
			(up.Epoch != epoch || up.Reports[0].Seq != reports[n-1].Seq+1 || n+len(up.Reports) > wire.MaxReports) {
			flush()
		}
		if len(up.Reports) > 0 {
			epoch, reports = up.Epoch, append(reports, up.Reports...)
		}
		if up.Bye != nil {
			flush()
			sh.g.broker.meter.count(s.live.Conn)
			sh.mu.Lock()
			s.reason = "device said goodbye: " + clip(up.Bye.Reason)
			sh.mu.Unlock()
		}
	}
	flush()
}

// unreadable answers a packet that is refused as a whole.
func (sh *shard) unreadable(s *session, err error) {
	code := wire.ErrorMalformed
	switch {
	case errors.Is(err, wire.ErrTooLarge):
		code = wire.ErrorTooLarge
	case errors.Is(err, wire.ErrVersion):
		code = wire.ErrorVersion
	}
	sh.g.broker.refuse(code)
	sh.blame(s, "packet refused", "reason", code, "err", err)
	sh.g.send(s.id, wire.Down{Error: &wire.Error{Code: code, Message: err.Error()}})
}

// hello opens or reopens the device's session.
func (sh *shard) hello(ctx context.Context, s *session, version int, h wire.Hello) error {
	now := sh.g.now()
	device, err := sh.g.commands.Device(ctx, s.id)
	if err != nil {
		return err
	}
	if notAdmitted(device.Trust) != "" {
		return sh.g.turnOut(ctx, device)
	}
	if s.instance(h.Instance) {
		sh.suspectTwins(s)
		return nil // whoever follows the log closes it
	}
	agent := h.Agent
	if len(agent) > maxAgent {
		agent = agent[:maxAgent]
	}
	// The session begins before its tasks are looked up: a task that is
	// requested meanwhile is pushed by whoever follows the log.
	connected := sh.begin(s, strings.ToValidUTF8(agent, ""), version, device.Trust == commands.TrustPending, now)
	if connected == nil {
		return nil
	}
	if h.Epoch != s.epoch {
		s.epoch, s.next, s.mark, s.receipted = h.Epoch, 0, 0, 0
	}
	inv, err := sh.g.commands.Inventory(ctx, s.id)
	if err != nil {
		return err
	}
	tasks, err := sh.g.commands.Tasks(ctx, s.id)
	if err != nil {
		return err
	}
	// Whatever is before a logged report was received, and need not be in the
	// log itself: what is no news is not written.
	s.next = max(s.next, h.First)
	if inv.Epoch == h.Epoch {
		s.next = max(s.next, inv.Seq+1)
	}
	if tasks.Epoch == h.Epoch {
		s.next = max(s.next, tasks.Seq+1)
	}
	s.boundary, s.hash = h.Next, h.Inventory
	s.openCut = len(h.Open) >= wire.MaxItems
	s.open = make(map[events.TaskID]bool, len(h.Open))
	for _, id := range h.Open {
		s.open[events.TaskID(id.String())] = true
	}
	s.resentFor, s.resyncAt = 0, time.Time{}
	sh.welcome(s, now)
	sh.g.broker.meter.count(s.live.Conn) // the handshake, should the connection end at once
	connected()
	sh.offerRenewal(s, device)
	if err := sh.heldAnchors(ctx, s, s.held, &device); err != nil {
		return err
	}
	if s.next > h.First {
		sh.covered(s, now)
	}
	if device.Trust == commands.TrustPending {
		return nil
	}
	sh.sendQueue(s, tasks, now)
	return sh.atBoundary(ctx, s)
}

// welcome answers a Hello, or tells of a changed approval.
func (sh *shard) welcome(s *session, now time.Time) {
	_, pending, _ := sh.state(s)
	sh.g.send(s.id, wire.Down{Welcome: &wire.Welcome{
		Time: now.UTC(), Next: s.next, Settings: sh.g.cfg.Settings, Pending: pending,
	}})
}

// sendQueue sends a device what it has to know of its task queue: open tasks
// that it has not accepted, and those that are not to begin.
func (sh *shard) sendQueue(s *session, tasks commands.Tasks, now time.Time) {
	var push []commands.Task
	var cancel []events.TaskID
	for _, t := range tasks.Open() {
		switch {
		case t.CancelRequested:
			cancel = append(cancel, t.ID) // the device answers, whether it knows the task or not
		case t.Status == events.TaskStatusRequested && t.Deadline.After(now):
			push = append(push, t)
		}
	}
	// A task in the device's journal that has ended here was cancelled or
	// expired while the device was away.
	for id := range s.open {
		if t, ok := tasks.Tasks[id]; ok && t.Status.Ended() {
			cancel = append(cancel, id)
		}
	}
	if err := errors.Join(sh.g.sendCancels(s.id, cancel), sh.g.sendTasks(s.id, push)); err != nil {
		sh.g.log.Warn("send to a device", "device", s.id, "err", err)
	}
}

// atBoundary compares both sides once every report before Hello.Next is
// applied, and none after it.
func (sh *shard) atBoundary(ctx context.Context, s *session) error {
	if s.boundary == 0 || s.next < s.boundary {
		return nil
	}
	exact := s.next == s.boundary
	hash, open, openCut := s.hash, s.open, s.openCut
	s.boundary, s.hash, s.open = 0, nil, nil
	if !exact {
		return nil // the device lost a part of its outbox and will say so
	}
	if len(hash) > 0 {
		inv, err := sh.g.commands.Inventory(ctx, s.id)
		if err != nil {
			return err
		}
		if !bytes.Equal(hashInventory(inv), hash) {
			sh.resync(s, "hash at hello")
		}
	}
	if openCut {
		return nil
	}
	// An accepted task that the device does not have any more, and reported no
	// outcome of, will never be heard of again.
	tasks, err := sh.g.commands.Tasks(ctx, s.id)
	if err != nil {
		return err
	}
	for _, t := range tasks.Open() {
		if t.Status != events.TaskStatusAccepted || open[t.ID] {
			continue
		}
		sh.g.log.Warn("task lost by its device", "device", s.id, "task", t.ID)
		if _, err := sh.g.commands.Do(ctx, commands.EndTask{
			Device: s.id, Task: t.ID, Reason: "the device accepted the task and does not know it any more",
		}, commands.Meta{Actor: events.SystemActor("gateway"), Cause: string(t.ID)}); err != nil {
			return err
		}
	}
	return nil
}

// resync asks for a complete inventory.
func (sh *shard) resync(s *session, why string) {
	now := sh.g.now()
	if now.Sub(s.resyncAt) < resyncAgain {
		return
	}
	s.resyncAt = now
	sh.g.log.Info("inventory differs", "device", s.id, "why", why)
	sh.g.send(s.id, wire.Down{Resync: true})
}

// refresh looks at the device again and tells it.
func (sh *shard) refresh(ctx context.Context, id events.DeviceID) error {
	s, was := sh.session(id)
	if s == nil {
		return nil
	}
	device, err := sh.g.commands.Device(ctx, id)
	if err != nil {
		return err
	}
	if notAdmitted(device.Trust) != "" {
		return sh.g.turnOut(ctx, device)
	}
	sh.offerRenewal(s, device)
	pending := device.Trust == commands.TrustPending
	sh.mu.Lock()
	s.pending = pending
	sh.mu.Unlock()
	if pending && was {
		return nil
	}
	now := sh.g.now()
	sh.welcome(s, now)
	tasks, err := sh.g.commands.Tasks(ctx, id)
	if err != nil {
		return err
	}
	sh.sendQueue(s, tasks, now)
	return sh.atBoundary(ctx, s)
}

// reports takes consecutive reports. It is false when they could not be taken,
// so that those after them need not be tried.
func (sh *shard) reports(ctx context.Context, s *session, epoch uint64, reports []wire.Report, large bool) bool {
	now := sh.g.now()
	greeted, pending, address := sh.state(s)
	switch {
	case !greeted || epoch != s.epoch:
		sh.g.broker.refuse("no_hello")
		if now.Sub(s.greetAt) >= askAgain {
			s.greetAt = now
			sh.g.send(s.id, wire.Down{Greet: true})
		}
		return false
	case pending:
		sh.g.broker.refuse("pending")
		return false
	}
	fresh := reports
	for len(fresh) > 0 && fresh[0].Seq < s.next {
		fresh = fresh[1:]
	}
	if len(fresh) > 0 && fresh[0].Seq > s.next {
		sh.g.broker.refuse("gap")
		if s.resentFor != s.next || now.Sub(s.resentAt) >= askAgain {
			s.resentFor, s.resentAt = s.next, now
			sh.g.send(s.id, wire.Down{Resend: &wire.Resend{Epoch: s.epoch, Seq: s.next}})
		}
		return true // what is missing may come next
	}
	// A repeat of what was receipted means that the receipt was lost.
	if len(fresh) < len(reports) && reports[0].Seq <= s.receipted {
		sh.receipt(s, s.receipted)
	}
	before := s.next
	in := intaking{sh: sh, s: s, meta: commands.Meta{Actor: events.DeviceActor(s.id), Source: address}, large: large}
	err := in.take(ctx, fresh)
	if s.next > before {
		sh.g.reports.Add(float64(s.next - before))
		sh.covered(s, sh.g.now())
	} else if len(fresh) < len(reports) && s.next-1 > s.receipted {
		sh.covered(s, now)
	}
	if err != nil {
		sh.g.fail(ctx, s.id, "take reports", err)
	}
	return err == nil
}

// intaking is the way of one packet's reports into the log.
type intaking struct {
	sh     *shard
	s      *session
	meta   commands.Meta
	large  bool
	errors int // that the packet was answered with
}

// take applies the reports in their order: each run of reports of one aggregate
// is one command. s.next moves past what was received.
func (in *intaking) take(ctx context.Context, reports []wire.Report) error {
	for len(reports) > 0 {
		n := in.run(reports)
		run := reports[:n]
		reports = reports[n:]
		var cmd commands.Command
		switch {
		case !run[0].Known():
			for _, r := range run {
				in.refuse(wire.ErrorUnknown, "this manager does not know the report's kind", r.Seq)
			}
		case run[0].Task != nil:
			facts := make([]commands.TaskFact, n)
			for i, r := range run {
				facts[i] = taskFact(r)
			}
			cmd = commands.ReportTasks{Device: in.s.id, Epoch: in.s.epoch, Facts: facts}
		default:
			facts := make([]commands.InventoryFact, n)
			for i, r := range run {
				facts[i] = inventoryFact(r)
			}
			cmd = commands.ReportInventory{Device: in.s.id, Epoch: in.s.epoch, Facts: facts}
		}
		if cmd != nil {
			res, err := in.sh.g.commands.Do(ctx, cmd, in.meta)
			if err != nil {
				return err
			}
			for _, f := range res.Invalid {
				in.refuse(wire.ErrorInvalid, f.Message, f.Seq)
			}
			if res.Resync {
				in.sh.resync(in.s, "a change did not fit")
			}
		}
		in.s.next = run[n-1].Seq + 1
		if err := in.synced(ctx, run[n-1]); err != nil {
			return err
		}
		if err := in.sh.atBoundary(ctx, in.s); err != nil {
			return err
		}
	}
	return nil
}

// run returns how many of the reports go into one command: those of one
// aggregate, not across the boundary, not past the end of a complete
// inventory, and not more than one decision can hold.
func (in *intaking) run(reports []wire.Report) int {
	kind := func(r wire.Report) int {
		switch {
		case !r.Known():
			return 0
		case r.Task != nil:
			return 1
		default:
			return 2
		}
	}
	size := 0
	for i, r := range reports {
		if i > 0 && (kind(r) != kind(reports[0]) || r.Seq == in.s.boundary || reports[i-1].Inventory != nil) {
			return i
		}
		if in.large {
			if b, err := json.Marshal(inventoryFact(r).Event); err == nil {
				size += len(b)
			}
			if i > 0 && size > decisionSize {
				return i
			}
		}
	}
	return len(reports)
}

// synced checks the copy after a complete inventory.
func (in *intaking) synced(ctx context.Context, r wire.Report) error {
	if r.Inventory == nil {
		return nil
	}
	inv, err := in.sh.g.commands.Inventory(ctx, in.s.id)
	if err != nil {
		return err
	}
	if bytes.Equal(hashInventory(inv), r.Inventory.Hash) {
		return nil
	}
	// Asking again at once would give the same: leave it to the next Hello.
	in.s.resyncAt = in.sh.g.now()
	in.refuse(wire.ErrorInvalid, "inventory.hash: is not the hash of what was reported", r.Seq)
	return nil
}

// refuse answers one report with an error. The report counts as received.
func (in *intaking) refuse(code, message string, seq uint64) {
	in.sh.g.broker.refuse(code)
	in.sh.blame(in.s, "report refused", "seq", seq, "reason", code, "detail", message)
	if in.errors++; in.errors <= maxErrors {
		in.sh.g.send(in.s.id, wire.Down{Error: &wire.Error{Code: code, Message: message, Seq: seq}})
	}
}

// fail handles an error that stopped a packet: what was not received, the
// device sends again.
func (g *Gateway) fail(ctx context.Context, id events.DeviceID, doing string, err error) {
	if ctx.Err() != nil {
		return
	}
	var ce *commands.Error
	isError := errors.As(err, &ce)
	switch {
	case errors.Is(err, events.ErrNoSpace), errors.Is(err, events.ErrUnavailable):
		g.broker.refuse(wire.ErrorNoSpace)
		g.log.Warn("packet not taken", "device", id, "doing", doing, "err", err)
		g.send(id, wire.Down{Error: &wire.Error{Code: wire.ErrorNoSpace, Message: "the manager cannot write at the moment: keep what you have and send it again"}})
	case isError && ce.Code == commands.CodeRetired:
		g.broker.refuse(reasonRetired)
		if err := g.Retire(ctx, id); err != nil {
			g.log.Warn("close a device", "device", id, "err", err)
		}
	case isError && (ce.Kind == commands.KindNotFound || ce.Code == commands.CodeRejected || ce.Code == commands.CodeQuarantined):
		g.broker.refuse(cmp.Or(ce.Code, reasonUnknown))
		if err := g.Kick(ctx, id, "device is not managed any more"); err != nil {
			g.log.Warn("close a device", "device", id, "err", err)
		}
	case isError && ce.Code == commands.CodePending:
		g.broker.refuse("pending")
	default:
		g.broker.refuse("failed")
		g.log.Error("packet not taken", "device", id, "doing", doing, "err", err)
	}
}
