package commands

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"pallas/events"
	"pallas/events/eventstest"
	"pallas/events/labels"
)

// world is a small fleet that a property test plays with: one device, a few
// machines and tasks, and two managers on one log.
type world struct {
	t        *rapid.T
	store    *eventstest.Memory
	managers []*Dispatcher
	now      time.Time
	epoch    uint64
	seq      uint64
	sent     []sent // the reports of this epoch
	twice    bool   // give every command twice
}

// sent is a report and the end of the log when it was sent first.
type sent struct {
	command Command
	at      uint64
}

func newWorld(t *rapid.T, twice bool) *world {
	w := &world{t: t, store: eventstest.NewMemory(), now: t0, epoch: 1, twice: twice}
	for range 2 {
		d, err := New(Config{Store: w.store, Now: func() time.Time { return w.now }, CacheBytes: 3000})
		if err != nil {
			t.Fatal(err)
		}
		w.managers = append(w.managers, d)
	}
	return w
}

// give gives a command to one of the managers. Refusals are fine, anything
// else is not.
func (w *world) give(c Command) {
	n := 1
	if w.twice {
		n = 2
	}
	for i := range n {
		m := w.managers[rapid.IntRange(0, len(w.managers)-1).Draw(w.t, "manager")]
		r, err := m.Do(context.Background(), c, Meta{Actor: "user:ann", Scope: new(labels.Everything()), Time: w.now})
		if err != nil && KindOf(err) == "" {
			w.t.Fatalf("%T: %v", c, err)
		}
		if i > 0 && r.Changed {
			w.t.Fatalf("%+v changed something the second time", c)
		}
	}
}

var (
	vmIDs   = rapid.SampledFrom([]events.VMID{web, db, "vm-3"})
	taskIDs = rapid.Map(rapid.IntRange(1, 6), func(i int) events.TaskID {
		return events.TaskID(fmt.Sprintf("aaaaaaaa-0000-5000-8000-%012d", i))
	})
	powers   = rapid.SampledFrom([]events.PowerState{events.PowerOn, events.PowerOff, events.PowerSuspended, "burning"})
	kinds    = rapid.SampledFrom([]events.TaskKind{events.TaskVMPowerOn, events.TaskVMPowerOff, events.TaskVMReset})
	statuses = rapid.SampledFrom([]events.TaskStatus{
		events.TaskStatusAccepted, events.TaskStatusAccepted, events.TaskStatusSucceeded, events.TaskStatusFailed,
		events.TaskStatusRejected, events.TaskStatusCancelled, events.TaskStatusExpired,
	})
	someIPs = rapid.SliceOfN(rapid.SampledFrom([]string{"10.0.0.1", "10.0.0.2"}), 0, 2)
)

func (w *world) inventoryFact() InventoryFact {
	t := w.t
	w.seq++
	f := InventoryFact{Seq: w.seq, Time: w.now}
	id := vmIDs.Draw(t, "vm")
	vm := vmOf(id, powers.Draw(t, "power"))
	vm.IPs = someIPs.Draw(t, "ips")
	switch rapid.IntRange(0, 5).Draw(t, "fact") {
	case 0:
		f.Event = host(rapid.Bool().Draw(t, "writable"), "")
	case 1:
		f.Event = events.VMObserved{VM: vm}
	case 2:
		f.Event = events.VMChanged{VM: id, Patch: events.VMPatch{Power: &vm.Power, IPs: &vm.IPs}}
	case 3:
		f.Event = events.VMRemoved{VM: id}
	case 4:
		f.Event = events.HostConditionChanged{Condition: events.ConditionOK}
	case 5:
		f.VMs = rapid.SliceOfNDistinct(vmIDs, 0, 3, rapid.ID).Draw(t, "listed")
		f.Event = events.InventorySynced{Hash: rapid.SampledFrom([]string{"h1", "h2"}).Draw(t, "hash")}
	}
	return f
}

func (w *world) taskFact() TaskFact {
	t := w.t
	w.seq++
	return TaskFact{
		Seq: w.seq, Time: w.now, Task: taskIDs.Draw(t, "task"), Status: statuses.Draw(t, "status"),
		Progress: rapid.IntRange(0, 3).Draw(t, "progress") == 0, Percent: rapid.IntRange(0, 101).Draw(t, "percent"),
	}
}

func (w *world) report(c Command) {
	w.sent = append(w.sent, sent{c, w.last()})
	w.give(c)
}

// begin makes the device one that can be worked with.
func (w *world) begin() {
	w.give(RegisterDevice{
		Device: dev, Name: "shop", Token: tok, AutoApprove: true, KeyHash: key1,
		Certificate: events.CertificateIssued{Serial: "01", KeyHash: key1, NotBefore: t0, NotAfter: t0.AddDate(1, 0, 0)},
	})
	w.seq += 2
	w.report(ReportInventory{Device: dev, Epoch: w.epoch, Facts: []InventoryFact{
		{Seq: w.seq - 1, Event: host(true, "")},
		{Seq: w.seq, Event: events.VMObserved{VM: vmOf(web, events.PowerOff)}},
	}})
}

// step does something, mostly with tasks.
func (w *world) step() {
	t := w.t
	w.now = w.now.Add(time.Duration(rapid.SampledFrom([]int{0, 1, 60, 3600, 26 * 3600}).Draw(t, "seconds")) * time.Second)
	task := taskIDs.Draw(t, "task")
	switch rapid.IntRange(0, 14).Draw(t, "step") {
	case 0, 1, 2:
		w.give(RequestTask{Device: dev, Task: task, Kind: kinds.Draw(t, "kind"), VM: vmIDs.Draw(t, "vm"), Deadline: w.now.Add(time.Hour)})
	case 3:
		w.give(CancelTask{Device: dev, Task: task})
	case 4:
		w.give(ExpireTask{Device: dev, Task: task})
	case 5:
		w.give(EndTask{Device: dev, Task: task, Reason: "test"})
	case 6, 7, 8:
		var fs []TaskFact
		for range rapid.IntRange(1, 4).Draw(t, "facts") {
			fs = append(fs, w.taskFact())
		}
		w.report(ReportTasks{Device: dev, Epoch: w.epoch, Facts: fs})
	case 9, 10:
		var fs []InventoryFact
		for range rapid.IntRange(1, 4).Draw(t, "facts") {
			fs = append(fs, w.inventoryFact())
		}
		w.report(ReportInventory{Device: dev, Epoch: w.epoch, Facts: fs})
	case 11:
		w.give(ConnectDevice{Device: dev, AgentVersion: rapid.SampledFrom([]string{"1", "2"}).Draw(t, "agent"), Protocol: 1})
	case 12:
		w.give(LoseDevice{Device: dev, Reason: "test"})
	case 13:
		w.give(UpdateDevice{
			Device: dev, Labels: map[string]*string{"n": new(rapid.SampledFrom([]string{"1", "2"}).Draw(t, "label"))},
			Notes: new(rapid.SampledFrom([]string{"", "a"}).Draw(t, "notes")), Site: rapid.SampledFrom([]*SitePatch{nil, {Clear: true}, {Name: new("here")}}).Draw(t, "site"),
		})
	case 14:
		if rapid.IntRange(0, 9).Draw(t, "lost outbox") == 0 {
			w.epoch, w.seq, w.sent = w.epoch+1, 0, nil
		}
	}
}

func (w *world) play() {
	w.begin()
	for range rapid.IntRange(1, 60).Draw(w.t, "steps") {
		w.step()
	}
}

func (w *world) log(s events.Subject) (out []events.Record) {
	for r, err := range w.store.Load(context.Background(), s, 0) {
		if err != nil {
			w.t.Fatal(err)
		}
		out = append(out, r)
	}
	return out
}

func replay[S interface{ Evolve(events.Record) S }](rs []events.Record) (s S) {
	for _, r := range rs {
		s = s.Evolve(r)
	}
	return s
}

// What a manager holds after many commands is what the log says, and a
// snapshot at any point changes nothing about that.
func TestReplayEqualsIncrementalFold(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, false)
		w.play()
		for _, m := range w.managers {
			d, err1 := m.Device(context.Background(), dev)
			i, err2 := m.Inventory(context.Background(), dev)
			k, err3 := m.Tasks(context.Background(), dev)
			if err1 != nil || err2 != nil || err3 != nil {
				t.Fatal(err1, err2, err3)
			}
			same(t, replay[Device](w.log(events.DeviceSubject(dev))), d)
			same(t, replay[Inventory](w.log(events.InventorySubject(dev))), i)
			// A task queue that nothing happened to has no map.
			same(t, (&Tasks{}).refold(w.log(events.TasksSubject(dev))), k)
		}
		cut(t, w.log(events.InventorySubject(dev)), func() folded { return &Inventory{} })
		cut(t, w.log(events.TasksSubject(dev)), func() folded { return &Tasks{} })
		cut(t, w.log(events.DeviceSubject(dev)), func() folded { return &Device{} })
	})
}

func (t *Tasks) refold(rs []events.Record) Tasks {
	for _, r := range rs {
		t.fold(r)
	}
	return *t
}

// cut folds records with a round trip through a snapshot at a random point.
func cut(t *rapid.T, rs []events.Record, empty func() folded) {
	whole, parts := empty(), empty()
	at := rapid.IntRange(0, len(rs)).Draw(t, "cut")
	for n, r := range rs {
		if n == at {
			b, err := json.Marshal(parts)
			if err != nil {
				t.Fatal(err)
			}
			parts = empty()
			if err := json.Unmarshal(b, parts); err != nil {
				t.Fatal(err)
			}
		}
		whole.fold(r)
		parts.fold(r)
	}
	same(t, whole, parts)
}

func same[T any](t *rapid.T, want, got T) {
	a, err1 := json.Marshal(want)
	b, err2 := json.Marshal(got)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	if string(a) != string(b) {
		t.Fatalf("%T differs (-want +got):\n%s", want, cmp.Diff(want, got))
	}
}

func TestACommandTwiceIsOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) { newWorld(t, true).play() })
}

// A task ends at most once, and its end never changes.
func TestATaskEndsOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, false)
		w.play()
		// In the end time ends every task.
		w.now = w.now.Add(40 * 24 * time.Hour)
		k, err := w.managers[0].Tasks(context.Background(), dev)
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range k.Open() {
			w.give(ExpireTask{Device: dev, Task: task.ID})
		}
		requests, ends := map[events.TaskID]int{}, map[events.TaskID]int{}
		var state Tasks
		ended := map[events.TaskID]Task{}
		for _, r := range w.log(events.TasksSubject(dev)) {
			state = state.Evolve(r)
			for _, en := range r.Entries {
				switch e := en.Event.(type) {
				case events.TaskRequested:
					requests[e.Task]++
				case events.TaskSucceeded, events.TaskFailed, events.TaskRejected, events.TaskCancelled, events.TaskExpired:
					ends[taskOf(e)]++
				default:
				}
			}
			for id, was := range ended {
				if is, ok := state.Tasks[id]; ok && (is.Status != was.Status || !is.EndedAt.Equal(was.EndedAt)) {
					t.Fatalf("task %s ended as %+v and became %+v", id, was, is)
				}
			}
			for id, is := range state.Tasks {
				if is.Status.Ended() {
					ended[id] = is
				}
			}
		}
		for id, n := range requests {
			if n != 1 || ends[id] != 1 {
				t.Fatalf("task %s was requested %d times and ended %d times", id, n, ends[id])
			}
		}
		if len(ends) != len(requests) {
			t.Fatalf("%d tasks ended, %d were requested", len(ends), len(requests))
		}
	})
}

// A device may send its reports again from any earlier point.
func TestReportsAgainChangeNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, false)
		w.begin()
		// Tasks are requested before a device can speak of them.
		for i := range 3 {
			w.give(RequestTask{Device: dev, Task: events.TaskID(fmt.Sprintf("aaaaaaaa-0000-5000-8000-%012d", i+1)), Kind: []events.TaskKind{events.TaskVMPowerOn, events.TaskVMPowerOff, events.TaskVMReset}[i], VM: web, Deadline: t0.Add(time.Hour)})
		}
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			w.step()
			if len(w.sent) == 0 {
				continue
			}
			before := w.last()
			asked := w.asked()
			for _, c := range w.sent[rapid.IntRange(0, len(w.sent)-1).Draw(t, "from"):] {
				if !c.premature(asked) {
					w.give(c.command)
				}
			}
			if after := w.last(); after != before {
				t.Fatalf("reports sent again wrote %d decisions", after-before)
			}
		}
	})
}

// premature says whether a report spoke of a task that was requested only
// after the report: no device can.
func (s sent) premature(asked map[events.TaskID]uint64) bool {
	report, ok := s.command.(ReportTasks)
	return ok && slices.ContainsFunc(report.Facts, func(f TaskFact) bool { return asked[f.Task] > s.at })
}

// asked returns where each task was requested.
func (w *world) asked() map[events.TaskID]uint64 {
	out := map[events.TaskID]uint64{}
	for _, r := range w.log(events.TasksSubject(dev)) {
		for _, en := range r.Entries {
			if q, ok := en.Event.(events.TaskRequested); ok {
				out[q.Task] = r.Position
			}
		}
	}
	return out
}

func (w *world) last() uint64 {
	n, err := w.store.Last(context.Background())
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

// Nothing that Evolve is given may be changed by it: the cache shares states.
func TestEvolveChangesNothingInPlace(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, false)
		w.play()
		unchanged[Device](t, w.log(events.DeviceSubject(dev)))
		unchanged[Inventory](t, w.log(events.InventorySubject(dev)))
		unchanged[Tasks](t, w.log(events.TasksSubject(dev)))
	})
}

func unchanged[S interface{ Evolve(events.Record) S }](t *rapid.T, rs []events.Record) {
	var states []S
	var texts [][]byte
	var s S
	for _, r := range rs {
		s = s.Evolve(r)
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		states, texts = append(states, s), append(texts, b)
	}
	for i := range states {
		if b, _ := json.Marshal(states[i]); !reflect.DeepEqual(b, texts[i]) {
			t.Fatalf("a later Evolve changed state %d:\n%s", i, cmp.Diff(string(texts[i]), string(b)))
		}
	}
}
