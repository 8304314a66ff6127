package reactors

import (
	"context"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"pallas/commands"
	"pallas/events"
)

func TestTaskIsPushedUntilAccepted(t *testing.T) {
	inHouse(t, func(h *house) {
		id := h.device()
		h.connect(id, 1)
		asked := time.Now()
		task := h.request(id)
		h.pass(30 * time.Minute)
		calls := h.door.take()
		want := []int{0, 5, 15, 35, 75, 155, 315, 615, 915, 1215, 1515}
		if got := times(calls, "tasks", asked); !slices.Equal(got, want) {
			t.Errorf("pushed after %v seconds, want %v", got, want)
		}
		for _, c := range calls {
			if c.Device != id || !slices.Equal(c.Tasks, []events.TaskID{task}) {
				t.Errorf("pushed %+v", c)
			}
		}
		h.accepts(id, task)
		h.pass(24 * time.Hour)
		if calls := h.door.take(); len(calls) != 0 {
			t.Errorf("after it was accepted: %v", calls)
		}
		if end, ok := h.ended(id); ok {
			t.Errorf("it ended: %v", end)
		}
		h.pass(time.Hour)
		end, ok := h.ended(id)
		if !ok || end.Entries[0].Event.Type() != "TaskExpired" || !end.Time.Equal(asked.Add(25*time.Hour)) {
			t.Errorf("end of an accepted task without an outcome: %v", end)
		}
		if end.Actor != "system:tasks" || end.Cause != string(task) {
			t.Errorf("by %s because of %s", end.Actor, end.Cause)
		}
		if n := len(queues(h)); n != 0 {
			t.Errorf("%d queues are remembered", n)
		}
	})
}

// queues counts what the newest reactors remember.
func queues(h *house) map[events.DeviceID]*queue {
	h.pass(time.Hour)
	h.tasks.mu.Lock()
	defer h.tasks.mu.Unlock()
	return h.tasks.queues
}

func TestTaskOfADeviceWithoutASession(t *testing.T) {
	inHouse(t, func(h *house) {
		id := h.device()
		asked := time.Now()
		task := h.request(id)
		h.pass(20 * time.Minute)
		if got := times(h.door.take(), "tasks", asked); !slices.Equal(got, []int{0}) {
			t.Errorf("pushed after %v seconds, want once", got)
		}
		back := time.Now()
		h.connect(id, 1) // the greeting brings the task
		h.pass(20 * time.Second)
		if got := times(h.door.take(), "tasks", back); !slices.Equal(got, []int{5, 15}) {
			t.Errorf("pushed %v seconds after the greeting, want 5 and 15", got)
		}
		h.disconnect(id, 1)
		h.pass(10 * time.Minute)
		if calls := h.door.take(); len(calls) != 0 {
			t.Errorf("pushed without a session: %v", calls)
		}
		h.pass(time.Hour)
		end, ok := h.ended(id)
		if !ok || end.Entries[0].Event.Type() != "TaskExpired" || !end.Time.Equal(asked.Add(time.Hour)) || end.Cause != string(task) {
			t.Errorf("end %v", end)
		}
	})
}

func TestTasksAreInOrder(t *testing.T) {
	inHouse(t, func(h *house) {
		id := h.device()
		h.connect(id, 1)
		first := h.request(id)
		h.pass(time.Minute)
		second := events.TaskID(events.NewID())
		h.do(commands.RequestTask{Device: id, Task: second, Kind: events.TaskVMPowerOff, VM: web, Deadline: time.Now().Add(time.Hour)})
		calls := h.door.take()
		if last := calls[len(calls)-1]; !slices.Equal(last.Tasks, []events.TaskID{first, second}) {
			t.Errorf("pushed %v, want both in their order", last.Tasks)
		}
		h.accepts(id, first)
		asked := time.Now()
		h.pass(6 * time.Second)
		calls = h.door.take()
		if got := times(calls, "tasks", asked); !slices.Equal(got, []int{5}) || !slices.Equal(calls[0].Tasks, []events.TaskID{second}) {
			t.Errorf("pushed %v", calls)
		}
	})
}

func TestCancelIsPushedUntilTheEnd(t *testing.T) {
	inHouse(t, func(h *house) {
		id := h.device()
		h.connect(id, 1)
		task := h.request(id)
		h.pass(time.Second)
		h.door.take()
		asked := time.Now()
		h.do(commands.CancelTask{Device: id, Task: task})
		h.pass(20 * time.Second)
		calls := h.door.take()
		if got := times(calls, "cancel", asked); !slices.Equal(got, []int{0, 5, 15}) || len(calls) != 3 {
			t.Errorf("calls %v", calls)
		}
		h.pass(time.Hour)
		end, ok := h.ended(id)
		if !ok || end.Entries[0].Event.Type() != "TaskCancelled" {
			t.Errorf("end %v", end)
		}
	})
}

// A task that is accepted at the very moment of its expiry is not forgotten.
func TestTaskIsAcceptedAtItsDeadline(t *testing.T) {
	inHouse(t, func(h *house) {
		id := h.device()
		asked := time.Now()
		task := h.request(id)
		other, err := commands.New(commands.Config{Store: h.store})
		if err != nil {
			t.Fatal(err)
		}
		h.before.Store(func(d events.Decision) {
			if _, ok := d.Entries[0].Event.(events.TaskExpired); ok && time.Since(asked) < 2*time.Hour {
				if _, err := other.Do(context.Background(), commands.ReportTasks{
					Device: id, Epoch: 1, Facts: []commands.TaskFact{{Seq: 3, Task: task, Status: events.TaskStatusAccepted}},
				}, operator); err != nil {
					t.Error(err)
				}
			}
		})
		h.pass(2 * time.Hour)
		if end, ok := h.ended(id); ok {
			t.Errorf("it ended although it was accepted: %v", end)
		}
		h.pass(24 * time.Hour)
		if end, ok := h.ended(id); !ok || !end.Time.Equal(asked.Add(25*time.Hour)) {
			t.Errorf("end %v", end)
		}
	})
}

// A task that comes while another one is being pushed does not wait for the
// other's repeat.
func TestTaskComesDuringAPush(t *testing.T) {
	inHouse(t, func(h *house) {
		id := h.device()
		h.connect(id, 1)
		h.door.mu.Lock()
		h.door.during = func() {
			if _, err := h.commands.Do(context.Background(), commands.RequestTask{
				Device: id, Task: events.TaskID(events.NewID()), Kind: events.TaskVMPowerOff, VM: web, Deadline: time.Now().Add(time.Hour),
			}, operator); err != nil {
				t.Error(err)
			}
			<-time.After(time.Second) // the news arrives
		}
		h.door.mu.Unlock()
		asked := time.Now()
		h.request(id)
		h.pass(2 * time.Second)
		calls := h.door.take()
		if last := calls[len(calls)-1]; len(last.Tasks) != 2 || !last.At.Equal(asked.Add(time.Second)) {
			t.Errorf("calls %v, want both tasks right after the first push", calls)
		}
	})
}

func TestTasksAfterARestart(t *testing.T) {
	for name, model := range map[string]func(*house) ReadModel{
		"up to date": func(h *house) ReadModel { return replayed{h.store} },
		"behind":     func(*house) ReadModel { return behind{} },
	} {
		t.Run(name, func(t *testing.T) {
			inHouse(t, func(h *house) {
				open, over, retired, done := h.device(), h.device(), h.device(), h.device()
				task := h.request(open)
				h.request(over)
				orphan := h.request(retired)
				h.do(commands.ReportTasks{Device: done, Epoch: 1, Facts: nil})
				finished := h.request(done)
				h.do(commands.ReportTasks{Device: done, Epoch: 1, Facts: []commands.TaskFact{{Seq: 3, Task: finished, Status: events.TaskStatusSucceeded}}})
				h.stop()
				h.stop = nil
				h.do(commands.RetireDevice{Device: retired})
				h.do(commands.CancelTask{Device: over, Task: h.tasksOf(over)[0].ID})
				h.pass(59 * time.Minute)
				h.door.take()

				h.model = model(h)
				h.restart()
				started := time.Now()
				if end, ok := h.ended(retired); !ok || end.Cause != string(orphan) || end.Entries[0].Event.Type() != "TaskCancelled" {
					t.Errorf("task of a device that was retired meanwhile: %v", end)
				}
				h.connect(open, 1)
				h.pass(6 * time.Second)
				calls := h.door.take()
				for _, c := range calls {
					if c.What == "tasks" && (c.Device != open || c.Tasks[0] != task) {
						t.Errorf("pushed %+v", c)
					}
				}
				if got := times(calls, "tasks", started); !slices.Equal(got, []int{0, 5}) {
					t.Errorf("pushed after %v seconds, want 0 and 5", got)
				}
				h.pass(time.Hour)
				if end, ok := h.ended(open); !ok || end.Entries[0].Event.Type() != "TaskExpired" {
					t.Errorf("task whose deadline came after the start: %v", end)
				}
				if end, ok := h.ended(over); !ok || end.Entries[0].Event.Type() != "TaskCancelled" {
					t.Errorf("task to be cancelled: %v", end)
				}
			})
		})
	}
}

func (h *house) tasksOf(id events.DeviceID) []commands.Task {
	h.t.Helper()
	k, err := h.commands.Tasks(h.t.Context(), id)
	if err != nil {
		h.t.Fatal(err)
	}
	return k.Open()
}

func TestRetiredDeviceLosesEverything(t *testing.T) {
	inHouse(t, func(h *house) {
		id := h.device()
		h.connect(id, 1)
		accepted := h.request(id)
		h.accepts(id, accepted)
		waiting := events.TaskID(events.NewID())
		h.do(commands.RequestTask{Device: id, Task: waiting, Kind: events.TaskVMPowerOff, VM: web, Deadline: time.Now().Add(time.Hour)})
		h.door.take()
		h.door.fail(errTest)
		sold := time.Now()
		h.do(commands.RetireDevice{Device: id, Reason: "sold"})
		h.pass(10 * time.Second)
		h.door.fail(nil)
		h.pass(time.Minute)
		calls := h.door.take()
		if n := len(times(calls, "retire", h.start)); n < 2 || n != len(calls) {
			t.Errorf("calls %v, want retirements until one works", calls)
		}
		if h.pass(time.Hour); len(h.door.take()) != 0 {
			t.Error("the door was not left alone afterwards")
		}
		if n := h.logs.count("device not reached, trying again"); n != 1 {
			t.Errorf("%d warnings, want 1", n)
		}
		ends := map[events.TaskID]string{}
		for _, r := range h.happened(id, "TaskFailed", "TaskCancelled") {
			ends[events.TaskID(r.Cause)] = r.Entries[0].Event.Type()
			if !r.Time.Equal(sold) {
				t.Errorf("task %s ended %s after the retirement", r.Cause, r.Time.Sub(sold))
			}
		}
		if len(ends) != 2 || ends[accepted] != "TaskFailed" || ends[waiting] != "TaskCancelled" {
			t.Errorf("ends %v", ends)
		}
	})
}

// A device that is kept out loses its session, and keeps its tasks.
func TestKeptOutDeviceKeepsItsTasks(t *testing.T) {
	other := strings.Repeat("b2", 32)
	for name, tc := range map[string]struct {
		commands []commands.Command
		want     []string // the door's calls
	}{
		"quarantined": {[]commands.Command{commands.QuarantineDevice{Cause: events.QuarantineOperator}}, []string{"kick"}},
		"released":    {[]commands.Command{commands.QuarantineDevice{Cause: events.QuarantineOperator}, commands.ReleaseDevice{}}, []string{"kick"}},
		"claimed":     {[]commands.Command{commands.ClaimKey{KeyHash: other, Token: events.TokenID(events.NewID()), Name: "b"}}, []string{"kick"}},
		"rekeyed": {[]commands.Command{
			commands.ClaimKey{KeyHash: other, Token: events.TokenID(events.NewID()), Name: "b"}, commands.RekeyDevice{},
		}, []string{"kick", "kick"}},
	} {
		t.Run(name, func(t *testing.T) {
			inHouse(t, func(h *house) {
				id := h.device()
				h.connect(id, 1)
				h.request(id)
				h.door.take()
				for _, c := range tc.commands {
					h.do(of(id, c))
				}
				var got []string
				for _, c := range h.door.take() {
					if c.Device == id && c.What != "tasks" {
						got = append(got, c.What)
					}
				}
				if !slices.Equal(got, tc.want) {
					t.Errorf("calls %v, want %v", got, tc.want)
				}
				if n := len(h.tasksOf(id)); n != 1 {
					t.Errorf("%d open tasks, want 1", n)
				}
				h.pass(2 * time.Hour) // beyond the deadline
				if end, ok := h.ended(id); !ok || end.Entries[0].Event.Type() != "TaskExpired" {
					t.Errorf("end %v", end)
				}
			})
		})
	}
	t.Run("rejected", func(t *testing.T) {
		inHouse(t, func(h *house) {
			id := h.pending()
			h.connect(id, 1)
			h.door.take()
			h.do(commands.RejectDevice{Device: id})
			if calls := h.door.take(); len(calls) != 1 || calls[0].What != "kick" {
				t.Errorf("calls %v, want a kick", calls)
			}
		})
	})
}

// of fills in the device of a command.
func of(id events.DeviceID, c commands.Command) commands.Command {
	switch c := c.(type) {
	case commands.QuarantineDevice:
		c.Device = id
		return c
	case commands.ReleaseDevice:
		c.Device = id
		return c
	case commands.ClaimKey:
		c.Device = id
		return c
	case commands.RekeyDevice:
		c.Device = id
		return c
	default:
		return c
	}
}

func TestApprovedDeviceIsGreeted(t *testing.T) {
	inHouse(t, func(h *house) {
		id := h.pending()
		h.connect(id, 1)
		h.door.take()
		h.do(commands.ApproveDevice{Device: id})
		calls := h.door.take()
		if len(calls) != 1 || calls[0].What != "refresh" || calls[0].Device != id {
			t.Errorf("calls %v", calls)
		}
	})
}

func TestTroubleWithTasksIsTriedAgain(t *testing.T) {
	inHouse(t, func(h *house) {
		id := h.device()
		h.connect(id, 1)
		h.door.fail(errTest)
		asked := time.Now()
		h.request(id)
		h.pass(8 * time.Second)
		if got := times(h.door.take(), "tasks", asked); !slices.Equal(got, []int{0, 1, 3, 7}) {
			t.Errorf("tried after %v seconds, want 0, 1, 3 and 7", got)
		}
		h.door.fail(nil)
		h.pass(15 * time.Minute)
		h.door.take()
		h.store.FailAppends(func(events.Decision) error { return events.ErrNoSpace })
		h.pass(2 * time.Hour)
		if _, ok := h.ended(id); ok {
			t.Fatal("it ended although the log is full")
		}
		h.store.FailAppends(nil)
		h.pass(2 * time.Minute)
		if end, ok := h.ended(id); !ok || end.Entries[0].Event.Type() != "TaskExpired" {
			t.Errorf("end %v", end)
		}
		if n := h.logs.count("tasks not brought forward, trying again"); n != 2 {
			t.Errorf("%d warnings, want one for each of the two troubles", n)
		}
	})
}

// Waiting costs no goroutines.
func TestManyDevicesWait(t *testing.T) {
	inHouse(t, func(h *house) {
		const n = 100
		before := runtime.NumGoroutine()
		for i := range n {
			id := h.device()
			h.connect(id, uint64(i+1))
			h.request(id)
			h.disconnect(id, uint64(i+1))
		}
		if more := runtime.NumGoroutine() - before; more > n/10 {
			t.Errorf("%d goroutines more for %d devices", more, n)
		}
		h.pass(2 * time.Hour)
		for _, kind := range []string{"DeviceConnected", "DeviceLost", "TaskRequested", "TaskExpired"} {
			if got := h.countTypes(kind); got != n {
				t.Errorf("%d of %s, want %d", got, kind, n)
			}
		}
	})
}

func (h *house) countTypes(kind string) (n int) {
	h.t.Helper()
	for r, err := range h.store.Read(h.t.Context(), events.Filter{}) {
		if err != nil {
			h.t.Fatal(err)
		}
		for _, en := range r.Entries {
			if en.Event.Type() == kind {
				n++
			}
		}
	}
	return n
}
