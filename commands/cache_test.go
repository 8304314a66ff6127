package commands

import (
	"testing"
	"testing/synctest"
	"time"

	"pallas/events"
	"pallas/events/eventstest"
)

func TestCacheLetsGoOfWhatIsNotUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, _ := dispatcher(t, eventstest.NewMemory())
		managed(t, d, dev)
		managed(t, d, dev2)
		if n, bytes := d.cache.usage(); n < 2 || bytes < n*(entrySize+itemSize) {
			t.Fatalf("%d aggregates, %d bytes, want the two devices at least", n, bytes)
		}
		for range 3 {
			<-time.After(sweepEvery - time.Second)
			if d.cache.get(events.DeviceSubject(dev)) == nil {
				t.Fatal("an aggregate in use has left")
			}
		}
		if n, bytes := d.cache.usage(); n != 1 || bytes != entrySize+itemSize {
			t.Errorf("%d aggregates, %d bytes after three minutes, want the one in use", n, bytes)
		}
		<-time.After(2*sweepEvery + time.Second)
		if n, bytes := d.cache.usage(); n != 0 || bytes != 0 || d.cache.timer != nil {
			t.Errorf("%d aggregates, %d bytes, want none and no timer", n, bytes)
		}
		if r := does(t, d, UpdateDevice{Device: dev, Name: new("again")}); !r.Changed {
			t.Errorf("rename after that: %+v", r)
		}
	})
}

func TestCacheIsBoundedInBytes(t *testing.T) {
	c := newCache(10 * (entrySize + itemSize))
	vms := map[events.VMID]events.VM{"1": {}, "2": {}, "3": {}}
	for i := range 100 {
		id := events.DeviceID(rune('a' + i%26))
		c.put(events.InventorySubject(id), &entry{state: &Inventory{VMs: vms}, revision: uint64(i)}, t0)
		if n, bytes := c.usage(); bytes > c.maxBytes || bytes != n*(entrySize+5*itemSize) || i >= 3 && n != 3 {
			t.Fatalf("%d aggregates, %d bytes of %d", n, bytes, c.maxBytes)
		}
	}
	c.put(events.InventorySubject("large"), &entry{state: &Inventory{VMs: make(map[events.VMID]events.VM)}}, t0)
	if c.get(events.InventorySubject("large")) == nil {
		t.Error("the newest has left")
	}
	c.maxBytes = 1
	c.put(events.InventorySubject("larger"), &entry{state: &Inventory{VMs: vms}}, t0)
	if n, bytes := c.usage(); n != 0 || bytes != 0 {
		t.Errorf("%d aggregates, %d bytes, want none: there is room for none", n, bytes)
	}
}
