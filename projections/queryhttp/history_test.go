package queryhttp

import (
	"strconv"
	"testing"
)

func FuzzParsePlace(f *testing.F) {
	for _, s := range []string{"", "0", "17", "17.1", "17.0", "17.", ".1", "-1", "+1", "17.-1", "9223372036854775807", "9223372036854775808", "1.1.1", "1.99999999999999999999", " 1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parsePlace(s)
		if err != nil {
			return
		}
		if p.n < 1 || p.position > 1<<63-1 {
			t.Fatalf("%q is %+v", s, p)
		}
		again := strconv.FormatUint(p.position, 10)
		if p.n != all {
			again += "." + strconv.Itoa(p.n)
		}
		if q, err := parsePlace(again); err != nil || q != p {
			t.Fatalf("%q is %+v, but %q is %+v, %v", s, p, again, q, err)
		}
	})
}

func TestPlaceBefore(t *testing.T) {
	for _, c := range []struct {
		place    string
		position uint64
		n        int
		want     bool
	}{
		{"17", 17, 1, false},
		{"17", 17, 999, false},
		{"17", 18, 1, true},
		{"17", 16, 1, false},
		{"17.2", 17, 2, false},
		{"17.2", 17, 3, true},
		{"17.2", 18, 1, true},
		{"0", 1, 1, true},
	} {
		p, err := parsePlace(c.place)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.before(c.position, c.n); got != c.want {
			t.Errorf("%s before %d.%d: %v, want %v", c.place, c.position, c.n, got, c.want)
		}
	}
}
