package server_test

import (
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"pallas/commands"
	"pallas/events"
	"pallas/events/jsstore"
	"pallas/events/labels"
	"pallas/mqttgw"
)

// BenchmarkDispatcher gives commands of 64 callers about 64 devices: loaded,
// decided, appended with the expected revision. The metric to watch is the
// ratio to a synchronous JetStream publish of as many bytes by as many callers,
// in the same run.
func BenchmarkDispatcher(b *testing.B) {
	const callers = 64
	broker, err := mqttgw.NewBroker(mqttgw.BrokerConfig{Dir: b.TempDir(), Sync: time.Second})
	if err != nil {
		b.Fatal(err)
	}
	if err := broker.Start(b.Context()); err != nil {
		b.Fatal(err)
	}
	defer broker.Shutdown()
	conn, err := broker.Conn("bench")
	if err != nil {
		b.Fatal(err)
	}
	store, err := jsstore.Open(b.Context(), jsstore.Config{Conn: conn})
	if err != nil {
		b.Fatal(err)
	}
	d, err := commands.New(commands.Config{Store: store})
	if err != nil {
		b.Fatal(err)
	}
	js, err := jetstream.New(conn)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := js.CreateStream(b.Context(), jetstream.StreamConfig{Name: "RAW", Subjects: []string{"raw.>"}, Compression: jetstream.S2Compression}); err != nil {
		b.Fatal(err)
	}
	ids := make([]events.DeviceID, callers)
	for i := range ids {
		ids[i] = events.DeviceID(fmt.Sprintf("6f1c2e8a-0d5b-4c67-9c3e-%012x", i))
		now := time.Now().UTC()
		if _, err := d.Do(b.Context(), commands.RegisterDevice{
			Device: ids[i], Name: "host", Token: events.TokenID(events.NewID()), AutoApprove: true, KeyHash: strings.Repeat("ab", 32), AgentVersion: "1",
			Certificate: events.CertificateIssued{Serial: "1", KeyHash: strings.Repeat("ab", 32), NotBefore: now, NotAfter: now.Add(time.Hour)},
		}, commands.Meta{Actor: events.DeviceActor(ids[i])}); err != nil {
			b.Fatal(err)
		}
	}
	var n atomic.Int64
	parallel := func(write func(caller, i int) error) float64 {
		var next atomic.Int64
		start, before := time.Now(), n.Load()
		b.SetParallelism(callers / 2)
		b.RunParallel(func(pb *testing.PB) {
			caller := int(next.Add(1)) % callers
			for i := 0; pb.Next(); i++ {
				if err := write(caller, i); err != nil {
					b.Error(err)
					return
				}
				n.Add(1)
			}
		})
		return float64(n.Load()-before) / time.Since(start).Seconds()
	}
	b.ReportAllocs()
	b.ResetTimer()
	done := parallel(func(caller, i int) error {
		_, err := d.Do(b.Context(), commands.UpdateDevice{Device: ids[caller], Name: new("host-" + strconv.Itoa(i))}, commands.Meta{Actor: "user:bench", Scope: new(labels.Everything())})
		return err
	})
	b.StopTimer()
	last, err := store.Last(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	size, err := store.Bytes(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	payload := make([]byte, size/last)
	raw := raw(b, js, callers, payload)
	b.ReportMetric(done, "commands/s")
	b.ReportMetric(raw, "raw/s")
	b.ReportMetric(done/raw, "commands/raw")
}

// raw publishes from so many callers for as many messages as the benchmark had.
func raw(b *testing.B, js jetstream.JetStream, callers int, payload []byte) float64 {
	total, errs := max(b.N, callers), make(chan error, callers)
	var left atomic.Int64
	left.Store(int64(total))
	start := time.Now()
	for c := range callers {
		go func() {
			for left.Add(-1) >= 0 {
				if _, err := js.Publish(b.Context(), fmt.Sprintf("raw.%d", c), payload); err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	for range callers {
		if err := <-errs; err != nil {
			b.Fatal(err)
		}
	}
	return float64(total) / time.Since(start).Seconds()
}
