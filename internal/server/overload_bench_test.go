package server_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pallas/internal/httpapi"
	"pallas/internal/server"
	"pallas/internal/servertest"
)

// overloadFor is how long a manager is given too much.
const overloadFor = 5 * time.Second

// BenchmarkOverload gives a manager, in a process of its own, more than is its
// share, and measures what is left for the others.
func BenchmarkOverload(b *testing.B) {
	b.Run("ingest", overloadIngest)
	for _, rate := range []float64{0, httpapi.DefaultRate} {
		b.Run(fmt.Sprintf("requests/limit=%g", rate), func(b *testing.B) { overloadRequests(b, rate) })
	}
	for _, c := range []struct{ clients, stuck int }{{1, 0}, {200, 0}, {200, 20}} {
		b.Run(fmt.Sprintf("streams=%d/stuck=%d", c.clients, c.stuck), func(b *testing.B) { overloadStreams(b, c.clients, c.stuck) })
	}
}

// overloadRequests has one user ask a thousand times a second. p50-ms and
// p99-ms are of a probe of /readyz meanwhile.
func overloadRequests(b *testing.B, rate float64) {
	const offered = 1000
	m := spawned(b, func(c *server.Config) { c.HTTP.Rate = rate })
	get := getter(b, m)
	var answered, shed, failed atomic.Int64
	var probes times
	began, used := time.Now(), m.CPU()
	for b.Loop() {
		ctx, cancel := context.WithTimeout(b.Context(), overloadFor)
		var all sync.WaitGroup
		all.Go(func() {
			probes.every(ctx, 20*time.Millisecond, func() { _, _ = get(b.Context(), "/readyz") })
		})
		for range 50 {
			all.Go(func() {
				pace(ctx, 50*time.Second/offered, func() {
					switch status, err := get(ctx, "/api/v1/devices"); {
					case status == http.StatusOK:
						answered.Add(1)
					case status == http.StatusTooManyRequests:
						shed.Add(1)
					case ctx.Err() == nil:
						failed.Add(1)
						b.Logf("%d %v", status, err)
					}
				})
			})
		}
		all.Wait()
		cancel()
	}
	took := time.Since(began).Seconds()
	b.ReportMetric(float64(answered.Load())/took, "answered/s")
	b.ReportMetric(float64(shed.Load())/took, "shed/s")
	b.ReportMetric(float64(failed.Load()), "failed")
	b.ReportMetric((m.CPU()-used).Seconds()/took, "cpus")
	b.ReportMetric(probes.at(50), "p50-ms")
	b.ReportMetric(probes.at(99), "p99-ms")
	b.ReportMetric(0, "ns/op")
}

// overloadStreams has clients follow the events while 500 a second come, and
// others that open a stream and never read. p50-ms and p99-ms are from an
// event's decision to its arrival at one that reads.
func overloadStreams(b *testing.B, clients, stuck int) {
	m := spawned(b, func(c *server.Config) { c.HTTP.Rate = 0 })
	ctx, cancel := context.WithCancel(b.Context())
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	request := "GET /api/v1/events/stream HTTP/1.1\r\nHost: manager\r\nAuthorization: Bearer " + m.Token + "\r\n\r\n"
	open := func() net.Conn {
		raw, err := net.Dial("tcp", m.Config.HTTP.Listen)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = raw.Close() })
		if err := raw.(*net.TCPConn).SetReadBuffer(4096); err != nil {
			b.Fatal(err)
		}
		cfg := m.TLS()
		cfg.ServerName, cfg.NextProtos = "127.0.0.1", []string{"http/1.1"}
		conn := tls.Client(raw, cfg)
		if _, err := io.WriteString(conn, request); err != nil {
			b.Fatal(err)
		}
		return conn
	}
	for range stuck {
		open()
	}
	var lags times
	var received atomic.Int64
	for i := range clients {
		conn := open()
		context.AfterFunc(ctx, func() { _ = conn.Close() })
		in := bufio.NewReader(conn)
		for line := ""; !strings.HasPrefix(line, ": the stream is open"); {
			var err error
			if line, err = in.ReadString('\n'); err != nil {
				b.Fatal(err)
			}
		}
		all.Go(func() {
			for {
				line, err := in.ReadString('\n')
				if err != nil {
					return
				}
				data, ok := strings.CutPrefix(line, "data: ")
				if !ok {
					continue
				}
				received.Add(1)
				var e struct{ Time time.Time }
				if i < 10 && json.Unmarshal([]byte(data), &e) == nil {
					lags.add(time.Since(e.Time))
				}
			}
		})
	}
	var written atomic.Int64
	used, began := m.CPU(), time.Now()
	for b.Loop() {
		within, stop := context.WithTimeout(ctx, overloadFor)
		var writers sync.WaitGroup
		for range 10 {
			writers.Go(func() {
				pace(within, 20*time.Millisecond, func() {
					m.Join(1)
					written.Add(1)
				})
			})
		}
		writers.Wait()
		stop()
	}
	want := written.Load() * int64(clients)
	servertest.Eventually(b, time.Minute, func() error {
		if got := received.Load(); got < want {
			return fmt.Errorf("%d of %d events arrived", got, want)
		}
		return nil
	})
	took := time.Since(began).Seconds()
	b.ReportMetric(float64(written.Load())/took, "events/s")
	b.ReportMetric(float64(received.Load())/took, "delivered/s")
	b.ReportMetric((m.CPU()-used).Seconds()/took, "cpus")
	b.ReportMetric(float64(m.Memory("VmRSS"))/(1<<20), "MiB")
	b.ReportMetric(lags.at(50), "p50-ms")
	b.ReportMetric(lags.at(99), "p99-ms")
	b.ReportMetric(0, "ns/op")
}

func spawned(b *testing.B, change func(*server.Config)) *servertest.Manager {
	b.Helper()
	m := servertest.New(b, change)
	m.Spawn()
	return m
}

// getter returns what sends one GET and returns the status.
func getter(b *testing.B, m *servertest.Manager) func(ctx context.Context, path string) (int, error) {
	b.Helper()
	transport := &http.Transport{TLSClientConfig: m.TLS(), ForceAttemptHTTP2: true}
	b.Cleanup(transport.CloseIdleConnections)
	c := &http.Client{Transport: transport, Timeout: time.Minute}
	return func(ctx context.Context, path string) (int, error) {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+m.Config.HTTP.Listen+path, nil)
		if err != nil {
			return 0, err
		}
		r.Header.Set("Authorization", "Bearer "+m.Token)
		resp, err := c.Do(r)
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return resp.StatusCode, err
	}
}

// pace calls f at an interval until ctx is done.
func pace(ctx context.Context, interval time.Duration, f func()) {
	t := time.NewTicker(interval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			f()
		}
	}
}

// times are durations that several goroutines measure.
type times struct {
	mu   sync.Mutex
	list []time.Duration
}

func (t *times) add(d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.list = append(t.list, d)
}

// every times f at an interval.
func (t *times) every(ctx context.Context, interval time.Duration, f func()) {
	pace(ctx, interval, func() {
		began := time.Now()
		f()
		t.add(time.Since(began))
	})
}

// at returns a percentile in milliseconds.
func (t *times) at(percent int) float64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.list) == 0 {
		return 0
	}
	slices.Sort(t.list)
	return float64(t.list[(len(t.list)-1)*percent/100].Microseconds()) / 1000
}
