//go:build !race

package jsstore_test

import "testing"

// allocsAppend is what an append may allocate, the broker's half in the same
// process included: 39 are of a synchronous JetStream publish, the others of the
// decision, its encoding, headers, expected revision and deduplication. Some are
// to spare, because the broker's other work is counted too.
const allocsAppend = 80

func TestAllocsAppend(t *testing.T) {
	srv, _ := serve(t, t.TempDir())
	s := open(t, connect(t, srv))
	d, last := benchDecision("ev.inventory.x"), uint64(0)
	n := testing.AllocsPerRun(1000, func() {
		d.ID = benchDecision(d.Subject).ID // each append is of another decision
		a, err := s.Append(t.Context(), last, d)
		if err != nil {
			t.Fatal(err)
		}
		last = a.Position
	})
	if n > allocsAppend {
		t.Errorf("append: %v allocations, budget %v", n, allocsAppend)
	}
}
