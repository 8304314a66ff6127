package mqttgw

import (
	"net"
	"testing"

	"pallas/mqttgw/wire"
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

// TestPassagesGiveWay has a device come to the MQTT port when files are short:
// what came through the shared port holds three for each of its connections.
func TestPassagesGiveWay(t *testing.T) {
	d := newDoor(t)
	s := d.share()
	passed, dev := d.device(), d.device()
	through := passed.dial(connectOptions{client: string(passed.id), alpn: mqttOnly, dial: from(s, "127.0.0.9")})
	if through.err != nil || through.code != 0 {
		t.Fatalf("connect: %v, code %d", through.err, through.code)
	}
	if code := through.subscribe(wire.DownTopic(string(passed.id)), 0); code != 0 {
		t.Fatalf("subscribe: return code %#x", code)
	}
	before := d.broker.maxFiles.Swap(3)
	if c := dev.dial(connectOptions{client: string(dev.id)}); c.err == nil {
		t.Error("connected although there are no files")
	}
	through.waitClosed(patience)
	eventually(t, "the passage ends", func() bool { return s.Conns() == 0 })
	if c := passed.dial(connectOptions{client: string(passed.id), alpn: mqttOnly, dial: from(s, "127.0.0.9")}); c.err == nil {
		t.Error("passed although there are no files")
	}
	d.broker.maxFiles.Store(before)
	c, _ := dev.connect(wire.Hello{Epoch: 1, First: 1, Next: 1})
	c.ping()
	if n := d.refusals("files"); n != 2 {
		t.Errorf("%d refusals for files, want 2", n)
	}
}
