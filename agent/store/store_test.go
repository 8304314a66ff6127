package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"pgregory.net/rapid"

	"pallas/agent/store"
	"pallas/mqttgw/wire"
)

var day = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func open(t testing.TB, path string) *store.Store {
	t.Helper()
	s, err := store.Open(path, store.Options{NoSync: true})
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return s
}

func path(t testing.TB) string { return filepath.Join(t.TempDir(), "agent.db") }

func add(t testing.TB, s *store.Store, reports ...wire.Report) {
	t.Helper()
	if err := s.Update(func(tx *store.Tx) error {
		for _, r := range reports {
			if _, err := tx.Report(r); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatalf("update: %v", err)
	}
}

func gone(id string) wire.Report { return wire.Report{Time: day, VMGone: &wire.VMGone{ID: id}} }

func ids(t testing.TB, s *store.Store, from uint64) (out []string) {
	t.Helper()
	reports, err := s.Reports(from, wire.MaxReports)
	if err != nil {
		t.Fatalf("reports: %v", err)
	}
	for _, r := range reports {
		if r.VMGone != nil {
			out = append(out, fmt.Sprintf("%d %s", r.Seq, r.VMGone.ID))
		} else {
			out = append(out, fmt.Sprintf("%d", r.Seq))
		}
	}
	return out
}

func TestReportsAreNumberedAndKeptUntilReceipted(t *testing.T) {
	p := path(t)
	s := open(t, p)
	epoch, first, next := s.Numbers()
	if epoch == 0 || epoch >= 1<<53 || first != 1 || next != 1 {
		t.Fatalf("a new store starts at %d/%d/%d, want a random epoch below 2^53, 1 and 1", epoch, first, next)
	}
	add(t, s, gone("a"), gone("b"))
	add(t, s, gone("c"))
	if diff := cmp.Diff([]string{"1 a", "2 b", "3 c"}, ids(t, s, 1)); diff != "" {
		t.Error(diff)
	}
	for _, tt := range []struct {
		epoch, seq uint64
		news       bool
	}{{epoch + 1, 2, false}, {epoch, 0, false}, {epoch, 4, false}, {epoch, 2, true}, {epoch, 2, false}, {epoch, 1, false}} {
		if got := s.Receipt(tt.epoch, tt.seq); got != tt.news {
			t.Errorf("receipt of %d in epoch +%d: news %v, want %v", tt.seq, tt.epoch-epoch, got, tt.news)
		}
	}
	if s.Len() != 1 {
		t.Errorf("%d reports wait, want 1", s.Len())
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, p)
	defer s.Close()
	if e, f, n := s.Numbers(); e != epoch || f != 3 || n != 4 {
		t.Errorf("after reopening %d/%d/%d, want %d/3/4", e, f, n, epoch)
	}
	if diff := cmp.Diff([]string{"3 c"}, ids(t, s, 0)); diff != "" {
		t.Error(diff)
	}
}

func TestFailedTransactionLeavesNothing(t *testing.T) {
	s := open(t, path(t))
	defer s.Close()
	add(t, s, gone("a"))
	want := errors.New("no")
	err := s.Update(func(tx *store.Tx) error {
		if _, err := tx.Report(gone("b")); err != nil {
			return err
		}
		if err := tx.SetHost(wire.Host{Name: "h"}); err != nil {
			return err
		}
		return want
	})
	if !errors.Is(err, want) {
		t.Errorf("error %v, want the one of the function", err)
	}
	add(t, s, gone("c"))
	if diff := cmp.Diff([]string{"1 a", "2 c"}, ids(t, s, 1)); diff != "" {
		t.Error(diff)
	}
	if base, err := s.Baseline(); err != nil || base.Host.Name != "" {
		t.Errorf("baseline %+v, %v, want none", base, err)
	}
}

func TestReportBeyondLimitsIsRefusedAlone(t *testing.T) {
	s := open(t, path(t))
	defer s.Close()
	for _, r := range []wire.Report{
		{Time: day, VMGone: &wire.VMGone{ID: strings.Repeat("x", wire.MaxText+1)}},
		{Time: day, VMGone: &wire.VMGone{ID: "\xff"}},
		{Time: day, Inventory: &wire.Inventory{Hash: []byte("short")}},
	} {
		if err := s.Update(func(tx *store.Tx) error {
			if _, err := tx.Report(r); !errors.Is(err, store.ErrBeyondLimits) {
				t.Errorf("report %+v: %v, want ErrBeyondLimits", r, err)
			}
			_, err := tx.Report(gone("fine"))
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]string{"1 fine", "2 fine", "3 fine"}, ids(t, s, 1)); diff != "" {
		t.Error(diff)
	}
}

func TestReportsFitOnePacket(t *testing.T) {
	s := open(t, path(t))
	defer s.Close()
	big := wire.VM{ID: "vm", Name: strings.Repeat("n", wire.MaxText), GuestName: strings.Repeat("g", wire.MaxText), Power: wire.PowerOn}
	var reports []wire.Report
	for range 300 {
		reports = append(reports, wire.Report{Time: day, VM: &big})
	}
	add(t, s, reports...)
	packets := 0
	for seq := uint64(1); seq <= 300; packets++ {
		got, err := s.Reports(seq, 1000)
		if err != nil || len(got) == 0 || got[0].Seq != seq {
			t.Fatalf("from %d: %d reports, %v", seq, len(got), err)
		}
		epoch, _, _ := s.Numbers()
		if _, err := wire.EncodeUp(wire.Up{Version: wire.Version, Epoch: epoch, Reports: got}); err != nil {
			t.Fatalf("from %d: %v", seq, err)
		}
		seq += uint64(len(got))
	}
	if packets > 30 {
		t.Errorf("%d packets for 300 reports of 8 kB, want them well filled", packets)
	}
}

func TestRefuseKeepsTheNumber(t *testing.T) {
	s := open(t, path(t))
	defer s.Close()
	add(t, s, gone("a"), gone("b"), gone("c"))
	was, ok, err := s.Refuse(2)
	if err != nil || !ok || was.VMGone == nil || was.VMGone.ID != "b" {
		t.Fatalf("refuse 2: %+v, %v, %v", was, ok, err)
	}
	for _, seq := range []uint64{2, 0, 9} {
		if _, ok, err := s.Refuse(seq); ok || err != nil {
			t.Errorf("refuse %d: %v, %v, want nothing to refuse", seq, ok, err)
		}
	}
	if diff := cmp.Diff([]string{"1 a", "2", "3 c"}, ids(t, s, 1)); diff != "" {
		t.Error(diff)
	}
}

func TestNewEpochKeepsTasksAndDropsInventory(t *testing.T) {
	p := path(t)
	s := open(t, p)
	receipted, waiting := store.Task{ID: uuid.New(), State: wire.StateSucceeded, Added: day, End: day}, store.Task{ID: uuid.New(), State: wire.StateFailed, Added: day, End: day}
	if err := s.Update(func(tx *store.Tx) error {
		return errors.Join(tx.ReportTask(receipted, day), tx.SetHost(wire.Host{Name: "h"}), tx.PutVM(wire.VM{ID: "v"}), tx.SetComplete())
	}); err != nil {
		t.Fatal(err)
	}
	add(t, s, gone("a"), wire.Report{Time: day, Condition: &wire.Condition{Condition: wire.ConditionDenied}})
	if err := s.Update(func(tx *store.Tx) error { return tx.ReportTask(waiting, day) }); err != nil {
		t.Fatal(err)
	}
	before, _, _ := s.Numbers()
	s.Receipt(before, 1)
	if err := s.NewEpoch(); err != nil {
		t.Fatal(err)
	}
	epoch, first, next := s.Numbers()
	if epoch == before || first != 1 || next != 3 {
		t.Errorf("numbers %d/%d/%d, want a new epoch, 1 and 3", epoch, first, next)
	}
	got, err := s.Reports(1, 10)
	if err != nil || len(got) != 2 || got[0].Condition == nil || got[1].Task == nil || got[1].Task.ID != waiting.ID {
		t.Errorf("reports %+v, %v, want the condition and the waiting task", got, err)
	}
	for _, tt := range []struct {
		task store.Task
		seq  uint64
	}{{receipted, 0}, {waiting, 2}} {
		if task, ok, err := s.Task(tt.task.ID); !ok || err != nil || task.Seq != tt.seq {
			t.Errorf("journal has %+v, %v, %v, want sequence %d", task, ok, err, tt.seq)
		}
	}
	if base, err := s.Baseline(); err != nil || base.Complete || base.Hash() != nil || len(base.VMs) != 0 {
		t.Errorf("baseline %+v, %v, want none", base, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, p).Close()
	if left, _ := filepath.Glob(p + ".damaged*"); len(left) != 0 {
		t.Errorf("a new epoch looks like damage: %v", left)
	}
}

func TestSummaryIsAHello(t *testing.T) {
	s := open(t, path(t))
	defer s.Close()
	sum, err := s.Summary()
	if err != nil || sum.Inventory != nil || sum.Open != nil {
		t.Fatalf("summary of a new store %+v, %v", sum, err)
	}
	host, vm := wire.Host{Name: "h", License: wire.License{Writable: true}}, wire.VM{ID: "v", Name: "n", Power: wire.PowerOn}
	task := store.Task{ID: uuid.New(), State: wire.StateAccepted, Added: day}
	if err := s.Update(func(tx *store.Tx) error {
		return errors.Join(tx.SetHost(host), tx.PutVM(vm), tx.SetComplete(), tx.ReportTask(task, day))
	}); err != nil {
		t.Fatal(err)
	}
	if sum, err = s.Summary(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(sum.Inventory, wire.HashInventory(host, []wire.VM{vm})) || len(sum.Open) != 1 || sum.Open[0] != task.ID || sum.First != 1 || sum.Next != 2 {
		t.Errorf("summary %+v", sum)
	}
}

func TestPruneKeepsWhatCouldComeAgain(t *testing.T) {
	s := open(t, path(t))
	defer s.Close()
	old := day.Add(-store.JournalAge - time.Hour)
	tasks := map[string]store.Task{
		"old":                   {State: wire.StateSucceeded, Deadline: old, End: old},
		"recent":                {State: wire.StateSucceeded, Deadline: old, End: day},
		"open":                  {State: wire.StateAccepted, Deadline: old},
		"deadline not over yet": {State: wire.StateSucceeded, Deadline: day.Add(time.Hour), End: old},
		"not receipted":         {State: wire.StateSucceeded, Deadline: old, End: old, Seq: 5},
	}
	if err := s.Update(func(tx *store.Tx) error {
		for name, task := range tasks {
			task.ID = uuid.NewSHA1(uuid.Nil, []byte(name))
			if err := tx.PutTask(task); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	check := func(gone ...string) {
		t.Helper()
		for name := range tasks {
			_, ok, err := s.Task(uuid.NewSHA1(uuid.Nil, []byte(name)))
			if err != nil {
				t.Fatal(err)
			}
			want := true
			for _, g := range gone {
				want = want && g != name
			}
			if ok != want {
				t.Errorf("task %q kept %v, want %v", name, ok, want)
			}
		}
	}
	if err := s.Prune(day); err != nil {
		t.Fatal(err)
	}
	check("old")
	if err := s.Update(func(tx *store.Tx) error {
		for range store.JournalCount {
			if err := tx.PutTask(store.Task{ID: uuid.New(), State: wire.StateFailed, Deadline: old, End: day.Add(time.Second)}); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.Prune(day); err != nil {
		t.Fatal(err)
	}
	check("old", "recent")
}

func TestOpenTasksComeInOrder(t *testing.T) {
	s := open(t, path(t))
	defer s.Close()
	var want []uuid.UUID
	for range 20 {
		id := uuid.New()
		want = append(want, id)
		if err := s.Update(func(tx *store.Tx) error {
			return tx.ReportTask(store.Task{ID: id, State: wire.StateAccepted, Added: day}, day)
		}); err != nil {
			t.Fatal(err)
		}
	}
	tasks, err := s.OpenTasks()
	if err != nil {
		t.Fatal(err)
	}
	var got []uuid.UUID
	for _, task := range tasks {
		got = append(got, task.ID)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestClock(t *testing.T) {
	p := path(t)
	s := open(t, p)
	if !s.Clock().IsZero() {
		t.Errorf("a new store knows the time %v", s.Clock())
	}
	for _, at := range []time.Time{day, day.Add(-time.Hour)} {
		if err := s.SetClock(at); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, p)
	defer s.Close()
	if !s.Clock().Equal(day) {
		t.Errorf("clock %v after reopening, want the newest, %v", s.Clock(), day)
	}
}

func TestSecondProcessIsToldSo(t *testing.T) {
	p := path(t)
	s := open(t, p)
	defer s.Close()
	if _, err := store.Open(p, store.Options{}); !errors.Is(err, store.ErrBusy) {
		t.Errorf("second open: %v, want ErrBusy", err)
	}
}

func TestUnusableFolderIsNoDamage(t *testing.T) {
	if _, err := store.Open(filepath.Join(t.TempDir(), "no", "such", "agent.db"), store.Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v, want that the folder does not exist", err)
	}
}

// TestDamage damages a file in many ways. Opening must give a usable store
// each time: the old one when the damage hit nothing that counts, else a new
// one with the old moved aside.
func TestDamage(t *testing.T) {
	p := path(t)
	s := open(t, p)
	for i := range 200 {
		add(t, s, gone(fmt.Sprint(i)))
		if err := s.Update(func(tx *store.Tx) error {
			return errors.Join(tx.PutVM(wire.VM{ID: fmt.Sprint(i)}), tx.PutTask(store.Task{ID: uuid.New(), State: wire.StateFailed}))
		}); err != nil {
			t.Fatal(err)
		}
	}
	epoch, _, next := s.Numbers()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(rt *rapid.T) {
		bad := bytes.Clone(good)
		switch rapid.IntRange(0, 3).Draw(rt, "damage") {
		case 0:
			bad = bad[:rapid.IntRange(1, len(bad)-1).Draw(rt, "cut")]
		case 1:
			at, n := rapid.IntRange(0, len(bad)-1).Draw(rt, "at"), rapid.IntRange(1, 8192).Draw(rt, "n")
			clear(bad[at:min(at+n, len(bad))])
		case 2:
			for range rapid.IntRange(1, 20).Draw(rt, "bytes") {
				bad[rapid.IntRange(0, len(bad)-1).Draw(rt, "at")] ^= byte(rapid.IntRange(1, 255).Draw(rt, "flip"))
			}
		case 3:
			seed := rapid.Uint64().Draw(rt, "seed")
			r := rand.New(rand.NewPCG(seed, seed))
			for i := range bad {
				bad[i] = byte(r.Uint32())
			}
		}
		p := filepath.Join(t.TempDir(), "agent.db")
		if err := os.WriteFile(p, bad, 0o600); err != nil {
			rt.Fatal(err)
		}
		var log bytes.Buffer
		s, err := store.Open(p, store.Options{NoSync: true, Log: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			rt.Fatalf("open: %v", err)
		}
		defer s.Close()
		aside, _ := filepath.Glob(p + ".damaged*")
		e, f, n := s.Numbers()
		switch {
		case len(aside) == 0 && (e != epoch || n > next):
			rt.Errorf("kept a file with numbers %d/%d/%d, made with %d/1/%d", e, f, n, epoch, next)
		case len(aside) == 1 && (e == epoch || f != 1 || n != 1 || !strings.Contains(log.String(), "damaged")):
			rt.Errorf("new file with numbers %d/%d/%d, log %q", e, f, n, log.String())
		}
		add(t, s, gone("works"))
		if _, err := s.Summary(); err != nil {
			rt.Error(err)
		}
	})
}
