package mqttgw

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"pallas/commands"
	"pallas/mqttgw/wire"
)

func wireHello() wire.Hello { return wire.Hello{} }

// Nobody acts as another, whatever it sends. B is a device with a session that
// must not notice; the log must not grow.
func TestNobodyActsAsAnother(t *testing.T) {
	d := newDoor(t, func(c *Config) { c.Burst = 100_000 }) // B greets after every attack
	a, b := d.device(), d.device()
	cb, _ := b.connect(wireHello())
	eventually(t, "B is present", func() bool { return len(d.presence.of(b.id)) == 1 })
	unharmed := func(t *testing.T, attack func(t *testing.T)) {
		t.Helper()
		outer := d.t
		d.t, cb.t = t, t
		defer func() { d.t, cb.t = outer, outer }()
		before, sessions := d.last(), d.presence.of(b.id)
		attack(t)
		cb.alive(wireHello())
		if d.last() != before {
			t.Errorf("the log grew by %d", d.last()-before)
		}
		if got := d.presence.of(b.id); len(got) != len(sessions) {
			t.Errorf("B's presence became %q", got)
		}
		for _, got := range cb.drain() {
			t.Errorf("B received %+v", got)
		}
	}
	counted := func(t *testing.T, reason string, attack func()) {
		t.Helper()
		before := d.refusals(reason)
		attack()
		eventually(t, reason+" is counted", func() bool { return d.refusals(reason) > before })
	}
	// with runs an attack over a good connection of A.
	with := func(attack func(c *client)) {
		c := a.link()
		defer func() {
			c.leave()
			d.gateway.penalties.forgive(a.id) // for what is no MQTT
		}()
		attack(c)
	}
	bUp, bDown := wire.UpTopic(string(b.id)), wire.DownTopic(string(b.id))
	forged := must(wire.EncodeUp(wire.Up{Version: 1, Epoch: 1, Reports: []wire.Report{vm(1, "vm-1", "forged")}}))(t)
	kickB := must(wire.EncodeDown(wire.Down{Version: 1, Greet: true}))(t)

	t.Run("publish", func(t *testing.T) {
		for _, topic := range []string{
			bUp, bDown, wire.TelemetryTopic(string(b.id)), "d/" + string(a.id) + "/d", "d/x/u", "x",
			"ev/device/" + string(b.id), "$SYS/REQ/USER/AUTH", "$SYS/REQ/SERVER/PING", "$MQTT/msgs/x", "$MQTT/sub/x", "$JS/API/INFO",
			"$JS/API/STREAM/DELETE/EVENTS", "_INBOX/x",
		} {
			for qos := range byte(2) {
				t.Run(fmt.Sprintf("%s QoS %d", topic, qos), func(t *testing.T) {
					unharmed(t, func(t *testing.T) {
						counted(t, "publish_denied", func() {
							with(func(c *client) {
								payload := forged
								if strings.HasSuffix(topic, "/d") {
									payload = kickB
								}
								c.publish(topic, payload, qos, false)
								if qos == 1 {
									c.ack(4) // MQTT 3.1.1 has no way to say no
								}
								c.ping()
							})
						})
					})
				})
			}
		}
	})
	t.Run("publish with wildcards", func(t *testing.T) {
		for _, topic := range []string{"d/+/u", "d/#", "#", "d/*/u", "d/>"} {
			unharmed(t, func(t *testing.T) {
				with(func(c *client) {
					c.publish(topic, forged, 0, false)
					c.write([]byte{0xC0, 0}) // answered, or the connection is closed
					select {
					case <-c.acks:
					case <-c.closed:
					case <-time.After(patience):
						t.Error("neither answer nor end")
					}
				})
			})
		}
	})
	t.Run("QoS 2 publish", func(t *testing.T) {
		unharmed(t, func(t *testing.T) {
			with(func(c *client) {
				c.publish(bUp, forged, 2, false)
				c.waitClosed(patience)
			})
		})
	})
	t.Run("retained", func(t *testing.T) {
		unharmed(t, func(t *testing.T) {
			counted(t, "publish_denied", func() {
				with(func(c *client) {
					c.publish(bDown, kickB, 0, true)
					c.publish(bDown, kickB, 1, true)
					c.ping()
				})
			})
			// B comes back and is not greeted by it.
			cb.write([]byte{0xE0, 0})
			cb.waitClosed(patience)
			eventually(t, "B is gone", func() bool { return len(d.presence.of(b.id)) == 2 })
			d.presence.forget(b.id, 2)
			cb = b.link()
			cb.ping()
			for _, got := range cb.drain() {
				t.Errorf("B received %+v", got)
			}
			cb.alive(wireHello())
		})
	})
	t.Run("will", func(t *testing.T) {
		for qos := range byte(2) {
			for _, topic := range []string{bDown, bUp} {
				unharmed(t, func(t *testing.T) {
					c := a.dial(connectOptions{client: string(a.id), willTopic: topic, will: kickB, willQoS: qos, willRetain: true})
					if c.err != nil || c.code != 0 {
						return // refusing it is as good
					}
					check(t, c.conn.Close()) // no DISCONNECT: the broker publishes the will
					c.leave()
				})
			}
		}
	})
	t.Run("subscribe", func(t *testing.T) {
		for _, filter := range []string{
			bDown, bUp, "d/+/d", "d/+/+", "#", "+/+/+", "d/#", "$SYS/#", "$MQTT/#", "$JS/#", "ev/#", "d/" + string(a.id) + "/u",
			"d/" + string(a.id) + "/#", "d/" + string(a.id) + "/+", "$share/g/" + bDown,
		} {
			for qos := range byte(2) {
				t.Run(fmt.Sprintf("%s QoS %d", filter, qos), func(t *testing.T) {
					unharmed(t, func(t *testing.T) {
						try := func() {
							with(func(c *client) {
								if code := c.subscribe(filter, qos); code != 0x80 {
									t.Errorf("return code %#x, want 0x80", code)
								}
							})
						}
						if strings.HasPrefix(filter, "$MQTT/") {
							try() // the broker says nothing about these
						} else {
							counted(t, "subscribe_denied", try)
						}
					})
				})
			}
		}
	})
	refused := func(t *testing.T, reason string, dev *device, o connectOptions) {
		t.Helper()
		unharmed(t, func(t *testing.T) {
			counted(t, reason, func() {
				c := dev.dial(o)
				if c.err != nil || c.code != 5 {
					t.Errorf("return code %d, error %v; want 5", c.code, c.err)
					return
				}
				c.waitClosed(patience)
			})
		})
	}
	t.Run("client id", func(t *testing.T) {
		// That of a device which there is: TestForeignClientID.
		refused(t, reasonClientID, a, connectOptions{client: uuid.NewString()})
		refused(t, reasonClientID, a, connectOptions{client: uuid.NewString(), persistent: true})
		refused(t, reasonClientID, a, connectOptions{client: ""})
		refused(t, reasonClientID, a, connectOptions{client: strings.ToUpper(string(a.id))})
		refused(t, reasonClientID, a, connectOptions{client: strings.Repeat("x", 30_000)})
		refused(t, reasonClientID, a, connectOptions{client: uuid.NewString(), username: string(b.id), password: "x"})
	})
	t.Run("the broker's own users", func(t *testing.T) {
		for _, key := range d.broker.keys {
			refused(t, reasonClientID, a, connectOptions{client: uuid.NewString(), username: must(key.PublicKey())(t), password: "x"})
		}
	})
	t.Run("unknown device", func(t *testing.T) {
		dev := d.identity()
		refused(t, reasonUnknown, dev, connectOptions{client: string(dev.id)})
	})
	t.Run("another key", func(t *testing.T) {
		clone := d.identity()
		clone.id = a.id
		clone.cert = clone.issue(d.ca, time.Now(), 0)
		refused(t, reasonKey, clone, connectOptions{client: string(a.id)})
	})
	t.Run("certificate without a device id", func(t *testing.T) {
		dev := d.identity()
		dev.id = "manager"
		dev.cert = dev.issue(d.ca, time.Now(), 0)
		refused(t, reasonName, dev, connectOptions{client: "manager"})
	})
	t.Run("retired device", func(t *testing.T) {
		dev := d.device()
		d.do(commands.RetireDevice{Device: dev.id})
		refused(t, reasonRetired, dev, connectOptions{client: string(dev.id)})
	})
	handshake := func(t *testing.T, reason string, dev *device, o connectOptions) {
		t.Helper()
		unharmed(t, func(t *testing.T) {
			counted(t, reason, func() {
				if c := dev.dial(o); c.err == nil {
					t.Errorf("connected, return code %d", c.code)
				}
			})
		})
	}
	t.Run("no certificate", func(t *testing.T) {
		none := *a
		none.cert.Certificate = nil
		handshake(t, "certificate_missing", &none, connectOptions{client: string(a.id)})
	})
	t.Run("certificate of another CA", func(t *testing.T) {
		cert := a.issue(newCA(t), time.Now(), 0)
		handshake(t, "certificate_authority", a, connectOptions{client: string(a.id), cert: &cert})
	})
	t.Run("expired certificate", func(t *testing.T) {
		cert := a.issue(d.ca, time.Now().Add(-2*time.Hour), time.Hour)
		handshake(t, "certificate_expired", a, connectOptions{client: string(a.id), cert: &cert})
	})
	t.Run("certificate of the manager itself", func(t *testing.T) {
		cert := must(d.ca.IssueServer([]string{string(a.id)}, time.Now(), 0))(t)
		handshake(t, "certificate_invalid", a, connectOptions{client: string(a.id), cert: &cert})
	})
	t.Run("no TLS", func(t *testing.T) {
		unharmed(t, func(t *testing.T) { // the broker counts such probes nowhere
			plain := must(net.Dial("tcp", d.broker.MQTTAddr()))(t)
			defer plain.Close()
			check(t, plain.SetDeadline(time.Now().Add(patience)))
			_, err := plain.Write(mqttPacket(0x10, append(append(mqttString("MQTT"), 4, 2, 0, 0), mqttString(string(b.id))...)))
			check(t, err)
			if answer, err := io.ReadAll(plain); len(answer) > 0 && answer[0]>>4 == 2 {
				t.Errorf("answered %x, error %v", answer, err)
			}
		})
	})
	t.Run("TLS 1.2", func(t *testing.T) {
		unharmed(t, func(t *testing.T) {
			counted(t, "handshake", func() {
				c, err := tls.Dial("tcp", d.broker.MQTTAddr(), &tls.Config{
					RootCAs: d.ca.Pool(), Certificates: []tls.Certificate{a.cert}, MaxVersion: tls.VersionTLS12,
				})
				if err == nil {
					c.Close()
					t.Error("shook hands")
				}
			})
		})
	})
	t.Run("large payload", func(t *testing.T) {
		for _, size := range []int{1 << 20, 200 << 10} {
			unharmed(t, func(t *testing.T) {
				counted(t, "payload", func() {
					with(func(c *client) {
						c.publish(wire.UpTopic(string(a.id)), make([]byte, size), 0, false)
						c.waitClosed(patience)
					})
				})
			})
		}
	})
	t.Run("garbage", func(t *testing.T) {
		for code, payloads := range map[string][][]byte{
			wire.ErrorMalformed: {nil, {0xFF}, []byte("hello"), bytes.Repeat([]byte{0x9f}, 1000), []byte(`{"version":1}`)},
			wire.ErrorVersion:   {{0xa1, 0x01, 0x09}},
			wire.ErrorTooLarge:  {make([]byte, wire.MaxPacket+1)},
		} {
			for _, p := range payloads {
				unharmed(t, func(t *testing.T) {
					counted(t, code, func() {
						c, _ := a.connect(wireHello())
						defer c.leave()
						c.publish(wire.UpTopic(string(a.id)), p, 0, false)
						c.failure(code)
						c.alive(wireHello()) // A itself may go on
					})
				})
			}
		}
	})
	t.Run("sequence far ahead", func(t *testing.T) {
		unharmed(t, func(t *testing.T) {
			counted(t, "gap", func() {
				c, _ := a.connect(wireHello())
				defer c.leave()
				c.report(vm(1<<50, "vm-1", "x"))
				d := c.down(func(d wire.Down) bool { return d.Resend != nil })
				if d.Resend.Seq != 1 || d.Resend.Epoch != 1 {
					t.Errorf("asked to resend from %+v, want 1", d.Resend)
				}
			})
		})
	})
	t.Run("telemetry reaches nobody", func(t *testing.T) {
		unharmed(t, func(t *testing.T) {
			with(func(c *client) {
				c.publish(wire.TelemetryTopic(string(a.id)), forged, 0, false)
				c.ping()
			})
		})
	})
	t.Run("task of another device", func(t *testing.T) {
		unharmed(t, func(t *testing.T) {
			c, _ := a.connect(wireHello())
			defer c.leave()
			c.report(wire.Report{Seq: 1, Time: time.Now(), Task: &wire.TaskState{ID: uuid.New(), State: wire.StateSucceeded}})
			c.failure(wire.ErrorInvalid)
			c.receipt(1)
		})
	})
	if cb.isClosed() {
		t.Error("B's connection is closed")
	}
}

// The user that the callout signs ends with the certificate.
func TestSessionEndsWithCertificate(t *testing.T) {
	d := newDoor(t)
	dev := d.device()
	// Certificates begin in the past: this one ends in two seconds.
	dev.cert = dev.issue(d.ca, time.Now(), 2*time.Second)
	c, _ := dev.connect(wireHello())
	c.waitClosed(patience)
	if time.Now().Before(dev.cert.Leaf.NotAfter.Add(-time.Second)) {
		t.Error("closed before the certificate ended")
	}
	eventually(t, "presence hears of it", func() bool { return len(d.presence.of(dev.id)) == 2 })
}

// A device that is retired while it has a session loses it at once and for
// good, with the same certificate.
func TestRetireEndsSession(t *testing.T) {
	d := newDoor(t)
	dev := d.device()
	c, _ := dev.connect(wireHello())
	d.do(commands.RetireDevice{Device: dev.id})
	began := time.Now()
	check(t, d.gateway.Retire(t.Context(), dev.id))
	c.waitClosed(patience)
	t.Logf("closed after %v", time.Since(began))
	if told := c.drain(); !slices.ContainsFunc(told, func(d wire.Down) bool { return d.Retired }) {
		t.Errorf("was told %+v, and nothing of its retirement", told)
	}
	if c := dev.dial(connectOptions{client: string(dev.id)}); c.code != 5 {
		t.Errorf("return code %d, want 5", c.code)
	}
	eventually(t, "presence hears the reason", func() bool {
		calls := d.presence.of(dev.id)
		return len(calls) == 2 && strings.HasSuffix(calls[1], "the device was retired")
	})
}
