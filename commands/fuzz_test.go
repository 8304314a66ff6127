package commands

import (
	"strings"
	"testing"

	"pallas/events"
	"pallas/events/eventstest"
)

// FuzzSnapshot checks that a snapshot, whatever is in it, is ignored or a
// state that the dispatcher can go on with.
func FuzzSnapshot(f *testing.F) {
	store := eventstest.NewMemory()
	d, _ := dispatcher(f, store)
	managed(f, d, dev)
	records := logOf(f, store)
	subjects := []events.Subject{events.DeviceSubject(dev), events.InventorySubject(dev), events.TasksSubject(dev), events.TokenSubject(tok)}
	for i, s := range subjects {
		snaps := &shelf{data: map[events.Subject][]byte{}, at: map[events.Subject]uint64{}}
		d, _ := dispatcher(f, store, func(c *Config) { c.Snapshots = snaps })
		e, err := d.refresh(f.Context(), s, nil)
		if err != nil {
			f.Fatal(err)
		}
		d.keep(f.Context(), s, e)
		f.Add(uint8(i), snaps.data[s])
		f.Add(uint8(i), []byte(`{"version":1,"recent":[null],"state":null}`))
	}
	f.Fuzz(func(t *testing.T, i uint8, data []byte) {
		s := subjects[int(i)%len(subjects)]
		snaps := &shelf{data: map[events.Subject][]byte{s: data}, at: map[events.Subject]uint64{s: 1}}
		d, _ := dispatcher(t, store, func(c *Config) { c.Snapshots = snaps })
		e := d.restore(t.Context(), s)
		if e == nil {
			return
		}
		for _, r := range records {
			if r.Subject == s {
				e.state.fork().fold(r)
				e.fold(r)
			}
		}
		d.keep(t.Context(), s, e)
		if d.restore(t.Context(), s) == nil && e.revision <= uint64(len(records)) {
			t.Fatalf("what was restored from %s is refused once saved: %s", data, snaps.data[s])
		}
	})
}

// FuzzNamePattern checks that a pattern that a token may have always makes a
// name that a device may have.
func FuzzNamePattern(f *testing.F) {
	f.Add("till-{n}", "esx-1", 3)
	f.Add("{host} {id8}", strings.Repeat("ä", 253), 100_000)
	f.Add("{{n}", "x", 1)
	f.Fuzz(func(t *testing.T, pattern, host string, n int) {
		n = min(max(n, 1), MaxUses)
		if pattern == "" || checkPattern(pattern, MaxUses) != nil || checkName("host", host) != nil {
			return
		}
		name := JoinToken{NamePattern: pattern, MaxUses: MaxUses}.DeviceName(dev, host, n)
		if err := checkName("name", name); err != nil {
			t.Errorf("%q for %q: %q: %v", pattern, host, name, err)
		}
	})
}
