package enroll

import (
	"net/http"
	"net/netip"
	"time"

	"github.com/danielgtaylor/huma/v2"

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

const defaultSources = 4096

// failureCost is what a refusal takes from its source's budget.
const failureCost = 10

type limiter struct {
	sources  *httpapi.Budgets[netip.Prefix]
	failures *httpapi.Budgets[struct{}] // of all sources
}

func newLimiter(l Limits) *limiter {
	set(&l.SourceRate, 10)
	set(&l.SourceBurst, 300)
	set(&l.FailureRate, 20)
	set(&l.FailureBurst, 200)
	set(&l.Sources, defaultSources)
	return &limiter{
		sources:  httpapi.NewBudgets[netip.Prefix](l.SourceRate, l.SourceBurst, l.Sources),
		failures: httpapi.NewBudgets[struct{}](l.FailureRate, l.FailureBurst, 1),
	}
}

func set[T int | float64](p *T, v T) {
	if *p == 0 {
		*p = v
	}
}

// wait returns how long the source has to wait; 0 means go on.
func (l *limiter) wait(source string, now time.Time) time.Duration {
	return max(l.failures.Wait(struct{}{}, now), l.sources.Wait(httpapi.SourceNetwork(source), now))
}

// exhausted says whether the source, or else all together, have no attempt left.
func (l *limiter) exhausted(source string, now time.Time) (ofSource, ofAll bool) {
	return l.sources.Wait(httpapi.SourceNetwork(source), now) > 0, l.failures.Wait(struct{}{}, now) > 0
}

func (l *limiter) served(source string, now time.Time) {
	l.sources.Charge(httpapi.SourceNetwork(source), now, 1)
}

func (l *limiter) failed(source string, now time.Time) {
	l.sources.Charge(httpapi.SourceNetwork(source), now, failureCost)
	l.failures.Charge(struct{}{}, now, 1)
}

func tooMany(wait time.Duration) error {
	seconds := httpapi.RetryAfter(wait)
	p := httpapi.NewProblem(httpapi.KindTooMany, "enrolment was tried too often: try again in "+seconds+" s")
	return huma.ErrorWithHeaders(p, http.Header{"Retry-After": {seconds}})
}
