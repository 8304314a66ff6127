package commands

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strings"
	"time"

	"pallas/events"
)

// Tasks is the folded state of a device's task queue. Revision 0 means that
// nothing was ever asked of the device.
type Tasks struct {
	// Epoch and Seq are the place of the newest report that is in the log.
	Epoch uint64 `json:"epoch,omitempty"`
	Seq   uint64 `json:"seq,omitempty"`
	// Tasks are the open ones, and those that ended less than 24 h before the
	// newest decision, of these at most the newest 4096.
	Tasks map[events.TaskID]Task `json:"tasks,omitempty"`
	// Past holds a hash of the id of every task that is no longer in Tasks, so
	// that an id is never used twice.
	Past     []uint64 `json:"past,omitempty"`
	Revision uint64   `json:"revision"`
}

// Task is one task of a device.
type Task struct {
	ID     events.TaskID     `json:"id"`
	Kind   events.TaskKind   `json:"kind"`
	VM     events.VMID       `json:"vm,omitempty"`
	Status events.TaskStatus `json:"status"`
	// CancelRequested says that somebody wants it not to happen.
	CancelRequested bool `json:"cancelRequested,omitempty"`
	// Percent is how far it has come, as far as reported.
	Percent     int       `json:"percent,omitempty"`
	Deadline    time.Time `json:"deadline"`
	RequestedAt time.Time `json:"requestedAt"`
	// Requested is the position of the decision that asked for it: tasks of one
	// device are to be done in this order.
	Requested uint64 `json:"requested"`
	// EndedAt is zero while the task is open.
	EndedAt time.Time `json:"endedAt,omitzero"`
	// Code is the code of a failed or rejected task.
	Code string `json:"code,omitempty"`
	// Late is the newest status that the device reported after the end, if that
	// was another one.
	Late events.TaskStatus `json:"late,omitempty"`
}

// What is kept of ended tasks, and how long an accepted task may go on.
const (
	keepEnded    = 24 * time.Hour
	maxEnded     = 4096
	OutcomeGrace = 24 * time.Hour // from the deadline to the end of an accepted task without an outcome
)

// Expiry is when the task ends by itself: at its deadline, or, once the device
// has accepted it, OutcomeGrace after that.
func (t Task) Expiry() time.Time {
	if t.Status == events.TaskStatusAccepted {
		return t.Deadline.Add(OutcomeGrace)
	}
	return t.Deadline
}

// Open returns the tasks that have not ended, in the order of their requests.
func (t Tasks) Open() []Task {
	var out []Task
	for _, k := range t.Tasks {
		if !k.Status.Ended() {
			out = append(out, k)
		}
	}
	slices.SortFunc(out, func(a, b Task) int { return cmp.Compare(a.Requested, b.Requested) })
	return out
}

// RequestTask asks a device to do something. A task id that is taken by the
// same request gets the first answer; by another one it is refused.
type RequestTask struct {
	Device events.DeviceID
	Task   events.TaskID
	Kind   events.TaskKind
	VM     events.VMID
	// Deadline is when the task expires unless the device has accepted it: in
	// the future and at most 30 days away.
	Deadline time.Time
}

// CancelTask asks for a task not to happen. The device has the last word.
type CancelTask struct {
	Device events.DeviceID
	Task   events.TaskID
}

// ExpireTask ends a task whose time has come, see Task.Expiry. Before that it
// changes nothing.
type ExpireTask struct {
	Device events.DeviceID
	Task   events.TaskID
}

// EndTask ends an open task that nobody will report on any more: its device was
// retired, or does not know it any more. One that was not accepted is
// cancelled; an accepted one has failed, since nobody can tell its outcome.
type EndTask struct {
	Device events.DeviceID
	Task   events.TaskID
	// Reason is for people.
	Reason string
}

// TaskFact is one report of a device about a task.
type TaskFact struct {
	// Seq is the report's number in the epoch.
	Seq uint64
	// Time is the device's clock; zero when it did not say.
	Time time.Time
	Task events.TaskID
	// Status is accepted, succeeded, failed, rejected or cancelled; unless
	// Progress is set.
	Status events.TaskStatus
	// Progress says that the fact is about Percent, 0 to 100.
	Progress bool
	Percent  int
	// Code and Message say why a task failed or was rejected.
	Code    string
	Message string
}

// ReportTasks records what a device reports of its tasks, as far as it is
// news. It is like [ReportInventory].
type ReportTasks struct {
	Device events.DeviceID
	Epoch  uint64
	Facts  []TaskFact
}

// Subject returns the task queue's aggregate.
func (c RequestTask) Subject() events.Subject { return events.TasksSubject(c.Device) }

// Subject returns the task queue's aggregate.
func (c CancelTask) Subject() events.Subject { return events.TasksSubject(c.Device) }

// Subject returns the task queue's aggregate.
func (c ExpireTask) Subject() events.Subject { return events.TasksSubject(c.Device) }

// Subject returns the task queue's aggregate.
func (c EndTask) Subject() events.Subject { return events.TasksSubject(c.Device) }

// Subject returns the task queue's aggregate.
func (c ReportTasks) Subject() events.Subject { return events.TasksSubject(c.Device) }

func (RequestTask) sealed() {}
func (CancelTask) sealed()  {}
func (ExpireTask) sealed()  {}
func (EndTask) sealed()     {}
func (ReportTasks) sealed() {}

func (t Tasks) request(c RequestTask, dev Device, inv Inventory, now time.Time) ([]events.Event, error) {
	if err := first(checkTask(c.Task), checkKind(c.Kind)); err != nil {
		return nil, err
	}
	if _, err := events.ParseVMID(string(c.VM)); err != nil {
		return nil, invalid("vm", "%s", err)
	}
	if k, ok := t.Tasks[c.Task]; ok {
		if k.Kind != c.Kind || k.VM != c.VM {
			return nil, invalid("Idempotency-Key", "was used for another task (%s of virtual machine %s): use a new key", k.Kind, k.VM)
		}
		return nil, nil
	}
	if slices.Contains(t.Past, hashTask(c.Task)) {
		return nil, &Error{
			Kind: KindConflict, Field: "Idempotency-Key", Code: CodeTaskReused,
			Message: fmt.Sprintf("was used for task %s, which ended more than a day ago: use a new key", c.Task),
		}
	}
	if err := first(checkWithin("deadline", c.Deadline, now, MaxDeadline), dev.ready(c.Device, 0)); err != nil {
		return nil, err
	}
	switch dev.Trust {
	case TrustPending:
		return nil, conflict(CodePending, "device %s waits for approval: approve it first", dev.ID)
	case TrustRejected:
		return nil, conflict(CodeRejected, "device %s was rejected: approve it first", dev.ID)
	case TrustQuarantined:
		return nil, dev.isQuarantined()
	case TrustRetired:
		return nil, conflict(CodeRetired, "device %s was retired: it takes no tasks any more", dev.ID)
	case TrustApproved:
	}
	vm, ok := inv.VMs[c.VM]
	if !ok {
		return nil, notFound("device %s has no virtual machine %s", dev.ID, c.VM)
	}
	if err := inv.writable(); err != nil {
		return nil, err
	}
	open, others := 0, false
	for _, k := range t.Tasks {
		if k.Status.Ended() {
			continue
		}
		open++
		if k.VM == c.VM && k.Kind == c.Kind {
			return nil, conflict(CodeTaskOpen, "task %s does the same and has not ended: wait for it, or cancel it", k.ID)
		}
		others = others || k.VM == c.VM
	}
	if open >= MaxOpenTasks {
		return nil, conflict(CodeTaskLimit, "device %s has %d open tasks: wait until some have ended, or cancel some", dev.ID, open)
	}
	// With another task under way, the state will be another one when this
	// task's turn comes; the device judges then.
	if !others {
		if err := fits(c.Kind, vm); err != nil {
			return nil, err
		}
	}
	return []events.Event{events.TaskRequested{Task: c.Task, Kind: c.Kind, VM: c.VM, Deadline: instant(c.Deadline)}}, nil
}

// writable refuses tasks for a host that permits no changes.
func (i Inventory) writable() *Error {
	const hint = "the host permits no changes through its API"
	switch {
	case i.Condition == events.ConditionReadOnly:
		return conflict(CodeReadOnly, "%s: %s", hint, or(i.ConditionMessage, "its licence is read-only"))
	case i.Host != nil && !i.Host.License.Writable:
		return conflict(CodeReadOnly, "%s: %s", hint, or(i.Host.License.Reason, "its licence is read-only"))
	}
	return nil
}

// fits refuses a task that the virtual machine's state rules out. An unknown
// state rules out nothing.
func fits(kind events.TaskKind, vm events.VM) *Error {
	name := fmt.Sprintf("virtual machine %q", vm.Name)
	switch kind {
	case events.TaskVMPowerOn:
		if vm.Power == events.PowerOn {
			return conflict(CodePowerState, "%s is already on", name)
		}
	case events.TaskVMPowerOff:
		if vm.Power == events.PowerOff {
			return conflict(CodePowerState, "%s is already off", name)
		}
	case events.TaskVMReset, events.TaskVMSuspend, events.TaskVMShutdown:
		if vm.Power == events.PowerOff || vm.Power == events.PowerSuspended {
			return conflict(CodePowerState, "%s is %s: power it on first", name, vm.Power)
		}
		if kind == events.TaskVMShutdown && (vm.Tools == events.ToolsNotRunning || vm.Tools == events.ToolsNotInstalled) {
			return conflict(CodeTools, "%s has no running guest tools (%s): they are needed to shut down the guest; power it off instead", name, vm.Tools)
		}
	}
	return nil
}

func (t Tasks) cancel(c CancelTask) ([]events.Event, error) {
	k, err := t.get(c.Task)
	switch {
	case err != nil:
		return nil, err
	case k.Status.Ended():
		return nil, conflict(CodeTaskEnded, "task has already %s", ended(k.Status))
	case k.CancelRequested:
		return nil, nil
	}
	return []events.Event{events.TaskCancelRequested{Task: c.Task}}, nil
}

func (t Tasks) expire(c ExpireTask, now time.Time) ([]events.Event, error) {
	k, err := t.get(c.Task)
	switch {
	case err != nil:
		return nil, err
	case k.Status.Ended() || now.Before(k.Expiry()):
		return nil, nil
	case k.Status == events.TaskStatusAccepted:
		return []events.Event{events.TaskExpired{Task: c.Task, Message: "the device accepted it, but no outcome was reported within a day of its deadline"}}, nil
	case k.CancelRequested:
		return []events.Event{events.TaskCancelled{Task: c.Task, Message: "its deadline passed before the device answered"}}, nil
	}
	return []events.Event{events.TaskExpired{Task: c.Task, Message: "its deadline passed before the device accepted it"}}, nil
}

func (t Tasks) end(c EndTask) ([]events.Event, error) {
	if err := checkText("reason", c.Reason, MaxReason); err != nil {
		return nil, err
	}
	k, err := t.get(c.Task)
	switch {
	case err != nil:
		return nil, err
	case k.Status.Ended():
		return nil, nil
	case k.Status == events.TaskStatusAccepted: // it may have happened: nobody can tell
		return []events.Event{events.TaskFailed{Task: c.Task, Code: "interrupted", Message: c.Reason + "; the outcome is not known"}}, nil
	}
	return []events.Event{events.TaskCancelled{Task: c.Task, Message: c.Reason}}, nil
}

func (t Tasks) get(id events.TaskID) (Task, error) {
	k, ok := t.Tasks[id]
	if !ok {
		return Task{}, notFound("task %s is not known", clip(string(id)))
	}
	return k, nil
}

func (t Tasks) report(c ReportTasks, dev Device) (Outcome, error) {
	if err := first(
		checkNumbers(c.Epoch, len(c.Facts), func(n int) uint64 { return c.Facts[n].Seq }),
		dev.mayReport(c.Device),
	); err != nil {
		return Outcome{}, err
	}
	var out Outcome
	if t.Epoch == c.Epoch {
		out.Cursor = t.Seq
	}
	draft := map[events.TaskID]Task{} // the tasks as changed by the facts so far
	for _, f := range c.Facts {
		if f.Seq <= out.Cursor {
			continue
		}
		k, ok := draft[f.Task]
		if !ok {
			k, ok = t.Tasks[f.Task]
		}
		if err := f.check(ok); err != nil {
			out.Invalid = append(out.Invalid, InvalidFact{Seq: f.Seq, Message: fmt.Sprintf("report %d: %s", f.Seq, err)})
			continue
		}
		if e := f.event(k); e != nil {
			k.apply(e)
			draft[f.Task] = k
			out.Entries = append(out.Entries, reported(e, c.Epoch, f.Seq, f.Time))
			out.Cursor = f.Seq
		}
	}
	return out, nil
}

// check says what is wrong with a fact.
func (f TaskFact) check(known bool) error {
	if err := first(checkTask(f.Task), checkReported("task.code", f.Code), checkReported("task.message", f.Message)); err != nil {
		return err
	}
	if !known {
		return invalid("task.id", "%s is not a task of this device", f.Task)
	}
	if f.Progress {
		if f.Percent < 0 || f.Percent > 100 {
			return invalid("task.percent", "%d: want 0 to 100", f.Percent)
		}
		return nil
	}
	switch f.Status {
	case events.TaskStatusAccepted, events.TaskStatusSucceeded, events.TaskStatusFailed,
		events.TaskStatusRejected, events.TaskStatusCancelled:
		return nil
	case events.TaskStatusRequested, events.TaskStatusExpired:
	}
	return invalid("task.state", "%q: want accepted, progress, succeeded, failed, rejected or cancelled", clip(string(f.Status)))
}

// event returns what a checked fact says that is news of the task, or nil.
func (f TaskFact) event(k Task) events.Event {
	switch {
	case k.Status.Ended():
		// Only another outcome is news: that the device has begun, or comes
		// along, is over by now.
		outcome := !f.Progress && f.Status.Ended()
		if !outcome || (f.Status == k.Status && f.Code == k.Code) || f.Status == k.Late {
			return nil
		}
		return events.TaskReportedLate{Task: f.Task, Status: f.Status, Code: f.Code, Message: f.Message}
	case f.Progress:
		if f.Percent <= k.Percent {
			return nil
		}
		return events.TaskProgressed{Task: f.Task, Percent: f.Percent, Message: f.Message}
	}
	switch f.Status {
	case events.TaskStatusAccepted:
		if k.Status == events.TaskStatusRequested {
			return events.TaskAccepted{Task: f.Task}
		}
	case events.TaskStatusSucceeded:
		return events.TaskSucceeded{Task: f.Task, Message: f.Message}
	case events.TaskStatusFailed:
		return events.TaskFailed{Task: f.Task, Code: f.Code, Message: f.Message}
	case events.TaskStatusRejected:
		return events.TaskRejected{Task: f.Task, Code: f.Code, Message: f.Message}
	case events.TaskStatusCancelled:
		return events.TaskCancelled{Task: f.Task, Message: f.Message}
	case events.TaskStatusRequested, events.TaskStatusExpired:
	}
	return nil
}

// Evolve returns the state after a record of the task queue's aggregate. It is
// pure.
func (t Tasks) Evolve(r events.Record) Tasks { return evolve(t, r) }

func (t *Tasks) fork() folded {
	c := *t
	c.Tasks = maps.Clone(t.Tasks)
	c.Past = slices.Clip(t.Past) // an append makes a copy
	return &c
}

func (t *Tasks) fold(r events.Record) {
	if t.Tasks == nil {
		t.Tasks = map[events.TaskID]Task{}
	}
	for _, en := range r.Entries {
		if e, ok := en.Event.(events.TaskRequested); ok {
			if _, known := t.Tasks[e.Task]; !known {
				t.Tasks[e.Task] = Task{
					ID: e.Task, Kind: e.Kind, VM: e.VM, Status: events.TaskStatusRequested,
					Deadline: e.Deadline, RequestedAt: r.Time, Requested: r.Position,
				}
			}
		} else if id := taskOf(en.Event); id != "" {
			if k, known := t.Tasks[id]; known {
				k.apply(en.Event)
				if k.Status.Ended() && k.EndedAt.IsZero() {
					k.EndedAt = r.Time
				}
				t.Tasks[id] = k
			}
		}
		if en.Report != nil {
			t.Epoch, t.Seq = en.Report.Epoch, en.Report.Seq
		}
	}
	t.dropEnded(r.Time)
	t.Revision = r.Position
}

// taskOf returns the task that an event speaks of, or "".
func taskOf(e events.Event) events.TaskID {
	switch e := e.(type) {
	case events.TaskRequested:
		return e.Task
	case events.TaskAccepted:
		return e.Task
	case events.TaskProgressed:
		return e.Task
	case events.TaskSucceeded:
		return e.Task
	case events.TaskFailed:
		return e.Task
	case events.TaskRejected:
		return e.Task
	case events.TaskCancelRequested:
		return e.Task
	case events.TaskCancelled:
		return e.Task
	case events.TaskExpired:
		return e.Task
	case events.TaskReportedLate:
		return e.Task
	default:
		return ""
	}
}

// apply makes the task what it is after an event about it. An end stays.
func (k *Task) apply(e events.Event) {
	if e, ok := e.(events.TaskReportedLate); ok {
		k.Late = e.Status
		return
	}
	if k.Status.Ended() {
		return
	}
	switch e := e.(type) {
	case events.TaskAccepted:
		k.Status = events.TaskStatusAccepted
	case events.TaskProgressed:
		k.Status, k.Percent = events.TaskStatusAccepted, e.Percent
	case events.TaskSucceeded:
		k.Status = events.TaskStatusSucceeded
	case events.TaskFailed:
		k.Status, k.Code = events.TaskStatusFailed, e.Code
	case events.TaskRejected:
		k.Status, k.Code = events.TaskStatusRejected, e.Code
	case events.TaskCancelRequested:
		k.CancelRequested = true
	case events.TaskCancelled:
		k.Status = events.TaskStatusCancelled
	case events.TaskExpired:
		k.Status = events.TaskStatusExpired
	default:
	}
}

// dropEnded moves tasks that ended long enough ago to the past.
func (t *Tasks) dropEnded(now time.Time) {
	var old []Task
	kept := 0
	for _, k := range t.Tasks {
		switch {
		case !k.Status.Ended():
		case now.Sub(k.EndedAt) >= keepEnded:
			old = append(old, k)
		default:
			kept++
		}
	}
	if kept > maxEnded {
		old = nil
		for _, k := range t.Tasks {
			if k.Status.Ended() {
				old = append(old, k)
			}
		}
		slices.SortFunc(old, endOrder)
		old = old[:len(old)-maxEnded]
	}
	slices.SortFunc(old, endOrder)
	for _, k := range old {
		t.Past = append(t.Past, hashTask(k.ID))
		delete(t.Tasks, k.ID)
	}
}

// endOrder sorts ended tasks by when they ended.
func endOrder(a, b Task) int {
	if c := a.EndedAt.Compare(b.EndedAt); c != 0 {
		return c
	}
	return strings.Compare(string(a.ID), string(b.ID))
}

// hashTask is the FNV-1a hash of a task id. Ids are UUIDs: two of one device
// with the same hash are not to be expected.
func hashTask(id events.TaskID) uint64 {
	h := fnv.New64a()
	h.Write([]byte(id))
	return h.Sum64()
}

func checkKind(k events.TaskKind) *Error {
	switch k {
	case events.TaskVMPowerOn, events.TaskVMPowerOff, events.TaskVMReset, events.TaskVMSuspend, events.TaskVMShutdown:
		return nil
	}
	return invalid("kind", "%q: want vm.power-on, vm.power-off, vm.reset, vm.suspend or vm.shutdown", clip(string(k)))
}

// ended is the status as the end of "task has already …".
func ended(s events.TaskStatus) string {
	switch s {
	case events.TaskStatusCancelled:
		return "been cancelled"
	case events.TaskStatusRejected:
		return "been rejected by the device"
	case events.TaskStatusSucceeded, events.TaskStatusFailed, events.TaskStatusExpired,
		events.TaskStatusRequested, events.TaskStatusAccepted:
	}
	return string(s)
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
