package accesshttp

import (
	"fmt"
	"testing"
	"time"
)

func TestGuesses(t *testing.T) {
	now := time.Date(2031, 1, 2, 3, 4, 5, 0, time.UTC)
	try := func(t *testing.T, g *guesses, login, source string, v verdict) time.Duration {
		t.Helper()
		end, wait := g.begin(login, source, now)
		if wait == 0 {
			end(v)
		}
		return wait
	}
	t.Run("each further one waits twice as long, up to a minute", func(t *testing.T) {
		g := newGuesses()
		for range freeGuesses {
			if w := try(t, g, "ann", "203.0.113.7", wrong); w != 0 {
				t.Fatalf("held up by %v", w)
			}
		}
		for _, seconds := range []int{1, 2, 4, 8, 16, 32, 60, 60} {
			want := time.Duration(seconds) * time.Second
			if w := try(t, g, "ann", "203.0.113.7", wrong); w != want {
				t.Fatalf("wait %v, want %v", w, want)
			}
			// Neither another login nor another source is held up.
			if w := try(t, g, "bob", "203.0.113.7", undecided); w != 0 {
				t.Fatalf("another login waits %v", w)
			}
			if w := try(t, g, "ann", "203.0.113.8", right); w != 0 {
				t.Fatalf("another source waits %v", w)
			}
			now = now.Add(want)
			if w := try(t, g, "ann", "203.0.113.7", wrong); w != 0 {
				t.Fatalf("after the wait: %v", w)
			}
		}
		now = now.Add(maxWait)
		if w := try(t, g, "ann", "203.0.113.7", right); w != 0 {
			t.Fatal(w)
		}
		if w := try(t, g, "ann", "203.0.113.7", wrong); w != 0 { // forgiven
			t.Fatal(w)
		}
		if w := try(t, g, "ann", "203.0.113.7", undecided); w != 0 {
			t.Errorf("held up by %v after one", w)
		}
	})
	t.Run("one at a time", func(t *testing.T) {
		g := newGuesses()
		end, wait := g.begin("ann", "203.0.113.7", now)
		if wait != 0 {
			t.Fatal(wait)
		}
		if _, wait := g.begin("ann", "203.0.113.7", now); wait == 0 {
			t.Error("two at the same time")
		}
		end(undecided)
		if w := try(t, g, "ann", "203.0.113.7", undecided); w != 0 {
			t.Error(w)
		}
	})
	t.Run("a source is bounded, whatever the login", func(t *testing.T) {
		g := newGuesses()
		n := 0
		for i := range 1000 {
			// An IPv6 /64 is one source.
			if try(t, g, fmt.Sprint("user-", i), fmt.Sprintf("2001:db8::%x", i), wrong) == 0 {
				n++
			}
		}
		if n != sourceBurst {
			t.Errorf("%d of 1000 were checked, want %d", n, sourceBurst)
		}
		if w := try(t, g, "user-x", "2001:db8:0:1::1", undecided); w != 0 {
			t.Errorf("another source waits %v", w)
		}
	})
	t.Run("all are bounded together, but for those who were here", func(t *testing.T) {
		g := newGuesses()
		if w := try(t, g, "ann", "198.51.100.1", right); w != 0 {
			t.Fatal(w)
		}
		n := 0
		for i := range 1000 {
			if try(t, g, "x", fmt.Sprintf("203.0.%d.%d", i/250, i%250), wrong) == 0 {
				n++
			}
		}
		if n != allBurst {
			t.Errorf("%d of 1000 were checked, want %d", n, allBurst)
		}
		if w := try(t, g, "ann", "198.51.100.1", undecided); w != 0 {
			t.Errorf("who signed in before waits %v", w)
		}
		if w := try(t, g, "bob", "198.51.100.2", undecided); w == 0 || w > maxWait {
			t.Errorf("a stranger waits %v", w)
		}
	})
	t.Run("what is kept is bounded", func(t *testing.T) {
		g := newGuesses()
		for i := range 2 * remembered {
			try(t, g, fmt.Sprint(i), "203.0.113.7", undecided)
		}
		if n := g.tries.Len(); n > remembered {
			t.Errorf("%d are kept", n)
		}
	})
}
