//go:build !race

package wire_test

import (
	"testing"

	"pallas/mqttgw/wire"
)

// Allocations that a packet may cost, with one or two to spare for another
// version of the library: a manager with 100,000 devices decodes and encodes
// tens of thousands of packets in a second. The race detector adds its own, so
// tests named TestAllocs are not in its builds; CI runs them apart.
const (
	// The packet, the reports, the patch, a pointer for each of its fields that
	// is set (5), and the texts of these.
	allocsDecodePatch = 14
	// The packet, the reports, the state of each of four tasks and its texts.
	allocsDecodeTasks = 14
	// The packet, the reports, the machine, its lists of disks, NICs and
	// addresses, and every text in them.
	allocsDecodeVM = 27
	// The packet, the Hello, the version's text, the hash, the open tasks.
	allocsDecodeHello = 7
	// The packet, and the payload at its right length.
	allocsEncode = 3
)

func TestAllocsDecodeUp(t *testing.T) {
	for golden, budget := range map[string]float64{
		"up-vm-patch": allocsDecodePatch, "up-tasks": allocsDecodeTasks, "up-vm": allocsDecodeVM, "up-hello": allocsDecodeHello,
	} {
		b := goldenBytes(t, golden)
		if n := testing.AllocsPerRun(100, func() {
			if _, err := wire.DecodeUp(b); err != nil {
				t.Fatal(err)
			}
		}); n > budget {
			t.Errorf("decode %s: %v allocations, budget %v", golden, n, budget)
		}
	}
}

func TestAllocsEncode(t *testing.T) {
	up, err := wire.DecodeUp(goldenBytes(t, "up-vm-patch"))
	if err != nil {
		t.Fatal(err)
	}
	receipt := wire.Down{Version: 1, Receipt: &wire.Receipt{Epoch: 5, Seq: 6}}
	for name, encode := range map[string]func() ([]byte, error){
		"a receipt":  func() ([]byte, error) { return wire.EncodeDown(receipt) },
		"a VM patch": func() ([]byte, error) { return wire.EncodeUp(up) },
	} {
		if n := testing.AllocsPerRun(100, func() {
			if _, err := encode(); err != nil {
				t.Fatal(err)
			}
		}); n > allocsEncode {
			t.Errorf("encode %s: %v allocations, budget %v", name, n, allocsEncode)
		}
	}
}
