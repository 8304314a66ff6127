package link_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"

	"pallas/agent/link"
	"pallas/agent/store"
	"pallas/mqttgw/wire"
)

const device = "6f1c1d5e-6f0b-4b7e-9d0e-0d6d1f6f2a01"

// rig is a link in a synctest bubble whose manager the test plays, packet by
// packet, over real TLS on a pipe.
type rig struct {
	t        *testing.T
	store    *store.Store
	link     *link.Link
	server   *tls.Config
	accept   chan net.Conn // the manager's end of each connection
	refuse   atomic.Bool   // no route to the manager
	attempts atomic.Int64
	stop     func() error

	tasks   []wire.Task
	cancels []uuid.UUID
	resyncs int
	taskErr error

	clock []time.Time
}

func newRig(t *testing.T, change ...func(*link.Config)) *rig {
	t.Helper()
	s, err := store.Open(filepath.Join(t.TempDir(), "agent.db"), store.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	cert, pool := certificate(t)
	r := &rig{t: t, store: s, accept: make(chan net.Conn)}
	// Session tickets would be written before the client reads, which a pipe
	// without a buffer does not bear.
	r.server = &tls.Config{
		Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
		NextProtos: []string{"mqtt"}, MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true,
	}
	client, err := link.TLSConfig("manager.example:8883", cert, pool, time.Now, true)
	if err != nil {
		t.Fatal(err)
	}
	c := link.Config{
		Device: device, Version: "1.2.3", Addr: "manager.example:8883", TLS: client, Store: s, Log: slog.New(slog.DiscardHandler),
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			r.attempts.Add(1)
			if r.refuse.Load() {
				return nil, errors.New("no route to host")
			}
			near, far := net.Pipe()
			select {
			case r.accept <- far:
				return near, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		},
		Clock:   func(at time.Time) { r.clock = append(r.clock, at) },
		Welcome: func(wire.Welcome) {},
		Tasks:   func(tasks []wire.Task) error { r.tasks = append(r.tasks, tasks...); return r.taskErr },
		Cancel:  func(ids []uuid.UUID) error { r.cancels = append(r.cancels, ids...); return nil },
		Resync:  func(uint64) { r.resyncs++ },
	}
	for _, f := range change {
		f(&c)
	}
	if r.link, err = link.New(c); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.link.Run(ctx) }()
	r.stop = func() error { cancel(); return <-done }
	return r
}

func certificate(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: device}, DNSNames: []string{"manager.example"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, pool
}

// add puts n reports into the outbox, each in a transaction of its own.
func (r *rig) add(n int) {
	r.t.Helper()
	for range n {
		if err := r.store.Update(func(tx *store.Tx) error {
			_, err := tx.Report(wire.Report{Time: time.Now(), VMGone: &wire.VMGone{ID: fmt.Sprint(tx.Next())}})
			return err
		}); err != nil {
			r.t.Fatal(err)
		}
	}
}

// peer is the manager's side of one connection.
type peer struct {
	r       *rig
	conn    *tls.Conn
	connect *packets.ConnectPacket
	ups     chan wire.Up
	pings   chan time.Time
	ended   chan error  // why reading ended; errGoodbye after DISCONNECT
	mute    atomic.Bool // do not answer pings
	// deflated is how many of the packets came so.
	deflated atomic.Int64
}

var errGoodbye = errors.New("DISCONNECT")

// connected takes a connection up to its subscription.
func (r *rig) connected() *peer {
	r.t.Helper()
	p := r.connecting(packets.Accepted, 0)
	if p == nil {
		r.t.Fatal("no connection")
	}
	return p
}

// connecting answers CONNECT and SUBSCRIBE with these codes.
func (r *rig) connecting(connack, suback byte) *peer {
	r.t.Helper()
	raw := <-r.accept
	p := &peer{r: r, conn: tls.Server(raw, r.server), ups: make(chan wire.Up, 1000), pings: make(chan time.Time, 100), ended: make(chan error, 1)}
	if err := p.conn.Handshake(); err != nil {
		r.t.Fatalf("handshake: %v", err)
	}
	first, err := packets.ReadPacket(p.conn)
	if err != nil {
		r.t.Fatalf("read CONNECT: %v", err)
	}
	p.connect = first.(*packets.ConnectPacket)
	second, err := packets.ReadPacket(p.conn)
	if err != nil {
		r.t.Fatalf("read SUBSCRIBE: %v", err)
	}
	sub := second.(*packets.SubscribePacket)
	if p.connect.ClientIdentifier != device || !p.connect.CleanSession || p.connect.WillFlag || p.connect.ProtocolVersion != 4 ||
		len(sub.Topics) != 1 || sub.Topics[0] != "d/"+device+"/d" || sub.Qoss[0] != 0 {
		r.t.Errorf("CONNECT %v, SUBSCRIBE %v", p.connect, sub)
	}
	ack := packets.NewControlPacket(packets.Connack).(*packets.ConnackPacket)
	ack.ReturnCode = connack
	p.write(ack)
	if connack != packets.Accepted {
		p.conn.Close()
		return p
	}
	sack := packets.NewControlPacket(packets.Suback).(*packets.SubackPacket)
	sack.MessageID, sack.ReturnCodes = sub.MessageID, []byte{suback}
	p.write(sack)
	go p.read()
	r.t.Cleanup(func() { raw.Close() })
	return p
}

func (p *peer) read() {
	for {
		packet, err := packets.ReadPacket(p.conn)
		if err != nil {
			p.ended <- err
			return
		}
		switch packet := packet.(type) {
		case *packets.PublishPacket:
			if packet.TopicName != "d/"+device+"/u" || packet.Qos != 0 || packet.Retain {
				p.r.t.Errorf("PUBLISH %v", packet)
			}
			if wire.Deflated(packet.Payload) {
				p.deflated.Add(1)
			}
			u, err := wire.DecodeUp(packet.Payload)
			if err != nil {
				p.r.t.Errorf("up: %v", err)
			}
			p.ups <- u
		case *packets.PingreqPacket:
			select {
			case p.pings <- time.Now():
			default: // enough of them for every test that looks
			}
			if !p.mute.Load() {
				p.write(packets.NewControlPacket(packets.Pingresp))
			}
		case *packets.DisconnectPacket:
			p.ended <- errGoodbye
			return
		default:
			p.r.t.Errorf("unexpected %v", packet)
		}
	}
}

func (p *peer) write(packet packets.ControlPacket) {
	p.r.t.Helper()
	if err := packet.Write(p.conn); err != nil {
		p.r.t.Errorf("write: %v", err)
	}
}

func (p *peer) down(d wire.Down) {
	p.r.t.Helper()
	d.Version = wire.Version
	b, err := wire.EncodeDown(d)
	if err != nil {
		p.r.t.Fatal(err)
	}
	p.raw("d/"+device+"/d", b)
}

func (p *peer) raw(topic string, payload []byte) {
	p.r.t.Helper()
	pub := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	pub.TopicName, pub.Payload = topic, payload
	p.write(pub)
	synctest.Wait()
}

// hello demands a Hello as the next packet.
func (p *peer) hello() wire.Hello {
	p.r.t.Helper()
	select {
	case u := <-p.ups:
		if u.Hello == nil {
			p.r.t.Fatalf("packet %+v, want a Hello", u)
		}
		return *u.Hello
	case <-time.After(time.Second):
		p.r.t.Fatal("no Hello within a second")
		return wire.Hello{}
	}
}

// welcome answers a Hello.
func (p *peer) welcome(next uint64, change ...func(*wire.Welcome)) {
	p.r.t.Helper()
	w := wire.Welcome{Time: time.Now(), Next: next, Settings: wire.Settings{Window: 10, KeepAlive: 600, Reconcile: 600, Resend: 1000}}
	for _, f := range change {
		f(&w)
	}
	p.down(wire.Down{Welcome: &w})
}

func (p *peer) receipt(seq uint64) {
	p.r.t.Helper()
	epoch, _, _ := p.r.store.Numbers()
	p.down(wire.Down{Receipt: &wire.Receipt{Epoch: epoch, Seq: seq}})
}

// sent lets time pass and demands packets with these sequences, from-to.
func (p *peer) sent(d time.Duration, want ...string) {
	p.r.t.Helper()
	if d > 0 {
		<-time.After(d)
	}
	synctest.Wait()
	var got []string
	for {
		select {
		case u := <-p.ups:
			if len(u.Reports) == 0 {
				got = append(got, fmt.Sprintf("%+v", u))
				continue
			}
			if epoch, _, _ := p.r.store.Numbers(); u.Epoch != epoch {
				p.r.t.Errorf("reports of epoch %d, want %d", u.Epoch, epoch)
			}
			got = append(got, fmt.Sprintf("%d-%d", u.Reports[0].Seq, u.Reports[len(u.Reports)-1].Seq))
			continue
		default:
		}
		break
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		p.r.t.Fatalf("packets (-want +got):\n%s", diff)
	}
}

// gone demands that the device ends the connection within d.
func (p *peer) gone(d time.Duration) error {
	p.r.t.Helper()
	select {
	case err := <-p.ended:
		return err
	case <-time.After(d):
		p.r.t.Fatalf("still connected after %v", d)
		return nil
	}
}

func bubble(name string, t *testing.T, test func(*testing.T, *rig)) {
	t.Run(name, func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t)
			test(t, r)
			if err := r.stop(); err != nil {
				t.Errorf("run: %v", err)
			}
			if err := r.store.Close(); err != nil {
				t.Error(err)
			}
		})
	})
}

func TestReports(t *testing.T) {
	bubble("window, receipts and linger", t, func(t *testing.T, r *rig) {
		r.add(25)
		p := r.connected()
		epoch, _, _ := r.store.Numbers()
		h := p.hello()
		if h.Agent != "1.2.3" || h.Epoch != epoch || h.First != 1 || h.Next != 26 || h.Inventory != nil || h.Time.IsZero() {
			t.Errorf("hello %+v", h)
		}
		p.sent(3 * time.Second) // not before the Welcome
		p.welcome(1)
		p.sent(0, "1-10")
		p.sent(500 * time.Millisecond)
		p.receipt(4)
		p.sent(0, "11-14")
		p.receipt(14)
		p.sent(0, "15-24")
		p.receipt(24)
		p.sent(0, "25-25")
		p.receipt(25)
		if r.store.Len() != 0 {
			t.Errorf("%d reports wait, want none", r.store.Len())
		}
		p.sent(10 * time.Minute)

		r.add(3)
		p.sent(19 * time.Millisecond)
		r.add(2)
		p.sent(2*time.Millisecond, "26-30")
		p.receipt(30)
		for _, bad := range []wire.Receipt{{Epoch: epoch + 1, Seq: 31}, {Epoch: epoch, Seq: 99}, {Epoch: epoch, Seq: 0}} {
			r.add(1)
			p.down(wire.Down{Receipt: &bad})
		}
		if r.store.Len() != 3 {
			t.Errorf("%d reports wait, want 3: a wrong receipt counted", r.store.Len())
		}
	})
	bubble("a large batch goes in full packets at once", t, func(_ *testing.T, r *rig) {
		p := r.connected()
		p.hello()
		p.welcome(1, func(w *wire.Welcome) { w.Settings.Window = 1000 })
		if err := r.store.Update(func(tx *store.Tx) error {
			for range 600 {
				if _, err := tx.Report(wire.Report{VMGone: &wire.VMGone{ID: "x"}}); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			r.t.Fatal(err)
		}
		p.sent(0, "1-256", "257-512")
		p.sent(20*time.Millisecond, "513-600")
	})
	bubble("without a receipt they go again, less and less often", t, func(_ *testing.T, r *rig) {
		r.add(2)
		p := r.connected()
		p.hello()
		p.welcome(1)
		p.sent(0, "1-2")
		p.sent(999 * time.Millisecond)
		p.sent(time.Millisecond, "1-2")
		p.sent(1999 * time.Millisecond)
		p.sent(time.Millisecond, "1-2")
		for _, seconds := range []int{4, 8, 16, 32, 60, 60, 60} {
			p.sent(time.Duration(seconds)*time.Second - time.Millisecond)
			p.sent(time.Millisecond, "1-2")
		}
		p.receipt(1)
		p.sent(999 * time.Millisecond)
		p.sent(time.Millisecond, "2-2") // short again after a receipt
		p.receipt(2)
		p.sent(time.Hour)
	})
	bubble("the manager asks for a resend", t, func(_ *testing.T, r *rig) {
		r.add(8)
		epoch, _, _ := r.store.Numbers()
		p := r.connected()
		p.hello()
		p.welcome(1)
		p.sent(0, "1-8")
		p.receipt(2)
		p.down(wire.Down{Resend: &wire.Resend{Epoch: epoch, Seq: 5}})
		p.sent(0, "5-8")
		for _, stale := range []wire.Resend{{Epoch: epoch + 1, Seq: 4}, {Epoch: epoch, Seq: 2}, {Epoch: epoch, Seq: 9}} {
			p.down(wire.Down{Resend: &stale})
			p.sent(0)
		}
		if s := r.link.Stats(); s.Resent != 4 || s.Epoch != epoch || s.First != 3 || s.Next != 9 {
			r.t.Errorf("stats %+v, want 4 sent again and 3 to 8 waiting", s)
		}
	})
	bubble("what the manager has is not sent again", t, func(_ *testing.T, r *rig) {
		r.add(20)
		p := r.connected()
		p.hello()
		p.welcome(8)
		p.sent(0, "8-17")
		p.receipt(17)
		p.sent(0, "18-20")
		p.conn.Close()
		p = r.connected()
		if h := p.hello(); h.First != 18 || h.Next != 21 {
			r.t.Errorf("hello %+v, want 18 and 21", h)
		}
		p.welcome(21) // all logged, and the receipt is late
		p.sent(500 * time.Millisecond)
		p.sent(500*time.Millisecond, "18-20") // late enough to ask for it
	})
	bubble("a refused report keeps its number and holds nothing up", t, func(_ *testing.T, r *rig) {
		r.add(3)
		p := r.connected()
		p.hello()
		p.welcome(1)
		p.sent(0, "1-3")
		p.down(wire.Down{Error: &wire.Error{Code: wire.ErrorTooLarge, Message: "no", Seq: 2}})
		p.down(wire.Down{Error: &wire.Error{Code: wire.ErrorNoSpace, Message: "later", Seq: 3}})
		<-time.After(time.Second)
		synctest.Wait()
		u := <-p.ups
		if len(u.Reports) != 3 || !u.Reports[0].Known() || u.Reports[1].Known() || u.Reports[1].Seq != 2 || !u.Reports[2].Known() {
			r.t.Errorf("sent again %+v, want the second one empty", u.Reports)
		}
	})
}

func TestSession(t *testing.T) {
	bubble("greet", t, func(_ *testing.T, r *rig) {
		r.add(2)
		p := r.connected()
		p.hello()
		p.welcome(1)
		p.sent(0, "1-2")
		p.down(wire.Down{Greet: true})
		if h := p.hello(); h.First != 1 || h.Next != 3 {
			r.t.Errorf("hello %+v", h)
		}
		p.sent(3 * time.Second)
		p.welcome(2)
		p.sent(0, "2-2")
	})
	bubble("retired", t, func(_ *testing.T, r *rig) {
		r.add(1)
		p := r.connected()
		p.hello()
		p.welcome(1)
		p.sent(0, "1-1")
		p.down(wire.Down{Retired: true, Tasks: []wire.Task{{}}})
		_ = p.gone(time.Second)
		synctest.Wait()
		if err := r.stop(); !errors.Is(err, link.ErrRetired) || len(r.tasks) != 0 {
			r.t.Errorf("run: %v after %d tasks, want ErrRetired", err, len(r.tasks))
		}
		r.stop = func() error { return nil }
	})
	var instances [][]byte
	for range 2 {
		bubble("instance", t, func(_ *testing.T, r *rig) {
			p := r.connected()
			first := p.hello().Instance
			p.welcome(1)
			p.down(wire.Down{Greet: true})
			if again := p.hello().Instance; len(first) != wire.InstanceSize || !bytes.Equal(first, again) {
				r.t.Errorf("instance %x became %x", first, again)
			}
			instances = append(instances, first)
		})
	}
	if len(instances) != 2 || bytes.Equal(instances[0], instances[1]) {
		t.Errorf("instances %x, want two different ones", instances)
	}
	bubble("not welcome", t, func(_ *testing.T, r *rig) {
		p := r.connected()
		began := time.Now()
		for _, at := range []int{0, 4, 12, 28} { // repeated, less and less often
			if u := <-p.ups; u.Hello == nil || time.Since(began).Round(time.Second) != time.Duration(at)*time.Second {
				r.t.Errorf("after %v %+v, want a Hello after %d s", time.Since(began), u, at)
			}
		}
		_ = p.gone(3 * time.Second)
		r.connected().hello()
	})
	bubble("pending", t, func(_ *testing.T, r *rig) {
		r.add(2)
		p := r.connected()
		p.hello()
		p.welcome(1, func(w *wire.Welcome) { w.Pending = true })
		r.add(2)
		p.sent(time.Hour)
		if !r.link.Stats().Connected {
			r.t.Error("a device that waits for approval is not connected")
		}
		p.welcome(1)
		p.sent(0, "1-4")
	})
	bubble("refused with rc 5 until it is not", t, func(_ *testing.T, r *rig) {
		for range 5 {
			r.connecting(packets.ErrRefusedNotAuthorised, 0)
		}
		r.connecting(packets.Accepted, 0x80)
		r.connected().hello()
	})
	bubble("backoff", t, func(_ *testing.T, r *rig) {
		r.refuse.Store(true)
		<-time.After(time.Hour)
		synctest.Wait()
		// Full jitter up to 60 s: 30 s on average.
		if n := r.attempts.Load(); n < 90 || n > 180 {
			r.t.Errorf("%d attempts in an hour, want about 120", n)
		}
		r.refuse.Store(false)
		r.connected().hello()
	})
	bubble("keepalive", t, func(_ *testing.T, r *rig) {
		p := r.connected()
		if p.connect.Keepalive != 60 {
			r.t.Errorf("keepalive %d, want the default, 60", p.connect.Keepalive)
		}
		p.hello()
		start := time.Now()
		p.welcome(1, func(w *wire.Welcome) { w.Settings.KeepAlive = 240 })
		for i := range 3 {
			if got, want := (<-p.pings).Sub(start), time.Duration(i+1)*time.Minute; got != want {
				r.t.Errorf("ping %d after %v, want %v", i, got, want)
			}
		}
		synctest.Wait()
		p.conn.Close()
		p = r.connected()
		if p.connect.Keepalive != 240 {
			r.t.Errorf("keepalive %d, want what the manager set, 240", p.connect.Keepalive)
		}
		p.hello()
		p.welcome(1)
		p.mute.Store(true)
		<-p.pings
		_ = p.gone(31 * time.Second)
		r.connected().hello()
	})
	bubble("goodbye", t, func(_ *testing.T, r *rig) {
		p := r.connected()
		p.hello()
		p.welcome(1)
		stopped := make(chan error, 1)
		go func() { stopped <- r.stop() }()
		if u := <-p.ups; u.Bye == nil || u.Bye.Reason == "" {
			r.t.Errorf("packet %+v, want a Bye", u)
		}
		if err := p.gone(time.Second); !errors.Is(err, errGoodbye) {
			r.t.Errorf("connection ended with %v, want DISCONNECT", err)
		}
		if err := <-stopped; err != nil {
			r.t.Errorf("run: %v", err)
		}
		r.stop = func() error { return nil }
	})
	bubble("what comes down", t, func(_ *testing.T, r *rig) {
		p := r.connected()
		p.hello()
		task := wire.Task{ID: uuid.New(), Kind: wire.TaskVMReset, VM: "v", Deadline: time.Now().UTC()}
		at := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
		p.down(wire.Down{Welcome: &wire.Welcome{Time: at, Next: 1}, Tasks: []wire.Task{task}, Cancels: []uuid.UUID{task.ID}, Resync: true})
		if diff := cmp.Diff([]wire.Task{task}, r.tasks, cmpopts.EquateApproxTime(time.Millisecond)); diff != "" {
			r.t.Error(diff)
		}
		if len(r.cancels) != 1 || r.resyncs != 1 || !r.store.Clock().Equal(at) {
			r.t.Errorf("cancels %v, resyncs %d, clock %v", r.cancels, r.resyncs, r.store.Clock())
		}
		set := at.Add(-2 * time.Hour) // the manager's clock was set back
		p.down(wire.Down{Time: set, Tasks: []wire.Task{task}})
		if len(r.clock) != 2 || !r.clock[0].Equal(at) || !r.clock[1].Equal(set) {
			r.t.Errorf("clock heard: %v, want %v and %v", r.clock, at, set)
		}
		r.taskErr = errors.New("disk full") // the session goes on
		p.down(wire.Down{Tasks: []wire.Task{task}})
		p.raw("d/"+device+"/d", []byte("garbage"))
		p.raw("d/other/d", []byte("garbage"))
		r.add(1)
		p.sent(time.Second, "1-1")
	})
	bubble("a packet of any size", t, func(_ *testing.T, r *rig) {
		p := r.connected()
		p.hello()
		if _, err := p.conn.Write([]byte{0x30, 0xff, 0xff, 0xff, 0x7f}); err != nil {
			r.t.Fatal(err)
		}
		_ = p.gone(time.Second)
		p = r.connected()
		p.hello()
		if _, err := p.conn.Write([]byte{0x30, 0xff, 0xff, 0xff, 0xff, 0xff}); err != nil {
			r.t.Fatal(err)
		}
		_ = p.gone(time.Second)
		r.connected().hello()
	})
	bubble("a manager that does not read", t, func(_ *testing.T, r *rig) {
		raw := <-r.accept // and no handshake
		<-time.After(31 * time.Second)
		raw.Close()
		r.connected().hello()
	})
}

// TestEpoch is about an agent or a manager that was set back to an older copy.
func TestEpoch(t *testing.T) {
	bubble("the manager knows more than was made", t, func(_ *testing.T, r *rig) {
		r.add(2)
		p := r.connected()
		before := p.hello().Epoch
		p.welcome(100)
		h := p.hello()
		if h.Epoch == before || h.First != 1 || h.Next != 1 || r.resyncs != 1 {
			r.t.Errorf("hello %+v with %d resyncs, want a new epoch and a complete inventory", h, r.resyncs)
		}
		p.welcome(1)
		r.add(1)
		p.sent(time.Second, "1-1")
	})
	bubble("the manager forgot what it receipted", t, func(_ *testing.T, r *rig) {
		r.add(5)
		p := r.connected()
		p.hello()
		p.welcome(1)
		p.receipt(5)
		p.conn.Close()
		p = r.connected()
		before := p.hello().Epoch
		p.welcome(3)
		if h := p.hello(); h.Epoch == before {
			r.t.Errorf("hello %+v, want a new epoch", h)
		}
	})
	bubble("the manager asks for what it receipted", t, func(_ *testing.T, r *rig) {
		r.add(5)
		p := r.connected()
		p.hello()
		p.welcome(1)
		p.receipt(5)
		p.conn.Close()
		r.add(1)
		p = r.connected()
		before := p.hello().Epoch
		p.welcome(6)
		p.sent(0, "6-6")
		p.down(wire.Down{Resend: &wire.Resend{Epoch: before, Seq: 2}})
		if h := p.hello(); h.Epoch == before {
			r.t.Errorf("hello %+v, want a new epoch", h)
		}
	})
}

// A manager that welcomes and breaks off at once is in trouble, or another
// device with the same certificate takes each other's place. Coming back every
// second, with all the others, makes that worse.
func TestShortSessionsBackOff(t *testing.T) {
	bubble("welcomed and cut", t, func(_ *testing.T, r *rig) {
		began := time.Now()
		for range 12 {
			p := r.connected()
			p.hello()
			p.welcome(1)
			p.conn.Close()
		}
		if took := time.Since(began); took < 15*time.Second {
			r.t.Errorf("12 sessions within %v", took)
		}
		p := r.connected()
		p.hello()
		p.welcome(1)
		<-time.After(time.Minute)
		p.conn.Close()
		cut := time.Now()
		r.connected()
		if took := time.Since(cut); took > time.Second {
			r.t.Errorf("after a good session it took %v to come back", took)
		}
	})
}

// TestClockOfAManager is about a manager whose clock is wrong for a moment. The
// device judges certificates by that clock: once it believed that its manager's
// certificate has expired, it could never be told otherwise.
func TestClockOfAManager(t *testing.T) {
	bubble("years ahead", t, func(_ *testing.T, r *rig) {
		p := r.connected()
		p.hello()
		good := time.Now().Add(time.Minute).Truncate(time.Second)
		p.welcome(1, func(w *wire.Welcome) { w.Time = good })
		p.welcome(1, func(w *wire.Welcome) { w.Time = time.Now().AddDate(50, 0, 0) })
		r.add(1)
		p.sent(time.Second, "1-1") // the session goes on
		if got := r.store.Clock(); !got.Equal(good) {
			r.t.Errorf("the device keeps %v as the newest time that is past, want %v", got, good)
		}
		if len(r.clock) != 1 || !r.clock[0].Equal(good) {
			r.t.Errorf("times were passed on: %v, want %v alone", r.clock, good)
		}
	})
}

func TestStoreFaultEndsRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		if err := r.store.Close(); err != nil {
			t.Fatal(err)
		}
		raw := <-r.accept
		go func() {
			c := tls.Server(raw, r.server)
			for range 2 {
				if _, err := packets.ReadPacket(c); err != nil {
					return
				}
			}
			_ = packets.NewControlPacket(packets.Connack).Write(c)
			ack := packets.NewControlPacket(packets.Suback).(*packets.SubackPacket)
			ack.ReturnCodes = []byte{0}
			_ = ack.Write(c)
			_, _ = io.Copy(io.Discard, c)
		}()
		<-time.After(5 * time.Second)
		if err := r.stop(); err == nil {
			t.Error("run with a store that is closed returned no error")
		}
		raw.Close()
	})
}

func TestStatsCountTheSocket(t *testing.T) {
	bubble("", t, func(_ *testing.T, r *rig) {
		p := r.connected()
		p.hello()
		p.welcome(1)
		s := r.link.Stats()
		if s.In < 500 || s.Out < 500 || s.In+s.Out > 4000 || s.Sessions != 1 || !s.Connected {
			r.t.Errorf("stats %+v of a narrow handshake and a greeting", s)
		}
	})
}
