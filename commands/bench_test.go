package commands

import (
	"fmt"
	"testing"

	"pallas/events"
	"pallas/events/eventstest"
)

// BenchmarkDo is a report of one change, decided, appended to a log in memory
// and folded. The log's own encoding is a part of it; the ceiling beside it is
// that append alone.
func BenchmarkDo(b *testing.B) {
	for _, vms := range []int{20, 500} {
		b.Run(fmt.Sprintf("machines=%d", vms), func(b *testing.B) {
			d, _ := dispatcher(b, eventstest.NewMemory())
			managed(b, d, dev)
			does(b, d, fleet(3, vms))
			seq := uint64(vms + 3)
			changes := flips(web)
			b.ReportAllocs()
			for b.Loop() {
				seq++
				does(b, d, report(seq, changes[seq%2]))
			}
		})
	}
	b.Run("ceiling", func(b *testing.B) {
		store := eventstest.NewMemory()
		changes := flips(web)
		n := uint64(0)
		b.ReportAllocs()
		for b.Loop() {
			dec := reportedAt(events.InventorySubject(dev), 7, n+1, changes[n%2])
			dec.ID, dec.Time, dec.Actor = events.ID(events.NewID()), t0, "user:ann"
			a, err := store.Append(b.Context(), n, dec)
			if err != nil {
				b.Fatal(err)
			}
			n = a.Position
		}
	})
}

// BenchmarkDecideReport is the decision alone, for a packet of 64 changes.
func BenchmarkDecideReport(b *testing.B) {
	for _, vms := range []int{20, 2000} {
		b.Run(fmt.Sprintf("machines=%d", vms), func(b *testing.B) {
			c := fleet(1, vms)
			var all []events.Event
			for _, f := range c.Facts {
				all = append(all, f.Event)
			}
			s := with(approved, onInventory(all...)).states()
			var changes []events.Event
			for i := range 64 {
				changes = append(changes, power(machine(i%20), []events.PowerState{events.PowerOff, events.PowerOn}[i/20%2]))
			}
			r := report(1, changes...)
			b.ReportAllocs()
			for b.Loop() {
				out, err := Decide(r, s, t0)
				if err != nil || len(out.Entries) != 64 {
					b.Fatal(len(out.Entries), err)
				}
			}
		})
	}
}

// BenchmarkRequestTask is an operator's request, including the reads of the
// device and its inventory.
func BenchmarkRequestTask(b *testing.B) {
	store := eventstest.NewMemory()
	d, _ := dispatcher(b, store)
	managed(b, d, dev)
	b.ReportAllocs()
	for b.Loop() {
		id := events.TaskID(events.NewID())
		does(b, d, RequestTask{Device: dev, Task: id, Kind: events.TaskVMPowerOn, VM: web, Deadline: t0.Add(MaxDeadline)})
		does(b, d, EndTask{Device: dev, Task: id, Reason: "bench"})
	}
}

func machine(i int) events.VMID { return events.VMID(fmt.Sprintf("vm-%d", i)) }

// fleet reports virtual machines that are on.
func fleet(from uint64, n int) ReportInventory {
	var es []events.Event
	for i := range n {
		vm := vmOf(machine(i), events.PowerOn)
		vm.IPs = []string{"10.0.0.1", "fe80::1"}
		vm.Disks = []events.Disk{{Key: 2000, Label: "Hard disk 1", CapacityMiB: 16384}}
		vm.NICs = []events.NIC{{Key: 4000, Label: "Network adapter 1", Network: "VM Network", Connected: true}}
		es = append(es, events.VMObserved{VM: vm})
	}
	return report(from, es...)
}

func flips(id events.VMID) [2]events.Event {
	return [2]events.Event{power(id, events.PowerOn), power(id, events.PowerOff)}
}
