package mqttgw

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/nats-io/nats-server/v2/server"

	"pallas/events"
	"pallas/mqttgw/wire"
)

// A device that floods is closed, and kept out for a while: otherwise it comes
// back at once, with another handshake and a new budget. It is the same device
// that suffers, and it keeps its reports meanwhile.
const (
	firstPenalty = 5 * time.Second
	maxPenalty   = 10 * time.Minute
	// forgiveAfter is how long after its end a penalty makes the next longer.
	forgiveAfter = time.Hour
	// floodPenalties within floodTime lead to a quarantine.
	floodPenalties = 3
	floodTime      = time.Hour
	// maxPenalties is how many devices are remembered; the one whose penalty
	// is oldest is forgiven first.
	maxPenalties = 4096
)

// penalties are the devices that are kept out, or were. They are in memory
// only: a manager that starts forgives.
type penalties struct {
	mu      sync.Mutex
	devices *simplelru.LRU[events.DeviceID, penalty]
}

type penalty struct {
	until time.Time
	last  time.Duration
	// recent are when the newest ones began, oldest first.
	recent [floodPenalties - 1]time.Time
}

func newPenalties() *penalties {
	lru, err := simplelru.NewLRU[events.DeviceID, penalty](maxPenalties, nil)
	if err != nil {
		panic(err) // a negative size
	}
	return &penalties{devices: lru}
}

// add keeps the device out, twice as long as the last time, and says how long,
// and whether this has happened too often. Whoever is kept out already is not
// punished again for what was under way.
func (p *penalties) add(id events.DeviceID, now time.Time) (_ time.Duration, tooOften, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old, ok := p.devices.Peek(id)
	if ok && now.Before(old.until) {
		return 0, false, false
	}
	wait := firstPenalty
	if ok && now.Sub(old.until) < forgiveAfter {
		wait = min(2*old.last, maxPenalty)
	}
	first := old.recent[0]
	tooOften = !first.IsZero() && now.Sub(first) < floodTime
	recent := old.recent
	copy(recent[:], recent[1:])
	recent[len(recent)-1] = now
	p.devices.Add(id, penalty{until: now.Add(wait), last: wait, recent: recent})
	return wait, tooOften, true
}

// left returns how long the device is still kept out.
func (p *penalties) left(id events.DeviceID, now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if old, ok := p.devices.Peek(id); ok {
		return max(0, old.until.Sub(now))
	}
	return 0
}

// keepOut refuses the device's next connections for a while. It is false when
// they are refused already.
func (g *Gateway) keepOut(id events.DeviceID, why string) bool {
	wait, tooOften, ok := g.penalties.add(id, g.now())
	if ok {
		g.punished.Inc()
		g.log.Warn("device kept out", "device", id, "reason", why, "for", wait)
	}
	if tooOften {
		g.suspectFlood(id, why)
	}
	return ok
}

// punish closes the device's connections and keeps it out for a while.
func (g *Gateway) punish(id events.DeviceID, why string) {
	if g.keepOut(id, why) {
		_ = g.Kick(context.Background(), id, why) // which cannot fail
	}
}

// abuses are the ends of connections that no working agent comes to: what it
// sent was larger than the broker takes, or no MQTT.
var abuses = []string{
	server.MaxPayloadExceeded.String(), server.MaxControlLineExceeded.String(),
	server.ProtocolViolation.String(), server.ParseError.String(),
}

// excess counts a packet beyond the device's rate and says whether they are too
// many. The shard's mutex is held.
func (s *session) excess(now time.Time) bool {
	if now.Sub(s.floodAt) > floodWithin {
		s.floodAt, s.flood = now, 0
	}
	s.flood++
	return s.flood == floodKick
}

// mayGreet charges a Hello, which costs more than other packets: the whole
// device is looked up for it.
func (sh *shard) mayGreet(s *session) bool {
	now := sh.g.now()
	sh.mu.Lock()
	ok := s.limiter.AllowN(now, helloCost)
	kick := !ok && s.excess(now)
	sh.mu.Unlock()
	if !ok {
		sh.g.broker.refuse("flood")
	}
	if kick {
		sh.g.punish(s.id, whyFlood)
	}
	return ok
}

const (
	// helloCost is what a Hello costs beside its packet.
	helloCost = 20
	// minBurst lets the largest packet and a Hello pass.
	minBurst = 1 + wire.MaxPacket/packetUnit + helloCost
	// floodKick is how many packets beyond the rate, within floodWithin, cost a
	// device its session.
	floodKick   = 20_000
	floodWithin = time.Minute
	whyFlood    = "sent far more than the permitted rate"
)
