package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"time"
)

// result is what a run prints. Bytes are those at the sockets: TLS, without
// TCP/IP. Times are seconds, latencies milliseconds.
type result struct {
	Devices int    `json:"devices"`
	VMs     int    `json:"vms"`
	Seed    uint64 `json:"seed"`

	Started   int `json:"started"`
	Enrolled  int `json:"enrolled"`  // in this run
	Connected int `json:"connected"` // at the end of the run, before the drain
	Failed    int `json:"failed"`    // agents that ended by themselves

	ConnectSeconds float64 `json:"connect_seconds"` // from the first start until all were connected and had reported; 0: never
	RunSeconds     float64 `json:"run_seconds"`     // of changes and cuts
	DrainSeconds   float64 `json:"drain_seconds"`   // from the last change to the last receipt
	TotalSeconds   float64 `json:"total_seconds"`

	Changes  int      `json:"changes"`
	Reports  reports  `json:"reports"`
	Receipts latency  `json:"change_to_receipt"`
	Sessions sessions `json:"sessions"`
	Bytes    traffic  `json:"bytes"`
	Tasks    int      `json:"tasks"`

	Processes int     `json:"processes"`    // that the fleet ran in; what follows is theirs together
	Idle      process `json:"process_idle"` // when all were connected
	End       process `json:"process_end"`  // after the drain

	// Manager is what the other side counted; nil without --metrics-token-file.
	Manager *manager `json:"manager,omitempty"`

	Warnings map[string]int `json:"warnings,omitempty"`
	Problems []string       `json:"problems,omitempty"`

	books []account
}

type reports struct {
	Made      uint64 `json:"made"`
	Receipted uint64 `json:"receipted"`
	Left      uint64 `json:"left_by_earlier_run"` // without a receipt at the start, receipted in this run
	Pending   uint64 `json:"pending"`             // without a receipt at the end
	Resent    uint64 `json:"resent"`
	Renewed   int    `json:"epochs_renewed"`
	Receipts  uint64 `json:"receipts_heard"` // each covers all reports before it
}

type sessions struct {
	Made uint64 `json:"made"`
	Cuts int    `json:"cuts"`
	// Least is the smallest number of devices that were connected at one time
	// of the run, and Gap the longest time that some were not, in seconds.
	Least int     `json:"least_connected"`
	Gap   float64 `json:"longest_gap_seconds"`
}

type traffic struct {
	InPerDevice  uint64 `json:"in_per_device"`
	OutPerDevice uint64 `json:"out_per_device"`
	// RunIn and RunOut leave out what was before all were connected.
	RunIn  uint64 `json:"run_in_per_device"`
	RunOut uint64 `json:"run_out_per_device"`
}

// process is what this program takes, all agents together.
type process struct {
	RSS        uint64 `json:"rss"`      // bytes; Anon of it is memory, the rest the agents' files
	Anon       uint64 `json:"rss_anon"` // bytes
	Heap       uint64 `json:"heap"`     // bytes in live objects
	Stacks     uint64 `json:"stacks"`   // bytes
	Goroutines int    `json:"goroutines"`
	Files      int    `json:"open_files"`

	// What each agent adds to an empty program.
	RSSPerAgent        uint64  `json:"rss_per_agent"`
	AnonPerAgent       uint64  `json:"rss_anon_per_agent"`
	GoroutinesPerAgent float64 `json:"goroutines_per_agent"`
}

// account is one agent's book at the end.
type account struct {
	device              string
	epoch, begin, first uint64
	next                uint64
	renewed             int
}

// footprint measures this process as it is after some minutes of rest: each
// garbage collection halves the stacks that a handshake made large.
func footprint() process {
	for range 4 {
		runtime.GC()
	}
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	p := process{
		RSS: field("/proc/self/status", "VmRSS:") << 10, Anon: field("/proc/self/status", "RssAnon:") << 10,
		Heap: m.HeapAlloc, Stacks: m.StackInuse, Goroutines: runtime.NumGoroutine(),
	}
	if fds, err := os.ReadDir("/proc/self/fd"); err == nil {
		p.Files = len(fds)
	}
	return p
}

// per sets what each of n agents adds to empty.
func (p *process) per(n int, empty process) {
	if n == 0 {
		return
	}
	p.RSSPerAgent = (p.RSS - min(p.RSS, empty.RSS)) / uint64(n)
	p.AnonPerAgent = (p.Anon - min(p.Anon, empty.Anon)) / uint64(n)
	p.GoroutinesPerAgent = float64(p.Goroutines-empty.Goroutines) / float64(n)
}

// add makes p that of both; what is per agent becomes a total until mean.
func (p *process) add(o process, agents int) {
	p.RSS += o.RSS
	p.Anon += o.Anon
	p.Heap += o.Heap
	p.Stacks += o.Stacks
	p.Goroutines += o.Goroutines
	p.Files += o.Files
	p.RSSPerAgent += o.RSSPerAgent * uint64(agents)
	p.AnonPerAgent += o.AnonPerAgent * uint64(agents)
	p.GoroutinesPerAgent += o.GoroutinesPerAgent * float64(agents)
}

// mean is for after add: it divides what is per agent.
func (p *process) mean(agents int) {
	n := max(agents, 1)
	p.RSSPerAgent /= uint64(n)
	p.AnonPerAgent /= uint64(n)
	p.GoroutinesPerAgent /= float64(n)
}

func (r *reports) add(o reports) {
	r.Made += o.Made
	r.Receipted += o.Receipted
	r.Left += o.Left
	r.Pending += o.Pending
	r.Resent += o.Resent
	r.Renewed += o.Renewed
	r.Receipts += o.Receipts
}

// latency counts durations by the millisecond.
type latency struct {
	Count int     `json:"count"`
	P50   float64 `json:"p50_ms"`
	P99   float64 `json:"p99_ms"`
	Max   float64 `json:"max_ms"`

	// By counts by the millisecond, for the sum of several processes; people get
	// the percentiles.
	By []uint32 `json:"by_ms,omitempty"`
}

const longest = 10 * 60 * 1000 // milliseconds; what is longer counts as that

func (l *latency) add(d time.Duration) {
	ms := min(max(int(d/time.Millisecond), 0), longest)
	for len(l.By) <= ms {
		l.By = append(l.By, make([]uint32, 1024)...)
	}
	l.By[ms]++
	l.Count++
	l.Max = max(l.Max, float64(ms))
}

// merge adds what another process counted.
func (l *latency) merge(o latency) {
	if len(l.By) < len(o.By) {
		l.By = append(l.By, make([]uint32, len(o.By)-len(l.By))...)
	}
	for ms, n := range o.By {
		l.By[ms] += n
	}
	l.Count += o.Count
	l.Max = max(l.Max, o.Max)
}

// sum sets the percentiles.
func (l *latency) sum() {
	at := func(share float64) float64 {
		rank, seen := int(share*float64(l.Count)), 0
		for ms, n := range l.By {
			if seen += int(n); seen > rank {
				return float64(ms)
			}
		}
		return l.Max
	}
	l.P50, l.P99 = at(0.5), at(0.99)
}
