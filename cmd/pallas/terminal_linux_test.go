package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"pallas/cmd/pallas/cli"
)

// noTerminal lets a machine without terminals off, but not CI: what is skipped
// there is tested nowhere.
func noTerminal(t *testing.T, err error) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf("no terminals here: %v", err)
	}
	t.Skipf("no terminals here: %v", err)
}

// terminal runs the program with both outputs on a terminal of its own and
// returns what appears there.
func terminal(t *testing.T, args ...string) (string, int) {
	t.Helper()
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		noTerminal(t, err)
	}
	defer screen.Close()
	n, err := unix.IoctlGetInt(int(screen.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(screen.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(int(screen.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 120})
	}
	if err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		noTerminal(t, err)
	}
	shown := make(chan string, 1)
	go func() {
		b, _ := io.ReadAll(screen) // ends with EIO when the terminal is closed
		shown <- string(b)
	}()
	code := cli.Run(t.Context(), args, strings.NewReader(""), tty, tty)
	tty.Close()
	return <-shown, code
}

// TestTerminal: colour and progress are for terminals, and colour only for
// those who want it.
func TestTerminal(t *testing.T) {
	f := newFixture(t)
	f.login()
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "")
	const green = "\x1b[32mapproved\x1b[0m"
	if got, code := terminal(t, "get", "devices"); code != 0 || !strings.Contains(got, green) {
		t.Errorf("no colour on a terminal: %d %q", code, got)
	}
	if got, code := terminal(t, "get", "devices", "--no-color"); code != 0 || strings.Contains(got, "\x1b") || !strings.Contains(got, "approved") {
		t.Errorf("with --no-color: %d %q", code, got)
	}
	if got, code := terminal(t, "vm", "power", "on", "shop-1/shop-1-vm2", "--wait"); code != 0 || !strings.Contains(got, "100 %") {
		t.Errorf("no progress on a terminal: %d %q", code, got)
	}
	t.Setenv("NO_COLOR", "1")
	if got, code := terminal(t, "get", "devices"); code != 0 || strings.Contains(got, "\x1b") || !strings.Contains(got, "approved") {
		t.Errorf("with NO_COLOR: %d %q", code, got)
	}
}
