package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A fleet of several processes is this program several times over, each with a
// part of the devices. A part writes a stream, waits at the end of its phases
// ready and drained for a line with that word on its standard input, and ends
// when that is closed.

// part is one process of a fleet.
type part struct {
	first, devices int
	cmd            *exec.Cmd
	stdin          io.WriteCloser
	state          state
	result         *result
}

func (p *part) String() string {
	return fmt.Sprintf("devices %d to %d", p.first, p.first+p.devices-1)
}

// heard is a line of a part, or its end.
type heard struct {
	*part
	line line
	err  error
}

// split runs the fleet in o.processes processes.
func (o *options) split(ctx context.Context, out *stream, w *watch, progress io.Writer) (result, error) {
	exe, err := os.Executable()
	if err != nil {
		return result{}, fmt.Errorf("start processes: %w", err)
	}
	lines := make(chan heard)
	var parts []*part
	var readers sync.WaitGroup
	// Without its standard input a part ends by itself; its last words go
	// nowhere.
	defer func() {
		for _, p := range parts {
			_ = p.stdin.Close()
		}
		go func() { readers.Wait(); close(lines) }()
		for range lines { // until all have ended
		}
	}()
	began := time.Now()
	for i := range o.processes {
		p := &part{first: o.first + i*o.devices/o.processes, state: state{Phase: connecting}}
		p.devices = o.first + (i+1)*o.devices/o.processes - p.first
		if err := p.start(exe, o, i, progress, func(h heard) { lines <- h }, &readers); err != nil {
			return result{}, fmt.Errorf("start processes: %w", err)
		}
		parts = append(parts, p)
	}

	var (
		all      state
		allMu    sync.Mutex
		told     = connecting // phases up to it need no word any more
		compared = make(chan result, 1)
		gaps     = outage{least: o.devices}
		shown    shown
		interval = ctx.Done()
		left     = len(parts)
	)
	tell := func(at phase) {
		told = at
		for _, p := range parts {
			_, _ = io.WriteString(p.stdin, at.String()+"\n") // one that has ended is heard of by its own line
		}
	}
	var books result
	for left > 0 {
		select {
		case <-interval:
			interval = nil
			for _, p := range parts {
				_ = p.cmd.Process.Signal(os.Interrupt) // as above
			}
		case books = <-compared:
			tell(drained)
		case h := <-lines:
			switch {
			case h.err != nil && h.result == nil:
				return result{}, fmt.Errorf("the process with %v ended early: %w", h.part, h.err)
			case h.err != nil:
				left--
			case h.line.Task != nil:
				out.line(h.line)
			case h.line.Result != nil:
				h.result = h.line.Result
			case h.line.State != nil:
				h.state = *h.line.State
				sum := parts[0].state
				for _, p := range parts[1:] {
					sum.add(p.state)
				}
				allMu.Lock()
				all = sum
				allMu.Unlock()
				out.state(sum)
				if sum.Phase == running {
					gaps.note(time.Now(), sum.Connected, sum.Started)
				}
				if !o.json {
					shown.show(progress, time.Since(began), sum, false)
				}
				if sum.Phase == ready && told < ready {
					tell(ready)
				}
				if sum.Phase == drained && told < draining {
					told = draining
					go func() {
						var r result
						if w != nil {
							m, problems := w.compare(context.WithoutCancel(ctx), func() state { allMu.Lock(); defer allMu.Unlock(); return all })
							r.Manager, r.Problems = &m, problems
						}
						compared <- r
					}()
				}
			}
		}
	}
	res := merge(parts)
	res.Devices, res.Seed = o.devices, o.seed
	res.Sessions.Least, res.Sessions.Gap = min(gaps.least, res.Connected), seconds(gaps.gap)
	res.Manager, res.Problems = books.Manager, append(res.Problems, books.Problems...)
	return res, out.failure()
}

// start runs the i-th process of the fleet.
func (p *part) start(exe string, o *options, i int, progress io.Writer, say func(heard), readers *sync.WaitGroup) error {
	share := float64(p.devices) / float64(o.devices)
	rate := func(all float64) string { return strconv.FormatFloat(all*share, 'g', -1, 64) }
	args := []string{
		"--part", "--first", strconv.Itoa(p.first), "--devices", strconv.Itoa(p.devices), "--vms", strconv.Itoa(o.vms),
		"--change-rate", rate(o.changeRate), "--churn", rate(o.churn), "--ramp", rate(o.ramp),
		"--duration", o.duration.String(), "--connect-timeout", o.connectTimeout.String(), "--drain", o.drain.String(),
		"--data", o.data, "--seed", strconv.FormatUint(o.seed, 10),
		"--narrow=" + strconv.FormatBool(o.narrow), "--json=" + strconv.FormatBool(o.json), "--verbose=" + strconv.FormatBool(o.verbose),
	}
	if o.heap != "" {
		args = append(args, "--heap-profile", fmt.Sprintf("%s.%d", o.heap, i))
	}
	p.cmd = exec.Command(exe, args...) //nolint:noctx // its standard input ends it
	p.cmd.Env = append(os.Environ(), joinEnv+"="+o.joinString)
	p.cmd.Stderr = progress
	// The terminal's signals come from here alone.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var err error
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return err
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	readers.Go(func() {
		dec := json.NewDecoder(stdout)
		for {
			var l line
			err := dec.Decode(&l)
			if err != nil {
				// A part says on its exit what its result says as well.
				if werr := p.cmd.Wait(); werr != nil {
					err = werr
				}
				say(heard{part: p, err: err})
				return
			}
			say(heard{part: p, line: l})
		}
	})
	return nil
}

// merge adds up the results of all parts.
func merge(parts []*part) (r result) {
	r.Processes, r.VMs, r.Warnings = len(parts), parts[0].result.VMs, map[string]int{}
	connected := true
	var bytes traffic
	for _, p := range parts {
		o := p.result
		connected = connected && o.ConnectSeconds > 0
		r.Started += o.Started
		r.Enrolled += o.Enrolled
		r.Connected += o.Connected
		r.Failed += o.Failed
		r.ConnectSeconds = max(r.ConnectSeconds, o.ConnectSeconds)
		r.RunSeconds = max(r.RunSeconds, o.RunSeconds)
		r.DrainSeconds = max(r.DrainSeconds, o.DrainSeconds)
		r.TotalSeconds = max(r.TotalSeconds, o.TotalSeconds)
		r.Changes += o.Changes
		r.Reports.add(o.Reports)
		r.Receipts.merge(o.Receipts)
		r.Sessions.Made += o.Sessions.Made
		r.Sessions.Cuts += o.Sessions.Cuts
		n := uint64(o.Started)
		bytes.InPerDevice += n * o.Bytes.InPerDevice
		bytes.OutPerDevice += n * o.Bytes.OutPerDevice
		bytes.RunIn += n * o.Bytes.RunIn
		bytes.RunOut += n * o.Bytes.RunOut
		r.Tasks += o.Tasks
		r.Idle.add(o.Idle, o.Started)
		r.End.add(o.End, o.Started)
		for _, text := range slices.Sorted(maps.Keys(o.Warnings)) {
			r.Warnings[text] += o.Warnings[text]
		}
		for _, text := range o.Problems {
			r.Problems = append(r.Problems, p.String()+": "+text)
		}
	}
	if !connected {
		r.ConnectSeconds = 0
	}
	n := uint64(max(r.Started, 1))
	r.Bytes = traffic{
		InPerDevice: bytes.InPerDevice / n, OutPerDevice: bytes.OutPerDevice / n,
		RunIn: bytes.RunIn / n, RunOut: bytes.RunOut / n,
	}
	r.Idle.mean(r.Started)
	r.End.mean(r.Started)
	r.Receipts.sum()
	return r
}

// orders are the words that a part waits for. over is called when there will be
// no more: the parent is gone.
func orders(stdin io.Reader, over func()) func(ctx context.Context, f *fleet, at phase) {
	words := make(chan string)
	go func() {
		for s := bufio.NewScanner(stdin); s.Scan(); {
			words <- strings.TrimSpace(s.Text())
		}
		over()
	}()
	return func(ctx context.Context, f *fleet, at phase) {
		f.until(ctx, at, func(time.Time) bool {
			select {
			case word := <-words:
				return word == at.String()
			default:
				return false
			}
		})
	}
}
