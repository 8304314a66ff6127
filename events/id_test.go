package events_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/google/uuid"

	"pallas/events"
)

func TestParseDeviceID(t *testing.T) {
	good := uuid.NewString()
	if id, err := events.ParseDeviceID(good); err != nil || id != events.DeviceID(good) {
		t.Errorf("%s: %s, %v", good, id, err)
	}
	for _, bad := range []string{
		"", "x", good[1:], good + "0", " " + good, strings.ToUpper("6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f"),
		"{" + good + "}", "urn:uuid:" + good, strings.ReplaceAll(good, "-", ""),
		"00000000-0000-0000-0000-000000000000",
		"01976b2e-7c3d-7a41-b5f8-2d9c0e6f1a34", // version 7
		"3b0e8f54-92d7-5c1a-8f46-d1c2b3a49587", // version 5
		"6f1c2e8a-0d5b-4c67-1c3e-1a2b3c4d5e6f", // another variant
		"6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6\n",
	} {
		if id, err := events.ParseDeviceID(bad); err == nil {
			t.Errorf("%q is accepted as %s", bad, id)
		} else if !strings.HasPrefix(err.Error(), "device id ") {
			t.Errorf("%q: the error does not say what it is about: %v", bad, err)
		}
	}
	if _, err := events.ParseDeviceID(strings.Repeat("x", 1<<20)); err == nil || len(err.Error()) > 300 {
		t.Error("an endless id is accepted, or repeated in the error")
	}
}

func TestParseUUID(t *testing.T) {
	const good = "01976b2e-7c3d-7a41-b5f8-2d9c0e6f1a34"
	if got, err := events.ParseUUID("task id", good); got != good || err != nil {
		t.Errorf("%s: %s, %v", good, got, err)
	}
	for _, bad := range []string{"", "x", strings.ToUpper(good), "{" + good + "}", good + " "} {
		if _, err := events.ParseUUID("task id", bad); err == nil || !strings.HasPrefix(err.Error(), "task id ") {
			t.Errorf("%q: %v, want an error that names the task id", bad, err)
		}
	}
}

func TestParseVMID(t *testing.T) {
	for _, good := range []string{"1", "vm-12", "52c1a7d0-4b8e-9f31-0d62-7e5a4c3b2a19", "A.b_C", strings.Repeat("x", 64)} {
		if id, err := events.ParseVMID(good); err != nil || id != events.VMID(good) {
			t.Errorf("%q: %s, %v", good, id, err)
		}
	}
	for _, bad := range []string{"", strings.Repeat("x", 65), "a b", "a/b", "ä", "a\n", "*", "a>"} {
		if _, err := events.ParseVMID(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestIDs(t *testing.T) {
	a, b := events.NewID(), events.NewID()
	if a >= b {
		t.Errorf("ids are not ordered by time: %s, %s", a, b)
	}
	if u, err := uuid.Parse(a); err != nil || u.Version() != 7 {
		t.Errorf("NewID gives %s, want a UUID of version 7", a)
	}
	// What others derived before must stay the same for ever.
	if got, want := events.DeriveID("decision", "user:1", "c", "ev.x.y"), "43b142b4-faa8-5a4a-93e8-ac2ef7c9e597"; got != want {
		t.Errorf("DeriveID gives %s, want %s", got, want)
	}
	if events.DeriveID("a", "bc") == events.DeriveID("ab", "c") || events.DeriveID("a") == events.DeriveID("a", "") {
		t.Error("DeriveID does not keep its parts apart")
	}
}

func TestSubjects(t *testing.T) {
	for _, c := range []struct {
		subject events.Subject
		kind    string
		key     string
		device  events.DeviceID
	}{
		{events.DeviceSubject(exampleDevice), events.KindDevice, string(exampleDevice), exampleDevice},
		{events.InventorySubject(exampleDevice), events.KindInventory, string(exampleDevice), exampleDevice},
		{events.TasksSubject(exampleDevice), events.KindTasks, string(exampleDevice), exampleDevice},
		{events.TokenSubject(exampleToken), events.KindToken, string(exampleToken), ""},
		{events.AccessSubject(), events.KindAccess, string(events.Nobody), ""},
		{events.UserSubject(exampleUser), events.KindUser, string(exampleUser), ""},
		{"ev.future.x", "future", "x", ""},
	} {
		if err := c.subject.Validate(); err != nil {
			t.Errorf("%s: %v", c.subject, err)
		}
		if c.subject.Kind() != c.kind || c.subject.Key() != c.key || c.subject.Device() != c.device {
			t.Errorf("%s: kind %q, key %q, device %q", c.subject, c.subject.Kind(), c.subject.Key(), c.subject.Device())
		}
	}
	for _, bad := range []events.Subject{
		"", "ev", "ev.", "ev..", "ev.device", "ev.device.", "ev..x", "ev.device.a.b", "ev.device.*", "ev.*.x", "ev.>", "ev.device.>",
		"EV.device.x", "x.device.y", "ev.device.a b", "ev.device.a\n", "ev.device.\x00", " ev.device.x",
	} {
		if bad.Validate() == nil {
			t.Errorf("%q is valid", bad)
		}
		if bad.Kind() != "" || bad.Key() != "" || bad.Device() != "" {
			t.Errorf("%q has parts: %q, %q, %q", bad, bad.Kind(), bad.Key(), bad.Device())
		}
	}
}

func TestKinds(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range events.Kinds() {
		if seen[k] || events.Subject("ev."+k+".x").Validate() != nil {
			t.Errorf("kind %q", k)
		}
		seen[k] = true
	}
}

func TestTaskStatus(t *testing.T) {
	for status, ended := range map[events.TaskStatus]bool{
		events.TaskStatusRequested: false, events.TaskStatusAccepted: false, events.TaskStatusSucceeded: true,
		events.TaskStatusFailed: true, events.TaskStatusCancelled: true, events.TaskStatusRejected: true,
		events.TaskStatusExpired: true, "other": false,
	} {
		if status.Ended() != ended {
			t.Errorf("%s: Ended is %t", status, status.Ended())
		}
	}
}

func FuzzParseDeviceID(f *testing.F) {
	for _, s := range []string{string(exampleDevice), "", "{" + string(exampleDevice) + "}", string(exampleToken)} {
		f.Add(s)
	}
	form := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	f.Fuzz(func(t *testing.T, s string) {
		id, err := events.ParseDeviceID(s)
		if (err == nil) != form.MatchString(s) || err == nil && string(id) != s {
			t.Errorf("%q: %q, %v", s, id, err)
		}
	})
}

func FuzzSubject(f *testing.F) {
	for _, s := range []string{string(events.DeviceSubject(exampleDevice)), "ev.*.x", "ev.a.b.c", "ev..", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		subject := events.Subject(s)
		if subject.Validate() != nil {
			return
		}
		if got := "ev." + subject.Kind() + "." + subject.Key(); got != s {
			t.Errorf("%q has the parts of %q", s, got)
		}
		for _, f := range []events.Filter{
			{},
			{Subjects: []string{s}},
			{Subjects: []string{"ev.*." + subject.Key()}},
			{Subjects: []string{"ev." + subject.Kind() + ".*"}},
			{Subjects: []string{"ev.never.never", "ev.*.*"}},
		} {
			if f.Validate() != nil || !f.Match(subject) {
				t.Errorf("%+v: valid %v, matches %q %t", f, f.Validate(), s, f.Match(subject))
			}
		}
		for _, other := range []string{s + "x", "ev.*." + subject.Key() + "x", "ev." + subject.Kind() + "x.*"} {
			if (events.Filter{Subjects: []string{other}}).Match(subject) {
				t.Errorf("%q matches %q", other, s)
			}
		}
	})
}
