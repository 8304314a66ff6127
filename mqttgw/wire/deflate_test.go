package wire_test

import (
	"bytes"
	"compress/flate"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"pallas/mqttgw/wire"
)

// inventory is the complete inventory of a host with so many machines.
func inventory(machines int) wire.Up {
	reports := []wire.Report{{Host: ptr(golHost())}}
	var ids []string
	for i := range machines {
		vm := golVM()
		vm.ID, vm.Name = fmt.Sprintf("52e0b1f4-3c6c-8a1e-5a36-%012x", i*7919), fmt.Sprintf("pos-%d", i)
		vm.Hostname, ids = vm.Name+".shop.example", append(ids, vm.ID)
		reports = append(reports, wire.Report{VM: &vm})
	}
	return *up(append(reports, wire.Report{Inventory: &wire.Inventory{VMs: ids, Hash: golHash}})...)
}

// What is deflated is the same packet in at most three quarters of the bytes;
// what would not be is left as it is.
func TestDeflatedRoundTrip(t *testing.T) {
	deflated, plain := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		u := genUp().Draw(t, "up")
		for range rapid.IntRange(0, 3).Draw(t, "doublings") {
			for _, r := range u.Reports {
				r.Seq += uint64(len(u.Reports))
				u.Reports = append(u.Reports, r)
			}
		}
		for i := range u.Reports {
			u.Reports[i].Seq = uint64(1 + i)
		}
		want, err := wire.EncodeUp(u)
		if err != nil {
			t.Fatal(err)
		}
		got, err := wire.EncodeUpDeflated(u)
		if err != nil {
			t.Fatal(err)
		}
		decoded, err := wire.DecodeUp(got)
		if err != nil {
			t.Fatal(err)
		}
		if !wire.Deflated(got) {
			if plain++; !bytes.Equal(got, want) {
				t.Fatal("not deflated, and not as it was")
			}
			return
		}
		if deflated++; 4*len(got) > 3*len(want) {
			t.Fatalf("%d bytes were deflated to %d", len(want), len(got))
		}
		undeflated, err := wire.DecodeUp(want)
		if diff := cmp.Diff(undeflated, decoded, stable); err != nil || diff != "" {
			t.Fatalf("%v (-as it was +deflated):\n%s", err, diff)
		}
	})
	if deflated == 0 || plain == 0 {
		t.Errorf("%d packets deflated, %d not", deflated, plain)
	}
}

func TestDeflateWhereItPays(t *testing.T) {
	for name, tc := range map[string]struct {
		up   wire.Up
		pays bool
	}{
		"a change":                 {*up(wire.Report{VMPatch: &wire.VMPatch{ID: golVM().ID, Name: ptr("pos-2")}}), false},
		"hello":                    {wire.Up{Version: 1, Hello: &wire.Hello{Agent: "1", Epoch: 1, First: 1, Next: 1}}, false},
		"a machine":                {*up(wire.Report{VM: ptr(golVM())}), false},
		"what is random":           {*up(wire.Report{Inventory: &wire.Inventory{VMs: noise(60), Hash: golHash}}), false},
		"five machines":            {inventory(5), true},
		"two hundred machines":     {inventory(200), true},
		"smaller than it could be": {*up(wire.Report{Condition: &wire.Condition{Message: strings.Repeat("x", wire.MaxText)}}), false},
	} {
		b, err := wire.EncodeUpDeflated(tc.up)
		if err != nil {
			t.Fatal(err)
		}
		if wire.Deflated(b) != tc.pays {
			t.Errorf("%s: deflated %v, want %v", name, wire.Deflated(b), tc.pays)
		}
		if _, err := wire.DecodeUp(b); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Deflated or not, a packet beyond the limit is none.
	over := inventory(200)
	for range 2 {
		over.Reports = append(over.Reports, over.Reports...)
	}
	if _, err := wire.EncodeUpDeflated(over); !errors.Is(err, wire.ErrTooLarge) {
		t.Errorf("%v, want ErrTooLarge", err)
	}
}

// noise are texts that nothing makes smaller.
func noise(n int) []string {
	random := rand.New(rand.NewPCG(1, 2))
	out := make([]string, n)
	for i := range out {
		for range 12 {
			out[i] += string(rune(random.IntN(0x7000) + 0x800))
		}
	}
	return out
}

// pack deflates whatever it is given.
func pack(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := flate.NewWriter(&out, flate.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

type badPacket struct {
	payload []byte
	want    error
}

// badDeflated is what no encoder of ours makes.
func badDeflated(t testing.TB) map[string]badPacket {
	t.Helper()
	good, err := wire.EncodeUp(inventory(5))
	if err != nil {
		t.Fatal(err)
	}
	packed := pack(t, good)
	deflated := func(b []byte) []byte { return mustCBOR(t, b) }
	random := []byte(strings.Join(noise(4000), ""))
	return map[string]badPacket{
		"nothing":                   {deflated([]byte{}), wire.ErrMalformed},
		"no deflate data":           {deflated([]byte("hello there")), wire.ErrMalformed},
		"cut":                       {deflated(packed[:len(packed)-5]), wire.ErrMalformed},
		"bytes after the end":       {deflated(append(bytes.Clone(packed), 0)), wire.ErrMalformed},
		"bytes after the string":    {append(deflated(packed), 0), wire.ErrMalformed},
		"bytes after the packet":    {deflated(pack(t, append(bytes.Clone(good), 0))), wire.ErrMalformed},
		"two packets":               {deflated(append(bytes.Clone(packed), packed...)), wire.ErrMalformed},
		"in pieces":                 {append(append([]byte{0x5f}, deflated(packed)...), 0xff), wire.ErrMalformed},
		"deflated twice":            {deflated(pack(t, deflated(packed))), wire.ErrMalformed},
		"a packet in a string":      {deflated(pack(t, deflated(good))), wire.ErrMalformed},
		"an empty packet":           {deflated(pack(t, nil)), wire.ErrMalformed},
		"a later version":           {deflated(pack(t, mustCBOR(t, map[int]any{1: 2, 3: "an epoch of text"}))), wire.ErrVersion},
		"a bomb":                    {deflated(pack(t, make([]byte, 100<<20))), wire.ErrTooLarge},
		"a small bomb":              {deflated(pack(t, make([]byte, 16<<10))), wire.ErrTooLarge},
		"a bomb of packets":         {deflated(pack(t, bytes.Repeat(good, 1000))), wire.ErrTooLarge},
		"more than a packet holds":  {deflated(pack(t, random[:wire.MaxPacket+1])), wire.ErrTooLarge},
		"more than a packet is":     {deflated(pack(t, random)), wire.ErrTooLarge},
		"reports beyond their most": {deflated(pack(t, beyondReports(t))), wire.ErrTooLarge},
	}
}

func beyondReports(t testing.TB) []byte {
	t.Helper()
	reports := make([]wire.Report, wire.MaxReports+1)
	for i := range reports {
		reports[i].Condition = &wire.Condition{Condition: noise(1)[0] + fmt.Sprint(i*i)}
	}
	b, err := wire.EncodeUp(*up(reports...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBadDeflated(t *testing.T) {
	for name, bad := range badDeflated(t) {
		_, err := bounded(t, bad.payload, wire.DecodeUp)
		if !errors.Is(err, bad.want) || len(err.Error()) > 300 {
			t.Errorf("%s: %v, want %v", name, err, bad.want)
		}
	}
	// Nothing is deflated on the way down.
	down, err := wire.EncodeDown(wire.Down{Version: 1, Resync: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := wire.DecodeDown(mustCBOR(t, pack(t, down))); !errors.Is(err, wire.ErrMalformed) {
		t.Errorf("%v, want ErrMalformed", err)
	}
}

// BenchmarkDeflate says what deflating saves and takes.
func BenchmarkDeflate(b *testing.B) {
	for _, machines := range []int{5, 20, 200} {
		u := inventory(machines)
		plain, err := wire.EncodeUp(u)
		if err != nil {
			b.Fatal(err)
		}
		small, err := wire.EncodeUpDeflated(u)
		if err != nil {
			b.Fatal(err)
		}
		run := func(name string, f func() error) {
			b.Run(fmt.Sprintf("machines=%d/%s", machines, name), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if err := f(); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(len(small)), "B/deflated")
				b.ReportMetric(float64(len(small))/float64(len(plain)), "deflated-of-plain")
			})
		}
		run("encode", func() error { _, err := wire.EncodeUpDeflated(u); return err })
		run("decode", func() error { _, err := wire.DecodeUp(small); return err })
		run("decode-plain", func() error { _, err := wire.DecodeUp(plain); return err })
	}
}
