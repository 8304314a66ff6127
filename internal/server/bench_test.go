package server_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"pallas/agent/hypervisor/esxi/vcsim"
	"pallas/commands"
	"pallas/events"
	"pallas/events/jsstore"
	"pallas/internal/servertest"
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
		_, err := d.Do(b.Context(), commands.RenameDevice{Device: ids[caller], Name: "host-" + strconv.Itoa(i)}, commands.Meta{Actor: "user:bench"})
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

// maxRSS is what an agent with 20 virtual machines may take of its VM's 512 MB.
const maxRSS = 24 << 20

var footprint = flag.Duration("footprint", 5*time.Second, "how long TestAgentFootprint lets changes come in")

// TestAgentFootprint builds the agent as it is released and watches its memory
// while an ESXi host with 20 virtual machines changes.
func TestAgentFootprint(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "pallas-agent")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-gcflags=github.com/vmware/govmomi/...=-l", "-o", bin, "pallas/cmd/pallas-agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the agent: %v\n%s", err, out)
	}
	info, err := os.Stat(bin)
	if err != nil {
		t.Fatal(err)
	}
	m := servertest.Start(t)
	h, err := vcsim.Start(vcsim.Config{Name: "esx-size-01.example.net", Count: 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	dir := t.TempDir()
	for name, text := range map[string]string{
		"join": m.Join(1), "password": h.Password(),
		"agent.yaml": fmt.Sprintf("data_dir: %s\njoin_file: join\nhost:\n  url: %s\n  username: %s\n  password_file: password\n  thumbprint: %q\nlog:\n  level: warn\n",
			filepath.Join(dir, "data"), h.URL(), h.Username(), h.Thumbprint()),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(bin, "run", "--config", filepath.Join(dir, "agent.yaml"))
	cmd.Stderr = testLog{t}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		if err := cmd.Wait(); err != nil {
			t.Errorf("the agent ended: %v", err)
		}
	})
	one(t, m)
	names, err := h.VMs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	changes := 0
	ctx, cancel := context.WithTimeout(t.Context(), *footprint)
	defer cancel()
	for on := false; ctx.Err() == nil; on = !on {
		for _, name := range names {
			if h.Power(t.Context(), name, on) == nil {
				changes++
			}
			pause(ctx, 20*time.Millisecond)
		}
	}
	rss, peak := memory(t, cmd.Process.Pid, "VmRSS"), memory(t, cmd.Process.Pid, "VmHWM")
	t.Logf("agent: %d bytes of program, %d KiB resident, %d KiB at most, after %d changes of 20 virtual machines",
		info.Size(), rss>>10, peak>>10, changes)
	if peak > maxRSS {
		t.Errorf("the agent took %d KiB, want at most %d", peak>>10, maxRSS>>10)
	}
}

func memory(t *testing.T, pid int, field string) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	match := regexp.MustCompile(field + `:\s+(\d+) kB`).FindSubmatch(b)
	if match == nil {
		t.Fatalf("no %s in\n%s", field, b)
	}
	kib, err := strconv.ParseInt(string(match[1]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Logf("%s", b)
	return len(b), nil
}
