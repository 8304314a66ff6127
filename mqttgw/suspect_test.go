package mqttgw

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"pallas/commands"
	"pallas/events"
	"pallas/mqttgw/pki"
	"pallas/mqttgw/wire"
)

// A device that comes with the client id of another is put into quarantine; the
// other does not notice.
func TestForeignClientID(t *testing.T) {
	d := newDoor(t)
	a, b := d.device(), d.device()
	cb, _ := b.connect(wireHello())
	former := d.device()
	current := former.rekey()
	for name, tc := range map[string]struct {
		dev    *device
		client string
	}{
		"an id that nobody has":         {a, uuid.NewString()},
		"no id":                         {a, "shop-17"},
		"its own id in another case":    {a, strings.ToUpper(string(a.id))},
		"a key that the device had":     {former, string(b.id)},
		"a device that nobody knows":    {d.identity(), string(b.id)},
		"an id that was never a device": {a, events.NewID()},
	} {
		if c := tc.dev.dial(connectOptions{client: tc.client}); c.code != 5 {
			t.Errorf("%s: return code %d", name, c.code)
		}
	}
	before := d.last()
	if c := a.dial(connectOptions{client: string(b.id)}); c.code != 5 {
		t.Errorf("return code %d, want 5", c.code)
	}
	a.quarantinedFor(t, events.QuarantineClientID)
	// Those before it stood before it in the line.
	if n := d.last() - before; n != 1 {
		t.Errorf("%d decisions, want one quarantine", n)
	}
	last := newest(t, d, a.id)
	q, ok := last.Entries[0].Event.(events.DeviceQuarantined)
	if !ok || q.Other != b.id || q.Serial != pki.SerialHex(a.cert.Leaf) || last.Source != "127.0.0.1" || last.Actor != events.SystemActor("gateway") {
		t.Errorf("decision %+v", last)
	}
	for range 3 { // again changes nothing
		a.dial(connectOptions{client: string(b.id)})
	}
	if s := current.state(); s.Trust != commands.TrustApproved {
		t.Errorf("the device whose former key did it is %s", s.Trust)
	}
	cb.alive(wireHello())
	if got := d.presence.of(b.id); len(got) != 1 {
		t.Errorf("B's presence became %q", got)
	}
	if c := a.dial(connectOptions{client: string(a.id)}); c.code != 5 {
		t.Errorf("the thief connects as itself: return code %d", c.code)
	}
	if n := d.last() - before; n != 1 {
		t.Errorf("%d decisions in the end, want one quarantine", n)
	}
}

// newest is the newest decision about a device.
func newest(t *testing.T, d *door, id events.DeviceID) (last events.Record) {
	t.Helper()
	for r, err := range d.store.Load(t.Context(), events.DeviceSubject(id), 0) {
		check(t, err)
		last = r
	}
	return last
}

// takeOver links as soon as the broker allows it: it closes a connection that
// takes over one which took over another a moment ago.
func (dev *device) takeOver(t *testing.T) (c *client) {
	t.Helper()
	eventually(t, "the device may take over", func() bool {
		if c = dev.dial(connectOptions{client: string(dev.id)}); c.err != nil || c.code != 0 {
			return false
		}
		c.write(subscription(wire.DownTopic(string(dev.id)), 0))
		select {
		case <-c.acks:
			return true
		case <-c.closed:
		case <-time.After(patience):
		}
		return false
	})
	return c
}

// Two programs with the key of one device take it from each other: when the
// first comes back, they are two. One that takes the place of another is not.
func TestTwins(t *testing.T) {
	instance := func(n byte) wire.Hello {
		return wire.Hello{Instance: slices.Repeat([]byte{n}, wire.InstanceSize)}
	}
	t.Run("a copied machine", func(t *testing.T) {
		d := newDoor(t)
		dev := d.device()
		dev.connect(instance(1))
		second, _ := dev.connect(instance(2))
		second.alive(instance(2))
		if s := dev.state(); s.Trust != commands.TrustApproved {
			t.Fatalf("is %s after a restart", s.Trust)
		}
		third := dev.takeOver(t)
		third.hello(instance(1))
		dev.quarantinedFor(t, events.QuarantineClone)
		q, ok := newest(t, d, dev.id).Entries[0].Event.(events.DeviceQuarantined)
		if want := []string{"0101010101010101", "0202020202020202", "0101010101010101"}; !ok || !slices.Equal(q.Instances, want) {
			t.Errorf("evidence %+v", q)
		}
		for _, got := range third.drain() {
			if got.Welcome != nil {
				t.Error("the twin is welcome")
			}
		}
	})
	t.Run("restarts", func(t *testing.T) {
		d := newDoor(t)
		dev := d.device()
		for i := range byte(6) {
			c, _ := dev.connect(instance(i))
			c.alive(instance(i)) // as after a greet
			if i%2 == 0 {
				c.leave()
			}
		}
		c := dev.takeOver(t)
		c.alive(wireHello()) // an older agent
		c.alive(wireHello())
		if s := dev.state(); s.Trust != commands.TrustApproved {
			t.Errorf("is %s", s.Trust)
		}
	})
}

// The third penalty within an hour is a quarantine.
func TestFloodIsQuarantined(t *testing.T) {
	var ahead atomic.Int64
	start := time.Now()
	d := newDoor(t, func(c *Config) {
		c.Now = func() time.Time { return start.Add(time.Duration(ahead.Load())) }
	})
	punish := func(dev *device, after ...time.Duration) {
		for _, a := range after {
			ahead.Add(int64(a))
			d.gateway.punish(dev.id, whyFlood)
		}
	}
	slow, fast := d.device(), d.device()
	punish(slow, 0, 31*time.Minute, 31*time.Minute, 31*time.Minute)
	punish(fast, 0, 20*time.Minute, 20*time.Minute)
	fast.quarantinedFor(t, events.QuarantineFlood)
	if s := slow.state(); s.Trust != commands.TrustApproved {
		t.Errorf("three penalties in more than an hour: %s", s.Trust)
	}
}

// A log that does not answer for a while holds nobody up, and the quarantine
// comes when it does.
func TestSuspicionWaitsForTheLog(t *testing.T) {
	d := newDoor(t)
	a, b := d.device(), d.device()
	d.store.setRefuse(fmt.Errorf("append: %w", events.ErrUnavailable))
	began := time.Now()
	if c := a.dial(connectOptions{client: string(b.id)}); c.code != 5 {
		t.Errorf("return code %d", c.code)
	}
	t.Logf("refused after %v", time.Since(began))
	cb, _ := b.connect(wireHello())
	cb.alive(wireHello())
	d.store.setRefuse(nil)
	a.quarantinedFor(t, events.QuarantineClientID)
}
