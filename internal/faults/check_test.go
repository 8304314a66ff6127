package faults_test

import (
	"os"
	"strings"

	"github.com/google/go-cmp/cmp"

	"pallas/events"
	"pallas/internal/servertest"
)

// check proves the promises from the log, the hosts' books and the clients'.
func (w *weather) check(done map[string]int) {
	t := w.t
	t.Helper()
	store, closeLog := w.m.OpenLog()
	defer closeLog()
	records := servertest.Records(t, store)

	decisions := make(map[events.ID]uint64)
	tasks := make(map[string]string)  // → outcome, "" while there is none
	seen := make(map[events.VMID]int) // machines observed
	number := make(map[events.Subject]events.Report)
	presence := make(map[events.Subject]int)
	for _, r := range records {
		if before, twice := decisions[r.ID]; twice {
			t.Errorf("decision %s is at positions %d and %d", r.ID, before, r.Position)
		}
		decisions[r.ID] = r.Position
		if id, ok := strings.CutPrefix(string(r.Actor), "device:"); ok && string(r.Subject.Device()) != id {
			t.Errorf("position %d: device %s wrote to %s", r.Position, id, r.Subject)
		}
		for _, e := range r.Entries {
			if e.Report != nil {
				before := number[r.Subject]
				if e.Report.Epoch != before.Epoch && before.Epoch != 0 || e.Report.Seq < before.Seq {
					t.Errorf("position %d: report %v follows %v: the manager lost what it had receipted", r.Position, *e.Report, before)
				}
				number[r.Subject] = *e.Report
			}
			switch e := e.Event.(type) {
			case events.VMObserved:
				seen[e.VM.ID]++
			case events.TaskRequested:
				tasks[string(e.Task)] = ""
			case events.DeviceConnected:
				presence[r.Subject]++
			case events.DeviceLost:
				t.Errorf("position %d: %s was lost: %s", r.Position, r.Subject, e.Reason)
			default:
				if id, outcome := outcomeOf(e); id != "" {
					if before := tasks[string(id)]; before != "" {
						t.Errorf("position %d: task %s ended as %s after %s", r.Position, id, outcome, before)
					}
					tasks[string(id)] = outcome
				}
			}
		}
	}
	for subject, n := range presence {
		if n != 1 {
			t.Errorf("%s: %d times connected, want once: no outage was longer than the grace time", subject, n)
		}
	}
	changes, ran := w.hosts(seen)
	for task, n := range ran {
		if n != 1 {
			t.Errorf("task %s ran %d times", task, n)
		}
	}
	for task, outcome := range tasks {
		switch {
		case outcome == "":
			t.Errorf("task %s has no end", task)
		case outcome == "TaskSucceeded" && ran[task] == 0:
			t.Errorf("task %s succeeded without its host", task)
		}
	}
	kept := 0
	for _, p := range w.books.said {
		if _, ok := tasks[p.task]; ok {
			kept++
		} else if !w.excused(p) {
			t.Errorf("task %s was promised at %v and is not in the log", p.task, p.at)
		}
	}
	if diff := cmp.Diff(w.m.RebuiltHash(store), w.m.LiveHash()); diff != "" {
		t.Errorf("the rebuilt read model is not the live one: %s", diff)
	}
	w.logs()
	if changes == 0 || kept == 0 || len(ran) == 0 {
		t.Errorf("%d changes, %d promises, %d tasks: nothing was tried", changes, kept, len(ran))
	}
	t.Logf("%v: %d decisions, %d changes on hosts, %d tasks promised of %d answers, %d run; the manager was started %d times, %d of its ends were its own",
		done, len(records), changes, len(w.books.keys), len(w.books.said), len(ran), w.manager.starts, len(w.manager.surprises()))
}

// hosts compares the machines that hosts made with those that were observed,
// and counts the tasks that hosts began.
func (w *weather) hosts(seen map[events.VMID]int) (changes int, ran map[string]int) {
	ran = make(map[string]int)
	for n := range fleets * perFleet {
		book, err := readBook(bookPath(w.dirs[n/perFleet], n))
		if err != nil {
			w.t.Fatal(err)
		}
		for _, e := range book {
			switch {
			case e.VM != "":
				changes++
				if c := seen[events.VMID(e.VM)]; c != 1 {
					w.t.Errorf("machine %s is %d times in the log", e.VM, c)
				}
			case e.Task != "":
				ran[e.Task]++
			}
		}
	}
	return changes, ran
}

// excused says whether a power cut may have taken what a promise was about: an
// answer to a client does not wait for the disk unless events.sync is 0.
func (w *weather) excused(p promise) bool {
	for _, c := range w.cuts {
		if p.at.After(c.safe) && p.at.Before(c.at) {
			return true
		}
	}
	return false
}

// logs looks for what no process may say.
func (w *weather) logs() {
	for _, p := range append([]*process{w.manager}, w.fleets...) {
		b, err := os.ReadFile(p.log)
		if err != nil {
			w.t.Error(err)
		}
		for line := range strings.Lines(string(b)) {
			if strings.HasPrefix(line, "panic:") || strings.HasPrefix(line, "fatal error:") || strings.Contains(line, "handler panicked") {
				w.t.Errorf("%s: %s", p.name, line)
			}
		}
	}
}

func outcomeOf(e events.Event) (id events.TaskID, outcome string) {
	switch e := e.(type) {
	case events.TaskSucceeded:
		return e.Task, e.Type()
	case events.TaskFailed:
		return e.Task, e.Type()
	case events.TaskRejected:
		return e.Task, e.Type()
	case events.TaskCancelled:
		return e.Task, e.Type()
	case events.TaskExpired:
		return e.Task, e.Type()
	}
	return "", ""
}
