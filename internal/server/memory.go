package server

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// MemoryConfig is for the memory of the process.
type MemoryConfig struct {
	// Limit is what the Go runtime tries to stay below, in bytes; 0 means three
	// quarters of what the machine or its control group has. It is soft: near
	// it collections come more often. GOMEMLIMIT overrides it.
	Limit int64 `yaml:"limit"`
}

// minMemory is a limit with which a manager without devices still works.
const minMemory = 64 << 20

func (c MemoryConfig) validate() error {
	if c.Limit != 0 && c.Limit < minMemory {
		return fmt.Errorf("memory.limit: %d is too little, want at least %d (64 MiB), or 0 for three quarters of the machine's", c.Limit, minMemory)
	}
	return nil
}

// setMemoryLimit returns the limit that holds now.
func setMemoryLimit(c MemoryConfig) int64 {
	if _, set := os.LookupEnv("GOMEMLIMIT"); !set {
		limit := c.Limit
		if limit == 0 {
			limit = max(minMemory, availableMemory("/proc", "/sys/fs/cgroup")/4*3)
		}
		debug.SetMemoryLimit(limit)
	}
	return debug.SetMemoryLimit(-1)
}

// availableMemory is the memory of the machine, or of the control group of this
// process if that has less, in bytes.
func availableMemory(proc, cgroup string) int64 {
	least := int64(math.MaxInt64)
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		least = int64(info.Totalram) * int64(info.Unit)
	}
	groups, err := os.ReadFile(filepath.Join(proc, "self/cgroup"))
	if err != nil {
		return least
	}
	for line := range strings.Lines(string(groups)) {
		// "<number>:<controllers>:<path>", in version 2 without controllers.
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) != 3 {
			continue
		}
		var root, file string
		switch fields[1] {
		case "":
			root, file = cgroup, "memory.max"
		case "memory":
			root, file = filepath.Join(cgroup, "memory"), "memory.limit_in_bytes"
		default:
			continue
		}
		// Inside a container the path may lead nowhere, and the root is its own.
		for path := filepath.Join("/", fields[2]); ; path = filepath.Dir(path) {
			if b, err := os.ReadFile(filepath.Join(root, path, file)); err == nil {
				if n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil && n > 0 {
					least = min(least, n)
				}
			}
			if path == "/" {
				break
			}
		}
	}
	return least
}

// What lives as long as a connection is allocated amid the garbage of its
// handshake, about ten times as much, and stays where it is. How much garbage
// there may be between two collections decides how many half-empty spans are
// left, so while many devices connect there may be less of it.
//
// In between the stacks are what grows: whatever the broker writes to a device
// takes 32 KiB of stack, because of one function with a frame of 25 kB
// ((*client).flushOutbound in nats-server), and only collections shrink a
// stack, by half each time. So there is one every few seconds, as long as that
// takes little of the processor, and what is free is given back.
const (
	calmGC = 100 // percent, Go's own
	rushGC = 25
	// rushGarbage is how much garbage there may be in any case, in bytes:
	// shorter turns of a small heap would cost more than they save.
	rushGarbage = 8 << 20
	// rush is from how many connections a second on it counts.
	rush = 10
	// calm is how long there must be fewer than that.
	calm = 5 * time.Second
	// tidyEvery is how often memory is given back, and tidyShare how many times
	// as long as that takes must pass: with many devices it is rarer.
	tidyEvery = 15 * time.Second
	tidyShare = 50
)

// tendMemory collects garbage by the number of connections that have come in so
// far. It returns when ctx ends, with calmGC.
func tendMemory(ctx context.Context, accepted func() uint64) {
	if _, set := os.LookupEnv("GOGC"); set {
		return // somebody else decides
	}
	defer debug.SetGCPercent(debug.SetGCPercent(calmGC))
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	due := time.Now().Add(tidyEvery)
	rushed := false
	for before := accepted(); ; {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			n := accepted()
			switch {
			case n-before >= rush:
				debug.SetGCPercent(rushPercent(liveHeap()))
				rushed = true
				due = now.Add(calm)
			case now.After(due):
				if rushed {
					debug.SetGCPercent(calmGC)
					rushed = false
				}
				debug.FreeOSMemory() // collects first
				due = now.Add(max(tidyEvery, tidyShare*time.Since(now)))
			}
			before = n
		}
	}
}

// rushPercent is GOGC for a live heap of so many bytes while devices rush in.
func rushPercent(live uint64) int {
	return int(min(calmGC, max(rushGC, 100*rushGarbage/max(live, 1))))
}

func liveHeap() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}
