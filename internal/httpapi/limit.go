package httpapi

import (
	"fmt"
	"math"
	"net/http"
	"net/netip"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"

	"pallas/events"
)

// Limits keep one caller from taking what all need. Zero fields but Rate mean
// the defaults. /livez, /readyz, /metrics and the pages of the description are
// not limited.
type Limits struct {
	// Rate is how many requests a second a principal may send, with a burst of
	// twice as many; 0 means that there is no limit.
	Rate float64
	// Active is how many requests are answered at the same time; default 256.
	// A principal gets at most half of them. What needs no token has a quarter
	// as many places of its own, so that strangers cannot take the others'.
	Active int
	// Streams is how many event streams are open at the same time; default
	// 1,024.
	Streams int
	// FailureRate and FailureBurst are refused tokens a second and source;
	// default 1 and 60. A valid token passes all the same: many callers may
	// share an address.
	FailureRate  float64
	FailureBurst int
}

// DefaultRate is the Rate of a manager whose configuration says nothing.
const DefaultRate = 100

// remembered is how many principals and sources have a budget; of those that
// were quiet longest it is forgotten.
const remembered = 4096

// limiter decides which requests are let in.
type limiter struct {
	active, public, streams places
	callers                 *lru.Cache[events.Actor, *caller]
	limits                  Limits
	failures                *Budgets[netip.Prefix]
}

// places is a bounded number of places.
type places chan struct{}

// take takes a place, and says whether there was one.
func (p places) take() bool {
	select {
	case p <- struct{}{}:
		return true
	default:
		return false
	}
}

func (p places) leave() { <-p }

// caller is what a principal has used.
type caller struct {
	requests *rate.Limiter
	active   atomic.Int64
}

func newLimiter(l Limits) *limiter {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	def(&l.Active, 256)
	def(&l.Streams, 1024)
	def(&l.FailureBurst, 60)
	if l.FailureRate == 0 {
		l.FailureRate = 1
	}
	callers, err := lru.New[events.Actor, *caller](remembered)
	if err != nil {
		panic(err) // a negative size
	}
	return &limiter{
		active: make(places, l.Active), public: make(places, max(1, l.Active/4)), streams: make(places, l.Streams),
		callers: callers, limits: l, failures: NewBudgets[netip.Prefix](l.FailureRate, l.FailureBurst, remembered),
	}
}

// caller returns what the principal has used.
func (l *limiter) caller(a events.Actor) *caller {
	if c, ok := l.callers.Get(a); ok {
		return c
	}
	limit := rate.Limit(l.limits.Rate)
	if limit == 0 {
		limit = rate.Inf
	}
	c := &caller{requests: rate.NewLimiter(limit, max(1, int(2*l.limits.Rate)))}
	if earlier, found, _ := l.callers.PeekOrAdd(a, c); found {
		return earlier
	}
	return c
}

// admit gives a request a place, or sheds it. It comes before the token is
// looked at: shedding must cost little.
func (s *server) admit(huma.API) func(huma.Context, func(huma.Context)) {
	return func(ctx huma.Context, next func(huma.Context)) {
		pool := s.limits.active
		switch op := ctx.Operation(); {
		case isStream(op):
			pool = s.limits.streams
		case isPublic(op):
			pool = s.limits.public
		}
		if !pool.take() {
			r, w := humago.Unwrap(ctx)
			s.shed(w, r, "overloaded", NewProblem(KindOverloaded, "too many requests are being answered; nothing was done: try again"), time.Second)
			return
		}
		defer pool.leave()
		next(ctx)
	}
}

// isStream says whether an operation's answers go on until the client leaves.
func isStream(op *huma.Operation) bool {
	ok := op.Responses["200"]
	return ok != nil && ok.Content["text/event-stream"] != nil
}

// isPublic says whether an operation needs no token.
func isPublic(op *huma.Operation) bool { return op.Security != nil && len(op.Security) == 0 }

// admitCaller charges the principal for a request, or sheds it. The request
// is done when leave is called.
func (s *server) admitCaller(w http.ResponseWriter, r *http.Request, op *huma.Operation) (leave func(), ok bool) {
	c := s.limits.caller(requestOf(r.Context()).Principal.Actor)
	now := s.cfg.Now()
	if !c.requests.AllowN(now, 1) {
		wait := shortage(c.requests, 1, now)
		s.shed(w, r, "rate", NewProblem(KindTooMany, fmt.Sprintf("a user may send %g requests a second; nothing was done: send fewer", s.limits.limits.Rate)), wait)
		return nil, false
	}
	if isStream(op) {
		return func() {}, true
	}
	if int(c.active.Add(1)) > max(1, s.limits.limits.Active/2) {
		c.active.Add(-1)
		s.shed(w, r, "concurrency", NewProblem(KindTooMany, "too many requests of this user are being answered; nothing was done: send fewer at the same time"), time.Second)
		return nil, false
	}
	return func() { c.active.Add(-1) }, true
}

// shed answers a request that is not let in.
func (s *server) shed(w http.ResponseWriter, r *http.Request, reason string, p *Problem, wait time.Duration) {
	requestOf(r.Context()).shed = true
	s.metrics.shed.WithLabelValues(reason).Inc()
	w.Header().Set("Retry-After", RetryAfter(wait))
	writeProblem(w, r, p)
}

// RetryAfter is the value of a Retry-After header: whole seconds, at least one.
func RetryAfter(wait time.Duration) string {
	return strconv.Itoa(max(1, int(math.Ceil(wait.Seconds()))))
}

// Budgets hold a token bucket for each of the keys that were charged last.
type Budgets[K comparable] struct {
	rate  rate.Limit
	burst int
	keys  *lru.Cache[K, *rate.Limiter]
}

// NewBudgets gives each key a budget of burst units, filled by so many a
// second. It remembers size keys: the one that was quiet longest is forgotten
// first.
func NewBudgets[K comparable](perSecond float64, burst, size int) *Budgets[K] {
	keys, err := lru.New[K, *rate.Limiter](size)
	if err != nil {
		panic(err) // a negative size
	}
	return &Budgets[K]{rate: rate.Limit(perSecond), burst: burst, keys: keys}
}

// Wait returns how long it is until the key has a unit; 0 means that it has. It
// takes nothing: where the cost is known only when a request is answered, a
// budget may go below zero by those that were under way together.
func (b *Budgets[K]) Wait(key K, now time.Time) time.Duration {
	if l, ok := b.keys.Get(key); ok {
		return shortage(l, 1, now)
	}
	return 0
}

// Charge takes units from the key's budget, which may go below zero.
func (b *Budgets[K]) Charge(key K, now time.Time, units int) {
	l, ok := b.keys.Get(key)
	if !ok {
		l = rate.NewLimiter(b.rate, b.burst)
		if earlier, found, _ := b.keys.PeekOrAdd(key, l); found {
			l = earlier
		}
	}
	l.ReserveN(now, min(units, b.burst))
}

// Len returns how many keys have a budget.
func (b *Budgets[K]) Len() int { return b.keys.Len() }

// shortage returns the time until the bucket holds n units.
func shortage(l *rate.Limiter, n float64, now time.Time) time.Duration {
	missing := n - l.TokensAt(now)
	if missing <= 0 {
		return 0
	}
	return time.Duration(missing / float64(l.Limit()) * float64(time.Second))
}

// SourceNetwork is what counts as one source of requests: an IPv4 address or an IPv6
// /64, since whoever has an IPv6 address has the other 2^64 of its network too.
// An address that does not parse shares one network with all such.
func SourceNetwork(source string) netip.Prefix {
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
