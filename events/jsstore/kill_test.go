package jsstore_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"pallas/events"
)

// killedDir is the variable that makes TestKilled the process to be killed.
const killedDir = "PALLAS_TEST_KILLED_DIR"

// TestKilled kills a process that appends, with SIGKILL, several times on the
// same folder. What was answered is there afterwards, in order, once.
func TestKilled(t *testing.T) {
	if dir := os.Getenv(killedDir); dir != "" {
		appendUntilKilled(t, dir)
		return
	}
	dir := t.TempDir()
	answered := uint64(0)
	for round := range 3 {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilled$")
		cmd.Env = append(os.Environ(), killedDir+"="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; n < 300 && lines.Scan(); n++ {
			if answered, err = strconv.ParseUint(lines.Text(), 10, 64); err != nil {
				t.Fatalf("the child says %q", lines.Text())
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() { // what it managed to say before it died
			if n, err := strconv.ParseUint(lines.Text(), 10, 64); err == nil {
				answered = max(answered, n)
			}
		}
		if err := cmd.Wait(); err == nil {
			t.Fatal("the child ended by itself")
		}

		srv, stop := serve(t, dir)
		s := open(t, connect(t, srv))
		n := uint64(0)
		for r, err := range s.Load(t.Context(), subject, 0) {
			if err != nil {
				t.Fatal(err)
			}
			if n++; r.Position != n || r.Entries[0].Event != events.Event(events.DeviceRenamed{Name: fmt.Sprint(n)}) {
				t.Fatalf("record %d is at %d: %+v", n, r.Position, r.Entries)
			}
		}
		if n < answered || n < uint64(300*(round+1)) {
			t.Fatalf("%d records are left of %d that were answered", n, answered)
		}
		stop()
	}
}

func appendUntilKilled(t *testing.T, dir string) {
	srv, _ := serve(t, dir)
	s := open(t, connect(t, srv))
	rev, err := s.Revision(t.Context(), subject)
	if err != nil {
		t.Fatal(err)
	}
	for range 1_000_000 {
		rev = mustAppend(t, s, rev, decide(fmt.Sprint(rev+1)))
		fmt.Println(rev)
	}
}
