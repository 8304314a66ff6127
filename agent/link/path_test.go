package link

import (
	"testing"
	"time"
)

func TestSilenceIsLearned(t *testing.T) {
	const manager = 240 * time.Second
	q := quiet{need: firstHolds}
	want := func(d time.Duration) {
		t.Helper()
		if got := q.interval(manager); got != d {
			t.Fatalf("interval %v, want %v", got, d)
		}
	}
	want(manager)
	q.lost(manager)
	want(120 * time.Second)
	for range firstHolds - 1 {
		q.held(manager)
	}
	want(120 * time.Second)
	q.held(manager)
	want(150 * time.Second)
	// What did not hold is tried again less often.
	q.lost(manager)
	want(75 * time.Second)
	for range firstHolds {
		q.held(manager)
	}
	want(75 * time.Second)
	for range 20 {
		q.lost(manager)
	}
	if got := q.interval(manager); got < minSilence {
		t.Fatalf("interval %v, want at least %v", got, minSilence)
	}
	for range 10 * maxHolds {
		q.held(manager)
	}
	want(manager)
	if q.interval(10*time.Second) != 10*time.Second {
		t.Error("the interval is beyond the manager's")
	}
}

func TestOverdueFollowsReceipts(t *testing.T) {
	var r rtt
	for range 50 {
		r.add(20 * time.Second)
	}
	if d := r.timeout(); d < 20*time.Second || d > 25*time.Second {
		t.Errorf("a receipt that always takes 20 s is overdue after %v", d)
	}
	r.add(60 * time.Second)
	if d := r.timeout(); d < 50*time.Second {
		t.Errorf("overdue after %v, although one took a minute", d)
	}
}

func TestTimeoutsFollowThePath(t *testing.T) {
	p := path{timeout: dialTimeout}
	for i := range 2 * len(segments) {
		if p.segment != i%len(segments) {
			t.Fatalf("after %d attempts segment %d", i, p.segment)
		}
		p.timedOut()
	}
	if p.timeout != maxDialTimeout {
		t.Errorf("timeout %v after failures, want %v", p.timeout, maxDialTimeout)
	}
	p.connected(20 * time.Second)
	if p.timeout != 80*time.Second || p.userTimeout() != 80*time.Second {
		t.Errorf("timeouts %v and %v after 20 s, want four times that", p.timeout, p.userTimeout())
	}
	p.connected(time.Millisecond)
	if p.timeout != dialTimeout || p.userTimeout() != minUserTimeout {
		t.Errorf("timeouts %v and %v on a good path", p.timeout, p.userTimeout())
	}
}
