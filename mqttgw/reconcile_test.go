package mqttgw

import (
	"testing"

	"pallas/mqttgw/wire"
)

func TestConnectionsAreListedWhenTheirNumberIsWrong(t *testing.T) {
	d := newDoor(t)
	dev := d.device()
	dev.connect(wire.Hello{Epoch: 1, First: 1, Next: 1})
	conns := func() (n int) {
		for _, sh := range d.gateway.shards {
			n += sh.connections()
		}
		return n
	}
	eventually(t, "both know of the device", func() bool { return conns() == 1 && d.broker.MQTTConns() == 1 })
	listed := d.gateway.reconciled
	for range 3 {
		d.gateway.compare(t.Context())
	}
	if !d.gateway.reconciled.Equal(listed) {
		t.Error("connections were listed although their number is right")
	}
	// As if an event was lost.
	d.gateway.noteConn(d.identity().id, 1<<40, "192.0.2.1")
	d.gateway.compare(t.Context())
	if conns() != 2 {
		t.Fatalf("%d connections, want 2: one may be on its way", conns())
	}
	d.gateway.compare(t.Context())
	eventually(t, "the connection is forgotten", func() bool { return conns() == 1 })
}
