package server_test

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pallas/events"
	"pallas/internal/client"
	"pallas/internal/config"
	"pallas/internal/server"
	"pallas/internal/servertest"
)

var (
	fleetIdle     = flag.Duration("fleet.idle", time.Minute, "how long BenchmarkConnections leaves connected devices alone")
	fleetDevices  = flag.Int("fleet.devices", 10_000, "devices of BenchmarkCommandLatency")
	fleetProfiles = flag.String("fleet.profiles", "", "folder for processor profiles of the manager while BenchmarkConnections has devices connect")
	fleetChanges  = flag.Float64("fleet.changes", 1000, "changes per second of BenchmarkCommandLatency/ingest")
)

// fleetSizes are the sizes of whole-process benchmarks.
var fleetSizes = []int{1000, 5000, 15_000}

// BenchmarkConnections measures what an idle device takes of a manager that is
// a process of its own. It is meant for -benchtime 1x. Memory is what is not
// mapped from files, less that of the same manager when it was empty.
func BenchmarkConnections(b *testing.B) {
	type point struct{ devices, anon float64 }
	var empty float64
	var points []point
	for _, devices := range fleetSizes {
		b.Run(strconv.Itoa(devices), func(b *testing.B) {
			n := float64(devices)
			f := newFleet(b, devices, func(c *server.Config) {
				// Nothing is written of the agents that bare clients replace.
				c.Devices.Grace = config.Duration(time.Hour)
				if *fleetProfiles != "" {
					c.Debug.Listen = freeAddr(b)
				}
			})
			f.rest()
			before, none := f.m.Metrics(), float64(f.m.Memory("RssAnon"))
			cpu := f.m.CPU()
			a := f.start()
			enrolled := f.m.CPU() - cpu
			peak := f.m.Memory("VmHWM")
			b.Logf("%d devices are connected; idle for %v", devices, *fleetIdle)
			// What the connecting left behind is done in the first half.
			pause(b.Context(), *fleetIdle/2)
			cpu, began := f.m.CPU(), time.Now()
			pause(b.Context(), *fleetIdle/2)
			idle := float64(f.m.CPU()-cpu) / float64(time.Since(began))
			anon, after := float64(f.m.Memory("RssAnon")), f.m.Metrics()
			more := func(name string) float64 { return (after[name] - before[name]) / n }
			r := a.stop()
			b.Logf("%.0f s to enrol and connect all, %d kB for an agent in %d processes", r.ConnectSeconds, r.End.AnonPerAgent/1000, r.Processes)

			f.rest()
			bare := f.bare()
			callers := f.callers(f.m.Config.MQTT.Listen)
			var connects, ceiling, spent float64
			rounds := max(1, 5000/devices)
			profiled := func() {}
			for i := range rounds {
				ceiling += f.connect(bare, callers, echoed) / float64(rounds)
				if i == 0 {
					profiled = f.profile(*fleetProfiles)
				}
				cpu = f.m.CPU()
				connects += f.connect(f.m.Config.MQTT.Listen, callers, welcomed) / float64(rounds)
				spent += float64(f.m.CPU()-cpu) / float64(rounds)
				f.rest()
			}
			profiled()
			b.ReportMetric((anon-none)/n/1000, "kB/conn")
			b.ReportMetric(more("go_memstats_heap_alloc_bytes")/1000, "heap-kB/conn")
			b.ReportMetric(more("go_memstats_stack_inuse_bytes")/1000, "stack-kB/conn")
			b.ReportMetric(more("go_goroutines"), "goroutines/conn")
			b.ReportMetric(100*idle, "cpu-idle-%")
			b.ReportMetric(ms(enrolled)/n, "cpu-ms/enrol")
			b.ReportMetric(spent/1e6/n, "cpu-ms/connect")
			b.ReportMetric(n/r.ConnectSeconds, "enrols/s")
			b.ReportMetric(connects, "connects/s")
			b.ReportMetric(ceiling, "bare/s")
			b.ReportMetric(connects/ceiling, "connects-of-bare")
			b.ReportMetric(float64(peak)/1e6, "peak-MB")
			b.ReportMetric(0, "ns/op")
			if points = append(points, point{n, anon - none}); len(points) == 1 {
				empty = none
			} else {
				first := points[0]
				slope := (anon - none - first.anon) / (n - first.devices)
				b.ReportMetric(slope/1000, "slope-kB/conn")
				b.ReportMetric((empty+first.anon+slope*(100_000-first.devices))/1e9, "GB-at-100k")
			}
		})
	}
}

// profile writes a processor profile of the manager, for about as long as its
// devices take to connect, into a folder; nothing for "". The result waits for
// it.
func (f *fleet) profile(dir string) (wait func()) {
	f.b.Helper()
	if dir == "" {
		return func() {}
	}
	done := make(chan error, 1)
	go func() {
		url := fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", f.m.Config.Debug.Listen, 2+f.devices/300)
		r, err := http.Get(url)
		if err != nil {
			done <- err
			return
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		done <- errors.Join(err, os.WriteFile(filepath.Join(dir, fmt.Sprintf("connect-%d.pprof", f.devices)), b, 0o644))
	}()
	return func() {
		f.b.Helper()
		if err := <-done; err != nil {
			f.b.Fatal(err)
		}
	}
}

// freeAddr is a port that nobody listens on at the moment.
func freeAddr(b *testing.B) string {
	b.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// BenchmarkStorm kills a manager with all devices connected and starts it
// again. Times are from the kill; the devices' own pauses are in them.
func BenchmarkStorm(b *testing.B) {
	for _, devices := range fleetSizes {
		b.Run(strconv.Itoa(devices), func(b *testing.B) {
			n := float64(devices)
			f := newFleet(b, devices)
			a := f.start("--change-rate", fmt.Sprint(n/100))
			pause(b.Context(), 10*time.Second)
			before, _ := a.now()
			killed, at := monotonic(), time.Now()
			f.m.Kill()
			f.m.Spawn()
			ready := since(killed)
			b.Logf("killed with %d connected, ready after %.1f s", devices, ready)
			// The agents find out one by one that the connection is gone.
			a.await(time.Minute, func(s simState) bool { return s.at > killed && s.Connected < devices/2 })
			most := a.await(20*time.Minute, func(s simState) bool { return 100*s.Connected >= 99*devices })
			all := a.await(20*time.Minute, func(s simState) bool { return s.Connected == devices })
			toMost, toAll := float64(most.at-killed)/1e9, float64(all.at-killed)/1e9
			b.Logf("99 %% after %.1f s, all after %.1f s", toMost, toAll)
			pause(b.Context(), 10*time.Second)
			peak, until := f.m.Memory("VmHWM"), time.Now()
			r := a.stop()
			f.rest()
			ceiling := f.connect(f.bare(), f.callers(f.m.Config.MQTT.Listen), echoed)
			f.m.Stop()

			presence, reports := f.logged(at, until)
			if reports != r.Reports.Made {
				b.Errorf("the log has %d reports, the agents made %d", reports, r.Reports.Made)
			}
			if presence != 0 {
				b.Errorf("the manager wrote %d changes of presence", presence)
			}
			rate := 0.99 * n / (toMost - ready)
			b.ReportMetric(ready, "s-to-ready")
			b.ReportMetric(toMost, "s-to-99%")
			b.ReportMetric(toAll, "s-to-all")
			b.ReportMetric(float64(peak)/1e6, "peak-MB")
			b.ReportMetric(rate, "reconnects/s")
			b.ReportMetric(ceiling, "bare/s")
			b.ReportMetric(rate/ceiling, "reconnects-of-bare")
			b.ReportMetric(float64(presence), "presence-events")
			b.ReportMetric(float64(r.Reports.Made), "reports")
			b.ReportMetric(float64(r.Reports.Resent-before.Resent), "resends")
			b.ReportMetric(r.Receipt.P99, "receipt-p99-ms")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// logged counts what the log of a manager that has stopped holds: changes of
// presence between two instants, and reports.
func (f *fleet) logged(after, before time.Time) (presence int, reports uint64) {
	f.b.Helper()
	type report struct {
		device events.DeviceID
		report events.Report
	}
	seen := make(map[report]bool)
	log, done := f.m.OpenLog()
	defer done()
	for r, err := range log.Read(f.b.Context(), events.Filter{}) {
		if err != nil {
			f.b.Fatal(err)
		}
		for _, e := range r.Entries {
			if e.Report != nil {
				seen[report{r.Subject.Device(), *e.Report}] = true
			}
			switch e.Event.(type) {
			case events.DeviceConnected, events.DeviceLost:
				if r.Time.After(after) && r.Time.Before(before) {
					presence++
				}
			default:
			}
		}
	}
	return presence, uint64(len(seen))
}

// BenchmarkCommandLatency asks for a task of one device after the other, at a
// steady rate whatever the answers do, and measures from the instant at which a
// request should have gone out until the device's host begins the task. The
// goal is 50 ms for 99 of 100.
func BenchmarkCommandLatency(b *testing.B) {
	f := newFleet(b, *fleetDevices)
	for _, load := range []struct {
		name    string
		changes float64
	}{{"quiet", 0}, {"ingest", *fleetChanges}} {
		b.Run(load.name, func(b *testing.B) {
			f.b = b
			a := f.start("--change-rate", fmt.Sprint(load.changes))
			if load.changes == 0 {
				f.rest()
			}
			ids := f.ids()
			for _, rate := range []int{50, 500} {
				b.Run(fmt.Sprintf("rate=%d", rate), func(b *testing.B) { f.commands(b, a, ids, rate) })
			}
			r := a.stop()
			b.Logf("%.0f changes/s, to receipt p50 %.0f ms, p99 %.0f ms", float64(r.Changes)/r.RunSeconds, r.Receipt.P50, r.Receipt.P99)
			f.rest()
		})
	}
}

// commands asks for tasks for 20 seconds and reports how long they took.
func (f *fleet) commands(b *testing.B, a *agents, ids []string, rate int) {
	const lasts = 20 * time.Second
	count := int(lasts.Seconds()) * rate
	interval := time.Second / time.Duration(rate)
	type asked struct {
		id       string
		intended int64
		answered int64
	}
	tasks := make([]asked, count)
	var failed []string
	var shed atomic.Int64
	var mu sync.Mutex
	var wg sync.WaitGroup
	before, _ := a.now()
	cpu, began, start := f.m.CPU(), time.Now(), monotonic()
	ticker := time.NewTicker(min(interval, time.Millisecond))
	defer ticker.Stop()
	for i := 0; i < count; {
		<-ticker.C
		for i < count {
			n, intended := i, start+int64(i)*int64(interval)
			if monotonic() < intended {
				break
			}
			i++
			wg.Go(func() {
				var r *client.SetVmPowerResponse
				var err error
				// A manager that is busy says so, and a client asks again.
				for attempt := 0; attempt == 0 || err == nil && r.StatusCode() == http.StatusTooManyRequests && attempt < 20; attempt++ {
					if attempt > 0 {
						shed.Add(1)
						pause(b.Context(), time.Second)
					}
					r, err = f.m.API.SetVmPowerWithResponse(b.Context(), ids[n%len(ids)], "vm-1", nil,
						client.SetVmPowerJSONRequestBody{Action: client.SetVMPowerActionReset})
				}
				if err != nil || r.StatusCode() != http.StatusAccepted {
					mu.Lock()
					defer mu.Unlock()
					failed = append(failed, fmt.Sprintf("%v %s", err, answer(r)))
					return
				}
				tasks[n] = asked{r.JSON202.Id.String(), intended, monotonic()}
			})
		}
	}
	wg.Wait()
	took := time.Since(began)
	used := f.m.CPU() - cpu
	if len(failed) > 0 {
		b.Fatalf("%d of %d requests failed, the first: %s", len(failed), count, failed[0])
	}
	begun := make(map[string]int64)
	servertest.Eventually(b, time.Minute, func() error {
		a.mu.Lock()
		defer a.mu.Unlock()
		for _, t := range tasks {
			if a.tasks[t.id] == 0 {
				return fmt.Errorf("task %s was not begun", t.id)
			}
		}
		maps.Copy(begun, a.tasks)
		return nil
	})
	after, _ := a.now()
	latency, answered := make([]float64, count), make([]float64, count)
	for i, t := range tasks {
		latency[i] = float64(begun[t.id]-t.intended) / 1e6
		answered[i] = float64(t.answered-t.intended) / 1e6
	}
	slices.Sort(latency)
	slices.Sort(answered)
	at := func(l []float64, share float64) float64 { return l[min(int(share*float64(len(l))), len(l)-1)] }
	b.ReportMetric(at(latency, 0.5), "p50-ms")
	b.ReportMetric(at(latency, 0.99), "p99-ms")
	b.ReportMetric(at(latency, 1), "max-ms")
	b.ReportMetric(float64(shed.Load()), "shed")
	b.ReportMetric(at(answered, 0.5), "answer-p50-ms")
	b.ReportMetric(at(answered, 0.99), "answer-p99-ms")
	b.ReportMetric(float64(after.Changes-before.Changes)/took.Seconds(), "changes/s")
	b.ReportMetric(100*float64(used)/float64(took), "cpu-%")
	b.ReportMetric(0, "ns/op")
}

func answer(r *client.SetVmPowerResponse) string {
	if r == nil {
		return ""
	}
	return r.Status() + " " + string(r.Body)
}

// ids returns the ids of the devices.
func (f *fleet) ids() []string {
	f.b.Helper()
	ids := make([]string, f.devices)
	for i := range ids {
		b, err := os.ReadFile(filepath.Join(f.dir, fmt.Sprintf("sim-%05d", i), "device.id"))
		if err != nil {
			f.b.Fatal(err)
		}
		ids[i] = strings.TrimSpace(string(b))
	}
	return ids
}

// monotonic is CLOCK_MONOTONIC in nanoseconds, which pallas-sim reads too.
func monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // every Linux has it
	}
	return ts.Nano()
}

func since(at int64) float64 { return float64(monotonic()-at) / 1e9 }

func ms(d time.Duration) float64 { return float64(d) / 1e6 }
