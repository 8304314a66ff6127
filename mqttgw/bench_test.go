package mqttgw

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"pallas/events"
	"pallas/projections"
)

const (
	// benchFor is how long one measurement goes on.
	benchFor = 5 * time.Second
	// benchSampled is of how many devices the lag is taken.
	benchSampled = 20
)

// BenchmarkReports has devices report changes of a virtual machine's power over
// mutual TLS, from a process of their own. "in-log" is until each device has its
// receipt, "visible" until the read model that follows the log has them too.
// Every report is news and leads to an event.
//
// The ceilings, in the same run: raw asynchronous publishes of messages about
// as large to the same broker, and raw batched updates of the same rows by the
// same SQLite. The lags are from a report to its being visible: at half of the
// rate, counted from when the report was due, and at the full one.
func BenchmarkReports(b *testing.B) {
	for _, c := range []struct{ conns, window int }{{200, 64}, {10_000, 8}} {
		for _, batch := range []int{1, 16} {
			b.Run(fmt.Sprintf("conns=%d/batch=%d", c.conns, batch), func(b *testing.B) {
				d := newDoor(b, unlimited)
				f := newFleet(b, d, c.conns)
				visible := follow(b, d)
				lags := visible.sample(b, d, f.ids[:benchSampled])
				before := d.last()
				var total tally
				began := time.Now()
				for b.Loop() {
					total.add(f.report(order{For: benchFor, Batch: batch, Window: max(c.window, batch)}))
				}
				visible.wait()
				shown := float64(total.Reports) / time.Since(began).Seconds()
				full := lags()
				decisions, receipts := d.last()-before, counted(b, d.gateway.receipts)
				logged := float64(total.Reports) / total.Seconds
				f.report(order{For: benchFor, Batch: batch, Window: 64, Rate: logged / 2})
				visible.wait()
				half := lags()
				raw := rawPublishes(b, d, 300_000)
				rows := rawUpdates(b, f.ids, 300_000)
				b.ReportMetric(logged, "in-log/s")
				b.ReportMetric(shown, "visible/s")
				b.ReportMetric(raw, "raw/s")
				b.ReportMetric(logged/raw, "in-log-of-raw")
				b.ReportMetric(shown/raw, "visible-of-raw")
				b.ReportMetric(rows, "sqlite-raw/s")
				b.ReportMetric(shown/rows, "visible-of-sqlite")
				b.ReportMetric(half.at(50), "p50-ms")
				b.ReportMetric(half.at(99), "p99-ms")
				b.ReportMetric(full.at(50), "full-p50-ms")
				b.ReportMetric(full.at(99), "full-p99-ms")
				b.ReportMetric(receipts/float64(total.Reports), "receipts/report")
				b.ReportMetric(float64(decisions)/float64(total.Reports), "decisions/report")
				b.ReportMetric(0, "ns/op")
				nothingDropped(b, d)
			})
		}
	}
}

// BenchmarkBatching shows what taking reports together gains, and how many
// devices should be served at the same time: with a window of 1 each report is
// a packet, a decision and a receipt of its own.
func BenchmarkBatching(b *testing.B) {
	for _, window := range []int{1, 8, 64} {
		for _, workers := range []int{1, 4, 16, 64} {
			b.Run(fmt.Sprintf("window=%d/workers=%d", window, workers), func(b *testing.B) {
				d := newDoor(b, unlimited, func(c *Config) { c.Workers = workers })
				f := newFleet(b, d, 200)
				visible := follow(b, d)
				before := d.last()
				var total tally
				began := time.Now()
				for b.Loop() {
					total.add(f.report(order{For: benchFor / 2, Batch: 1, Window: window}))
				}
				visible.wait()
				shown := float64(total.Reports) / time.Since(began).Seconds()
				decisions := d.last() - before
				b.ReportMetric(float64(total.Reports)/total.Seconds, "in-log/s")
				b.ReportMetric(shown, "visible/s")
				b.ReportMetric(float64(decisions)/float64(total.Reports), "decisions/report")
				b.ReportMetric(counted(b, d.gateway.receipts)/float64(total.Reports), "receipts/report")
				b.ReportMetric(0, "ns/op")
				nothingDropped(b, d)
			})
		}
	}
}

// unlimited lets devices send as fast as they can.
func unlimited(c *Config) {
	c.Rate, c.Burst = 1e6, 1e6
	c.Settings.Window = 64
	c.Log = slog.New(slog.DiscardHandler)
}

func nothingDropped(b *testing.B, d *door) {
	b.Helper()
	for _, reason := range []string{"overload", "flood", "gap", "no_hello", "failed"} {
		if n := d.refusals(reason); n > 0 {
			b.Errorf("%d packets were dropped: %s", n, reason)
		}
	}
}

// counted returns a counter's value.
func counted(b testing.TB, c prometheus.Collector) float64 {
	b.Helper()
	r := prometheus.NewRegistry()
	check(b, r.Register(c))
	families := must(r.Gather())(b)
	return families[0].GetMetric()[0].GetCounter().GetValue()
}

// readModel follows the log beside the door.
type readModel struct {
	b  *testing.B
	d  *door
	db *projections.DB
}

// follow runs a read model beside the door.
func follow(b *testing.B, d *door) readModel {
	b.Helper()
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
	r := readModel{b, d, db}
	r.wait()
	return r
}

// wait returns when the read model has all of the log.
func (r readModel) wait() {
	r.b.Helper()
	check(r.b, r.db.Wait(r.b.Context(), r.d.last()))
}

// lag holds times from reports to their being visible.
type lag []time.Duration

// at returns a percentile in milliseconds.
func (l lag) at(percent int) float64 {
	if len(l) == 0 {
		return 0
	}
	slices.Sort(l)
	return float64(l[(len(l)-1)*percent/100].Microseconds()) / 1000
}

// sample times the reports of some devices, by the instant they say they are
// from. What it returns takes the times so far.
func (r readModel) sample(b *testing.B, d *door, devices []events.DeviceID) (take func() lag) {
	b.Helper()
	f := events.Filter{After: d.last()}
	for _, id := range devices {
		f.Subjects = append(f.Subjects, string(events.InventorySubject(id)))
	}
	var mu sync.Mutex
	var list lag
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		for rec, err := range d.store.Follow(ctx, f) {
			if err != nil || r.db.Wait(ctx, rec.Position) != nil {
				return // the benchmark is over
			}
			now := time.Now()
			mu.Lock()
			for _, e := range rec.Entries {
				if e.DeviceTime != nil {
					list = append(list, now.Sub(*e.DeviceTime))
				}
			}
			mu.Unlock()
		}
	})
	b.Cleanup(func() { cancel(); done.Wait() })
	return func() lag {
		mu.Lock()
		defer mu.Unlock()
		out := list
		list = nil
		return out
	}
}

// rawPublishes returns how many messages a second JetStream takes from one
// asynchronous publisher.
func rawPublishes(b *testing.B, d *door, n int) float64 {
	b.Helper()
	nc := must(d.broker.Conn("raw"))(b)
	js := must(jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(4000)))(b)
	_, err := js.CreateStream(b.Context(), jetstream.StreamConfig{
		Name: "RAW", Subjects: []string{"raw.*"}, Compression: jetstream.S2Compression,
	})
	check(b, err)
	payload := make([]byte, 250)
	began := time.Now()
	for i := range n {
		_, err := js.PublishMsgAsync(&nats.Msg{Subject: fmt.Sprintf("raw.%d", i%200), Data: payload}, jetstream.WithStallWait(patience))
		check(b, err)
	}
	<-js.PublishAsyncComplete()
	return float64(n) / time.Since(began).Seconds()
}

// rawUpdates returns how many rows a second SQLite changes as the reports of
// the benchmark do, 1,000 to a transaction, by a program that has the values in
// memory.
func rawUpdates(b *testing.B, ids []events.DeviceID, n int) float64 {
	b.Helper()
	path := filepath.Join(b.TempDir(), "raw.db")
	empty := must(projections.Open(b.Context(), projections.Config{Path: path, Log: slog.New(slog.DiscardHandler)}))(b)
	check(b, empty.Close())
	db := must(sql.Open("sqlite3", "file:"+path+"?_journal_mode=WAL&_synchronous=NORMAL&_cache_size=-65536"))(b)
	defer db.Close()
	db.SetMaxOpenConns(1)
	// The text index needs a function of the product's; a change of power does
	// not touch it.
	must(db.ExecContext(b.Context(), "DROP TRIGGER IF EXISTS vms_text"))(b)
	insert := must(db.PrepareContext(b.Context(), "INSERT INTO vms VALUES (?, 'vm-1', 'name', 'name', 'off', 'unknown', 0, 0, '', '', '', '[]', '[]', '[]', NULL, 1, 1, 1)"))(b)
	defer insert.Close()
	for _, id := range ids {
		must(insert.ExecContext(b.Context(), string(id)))(b)
	}
	update := must(db.PrepareContext(b.Context(), "UPDATE vms SET changed_at = ?, changed_position = ?, power = ? WHERE device = ? AND id = 'vm-1'"))(b)
	defer update.Close()
	begin := must(db.PrepareContext(b.Context(), "BEGIN IMMEDIATE"))(b)
	defer begin.Close()
	commit := must(db.PrepareContext(b.Context(), "COMMIT"))(b)
	defer commit.Close()
	began := time.Now()
	for i := range n {
		if i%1000 == 0 {
			must(begin.ExecContext(b.Context()))(b)
		}
		must(update.ExecContext(b.Context(), i, i, powers[i/len(ids)%2], string(ids[i%len(ids)])))(b)
		if i%1000 == 999 || i == n-1 {
			must(commit.ExecContext(b.Context()))(b)
		}
	}
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
