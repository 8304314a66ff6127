package commands

import (
	"math"
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

	// The others are guarded by cache.mu. checked is when the log last confirmed
	// the revision, used is the cache's sweeps at the last use, size in bytes.
	shared  bool
	checked time.Time
	used    uint64
	size    int
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

// cache holds the aggregates that were used last: up to so many bytes, and none
// that was not used for two minutes. Snapshots make it cheap to load one again.
type cache struct {
	maxBytes int

	mu     sync.Mutex
	lru    *simplelru.LRU[events.Subject, *entry]
	bytes  int
	sweeps uint64
	timer  *time.Timer // of the next sweep; nil while the cache is empty
}

// sweepEvery is how often unused aggregates are let go. One that was not used
// between two sweeps leaves.
const sweepEvery = time.Minute

func newCache(maxBytes int) *cache {
	c := &cache{maxBytes: maxBytes}
	// Bytes are the bound.
	c.lru, _ = simplelru.NewLRU(math.MaxInt, func(_ events.Subject, e *entry) { c.bytes -= e.size })
	return c
}

// get returns the aggregate's entry, or nil, to the holder of its lock.
func (c *cache) get(s events.Subject) *entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.use(s)
}

// share returns the aggregate's entry, or nil, for reading by anybody, and when
// the log last confirmed it.
func (c *cache) share(s events.Subject) (*entry, time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.use(s)
	if e == nil {
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
		c.add(s, e)
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
	c.add(s, e)
	return e, e.due()
}

func (c *cache) use(s events.Subject) *entry {
	e, ok := c.lru.Get(s)
	if ok {
		e.used = c.sweeps
	}
	return e
}

// add keeps the entry, and lets those go that there is no room for.
func (c *cache) add(s events.Subject, e *entry) {
	if old, ok := c.lru.Peek(s); ok {
		c.bytes -= old.size
	}
	e.used, e.size = c.sweeps, entrySize+e.state.size()
	c.bytes += e.size
	c.lru.Add(s, e)
	for c.bytes > c.maxBytes {
		c.lru.RemoveOldest()
	}
	if c.timer == nil && c.lru.Len() > 0 {
		c.timer = time.AfterFunc(sweepEvery, c.sweep)
	}
}

// sweep lets go of what was not used since the one before.
func (c *cache) sweep() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		_, e, ok := c.lru.GetOldest()
		if !ok {
			c.timer = nil
			return
		}
		if e.used >= c.sweeps {
			break
		}
		c.lru.RemoveOldest()
	}
	c.sweeps++
	c.timer.Reset(sweepEvery)
}

// usage returns how many aggregates there are, and about how many bytes.
func (c *cache) usage() (aggregates, bytes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lru.Len(), c.bytes
}

// About what takes how many bytes of memory, texts included.
const (
	entrySize = 512 // an entry and its place in the cache
	itemSize  = 512 // a virtual machine, a task
)

func (d *Device) size() int    { return itemSize + len(d.Notes) }
func (t *JoinToken) size() int { return itemSize }
func (i *Inventory) size() int { return 2*itemSize + len(i.VMs)*itemSize }
func (t *Tasks) size() int     { return len(t.Tasks)*itemSize + len(t.Past)*8 }
