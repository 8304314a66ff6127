package projections

import (
	"slices"
	"testing"

	"pallas/events"
)

// TestTextFollowsChanges looks for texts that rows had and have, when each
// change is written by itself and when all are at once.
func TestTextFollowsChanges(t *testing.T) {
	vm := fullVM(vm1)
	vm.Name, vm.Hostname, vm.IPs = "till-0471", "till.example", []string{"192.0.2.10"}
	again := vm
	again.Name = "pos-0812"
	other := vm
	other.ID, other.Name = "52aa0000-0000-4000-8000-00000000000f", "gone"
	l := newLog(t)
	l.register(deviceA, "frankfurt-1")
	l.inventory(deviceA, events.HostObserved{Host: fullHost()})
	l.inventory(deviceA, events.VMObserved{VM: other})
	l.inventory(deviceA, events.VMObserved{VM: vm})
	l.device(deviceA, events.DeviceRenamed{Name: "munich-1"})
	l.inventory(deviceA, events.VMChanged{VM: vm1, Patch: events.VMPatch{IPs: &[]string{"198.51.100.7"}}})
	l.inventory(deviceA, events.VMObserved{VM: again})
	l.inventory(deviceA, events.VMChanged{VM: vm1, Patch: events.VMPatch{Hostname: new("counter.example")}})
	l.inventory(deviceA, events.VMRemoved{VM: other.ID})
	var recs []events.Record
	for rec, err := range l.Read(t.Context(), events.Filter{}) {
		if err != nil {
			t.Fatal(err)
		}
		recs = append(recs, rec)
	}
	for name, size := range map[string]int{"one by one": 1, "at once": len(recs)} {
		t.Run(name, func(t *testing.T) {
			d := openDB(t, t.TempDir()+"/read.db")
			for batch := range slices.Chunk(recs, size) {
				if err := d.write(batch); err != nil {
					t.Fatal(err)
				}
			}
			for text, want := range map[string]int{
				"nich": 1, "MUNICH-1": 1, "frankfurt": 0, "1\n": 0, string(deviceA)[:4]: 1, string(deviceA): 1, string(deviceA)[1:]: 0,
			} {
				if p, err := d.Devices(t.Context(), DeviceFilter{Scope: everything, Text: text}); err != nil || len(p.Items) != want {
					t.Errorf("devices with %q: %d, %v; want %d", text, len(p.Items), err, want)
				}
			}
			for text, want := range map[string]int{
				"0812": 1, "till-0471": 0, "counter.ex": 1, "till.ex": 0, "192.0.2.10": 1, "198.51": 0, "ubuntu": 1,
				"gone": 0, "52aa": 0, string(vm1): 1, string(vm1)[:8]: 1, string(vm1)[9:]: 0,
			} {
				if p, err := d.VMs(t.Context(), VMFilter{Scope: everything, Text: text}); err != nil || len(p.Items) != want {
					t.Errorf("machines with %q: %d, %v; want %d", text, len(p.Items), err, want)
				}
			}
			for _, table := range []string{"device_text_due", "vm_text_due"} {
				if n := countRows(t, d, table); n != 0 {
					t.Errorf("%s holds %d rows after the transaction", table, n)
				}
			}
		})
	}
}

// countRows returns how many rows a table has.
func countRows(t *testing.T, d *DB, table string) (n int) {
	t.Helper()
	if err := d.r.QueryRowContext(t.Context(), "SELECT count(*) FROM "+table).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}
