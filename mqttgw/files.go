package mqttgw

import (
	"errors"
	"net"

	"golang.org/x/sys/unix"
)

// A store that finds no free file is a store that failed, and ends the manager.
// So connections leave some of the files that the process may have open.

// errNoFiles refuses a connection when few files are left.
var errNoFiles = errors.New("too many open files for another connection")

// keptFiles is how many of a limit are kept for everything but connections.
func keptFiles(limit uint64) uint64 { return min(max(limit/16, 128), 4096) }

// maxFiles is how many files connections may take the process to.
func maxFiles() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur > 1<<30 {
		return 1 << 30
	}
	return int(limit.Cur - min(limit.Cur, keptFiles(limit.Cur)))
}

// crowded says whether so many files are open that a new connection has to go.
// The kernel gives the lowest number that is free, so that of a connection's
// file is how many others there are at least.
func crowded(conn net.Conn, maxFiles int) bool {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return false
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return true
	}
	full := true
	_ = raw.Control(func(fd uintptr) { full = int(fd) >= maxFiles })
	return full
}
