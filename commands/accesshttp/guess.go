package accesshttp

import (
	"crypto/sha256"
	"math"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/time/rate"

	"pallas/internal/httpapi"
)

// How often a password may be guessed.
const (
	// freeGuesses is how many wrong passwords for a login from a source cost
	// nothing; each after them doubles the wait, up to maxWait. It is forgotten
	// after forgetAfter without one.
	freeGuesses = 4
	maxWait     = time.Minute
	forgetAfter = 15 * time.Minute
	// A source may fail sourceBurst times, and then once in two seconds, whatever
	// the login.
	sourceRate, sourceBurst = 0.5, 30
	// All together may fail allBurst times, and then ten times a second. Who has
	// signed in from the same source before is not held up by it.
	allRate, allBurst = 10, 100
	// remembered bounds what is kept of logins and sources.
	remembered = 8192
)

// guesses limits how often passwords are tried. There is no limit for a login
// from everywhere: it would let anybody lock out its owner.
type guesses struct {
	sources *httpapi.Budgets[netip.Prefix]

	mu    sync.Mutex
	all   *rate.Limiter
	tries *simplelru.LRU[guessKey, *tries]
}

// guessKey is a login from a source. The login is hashed, for its length.
type guessKey struct {
	login  [sha256.Size]byte
	source netip.Prefix
}

type tries struct {
	failed int
	last   time.Time
	until  time.Time // no try before
	under  bool      // one is under way
	known  bool      // somebody signed in
}

func newGuesses() *guesses {
	g := &guesses{sources: httpapi.NewBudgets[netip.Prefix](sourceRate, sourceBurst, remembered), all: rate.NewLimiter(allRate, allBurst)}
	g.tries, _ = simplelru.NewLRU[guessKey, *tries](remembered, nil) // the size is positive
	return g
}

// verdict is how a try ended.
type verdict int

const (
	undecided verdict = iota // for a reason of ours
	wrong
	right
)

// held says how long a source must wait until it may fail again, without a
// login; 0 means that it may now.
func (g *guesses) held(source string, now time.Time) time.Duration {
	if wait := g.sources.Wait(httpapi.SourceNetwork(source), now); wait > 0 {
		return min(wait, maxWait)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if missing := 1 - g.all.TokensAt(now); missing > 0 {
		return time.Duration(math.Ceil(missing/allRate)) * time.Second
	}
	return 0
}

// failed counts a failure of a source, without a login.
func (g *guesses) failed(source string, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.sources.Charge(httpapi.SourceNetwork(source), now, 1)
	g.all.AllowN(now, 1)
}

// begin lets a password be tried, or says how long to wait. The caller says by
// end how it went.
func (g *guesses) begin(login, source string, now time.Time) (end func(verdict), wait time.Duration) {
	key := guessKey{sha256.Sum256([]byte(login)), httpapi.SourceNetwork(source)}
	g.mu.Lock()
	defer g.mu.Unlock()
	t, ok := g.tries.Get(key)
	if !ok {
		t = &tries{}
		g.tries.Add(key, t)
	}
	if now.Sub(t.last) > forgetAfter {
		t.failed = 0
	}
	switch {
	case t.under:
		return nil, time.Second
	case now.Before(t.until):
		return nil, t.until.Sub(now)
	}
	if wait := g.sources.Wait(key.source, now); wait > 0 {
		return nil, min(wait, maxWait)
	}
	if missing := 1 - g.all.TokensAt(now); missing > 0 && !t.known {
		return nil, time.Duration(math.Ceil(missing/allRate)) * time.Second
	}
	t.under = true
	return func(v verdict) {
		g.mu.Lock()
		defer g.mu.Unlock()
		t.under = false
		switch v {
		case undecided:
		case right:
			t.failed, t.known = 0, true
		case wrong:
			t.failed, t.last = t.failed+1, now
			if n := t.failed - freeGuesses; n >= 0 {
				t.until = now.Add(min(time.Second<<min(n, 10), maxWait))
			}
			g.sources.Charge(key.source, now, 1)
			g.all.AllowN(now, 1)
		}
	}, 0
}
