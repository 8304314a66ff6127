//go:build !race

package commands

import (
	"testing"

	"pallas/events/eventstest"
)

// allocsDo is what a report of one change may allocate on its way through the
// dispatcher, the log in memory and its encoding included, with a few to spare:
// every report of every device takes this way.
const allocsDo = 46

func TestAllocsDo(t *testing.T) {
	d, _ := dispatcher(t, eventstest.NewMemory())
	managed(t, d, dev)
	seq, changes := uint64(3), flips(web) // the machine is off, an even one turns it on
	n := testing.AllocsPerRun(1000, func() {
		seq++
		if r := does(t, d, report(seq, changes[seq%2])); !r.Changed {
			t.Fatal("nothing was appended")
		}
	})
	if n > allocsDo {
		t.Errorf("a report: %v allocations, budget %v", n, allocsDo)
	}
}
