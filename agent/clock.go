package agent

import (
	"runtime/debug"
	"sync/atomic"
	"time"
)

// clock is the manager's time as far as the device knows it. Until the manager
// told the time, it is the device's own, which may be wrong by years, but never
// less than the newest time that is certain to be past: when the program was
// built, what the manager told an earlier process. Certificates are judged by
// it, so that a dead clock battery does not lock a device out.
type clock struct {
	now    func() time.Time
	floor  atomic.Int64 // Unix seconds
	offset atomic.Pointer[time.Duration]
}

func newClock(built time.Time) *clock {
	c := &clock{now: time.Now}
	c.past(built)
	return c
}

// past notes a time that is certainly past.
func (c *clock) past(t time.Time) {
	for {
		old := c.floor.Load()
		if t.Unix() <= old || c.floor.CompareAndSwap(old, t.Unix()) {
			return
		}
	}
}

// steadiness is the difference from the manager's clock that is left alone: it
// may as well be the time that the message took.
const steadiness = time.Second

// set takes over the manager's time.
func (c *clock) set(t time.Time) {
	offset := t.Sub(c.now())
	if old := c.offset.Load(); old == nil || (offset-*old).Abs() > steadiness {
		c.offset.Store(&offset)
	}
}

// Now returns the time in UTC, to the microsecond.
func (c *clock) Now() time.Time {
	t := c.now()
	if offset := c.offset.Load(); offset != nil {
		t = t.Add(*offset)
	} else if floor := time.Unix(c.floor.Load(), 0); t.Before(floor) {
		t = floor
	}
	return t.UTC().Truncate(time.Microsecond)
}

// built returns when this program was built, as far as it knows.
func built() time.Time {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return time.Time{}
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.time" {
			if t, err := time.Parse(time.RFC3339, s.Value); err == nil {
				return t
			}
		}
	}
	return time.Time{}
}
