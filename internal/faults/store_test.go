package faults_test

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pallas/internal/client"
	"pallas/internal/faults"
	"pallas/internal/servertest"
)

// TestStoreFails breaks the disk under the log: the manager ends by itself,
// says why, and works after the start that follows, on a good disk.
func TestStoreFails(t *testing.T) {
	for name, fault := range map[string]faults.Fault{
		"full": faults.Filling, "read-only": faults.ReadOnly, "bad write": faults.BadWrite, "bad sync": faults.BadSync,
	} {
		t.Run(name, func(t *testing.T) {
			w := newManager(t)
			if w.disk == nil {
				t.Skip("this test needs a disk with faults")
			}
			w.disk.Set(fault)
			_, _ = w.write(t.Context()) // what is said of it does not matter
			servertest.Eventually(t, 30*time.Second, func() error {
				if len(w.manager.surprises()) == 0 {
					return servertest.ErrNotYet
				}
				return nil
			})
			w.disk.Set(faults.Good)
			if got := w.manager.surprises()[0]; got != "exit status 1" {
				t.Errorf("the manager ended with %s, want exit status 1", got)
			}
			w.wellAgain(name)
			if log := w.manager.tail(1000); !strings.Contains(log, "pallasd: the store cannot be written: ") {
				t.Errorf("the manager did not say why it ended:\n%s", log)
			}
		})
	}
}

// TestStartOnFullDisk: a manager that starts with less room than it wants serves
// what it has. Without a single free block the broker does not start; then the
// manager says so, and the service manager tries again.
func TestStartOnFullDisk(t *testing.T) {
	w := newManager(t)
	if w.disk == nil {
		t.Skip("this test needs a disk with faults")
	}
	w.disk.Set(faults.Low)
	w.manager.kill(nil)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the manager's log ends with:\n%s", w.manager.tail(20))
		}
	})
	servertest.Eventually(t, 30*time.Second, func() error {
		r, err := w.m.API.ListDevicesWithResponse(t.Context(), nil)
		if err == nil && r.JSON200 == nil {
			err = servertest.ErrNotYet
		}
		return err
	})
	if status, err := w.write(t.Context()); err != nil || status != http.StatusInsufficientStorage {
		t.Errorf("write to a full disk: %d, %v, want 507", status, err)
	}
	w.disk.Set(faults.Good)
	w.wellAgain("the disk has room")
	if ends := slices.Clone(w.manager.surprises()); len(ends) > 0 {
		t.Errorf("the manager ended by itself: %v\n%s", ends, w.manager.tail(20))
	}
}

// write makes a join token and returns the status of the answer.
func (w *weather) write(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	r, err := w.m.API.CreateJoinTokenWithResponse(ctx, nil, client.CreateJoinToken{})
	if err != nil {
		return 0, err
	}
	return r.StatusCode(), nil
}

// TestAgentDiskFull fills the disk of agents while their hosts change and tasks
// come: they wait, and go on with everything when there is room again.
func TestAgentDiskFull(t *testing.T) {
	w := newWeather(t)
	if w.small == nil {
		t.Skip("this test needs a disk with faults")
	}
	ctx, cancel := context.WithCancel(t.Context())
	var load sync.WaitGroup
	for i := range fleets * perFleet {
		load.Go(func() { w.books.work(ctx, i) })
	}
	w.do(act{kind: "agents' disk full", hold: 5 * time.Second})
	w.small.Set(faults.Full)
	w.fleets[0].kill(nil) // a start without room
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the log of the agents ends with:\n%s", w.fleets[0].tail(10))
		}
	})
	servertest.Eventually(t, 30*time.Second, w.well)
	w.small.Set(faults.Good)
	cancel()
	load.Wait()
	w.calm()
	w.check(map[string]int{"agents' disk full": 2})
}
