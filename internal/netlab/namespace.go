package netlab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// insideEnv tells the test binary that it runs in a namespace already.
const insideEnv = "PALLAS_NETLAB_INSIDE"

// errUnavailable is why there are no links; nil when there are.
var errUnavailable = errors.New("netlab.Main was not called")

// Unavailable says why links cannot be made here, as a reason to skip a test;
// nil when they can.
func Unavailable() error { return errUnavailable }

// Main is for TestMain: it has run run in a namespace of its own and returns
// the exit code. Where there can be none, it calls run here, and [Unavailable]
// says why.
func Main(run func() int) int {
	if os.Getenv(insideEnv) != "" {
		errUnavailable = up("lo")
		return run()
	}
	cmd := exec.CommandContext(context.Background(), "/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	// The death of the thread that started the child would be taken for ours.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if tun, err := os.OpenFile(tunPath, os.O_RDWR, 0); err != nil {
		errUnavailable = fmt.Errorf("no TUN interfaces here: %w", err)
		return run()
	} else if err := tun.Close(); err != nil {
		errUnavailable = err
		return run()
	}
	if err := cmd.Start(); err != nil {
		errUnavailable = fmt.Errorf("no user and network namespaces here: %w", err)
		return run()
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); errors.As(err, &exit) && exit.ExitCode() >= 0 {
		return exit.ExitCode()
	} else if err != nil {
		fmt.Fprintln(os.Stderr, "netlab:", err)
		return 1
	}
	return 0
}

// up switches an interface on.
func up(name string) error {
	return configure(name, func(fd int, r *unix.Ifreq) error {
		r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
		return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r)
	})
}

// configure runs requests for an interface on a socket.
func configure(name string, requests ...func(fd int, r *unix.Ifreq) error) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("configure %s: %w", name, err)
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written to it
	for _, request := range requests {
		r, err := unix.NewIfreq(name)
		if err == nil {
			err = request(fd, r)
		}
		if err != nil {
			return fmt.Errorf("configure %s: %w", name, err)
		}
	}
	return nil
}
