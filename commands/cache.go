package commands

import (
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"pallas/events"
)

// entry is a folded aggregate at a revision. It is never changed once it is in
// the cache.
type entry struct {
	state    folded
	revision uint64
	// recent are the newest decisions that a command id led to, oldest first.
	recent []answer
	// since counts the decisions folded since the last snapshot.
	since int
	// checked is when the log last confirmed the revision.
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

// fold adds a record in place; the entry must not be in the cache.
func (e *entry) fold(r events.Record) {
	e.state.fold(r)
	e.revision = r.Position
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
	c := *e
	c.state = e.state.fork()
	c.recent = e.recent[:len(e.recent):len(e.recent)] // an append makes a copy
	return &c
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

func (c *cache) get(s events.Subject) *entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, _ := c.lru.Get(s)
	return e
}

// put keeps the entry unless a newer one is there already.
func (c *cache) put(s events.Subject, e *entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old, ok := c.lru.Peek(s); !ok || old.revision <= e.revision {
		c.lru.Add(s, e)
	}
}
