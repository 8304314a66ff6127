package mqttgw

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pallas/mqttgw/wire"
	"pallas/projections"
)

// BenchmarkReports sends reports of 200 devices over mutual TLS until each has
// its receipt, that is until the log has them, and then until the read model
// that follows the log has them too. Every report is news and leads to an event.
// The metric to watch is the ratio to raw JetStream publishes, of messages about
// as large, in the same broker and the same run.
func BenchmarkReports(b *testing.B) {
	const devices, window = 200, 64
	for _, batch := range []int{1, 16} {
		b.Run(fmt.Sprintf("batch=%d", batch), func(b *testing.B) {
			d := newDoor(b, func(c *Config) {
				c.Rate, c.Burst = 1e6, 1e6
				c.Settings.Window = window
			})
			clients := make([]*client, devices)
			for i := range clients {
				clients[i], _ = d.device().connect(wireHello())
			}
			visible := follow(b, d)
			next := uint64(1)
			b.ResetTimer()
			b.ReportAllocs()
			began := time.Now()
			for b.Loop() {
				var wg sync.WaitGroup
				for _, c := range clients {
					wg.Go(func() {
						for i := 0; i < window; i += batch {
							reports := make([]wire.Report, batch)
							for j := range reports {
								seq := next + uint64(i+j)
								reports[j] = vm(seq, "vm-1", fmt.Sprintf("name-%d", seq))
							}
							c.report(reports...)
						}
						c.receipt(next + window - 1)
					})
				}
				wg.Wait()
				next += window
			}
			reports := float64(next-1) * devices / time.Since(began).Seconds()
			visible()
			shown := float64(next-1) * devices / time.Since(began).Seconds()
			b.StopTimer()
			raw := rawPublishes(b, d, int(min((next-1)*devices, 300_000)))
			b.ReportMetric(reports, "reports/s")
			b.ReportMetric(shown, "visible/s")
			b.ReportMetric(raw, "raw/s")
			b.ReportMetric(reports/raw, "reports/raw")
			b.ReportMetric(shown/raw, "visible/raw")
			b.ReportMetric(0, "ns/op")
			if got := d.refusals("overload") + d.refusals("flood") + d.refusals("gap"); got > 0 {
				b.Errorf("%d packets were dropped", got)
			}
		})
	}
}

// follow runs a read model beside the door; visible waits until it has all of
// the log.
func follow(b *testing.B, d *door) (visible func()) {
	db := must(projections.Open(b.Context(), projections.Config{
		Path: filepath.Join(b.TempDir(), "readmodel.db"), Log: slog.New(slog.DiscardHandler),
	}))(b)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- db.Run(ctx, d.store) }()
	b.Cleanup(func() {
		cancel()
		check(b, <-done)
		check(b, db.Close())
	})
	return func() {
		last := must(d.store.Last(b.Context()))(b)
		check(b, db.Wait(b.Context(), last))
	}
}

// rawPublishes returns how many messages a second JetStream takes from one
// asynchronous publisher.
func rawPublishes(b *testing.B, d *door, n int) float64 {
	nc := must(d.broker.Conn("raw"))(b)
	js := must(jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(4000)))(b)
	_, err := js.CreateStream(b.Context(), jetstream.StreamConfig{
		Name: "RAW", Subjects: []string{"raw.*"}, Compression: jetstream.S2Compression,
	})
	check(b, err)
	payload := make([]byte, 250)
	began := time.Now()
	for i := range n {
		_, err := js.PublishMsgAsync(&nats.Msg{Subject: fmt.Sprintf("raw.%d", i%200), Data: payload})
		check(b, err)
	}
	<-js.PublishAsyncComplete()
	return float64(n) / time.Since(began).Seconds()
}

// BenchmarkConnect measures whole connects: handshake, callout, subscription,
// Hello and Welcome.
func BenchmarkConnect(b *testing.B) {
	d := newDoor(b)
	dev := d.device()
	b.ReportAllocs()
	for b.Loop() {
		c, _ := dev.connect(wireHello())
		b.StopTimer()
		c.leave()
		b.StartTimer()
	}
}
