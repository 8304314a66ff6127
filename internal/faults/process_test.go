package faults_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// restartAfter is how long a process that ended stays down.
const restartAfter = 200 * time.Millisecond

// process is kept running, as a service manager does: when it ends, for
// whatever reason, it is started again.
type process struct {
	t    *testing.T
	name string
	argv []string
	log  string // path of standard error

	mu     sync.Mutex
	env    []string
	cmd    *exec.Cmd
	stop   bool   // for good
	ours   bool   // the next end is the test's doing
	before func() // of the next start, while it is down
	kicked chan struct{}
	ended  []string // ends that nobody asked for, and how
	starts int
	done   chan struct{}
}

// keepRunning starts argv and keeps it running until quit.
func keepRunning(t *testing.T, name, log string, env []string, argv ...string) *process {
	t.Helper()
	p := &process{t: t, name: name, log: log, argv: argv, env: env, done: make(chan struct{})}
	go p.loop()
	t.Cleanup(func() {
		p.mu.Lock()
		p.stop = true
		if p.cmd != nil {
			_ = p.cmd.Process.Kill()
		}
		p.mu.Unlock()
		<-p.done
	})
	return p
}

func (p *process) loop() {
	defer close(p.done)
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		p.t.Errorf("%s: %v", p.name, err)
		return
	}
	defer out.Close()
	for {
		p.mu.Lock()
		if p.before != nil {
			p.before()
			p.before = nil
		}
		if p.stop {
			p.mu.Unlock()
			return
		}
		cmd := exec.Command(p.argv[0], p.argv[1:]...)
		cmd.Env = append(os.Environ(), p.env...)
		cmd.Stdout, cmd.Stderr = out, out
		_, err := cmd.StdinPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			p.t.Errorf("start %s: %v", p.name, err)
			p.mu.Unlock()
			return
		}
		p.cmd, p.starts = cmd, p.starts+1
		if p.kicked != nil {
			close(p.kicked)
			p.kicked = nil
		}
		p.mu.Unlock()

		err = cmd.Wait()
		p.mu.Lock()
		p.cmd = nil
		if !p.ours && !p.stop {
			p.ended = append(p.ended, fmt.Sprint(err))
		}
		ours := p.ours
		p.ours = false
		p.mu.Unlock()
		if !ours {
			<-time.After(restartAfter)
		}
	}
}

// kill ends the process with SIGKILL, calls before while it is down, and
// returns when it has been started again.
func (p *process) kill(before func()) {
	p.mu.Lock()
	p.before, p.kicked = before, make(chan struct{})
	kicked := p.kicked
	if p.cmd != nil {
		p.ours = true
		_ = p.cmd.Process.Kill()
	}
	p.mu.Unlock()
	select {
	case <-kicked:
	case <-p.done:
	}
}

// signal sends a signal, if it runs.
func (p *process) signal(s syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		_ = p.cmd.Process.Signal(s)
	}
}

// quit ends it as an operator does, for good, and returns how it ended.
func (p *process) quit() error {
	p.mu.Lock()
	p.stop = true
	cmd := p.cmd
	if cmd != nil {
		// The pipe stays: that it ends tells the fleet that the test has died.
		_ = cmd.Process.Signal(syscall.SIGTERM)
	}
	p.mu.Unlock()
	<-p.done
	if cmd == nil || cmd.ProcessState.Success() {
		return nil
	}
	return fmt.Errorf("%s ended with %v", p.name, cmd.ProcessState)
}

// pid is 0 while it does not run.
func (p *process) pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// surprises are the ends that nobody asked for.
func (p *process) surprises() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ended
}

// tail returns the last lines of its log.
func (p *process) tail(lines int) string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
