package wire_test

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"runtime/metrics"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"pallas/mqttgw/wire"
)

func hexOf(b []byte) string { return hex.EncodeToString(b) }

// decodeErrors are all that a decoder may answer.
func decodeError(err error) bool {
	return errors.Is(err, wire.ErrMalformed) || errors.Is(err, wire.ErrTooLarge) || errors.Is(err, wire.ErrVersion)
}

// bounded demands that decoding takes memory by what arrived, not by what it
// claims to hold.
func bounded[T any](t *testing.T, b []byte, decode func([]byte) (T, error)) (T, error) {
	t.Helper()
	allocated := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	inflation := 1
	if wire.Deflated(b) {
		inflation = wire.MaxInflation
	}
	metrics.Read(allocated)
	before := allocated[0].Value.Uint64()
	v, err := decode(b)
	metrics.Read(allocated)
	// The runtime counts in spans, and a report of one byte is a struct of 200.
	if n, most := allocated[0].Value.Uint64()-before, uint64(1<<20+400*inflation*len(b)); n > most {
		t.Fatalf("%d bytes took %d of memory, want at most %d", len(b), n, most)
	}
	return v, err
}

// Whatever arrives, decoding ends in a packet that can be encoded again and in
// JSON, or in one of the three errors.
func FuzzDecodeUp(f *testing.F) {
	for _, g := range goldens() {
		f.Add(g.payload(f))
	}
	for _, p := range futures(f) {
		f.Add(p.payload)
	}
	for _, b := range garbage(f) {
		f.Add(b[:min(len(b), 1<<10)]) // long inputs only slow the fuzzer down
	}
	for _, b := range badDeflated(f) {
		f.Add(b.payload)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		describe(t, b, wire.UpDirection)
		u, err := bounded(t, b, wire.DecodeUp)
		if err != nil {
			if !decodeError(err) {
				t.Fatal(err)
			}
			return
		}
		if _, err := json.Marshal(u); err != nil {
			t.Fatalf("cannot be written as JSON: %v", err)
		}
		again, err := wire.EncodeUp(u)
		if err != nil {
			if errors.Is(err, wire.ErrTooLarge) {
				return // shorter forms exist than the deterministic one: a null for an empty text
			}
			t.Fatal(err)
		}
		v, err := wire.DecodeUp(again)
		if err != nil {
			t.Fatalf("what was decoded is refused once encoded: %v", err)
		}
		third, err := wire.EncodeUp(v)
		if err != nil {
			t.Fatal(err)
		}
		if w, err := wire.DecodeUp(third); err != nil || !cmp.Equal(v, w, stable) {
			t.Fatalf("drifts: %v\n%s", err, cmp.Diff(v, w, stable))
		}
		for _, r := range u.Reports {
			if r.VMPatch != nil {
				r.VMPatch.Apply(wire.VM{})
			}
			r.Known()
		}
	})
}

// The same for the other direction.
func FuzzDecodeDown(f *testing.F) {
	for _, g := range goldens() {
		f.Add(g.payload(f))
	}
	for _, p := range futures(f) {
		f.Add(p.payload)
	}
	for _, b := range garbage(f) {
		f.Add(b[:min(len(b), 1<<10)]) // long inputs only slow the fuzzer down
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		describe(t, b, wire.DownDirection)
		d, err := bounded(t, b, wire.DecodeDown)
		if err != nil {
			if !decodeError(err) {
				t.Fatal(err)
			}
			return
		}
		if _, err := json.Marshal(d); err != nil {
			t.Fatalf("cannot be written as JSON: %v", err)
		}
		again, err := wire.EncodeDown(d)
		if err != nil {
			if errors.Is(err, wire.ErrTooLarge) {
				return
			}
			t.Fatal(err)
		}
		if _, err := wire.DecodeDown(again); err != nil {
			t.Fatalf("what was decoded is refused once encoded: %v", err)
		}
	})
}

func describe(t *testing.T, b []byte, d wire.Direction) {
	t.Helper()
	out, err := wire.Describe(b, d)
	if err != nil {
		if !errors.Is(err, wire.ErrMalformed) {
			t.Fatal(err)
		}
		return
	}
	if _, err := json.Marshal(out); err != nil {
		t.Fatalf("description: %v", err)
	}
}

func FuzzParseJoin(f *testing.F) {
	f.Add(goodJoin().String())
	f.Add(wire.JoinPrefix)
	f.Add("pallas-join-1.oAAA")
	f.Fuzz(func(t *testing.T, s string) {
		j, err := wire.ParseJoin(s)
		if err != nil {
			return
		}
		again, err := wire.ParseJoin(j.String())
		if err != nil || !cmp.Equal(j, again) {
			t.Fatalf("%v\n%s", err, cmp.Diff(j, again))
		}
		if _, err := wire.DescribeJoin(s); err != nil {
			t.Fatal(err)
		}
	})
}

// A subject has a device only if it is the subject of one of its topics.
func FuzzDeviceOfSubject(f *testing.F) {
	const id = "6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f"
	for _, s := range []string{"", wire.Subject(wire.UpTopic(id)), wire.Subject(wire.DownTopic(id)), wire.UpTopic(id), "d..u", "d.a.b.c", "d.*.u", "$SYS.x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := wire.DeviceOfSubject(s)
		if strings.ContainsAny(got, ".") || (got != "" && !strings.HasPrefix(s, "d."+got+".")) {
			t.Fatalf("%q is of device %q", s, got)
		}
	})
}
