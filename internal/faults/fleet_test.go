package faults_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"pallas/agent"
	"pallas/agent/hypervisor/fake"
	"pallas/mqttgw/wire"
)

// fleetEnv, when set, makes the test binary a process of agents: its value is
// the path of a fleetFile.
const fleetEnv = "PALLAS_FAULTS_FLEET"

type fleetFile struct {
	Dir     string // of books, status and control
	Data    string // of the agents
	Join    string
	First   int // number of the first device
	Devices int
}

// control is what the test asks of a fleet, in the file of that name.
type control struct {
	Quiet bool `json:"quiet"` // no more changes
	Dark  bool `json:"dark"`  // names are not resolved
}

// status is what a fleet tells, in the file of that name.
type status struct {
	Pid     int      `json:"pid"`
	Devices []string `json:"devices"` // ids
	Made    []int    `json:"made"`    // changes
	Pending int      `json:"pending"` // reports without a receipt
	Online  int      `json:"online"`
}

const (
	changeEvery = 700 * time.Millisecond // of each host
	keep        = 60                     // machines on a host: older ones go
)

// entry is a line of a host's book. The book is the host: it outlives the
// process, as a real host outlives its agent.
type entry struct {
	VM   string `json:"vm,omitempty"`   // was made
	Gone string `json:"gone,omitempty"` // was taken away
	Task string `json:"task,omitempty"` // began, and switched On on
	On   string `json:"on,omitempty"`
}

// world is a host and its book.
type world struct {
	host  *fake.Host
	agent *agent.Agent
	n     int // number of the device

	mu   sync.Mutex
	book *os.File
	made int
}

func changeName(device, n int) string { return fmt.Sprintf("change-%02d-%05d", device, n) }

func bookPath(dir string, n int) string { return filepath.Join(dir, fmt.Sprintf("book-%02d", n)) }

func readBook(path string) (out []entry, err error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var e entry
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		out = append(out, e)
	}
	return out, lines.Err()
}

func off(id string) wire.VM {
	return wire.VM{ID: id, Name: id, Power: wire.PowerOff, Tools: wire.ToolsNotRunning}
}

func openWorld(f fleetFile, n int) (*world, error) {
	path := bookPath(f.Dir, n)
	book, err := readBook(path)
	if err != nil {
		return nil, err
	}
	w := &world{host: fake.Sample(fmt.Sprintf("host-%02d", n), 2), n: n}
	for _, e := range book {
		switch {
		case e.VM != "":
			w.host.PutVM(off(e.VM))
			w.made++
		case e.Gone != "":
			w.host.RemoveVM(e.Gone)
		case e.Task != "":
			w.host.SetPower(e.On, wire.PowerOn)
		}
	}
	if w.book, err = os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600); err != nil {
		return nil, err
	}
	w.host.OnTask(func(t wire.Task) { _ = w.write(entry{Task: t.ID.String(), On: t.VM}) })
	return w, nil
}

// write puts a line into the book, whole: one call of the system.
func (w *world) write(e entry) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	_, err = w.book.Write(append(b, '\n'))
	return err
}

// change makes a machine, and takes an old one away. The book comes first.
func (w *world) change() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	id := changeName(w.n, w.made)
	if err := w.write(entry{VM: id}); err != nil {
		return err
	}
	w.host.PutVM(off(id))
	w.made++
	if w.made <= keep {
		return nil
	}
	old := changeName(w.n, w.made-keep-1)
	if err := w.write(entry{Gone: old}); err != nil {
		return err
	}
	w.host.RemoveVM(old)
	return nil
}

// runFleet runs agents until SIGTERM, or the end of standard input: a test that
// dies leaves none behind.
func runFleet(path string) error {
	var f fleetFile
	if err := readJSON(path, &f); err != nil {
		return err
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	go func() { _, _ = io.Copy(io.Discard, os.Stdin); cancel() }()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))

	var mu sync.Mutex
	var now control
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		mu.Lock()
		dark := now.Dark
		mu.Unlock()
		if dark {
			return nil, &net.DNSError{Err: "server misbehaving", Name: addr, IsTemporary: true}
		}
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
	var worlds []*world
	var running sync.WaitGroup
	failed := make(chan error, f.Devices)
	for i := range f.Devices {
		w, err := openWorld(f, f.First+i)
		if err != nil {
			return err
		}
		w.agent, err = agent.New(agent.Config{
			Dir: filepath.Join(f.Data, fmt.Sprintf("agent-%02d", w.n)), Join: f.Join, Driver: w.host, Version: "test",
			Log: log.With("number", w.n), DialContext: dial,
			BackoffBase: 100 * time.Millisecond, BackoffCap: time.Second, Debounce: 20 * time.Millisecond, Settle: time.Second,
		})
		if err != nil {
			return err
		}
		worlds = append(worlds, w)
		running.Go(func() {
			if err := w.agent.Run(ctx); err != nil {
				failed <- fmt.Errorf("agent %d: %w", w.n, err)
			}
		})
	}
	defer running.Wait()
	defer cancel()

	tell, change := time.NewTicker(100*time.Millisecond), time.NewTicker(changeEvery/time.Duration(f.Devices))
	defer tell.Stop()
	defer change.Stop()
	for turn := 0; ; {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case <-change.C:
			w := worlds[turn%len(worlds)]
			if turn++; now.Quiet || w.agent.Device() == "" {
				continue
			}
			if err := w.change(); err != nil {
				return err
			}
		case <-tell.C:
			var c control
			if err := readJSON(filepath.Join(f.Dir, "control"), &c); err == nil {
				mu.Lock()
				now = c
				mu.Unlock()
			}
			if err := writeJSON(filepath.Join(f.Dir, "status"), tellStatus(worlds)); err != nil {
				return err
			}
		}
	}
}

func tellStatus(worlds []*world) status {
	s := status{Pid: os.Getpid()}
	for _, w := range worlds {
		st := w.agent.Stats()
		w.mu.Lock()
		s.Made = append(s.Made, w.made)
		w.mu.Unlock()
		s.Devices = append(s.Devices, w.agent.Device())
		s.Pending += st.Pending
		if st.Connected {
			s.Online++
		}
	}
	return s
}

func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// writeJSON replaces a file as a whole.
func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
