package enroll

import (
	"fmt"
	"testing"
	"time"
)

// However many sources there are, so many events an hour are all.
func TestAlarmsAreBounded(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	a := newAlarms(100)
	n := 0
	for i := range 100_000 {
		source := fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&0xff, i&0xff)
		a.failed(source)
		if a.due(source, true, now) > 0 {
			n++
		}
	}
	if n != maxAlarms || a.sources.Len() != 100 {
		t.Errorf("%d events, want %d; %d sources remembered, want 100", n, maxAlarms, a.sources.Len())
	}
	a.failed("192.0.2.1")
	if n := a.due("192.0.2.1", true, now.Add(alarmEvery)); n != 1 {
		t.Errorf("an hour later: %d failures, want 1", n)
	}
}
