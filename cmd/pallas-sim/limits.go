package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"pallas/mqttgw/wire"
)

// machine is what bounds a fleet. Zero means that it is not known.
type machine struct {
	files  uint64 // open files of this process
	maps   uint64 // memory mappings of this process
	memory uint64 // bytes that are free for it
	disk   uint64 // bytes that are free where the agents' data is
	ports  uint64 // of one source address

	tmpfs    bool   // the agents' data is in memory too
	allFiles uint64 // that the system may open yet
	tracked  uint64 // connections that netfilter may track yet
}

// What one agent takes, rounded up from what was measured
// (docs/reference/pallas-sim.md).
const (
	filesPerAgent  = 2 // its database and its connection
	filesBeside    = 300
	mapsBeside     = 2000
	memoryPerAgent = 256 << 10
	memoryPerVM    = 4 << 10
	diskPerAgent   = 140 << 10
)

// measure reads the limits of this machine for data kept under dir.
func measure(dir string) machine {
	m := machine{maps: number("/proc/sys/vm/max_map_count"), memory: field("/proc/meminfo", "MemAvailable:") << 10}
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) == nil {
		m.files = lim.Cur // the Go runtime has raised it to the hard limit
	}
	var fs unix.Statfs_t
	if unix.Statfs(dir, &fs) == nil {
		m.disk, m.tmpfs = fs.Bavail*uint64(fs.Bsize), fs.Type == unix.TMPFS_MAGIC
	}
	if b, err := os.ReadFile("/proc/sys/fs/file-nr"); err == nil {
		if f := strings.Fields(string(b)); len(f) == 3 {
			open, openErr := strconv.ParseUint(f[0], 10, 64)
			most, mostErr := strconv.ParseUint(f[2], 10, 64)
			if openErr == nil && mostErr == nil && most > open {
				m.allFiles = most - open
			}
		}
	}
	if most, now := number("/proc/sys/net/netfilter/nf_conntrack_max"), number("/proc/sys/net/netfilter/nf_conntrack_count"); most > now {
		m.tracked = most - now
	}
	if b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		if f := strings.Fields(string(b)); len(f) == 2 {
			low, lowErr := strconv.ParseUint(f[0], 10, 16)
			high, highErr := strconv.ParseUint(f[1], 10, 16)
			if lowErr == nil && highErr == nil && high >= low {
				m.ports = high - low + 1
			}
		}
	}
	return m
}

// processes is how many it takes for no one of them to meet a limit.
func (m machine) processes(devices int) int {
	n := 1
	for _, l := range []struct{ have, beside, each uint64 }{{m.files, filesBeside, filesPerAgent}, {m.maps, mapsBeside, 1}} {
		if l.have > l.beside+l.each {
			fit := int((l.have - l.beside) / l.each)
			n = max(n, (devices+fit-1)/fit)
		}
	}
	return n
}

// carry says what of the machine is too small for so many devices in so many
// processes, and what to change, a line each.
func (m machine) carry(devices, vms, processes int, distant bool) (problems []string) {
	// in is how many processes share what there is.
	need := func(have, beside, each uint64, in int, format, change string, scale uint64) {
		want := beside + each*uint64((devices+in-1)/in)
		if have == 0 || want <= have {
			return
		}
		var fit uint64
		if have > beside {
			fit = (have - beside) / each * uint64(in)
		}
		problems = append(problems, fmt.Sprintf(format, want/scale, have/scale)+fmt.Sprintf(": %s, or ask for at most %d devices here", change, fit))
	}
	need(m.files, filesBeside, filesPerAgent, processes, "open files: %d are needed, a process may have %d",
		"raise the limit (ulimit -Hn, LimitNOFILE=), take more processes (--processes)", 1)
	need(m.maps, mapsBeside, 1, processes, "memory mappings: %d are needed, a process may have %d",
		"raise vm.max_map_count, take more processes (--processes)", 1)
	need(m.allFiles, uint64(filesBeside*processes), filesPerAgent, 1, "open files of the system: %d are needed, %d are left",
		"raise fs.file-max, run a part on another machine (--first)", 1)
	need(m.tracked, 0, 1, 1, "tracked connections: %d are needed, %d are left",
		"raise net.netfilter.nf_conntrack_max", 1)
	memory := memoryPerAgent + memoryPerVM*uint64(vms)
	if m.tmpfs {
		memory += diskPerAgent
	}
	need(m.memory, 64<<20*uint64(processes), memory, 1, "memory: about %d MiB are needed, %d MiB are free",
		"free some, run a part on another machine (--first)", 1<<20)
	need(m.disk, 64<<20, diskPerAgent, 1, "disk: about %d MiB are needed for the agents' data, %d MiB are free",
		"name another place (--data)", 1<<20)
	if distant {
		need(m.ports, 0, 1, 1, "local ports: %d are needed, a source address has %d",
			"widen net.ipv4.ip_local_port_range, run a part on another machine (--first)", 1)
	}
	return problems
}

// distant says whether the join string's manager is elsewhere; then all devices
// share one source address.
func distant(join string) bool {
	j, err := wire.ParseJoin(join)
	if err != nil {
		return false
	}
	host := strings.TrimPrefix(j.URL, "https://")
	if _, _, err := net.SplitHostPort(host); err != nil {
		host += ":443"
	}
	return !loopback(host)
}

func number(path string) uint64 {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// field returns the number of a line "name number …" of a file.
func field(path, name string) uint64 {
	f, err := os.Open(path)
	if err != nil {
		return 0
	}
	defer f.Close() //nolint:errcheck // read only
	for s := bufio.NewScanner(f); s.Scan(); {
		if words := strings.Fields(s.Text()); len(words) > 1 && words[0] == name {
			if n, err := strconv.ParseUint(words[1], 10, 64); err == nil {
				return n
			}
		}
	}
	return 0
}
