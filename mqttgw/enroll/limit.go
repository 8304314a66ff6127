package enroll

import (
	"math"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"

	"pallas/internal/httpapi"
)

// Limits bound how often enrolment may be tried. Zero fields mean the
// defaults.
//
// A source is an IPv4 address or an IPv6 /64 network. It has one budget: an
// enrolment costs 1, a refused one 10. A whole site may join at once from
// behind one NAT address, yet guessing is slow. The global budget is for
// refusals alone, so that many sources together guess no faster.
type Limits struct {
	SourceRate   float64 // units per second and source; default 10
	SourceBurst  int     // default 300
	FailureRate  float64 // refusals per second in all; default 20
	FailureBurst int     // default 200
	// Sources is how many sources are remembered; default 4096. The one that
	// was quiet longest is forgotten first.
	Sources int
}

// failureCost is what a refusal takes from its source's budget.
const failureCost = 10

type limiter struct {
	limits   Limits
	failures *rate.Limiter
	sources  *lru.Cache[netip.Prefix, *rate.Limiter]
}

func newLimiter(l Limits) *limiter {
	set(&l.SourceRate, 10)
	set(&l.SourceBurst, 300)
	set(&l.FailureRate, 20)
	set(&l.FailureBurst, 200)
	set(&l.Sources, 4096)
	sources, err := lru.New[netip.Prefix, *rate.Limiter](l.Sources)
	if err != nil {
		panic(err) // a negative size
	}
	return &limiter{limits: l, failures: rate.NewLimiter(rate.Limit(l.FailureRate), l.FailureBurst), sources: sources}
}

func set[T int | float64](p *T, v T) {
	if *p == 0 {
		*p = v
	}
}

// wait returns how long the source has to wait; 0 means go on. It takes
// nothing: what a request costs is known only when it is answered, and a
// budget may go below zero by those that were under way together.
func (l *limiter) wait(source string, now time.Time) time.Duration {
	wait := shortage(l.failures, 1, now)
	if s, ok := l.sources.Get(network(source)); ok {
		wait = max(wait, shortage(s, 1, now))
	}
	return wait
}

func (l *limiter) served(source string, now time.Time) { l.charge(source, now, 1) }

func (l *limiter) failed(source string, now time.Time) {
	l.charge(source, now, failureCost)
	l.failures.ReserveN(now, 1)
}

func (l *limiter) charge(source string, now time.Time, units int) {
	n := network(source)
	s, ok := l.sources.Get(n)
	if !ok {
		s = rate.NewLimiter(rate.Limit(l.limits.SourceRate), l.limits.SourceBurst)
		if earlier, found, _ := l.sources.PeekOrAdd(n, s); found {
			s = earlier
		}
	}
	s.ReserveN(now, min(units, l.limits.SourceBurst))
}

// shortage returns the time until the budget holds n units.
func shortage(l *rate.Limiter, n float64, now time.Time) time.Duration {
	missing := n - l.TokensAt(now)
	if missing <= 0 {
		return 0
	}
	return time.Duration(missing / float64(l.Limit()) * float64(time.Second))
}

// network is what counts as one source. Whoever has an IPv6 address has the
// other 2^64 of its network too. An address that does not parse shares one
// budget with all such.
func network(source string) netip.Prefix {
	a, err := netip.ParseAddr(source)
	if err != nil {
		return netip.Prefix{}
	}
	a = a.Unmap().WithZone("")
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

var kindTooMany = httpapi.Kind{
	Status: http.StatusTooManyRequests, Name: "too-many-requests", Title: "Too many requests",
	Meaning: "Enrolment was tried too often from this address, or failed too often in all. Try again after the seconds of Retry-After.",
}

func tooMany(wait time.Duration) error {
	seconds := strconv.Itoa(max(1, int(math.Ceil(wait.Seconds()))))
	p := httpapi.NewProblem(kindTooMany, "enrolment was tried too often: try again in "+seconds+" s")
	return huma.ErrorWithHeaders(p, http.Header{"Retry-After": {seconds}})
}
