package server_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pallas/agent/hypervisor/esxi/vcsim"
	"pallas/internal/client"
	"pallas/internal/servertest"
)

var (
	footprint = flag.Duration("footprint", 5*time.Second, "how long TestAgentFootprint lets changes come in")
	agentFor  = flag.Duration("agent.for", 2*time.Minute, "how long BenchmarkAgentDay takes for its day")
)

// maxRSS is what an agent with 20 virtual machines may take of its VM's 512 MB.
const maxRSS = 24 << 20

// released is the agent as it is released, on a host of its own with 20
// virtual machines and connected to a manager.
type released struct {
	host    *vcsim.Host
	manager *servertest.Manager
	size    int64 // of the program, in bytes
	pid     int
}

func startReleased(t testing.TB) *released {
	t.Helper()
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
	vms := make([]vcsim.VMSpec, 20)
	for i := range vms {
		vms[i] = vcsim.VMSpec{Name: fmt.Sprintf("guest-%02d", i+1), On: true}
	}
	h, err := vcsim.Start(vcsim.Config{Name: "esx-size-01.example.net", VMs: vms})
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
	return &released{host: h, manager: m, size: info.Size(), pid: cmd.Process.Pid}
}

// machines returns the names of the host's virtual machines, in order.
func (r *released) machines(t testing.TB) []string {
	t.Helper()
	names, err := r.host.VMs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return slices.Sorted(maps.Values(names))
}

// memory returns the agent's VmRSS or VmHWM in bytes.
func (r *released) memory(t testing.TB, name string) int64 { return r.field(t, "status", name) << 10 }

// written returns how many bytes the agent has sent to its disk, in pages.
func (r *released) written(t testing.TB) int64 { return r.field(t, "io", "write_bytes") }

func (r *released) field(t testing.TB, file, name string) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", r.pid, file))
	if err != nil {
		t.Fatal(err)
	}
	match := regexp.MustCompile(`(?m)^` + name + `:\s+(\d+)`).FindSubmatch(b)
	if match == nil {
		t.Fatalf("no %s in\n%s", name, b)
	}
	n, err := strconv.ParseInt(string(match[1]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// cpu returns the processor time that the agent has had, to the nanosecond:
// its processor clock, as clock_getcpuclockid(3) names it.
func (r *released) cpu(t testing.TB) time.Duration {
	t.Helper()
	const scheduled = 2
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^r.pid<<3|scheduled), &ts); err != nil {
		t.Fatalf("read the agent's processor clock: %v", err)
	}
	return time.Duration(ts.Nano())
}

// TestAgentFootprint watches the agent's memory while its host changes.
func TestAgentFootprint(t *testing.T) {
	r := startReleased(t)
	names, changes := r.machines(t), 0
	ctx, cancel := context.WithTimeout(t.Context(), *footprint)
	defer cancel()
	for on := false; ctx.Err() == nil; on = !on {
		for _, name := range names {
			if r.host.Power(t.Context(), name, on) == nil {
				changes++
			}
			pause(ctx, 20*time.Millisecond)
		}
	}
	rss, peak := r.memory(t, "VmRSS"), r.memory(t, "VmHWM")
	t.Logf("agent: %d bytes of program, %d KiB resident, %d KiB at most, after %d changes of %d virtual machines",
		r.size, rss>>10, peak>>10, changes, len(names))
	if peak > maxRSS {
		t.Errorf("the agent took %d KiB, want at most %d", peak>>10, maxRSS>>10)
	}
}

const (
	// dayRounds is how often each of 20 virtual machines changes in a busy
	// day, 200 changes in all: two of the power, the others of an address.
	dayRounds = 10
	// dayLooks is how often the agent looks at its host in a day without
	// being told to: each 10 minutes.
	dayLooks = 144
)

// BenchmarkAgentDay gives the agent a busy day's changes in -agent.for, after a
// quarter of that time without any. A look at the host without a change costs at
// most what a change does, so that the day's processor time is an upper bound.
// The folder for temporary files has to be on a disk.
func BenchmarkAgentDay(b *testing.B) {
	r := startReleased(b)
	names := r.machines(b)
	address := func(round, i int) string { return fmt.Sprintf("198.51.100.%d", round*len(names)+i+1) }
	change := func(round, i int) error {
		switch round {
		case 4, 5:
			return r.host.Power(b.Context(), names[i], round == 5)
		default:
			return r.host.SetIPs(b.Context(), names[i], address(round, i))
		}
	}
	reported := func(round int) {
		b.Helper()
		servertest.Eventually(b, time.Minute, func() error {
			answer, err := r.manager.API.ListVmsWithResponse(b.Context(), nil)
			if err != nil || answer.JSON200 == nil {
				return fmt.Errorf("list virtual machines: %w", errors.Join(err, servertest.ErrNotYet))
			}
			for i, name := range names {
				if !slices.ContainsFunc(answer.JSON200.Items, func(vm client.VM) bool {
					return vm.Name == name && slices.Contains(vm.Ips, address(round, i))
				}) {
					return fmt.Errorf("the last change of %s is not there: %w", name, servertest.ErrNotYet)
				}
			}
			return nil
		})
	}
	// What the first minutes cost is not the day's.
	for i := range names {
		if err := change(0, i); err != nil {
			b.Fatal(err)
		}
	}
	reported(0)
	pause(b.Context(), 5*time.Second) // for the receipts

	start, cpu := time.Now(), r.cpu(b)
	pause(b.Context(), *agentFor/4)
	idle := (r.cpu(b) - cpu).Seconds() / time.Since(start).Seconds()

	changes, every := dayRounds*len(names), time.NewTicker(*agentFor*3/4/time.Duration(dayRounds*len(names)))
	defer every.Stop()
	start, cpu = time.Now(), r.cpu(b)
	disk := r.written(b)
	for round := range dayRounds {
		for i := range names {
			if err := change((round+1)%dayRounds, i); err != nil {
				b.Fatal(err)
			}
			<-every.C
		}
	}
	reported(0)
	pause(b.Context(), 5*time.Second)
	busy := (r.cpu(b) - cpu).Seconds() - idle*time.Since(start).Seconds()
	disk = r.written(b) - disk
	if disk == 0 {
		b.Fatal("nothing was written to a disk: the folder for temporary files is in memory, set TMPDIR to another one")
	}
	perChange := busy / float64(changes)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(r.size)/1e6, "program-MB")
	b.ReportMetric(float64(r.memory(b, "VmRSS"))/(1<<20), "rss-MiB")
	b.ReportMetric(float64(r.memory(b, "VmHWM"))/(1<<20), "rss-max-MiB")
	b.ReportMetric(idle*100, "idle-cpu-%")
	b.ReportMetric(perChange*1000, "cpu-ms/change")
	b.ReportMetric(idle*86400+float64(changes+dayLooks)*perChange, "cpu-s/day")
	b.ReportMetric(float64(disk)/float64(changes)/1000, "disk-kB/change")
}

type testLog struct{ t testing.TB }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Logf("%s", b)
	return len(b), nil
}
