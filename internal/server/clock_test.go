package server_test

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"pallas/agent/hypervisor/fake"
	"pallas/events"
	"pallas/internal/config"
	"pallas/internal/server"
	"pallas/internal/servertest"
)

// wallClock is a clock that can be set while the machine runs.
type wallClock struct{ ahead atomic.Int64 } // seconds

func (c *wallClock) set(ahead time.Duration) { c.ahead.Store(int64(ahead / time.Second)) }

// Now is as time.Now on a machine whose clock was set: the wall clock jumps and
// the monotonic one does not. No function of package time makes such a Time, so
// the seconds are added where it holds them; TestWallClock sees that they are
// still there.
func (c *wallClock) Now() time.Time {
	t := time.Now()
	*(*uint64)(unsafe.Pointer(&t)) += uint64(c.ahead.Load()) << 30 //nolint:gosec // wraps for negative ones, as meant
	return t
}

func TestWallClock(t *testing.T) {
	for _, ahead := range []time.Duration{0, 6 * time.Hour, -6 * time.Hour} {
		var c wallClock
		before := c.Now()
		c.set(ahead)
		after := c.Now()
		if d := after.Sub(before); d < 0 || d > time.Minute {
			t.Errorf("set by %v, the monotonic clock went on by %v", ahead, d)
		}
		if d := after.Round(0).Sub(before.Round(0)) - ahead; d < 0 || d > time.Minute {
			t.Errorf("set by %v, the wall clock is wrong by %v", ahead, d)
		}
	}
}

// TestCertificateEnds lets a device's certificate end while it is connected: it
// is closed and kept out, the log says why, and its neighbour notices nothing.
func TestCertificateEnds(t *testing.T) {
	const life = time.Hour
	var clock wallClock
	m := servertest.New(t, func(c *server.Config) {
		c.Devices.Grace = config.Duration(time.Second)
		c.Devices.CertificateLife = config.Duration(life)
	})
	m.Clock = clock.Now
	m.Run()
	stays := startAgent(t, "stays", m.Join(1), fake.Sample("stays", 1))
	servertest.Eventually(t, 30*time.Second, func() error { return connected(m, 1) })
	clock.set(10*time.Second - life)
	ends := startAgent(t, "ends", m.Join(1), fake.Sample("ends", 1))
	servertest.Eventually(t, 30*time.Second, func() error { return connected(m, 2) })
	clock.set(0)
	servertest.Eventually(t, 30*time.Second, func() error { return connected(m, 1) })
	if !stays.Stats().Connected || ends.Stats().Connected {
		t.Errorf("connected: %v and %v, want the one with a certificate only", stays.Stats().Connected, ends.Stats().Connected)
	}
	id := events.DeviceID(ends.Device())
	m.Stop()
	store, done := m.OpenLog()
	defer done()
	for _, r := range servertest.Records(t, store) {
		for _, e := range r.Entries {
			if lost, ok := e.Event.(events.DeviceLost); ok && (r.Subject.Device() != id || !strings.Contains(lost.Reason, "xpired")) {
				t.Errorf("%s was lost: %s", r.Subject, lost.Reason)
			}
		}
	}
}
