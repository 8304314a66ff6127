package reactors

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"
	"unicode"

	"pallas/commands"
	"pallas/events"
)

// PresenceConfig is what Presence needs.
type PresenceConfig struct {
	Commands *commands.Dispatcher
	// Log defaults to no log.
	Log *slog.Logger
	// Now is the clock; nil means the system's.
	Now func() time.Time
	// Grace is how long a device may be without a session before it is lost; 0
	// means 60 s.
	Grace time.Duration
	// StartGrace is that time for the devices that were connected when the
	// manager started; 0 means 2 min.
	StartGrace time.Duration
}

// Presence turns the sessions that the device door sees into DeviceConnected
// and DeviceLost. Its Connected and Disconnected may be called at any time,
// also before Run; they never wait.
type Presence struct {
	commands   *commands.Dispatcher
	log        *slog.Logger
	now        func() time.Time
	grace      time.Duration
	startGrace time.Duration
	agenda     *agenda[events.DeviceID]

	mu        sync.Mutex
	devices   map[events.DeviceID]*sight
	listeners []func(events.DeviceID)
}

// sight is what is known of a device's sessions. A device that is lost for
// good has none.
type sight struct {
	session commands.Session
	live    bool
	// written says that the log holds what is to be said of the session.
	written bool
	// news counts what was heard, to see whether more came during a command.
	news int
	// cut says that the device is kept out: the end of its session is no flap.
	cut bool
	// Without a session: when to give up, and what to say then.
	giveUp time.Time
	since  time.Time
	reason string
}

// NewPresence returns a Presence; the [Reactors] that it is given to run it.
func NewPresence(c PresenceConfig) *Presence {
	p := &Presence{
		commands: c.Commands, log: orLog(c.Log), now: orNow(c.Now),
		grace: or(c.Grace, time.Minute), startGrace: or(c.StartGrace, 2*time.Minute),
		devices: map[events.DeviceID]*sight{},
	}
	p.agenda = newAgenda(p.now, func(id events.DeviceID, err error) {
		p.log.LogAttrs(context.Background(), slog.LevelWarn, "presence not recorded, trying again",
			slog.String("device", string(id)), slog.Any("error", err))
	})
	return p
}

// Connected says that the device has greeted on a session. A session with
// another Conn takes the place of the one before.
func (p *Presence) Connected(device events.DeviceID, s commands.Session) {
	p.mu.Lock()
	k := p.devices[device]
	if k == nil {
		k = &sight{}
		p.devices[device] = k
	}
	// Within the grace time nothing is new, unless the agent is another one.
	k.written = k.written && k.session.AgentVersion == s.AgentVersion && k.session.Protocol == s.Protocol
	k.session, k.live, k.cut = s, true, false
	k.news++
	listeners := p.listeners
	p.mu.Unlock()
	p.agenda.at(device, p.now())
	for _, f := range listeners {
		f(device)
	}
}

// Disconnected says that the session ended. It is ignored when the device has
// another session meanwhile.
func (p *Presence) Disconnected(device events.DeviceID, s commands.Session, reason string) {
	now := p.now()
	p.mu.Lock()
	k := p.devices[device]
	if k == nil || !k.live || k.session.Conn != s.Conn {
		p.mu.Unlock()
		return
	}
	giveUp := now.Add(p.grace)
	if k.cut {
		giveUp = now
	}
	k.live, k.since, k.giveUp, k.reason = false, now, giveUp, reason
	p.mu.Unlock()
	p.agenda.at(device, giveUp)
}

// cutOff says that the device is kept out from now on: without a session it is
// lost at once, and with one when that ends.
func (p *Presence) cutOff(device events.DeviceID) {
	now := p.now()
	p.mu.Lock()
	k := p.devices[device]
	gone := k != nil && !k.live
	if k != nil {
		k.cut = true
	}
	if gone {
		k.giveUp = now
	}
	p.mu.Unlock()
	if gone {
		p.agenda.at(device, now)
	}
}

// live says whether the device has a session.
func (p *Presence) live(device events.DeviceID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := p.devices[device]
	return k != nil && k.live
}

// onConnected has f called after each Connected.
func (p *Presence) onConnected(f func(events.DeviceID)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.listeners = append(p.listeners, f)
}

// expect notes that the log calls a device connected. It has the start grace
// to show up.
func (p *Presence) expect(device events.DeviceID) {
	giveUp := p.now().Add(p.startGrace)
	p.mu.Lock()
	_, known := p.devices[device]
	if !known {
		p.devices[device] = &sight{giveUp: giveUp, reason: "not seen since the manager started"}
	}
	p.mu.Unlock()
	if !known {
		p.agenda.at(device, giveUp)
	}
}

// lost is told of each DeviceLost in the log. If the device has a session
// here, the log is to say so again.
func (p *Presence) lost(device events.DeviceID) {
	p.mu.Lock()
	k := p.devices[device]
	live := k != nil && k.live
	if live {
		k.written = false
		k.news++
	}
	p.mu.Unlock()
	if live {
		p.agenda.at(device, p.now())
	}
}

func (p *Presence) run(ctx context.Context) { p.agenda.run(ctx, workers, p.record) }

// record writes what is to be said of a device, and returns when to look
// again.
func (p *Presence) record(ctx context.Context, device events.DeviceID) (time.Time, error) {
	p.mu.Lock()
	k := p.devices[device]
	if k == nil {
		p.mu.Unlock()
		return time.Time{}, nil
	}
	s := *k
	p.mu.Unlock()

	switch now := p.now(); {
	case s.live && s.written:
		return time.Time{}, nil
	case s.live:
		if err := p.do(ctx, commands.ConnectDevice{
			Device: device, Address: tidy(s.session.Address, commands.MaxName),
			AgentVersion: tidy(s.session.AgentVersion, commands.MaxName), Protocol: s.session.Protocol,
		}, s.session.Address); err != nil {
			return time.Time{}, err
		}
		p.mu.Lock()
		k.written = k.news == s.news
		p.mu.Unlock()
		return time.Time{}, nil
	case now.Before(s.giveUp):
		return s.giveUp, nil
	}
	if err := p.do(ctx, commands.LoseDevice{Device: device, Reason: tidy(s.reason, commands.MaxReason), Since: s.since}, ""); err != nil {
		return time.Time{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if k.live { // it came back just now: Connected asked for another look
		k.written = false
	} else {
		delete(p.devices, device)
	}
	return time.Time{}, nil
}

// do gives a command. A refusal is an answer, too: there is nothing to record
// of a device that is unknown or retired.
func (p *Presence) do(ctx context.Context, c commands.Command, source string) error {
	_, err := p.commands.Do(ctx, c, commands.Meta{Actor: events.SystemActor("presence"), Source: tidy(source, commands.MaxName), Time: p.now()})
	if commands.KindOf(err) != "" {
		p.log.LogAttrs(ctx, slog.LevelInfo, "presence refused", slog.String("device", string(c.Subject().Device())), slog.Any("error", err))
		return nil
	}
	return err
}

// tidy makes a text that a device or the broker chose fit for the log.
func tidy(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "")
	}
	return s
}
