//go:build !race

package projections

import (
	"path/filepath"
	"testing"
)

// allocsEvent is what an event in the read model may allocate: reading its
// record, its statements with their arguments, and SQLite's driver for each of
// its rows. Some are to spare for a column more.
const allocsEvent = 75

func TestAllocsRebuild(t *testing.T) {
	store, n := benchLog(t, 300)
	path := filepath.Join(t.TempDir(), "read.db")
	all := testing.AllocsPerRun(1, func() {
		if _, err := Rebuild(t.Context(), path, store); err != nil {
			t.Fatal(err)
		}
	})
	if got := all / float64(n); got > allocsEvent {
		t.Errorf("%.1f allocations for an event, budget %v", got, allocsEvent)
	}
}
