package link_test

import (
	"testing"
	"time"

	"pallas/agent/hypervisor/fake"
	"pallas/agent/store"
	"pallas/mqttgw/wire"
)

// addMachines puts a report for each of ten machines into the outbox.
func (r *rig) addMachines() {
	r.t.Helper()
	snap, err := fake.Sample("esx", 10).Observe(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.store.Update(func(tx *store.Tx) error {
		for _, vm := range snap.VMs {
			if _, err := tx.Report(wire.Report{Time: time.Now(), VM: &vm}); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		r.t.Fatal(err)
	}
}

// wantDeflated demands that so many packets came deflated on this connection.
func (p *peer) wantDeflated(want int64) {
	p.r.t.Helper()
	if got := p.deflated.Load(); got != want {
		p.r.t.Fatalf("%d packets came deflated, want %d", got, want)
	}
}

func deflates(w *wire.Welcome) { w.Settings.Deflate = true }

// Large packets come deflated once a welcome has permitted it, and only on its
// connection.
func TestDeflate(t *testing.T) {
	bubble("where it is permitted", t, func(_ *testing.T, r *rig) {
		p := r.connected()
		p.hello()
		p.welcome(1) // a manager that does not know of it
		r.addMachines()
		p.sent(time.Second, "1-10")
		p.receipt(10)
		p.wantDeflated(0)
		p.conn.Close()

		p = r.connected()
		p.hello()
		p.welcome(11, deflates)
		r.addMachines()
		p.sent(time.Second, "11-20")
		p.wantDeflated(1)
		p.receipt(20)
		r.add(1) // too small to gain
		p.sent(time.Second, "21-21")
		p.receipt(21)
		p.wantDeflated(1)

		// Who greets may be another manager.
		p.down(wire.Down{Greet: true})
		p.hello()
		p.welcome(22)
		r.addMachines()
		p.sent(time.Second, "22-31")
		p.wantDeflated(1)
		p.receipt(31)
	})
}

// A manager that permitted it and does not understand it gets the same plain.
func TestDeflateRefused(t *testing.T) {
	bubble("plain again", t, func(_ *testing.T, r *rig) {
		p := r.connected()
		p.hello()
		p.welcome(1, deflates)
		r.addMachines()
		p.sent(100*time.Millisecond, "1-10")
		p.wantDeflated(1)
		p.down(wire.Down{Error: &wire.Error{Code: wire.ErrorMalformed, Message: "not a map"}})
		p.sent(time.Second, "1-10")
		p.receipt(10)
		p.wantDeflated(1)
	})
}
