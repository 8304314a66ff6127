package reactors

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pallas/commands"
	"pallas/events"
)

func TestPresenceOfAFlappingDevice(t *testing.T) {
	inHouse(t, func(h *house) {
		id := h.device()
		h.connect(id, 1)
		for conn := range uint64(50) {
			h.disconnect(id, conn+1)
			h.pass(59 * time.Second)
			h.connect(id, conn+2)
			h.pass(time.Second)
		}
		h.pass(time.Hour)
		h.presenceIs(id, "DeviceConnected")
	})
}

func TestPresenceOfALostDevice(t *testing.T) {
	inHouse(t, func(h *house) {
		id := h.device()
		h.connect(id, 1)
		h.pass(time.Minute)
		lost := time.Now()
		h.disconnect(id, 1)
		h.pass(59 * time.Second)
		h.presenceIs(id, "DeviceConnected")
		h.pass(time.Hour)
		got := h.presenceIs(id, "DeviceConnected", "DeviceLost")[1]
		if e := got.Entries[0].Event.(events.DeviceLost); e.Reason != "keep-alive ran out" || !e.Since.Equal(lost) {
			t.Errorf("lost %+v, want since %s", e, lost)
		}
		if want := lost.Add(time.Minute); !got.Time.Equal(want) {
			t.Errorf("lost at %s, want %s", got.Time, want)
		}
		h.connect(id, 2)
		h.presenceIs(id, "DeviceConnected", "DeviceLost", "DeviceConnected")
		h.presence.mu.Lock()
		defer h.presence.mu.Unlock()
		if n := len(h.presence.devices); n != 1 {
			t.Errorf("%d devices are remembered, want 1", n)
		}
	})
}

// TestPresenceOfAKeptOutDevice ends sessions by a decision: nobody waits for such
// a device to come back, whichever is heard of first.
func TestPresenceOfAKeptOutDevice(t *testing.T) {
	for name, keepOut := range map[string]func(events.DeviceID) commands.Command{
		"quarantined": func(id events.DeviceID) commands.Command {
			return commands.QuarantineDevice{Device: id, Cause: events.QuarantineOperator}
		},
		"retired": func(id events.DeviceID) commands.Command { return commands.RetireDevice{Device: id} },
	} {
		for _, first := range []string{"decision", "end"} {
			t.Run(name+", "+first+" first", func(t *testing.T) {
				inHouse(t, func(h *house) {
					id := h.device()
					h.connect(id, 1)
					decide := func() {
						h.do(keepOut(id))
						h.pass(0)
					}
					if first == "end" {
						h.disconnect(id, 1)
						decide()
					} else {
						decide()
						h.presenceIs(id, "DeviceConnected")
						h.disconnect(id, 1)
					}
					h.pass(time.Second)
					h.presenceIs(id, "DeviceConnected", "DeviceLost")
					if name == "retired" {
						return
					}
					h.do(commands.ReleaseDevice{Device: id})
					h.connect(id, 2)
					h.disconnect(id, 2)
					h.pass(59 * time.Second) // a flap, as before
					h.presenceIs(id, "DeviceConnected", "DeviceLost", "DeviceConnected")
				})
			})
		}
	}
}

func TestPresenceOfATakeover(t *testing.T) {
	inHouse(t, func(h *house) {
		id := h.device()
		h.connect(id, 1)
		h.connect(id, 2) // before the end of the first was heard of
		h.disconnect(id, 1)
		h.pass(time.Hour)
		h.presenceIs(id, "DeviceConnected")
		h.disconnect(id, 2)
		h.disconnect(id, 2) // said twice
		h.pass(time.Hour)
		h.presenceIs(id, "DeviceConnected", "DeviceLost")
	})
}

func TestPresenceOfANewAgent(t *testing.T) {
	inHouse(t, func(h *house) {
		id := h.device()
		h.connect(id, 1)
		h.disconnect(id, 1)
		s := session(2)
		s.AgentVersion = "1.1"
		h.presence.Connected(id, s)
		h.pass(time.Second)
		got := h.presenceIs(id, "DeviceConnected", "DeviceConnected")[1]
		if e := got.Entries[0].Event.(events.DeviceConnected); e.AgentVersion != "1.1" || e.Address != "192.0.2.7" || got.Source != "192.0.2.7" {
			t.Errorf("connected %+v from %s", e, got.Source)
		}
	})
}

func TestPresenceAfterARestart(t *testing.T) {
	inHouse(t, func(h *house) {
		back, gone := h.device(), h.device()
		h.connect(back, 1)
		h.connect(gone, 2)
		for range 5 { // the sessions die with the manager
			h.restart()
			h.pass(time.Minute)
			h.connect(back, 3)
			h.connect(gone, 4)
		}
		h.presenceIs(back, "DeviceConnected")
		h.restart()
		started := time.Now()
		h.pass(119 * time.Second)
		h.connect(back, 5)
		h.presenceIs(gone, "DeviceConnected")
		h.pass(time.Hour)
		h.presenceIs(back, "DeviceConnected")
		got := h.presenceIs(gone, "DeviceConnected", "DeviceLost")[1]
		e := got.Entries[0].Event.(events.DeviceLost)
		if e.Reason != "not seen since the manager started" || !e.Since.IsZero() || !got.Time.Equal(started.Add(2*time.Minute)) {
			t.Errorf("lost %+v at %s", e, got.Time)
		}
	})
}

// The read model may be behind when the manager starts.
func TestPresenceWithALateReadModel(t *testing.T) {
	inHouse(t, func(h *house) {
		id := h.device()
		h.connect(id, 1)
		h.model = behind{}
		h.restart()
		h.pass(time.Hour)
		h.presenceIs(id, "DeviceConnected", "DeviceLost")
	})
}

func TestPresenceIsTriedAgain(t *testing.T) {
	inHouse(t, func(h *house) {
		id := h.device()
		h.store.FailAppends(func(events.Decision) error { return events.ErrUnavailable })
		h.connect(id, 1)
		h.pass(10 * time.Minute)
		h.presenceIs(id)
		h.store.FailAppends(nil)
		h.pass(2 * time.Minute)
		h.presenceIs(id, "DeviceConnected")
		h.store.FailAppends(func(events.Decision) error { return events.ErrNoSpace })
		h.disconnect(id, 1)
		h.pass(10 * time.Minute)
		h.store.FailAppends(nil)
		h.pass(2 * time.Minute)
		h.presenceIs(id, "DeviceConnected", "DeviceLost")
		if n := h.logs.count("presence not recorded, trying again"); n != 2 {
			t.Errorf("%d warnings, want one for each of the two troubles", n)
		}
	})
}

// A device that comes back while its loss is being written is connected in the
// end.
func TestPresenceComesBackDuringTheLoss(t *testing.T) {
	inHouse(t, func(h *house) {
		id := h.device()
		h.connect(id, 1)
		h.disconnect(id, 1)
		h.store.FailAppends(func(d events.Decision) error {
			if _, ok := d.Entries[0].Event.(events.DeviceLost); ok {
				h.presence.Connected(id, session(2))
			}
			return nil
		})
		h.pass(time.Hour)
		h.presenceIs(id, "DeviceConnected", "DeviceLost", "DeviceConnected")
	})
}

func TestPresenceLostElsewhere(t *testing.T) {
	inHouse(t, func(h *house) {
		id := h.device()
		h.connect(id, 1)
		h.do(commands.LoseDevice{Device: id, Reason: "another manager thought so"})
		h.pass(time.Hour)
		got := h.happened(id, "DeviceConnected", "DeviceLost")
		if len(got) != 3 || got[2].Entries[0].Event.Type() != "DeviceConnected" {
			t.Errorf("presence %v", got)
		}
	})
}

func TestPresenceOfOddities(t *testing.T) {
	inHouse(t, func(h *house) {
		odd, gone := h.device(), h.device()
		s := session(1)
		s.AgentVersion = "1\x00\xff" + strings.Repeat("ä", 400)
		h.presence.Connected(odd, s)
		synctest.Wait()
		h.presence.Disconnected(odd, s, strings.Repeat("\x1b", 5000))
		h.pass(time.Hour)
		h.presenceIs(odd, "DeviceConnected", "DeviceLost")

		h.do(commands.RetireDevice{Device: gone})
		h.connect(gone, 1)
		h.connect("6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f", 1) // unknown
		h.pass(time.Hour)
		h.presenceIs(gone)
		if n := h.logs.count("presence refused"); n != 2 {
			t.Errorf("%d refusals, want 2", n)
		}
	})
}
