package server_test

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"testing"
	"time"

	"pallas/agent/hypervisor/fake"
	"pallas/internal/client"
	"pallas/internal/config"
	"pallas/internal/server"
	"pallas/internal/servertest"
)

// TestUsage follows what a device costs from its sockets to the API, over a
// restart of the manager and the end of the device.
func TestUsage(t *testing.T) {
	m := servertest.Start(t, func(c *server.Config) { c.Telemetry.Interval = config.Duration(time.Second) })
	host := fake.Sample("host", 2)
	a := startAgent(t, "agent", m.Join(1), host)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	usage := func() client.UsageDayUsage {
		t.Helper()
		r, err := m.API.GetDeviceUsageWithResponse(ctx, a.Device(), nil)
		if err != nil || r.JSON200 == nil {
			t.Fatalf("usage of the device: %v, %s", err, r.Body)
		}
		return *r.JSON200
	}
	// The Welcome counts the handshake at once.
	servertest.Eventually(t, time.Minute, func() error {
		if err := connected(m, 1); err != nil {
			return err
		}
		if u := usage(); u.Total.Received < 1000 || u.Total.Sent < 1000 {
			return fmt.Errorf("the device cost %+v", u)
		}
		return nil
	})
	first := usage()
	m.Stop() // reads every socket once more
	m.Run()
	servertest.Eventually(t, time.Minute, func() error {
		if err := connected(m, 1); err != nil {
			return err
		}
		if u := usage(); u.Total.Received < first.Total.Received+1000 {
			return fmt.Errorf("the device cost %+v after another connection, %+v before", u, first)
		}
		return nil
	})
	metrics := m.Metrics()
	if metrics[`pallas_device_bytes_total{direction="received"}`] < 1000 || metrics[`pallas_device_bytes_total{direction="sent"}`] < 1000 {
		t.Errorf("metrics: %v", metrics)
	}
	d, err := m.API.GetDeviceWithResponse(ctx, a.Device(), nil)
	if err != nil || d.JSON200 == nil || d.JSON200.Usage == nil || d.JSON200.Usage.Today.Received < 1000 && time.Now().UTC().Hour() > 0 {
		t.Errorf("device: %v, %+v", err, d)
	}
	if r, err := m.API.RetireDeviceWithResponse(ctx, a.Device(), nil, client.RetireDevice{}); err != nil || r.StatusCode() != http.StatusOK {
		t.Fatalf("retire: %v, %s", err, r.Body)
	}
	if u := usage(); u.Total.Received < first.Total.Received {
		t.Errorf("the retired device has %+v, %+v before", u, first)
	}
	servertest.Eventually(t, time.Minute, func() error {
		r, err := m.API.GetUsageWithResponse(ctx, nil)
		if err != nil || r.JSON200 == nil || len(r.JSON200.Days) == 0 {
			return fmt.Errorf("usage of all: %w, %+v", err, r)
		}
		if u := r.JSON200; u.Days[0].Devices != 1 || u.Days[0].P50 != u.Days[0].P99 || u.Total.Received < first.Total.Received {
			return fmt.Errorf("usage of all: %+v", u)
		}
		return nil
	})
}

// TestUsageBadInput: each mistake names its field.
func TestUsageBadInput(t *testing.T) {
	m := servertest.Start(t)
	for _, c := range []struct{ since, until, field string }{
		{"yesterday", "2026-11-23", "query.since"},
		{"2026-11-23", "2026-11-31", "query.until"},
		{"2026-11-24", "2026-11-23", "query.since"},
		{"2025-10-19", "2026-11-23", "query.since"}, // 401 days
		{"0001-01-01", "0001-01-02", "query.until"},
		{"2026-11-23T00:00:00Z", "2026-11-23", "query.since"},
	} {
		r, err := m.API.GetUsageWithResponse(t.Context(), &client.GetUsageParams{Since: &c.since, Until: &c.until})
		if err != nil {
			t.Fatal(err)
		}
		p := r.ApplicationproblemJSON422
		if p == nil || p.Errors == nil || (*p.Errors)[0].Field != c.field {
			t.Errorf("since %s until %s: %s, want a problem of %s", c.since, c.until, r.Body, c.field)
		}
	}
	since, until := "2025-10-20", "2026-11-23" // 400 days
	r, err := m.API.GetUsageWithResponse(t.Context(), &client.GetUsageParams{Since: &since, Until: &until})
	if err != nil || r.JSON200 == nil || len(r.JSON200.Days) != 0 {
		t.Errorf("400 days: %v, %s", err, r.Body)
	}
	n, err := m.API.GetDeviceUsageWithResponse(t.Context(), "6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f", nil)
	if err != nil || n.StatusCode() != http.StatusNotFound {
		t.Errorf("a device that nobody knows: %v, %s", err, n.Body)
	}
}

// TestTelemetryFitsTheDisk: a limit that the disk cannot promise keeps no
// manager from starting.
func TestTelemetryFitsTheDisk(t *testing.T) {
	servertest.Start(t, func(c *server.Config) { c.Telemetry.MaxBytes = math.MaxInt64 })
}
