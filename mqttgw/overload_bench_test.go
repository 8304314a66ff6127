package mqttgw

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"pallas/mqttgw/wire"
)

// BenchmarkFlood has 200 devices report 2,000 changes a second, and then beside
// them one that has a good certificate and sends as fast as it can, coming back
// as soon as it is closed. p50-ms and p99-ms are the others' lag until a change
// is visible, quiet-p50-ms and quiet-p99-ms the same before the flood.
func BenchmarkFlood(b *testing.B) {
	report := must(wire.EncodeUp(wire.Up{Version: wire.Version, Epoch: 1, Reports: []wire.Report{vm(9, "vm-1", "x")}}))(b)
	hello := must(wire.EncodeUp(wire.Up{Version: wire.Version, Hello: &wire.Hello{Agent: "flood", Epoch: 1, First: 1, Next: 1, Time: time.Now()}}))(b)
	for _, c := range []struct {
		name    string
		payload []byte
	}{{"reports", report}, {"hello", hello}, {"oversize", make([]byte, 2*devicePayload)}} {
		b.Run(c.name, func(b *testing.B) {
			d := newDoor(b, func(c *Config) { c.Settings.Window, c.Log = 64, slog.New(slog.DiscardHandler) })
			f := newFleet(b, d, 200)
			bad := d.device()
			visible := follow(b, d)
			lags := visible.sample(b, d, f.ids[:benchSampled])
			others := func() lag {
				f.report(order{For: 2 * benchFor, Batch: 1, Window: 64, Rate: 2000})
				visible.wait()
				return lags()
			}
			var quiet, beside lag
			sent := 0
			for b.Loop() {
				quiet = append(quiet, others()...)
				ctx, cancel := context.WithCancel(b.Context())
				var flood sync.WaitGroup
				flood.Go(func() { sent += bad.flood(ctx, c.payload) })
				beside = append(beside, others()...)
				cancel()
				flood.Wait()
			}
			b.ReportMetric(quiet.at(50), "quiet-p50-ms")
			b.ReportMetric(quiet.at(99), "quiet-p99-ms")
			b.ReportMetric(beside.at(50), "p50-ms")
			b.ReportMetric(beside.at(99), "p99-ms")
			b.ReportMetric(beside.at(50)/quiet.at(50), "p50-of-quiet")
			b.ReportMetric(beside.at(99)/quiet.at(99), "p99-of-quiet")
			b.ReportMetric(float64(sent), "flooded")
			b.ReportMetric(float64(d.refusals("flood")), "dropped")
			b.ReportMetric(counted(b, d.gateway.punished), "penalties")
			b.ReportMetric(float64(d.refusals(reasonPenalty)), "kept-out")
			b.ReportMetric(0, "ns/op")
			if counted(b, d.gateway.punished) == 0 {
				b.Error("the flood had no consequence")
			}
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
