package mqttgw

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"pallas/commands"
	"pallas/mqttgw/pki"
)

// source is the address of a device's connection.
func source(port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
}

func smallAdmission(slots int) *admission {
	a := newAdmission()
	a.slots = make(chan struct{}, slots)
	return a
}

func TestAdmissionIsBoundedAndInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := smallAdmission(2)
		for port := range 2 {
			check(t, a.enter(t.Context(), source(uint16(1+port))))
		}
		in := make(chan int, 3)
		for port := range 3 {
			go func() {
				if a.enter(t.Context(), source(uint16(10+port))) == nil {
					in <- 10 + port
				}
			}()
			synctest.Wait()
		}
		if n := a.waiting.Load(); n != 3 || len(in) != 0 {
			t.Fatalf("%d wait and %d are in, want 3 and 0", n, len(in))
		}
		for want := 10; want < 13; want++ {
			a.leave(source(map[int]uint16{10: 1, 11: 2, 12: 10}[want]))
			synctest.Wait()
			if got := <-in; got != want {
				t.Errorf("%d was let in, want %d", got, want)
			}
		}
	})
}

func TestAdmissionDoesNotWaitForTheSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := smallAdmission(1)
		for _, c := range []struct {
			name string
			end  time.Duration // of the handshake; 0: never
			want time.Duration // how long it keeps others out
		}{
			{"a handshake that never ends", 0, handshakeLease},
			{"one that fails, or whose device says nothing more", time.Second, time.Second + calloutLease},
		} {
			ctx, cancel := context.WithCancel(t.Context())
			began := time.Now()
			check(t, a.enter(ctx, source(1)))
			if c.end > 0 {
				time.AfterFunc(c.end, cancel)
			}
			check(t, a.enter(t.Context(), source(2)))
			if got := time.Since(began); got != c.want {
				t.Errorf("%s: the next one is in after %v, want %v", c.name, got, c.want)
			}
			a.leave(source(2))
			cancel()
		}
		synctest.Wait()
		if len(a.slots) != 0 || len(a.leases) != 0 {
			t.Errorf("%d slots and %d leases are left", len(a.slots), len(a.leases))
		}
	})
}

func TestAdmissionRefusesWhatWouldBeTooLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := smallAdmission(0) // nobody gets in
		a.maxWaiting = 1
		done := make(chan error, 1)
		began := time.Now()
		go func() { done <- a.enter(t.Context(), source(1)) }()
		synctest.Wait()
		if err := a.enter(t.Context(), source(2)); !errors.Is(err, errBusy) || time.Since(began) != 0 {
			t.Errorf("one too many: %v after %v, want errBusy at once", err, time.Since(began))
		}
		if err := <-done; !errors.Is(err, errBusy) || time.Since(began) != admitWait {
			t.Errorf("the one that waited: %v after %v, want errBusy after %v", err, time.Since(began), admitWait)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := a.enter(ctx, source(3)); !errors.Is(err, context.Canceled) {
			t.Errorf("one that went away: %v", err)
		}
		if n := a.waiting.Load(); n != 0 {
			t.Errorf("%d still wait", n)
		}
	})
}

// A full door says so to nobody but the operator, and opens again.
func TestBusyDoor(t *testing.T) {
	d := newDoor(t)
	d.broker.gate.wait = 10 * time.Millisecond
	for range cap(d.broker.gate.slots) {
		d.broker.gate.slots <- struct{}{}
	}
	dev := d.device()
	if c := dev.dial(connectOptions{client: string(dev.id)}); c.err == nil {
		t.Fatal("a device came in through a full door")
	}
	eventually(t, "the refusal is counted", func() bool { return d.refusals(reasonBusy) == 1 })
	for len(d.broker.gate.slots) > 0 {
		<-d.broker.gate.slots
	}
	before := d.broker.Accepted()
	dev.connect(wireHello())
	if n := d.broker.Accepted() - before; n != 1 {
		t.Errorf("%d connections were let in, want 1", n)
	}
	eventually(t, "the slot is free again", func() bool { return len(d.broker.gate.slots) == 0 })
}

// connectResumed connects as an agent does that keeps its sessions, and says
// whether one was resumed.
func (dev *device) connectResumed(cache tls.ClientSessionCache) (resumed bool, code byte, err error) {
	c := dev.dial(connectOptions{client: string(dev.id), sessions: cache})
	if c.err != nil {
		return false, 0, c.err
	}
	resumed = c.conn.(*tls.Conn).ConnectionState().DidResume
	c.leave()
	return resumed, c.code, nil
}

func TestResumedSessionsMeetTheDevice(t *testing.T) {
	d := newDoor(t)
	dev, cache := d.device(), tls.NewLRUClientSessionCache(1)
	for i, want := range []bool{false, true, true} {
		resumed, code, err := dev.connectResumed(cache)
		if err != nil || resumed != want || code != 0 {
			t.Fatalf("connection %d: resumed %v, code %d, error %v, want %v", i, resumed, code, err, want)
		}
	}
	d.do(commands.RetireDevice{Device: dev.id, Reason: "test"})
	if resumed, code, err := dev.connectResumed(cache); err != nil || !resumed || code != 5 {
		t.Errorf("retired: resumed %v, code %d, error %v, want a refusal of the resumed session", resumed, code, err)
	}
}

// Sessions outlive the process by the file of ticket keys, but not their CA and
// not their certificate.
func TestSessionsOutliveTheManager(t *testing.T) {
	keys := filepath.Join(t.TempDir(), "tickets.key")
	ca := newCA(t)
	server := must(ca.IssueServer([]string{"127.0.0.1"}, time.Now(), 0))(t)
	d := &door{t: t, root: t, ca: ca}
	dev, cache := d.identity(), tls.NewLRUClientSessionCache(1)
	client := &tls.Config{RootCAs: ca.Pool(), ServerName: "127.0.0.1", Certificates: []tls.Certificate{dev.cert}, ClientSessionCache: cache}
	for _, c := range []struct {
		name    string
		keys    string
		trusts  *pki.CA
		now     func() time.Time
		resumed bool
		refused bool
	}{
		{"the first start", keys, ca, time.Now, false, false},
		{"a restart", keys, ca, time.Now, true, false},
		{"a restart without the file", filepath.Join(t.TempDir(), "tickets.key"), ca, time.Now, false, false},
		{"back with that file", keys, ca, time.Now, false, false},
		{"the CA is not trusted any more", keys, newCA(t), time.Now, false, true},
		{"the certificate has ended", keys, ca, func() time.Time { return time.Now().Add(2 * pki.DeviceLife) }, false, true},
		{"all is well again", keys, ca, time.Now, true, false},
	} {
		b := must(NewBroker(BrokerConfig{
			Dir: t.TempDir(), MQTT: "127.0.0.1:0",
			TLS: &tls.Config{Certificates: []tls.Certificate{server}, ClientCAs: c.trusts.Pool(), Time: c.now},
		}))(t)
		b.tickets = pki.LoadTicketKeys(c.keys, b.cfg.Log)
		b.open.Store(true)
		resumed, err := shake(t, b.tlsConfig(), client)
		if resumed != c.resumed || (err != nil) != c.refused {
			t.Errorf("%s: resumed %v, error %v, want %v and refused %v", c.name, resumed, err, c.resumed, c.refused)
		}
	}
}

// shake makes a handshake, and has the client take what follows it.
func shake(t *testing.T, server, client *tls.Config) (resumed bool, err error) {
	t.Helper()
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		s := tls.Server(c, server)
		if err = s.Handshake(); err == nil {
			resumed = s.ConnectionState().DidResume
			_, err = s.Write([]byte("!"))
		}
		done <- err
	}()
	raw := must(net.Dial("tcp", l.Addr().String()))(t)
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(patience))
	_, _ = tls.Client(raw, client).Read(make([]byte, 1)) // the error is the server's
	return resumed, <-done
}
