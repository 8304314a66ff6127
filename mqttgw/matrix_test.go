package mqttgw

import (
	"crypto/tls"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"

	"pallas/commands"
	"pallas/events"
	"pallas/mqttgw/pki"
	"pallas/mqttgw/wire"
)

// tap sees everything that is published in the devices' account.
type tap struct {
	conn *nats.Conn
	sub  *nats.Subscription
	seen map[string]string // payload → subject
}

func (d *door) tap() *tap {
	d.t.Helper()
	t := &tap{seen: map[string]string{}, conn: must(d.broker.DeviceConn("tap"))(d.t)}
	t.sub = must(t.conn.SubscribeSync(">"))(d.t)
	check(d.t, t.conn.Flush())
	return t
}

// of returns where a payload was published, "" for nowhere. What the broker had
// taken before is known.
func (t *tap) of(tb testing.TB, payload string) string {
	tb.Helper()
	check(tb, t.conn.Flush())
	for {
		n, _, err := t.sub.Pending()
		check(tb, err)
		if n == 0 {
			return t.seen[payload]
		}
		m := must(t.sub.NextMsg(patience))(tb)
		t.seen[string(m.Data)] = m.Subject
	}
}

// rekey gives the device another key by a token for it, and returns the device
// with that key.
func (dev *device) rekey() *device {
	d := dev.door
	d.t.Helper()
	next := d.identity()
	next.id = dev.id
	next.cert = next.issue(d.ca, time.Now(), 0)
	next.registerWith(func(c *commands.RegisterDevice) { c.Rekey = d.last() })
	return next
}

// registerWith registers the device as it is changed.
func (dev *device) registerWith(change func(*commands.RegisterDevice)) {
	dev.door.t.Helper()
	leaf := dev.cert.Leaf
	hash := pki.KeyHash(leaf.PublicKey)
	c := commands.RegisterDevice{
		Device: dev.id, Name: "host", Token: events.TokenID(events.NewID()), KeyHash: hash, AgentVersion: "test",
		Certificate: events.CertificateIssued{Serial: pki.SerialHex(leaf), KeyHash: hash, NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter},
	}
	change(&c)
	dev.door.do(c)
}

// trust is what the log says of the device.
func (dev *device) state() commands.Device {
	dev.door.t.Helper()
	return must(dev.door.commands.Device(dev.door.t.Context(), dev.id))(dev.door.t)
}

func (dev *device) quarantinedFor(t *testing.T, cause events.QuarantineCause) {
	t.Helper()
	eventually(t, "quarantine for "+string(cause), func() bool {
		s := dev.state()
		return s.Trust == commands.TrustQuarantined && s.Quarantine.Cause == cause
	})
}

// TestDeviceMatrix tries every topic in every standing that a connection can
// have, over real MQTT and TLS. Who may not connect sends its packets together
// with CONNECT.
func TestDeviceMatrix(t *testing.T) {
	d := newDoor(t, func(c *Config) { c.Burst = 100_000 })
	victim := d.device()
	watched, _ := victim.connect(wireHello())
	seen := d.tap()
	none := connectOptions{}
	with := func(cert tls.Certificate) connectOptions { return connectOptions{cert: &cert} }

	// up and telemetry say what may be published, down what may be subscribed to.
	type standing struct {
		name                string
		make                func(dev *device) connectOptions
		up, telemetry, down bool
		handshake           bool   // is refused already
		reason              string // of the refusal
		later               string // of the refusals after the first, if another
		grows               int    // decisions that it leads to
	}
	standings := []standing{
		{name: "approved", make: func(*device) connectOptions { return none }, up: true, telemetry: true, down: true},
		{name: "renewed", make: func(dev *device) connectOptions { return with(dev.issue(d.ca, time.Now(), 0)) }, up: true, telemetry: true, down: true},
		{name: "pending", make: func(dev *device) connectOptions { return none }, up: true, down: true},
		{name: "rejected", make: func(dev *device) connectOptions { d.do(commands.RejectDevice{Device: dev.id}); return none }, reason: reasonRejected},
		{name: "quarantined", make: func(dev *device) connectOptions {
			d.do(commands.QuarantineDevice{Device: dev.id, Cause: events.QuarantineOperator})
			return none
		}, reason: reasonQuarantined},
		{name: "retired", make: func(dev *device) connectOptions { d.do(commands.RetireDevice{Device: dev.id}); return none }, reason: reasonRetired},
		{name: "unknown", make: func(*device) connectOptions { return none }, reason: reasonUnknown},
		{name: "another key", make: func(dev *device) connectOptions {
			clone := d.identity()
			clone.id = dev.id
			return with(clone.issue(d.ca, time.Now(), 0))
		}, reason: reasonKey},
		{name: "former key", make: func(dev *device) connectOptions { dev.rekey(); return none }, reason: reasonKey, later: reasonQuarantined, grows: 1},
		{name: "another's id", make: func(*device) connectOptions { return connectOptions{client: string(victim.id)} }, reason: reasonClientID, grows: 1},
		{name: "another CA", make: func(dev *device) connectOptions { return with(dev.issue(newCA(t), time.Now(), 0)) }, handshake: true, reason: "certificate_authority"},
		{name: "expired", make: func(dev *device) connectOptions {
			return with(dev.issue(d.ca, time.Now().Add(-2*time.Hour), time.Hour))
		}, handshake: true, reason: "certificate_expired"},
		{name: "no certificate", make: func(*device) connectOptions { return with(tls.Certificate{}) }, handshake: true, reason: "certificate_missing"},
	}
	const self, other = "self", "other"
	topics := []string{
		"d/self/u", "d/self/d", "d/self/t", "d/self/x", "d/self", "d/other/u", "d/other/d", "d/other/t", "d/self/u/x", "D/self/u", "/d/self/u",
		"d/+/u", "d/+/d", "d/#", "#", "+/+/+", "d/self/#", "d/self/+", "$share/g/d/other/d",
		"$SYS/REQ/USER/AUTH", "$SYS/REQ/SERVER/PING", "$SYS/#", "$MQTT/msgs/x", "$MQTT/sub/x", "$MQTT/#",
		"$JS/API/INFO", "$JS/API/STREAM/DELETE/EVENTS", "$JS/#", "ev/device/other", "ev/#", "tm/usage", "_INBOX/x", "x",
	}
	for _, s := range standings {
		t.Run(s.name, func(t *testing.T) {
			outer := d.t
			d.t, watched.t = t, t
			defer func() { d.t, watched.t = outer, outer }()
			dev := d.identity()
			if s.name != "unknown" {
				dev.register(s.name != "pending" && s.name != "rejected")
			}
			o := s.make(dev)
			if o.client == "" {
				o.client = string(dev.id)
			}
			refused := func() int { return d.refusals(s.reason) + d.refusals(s.later) }
			before, refusals := d.last(), refused()
			for i, pattern := range topics {
				topic := strings.NewReplacer(self, string(dev.id), other, string(victim.id)).Replace(pattern)
				wild := strings.ContainsAny(topic, "+#")
				mayPublish := pattern == "d/self/u" && s.up || pattern == "d/self/t" && s.telemetry
				marker := fmt.Sprintf("%s %d", s.name, i)
				if s.reason != "" {
					try := o
					try.then = append(publication(topic, []byte(marker), 0, false), subscription(topic, 0)...)
					if wild {
						try.then = subscription(topic, 0)
					}
					c := dev.dial(try)
					if s.handshake != (c.err != nil) || (!s.handshake && c.code != 5) {
						t.Errorf("%s: return code %d, error %v", pattern, c.code, c.err)
					}
					c.waitClosed(patience)
					if len(c.acks) > 0 || len(c.in) > 0 {
						t.Errorf("%s: answered %x", pattern, <-c.acks)
					}
					if at := seen.of(t, marker); at != "" {
						t.Errorf("%s: was published to %s", pattern, at)
					}
					continue
				}
				c := dev.dial(o)
				if c.err != nil || c.code != 0 {
					t.Fatalf("%s: return code %d, error %v", pattern, c.code, c.err)
				}
				if !wild { // what follows a publication with a wildcard is the end of the connection
					c.publish(topic, []byte(marker), 0, false)
					c.ping()
					if at := seen.of(t, marker); (at != "") != mayPublish {
						t.Errorf("publish to %s: was seen at %q, want it to be published: %v", pattern, at, mayPublish)
					}
				}
				want := byte(0x80)
				if pattern == "d/self/d" && s.down {
					want = 0
				}
				if code := c.subscribe(topic, 0); code != want {
					t.Errorf("subscribe to %s: return code %#x, want %#x", pattern, code, want)
				}
				c.leave()
			}
			if s.reason != "" {
				eventually(t, "each refusal is counted as "+s.reason, func() bool { return refused()-refusals >= len(topics) })
			}
			if s.grows > 0 {
				dev.quarantinedFor(t, map[string]events.QuarantineCause{"former key": events.QuarantineClone, "another's id": events.QuarantineClientID}[s.name])
			}
			if n := d.last() - before; int(n) != s.grows {
				t.Errorf("the log grew by %d, want %d", n, s.grows)
			}
			for _, got := range watched.drain() {
				t.Errorf("the victim received %+v", got)
			}
			watched.alive(wireHello())
		})
	}
}

// A pending device says hello and nothing else: what it reports leaves no trace.
func TestPendingOnlyGreets(t *testing.T) {
	d := newDoor(t)
	dev := d.identity()
	dev.register(false)
	c, w := dev.connect(wireHello())
	if !w.Pending {
		t.Error("is not told that it waits")
	}
	before := d.last()
	for i, r := range []wire.Report{vm(1, "vm-1", "x"), {Seq: 1, Time: time.Now(), Task: &wire.TaskState{ID: uuid.New(), State: wire.StateAccepted}}} {
		c.report(r)
		eventually(t, "its report is refused", func() bool { return d.refusals("pending") == i+1 })
	}
	c.alive(wireHello())
	if d.last() != before {
		t.Error("a pending device wrote to the log")
	}
	d.do(commands.ApproveDevice{Device: dev.id})
	check(t, d.gateway.Refresh(t.Context(), dev.id))
	if w := c.down(func(d wire.Down) bool { return d.Welcome != nil }).Welcome; w.Pending {
		t.Error("still waits after its approval")
	}
	c.report(vm(1, "vm-1", "x"))
	c.receipt(1)
}
