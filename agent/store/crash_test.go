package store_test

import (
	"bufio"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"pallas/agent/store"
	"pallas/mqttgw/wire"
)

const crashEnv = "PALLAS_STORE_CRASH_CHILD"

func TestMain(m *testing.M) {
	if p := os.Getenv(crashEnv); p != "" {
		if err := crashChild(p); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// crashChild writes until it is killed. Each transaction adds reports and makes
// the baseline agree with the last of them; each line it prints is a promise.
func crashChild(path string) error {
	s, err := store.Open(path, store.Options{})
	if err != nil {
		return err
	}
	for {
		var last uint64
		if err := s.Update(func(tx *store.Tx) (err error) {
			for range 1 + rand.IntN(5) {
				vm := wire.VM{ID: "vm", CPUs: int(tx.Next()), Power: wire.PowerOn}
				if last, err = tx.Report(wire.Report{Time: day, VM: &vm}); err != nil {
					return err
				}
				if err := tx.PutVM(vm); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
		line := fmt.Sprintf("made %d\n", last)
		receipt := func() {}
		if rand.IntN(3) == 0 {
			epoch, first, next := s.Numbers()
			seq := first + rand.Uint64N(next-first)
			line += fmt.Sprintf("receipted %d\n", seq)
			receipt = func() { s.Receipt(epoch, seq) }
		}
		if _, err := os.Stdout.WriteString(line); err != nil {
			return err
		}
		receipt()
	}
}

// TestKilledAtRandom kills a writing process again and again.
func TestKilledAtRandom(t *testing.T) {
	p := path(t)
	var epoch, made, receipted uint64
	for round := range 12 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), crashEnv+"="+p)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		pipe, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		kill := time.AfterFunc(time.Duration(20+rand.IntN(150))*time.Millisecond, func() { _ = cmd.Process.Kill() })
		for lines := bufio.NewScanner(pipe); lines.Scan(); {
			// A line may be cut by the kill; then it promises nothing.
			var n uint64
			if c, _ := fmt.Sscanf(lines.Text(), "made %d", &n); c == 1 {
				made = max(made, n)
			} else if c, _ := fmt.Sscanf(lines.Text(), "receipted %d", &n); c == 1 {
				receipted = max(receipted, n)
			}
		}
		var exit *exec.ExitError
		if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() >= 0 {
			t.Fatalf("the writer was not killed but ended: %v: %s", err, stderr.String())
		}
		kill.Stop()

		s := open(t, p)
		e, first, next := s.Numbers()
		if round > 0 && e != epoch {
			t.Fatalf("round %d: epoch changed: the file was taken for damaged", round)
		}
		epoch = e
		if next <= made {
			t.Errorf("round %d: the next report is %d, and %d was promised", round, next, made)
		}
		if first > receipted+1 {
			t.Errorf("round %d: everything before %d is forgotten, receipted was %d", round, first, receipted)
		}
		want := first
		for want < next {
			reports, err := s.Reports(want, wire.MaxReports)
			if err != nil || len(reports) == 0 {
				t.Fatalf("round %d: no report %d: %v", round, want, err)
			}
			for _, r := range reports {
				if r.Seq != want || r.VM == nil || r.VM.CPUs != int(want) {
					t.Fatalf("round %d: report %d is %+v", round, want, r)
				}
				want++
			}
		}
		if base, err := s.Baseline(); err != nil || next > 1 && (len(base.VMs) != 1 || base.VMs[0].CPUs != int(next-1)) {
			t.Errorf("round %d: baseline %+v, %v, want that of report %d", round, base, err, next-1)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if epoch == 0 {
		t.Fatal("nothing was written")
	}
}
