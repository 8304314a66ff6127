package projections

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"pallas/events"
)

func TestTaskEvents(t *testing.T) {
	accepted := events.TaskAccepted{Task: task1}
	progressed := events.TaskProgressed{Task: task1, Percent: 40, Message: "copying"}
	for _, tc := range []struct {
		name string
		when []events.Event // each a decision of its own, from minute 4 on
		want func(*Task)
	}{
		{"requested", nil, func(*Task) {}},
		{"accepted", []events.Event{accepted}, func(w *Task) { w.Status, w.AcceptedAt = events.TaskStatusAccepted, at(4) }},
		{"progressed", []events.Event{accepted, progressed}, func(w *Task) {
			w.Status, w.AcceptedAt, w.Percent, w.Message = events.TaskStatusAccepted, at(4), 40, "copying"
		}},
		{"succeeded", []events.Event{accepted, progressed, events.TaskSucceeded{Task: task1, Message: "done"}}, func(w *Task) {
			w.Status, w.AcceptedAt, w.Percent, w.Message, w.EndedAt = events.TaskStatusSucceeded, at(4), 100, "done", at(6)
		}},
		{"failed", []events.Event{accepted, progressed, events.TaskFailed{Task: task1, Code: "invalid_state", Message: "no"}}, func(w *Task) {
			w.Status, w.AcceptedAt, w.Percent, w.Message, w.Code, w.EndedAt = events.TaskStatusFailed, at(4), 40, "no", "invalid_state", at(6)
		}},
		{"rejected", []events.Event{events.TaskRejected{Task: task1, Code: "read_only", Message: "licence"}}, func(w *Task) {
			w.Status, w.Message, w.Code, w.EndedAt = events.TaskStatusRejected, "licence", "read_only", at(4)
		}},
		{"cancelled", []events.Event{events.TaskCancelRequested{Task: task1}, events.TaskCancelled{Task: task1, Message: "in time"}}, func(w *Task) {
			w.CancelRequestedAt, w.CancelRequestedBy = at(4), "user:ada"
			w.Status, w.Message, w.EndedAt = events.TaskStatusCancelled, "in time", at(5)
		}},
		{"expired", []events.Event{events.TaskExpired{Task: task1, Message: "too late"}}, func(w *Task) {
			w.Status, w.Message, w.EndedAt = events.TaskStatusExpired, "too late", at(4)
		}},
		{"reported late", []events.Event{
			events.TaskExpired{Task: task1, Message: "too late"},
			events.TaskReportedLate{Task: task1, Status: events.TaskStatusFailed, Code: "host", Message: "hm"},
		}, func(w *Task) {
			w.Status, w.Message, w.EndedAt = events.TaskStatusExpired, "too late", at(4)
			w.Late = &LateReport{At: at(5), Status: events.TaskStatusFailed, Code: "host", Message: "hm"}
		}},
		{"renamed since", []events.Event{
			events.TaskAccepted{Task: task2}, // another one: changes nothing here
		}, func(*Task) {}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLog(t)
			l.register(deviceA, "a")
			l.inventory(deviceA, events.VMObserved{VM: events.VM{ID: vm1, Name: "Till"}})
			p := l.tasks(deviceA, events.TaskRequested{Task: task1, Kind: events.TaskVMPowerOn, VM: vm1, Deadline: at(60)})
			want := Task{
				ID: task1, Device: deviceA, DeviceName: "A2", Kind: events.TaskVMPowerOn, VM: vm1, VMName: "Till",
				Status: events.TaskStatusRequested, RequestedAt: at(3), RequestedBy: "user:ada", Source: "192.0.2.7", Cause: "cause-tasks",
				Deadline: at(60), RequestedPosition: p, ChangedPosition: p, ChangedAt: at(3),
			}
			for i, e := range tc.when {
				p := l.tasks(deviceA, e)
				if _, other := e.(events.TaskAccepted); !other || e == accepted {
					want.ChangedPosition, want.ChangedAt = p, at(4+i)
				}
			}
			tc.want(&want)
			// Names: that of the virtual machine is as it was, the device's as it is.
			l.inventory(deviceA, events.VMChanged{VM: vm1, Patch: events.VMPatch{Name: new("Other")}})
			l.device(deviceA, events.DeviceRenamed{Name: "A2"})
			d := given(t, l)
			got, err := d.Task(t.Context(), everything, task1)
			if diff := cmp.Diff(want, got); diff != "" || err != nil {
				t.Errorf("task: %v (-want +got):\n%s", err, diff)
			}
			open, position, err := d.OpenTasks(t.Context())
			if err != nil || position != d.Position() || (len(open) == 1) == want.Status.Ended() {
				t.Errorf("open tasks: %d at %d, %v", len(open), position, err)
			}
		})
	}
}

// TestTaskEnds says that the first end stays, whatever the log holds after it.
func TestTaskEnds(t *testing.T) {
	l := newLog(t)
	l.tasks(deviceA, events.TaskRequested{Task: task1, Kind: events.TaskVMReset, VM: vm1}, events.TaskExpired{Task: task1, Message: "first"})
	for _, e := range []events.Event{
		events.TaskAccepted{Task: task1},
		events.TaskProgressed{Task: task1, Percent: 9},
		events.TaskSucceeded{Task: task1},
		events.TaskFailed{Task: task1},
		events.TaskRejected{Task: task1},
		events.TaskCancelled{Task: task1},
		events.TaskExpired{Task: task1},
	} {
		l.tasks(deviceA, e)
	}
	got, err := given(t, l).Task(t.Context(), everything, task1)
	if err != nil || got.Status != events.TaskStatusExpired || got.Message != "first" || got.Percent != 0 || !got.AcceptedAt.IsZero() {
		t.Errorf("task %+v, %v", got, err)
	}
}

// TestTaskOfTwoDevices keeps tasks apart that have one id on two devices.
func TestTaskOfTwoDevices(t *testing.T) {
	l := newLog(t)
	l.tasks(deviceB, events.TaskRequested{Task: task1, Kind: events.TaskVMReset, VM: vm1})
	l.tasks(deviceA, events.TaskRequested{Task: task1, Kind: events.TaskVMReset, VM: vm1})
	l.tasks(deviceA, events.TaskSucceeded{Task: task1})
	d := given(t, l)
	got, err := d.Task(t.Context(), everything, task1)
	if err != nil || got.Device != deviceB || got.Status != events.TaskStatusRequested {
		t.Errorf("task %+v, %v", got, err)
	}
	p, err := d.Tasks(t.Context(), TaskFilter{Scope: everything, Device: deviceA})
	if err != nil || len(p.Items) != 1 || p.Items[0].Status != events.TaskStatusSucceeded {
		t.Errorf("tasks %+v, %v", p.Items, err)
	}
	_, err = d.Task(t.Context(), everything, task2)
	is(t, err, ErrNotFound)
}

func TestTasksPages(t *testing.T) {
	l := newLog(t)
	l.register(deviceA, "a")
	l.register(deviceB, "b")
	kinds := []events.TaskKind{events.TaskVMPowerOn, events.TaskVMPowerOff, events.TaskVMReset}
	for i := range 24 {
		id := []events.DeviceID{deviceA, deviceB}[i%2]
		task := events.TaskID(fmt.Sprintf("70000000-0000-4000-8000-%012x", i*7919%997))
		es := []events.Event{events.TaskRequested{Task: task, Kind: kinds[i%3], VM: []events.VMID{vm1, vm2}[i/2%2], Deadline: at(999)}}
		switch i % 4 {
		case 1:
			es = append(es, events.TaskAccepted{Task: task})
		case 2:
			es = append(es, events.TaskSucceeded{Task: task})
		case 3:
			es = append(es, events.TaskFailed{Task: task, Code: "host", Message: "x"})
		}
		l.tasks(id, es...)
	}
	d := given(t, l)
	all, err := d.Tasks(t.Context(), TaskFilter{Scope: everything})
	if err != nil || len(all.Items) != 24 {
		t.Fatalf("tasks: %d, %v", len(all.Items), err)
	}
	if !slices.IsSortedFunc(all.Items, func(a, b Task) int { return int(b.RequestedPosition) - int(a.RequestedPosition) }) {
		t.Error("tasks are not newest first")
	}
	open := func(v Task) bool { return !v.Status.Ended() }
	for name, tc := range map[string]struct {
		filter TaskFilter
		want   func(Task) bool
	}{
		"all":         {TaskFilter{Scope: everything}, func(Task) bool { return true }},
		"device":      {TaskFilter{Scope: everything, Device: deviceB}, func(v Task) bool { return v.Device == deviceB }},
		"vm":          {TaskFilter{Scope: everything, Device: deviceA, VM: vm2}, func(v Task) bool { return v.Device == deviceA && v.VM == vm2 }},
		"kind":        {TaskFilter{Scope: everything, Kind: events.TaskVMReset}, func(v Task) bool { return v.Kind == events.TaskVMReset }},
		"open":        {TaskFilter{Scope: everything, Open: true}, open},
		"open of one": {TaskFilter{Scope: everything, Open: true, Device: deviceA}, func(v Task) bool { return open(v) && v.Device == deviceA }},
		"failed":      {TaskFilter{Scope: everything, Status: []events.TaskStatus{events.TaskStatusFailed}}, func(v Task) bool { return v.Status == events.TaskStatusFailed }},
		"accepted":    {TaskFilter{Scope: everything, Status: []events.TaskStatus{events.TaskStatusAccepted}}, func(v Task) bool { return v.Status == events.TaskStatusAccepted }},
		"open by set": {TaskFilter{Scope: everything, Status: []events.TaskStatus{events.TaskStatusAccepted, events.TaskStatusRequested}}, open},
		"ended":       {TaskFilter{Scope: everything, Status: []events.TaskStatus{events.TaskStatusSucceeded, events.TaskStatusFailed}}, func(v Task) bool { return !open(v) }},
		"none":        {TaskFilter{Scope: everything, Open: true, Status: []events.TaskStatus{events.TaskStatusFailed}}, func(Task) bool { return false }},
	} {
		var want []Task
		for _, v := range all.Items {
			if tc.want(v) {
				want = append(want, v)
			}
		}
		for _, limit := range []int{1, 5, 1000} {
			t.Run(fmt.Sprintf("%s/%d", name, limit), func(t *testing.T) {
				f := tc.filter
				f.Limit = limit
				got := pages(t, func(cursor string) (Page[Task], error) {
					f.Cursor = cursor
					return d.Tasks(t.Context(), f)
				}, limit)
				if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
					t.Errorf("tasks (-want +got):\n%s", diff)
				}
			})
		}
	}
}
