package main

import (
	"encoding/json"
	"io"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// line is one line of --stream. At is CLOCK_MONOTONIC in nanoseconds, which all
// processes of a machine share; one of the others is set.
type line struct {
	At     int64   `json:"at"`
	State  *state  `json:"state,omitempty"`
	Task   *began  `json:"task,omitempty"`
	Result *result `json:"result,omitempty"`
}

// began tells of a task that a host has begun.
type began struct {
	ID     string `json:"id"`
	Device string `json:"device"`
}

// phase is a part of a run; the parts come in this order.
type phase int

const (
	connecting phase = iota
	ready            // all that will connect have; waits for the other processes
	running
	draining
	drained // waits for the other processes
)

var phases = [...]string{"connect", "ready", "run", "drain", "drained"}

func (p phase) String() string { return phases[p] }

// state is where a run is, and what its agents have counted so far.
type state struct {
	Phase     phase  `json:"phase"`
	Started   int    `json:"started"`
	Enrolled  int    `json:"enrolled"`
	Connected int    `json:"connected"`
	Failed    int    `json:"failed"`
	Silent    int    `json:"silent"`   // have never been connected
	Unopened  int    `json:"unopened"` // have never looked at their host
	Sessions  uint64 `json:"sessions"`
	Made      uint64 `json:"made"`     // reports of this run
	Left      uint64 `json:"left"`     // reports of an earlier run
	Pending   uint64 `json:"pending"`  // reports without a receipt
	Receipts  uint64 `json:"receipts"` // that agents heard
	Resent    uint64 `json:"resent"`
	Renewed   int    `json:"renewed"`
	Tasks     int    `json:"tasks"`
	Changes   int    `json:"changes"`
	Cuts      int    `json:"cuts"`
	In        uint64 `json:"in"` // bytes
	Out       uint64 `json:"out"`
}

// add makes s the state of both together: that of the one that is behind.
func (s *state) add(o state) {
	s.Phase = min(s.Phase, o.Phase)
	s.Started += o.Started
	s.Enrolled += o.Enrolled
	s.Connected += o.Connected
	s.Failed += o.Failed
	s.Silent += o.Silent
	s.Unopened += o.Unopened
	s.Sessions += o.Sessions
	s.Made += o.Made
	s.Left += o.Left
	s.Pending += o.Pending
	s.Receipts += o.Receipts
	s.Resent += o.Resent
	s.Renewed += o.Renewed
	s.Tasks += o.Tasks
	s.Changes += o.Changes
	s.Cuts += o.Cuts
	s.In += o.In
	s.Out += o.Out
}

// stream writes lines. A nil one writes nothing.
type stream struct {
	mu   sync.Mutex
	enc  *json.Encoder
	last state
	err  error // the first
}

func newStream(w io.Writer) *stream {
	return &stream{enc: json.NewEncoder(w), last: state{Started: -1}}
}

// state writes s when it is news.
func (s *stream) state(now state) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if now != s.last {
		s.last = now
		s.write(line{At: monotonic(), State: &now})
	}
}

func (s *stream) line(l line) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.write(l)
}

func (s *stream) write(l line) {
	if err := s.enc.Encode(l); err != nil && s.err == nil {
		s.err = err
	}
}

// failure returns the first error of writing.
func (s *stream) failure() error {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func monotonic() int64 {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) != nil {
		return 0 // every Linux has this clock
	}
	return ts.Nano()
}

// outage keeps the longest time that some devices were not connected, and the
// least number that were.
type outage struct {
	least int
	gap   time.Duration
	since time.Time // zero: all are connected
}

func (o *outage) note(now time.Time, connected, of int) {
	o.least = min(o.least, connected)
	switch {
	case connected < of && o.since.IsZero():
		o.since = now
	case !o.since.IsZero():
		o.gap = max(o.gap, now.Sub(o.since))
		if connected >= of {
			o.since = time.Time{}
		}
	}
}
