package enroll

import (
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/time/rate"

	"pallas/internal/httpapi"
)

// Bounds of what is written down of refused attempts, so that whoever makes
// them cannot make the log grow: one event an hour for a source, and so many an
// hour for all.
const (
	alarmEvery = time.Hour
	maxAlarms  = 60
)

// alarms decides which refusals are written down: those with which attempts
// became too many, see [Limits].
type alarms struct {
	mu      sync.Mutex
	sources *simplelru.LRU[netip.Prefix, *alarm] // those that failed last
	all     alarm
	budget  *rate.Limiter
}

// alarm is what was refused since the last event about it.
type alarm struct {
	failures int
	last     time.Time // of that event; zero when there was none
}

func newAlarms(sources int) *alarms {
	if sources == 0 {
		sources = defaultSources
	}
	lru, err := simplelru.NewLRU[netip.Prefix, *alarm](sources, nil)
	if err != nil {
		panic(err) // a negative size
	}
	return &alarms{sources: lru, budget: rate.NewLimiter(rate.Every(alarmEvery/maxAlarms), maxAlarms)}
}

// failed counts a refusal for a token that does not open.
func (a *alarms) failed(source string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all.failures++
	key := httpapi.SourceNetwork(source)
	s, ok := a.sources.Get(key)
	if !ok {
		s = &alarm{}
		a.sources.Add(key, s)
	}
	s.failures++
}

// due returns how many failures are to be written down now that the source, or
// all of them together, has no attempt left; 0 when none are.
func (a *alarms) due(source string, ofSource bool, now time.Time) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := &a.all
	if ofSource {
		var ok bool
		if s, ok = a.sources.Get(httpapi.SourceNetwork(source)); !ok {
			return 0
		}
	}
	n := s.failures
	if n == 0 || !s.last.IsZero() && now.Sub(s.last) < alarmEvery || !a.budget.AllowN(now, 1) {
		return 0
	}
	s.failures, s.last = 0, now
	return n
}
