package jsstore_test

import (
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pallas/events"
	"pallas/events/eventstest"
	"pallas/events/jsstore"
)

// benchDecision is a decision of a common size: a virtual machine that was
// powered on.
func benchDecision(s events.Subject) events.Decision {
	power, ips := events.PowerOn, []string{"10.17.0.11"}
	return eventstest.Decide(s, events.VMChanged{
		VM: "52c1a7d0-4b8e-9f31-0d62-7e5a4c3b2a19", Patch: events.VMPatch{Power: &power, IPs: &ips},
	})
}

// BenchmarkAppend compares an append, with its encoding, expected revision and
// deduplication, with the ceiling: a synchronous JetStream publish of the same
// bytes, without any of that, to a stream of the same configuration.
func BenchmarkAppend(b *testing.B) {
	for _, writers := range []int{1, 64} {
		b.Run(fmt.Sprintf("raw/writers=%d", writers), func(b *testing.B) {
			srv, _ := serve(b, b.TempDir())
			nc := connect(b, srv)
			open(b, nc)
			js := jetStream(b, nc)
			data, err := events.Encode(benchDecision("ev.inventory.x"))
			if err != nil {
				b.Fatal(err)
			}
			spread(b, writers, func(subject events.Subject, last uint64) (uint64, error) {
				ack, err := js.Publish(b.Context(), string(subject), data)
				if err != nil {
					return 0, err
				}
				return ack.Sequence, nil
			})
		})
		b.Run(fmt.Sprintf("append/writers=%d", writers), func(b *testing.B) {
			srv, _ := serve(b, b.TempDir())
			s := open(b, connect(b, srv))
			spread(b, writers, func(subject events.Subject, last uint64) (uint64, error) {
				a, err := s.Append(b.Context(), last, benchDecision(subject))
				return a.Position, err
			})
		})
	}
}

// spread runs write from so many writers at once, each on 100 aggregates of its
// own.
func spread(b *testing.B, writers int, write func(s events.Subject, last uint64) (uint64, error)) {
	const each = 100
	var next atomic.Int64
	run := func(more func() bool) {
		w := next.Add(1)
		subjects, last := make([]events.Subject, each), make([]uint64, each)
		for i := range subjects {
			subjects[i] = events.Subject(fmt.Sprintf("ev.inventory.device-%d-%d", w, i))
		}
		for i := 0; more(); i = (i + 1) % each {
			var err error
			if last[i], err = write(subjects[i], last[i]); err != nil {
				b.Error(err)
				return
			}
		}
	}
	b.ReportAllocs()
	if writers == 1 {
		run(b.Loop)
		return
	}
	b.SetParallelism(writers)
	b.RunParallel(func(pb *testing.PB) { run(pb.Next) })
}

// BenchmarkLoad loads an aggregate of 20 decisions among 2,000 aggregates.
func BenchmarkLoad(b *testing.B) {
	s, subjects := filledStore(b, 2000, 20)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		n := 0
		for _, err := range s.Load(b.Context(), subjects[i%len(subjects)], 0) {
			if err != nil {
				b.Fatal(err)
			}
			n++
		}
		if n != 20 {
			b.Fatalf("%d records", n)
		}
	}
}

// BenchmarkRevision asks for an aggregate's revision.
func BenchmarkRevision(b *testing.B) {
	s, subjects := filledStore(b, 2000, 5)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if rev, err := s.Revision(b.Context(), subjects[i%len(subjects)]); err != nil || rev == 0 {
			b.Fatal(rev, err)
		}
	}
}

// BenchmarkReplay reads the whole log of 40,000 decisions; the metric to look
// at is records/s.
func BenchmarkReplay(b *testing.B) {
	s, _ := filledStore(b, 2000, 20)
	const records = 2000 * 20
	for _, how := range []string{"read", "follow"} {
		b.Run(how, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				seq := s.Read(b.Context(), events.Filter{})
				if how == "follow" {
					seq = s.Follow(b.Context(), events.Filter{})
				}
				n := 0
				for _, err := range seq {
					if err != nil {
						b.Fatal(err)
					}
					if n++; n == records {
						break
					}
				}
				if n != records {
					b.Fatalf("%d records", n)
				}
			}
			b.ReportMetric(records*float64(b.N)/b.Elapsed().Seconds(), "records/s")
		})
	}
}

// filledStore has so many aggregates of so many decisions each.
func filledStore(b *testing.B, aggregates, decisions int) (*jsstore.Store, []events.Subject) {
	b.Helper()
	srv, _ := serve(b, b.TempDir())
	nc := connect(b, srv)
	s := open(b, nc)
	js, err := jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(1000))
	if err != nil {
		b.Fatal(err)
	}
	subjects := make([]events.Subject, aggregates)
	for i := range subjects {
		subjects[i] = events.Subject(fmt.Sprintf("ev.inventory.device-%d", i))
	}
	for round := range decisions {
		for i, subject := range subjects {
			data, err := events.Encode(benchDecision(subject))
			if err != nil {
				b.Fatal(err)
			}
			before := 0
			if round > 0 {
				before = (round-1)*aggregates + i + 1
			}
			m := &nats.Msg{Subject: string(subject), Data: data, Header: nats.Header{
				jetstream.ExpectedLastSubjSeqHeader: {strconv.Itoa(before)},
			}}
			if _, err := js.PublishMsgAsync(m, jetstream.WithStallWait(time.Minute)); err != nil {
				b.Fatal(err)
			}
		}
	}
	<-js.PublishAsyncComplete()
	if last, err := s.Last(b.Context()); err != nil || last != uint64(aggregates*decisions) {
		b.Fatalf("the log ends at %d: %v", last, err)
	}
	return s, subjects
}
