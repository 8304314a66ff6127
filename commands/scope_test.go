package commands

import (
	"errors"
	"strings"
	"testing"
	"time"

	"pallas/events"
	"pallas/events/eventstest"
	"pallas/events/labels"
)

// scoped is an operator for the devices that a selector picks.
func scoped(t testing.TB, selector string) Meta {
	t.Helper()
	s, err := labels.Parse(selector)
	if err != nil {
		t.Fatal(err)
	}
	return Meta{Actor: events.UserActor("sam"), Scope: new(labels.Union(s)), Source: "192.0.2.2"}
}

const dev3 = events.DeviceID("8b1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f") // is not known

// TestOutsideIsUnknown gives commands about a device outside the scope, and the
// same about one that is not there: nothing may tell them apart.
func TestOutsideIsUnknown(t *testing.T) {
	in := scoped(t, "site=fra")
	const revision = 4 // of the device outside: registered, seen, asked, labelled
	for name, c := range map[string]func(events.DeviceID) Command{
		"approve":        func(id events.DeviceID) Command { return ApproveDevice{Device: id} },
		"approve, at":    func(id events.DeviceID) Command { return ApproveDevice{Device: id, IfRevision: revision} },
		"approve, stale": func(id events.DeviceID) Command { return ApproveDevice{Device: id, IfRevision: 1} },
		"label": func(id events.DeviceID) Command {
			return relabel(id, map[string]string{"site": "fra"})
		},
		"label, same": func(id events.DeviceID) Command {
			return relabel(id, map[string]string{"site": "muc"})
		},
		"label, bad":     func(id events.DeviceID) Command { return relabel(id, map[string]string{"-": ""}) },
		"rename":         func(id events.DeviceID) Command { return UpdateDevice{Device: id, Name: new("other")} },
		"rename, bad":    func(id events.DeviceID) Command { return UpdateDevice{Device: id, Name: new("")} },
		"retire":         func(id events.DeviceID) Command { return RetireDevice{Device: id} },
		"request":        func(id events.DeviceID) Command { return request(id, task2, time.Hour) },
		"request, late":  func(id events.DeviceID) Command { return request(id, task2, -time.Hour) },
		"request, taken": func(id events.DeviceID) Command { return request(id, task1, time.Hour) },
		"request, other": func(id events.DeviceID) Command {
			return RequestTask{Device: id, Task: task1, Kind: events.TaskVMReset, VM: web, Deadline: t0.Add(time.Hour)}
		},
		"cancel":               func(id events.DeviceID) Command { return CancelTask{Device: id, Task: task1} },
		"cancel, unknown task": func(id events.DeviceID) Command { return CancelTask{Device: id, Task: task3} },
	} {
		t.Run(name, func(t *testing.T) {
			store := eventstest.NewMemory()
			d, _ := dispatcher(t, store)
			managed(t, d, dev2)
			does(t, d, request(dev2, task1, time.Hour))
			does(t, d, relabel(dev2, map[string]string{"site": "muc"}))
			before := len(logOf(t, store))
			var answers [2]Error
			for i, id := range []events.DeviceID{dev2, dev3} {
				var e *Error
				if _, err := d.Do(t.Context(), c(id), in); !errors.As(err, &e) {
					t.Fatalf("%s: %v", id, err)
				}
				answers[i] = *e
				answers[i].Message = strings.ReplaceAll(e.Message, string(id), "…")
			}
			if answers[0] != answers[1] {
				t.Errorf("outside %+v, unknown %+v", answers[0], answers[1])
			}
			if n := len(logOf(t, store)); n != before {
				t.Errorf("%d decisions were written", n-before)
			}
			for _, read := range []events.DeviceID{dev2, dev3} {
				if _, err := d.DeviceWithin(t.Context(), *in.Scope, read); KindOf(err) != KindNotFound || !strings.Contains(err.Error(), string(read)) {
					t.Errorf("read %s: %v", read, err)
				}
			}
		})
	}
}

// relabel gives a device these labels and no others.
func relabel(id events.DeviceID, labels map[string]string) UpdateDevice {
	c := UpdateDevice{Device: id, ClearLabels: true, Labels: map[string]*string{}}
	for k, v := range labels {
		c.Labels[k] = &v
	}
	return c
}

func request(id events.DeviceID, task events.TaskID, in time.Duration) RequestTask {
	return RequestTask{Device: id, Task: task, Kind: events.TaskVMPowerOn, VM: web, Deadline: t0.Add(in)}
}

// TestNothingLeavesTheScope wants changes of labels to keep things where the
// caller may see them.
func TestNothingLeavesTheScope(t *testing.T) {
	store := eventstest.NewMemory()
	d, _ := dispatcher(t, store)
	managed(t, d, dev)
	in := scoped(t, "site=fra,!secret")
	issue := func(m map[string]string) Command {
		return IssueJoinToken{Token: events.TokenID(events.NewID()), MaxUses: 1, Expires: t0.Add(time.Hour), Labels: m}
	}
	label := func(m map[string]string) Command { return relabel(dev, m) }
	for name, tc := range map[string]struct {
		command Command
		denied  bool
	}{
		"label away":          {label(map[string]string{"site": "muc"}), true},
		"label with a secret": {label(map[string]string{"site": "fra", "secret": "x"}), true},
		"no labels":           {label(nil), true},
		"token for elsewhere": {issue(map[string]string{"site": "muc"}), true},
		"token for nowhere":   {issue(nil), true},
		"label within":        {label(map[string]string{"site": "fra", "role": "pos"}), false},
		"token within":        {issue(map[string]string{"site": "fra"}), false},
	} {
		before := len(logOf(t, store))
		_, err := d.Do(t.Context(), tc.command, in)
		var e *Error
		switch errors.As(err, &e); {
		case !tc.denied && err != nil:
			t.Errorf("%s: %v", name, err)
		case tc.denied && (e == nil || e.Kind != KindDenied || e.Field != "labels" || e.Code != CodeOutOfScope):
			t.Errorf("%s: %v", name, err)
		case tc.denied && len(logOf(t, store)) != before:
			t.Errorf("%s: something was written", name)
		}
	}
}

// TestScopeOfToken wants join tokens of other sites not to exist.
func TestScopeOfToken(t *testing.T) {
	d, _ := dispatcher(t, eventstest.NewMemory())
	other := events.TokenID("01890a5d-ac96-774b-bcce-b302099a8058")
	does(t, d, IssueJoinToken{Token: tok, MaxUses: 1, Expires: t0.Add(time.Hour), Labels: map[string]string{"site": "muc"}})
	in := scoped(t, "site=fra")
	_, outside := d.Do(t.Context(), RevokeJoinToken{Token: tok}, in)
	_, unknown := d.Do(t.Context(), RevokeJoinToken{Token: other}, in)
	if KindOf(outside) != KindNotFound || strings.ReplaceAll(outside.Error(), string(tok), string(other)) != unknown.Error() {
		t.Errorf("outside %v, unknown %v", outside, unknown)
	}
	// One that is there cannot be made again either, nor is it shown.
	again := IssueJoinToken{Token: tok, MaxUses: 1, Expires: t0.Add(time.Hour), Labels: map[string]string{"site": "fra"}}
	if r, err := d.Do(t.Context(), again, in); KindOf(err) != KindNotFound {
		t.Errorf("made again: %+v, %v", r, err)
	}
}

// TestScopeIsJudgedOnTheLog wants the labels that count to be the newest in the
// log, whatever this manager remembers.
func TestScopeIsJudgedOnTheLog(t *testing.T) {
	store := eventstest.NewMemory()
	here, _ := dispatcher(t, store)
	elsewhere, _ := dispatcher(t, store)
	managed(t, here, dev)
	does(t, here, RequestTask{Device: dev, Task: task1, Kind: events.TaskVMPowerOn, VM: web, Deadline: t0.Add(time.Hour)})
	fra, muc := scoped(t, "site=fra"), scoped(t, "site=muc")
	try := func(m Meta, want Kind) {
		t.Helper()
		for _, c := range []Command{UpdateDevice{Device: dev, Name: new("n" + events.NewID())}, CancelTask{Device: dev, Task: task1}} {
			if _, err := here.Do(t.Context(), c, m); KindOf(err) != want {
				t.Errorf("%T in %s: %v, want %q", c, m.Scope, err, want)
			}
		}
	}
	try(fra, "")
	try(muc, KindNotFound)
	does(t, elsewhere, relabel(dev, map[string]string{"site": "muc"}))
	try(fra, KindNotFound)
	try(muc, "")
}

// TestRepeatOutOfScope wants the answer of a first call for nobody who may not
// see the device any more.
func TestRepeatOutOfScope(t *testing.T) {
	d, _ := dispatcher(t, eventstest.NewMemory())
	managed(t, d, dev)
	m := scoped(t, "site=fra")
	m.CommandID = "k"
	c := request(dev, task1, time.Hour)
	first, err := d.Do(t.Context(), c, m)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := d.Do(t.Context(), c, m); err != nil || again.Position != first.Position || again.Changed {
		t.Errorf("again: %+v, %v; first %+v", again, err, first)
	}
	does(t, d, relabel(dev, map[string]string{"site": "muc"}))
	if again, err := d.Do(t.Context(), c, m); KindOf(err) != KindNotFound {
		t.Errorf("out of scope: %+v, %v", again, err)
	}
}

// TestUserWithoutScope wants a forgotten scope to be a defect, not everything.
func TestUserWithoutScope(t *testing.T) {
	store := eventstest.NewMemory()
	d, _ := dispatcher(t, store)
	managed(t, d, dev)
	before := len(logOf(t, store))
	if _, err := d.Do(t.Context(), RetireDevice{Device: dev}, Meta{Actor: "user:ann"}); err == nil || KindOf(err) != "" {
		t.Errorf("no scope: %v, want an error that is no refusal", err)
	}
	if _, err := d.Do(t.Context(), RetireDevice{Device: dev}, Meta{Actor: "user:ann", Scope: &labels.Scope{}}); KindOf(err) != KindNotFound {
		t.Errorf("a scope of nothing: %v", err)
	}
	if n := len(logOf(t, store)); n != before {
		t.Error("something was written")
	}
	for _, a := range []events.Actor{events.SystemActor("test"), events.DeviceActor(dev), events.TokenActor(tok)} {
		if _, err := d.Do(t.Context(), UpdateDevice{Device: dev, Name: new("by " + string(a))}, Meta{Actor: a}); err != nil {
			t.Errorf("%s: %v", a, err)
		}
	}
}
