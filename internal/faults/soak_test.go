package faults_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"pallas/internal/client"
)

var (
	soakFor     = flag.Duration("soak.for", 20*time.Second, "how long TestSoak goes on")
	soakDevices = flag.Int("soak.devices", 50, "how many devices TestSoak has")
	soakOut     = flag.String("soak.out", "", "file that TestSoak writes its figures to, while it runs too")
)

// sample is what was seen at one time.
type sample struct {
	Seconds    float64 `json:"seconds"`
	ManagerRSS float64 `json:"manager_rss_mb"` // without mapped files
	Goroutines float64 `json:"manager_goroutines"`
	Files      float64 `json:"manager_files"`
	SimRSS     float64 `json:"sim_rss_mb"` // without mapped files
	SimFiles   float64 `json:"sim_files"`
	Sessions   float64 `json:"sessions"`
	Position   float64 `json:"position"` // decisions in the log
	Log        float64 `json:"log_mb"`
	Rest       float64 `json:"rest_mb"` // of the data directory without the log
}

// trend is a straight line through the last two thirds of the samples.
type trend struct {
	Name  string  `json:"name"`
	Mean  float64 `json:"mean"`
	Grown float64 `json:"grown"` // along the line, from its begin to its end
	Bound float64 `json:"bound"` // what it may grow
}

// soaked is what TestSoak prints.
type soaked struct {
	Devices          int      `json:"devices"`
	Seconds          float64  `json:"seconds"`
	Tasks            int      `json:"tasks"`
	Reads            int      `json:"reads"`
	LogBytesPerEvent float64  `json:"log_bytes_per_decision"`
	Trends           []trend  `json:"trends"`
	Samples          []sample `json:"samples"`
}

// flat is what must not grow, and by how much it may all the same: a share of
// its mean, and at least so much, which is noise in a short run.
var flat = []struct {
	name         string
	of           func(sample) float64
	share, least float64
}{
	{"manager_rss_mb", func(s sample) float64 { return s.ManagerRSS }, 0.1, 64},
	{"manager_goroutines", func(s sample) float64 { return s.Goroutines }, 0.05, 100},
	{"manager_files", func(s sample) float64 { return s.Files }, 0.05, 40},
	{"sim_rss_mb", func(s sample) float64 { return s.SimRSS }, 0.1, 64},
	{"sim_files", func(s sample) float64 { return s.SimFiles }, 0.05, 40},
}

// TestSoak lets devices change, tasks run and people read for a long time, and
// fails when memory, goroutines or open files grow with it.
func TestSoak(t *testing.T) {
	w := newManager(t)
	join := filepath.Join(t.TempDir(), "join")
	if err := os.WriteFile(join, []byte(w.m.Join(*soakDevices)), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n := float64(*soakDevices)
	sim := exec.CommandContext(ctx, program("pallas-sim"), "--devices", strconv.Itoa(*soakDevices), "--processes", "1", "--join-file", join,
		"--change-rate", fmt.Sprint(n/20), "--churn", fmt.Sprint(n/500), "--duration", "0", "--data", t.TempDir())
	log, err := os.Create(filepath.Join(t.TempDir(), "sim.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	sim.Stdout, sim.Stderr = log, log
	sim.Cancel = func() error { return sim.Process.Signal(os.Interrupt) }
	if err := sim.Start(); err != nil {
		t.Fatal(err)
	}
	out := soaked{Devices: *soakDevices}
	var mu sync.Mutex
	var load sync.WaitGroup
	load.Go(func() { w.read(ctx, &mu, &out) })
	load.Go(func() { w.listen(ctx) })

	// The run begins when all are connected.
	tick := time.NewTicker(max(time.Second, *soakFor/600))
	defer tick.Stop()
	var began, told time.Time
	ready := time.Now().Add(5*time.Minute + time.Duration(n/20)*time.Second)
	for began.IsZero() || time.Since(began) < *soakFor {
		<-tick.C
		s, err := w.sample(ctx, sim.Process.Pid)
		switch {
		case err != nil:
			t.Fatalf("sample: %v\n%s", err, w.manager.tail(20))
		case began.IsZero() && s.Sessions < n:
			if time.Now().After(ready) {
				t.Fatalf("%v of %v devices are connected", s.Sessions, n)
			}
			continue
		case began.IsZero():
			began = time.Now()
		}
		s.Seconds = time.Since(began).Seconds()
		mu.Lock()
		out.Samples = append(out.Samples, s)
		out.sum()
		if *soakOut != "" && time.Since(told) > 10*time.Second {
			told = time.Now()
			if err := writeJSON(*soakOut, out); err != nil {
				t.Error(err)
			}
		}
		mu.Unlock()
	}
	cancel()
	load.Wait()
	if err := sim.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		b, _ := os.ReadFile(log.Name())
		t.Errorf("pallas-sim: %v\n%s", err, b)
	}
	if s := w.manager.surprises(); len(s) > 0 {
		t.Errorf("the manager ended by itself: %v\n%s", s, w.manager.tail(20))
	}
	out.report(t)
}

func (s *soaked) report(t *testing.T) {
	t.Helper()
	t.Logf("%d devices, %.0f s, %d tasks, %d reads, %.0f bytes of log for each decision", s.Devices, s.Seconds, s.Tasks, s.Reads, s.LogBytesPerEvent)
	t.Logf("%-20s %10s %10s %10s", "", "mean", "grown", "may grow")
	for _, tr := range s.Trends {
		t.Logf("%-20s %10.1f %10.1f %10.1f", tr.Name, tr.Mean, tr.Grown, tr.Bound)
		if tr.Grown > tr.Bound {
			t.Errorf("%s grew by %.1f in the last two thirds of the run, at most %.1f is allowed", tr.Name, tr.Grown, tr.Bound)
		}
	}
	if *soakOut != "" {
		if err := writeJSON(*soakOut, s); err != nil {
			t.Error(err)
		}
	}
	last := *s
	last.Samples = s.Samples[len(s.Samples)-1:]
	b, err := json.Marshal(last)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", b)
}

// sum brings the trends up to date.
func (s *soaked) sum() {
	first, last := s.Samples[0], s.Samples[len(s.Samples)-1]
	s.Seconds, s.Trends = last.Seconds, nil
	if d := last.Position - first.Position; d > 0 {
		s.LogBytesPerEvent = (last.Log - first.Log) * 1e6 / d
	}
	part := s.Samples[len(s.Samples)/3:]
	for _, f := range flat {
		var x, y, xx, xy float64
		for _, p := range part {
			x, y, xx, xy = x+p.Seconds, y+f.of(p), xx+p.Seconds*p.Seconds, xy+p.Seconds*f.of(p)
		}
		n := float64(len(part))
		tr := trend{Name: f.name, Mean: y / n, Bound: max(f.share*y/n, f.least)}
		if d := n*xx - x*x; d > 0 {
			tr.Grown = (n*xy - x*y) / d * (part[len(part)-1].Seconds - part[0].Seconds)
		}
		s.Trends = append(s.Trends, tr)
	}
}

// read lists devices, and has some of them do things, until ctx is done.
func (w *weather) read(ctx context.Context, mu *sync.Mutex, out *soaked) {
	for ctx.Err() == nil {
		pause(ctx, 100*time.Millisecond)
		list, err := w.m.API.ListDevicesWithResponse(ctx, nil)
		if err != nil || list.JSON200 == nil || len(list.JSON200.Items) == 0 {
			continue
		}
		mu.Lock()
		out.Reads++
		turn := out.Reads
		mu.Unlock()
		d := list.JSON200.Items[turn%len(list.JSON200.Items)]
		action := client.SetVMPowerActionOn
		if turn/len(list.JSON200.Items)%2 == 1 {
			action = client.SetVMPowerActionOff
		}
		r, err := w.m.API.SetVmPowerWithResponse(ctx, d.Id.String(), "vm-2", nil, client.SetVmPowerJSONRequestBody{Action: action})
		if err == nil && r.JSON202 != nil {
			mu.Lock()
			out.Tasks++
			mu.Unlock()
		}
	}
}

// listen reads the live events, and connects again and again.
func (w *weather) listen(ctx context.Context) {
	http1 := &http.Client{Transport: &http.Transport{TLSClientConfig: w.m.TLS(), DisableKeepAlives: true}}
	for ctx.Err() == nil {
		once, cancel := context.WithTimeout(ctx, 5*time.Second)
		req, err := http.NewRequestWithContext(once, http.MethodGet, "https://"+w.m.Config.HTTP.Listen+"/api/v1/events/stream", nil)
		if err != nil {
			w.t.Error(err)
		}
		req.Header.Set("Authorization", "Bearer "+w.m.Token)
		if r, err := http1.Do(req); err == nil {
			for lines := bufio.NewScanner(r.Body); lines.Scan(); {
			}
			_ = r.Body.Close()
		}
		cancel()
		pause(ctx, 100*time.Millisecond)
	}
}

func (w *weather) sample(ctx context.Context, sim int) (s sample, err error) {
	m := w.manager.pid()
	counts, err := w.metrics(ctx)
	if err != nil {
		return s, err
	}
	s.Goroutines, s.Sessions, s.Position = counts["go_goroutines"], counts["pallas_device_sessions"], counts["pallas_projection_position"]
	for _, p := range []struct {
		pid        int
		rss, files *float64
	}{{m, &s.ManagerRSS, &s.Files}, {sim, &s.SimRSS, &s.SimFiles}} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
		if err != nil {
			return s, err
		}
		if _, after, ok := strings.Cut(string(b), "RssAnon:"); ok {
			var kb float64
			if _, err := fmt.Sscan(after, &kb); err != nil {
				return s, err
			}
			*p.rss = kb / 1000
		}
		open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.pid))
		if err != nil {
			return s, err
		}
		*p.files = float64(len(open))
	}
	return s, filepath.WalkDir(w.back, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed meanwhile
		}
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if strings.Contains(path, "/EVENTS/") {
			s.Log += float64(info.Size()) / 1e6
		} else {
			s.Rest += float64(info.Size()) / 1e6
		}
		return nil
	})
}

// metrics returns the manager's metrics that have no labels.
func (w *weather) metrics(ctx context.Context) (map[string]float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+w.m.Config.HTTP.Listen+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+w.m.Token)
	r, err := (&http.Client{Transport: &http.Transport{TLSClientConfig: w.m.TLS(), DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	out := make(map[string]float64)
	lines := bufio.NewScanner(r.Body)
	for lines.Scan() {
		if name, value, ok := strings.Cut(lines.Text(), " "); ok {
			if v, err := strconv.ParseFloat(value, 64); err == nil {
				out[name] = v
			}
		}
	}
	return out, lines.Err()
}
