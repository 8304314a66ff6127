package projections

import (
	"errors"
	"testing"
)

// FuzzCursor checks that a cursor is refused with ErrBadCursor, or is the one
// place in its list that its canonical form is too.
func FuzzCursor(f *testing.F) {
	f.Add(encodeCursor("vm-name", "web", "6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f", "vm-1"))
	f.Add(encodeCursor("task", 17, "019e1b7a-5a40-7c35-9d3c-2f0a1b2c3d4e"))
	f.Add(encodeCursor("task", "17", nil))
	f.Add("")
	f.Add("bnVsbA")
	f.Fuzz(func(t *testing.T, s string) {
		var name, device, id string
		if err := decodeCursor(s, "vm-name", &name, &device, &id); err == nil {
			var again [3]string
			if err := decodeCursor(encodeCursor("vm-name", name, device, id), "vm-name", &again[0], &again[1], &again[2]); err != nil || again != [3]string{name, device, id} {
				t.Fatalf("%q is %q, %q, %q, and again %q, %v", s, name, device, id, again, err)
			}
		} else if !errors.Is(err, ErrBadCursor) {
			t.Fatalf("%q: %v", s, err)
		}
		var position, position2 int64
		var id2 string
		if err := decodeCursor(s, "task", &position, &id); err == nil {
			if err := decodeCursor(encodeCursor("task", position, id), "task", &position2, &id2); err != nil || position2 != position || id2 != id {
				t.Fatalf("%q is %d, %q, and again %d, %q, %v", s, position, id, position2, id2, err)
			}
		} else if !errors.Is(err, ErrBadCursor) {
			t.Fatalf("%q: %v", s, err)
		}
	})
}
