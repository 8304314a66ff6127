package link_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"pallas/agent/link"
)

const (
	own    = "manager.example:8883"
	shared = "manager.example:443"
)

// routes are the ways to the manager, of which some are blocked.
type routes struct {
	mu      sync.Mutex
	blocked map[string]bool
	closed  bool // nobody listens on the own port
	turns   []string
}

// open has somebody listen on the own port.
func (w *routes) open() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = false
}

func (w *routes) use(c *link.Config) {
	dial := c.DialContext
	c.Shared = shared
	c.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		w.mu.Lock()
		w.turns = append(w.turns, addr)
		blocked, closed := w.blocked[addr], w.closed && addr == own
		w.mu.Unlock()
		if closed {
			return nil, syscall.ECONNREFUSED
		}
		if blocked {
			return nil, errors.New("connection refused")
		}
		return dial(ctx, network, addr)
	}
}

// went returns the addresses dialled since the last call, and blocks some for
// the next ones.
func (w *routes) went(block ...string) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.blocked = map[string]bool{}
	for _, a := range block {
		w.blocked[a] = true
	}
	went := w.turns
	w.turns = nil
	return went
}

func TestTheOtherWayIsTriedWhenOneIsBlocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &routes{blocked: map[string]bool{own: true}}
		r := newRig(t, w.use)
		want := func(got []string, want ...string) {
			t.Helper()
			if !slices.Equal(got, want) {
				t.Fatalf("dialled %v, want %v", got, want)
			}
		}
		p := r.connected()
		if name := p.conn.ConnectionState().ServerName; name != "manager.example" {
			t.Errorf("TLS asks for %q", name)
		}
		if proto := p.conn.ConnectionState().NegotiatedProtocol; proto != "mqtt" {
			t.Errorf("ALPN %q, want mqtt", proto)
		}
		p.hello()
		p.welcome(1)
		// It stays with what worked for a while.
		want(w.went(), own, shared)
		p.conn.Close()
		p = r.connected()
		p.hello()
		p.welcome(1)
		want(w.went(shared), shared)
		// And goes back when that is blocked.
		p.conn.Close()
		p = r.connected()
		p.hello()
		p.welcome(1)
		want(w.went(own, shared), shared, own)
		// With both blocked each attempt is for both, with pauses between.
		p.conn.Close()
		began := time.Now()
		for range 6 {
			<-time.After(time.Minute)
		}
		turns := w.went()
		if len(turns) < 12 || len(turns) > 60 {
			t.Errorf("%d attempts in %v", len(turns), time.Since(began))
		}
		for i, a := range turns {
			if (a == own) != (i%2 == 0) {
				t.Fatalf("dialled %v, want turns", turns)
			}
		}
		r.connected()
		if err := r.stop(); err != nil {
			t.Error(err)
		}
	})
}

// A manager that starts opens its ports one after the other.
func TestTheOwnPortIsAskedAgainWhenTheManagerHasJustStarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &routes{closed: true}
		r := newRig(t, w.use)
		c := <-r.accept // on the shared port
		w.open()
		if err := tls.Server(c, r.server).Handshake(); err != nil {
			t.Fatal(err)
		}
		(<-r.accept).Close() // which asked whether the own port is there
		p := r.connected()
		p.hello()
		p.welcome(1)
		if went := w.went(); !slices.Equal(went, []string{own, shared, own, own}) {
			t.Errorf("dialled %v", went)
		}
		if err := r.stop(); err != nil {
			t.Error(err)
		}
	})
}

// What the manager refuses it refuses everywhere: such a device does not double
// its attempts. Whoever has not proved to be the manager refuses nothing.
func TestARefusalIsNoReasonToGoElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &routes{}
		r := newRig(t, w.use)
		for range 3 {
			r.connecting(packets.ErrRefusedNotAuthorised, 0)
		}
		r.connected().conn.Close()
		if went := w.went(); !slices.Equal(went, []string{own, own, own, own}) {
			t.Errorf("dialled %v after CONNACK 5", went)
		}
		r.connected().conn.Close()
		w.went()
		// A manager that is starting, or busy, says so in a handshake.
		for range 2 {
			tls.Server(<-r.accept, &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
				return nil, errors.New("busy")
			}}).Handshake() //nolint:errcheck // it fails
		}
		r.connected().conn.Close()
		if went := w.went(); !slices.Equal(went, []string{own, own, own}) {
			t.Errorf("dialled %v after two alerts", went)
		}
		// A handshake that breaks off, as a firewall does it.
		(<-r.accept).Close()
		r.connected()
		if went := w.went(); !slices.Equal(went, []string{own, shared}) {
			t.Errorf("dialled %v after a broken handshake", went)
		}
		if err := r.stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestSharedIsAnAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c link.Config
		r := newRig(t, func(made *link.Config) { c = *made })
		if err := r.stop(); err != nil {
			t.Error(err)
		}
		c.Shared = "manager.example"
		if _, err := link.New(c); err == nil {
			t.Error("no error for a Shared without a port")
		}
	})
}

// TestTheOwnPortIsFoundAgain is about a manager whose own port was too busy at a
// start: what went to the shared port comes back without a loss of the link.
func TestTheOwnPortIsFoundAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &routes{blocked: map[string]bool{own: true}}
		r := newRig(t, w.use)
		p := r.connected()
		p.hello()
		p.welcome(1)
		w.went(own)
		// While it cannot be reached it is looked at more and more rarely.
		<-time.After(12 * time.Hour)
		looks := w.went()
		if n := len(looks); n < 7 || n > 14 || slices.Contains(looks, shared) {
			t.Errorf("in half a day: %v", looks)
		}
		(<-r.accept).Close() // a look
		p = r.connected()
		p.hello()
		p.welcome(1)
		if went := w.went(); !slices.Equal(went, []string{own, own}) {
			t.Errorf("dialled %v", went)
		}
		// There it stays.
		<-time.After(12 * time.Hour)
		if went := w.went(); len(went) != 0 {
			t.Errorf("dialled %v from the own port", went)
		}
		if err := r.stop(); err != nil {
			t.Error(err)
		}
	})
}
