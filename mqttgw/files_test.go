package mqttgw

import (
	"net"
	"testing"
)

func TestKeptFiles(t *testing.T) {
	for limit, want := range map[uint64]uint64{256: 128, 1024: 128, 20_000: 1250, 1 << 20: 4096} {
		if got := keptFiles(limit); got != want {
			t.Errorf("of %d files %d are kept, want %d", limit, got, want)
		}
	}
}

// TestCrowded is about the number of a connection that says how many files are
// open.
func TestCrowded(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if !crowded(c, 3) {
		t.Error("a file beyond the number is not refused")
	}
	if crowded(c, 1<<20) {
		t.Error("a file below the number is refused")
	}
}
