package jsstore_test

import (
	"bytes"
	"testing"

	"pallas/events/jsstore"
)

func TestSnapshots(t *testing.T) {
	srv, _ := serve(t, t.TempDir())
	nc := connect(t, srv)
	s, err := jsstore.OpenSnapshots(t.Context(), nc, 1)
	if err != nil {
		t.Fatal(err)
	}
	const subject, other = "ev.inventory.6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f", "ev.tasks.6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f"
	if data, revision, err := s.Load(t.Context(), subject); data != nil || revision != 0 || err != nil {
		t.Errorf("nothing saved: %q, %d, %v", data, revision, err)
	}
	for revision := uint64(1 << 40); revision < 1<<40+3; revision++ {
		if err := s.Save(t.Context(), subject, []byte{byte(revision), 'x'}, revision); err != nil {
			t.Fatal(err)
		}
	}
	// Opening again finds what was saved, under its own subject only.
	if s, err = jsstore.OpenSnapshots(t.Context(), nc, 1); err != nil {
		t.Fatal(err)
	}
	if data, revision, err := s.Load(t.Context(), subject); !bytes.Equal(data, []byte{2, 'x'}) || revision != 1<<40+2 || err != nil {
		t.Errorf("got %q, %d, %v", data, revision, err)
	}
	if data, _, err := s.Load(t.Context(), other); data != nil || err != nil {
		t.Errorf("another aggregate: %q, %v", data, err)
	}
	if err := s.Save(t.Context(), subject, make([]byte, 2<<20), 1<<41); err == nil {
		t.Error("a snapshot beyond the server's largest message was saved")
	}
}
