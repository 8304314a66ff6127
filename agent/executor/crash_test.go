package executor_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"pallas/agent/executor"
	"pallas/agent/hypervisor/fake"
	"pallas/agent/store"
	"pallas/mqttgw/wire"
)

const crashEnv = "PALLAS_EXECUTOR_CRASH_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashEnv); dir != "" {
		if err := crashChild(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

const crashTasks = 120

func crashTask(i int) wire.Task {
	kinds := []string{wire.TaskVMPowerOff, wire.TaskVMPowerOn, wire.TaskVMReset, wire.TaskVMSuspend}
	return wire.Task{
		ID: uuid.NewSHA1(uuid.Nil, fmt.Append(nil, i)), Kind: kinds[i%len(kinds)], VM: fmt.Sprint("vm-", i%5+1),
		Deadline: time.Now().Add(time.Hour),
	}
}

// crashChild is an agent that gets the same tasks at each start, as from a
// manager that knows of no outcome, and is killed meanwhile. The file "asked"
// is what reaches the host.
func crashChild(dir string) error {
	s, err := store.Open(filepath.Join(dir, "agent.db"), store.Options{})
	if err != nil {
		return err
	}
	asked, err := os.OpenFile(filepath.Join(dir, "asked"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	h := fake.Sample("one", 5)
	h.SetTaskTime(2 * time.Millisecond)
	h.OnTask(func(task wire.Task) {
		if _, err := fmt.Fprintln(asked, task.ID); err != nil {
			panic(err) // the parent could not tell what was asked
		}
	})
	e, err := executor.New(executor.Config{
		Driver: h, Store: s, Now: time.Now, Log: slog.New(slog.DiscardHandler), Settle: time.Millisecond,
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	for i := range crashTasks {
		if err := e.Submit([]wire.Task{crashTask(i)}); err != nil {
			return err
		}
	}
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for range tick.C {
		open, err := s.OpenTasks()
		if err != nil {
			return err
		}
		if len(open) == 0 {
			break
		}
	}
	cancel()
	return errors.Join(<-done, s.Close())
}

// TestKilledBetweenAcceptingAndFinishing demands that every task ends, with one
// outcome, and that none reaches the host twice.
func TestKilledBetweenAcceptingAndFinishing(t *testing.T) {
	dir := t.TempDir()
	kills := 0
	for {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), crashEnv+"="+dir)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		after := time.Duration(30+rand.IntN(150)) * time.Millisecond
		if kills >= 10 {
			after = time.Minute
		}
		kill := time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
		err := cmd.Wait()
		kill.Stop()
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() < 0 && kills < 11 {
			kills++
			continue
		}
		if err != nil {
			t.Fatalf("agent after %d kills: %v: %s", kills, err, stderr.String())
		}
		break
	}
	if kills == 0 {
		t.Fatal("the agent was never killed: nothing was tried")
	}

	f, err := os.Open(filepath.Join(dir, "asked"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	asked := map[string]int{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		asked[lines.Text()]++
	}
	s, err := store.Open(filepath.Join(dir, "agent.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	outcomes, accepted := map[uuid.UUID]int{}, map[uuid.UUID]int{}
	_, seq, next := s.Numbers()
	for seq < next {
		reports, err := s.Reports(seq, wire.MaxReports)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range reports {
			if r.Seq != seq {
				t.Fatalf("report %d, want %d", r.Seq, seq)
			}
			seq++
			switch r.Task.State {
			case wire.StateAccepted:
				accepted[r.Task.ID]++
				if outcomes[r.Task.ID] > 0 {
					t.Errorf("task %s accepted after its end", r.Task.ID)
				}
			case wire.StateProgress:
			default:
				outcomes[r.Task.ID]++
			}
		}
	}
	interrupted := 0
	for i := range crashTasks {
		id := crashTask(i).ID
		if asked[id.String()] > 1 || accepted[id] != 1 || outcomes[id] != 1 {
			t.Errorf("task %d: asked of the host %d times, accepted %d, ended %d; want at most 1, 1, 1",
				i, asked[id.String()], accepted[id], outcomes[id])
		}
		task, ok, err := s.Task(id)
		if err != nil || !ok || !task.Ended() {
			t.Errorf("task %d: journal %+v, %v", i, task, err)
		}
		if task.Code == wire.CodeInterrupted {
			interrupted++
		}
	}
	t.Logf("%d kills, %d tasks interrupted", kills, interrupted)
}
