package servertest

import (
	"bufio"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// CPU returns the processor time that a spawned manager has had, by its
// processor clock as clock_getcpuclockid(3) names it.
func (m *Manager) CPU() time.Duration {
	m.t.Helper()
	const scheduled = 2
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^m.Pid()<<3|scheduled), &ts); err != nil {
		m.t.Fatalf("read the manager's processor clock: %v", err)
	}
	return time.Duration(ts.Nano())
}

// Memory returns a field of /proc/<pid>/status of a spawned manager, such as
// RssAnon or VmHWM, in bytes.
func (m *Manager) Memory(field string) int64 {
	m.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.Pid()))
	if err != nil {
		m.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			if err != nil {
				m.t.Fatalf("%s of the manager: %v", field, err)
			}
			return kib << 10
		}
	}
	m.t.Fatalf("no %s in\n%s", field, b)
	return 0
}

// Metrics returns the manager's metrics that have no labels.
func (m *Manager) Metrics() map[string]float64 {
	m.t.Helper()
	req, err := http.NewRequestWithContext(m.t.Context(), http.MethodGet, "https://"+m.Config.HTTP.Listen+"/metrics", nil)
	if err != nil {
		m.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+m.Token)
	transport := &http.Transport{TLSClientConfig: m.TLS()}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport, Timeout: time.Minute}).Do(req)
	if err != nil {
		m.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		m.t.Fatalf("metrics: %s", resp.Status)
	}
	values := make(map[string]float64)
	s := bufio.NewScanner(resp.Body)
	for s.Scan() {
		if name, text, ok := strings.Cut(s.Text(), " "); ok && name != "#" {
			if v, err := strconv.ParseFloat(text, 64); err == nil {
				values[name] = v
			}
		}
	}
	if err := s.Err(); err != nil {
		m.t.Fatal(err)
	}
	return values
}
