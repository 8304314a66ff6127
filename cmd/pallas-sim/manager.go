package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"pallas/mqttgw/wire"
)

// manager is what the manager counted of a run.
type manager struct {
	Sessions int64 `json:"sessions"`      // that it had more at the end than before
	Reports  int64 `json:"reports_taken"` // repeats not counted
	Receipts int64 `json:"receipts_sent"`
	// Restarted says that it began to count anew, so that only sessions can be
	// compared.
	Restarted bool `json:"restarted"`
}

// agreeWithin is how long both sides may take to agree once all is quiet: a
// receipt may be under way.
const agreeWithin = 15 * time.Second

// watch reads the manager's /metrics.
type watch struct {
	client     *http.Client
	url, token string
	before     counters
}

// counters are the manager's, as they are at one moment.
type counters struct {
	sessions, reports, receipts int64
	started                     float64 // when its process did
	files, maxFiles             int64   // open, and at most; 0: not known
}

// newWatch asks the manager of a join string for its counters.
func newWatch(ctx context.Context, join wire.Join, tokenFile string) (*watch, error) {
	token, err := os.ReadFile(tokenFile)
	if err != nil {
		return nil, err
	}
	w := &watch{
		client: &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: join.TLS()}},
		url:    strings.TrimRight(join.URL, "/") + "/metrics", token: strings.TrimSpace(string(token)),
	}
	w.before, err = w.read(ctx)
	return w, err
}

func (w *watch) read(ctx context.Context) (counters, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.url, nil)
	if err != nil {
		return counters{}, fmt.Errorf("read the manager's metrics: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+w.token)
	resp, err := w.client.Do(req)
	if err != nil {
		return counters{}, fmt.Errorf("read the manager's metrics: %w", err)
	}
	defer resp.Body.Close() //nolint:errcheck // all that counts was read
	if resp.StatusCode != http.StatusOK {
		return counters{}, fmt.Errorf("read the manager's metrics: %s answered %s", w.url, resp.Status)
	}
	return parseCounters(resp.Body)
}

// parseCounters reads the Prometheus text format. What it looks for has no
// labels.
func parseCounters(r io.Reader) (counters, error) {
	values := map[string]float64{}
	s := bufio.NewScanner(r)
	for s.Scan() {
		if name, text, ok := strings.Cut(s.Text(), " "); ok && name != "#" {
			if v, err := strconv.ParseFloat(text, 64); err == nil {
				values[name] = v
			}
		}
	}
	if err := s.Err(); err != nil {
		return counters{}, fmt.Errorf("read the manager's metrics: %w", err)
	}
	for _, name := range []string{"pallas_device_sessions", "pallas_device_reports_total", "pallas_device_receipts_total"} {
		if _, ok := values[name]; !ok {
			return counters{}, fmt.Errorf("read the manager's metrics: there is no %s", name)
		}
	}
	return counters{
		sessions: int64(values["pallas_device_sessions"]), reports: int64(values["pallas_device_reports_total"]),
		receipts: int64(values["pallas_device_receipts_total"]), started: values["process_start_time_seconds"],
		files: int64(values["process_open_fds"]), maxFiles: int64(values["process_max_fds"]),
	}, nil
}

// carry says when the manager cannot hold so many devices.
func (c counters) carry(devices int) (problems []string) {
	if free := c.maxFiles - c.files; c.maxFiles > 0 && int64(devices) > free {
		problems = append(problems, fmt.Sprintf(
			"the manager's open files: %d are needed, it has %d left: raise its limit (LimitNOFILE=), or ask for at most %d devices", devices, free, free))
	}
	return problems
}

// compare waits until all are connected and both sides' books agree. What they
// do not agree about in the end are problems.
func (w *watch) compare(ctx context.Context, now func() state) (m manager, problems []string) {
	deadline, tick := time.After(agreeWithin), time.NewTicker(scanEvery)
	defer tick.Stop()
	for {
		if c, err := w.read(ctx); err != nil {
			problems = []string{err.Error()}
		} else {
			s := now()
			if m, problems = judge(w.before, c, s); len(problems) == 0 && s.Connected == s.Started {
				return m, nil
			}
		}
		select {
		case <-deadline:
			return m, problems
		case <-tick.C:
		}
	}
}

// judge holds the manager's books against the agents'.
func judge(before, after counters, s state) (m manager, problems []string) {
	m = manager{
		Sessions: after.sessions - before.sessions, Reports: after.reports - before.reports, Receipts: after.receipts - before.receipts,
		Restarted: after.started != before.started,
	}
	problem := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	if m.Sessions != int64(s.Connected) {
		problem("the manager has %d sessions more than before, %d devices are connected", m.Sessions, s.Connected)
	}
	if m.Restarted {
		m.Reports, m.Receipts = after.reports, after.receipts
		return m, problems
	}
	// What has no receipt may be in the log or not; so may what an earlier run
	// left. Numbers that began anew hide what had the old ones.
	least, most := int64(s.Made)-int64(s.Pending), int64(s.Made+s.Left)
	if m.Reports < least || (s.Renewed == 0 && m.Reports > most) {
		problem("the manager took %d reports, the agents have receipts of %d and made %d", m.Reports, least, most)
	}
	// Receipts are lost with a session, and not otherwise.
	heard := int64(s.Receipts)
	if heard > m.Receipts || (heard < m.Receipts && s.Sessions == uint64(s.Started)) {
		problem("the manager sent %d receipts, the agents heard %d", m.Receipts, heard)
	}
	return m, problems
}
