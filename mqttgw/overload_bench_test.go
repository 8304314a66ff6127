package mqttgw

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"pallas/mqttgw/wire"
)

// BenchmarkFlood has 200 devices report 2,000 changes a second, and beside them
// one that has a good certificate and sends as fast as it can, coming back as
// soon as it is closed. p50-ms and p99-ms are the others' lag until a change is
// visible; "quiet" is without the flood, to compare.
func BenchmarkFlood(b *testing.B) {
	report := must(wire.EncodeUp(wire.Up{Version: wire.Version, Epoch: 1, Reports: []wire.Report{vm(9, "vm-1", "x")}}))(b)
	hello := must(wire.EncodeUp(wire.Up{Version: wire.Version, Hello: &wire.Hello{Agent: "flood", Epoch: 1, First: 1, Next: 1, Time: time.Now()}}))(b)
	for _, c := range []struct {
		name    string
		payload []byte
	}{{"quiet", nil}, {"reports", report}, {"hello", hello}, {"oversize", make([]byte, 2*devicePayload)}} {
		b.Run(c.name, func(b *testing.B) {
			d := newDoor(b, func(c *Config) { c.Settings.Window, c.Log = 64, slog.New(slog.DiscardHandler) })
			f := newFleet(b, d, 200)
			visible := follow(b, d)
			lags := visible.sample(b, d, f.ids[:benchSampled])
			ctx, cancel := context.WithCancel(b.Context())
			defer cancel()
			var flood sync.WaitGroup
			defer flood.Wait()
			sent := 0
			if c.payload != nil {
				bad := d.device()
				flood.Go(func() { sent = bad.flood(ctx, c.payload) })
			}
			for b.Loop() {
				f.report(order{For: benchFor, Batch: 1, Window: 64, Rate: 2000})
			}
			visible.wait()
			cancel()
			flood.Wait()
			l := lags()
			b.ReportMetric(l.at(50), "p50-ms")
			b.ReportMetric(l.at(99), "p99-ms")
			b.ReportMetric(float64(sent), "flooded")
			b.ReportMetric(float64(d.refusals("flood")), "dropped")
			b.ReportMetric(counted(b, d.gateway.punished), "penalties")
			b.ReportMetric(float64(d.refusals(reasonPenalty)), "kept-out")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// flood sends one packet as often as it can, and returns how often.
func (dev *device) flood(ctx context.Context, payload []byte) (sent int) {
	packet := mqttPacket(0x30, append(mqttString(wire.UpTopic(string(dev.id))), payload...))
	many := 1 + 64<<10/len(packet)
	var burst []byte
	for range many {
		burst = append(burst, packet...)
	}
	for ctx.Err() == nil {
		c := dev.dial(connectOptions{client: string(dev.id)})
		go func() {
			for range c.in { // what it is told does not hold it up
				continue
			}
		}()
		for c.err == nil && c.code == 0 && ctx.Err() == nil {
			if _, err := c.conn.Write(burst); err != nil {
				break
			}
			sent += many
		}
		_ = c.conn.Close()
		<-c.closed
		close(c.in)
	}
	return sent
}
