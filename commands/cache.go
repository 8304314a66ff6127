package commands

import (
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"pallas/events"
)

// entry is a folded aggregate at a revision.
//
// Whoever holds the aggregate's lock may use an entry as it is, and fold into
// it by cache.advance. Everybody else takes it by cache.share, and from then on
// it is never changed again: the next decision is folded into a copy. So a busy
// aggregate costs no copies, and a reader never sees a change.
type entry struct {
	state    folded
	revision uint64
	// decision is the one at the revision.
	decision events.ID
	// recent are the newest decisions that a command id led to, oldest first.
	recent []answer
	// since counts the decisions folded since the last snapshot.
	since int

	// shared and checked are guarded by cache.mu. checked is when the log last
	// confirmed the revision.
	shared  bool
	checked time.Time
}

// answer is where a command's decision is.
type answer struct {
	ID       events.ID `json:"id"`
	Position uint64    `json:"position"`
}

// maxRecent is how many answers of an aggregate are remembered, so that a
// repeated command gets the answer of the first. It needs to cover the retries
// of a client, not history.
const maxRecent = 16

// position returns where the decision is, or 0.
func (e *entry) position(id events.ID) uint64 {
	for _, a := range e.recent {
		if a.ID == id {
			return a.Position
		}
	}
	return 0
}

// fold adds a record in place.
func (e *entry) fold(r events.Record) {
	e.state.fold(r)
	e.revision, e.decision = r.Position, r.ID
	e.since++
	if derived(r.ID) {
		e.recent = append(e.recent, answer{ID: r.ID, Position: r.Position})
		if n := len(e.recent); n > maxRecent {
			e.recent = e.recent[n-maxRecent:]
		}
	}
}

// fork returns a copy that may be folded into.
func (e *entry) fork() *entry {
	return &entry{
		state: e.state.fork(), revision: e.revision, decision: e.decision, since: e.since,
		recent: e.recent[:len(e.recent):len(e.recent)], // an append makes a copy
	}
}

// due says whether it is time for a snapshot, and if so counts anew.
func (e *entry) due() bool {
	if e.since < snapshotEvery {
		return false
	}
	e.since = 0
	return true
}

// derived says whether a decision's id was derived from a command id: it is a
// UUID of version 5 then.
func derived(id events.ID) bool { return len(id) == 36 && id[14] == '5' }

// cache holds the aggregates that were used last.
type cache struct {
	mu  sync.Mutex
	lru *simplelru.LRU[events.Subject, *entry]
}

func newCache(size int) (*cache, error) {
	lru, err := simplelru.NewLRU[events.Subject, *entry](size, nil)
	return &cache{lru: lru}, err
}

// get returns the aggregate's entry, or nil, to the holder of its lock.
func (c *cache) get(s events.Subject) *entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, _ := c.lru.Get(s)
	return e
}

// share returns the aggregate's entry, or nil, for reading by anybody, and when
// the log last confirmed it.
func (c *cache) share(s events.Subject) (*entry, time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.lru.Get(s)
	if !ok {
		return nil, time.Time{}
	}
	e.shared = true
	return e, e.checked
}

// put keeps a shared entry that the log confirmed, unless there is a newer one.
func (c *cache) put(s events.Subject, e *entry, checked time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.shared, e.checked = true, checked
	if old, ok := c.lru.Peek(s); !ok || old.revision <= e.revision {
		c.lru.Add(s, e)
	}
}

// advance folds a record that was just appended on top of the entry, keeps the
// result and returns it. The caller holds the aggregate's lock.
func (c *cache) advance(s events.Subject, e *entry, r events.Record) (next *entry, snapshot bool) {
	c.mu.Lock()
	shared := e.shared
	if shared { // for good: copy it without holding up the others
		c.mu.Unlock()
		e = e.fork()
		c.mu.Lock()
	}
	defer c.mu.Unlock()
	e.fold(r)
	e.checked = r.Time
	c.lru.Add(s, e)
	return e, e.due()
}
