package netlab_test

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"flag"
	"io"
	"log"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"pallas/internal/config"
	"pallas/internal/netlab"
	"pallas/internal/server"
	"pallas/mqttgw/pki"
)

var (
	factor = flag.Int("netlab.factor", 120, "how much faster than life the day of BenchmarkDay is, at most 120")
	parts  = flag.Int("netlab.parts", 5, "into how many equal parts, of which one is run, the day is divided: 1, 2, 5 or 10")
)

const (
	day        = 24 * time.Hour
	dayPing    = 4 * time.Minute
	dayPoll    = time.Minute
	reconnects = 10
	dayChanges = 50
	dayVMs     = 20
)

// BenchmarkDay counts the IP bytes, both ways, of a device's day at keepalive
// 240 s with 10 reconnects, idle and busy, beside a poller of HTTPS that posts
// the whole state as JSON each minute. The day is compressed: all its pings,
// reconnects, changes and polls happen, in less time. One part of several is
// run, and counts as many times. The broker rounds the keepalive's grace down
// to seconds, so that below 2 s devices would be cut off.
func BenchmarkDay(b *testing.B) {
	needLinks(b)
	b.ReportMetric(0, "ns/op")
	compressed, part := day/time.Duration(*factor**parts), uint64(*parts)
	m := newManager(b, func(c *server.Config) { c.Devices.KeepAlive = config.Duration(dayPing / time.Duration(*factor)) })
	join := m.Join(3)
	near := netlab.Profile{RTT: 50 * time.Millisecond}
	dayOf := func(narrow bool) (*device, *netlab.Link) {
		d, l := newDevice(b, join, dayVMs), newLink(b, near)
		d.through(l, narrow)
		d.start()
		b.Cleanup(func() { d.stop(b) })
		// The keepalive is for the connection after the first welcome.
		if err := within(b.Context(), time.Minute, func() bool { return d.agent.Stats().Next > dayVMs && d.settled() }); err != nil {
			b.Fatal(err)
		}
		l.Break()
		return d, l
	}
	idle, idleLink := dayOf(false)
	_, narrowLink := dayOf(true)
	busy, busyLink := dayOf(false)
	state, err := busy.host.Observe(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	body, err := json.Marshal(state)
	if err != nil {
		b.Fatal(err)
	}
	poll, url := poller(b)
	keptLink, newerLink := newLink(b, near), newLink(b, near)
	for b.Loop() {
		var running sync.WaitGroup
		var idleBytes, narrowBytes, busyBytes, keptBytes, newBytes, connects uint64
		measure := func(l *netlab.Link, out *uint64, f func()) {
			running.Go(func() {
				before := total(l)
				f()
				*out = part * (total(l) - before)
			})
		}
		// each does n things in the course of the day.
		each := func(n int, f func(i int)) {
			n /= *parts
			tick := time.NewTicker(compressed / time.Duration(n))
			defer tick.Stop()
			for i := range n {
				<-tick.C
				f(i)
			}
		}
		measure(idleLink, &idleBytes, func() {
			each(reconnects, func(int) {
				before, sessions := total(idleLink), idle.agent.Stats().Sessions
				idleLink.Break()
				if err := within(b.Context(), time.Minute, func() bool { s := idle.agent.Stats(); return s.Connected && s.Sessions > sessions }); err != nil {
					b.Error(err)
				}
				connects += part * (total(idleLink) - before)
			})
		})
		measure(narrowLink, &narrowBytes, func() { each(reconnects, func(int) { narrowLink.Break() }) })
		measure(busyLink, &busyBytes, func() {
			var changing sync.WaitGroup
			changing.Go(func() { each(reconnects, func(int) { busyLink.Break() }) })
			each(dayChanges, func(i int) {
				if err := busy.rename(b.Context(), i); err != nil {
					b.Error(err)
				}
			})
			changing.Wait()
		})
		polls := int(day / dayPoll)
		measure(keptLink, &keptBytes, func() {
			client := poll(keptLink, false)
			each(polls, func(int) { post(b, client, url, body) })
			client.CloseIdleConnections()
		})
		measure(newerLink, &newBytes, func() {
			client := poll(newerLink, true)
			each(polls, func(int) { post(b, client, url, body) })
		})
		running.Wait()
		before := total(idleLink)
		if err := idle.task(b.Context(), m, time.Minute); err != nil {
			b.Error(err)
		}
		if err := within(b.Context(), time.Minute, idle.settled); err != nil {
			b.Error(err)
		}
		kB := func(n uint64) float64 { return float64(n) / 1000 }
		b.ReportMetric(kB(idleBytes), "idle-kB/day")
		b.ReportMetric(kB(narrowBytes), "idle-narrow-kB/day")
		b.ReportMetric(kB(busyBytes), "busy-kB/day")
		b.ReportMetric(kB(keptBytes), "poll-kB/day")
		b.ReportMetric(kB(newBytes), "poll-new-kB/day")
		b.ReportMetric(float64(idleBytes)/float64(keptBytes), "idle-of-poll")
		b.ReportMetric(float64(connects)/reconnects, "B/connect")
		b.ReportMetric(float64(idleBytes-connects)/float64(day/dayPing), "B/ping")
		b.ReportMetric((float64(busyBytes)-float64(idleBytes))/dayChanges, "B/change")
		b.ReportMetric(float64(total(idleLink)-before), "B/task")
	}
}

// total is the traffic of a link in bytes.
func total(l *netlab.Link) uint64 {
	up, down := l.Counts()
	return up.Bytes + down.Bytes
}

// poller runs an HTTPS server and returns what makes clients of it.
func poller(b *testing.B) (client func(l *netlab.Link, fresh bool) *http.Client, url string) {
	b.Helper()
	ca, err := pki.Create(filepath.Join(b.TempDir(), "ca"), time.Now(), "Poll CA")
	if err != nil {
		b.Fatal(err)
	}
	cert, err := ca.IssueServer([]string{"127.0.0.1"}, time.Now(), time.Hour)
	if err != nil {
		b.Fatal(err)
	}
	ln, err := net.Listen("tcp4", "0.0.0.0:9443")
	if err != nil {
		b.Fatal(err)
	}
	srv := &http.Server{
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}},
		ErrorLog:  log.New(io.Discard, "", 0), ReadHeaderTimeout: time.Minute,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"tasks":[]}`)
		}),
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = srv.ServeTLS(ln, "", "") })
	b.Cleanup(func() { srv.Close(); serving.Wait() })
	return func(l *netlab.Link, fresh bool) *http.Client {
		return &http.Client{Transport: &http.Transport{
			DialContext: l.DialContext(net.Dialer{KeepAlive: -1}), DisableKeepAlives: fresh,
			TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: ca.Pool(), ClientSessionCache: tls.NewLRUClientSessionCache(1)},
		}}
	}, "https://127.0.0.1:9443/state"
}

func post(b *testing.B, client *http.Client, url string, body []byte) {
	r, err := client.Post(url, "application/json", bytes.NewReader(body))
	if err != nil {
		b.Error(err)
		return
	}
	defer r.Body.Close()
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		b.Error(err)
	}
}
