package link

import (
	"context"
	"fmt"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"pallas/mqttgw/wire"
)

// Bounds of what a manager may set, and the defaults of what it leaves out.
const (
	defaultWindow = 64
	defaultResend = 10 * time.Second
	maxResend     = time.Minute
	helloWait     = 4 * time.Second // before a Hello is repeated; doubles
	minKeepAlive  = time.Second
	maxKeepAlive  = 18 * time.Hour
	// Reports go out in bursts, the next one when TCP has confirmed all but
	// maxFlight bytes: the kernel would take in more than a slow link carries
	// in an hour, and all of it again with each reconnect. A burst grows until
	// the link takes badBurst for it.
	firstBurst = 32
	minBurst   = 4
	badBurst   = 4 * time.Second
	maxFlight  = 1 << 10
	// look is how often TCP is asked whether it has confirmed; doubles.
	minLook, maxLook = 5 * time.Millisecond, 200 * time.Millisecond
)

// session is one connection from CONNECT to its end. All of it runs in one
// goroutine, but for the reading of the socket.
type session struct {
	l *Link
	c *conn

	epoch      uint64
	helloFirst uint64 // First of the newest Hello
	welcomed   bool   // may send reports
	pending    bool   // was told to wait
	sent       uint64 // sequence to send next
	logged     uint64 // the manager has all before it, receipted or not
	window     uint64
	burst      int           // reports in the next packet at most
	burstAt    time.Time     // when the last whole burst was sent; zero: it is through
	lookAt     time.Time     // when to ask TCP whether it is; zero: nothing waits
	look       time.Duration // until lookAt
	clocked    uint64        // the receipt that covers this report is timed; 0: none
	clockedAt  time.Time     // when the report was sent
	resend     time.Duration // of the settings
	interval   time.Duration // until the next repeat; doubles

	lingerAt, resendAt, answerBy, helloAt time.Time // zero: none
	helloWait                             time.Duration
	pongBy                                time.Time
	lastHeard                             time.Time
	keepAlive                             time.Duration // of CONNECT, and most silence
	quiet                                 *quiet
	silent                                bool // the ping on its way followed a silence of quiet's interval

	lookAtOwn time.Time    // when the own port is looked at, from the shared one
	looked    <-chan error // what came of it

	// changeAt is when to connect again with a new certificate, changeCheck when
	// to look whether it is a calm moment.
	changeAt, changeCheck time.Time
}

// session connects and serves until the connection ends. It returns nil only
// when ctx is done.
func (l *Link) session(ctx context.Context) error {
	s := &session{l: l, keepAlive: l.keepAlive, window: defaultWindow, resend: defaultResend, burst: firstBurst}
	c, err := l.open(ctx, s.keepAlive, s.newHello)
	if err != nil {
		return err
	}
	s.c = c
	if c.tcp == nil {
		s.burst = wire.MaxReports // nothing tells how fast the path is
	}
	c.tcp.setUserTimeout(l.path.userTimeout())
	s.lastHeard, s.quiet = time.Now(), l.path.from(c)
	s.expectWelcome()
	incoming, failed := make(chan packets.ControlPacket), make(chan error, 1)
	done := make(chan struct{})
	go func() {
		defer close(incoming)
		for {
			p, err := readPacket(c)
			if err != nil {
				failed <- err
				return
			}
			select {
			case incoming <- p:
			case <-done:
				return
			}
		}
	}()
	defer func() {
		close(done)
		c.shut()
		for range incoming { // until the reader is gone
		}
	}()
	looks, stopLooking := context.WithCancel(ctx)
	defer func() {
		stopLooking()
		if s.looked != nil {
			<-s.looked //nolint:errcheck // nobody wants to know any more
		}
	}()
	err = s.serve(ctx, looks, incoming, failed)
	if timedOut(err) {
		if s.silent {
			s.quiet.lost(s.keepAlive)
			l.c.Log.Debug("path forgot a silent connection", "silence", s.quiet.interval(s.keepAlive))
		} else {
			l.path.timedOut()
		}
	}
	return err
}

func (s *session) serve(ctx, looks context.Context, incoming <-chan packets.ControlPacket, failed <-chan error) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	shared := s.c.addr != s.l.ways[0].addr
	for {
		now := time.Now()
		if err := s.due(now); err != nil {
			return err
		}
		if shared && s.looked == nil {
			s.lookAtOwn = s.l.avoid
			if !now.Before(s.lookAtOwn) {
				s.lookAtOwn, s.looked = time.Time{}, s.l.lookAtOwn(looks)
			}
		}
		timer.Reset(s.next().Sub(now))
		select {
		case <-ctx.Done():
			if err := s.c.bye("stopping"); err != nil {
				s.l.c.Log.Debug("goodbye not sent", "error", err)
			}
			return nil
		case <-timer.C:
		case err := <-s.looked:
			if s.looked = nil; err == nil {
				s.l.avoid = time.Time{}
				return errOwnPort
			}
			s.l.avoidOwn()
		case <-s.l.c.Store.Changed():
			if s.lingerAt.IsZero() {
				s.lingerAt = time.Now().Add(s.l.c.Linger)
			}
		case p, ok := <-incoming:
			if !ok {
				return fmt.Errorf("read: %w", <-failed)
			}
			if s.lastHeard = time.Now(); s.silent {
				s.quiet.held(s.keepAlive)
			}
			s.pongBy, s.silent = time.Time{}, false
			if err := s.packet(p); err != nil {
				return err
			}
		}
	}
}

// due does what the time has come for.
func (s *session) due(now time.Time) error {
	passed := func(t time.Time) bool { return !t.IsZero() && !now.Before(t) }
	switch {
	case passed(s.answerBy):
		if !s.postponed(&s.answerBy, now) {
			return fmt.Errorf("the manager does not welcome this device: %w", context.DeadlineExceeded)
		}
	case passed(s.pongBy):
		if !s.postponed(&s.pongBy, now) {
			return fmt.Errorf("the manager does not answer: %w", context.DeadlineExceeded)
		}
	case passed(s.helloAt):
		if s.postponed(&s.helloAt, now) {
			break
		}
		// A manager that is busy drops it without a word.
		if err := s.sayHello(); err != nil {
			return err
		}
		s.helloWait *= 2
		s.helloAt = now.Add(s.helloWait)
	}
	switch {
	case !passed(s.resendAt):
	case s.c.tcp.unacknowledged() > 0:
		s.resendAt = now.Add(s.interval) // the receipt is for what arrives only now
	default:
		// What the manager has too goes again: it answers with the receipt
		// that got lost.
		_, s.sent, _ = s.l.c.Store.Numbers()
		s.interval = min(2*s.interval, maxResend)
		s.resendAt = now.Add(s.interval)
		s.clocked = 0
		s.l.c.Log.Debug("no receipt; sending again", "from", s.sent, "wait", s.interval)
		s.lingerAt = now
	}
	if s.pongBy.IsZero() && !now.Before(s.pingAt()) {
		if err := s.c.write(packets.NewControlPacket(packets.Pingreq), writeTimeout); err != nil {
			return fmt.Errorf("ping: %w", err)
		}
		s.pongBy = now.Add(s.l.path.scale(s.l.c.Patience, 4))
		s.silent = !now.Before(s.lastHeard.Add(s.quiet.interval(s.keepAlive)))
	}
	if err := s.tendCertificate(now); err != nil {
		return err
	}
	return s.send(now)
}

// postponed moves a time at which something would be missing while our own
// bytes are on their way: the answer to them cannot be here. If they do not
// arrive, TCP ends the connection.
func (s *session) postponed(t *time.Time, now time.Time) bool {
	if s.c.tcp.unacknowledged() == 0 {
		return false
	}
	*t = now.Add(time.Second)
	return true
}

// pingAt is when the path has heard nothing in one direction for as long as it
// may.
func (s *session) pingAt() time.Time {
	t := s.c.lastSent
	if s.lastHeard.Before(t) {
		t = s.lastHeard
	}
	return t.Add(s.quiet.interval(s.keepAlive))
}

// next is when due has something to do at the latest.
func (s *session) next() time.Time {
	t := s.pongBy
	if t.IsZero() {
		t = s.pingAt()
	}
	linger := s.lingerAt
	if !s.lookAt.IsZero() {
		linger = s.lookAt
	}
	for _, other := range []time.Time{linger, s.resendAt, s.answerBy, s.helloAt, s.lookAtOwn, s.certificateAt(time.Now())} {
		if !other.IsZero() && other.Before(t) {
			t = other
		}
	}
	return t
}

// send sends what the window permits. Less than a full packet waits for the
// linger time.
func (s *session) send(now time.Time) error {
	if !s.welcomed {
		s.lingerAt, s.lookAt = time.Time{}, time.Time{}
		return nil
	}
	_, first, next := s.l.c.Store.Numbers()
	s.sent = max(s.sent, first)
	if s.through(now); !s.lookAt.IsZero() && now.Before(s.lookAt) {
		return nil
	}
	for {
		limit := min(next, max(first, s.logged)+s.window)
		if s.sent >= limit {
			s.lingerAt = time.Time{}
			return nil
		}
		count := int(min(limit-s.sent, uint64(s.burst)))
		if count < s.burst && !s.lingerAt.IsZero() && now.Before(s.lingerAt) {
			return nil
		}
		if s.c.tcp.unacknowledged() > maxFlight {
			s.look = min(max(2*s.look, minLook), maxLook)
			s.lookAt = now.Add(s.look)
			return nil
		}
		s.look, s.lookAt = 0, time.Time{}
		reports, err := s.l.c.Store.Reports(s.sent, count)
		if err != nil {
			return stored(err)
		}
		if len(reports) == 0 || reports[0].Seq != s.sent {
			return stored(fmt.Errorf("report %d is not in the outbox", s.sent))
		}
		if err := s.c.publish(wire.Up{Epoch: s.epoch, Reports: reports}); err != nil {
			return fmt.Errorf("send reports: %w", err)
		}
		from := s.sent
		s.sent += uint64(len(reports))
		if once := s.l.once; from < once {
			s.l.resent.Add(min(s.sent, once) - from)
		}
		if s.sent > s.l.once && s.clocked == 0 {
			s.clocked, s.clockedAt = s.sent-1, now
		}
		s.l.once = max(s.l.once, s.sent)
		if count == s.burst {
			s.burstAt = now
		}
		if s.resendAt.IsZero() {
			s.interval = s.overdue()
			s.resendAt = now.Add(s.interval)
		}
	}
}

// through adapts the size of bursts to how long TCP took to have a whole one
// confirmed.
func (s *session) through(now time.Time) {
	switch {
	case s.burstAt.IsZero():
	case s.c.tcp.unacknowledged() == 0:
		s.burst, s.burstAt = min(2*s.burst, wire.MaxReports), time.Time{}
	case now.Sub(s.burstAt) > badBurst:
		s.burst, s.burstAt = max(s.burst/2, minBurst), time.Time{}
	}
}

// overdue is how long a receipt may take, by the settings or, if that is
// longer, by experience.
func (s *session) overdue() time.Duration {
	return min(max(s.resend, s.l.path.receipts.timeout()), maxResend)
}

// hello opens the session again.
func (s *session) hello() error {
	s.expectWelcome()
	return s.sayHello()
}

// expectWelcome sets when a Hello is repeated, and when to give up.
func (s *session) expectWelcome() {
	now := time.Now()
	s.answerBy = now.Add(s.l.path.scale(s.l.c.Patience, 4))
	s.helloWait = s.l.path.scale(helloWait, 2)
	s.helloAt = now.Add(s.helloWait)
}

func (s *session) sayHello() error {
	hello, err := s.newHello()
	if err != nil {
		return err
	}
	s.c.deflate = false // it may be another manager by now
	if err := s.c.publish(hello); err != nil {
		return fmt.Errorf("say hello: %w", err)
	}
	return nil
}

func (s *session) newHello() (wire.Up, error) {
	sum, err := s.l.c.Store.Summary()
	if err != nil {
		return wire.Up{}, stored(err)
	}
	s.epoch, s.helloFirst, s.sent, s.logged = sum.Epoch, sum.First, sum.First, sum.First
	s.welcomed, s.resendAt, s.lingerAt, s.clocked = false, time.Time{}, time.Time{}, 0
	s.l.welcomed.Store(false)
	up := wire.Up{Hello: &wire.Hello{
		Agent: s.l.c.Version, Epoch: sum.Epoch, First: sum.First, Next: sum.Next,
		Inventory: sum.Inventory, Time: time.Now().UTC(), Open: sum.Open, Instance: s.l.instance,
	}}
	if k := s.l.c.Keeper; k != nil {
		up.Anchors = k.Anchors()
	}
	return up, nil
}

// packet takes what came from the broker.
func (s *session) packet(p packets.ControlPacket) error {
	switch p := p.(type) {
	case *packets.PublishPacket:
		if p.TopicName != wire.DownTopic(s.l.c.Device) {
			return nil
		}
		d, err := wire.DecodeDown(p.Payload)
		if err != nil {
			s.l.c.Log.Log(context.Background(), s.l.level(err), "message from the manager not understood", "error", err)
			return nil
		}
		return s.down(d)
	case *packets.PingrespPacket:
		return nil
	default:
		return errUnexpected
	}
}

// down takes a message from the manager, its parts in the order in which they
// matter to each other.
func (s *session) down(d wire.Down) error {
	if d.Retired {
		return ErrRetired
	}
	if d.Error != nil {
		if err := s.refused(*d.Error); err != nil {
			return err
		}
	}
	if d.Greet {
		if err := s.hello(); err != nil {
			return err
		}
	}
	if d.Receipt != nil {
		s.receipt(*d.Receipt)
	}
	if d.Welcome != nil {
		if err := s.welcome(*d.Welcome); err != nil {
			return err
		}
	}
	if d.Certificate != nil {
		if err := s.certificate(*d.Certificate); err != nil {
			return err
		}
	}
	if d.Renew && s.l.c.Keeper != nil {
		s.l.c.Keeper.Ask()
	}
	if d.Resend != nil {
		if err := s.rewind(*d.Resend); err != nil {
			return err
		}
	}
	if d.Resync {
		s.l.c.Resync(s.sent)
	}
	if len(d.Cancels) > 0 {
		if err := s.l.c.Cancel(d.Cancels); err != nil {
			s.l.c.Log.Log(context.Background(), s.l.level(err), "cancel not taken", "error", err)
		}
	}
	if !d.Time.IsZero() {
		if err := s.clock(d.Time); err != nil {
			return err
		}
	}
	if len(d.Tasks) > 0 {
		if err := s.l.c.Tasks(d.Tasks); err != nil {
			s.l.c.Log.Log(context.Background(), s.l.level(err), "task not taken", "error", err)
		}
	}
	return nil
}

// clock takes over the manager's time.
func (s *session) clock(t time.Time) error {
	if end := s.c.expires(s.l.ways[0].tls.Certificates); t.After(end) {
		// At that time the manager would not be talking to this device. Once
		// believed, it could not be corrected any more: every certificate
		// would have expired.
		s.l.c.Log.Error("the manager's clock is wrong; its time is ignored", "manager_time", t, "certificates_until", end)
		return nil
	}
	if err := s.l.c.Store.SetClock(t); err != nil {
		return stored(err)
	}
	s.l.c.Clock(t)
	return nil
}

func (s *session) welcome(w wire.Welcome) error {
	if !w.Time.IsZero() {
		if err := s.clock(w.Time); err != nil {
			return err
		}
	}
	s.l.c.Welcome(w)
	s.settings(w.Settings)
	s.answerBy, s.helloAt = time.Time{}, time.Time{}
	if w.Pending {
		if !s.pending {
			s.l.c.Log.Info("connected to the manager; this device waits for approval", "addr", s.c.addr)
		}
		s.pending, s.welcomed, s.resendAt = true, false, time.Time{}
		s.connected()
		return nil
	}
	s.pending = false
	_, first, next := s.l.c.Store.Numbers()
	expects := max(w.Next, 1)
	if expects < s.helloFirst || expects > next {
		// One of the two was set back to an older copy of itself.
		s.l.c.Log.Warn("the manager's count does not fit the outbox; starting a new epoch",
			"manager_expects", expects, "first", s.helloFirst, "next", next)
		return s.newEpoch()
	}
	if !s.welcomed {
		s.l.c.Log.Info("connected to the manager", "addr", s.c.addr, "waiting", next-first)
	}
	s.welcomed = true
	s.connected()
	s.logged = max(s.logged, expects)
	s.sent = max(first, expects)
	s.resendAt = time.Time{}
	if first < next {
		s.interval = s.overdue()
		s.resendAt = time.Now().Add(s.interval)
	}
	return nil
}

// connected counts the session once.
func (s *session) connected() {
	if !s.l.welcomed.Swap(true) {
		s.l.sessions.Add(1)
		if k := s.l.c.Keeper; k != nil {
			k.Connected()
		}
	}
}

func (s *session) settings(set wire.Settings) {
	s.c.deflate = set.Deflate
	if set.Window > 0 {
		s.window = uint64(set.Window)
	}
	if set.Resend > 0 {
		s.resend = min(time.Duration(set.Resend)*time.Millisecond, maxResend)
	}
	if set.KeepAlive > 0 {
		s.l.keepAlive = min(max(time.Duration(set.KeepAlive)*time.Second, minKeepAlive), maxKeepAlive)
	}
}

func (s *session) receipt(r wire.Receipt) {
	s.l.receipts.Add(1)
	if !s.l.c.Store.Receipt(r.Epoch, r.Seq) {
		return
	}
	s.logged = max(s.logged, r.Seq+1)
	if s.clocked != 0 && r.Seq >= s.clocked {
		s.l.path.receipts.add(time.Since(s.clockedAt))
		s.clocked = 0
	}
	s.interval = s.overdue()
	_, first, _ := s.l.c.Store.Numbers()
	if s.resendAt = time.Now().Add(s.interval); s.sent <= first {
		s.resendAt = time.Time{}
	}
	if s.lingerAt.IsZero() {
		s.lingerAt = time.Now() // what waited for the window goes now
	}
}

// rewind sends again from where the manager misses something.
func (s *session) rewind(r wire.Resend) error {
	if r.Epoch != s.epoch || !s.welcomed {
		return nil
	}
	_, first, _ := s.l.c.Store.Numbers()
	switch {
	case r.Seq < s.helloFirst:
		s.l.c.Log.Warn("the manager asks for what it has receipted; starting a new epoch", "asks", r.Seq, "first", s.helloFirst)
		return s.newEpoch()
	case r.Seq < first || r.Seq >= s.sent:
		return nil // overtaken by a receipt
	}
	s.sent, s.lingerAt = r.Seq, time.Now()
	return nil
}

// newEpoch numbers the outbox anew and greets again. A complete inventory
// follows, because the store knows of none.
func (s *session) newEpoch() error {
	if err := s.l.c.Store.NewEpoch(); err != nil {
		return stored(err)
	}
	s.l.once = 0
	s.l.c.Resync(1)
	return s.hello()
}

// refused hears what the manager did not like.
func (s *session) refused(e wire.Error) error {
	err := fmt.Errorf("%s: %s", e.Code, e.Message)
	switch e.Code {
	case wire.ErrorTooLarge, wire.ErrorInvalid, wire.ErrorUnknown, wire.ErrorMalformed:
		if e.Seq == 0 {
			s.c.deflate = false // it may be another manager by now
			break
		}
		was, ok, storeErr := s.l.c.Store.Refuse(e.Seq)
		if storeErr != nil {
			return stored(storeErr)
		}
		if ok {
			s.l.c.Log.Error("report dropped: the manager refuses it", "seq", e.Seq, "report", kindOf(was), "error", err)
		}
		return nil
	case wire.ErrorRenewal:
		if s.l.c.Keeper != nil {
			s.l.c.Keeper.Refused()
		}
	}
	s.l.c.Log.Log(context.Background(), s.l.level(err), "the manager reports an error", "error", err)
	return nil
}

// kindOf names a report for the log.
func kindOf(r wire.Report) string {
	switch {
	case r.Host != nil:
		return "host"
	case r.Condition != nil:
		return "condition " + r.Condition.Condition
	case r.VM != nil:
		return "vm " + r.VM.ID
	case r.VMPatch != nil:
		return "vm patch " + r.VMPatch.ID
	case r.VMGone != nil:
		return "vm gone " + r.VMGone.ID
	case r.Inventory != nil:
		return "inventory"
	case r.Task != nil:
		return "task " + r.Task.ID.String() + " " + r.Task.State
	default:
		return "empty"
	}
}
