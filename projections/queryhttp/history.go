package queryhttp

import (
	"context"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"pallas/events"
	"pallas/internal/httpapi"
)

// place is a place in the log: after event n (from 1) of the decision at
// position.
type place struct {
	position uint64
	n        int
}

// all is the n of a place after a whole decision.
const all = math.MaxInt

var errPlace = errors.New("not a place in the log")

func parsePlace(s string) (place, error) {
	pos, n, found := strings.Cut(s, ".")
	p := place{n: all}
	var err error
	if p.position, err = strconv.ParseUint(pos, 10, 63); err != nil {
		return place{}, errPlace
	}
	if found {
		if p.n, err = strconv.Atoi(n); err != nil || p.n < 1 {
			return place{}, errPlace
		}
	}
	return p, nil
}

// before says whether the place is before event n of a position.
func (p place) before(position uint64, n int) bool {
	return position > p.position || (position == p.position && n > p.n)
}

func parseCursor(s, order string) (*place, error) {
	rest, ok := strings.CutPrefix(s, order+".")
	p, err := parsePlace(rest)
	if !ok || err != nil {
		return nil, httpapi.Invalid("query.cursor", "is not one that this list gave out, in this order: start again without one")
	}
	return &p, nil
}

// eventQuery picks events out of the log.
type eventQuery struct {
	sight      sight
	subjects   []string
	types      []string
	actor      events.Actor
	since      time.Time
	until      time.Time
	after      place
	descending bool
	// from is where a page goes on, nil for the first.
	from *place
	// last is the log's end when the request came.
	last uint64
}

func (q eventQuery) order() string {
	if q.descending {
		return "desc"
	}
	return "asc"
}

// The bounds of the work for one page. A page ends there although it is not
// full, with a cursor behind what was looked at.
const (
	maxScan   = 20_000 // decisions, oldest first
	minWindow = 256    // positions, newest first: the first step back
	maxWindow = 32_768 // positions: the longest step back, unless the log itself finds the few of a device
	maxSteps  = 16     // steps back
)

// clockSlack is how far the log's order and the managers' clocks may disagree.
const clockSlack = time.Minute

// matches says whether event n (from 1) of a record is asked for.
func (q *eventQuery) matches(r events.Record, n int) bool {
	return q.after.before(r.Position, n) && r.Position <= q.last &&
		(q.actor == "" || r.Actor == q.actor) &&
		(q.since.IsZero() || !r.Time.Before(q.since)) &&
		(q.until.IsZero() || r.Time.Before(q.until)) &&
		(len(q.types) == 0 || slices.Contains(q.types, r.Entries[n-1].Event.Type()))
}

// visible says whether the caller may see a record that is asked for.
func (q *eventQuery) visible(ctx context.Context, eye *eye, r events.Record) (bool, error) {
	if eye.all {
		return true, nil
	}
	if !q.picks(r) { // which costs less
		return false, nil
	}
	return eye.sees(ctx, r)
}

// page returns up to size events.
func (q eventQuery) page(ctx context.Context, store events.Store, eye *eye, size int) (EventPage, error) {
	if q.descending {
		return q.pageBack(ctx, store, eye, size)
	}
	if q.from != nil {
		q.after = *q.from
	}
	page := EventPage{Items: []httpapi.Event{}}
	scanned := 0
	for r, err := range store.Read(ctx, q.filter()) {
		if err != nil {
			return EventPage{}, fmt.Errorf("read events: %w", err)
		}
		if r.Position > q.last || (!q.until.IsZero() && r.Time.After(q.until.Add(clockSlack))) {
			break
		}
		visible, err := q.visible(ctx, eye, r)
		if err != nil {
			return EventPage{}, err
		}
		for n := 1; visible && n <= len(r.Entries); n++ {
			if !q.matches(r, n) {
				continue
			}
			if len(page.Items) == size {
				page.Next = "asc." + page.Items[size-1].Cursor
				return page, nil
			}
			e, err := httpapi.EventOf(r, n-1)
			if err != nil {
				return EventPage{}, err
			}
			page.Items = append(page.Items, e)
		}
		if scanned++; scanned == maxScan {
			page.Next = "asc." + strconv.FormatUint(r.Position, 10)
			return page, nil
		}
	}
	return page, nil
}

// pageBack reads stretches of the log, the newest first. The log itself can
// only be read forward.
func (q eventQuery) pageBack(ctx context.Context, store events.Store, eye *eye, size int) (EventPage, error) {
	// before is where to go on: events before event before.n of its position.
	before := place{q.last, all}
	if q.from != nil {
		before = *q.from
	}
	page := EventPage{Items: []httpapi.Event{}}
	high, window := before.position, uint64(minWindow)
	for step := 0; high > q.floor(); step++ {
		if step == maxSteps {
			page.Next = "desc." + strconv.FormatUint(high+1, 10) + ".1"
			return page, nil
		}
		low := max(q.floor(), high-min(high, window))
		found, old, err := q.stretch(ctx, store, eye, low, high, before, size+1-len(page.Items))
		if err != nil {
			return EventPage{}, err
		}
		page.Items = append(page.Items, found...)
		if len(page.Items) > size {
			page.Items = page.Items[:size]
			page.Next = "desc." + page.Items[size-1].Cursor
			return page, nil
		}
		if old {
			return page, nil
		}
		if len(found) < size/2 {
			if window *= 4; len(q.subjects) == 0 {
				window = min(window, maxWindow)
			}
		}
		high = low
	}
	return page, nil
}

// floor is the position up to which nothing is asked for. The decision of
// after itself may have more events.
func (q eventQuery) floor() uint64 {
	if q.after.position > 0 && q.after.n != all {
		return q.after.position - 1
	}
	return q.after.position
}

// stretch returns the newest matching events of the positions (low, high],
// at most want, newest first; and whether everything in it is too old.
func (q eventQuery) stretch(ctx context.Context, store events.Store, eye *eye, low, high uint64, before place, want int) (found []httpapi.Event, old bool, err error) {
	type hit struct {
		record events.Record
		n      int
	}
	var hits []hit
	records := 0
	old = !q.since.IsZero()
	for r, err := range store.Read(ctx, events.Filter{Subjects: q.subjects, After: low}) {
		if err != nil {
			return nil, false, fmt.Errorf("read events: %w", err)
		}
		if r.Position > high {
			break
		}
		records++
		if old && r.Time.After(q.since.Add(-clockSlack)) {
			old = false
		}
		visible, err := q.visible(ctx, eye, r)
		if err != nil {
			return nil, false, err
		}
		for n := 1; visible && n <= len(r.Entries); n++ {
			if q.matches(r, n) && (r.Position < before.position || n < before.n) {
				hits = append(hits, hit{r, n})
			}
		}
		if len(hits) > 4*want { // keep the newest only, without moving them each time
			hits = append(hits[:0], hits[len(hits)-want:]...)
		}
	}
	for i := len(hits) - 1; i >= 0 && len(found) < want; i-- {
		e, err := httpapi.EventOf(hits[i].record, hits[i].n-1)
		if err != nil {
			return nil, false, err
		}
		found = append(found, e)
	}
	return found, old && records > 0, nil
}

// filter is what the log itself can pick.
func (q eventQuery) filter() events.Filter {
	f := events.Filter{Subjects: q.subjects, After: q.floor()}
	if f.After == 0 && !q.since.IsZero() {
		f.Since = q.since.Add(-clockSlack)
	}
	return f
}

func typeOf[T any]() reflect.Type { return reflect.TypeFor[T]() }
