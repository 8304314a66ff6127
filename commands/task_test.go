package commands

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pallas/events"
)

// told makes a report of task facts, numbered from 1, in epoch 7.
func told(facts ...TaskFact) ReportTasks {
	for i := range facts {
		facts[i].Seq = uint64(i + 1)
		if facts[i].Task == "" {
			facts[i].Task = task1
		}
	}
	return ReportTasks{Device: dev, Epoch: 7, Facts: facts}
}

func TestTasks(t *testing.T) {
	deadline := t0.Add(time.Hour)
	request := func(f func(*RequestTask)) RequestTask {
		c := RequestTask{Device: dev, Task: task1, Kind: events.TaskVMPowerOn, VM: web, Deadline: deadline}
		if f != nil {
			f(&c)
		}
		return c
	}
	asked := events.TaskRequested{Task: task1, Kind: events.TaskVMPowerOn, VM: web, Deadline: deadline}
	has := func(p events.PowerState) history { return with(approved, seen(vmOf(web, p))) }
	tools := func(s events.ToolsState) history {
		vm := vmOf(web, events.PowerOn)
		vm.Tools = s
		return with(approved, seen(vm))
	}
	ready := has(events.PowerOff)
	kind := func(k events.TaskKind) RequestTask { return request(func(c *RequestTask) { c.Kind = k }) }
	asks := func(k events.TaskKind) []events.Event {
		e := asked
		e.Kind = k
		return emit(e)
	}
	bad := func(name, field, says string, f func(*RequestTask)) scene {
		return scene{name: "request refuses " + name, given: ready, when: request(f), refused: KindInvalid, field: field, says: says}
	}
	power := func(name string, p events.PowerState, k events.TaskKind, says string) scene {
		return scene{name: name, given: has(p), when: kind(k), refused: KindConflict, code: CodePowerState, says: says}
	}
	open := with(ready, onTasks(asked))
	accepted := with(open, onTasks(events.TaskAccepted{Task: task1}))
	cancelling := with(open, onTasks(events.TaskCancelRequested{Task: task1}))
	over := asked
	over.Deadline = t0
	overAndAccepted := with(ready, onTasks(over, events.TaskAccepted{Task: task1}))
	longOver := asked
	longOver.Deadline = t0.Add(-24 * time.Hour)
	ended := func(e events.Event) history { return with(open, onTasks(e)) }
	ends := map[string]events.Event{
		"succeeded": events.TaskSucceeded{Task: task1}, "failed": events.TaskFailed{Task: task1, Code: "host"},
		"been cancelled": events.TaskCancelled{Task: task1}, "been rejected": events.TaskRejected{Task: task1, Code: "tools"},
		"expired": events.TaskExpired{Task: task1},
	}
	var many []events.Event
	for i := range MaxOpenTasks {
		many = append(many, events.TaskRequested{Task: events.TaskID(fmt.Sprintf("aaaaaaaa-0000-5000-8000-%012d", 1000+i)), Kind: events.TaskVMPowerOn, VM: db, Deadline: deadline})
	}
	crowd := with(ready, history{happened(events.TasksSubject(dev), many...)})
	yesterday := ended(events.TaskSucceeded{Task: task1})
	yesterday[len(yesterday)-1].Time = t0.Add(-25 * time.Hour)
	long := with(yesterday, onTasks(events.TaskRequested{Task: task2, Kind: events.TaskVMPowerOff, VM: db, Deadline: deadline}))

	scenes := []scene{
		{name: "request", given: ready, when: request(nil), then: emit(asked)},
		{name: "request of a device without a session", given: with(ready, onDevice(events.DeviceLost{})), when: request(nil), then: emit(asked)},
		{name: "request again", given: open, when: request(func(c *RequestTask) { c.Deadline = deadline.Add(time.Minute) })},
		{name: "request again when it has ended and the machine is on", given: with(ended(events.TaskSucceeded{Task: task1}), seen(vmOf(web, events.PowerOn))), when: request(nil)},
		{name: "request again when the device is retired", given: with(open, onDevice(events.DeviceRetired{})), when: request(nil)},
		{name: "request another kind with the same id", given: open, when: kind(events.TaskVMPowerOff), refused: KindInvalid, field: "Idempotency-Key", says: "vm.power-on of virtual machine vm-web"},
		{name: "request another machine with the same id", given: open, when: request(func(c *RequestTask) { c.VM = db }), refused: KindInvalid, field: "Idempotency-Key", says: "use a new key"},
		{name: "request with the id of a task of the past", given: long, when: request(nil), refused: KindConflict, field: "Idempotency-Key", code: CodeTaskReused, says: "more than a day ago"},
		bad("a malformed id", "task", "UUID", func(c *RequestTask) { c.Task = "1" }),
		bad("an unknown kind", "kind", "vm.power-on", func(c *RequestTask) { c.Kind = "vm.explode" }),
		bad("no machine", "vm", "vm id", func(c *RequestTask) { c.VM = "" }),
		bad("no deadline", "deadline", "is missing", func(c *RequestTask) { c.Deadline = time.Time{} }),
		bad("a deadline now", "deadline", "not in the future", func(c *RequestTask) { c.Deadline = t0 }),
		bad("a deadline in 31 days", "deadline", "30 days", func(c *RequestTask) { c.Deadline = t0.AddDate(0, 0, 31) }),
		{name: "request of an unknown device", when: request(nil), refused: KindNotFound, says: "device " + string(dev) + " is not known"},
		{name: "request of a pending device", given: pending, when: request(nil), refused: KindConflict, code: CodePending, says: "approve it first"},
		{name: "request of a retired device", given: retired, when: request(nil), refused: KindConflict, code: CodeRetired, says: "no tasks any more"},
		{name: "request for an unknown machine", given: ready, when: request(func(c *RequestTask) { c.VM = db }), refused: KindNotFound, says: "no virtual machine vm-db"},
		{
			name: "request of a host that is read-only", given: with(ready, onInventory(events.HostConditionChanged{Condition: events.ConditionReadOnly, Message: "free licence"})),
			when: request(nil), refused: KindConflict, code: CodeReadOnly, says: "free licence",
		},
		{name: "request of a host without a licence to write", given: with(ready, onInventory(host(false, "ESXi Free"))), when: request(nil), refused: KindConflict, code: CodeReadOnly, says: "ESXi Free"},
		{name: "request of a host without a licence, unexplained", given: with(ready, onInventory(host(false, ""))), when: request(nil), refused: KindConflict, code: CodeReadOnly, says: "its licence is read-only"},
		{name: "request of a host that does not answer", given: with(ready, onInventory(events.HostConditionChanged{Condition: events.ConditionUnreachable})), when: request(nil), then: emit(asked)},

		{name: "power off what is on", given: has(events.PowerOn), when: kind(events.TaskVMPowerOff), then: asks(events.TaskVMPowerOff)},
		{name: "power off what is suspended", given: has(events.PowerSuspended), when: kind(events.TaskVMPowerOff), then: asks(events.TaskVMPowerOff)},
		{name: "power on what is suspended", given: has(events.PowerSuspended), when: request(nil), then: emit(asked)},
		{name: "power on what nobody knows", given: has(events.PowerUnknown), when: request(nil), then: emit(asked)},
		{name: "reset what is on", given: has(events.PowerOn), when: kind(events.TaskVMReset), then: asks(events.TaskVMReset)},
		{name: "suspend what is on", given: has(events.PowerOn), when: kind(events.TaskVMSuspend), then: asks(events.TaskVMSuspend)},
		{name: "shut down what is on", given: has(events.PowerOn), when: kind(events.TaskVMShutdown), then: asks(events.TaskVMShutdown)},
		{name: "shut down with tools nobody knows", given: tools(events.ToolsUnknown), when: kind(events.TaskVMShutdown), then: asks(events.TaskVMShutdown)},
		power("power on what is on", events.PowerOn, events.TaskVMPowerOn, `"the vm-web" is already on`),
		power("power off what is off", events.PowerOff, events.TaskVMPowerOff, "is already off"),
		power("reset what is off", events.PowerOff, events.TaskVMReset, "is off"),
		power("suspend what is off", events.PowerOff, events.TaskVMSuspend, "is off"),
		power("shut down what is off", events.PowerOff, events.TaskVMShutdown, "is off"),
		power("reset what is suspended", events.PowerSuspended, events.TaskVMReset, "is suspended"),
		power("suspend what is suspended", events.PowerSuspended, events.TaskVMSuspend, "is suspended"),
		power("shut down what is suspended", events.PowerSuspended, events.TaskVMShutdown, "is suspended"),
		{name: "shut down without running tools", given: tools(events.ToolsNotRunning), when: kind(events.TaskVMShutdown), refused: KindConflict, code: CodeTools, says: "notRunning"},
		{name: "shut down without tools", given: tools(events.ToolsNotInstalled), when: kind(events.TaskVMShutdown), refused: KindConflict, code: CodeTools, says: "notInstalled"},
		{name: "request the same twice", given: open, when: request(func(c *RequestTask) { c.Task = task2 }), refused: KindConflict, code: CodeTaskOpen, says: string(task1)},
		{
			name: "request the opposite of what is queued", given: open, when: request(func(c *RequestTask) { c.Task, c.Kind = task2, events.TaskVMPowerOff }),
			then: emit(events.TaskRequested{Task: task2, Kind: events.TaskVMPowerOff, VM: web, Deadline: deadline}),
		},
		{name: "request the same after the end", given: ended(events.TaskFailed{Task: task1}), when: request(func(c *RequestTask) { c.Task = task2 }), then: emit(events.TaskRequested{Task: task2, Kind: events.TaskVMPowerOn, VM: web, Deadline: deadline})},
		{name: "request one too many", given: crowd, when: request(nil), refused: KindConflict, code: CodeTaskLimit, says: "1000 open tasks"},

		{name: "cancel", given: open, when: CancelTask{Device: dev, Task: task1}, then: emit(events.TaskCancelRequested{Task: task1})},
		{name: "cancel an accepted task", given: accepted, when: CancelTask{Device: dev, Task: task1}, then: emit(events.TaskCancelRequested{Task: task1})},
		{name: "cancel again", given: cancelling, when: CancelTask{Device: dev, Task: task1}},
		{name: "cancel an unknown task", given: open, when: CancelTask{Device: dev, Task: task2}, refused: KindNotFound, says: "is not known"},

		{name: "expire too early", given: open, when: ExpireTask{Device: dev, Task: task1}},
		{name: "expire", given: with(ready, onTasks(over)), when: ExpireTask{Device: dev, Task: task1}, then: emit(events.TaskExpired{Task: task1, Message: "its deadline passed before the device accepted it"})},
		{
			name: "expire a task that is to be cancelled", given: with(ready, onTasks(over, events.TaskCancelRequested{Task: task1})), when: ExpireTask{Device: dev, Task: task1},
			then: emit(events.TaskCancelled{Task: task1, Message: "its deadline passed before the device answered"}),
		},
		{name: "expire an accepted task too early", given: overAndAccepted, when: ExpireTask{Device: dev, Task: task1}},
		{
			name: "expire an accepted task a day later", given: with(ready, onTasks(longOver, events.TaskAccepted{Task: task1}, events.TaskCancelRequested{Task: task1})), when: ExpireTask{Device: dev, Task: task1},
			then: emit(events.TaskExpired{Task: task1, Message: "the device accepted it, but no outcome was reported within a day of its deadline"}),
		},
		{name: "expire an ended task", given: ended(events.TaskSucceeded{Task: task1}), when: ExpireTask{Device: dev, Task: task1}},
		{name: "expire an unknown task", when: ExpireTask{Device: dev, Task: task1}, refused: KindNotFound, says: "is not known"},

		{name: "end", given: open, when: EndTask{Device: dev, Task: task1, Reason: "gone"}, then: emit(events.TaskCancelled{Task: task1, Message: "gone"})},
		{name: "end an accepted task", given: accepted, when: EndTask{Device: dev, Task: task1, Reason: "gone"}, then: emit(events.TaskFailed{Task: task1, Code: "interrupted", Message: "gone; the outcome is not known"})},
		{name: "end an ended task", given: ended(events.TaskSucceeded{Task: task1}), when: EndTask{Device: dev, Task: task1}},
		{name: "end an unknown task", when: EndTask{Device: dev, Task: task1}, refused: KindNotFound, says: "is not known"},
		{name: "end for an endless reason", given: open, when: EndTask{Device: dev, Task: task1, Reason: strings.Repeat("x", 1025)}, refused: KindInvalid, field: "reason", says: "at most"},

		{name: "accepted", given: open, when: told(TaskFact{Status: events.TaskStatusAccepted}), then: emit(events.TaskAccepted{Task: task1}), cursor: 1},
		{name: "accepted again", given: accepted, when: told(TaskFact{Status: events.TaskStatusAccepted})},
		{
			name: "a whole life", given: open,
			when: told(TaskFact{Status: events.TaskStatusAccepted}, TaskFact{Progress: true, Percent: 40, Message: "half"}, TaskFact{Progress: true, Percent: 40}, TaskFact{Progress: true, Percent: 30}, TaskFact{Status: events.TaskStatusSucceeded, Message: "done"}),
			then: emit(events.TaskAccepted{Task: task1}, events.TaskProgressed{Task: task1, Percent: 40, Message: "half"}, events.TaskSucceeded{Task: task1, Message: "done"}), cursor: 5,
		},
		{name: "progress before acceptance", given: open, when: told(TaskFact{Progress: true, Percent: 10}, TaskFact{Status: events.TaskStatusAccepted}), then: emit(events.TaskProgressed{Task: task1, Percent: 10}), cursor: 1},
		{name: "an outcome before acceptance", given: open, when: told(TaskFact{Status: events.TaskStatusSucceeded}, TaskFact{Status: events.TaskStatusAccepted}), then: emit(events.TaskSucceeded{Task: task1}), cursor: 1},
		{name: "failed", given: accepted, when: told(TaskFact{Status: events.TaskStatusFailed, Code: "host", Message: "no"}), then: emit(events.TaskFailed{Task: task1, Code: "host", Message: "no"}), cursor: 1},
		{name: "rejected", given: open, when: told(TaskFact{Status: events.TaskStatusRejected, Code: "read_only", Message: "no"}), then: emit(events.TaskRejected{Task: task1, Code: "read_only", Message: "no"}), cursor: 1},
		{name: "cancelled", given: cancelling, when: told(TaskFact{Status: events.TaskStatusCancelled, Message: "not begun"}), then: emit(events.TaskCancelled{Task: task1, Message: "not begun"}), cursor: 1},
		{name: "the end once more", given: ended(events.TaskFailed{Task: task1, Code: "host"}), when: told(TaskFact{Status: events.TaskStatusFailed, Code: "host"}, TaskFact{Progress: true, Percent: 99})},
		{
			name: "another end, late", given: ended(events.TaskExpired{Task: task1}),
			when: told(TaskFact{Status: events.TaskStatusAccepted}, TaskFact{Status: events.TaskStatusSucceeded, Message: "yet done"}, TaskFact{Status: events.TaskStatusSucceeded}),
			then: emit(events.TaskReportedLate{Task: task1, Status: events.TaskStatusSucceeded, Message: "yet done"}), cursor: 2,
		},
		{name: "facts of several tasks", given: long, when: told(TaskFact{Task: task2, Status: events.TaskStatusAccepted}, TaskFact{Task: task3, Status: events.TaskStatusAccepted}), then: emit(events.TaskAccepted{Task: task2}), cursor: 1, invalid: []string{"report 2: task.id: " + string(task3)}},
		{name: "a malformed task id", given: open, when: told(TaskFact{Task: "x"}), invalid: []string{"task: task id"}},
		{name: "a state no device reports", given: open, when: told(TaskFact{Status: events.TaskStatusExpired}, TaskFact{Status: events.TaskStatusRequested}, TaskFact{Status: "odd"}), invalid: []string{"task.state", "task.state", "task.state"}},
		{name: "a percentage out of range", given: open, when: told(TaskFact{Progress: true, Percent: 101}, TaskFact{Progress: true, Percent: -1}), invalid: []string{"task.percent", "task.percent"}},
		{name: "endless texts", given: open, when: told(TaskFact{Code: strings.Repeat("x", 4097)}, TaskFact{Message: strings.Repeat("x", 4097)}), invalid: []string{"task.code", "task.message"}},
		{name: "reports that are in the log", given: with(open, history{reportedAt(events.TasksSubject(dev), 7, 2, events.TaskAccepted{Task: task1})}), when: told(TaskFact{Status: events.TaskStatusFailed}, TaskFact{Status: events.TaskStatusFailed}), cursor: 2},
		{name: "reports of an unknown device", when: told(TaskFact{}), refused: KindNotFound, says: "is not known"},
		{name: "reports of a pending device", given: pending, when: told(TaskFact{}), refused: KindDenied, code: CodePending, says: "waits"},
		{name: "reports of a retired device", given: retired, when: told(TaskFact{}), refused: KindDenied, code: CodeRetired, says: "retired"},
		{name: "reports without an epoch", given: approved, when: ReportTasks{Device: dev}, refused: KindInvalid, field: "epoch", says: "want"},
	}
	for how, e := range ends {
		scenes = append(scenes, scene{
			name: "cancel a task that has " + how, given: ended(e), when: CancelTask{Device: dev, Task: task1},
			refused: KindConflict, code: CodeTaskEnded, says: "task has already " + how,
		})
	}
	play(t, scenes)
}

func TestTasksRemembersEnds(t *testing.T) {
	var h history
	id := func(i int) events.TaskID { return events.TaskID(fmt.Sprintf("aaaaaaaa-0000-5000-8000-%012d", i)) }
	for i := 0; i < maxEnded+10; { // in decisions of 6: a fold looks at all of them
		var es []events.Event
		for range 6 {
			es = append(es, events.TaskRequested{Task: id(i)}, events.TaskSucceeded{Task: id(i)})
			i++
		}
		h = append(h, happened(events.TasksSubject(dev), es...))
	}
	for i := range h {
		h[i].Time = t0.Add(time.Duration(i) * time.Millisecond)
	}
	forgotten := 6*len(h) - maxEnded
	s := h.states().Tasks
	if len(s.Tasks) != maxEnded || len(s.Past) != forgotten {
		t.Fatalf("remembers %d tasks and %d of the past, want %d and %d", len(s.Tasks), len(s.Past), maxEnded, forgotten)
	}
	if _, ok := s.Tasks[id(forgotten-1)]; ok {
		t.Error("the oldest ends were not the first to be forgotten")
	}
	if _, ok := s.Tasks[id(forgotten)]; !ok {
		t.Error("a newer end was forgotten")
	}
	later := happened(events.TasksSubject(dev), events.TaskRequested{Task: id(99999)})
	later.Time = t0.Add(25 * time.Hour)
	s = s.Evolve(events.Record{Decision: later, Position: 1 << 20})
	if len(s.Tasks) != 1 || len(s.Past) != maxEnded+forgotten {
		t.Errorf("a day later it remembers %d tasks and %d of the past, want 1 and %d", len(s.Tasks), len(s.Past), maxEnded+forgotten)
	}
	if got := s.Open(); len(got) != 1 || got[0].ID != id(99999) {
		t.Errorf("open tasks %v", got)
	}
}
