package enroll

import (
	"fmt"
	"testing"
	"time"
)

// However many sources there are, memory is bounded; what is still known is
// still limited.
func TestLimiterIsBounded(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	l := newLimiter(Limits{SourceRate: 1, SourceBurst: 10, FailureRate: 1, FailureBurst: 1_000_000, Sources: 100})
	for i := range 10_000 {
		l.failed(fmt.Sprintf("10.0.%d.%d", i/256, i%256), now)
	}
	if n := l.sources.Len(); n != 100 {
		t.Errorf("%d sources remembered, want 100", n)
	}
	last := fmt.Sprintf("10.0.%d.%d", 9999/256, 9999%256)
	if got := l.wait(last, now); got != time.Second {
		t.Errorf("the last source waits %s, want 1s", got)
	}
	if got := l.wait("10.1.1.1", now); got != 0 {
		t.Errorf("a new source waits %s", got)
	}
}

// Requests that are under way together may overdraw the budget; it is paid
// back before the next one.
func TestLimiterPaysBack(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	l := newLimiter(Limits{SourceRate: 10, SourceBurst: 20})
	for range 5 { // all of them were let in before the first was answered
		l.failed("192.0.2.1", now)
	}
	if got, want := l.wait("192.0.2.1", now), 3100*time.Millisecond; got != want { // 20-50-1 = -31 units
		t.Errorf("wait %s, want %s", got, want)
	}
	if got := l.wait("192.0.2.1", now.Add(3100*time.Millisecond)); got != 0 {
		t.Errorf("still %s to wait", got)
	}
}
