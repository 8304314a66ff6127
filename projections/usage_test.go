package projections

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"pallas/events"
	"pallas/events/telemetry"
)

// usageStream is a stream in memory that may have forgotten its beginning.
type usageStream struct {
	made  time.Time
	first uint64
	usage []telemetry.Usage // one without a day cannot be read
}

func (s *usageStream) Bounds(context.Context) (time.Time, uint64, error) {
	return s.made, s.first + uint64(len(s.usage)), nil
}

func (s *usageStream) NextUsage(_ context.Context, after uint64) (telemetry.Usage, uint64, error) {
	i := max(after, s.first) - s.first
	if i >= uint64(len(s.usage)) {
		return telemetry.Usage{}, 0, nil
	}
	at := s.first + i + 1
	if s.usage[i].Day == "" {
		return s.usage[i], at, errors.New("unreadable")
	}
	return s.usage[i], at, nil
}

func (s *usageStream) add(day telemetry.Day, bytes map[events.DeviceID]telemetry.Bytes) {
	u := telemetry.Usage{Day: day}
	for id, b := range bytes {
		u.Devices = append(u.Devices, telemetry.DeviceBytes{Device: id, Bytes: b})
	}
	s.usage = append(s.usage, u)
}

func openUsage(t *testing.T, path string, keep int, r prometheus.Registerer) *Usage {
	t.Helper()
	u, err := OpenUsage(t.Context(), UsageConfig{Path: path, Keep: keep, Log: slog.New(slog.DiscardHandler), Registerer: r, Now: func() time.Time { return at(0) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := u.Close(); err != nil {
			t.Error(err)
		}
	})
	return u
}

func (u *Usage) mustCatchUp(t *testing.T, s *usageStream) {
	t.Helper()
	if err := u.catchUp(t.Context(), s); err != nil {
		t.Fatal(err)
	}
}

// contents has every row, as text.
func (u *Usage) contents(t *testing.T) string {
	t.Helper()
	var out strings.Builder
	for _, q := range []string{
		"SELECT day, hex(device), received, sent FROM device_usage ORDER BY day, device",
		"SELECT day, stale, devices || '/' || received || '/' || sent, p50 || '/' || p99 FROM fleet_usage ORDER BY day",
	} {
		_, err := collect(t.Context(), u.r, q, nil, func(rows *sql.Rows) (struct{}, error) {
			var c [4]string
			err := rows.Scan(&c[0], &c[1], &c[2], &c[3])
			fmt.Fprintln(&out, c)
			return struct{}{}, err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return out.String()
}

const (
	yesterday = telemetry.Day("2031-02-02")
	today     = telemetry.Day("2031-02-03")
)

func someUsage() *usageStream {
	s := &usageStream{made: at(-9)}
	s.add("2031-01-01", map[events.DeviceID]telemetry.Bytes{deviceA: {Received: 1, Sent: 1}})
	s.add(yesterday, map[events.DeviceID]telemetry.Bytes{deviceA: {Received: 10, Sent: 5}, deviceB: {Received: 100, Sent: 7}})
	s.usage = append(s.usage, telemetry.Usage{Devices: []telemetry.DeviceBytes{{Device: deviceC, Bytes: telemetry.Bytes{Sent: 1}}}})
	s.add(today, map[events.DeviceID]telemetry.Bytes{deviceA: {Received: 3}})
	s.add(yesterday, map[events.DeviceID]telemetry.Bytes{deviceA: {Received: 1, Sent: 2}, deviceC: {Sent: 3}})
	return s
}

func TestUsage(t *testing.T) {
	registry := prometheus.NewRegistry()
	u := openUsage(t, filepath.Join(t.TempDir(), "telemetry.db"), 0, registry)
	s := someUsage()
	u.mustCatchUp(t, s)

	days, err := u.Device(t.Context(), deviceA, "2031-01-02", today)
	want := []DayUsage{{yesterday, telemetry.Bytes{Received: 11, Sent: 7}}, {today, telemetry.Bytes{Received: 3}}}
	if d := cmp.Diff(want, days); err != nil || d != "" {
		t.Errorf("device, %v (-want +got):\n%s", err, d)
	}
	for _, r := range [][2]telemetry.Day{{today, yesterday}, {"2040-01-01", "2040-02-01"}} {
		if days, err := u.Device(t.Context(), deviceA, r[0], r[1]); err != nil || len(days) > 0 {
			t.Errorf("device from %s to %s: %v, %v", r[0], r[1], days, err)
		}
	}
	fleet, err := u.Fleet(t.Context(), yesterday, yesterday)
	wantFleet := []FleetDay{{DayUsage{yesterday, telemetry.Bytes{Received: 111, Sent: 17}}, 3, 18, 107}}
	if d := cmp.Diff(wantFleet, fleet); err != nil || d != "" {
		t.Errorf("fleet, %v (-want +got):\n%s", err, d)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	gauges := map[string]float64{}
	for _, m := range families[0].GetMetric() {
		gauges[m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
	}
	if d := cmp.Diff(map[string]float64{"0.5": 18, "0.99": 107}, gauges); d != "" {
		t.Errorf("%s (-want +got):\n%s", families[0].GetName(), d)
	}

	// Built anew from the same stream it is the same.
	again := openUsage(t, filepath.Join(t.TempDir(), "telemetry.db"), 0, nil)
	again.mustCatchUp(t, s)
	if d := cmp.Diff(u.contents(t), again.contents(t)); d != "" {
		t.Errorf("live and rebuilt (-live +rebuilt):\n%s", d)
	}
}

// TestUsageSurvives: what was applied stays and is not applied again, whatever
// becomes of the stream.
func TestUsageSurvives(t *testing.T) {
	path := filepath.Join(t.TempDir(), "telemetry.db")
	s := someUsage()
	u := openUsage(t, path, 0, nil)
	u.mustCatchUp(t, s)
	before := u.contents(t)
	if err := u.Close(); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name   string
		change func()
	}{
		{"restart", func() {}},
		{"the stream forgets", func() { s.first, s.usage = 3, s.usage[3:] }},
		{"the stream loses its end", func() { s.usage = s.usage[:1] }},
		{"another stream, empty", func() { s.made, s.first, s.usage = at(1), 0, nil }},
		{"still nothing in it", func() {}},
	} {
		step.change()
		u := openUsage(t, path, 0, nil)
		u.mustCatchUp(t, s)
		if d := cmp.Diff(before, u.contents(t)); d != "" {
			t.Errorf("%s (-before +after):\n%s", step.name, d)
		}
	}
	s.add(today, map[events.DeviceID]telemetry.Bytes{deviceA: {Received: 2}})
	u = openUsage(t, path, 0, nil)
	u.mustCatchUp(t, s)
	days, err := u.Device(t.Context(), deviceA, today, today)
	if err != nil || len(days) != 1 || days[0].Received != 5 {
		t.Errorf("after the first of another stream: %v, %v", days, err)
	}
}

func TestUsageForgets(t *testing.T) {
	u := openUsage(t, filepath.Join(t.TempDir(), "telemetry.db"), 2, nil)
	u.mustCatchUp(t, someUsage())
	if c := u.contents(t); strings.Contains(c, "2031-01-01") || !strings.Contains(c, string(yesterday)) || !strings.Contains(c, string(today)) {
		t.Errorf("two days are to be kept:\n%s", c)
	}
}

func TestDamagedUsage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "telemetry.db")
	if err := os.WriteFile(path, []byte(strings.Repeat("this is no database", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	u := openUsage(t, path, 0, nil)
	u.mustCatchUp(t, someUsage())
	if days, err := u.Fleet(t.Context(), yesterday, today); err != nil || len(days) != 2 {
		t.Errorf("%v, %v", days, err)
	}
	if _, err := os.Stat(path + ".damaged"); err != nil {
		t.Error(err)
	}
}

// TestUsagePlans: a device's days are look-ups by key, and so is a fleet's day.
func TestUsagePlans(t *testing.T) {
	u := openUsage(t, filepath.Join(t.TempDir(), "telemetry.db"), 0, nil)
	for text, want := range map[string]string{
		deviceUsageQuery: "SEARCH u USING PRIMARY KEY (day=? AND device=?)",
		fleetUsageQuery:  "SEARCH fleet_usage USING PRIMARY KEY (day>? AND day<?)",
	} {
		args := []any{yesterday, today, []byte("0123456789abcdef")}[:strings.Count(text, "?")]
		plan, err := collect(t.Context(), u.r, "EXPLAIN QUERY PLAN "+text, args, func(rows *sql.Rows) (string, error) {
			var id, parent, unused int
			var detail string
			return detail, rows.Scan(&id, &parent, &unused, &detail)
		})
		if err != nil {
			t.Fatal(err)
		}
		if p := strings.Join(plan, "\n"); !strings.Contains(p, want) || strings.Contains(p, "TEMP B-TREE") {
			t.Errorf("%s\nruns as\n%s\nwant %s", text, p, want)
		}
	}
}
