package agent

import (
	"testing"
	"time"
)

func TestClock(t *testing.T) {
	built := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	system := time.Date(1970, 1, 1, 0, 0, 5, 0, time.UTC) // a dead battery
	c := newClock(built)
	c.now = func() time.Time { return system }
	want := func(why string, want time.Time) {
		t.Helper()
		if got := c.Now(); !got.Equal(want) || got.Location() != time.UTC {
			t.Errorf("%s: %v, want %v", why, got, want)
		}
	}
	want("never before the program was built", built)
	stored := built.AddDate(0, 1, 0)
	c.past(stored)
	c.past(built)
	want("never before what the manager once told", stored)
	manager := built.AddDate(0, 2, 0)
	c.set(manager)
	want("as the manager tells", manager)
	system = system.Add(time.Hour)
	want("going on from there", manager.Add(time.Hour))
	c.set(manager.Add(time.Hour + 300*time.Millisecond))
	want("steady against the time a message takes", manager.Add(time.Hour))
	c.set(manager.Add(30 * time.Minute))
	want("back, when the manager says so", manager.Add(30*time.Minute))
}
