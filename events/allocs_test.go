//go:build !race

package events_test

import (
	"testing"

	"pallas/events"
)

// Allocations that the codec may cost, with one or two to spare: it runs for
// every report and every row of the read model.
const (
	allocsEncode = 17 // two events: their JSON, the envelope around it, the line
	allocsDecode = 45 // the envelope and its texts, each event and its texts
)

func TestAllocsCodec(t *testing.T) {
	d := exampleDecision()
	d.Entries[1].Event = events.VMChanged{VM: exampleVM, Patch: events.VMPatch{Power: ptr(events.PowerOff)}}
	b, err := events.Encode(d)
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() {
		if _, err := events.Encode(d); err != nil {
			t.Fatal(err)
		}
	}); n > allocsEncode {
		t.Errorf("encode: %v allocations, budget %v", n, allocsEncode)
	}
	if n := testing.AllocsPerRun(100, func() {
		if _, err := events.Decode(d.Subject, b); err != nil {
			t.Fatal(err)
		}
	}); n > allocsDecode {
		t.Errorf("decode: %v allocations, budget %v", n, allocsDecode)
	}
}
