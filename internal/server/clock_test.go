package server_test

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"pallas/agent/hypervisor/fake"
	"pallas/events"
	"pallas/internal/client"
	"pallas/internal/config"
	"pallas/internal/server"
	"pallas/internal/servertest"
	"pallas/mqttgw/wire"
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
		c.Devices.CertificateGrace = 0 // else it would come back by its key
	})
	m.Clock = clock.Now
	m.Run()
	stays := startAgent(t, "stays", m.Join(1), fake.Sample("stays", 1))
	servertest.Eventually(t, 30*time.Second, func() error { return connected(m, 1) })
	clock.set(10*time.Second - life)
	// Nor by its join string, which ends a moment earlier.
	join := m.JoinWith(client.CreateJoinTokenJSONRequestBody{MaxUses: new(int64(1)), Approve: new(client.CreateJoinTokenApproveAuto), Ttl: new(int64(life.Seconds()))})
	ends := startAgent(t, "ends", join, fake.Sample("ends", 1))
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

// TestClockIsSet sets the manager's clock forth and back by hours while devices
// report and do tasks: nothing is lost, doubled or out of order, no task ends
// but by its deadline, and nobody is taken for gone.
func TestClockIsSet(t *testing.T) {
	const devices, rounds = 3, 3
	var clock wallClock
	m := servertest.New(t, func(c *server.Config) { c.Devices.Grace = config.Duration(time.Minute) })
	m.Clock = clock.Now
	m.Run()
	join := m.Join(devices)
	fleet := make([]device, devices)
	for i := range fleet {
		h := fake.Sample(fmt.Sprintf("host-%02d", i), 2)
		fleet[i] = device{host: h, a: startAgent(t, fmt.Sprint("agent ", i), join, h)}
	}
	servertest.Eventually(t, time.Minute, func() error { return connected(m, devices) })

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var load sync.WaitGroup
	made := make([]int, devices)
	for i, d := range fleet {
		load.Go(func() {
			for ; ctx.Err() == nil; made[i]++ {
				name := fmt.Sprintf("change-%d-%d", i, made[i])
				d.host.PutVM(wire.VM{ID: name, Name: name, Power: wire.PowerOff, Tools: wire.ToolsNotRunning})
				pause(ctx, 30*time.Millisecond)
			}
		})
	}
	var asked []string
	late := make(map[string]bool) // the clock was set past its deadline, perhaps before the device took it
	clocks := []time.Duration{6 * time.Hour, 0, -6 * time.Hour, 0, 6 * time.Hour, -6 * time.Hour, 0}
	for round, ahead := range clocks {
		clock.set(ahead)
		for i, d := range fleet {
			for n := range rounds {
				vm := fmt.Sprintf("task-%d-%d-%d", i, round, n)
				d.host.PutVM(wire.VM{ID: vm, Name: vm, Power: wire.PowerOff, Tools: wire.ToolsNotRunning})
				id, err := powerOn(t.Context(), m, d.a.Device(), vm, "key-"+vm)
				if err != nil {
					t.Fatalf("clock at %v: %v", ahead, err)
				}
				asked = append(asked, id)
				late[id] = round%2 == 1 && clocks[round+1] > ahead
			}
		}
		if round%2 == 0 { // else the clock is set while they run
			for _, id := range asked {
				if task := taskIs(t, m, id, client.TaskStatusSucceeded, client.TaskStatusFailed, client.TaskStatusRejected, client.TaskStatusExpired); task.Status != client.TaskStatusSucceeded && (task.Status != client.TaskStatusExpired || !late[id]) {
					t.Fatalf("clock at %v: task %s is %s: %s", ahead, id, task.Status, text(task.Message))
				}
			}
		}
	}
	cancel()
	load.Wait()
	servertest.Eventually(t, time.Minute, func() error { return cmp.Or(noOpenTasks(m), nothingPending(fleet)) })
	m.Stop()

	store, done := m.OpenLog()
	defer done()
	outcomes := make(map[events.TaskID][]string)
	seen, last := make(map[events.VMID]int), make(map[events.Subject]events.Report)
	presence := 0
	for _, r := range servertest.Records(t, store) {
		for _, e := range r.Entries {
			if e.Report != nil {
				if before := last[r.Subject]; e.Report.Seq < before.Seq {
					t.Errorf("report %v after %v at position %d", *e.Report, before, r.Position)
				}
				last[r.Subject] = *e.Report
			}
			switch e := e.Event.(type) {
			case events.VMObserved:
				seen[e.VM.ID]++
			case events.DeviceConnected, events.DeviceLost:
				presence++
			case events.TaskSucceeded:
				outcomes[e.Task] = append(outcomes[e.Task], e.Type())
			case events.TaskFailed:
				outcomes[e.Task] = append(outcomes[e.Task], e.Type())
			case events.TaskRejected:
				outcomes[e.Task] = append(outcomes[e.Task], e.Type())
			case events.TaskExpired:
				outcomes[e.Task] = append(outcomes[e.Task], e.Type())
			}
		}
	}
	for i, d := range fleet {
		for n := range made[i] {
			if c := seen[events.VMID(fmt.Sprintf("change-%d-%d", i, n))]; c != 1 {
				t.Errorf("device %d: change %d is %d times in the log", i, n, c)
			}
		}
		ran := make(map[string]int)
		for _, task := range d.host.Runs() {
			if ran[task.ID.String()]++; ran[task.ID.String()] > 1 {
				t.Errorf("task %s ran again", task.ID)
			}
		}
	}
	for _, id := range asked {
		got := outcomes[events.TaskID(id)]
		if !slices.Equal(got, []string{"TaskSucceeded"}) && (!late[id] || !slices.Equal(got, []string{"TaskExpired"})) {
			t.Errorf("task %s ended as %v", id, got)
		}
	}
	if presence != devices {
		t.Errorf("%d events of presence, want the first connects of %d devices", presence, devices)
	}
	if live, rebuilt := m.LiveHash(), m.RebuiltHash(store); live != rebuilt {
		t.Errorf("the rebuilt read model is not the live one")
	}
}

func nothingPending(fleet []device) error {
	for i, d := range fleet {
		if n := d.a.Stats().Pending; n > 0 {
			return fmt.Errorf("device %d has %d reports without a receipt", i, n)
		}
	}
	return nil
}
