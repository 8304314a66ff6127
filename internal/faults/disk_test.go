package faults_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"pallas/internal/faults"
)

// mount shows a folder through a disk with faults, until the test ends.
func mount(t *testing.T, back string) (d *faults.Disk, dir string) {
	t.Helper()
	if err := faults.Available(t.TempDir()); err != nil {
		t.Skipf("this test needs a disk with faults: %v", err)
	}
	dir = filepath.Join(t.TempDir(), "disk")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	d, err := faults.Mount(back, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.Set(faults.Good)
		if err := d.Unmount(); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return d, dir
}

// TestDisk makes sure that the faults are there, and only where they are meant
// to be. Another process uses the disk, as in all tests.
func TestDisk(t *testing.T) {
	back := t.TempDir()
	d, dir := mount(t, back)
	name := filepath.Join(dir, "file")
	sh := func(script string) error {
		out, err := exec.CommandContext(t.Context(), "sh", "-ec", script, "sh", name).CombinedOutput()
		if err != nil {
			return errors.New(strings.ToLower(string(out)))
		}
		return nil
	}
	text := func(errno syscall.Errno) string { return strings.ToLower(errno.Error()) }
	const write, read, sync = `echo one | tee -a "$1" >/dev/null`, `cat "$1" >/dev/null`, `sync "$1"`
	if err := sh(write + ";" + read + ";" + sync); err != nil {
		t.Fatalf("good disk: %v", err)
	}
	for _, c := range []struct {
		name   string
		fault  faults.Fault
		script string
		want   syscall.Errno // 0: works
	}{
		{"full", faults.Full, write, syscall.ENOSPC},
		{"full, reading", faults.Full, read, 0},
		{"full, removing", faults.Full, `touch -c "$1"`, 0},
		{"read-only", faults.ReadOnly, write, syscall.EROFS},
		{"read-only, reading", faults.ReadOnly, read, 0},
		{"bad write", faults.BadWrite, write, syscall.EIO},
		{"bad sync", faults.BadSync, sync, syscall.EIO},
		{"bad sync, writing", faults.BadSync, write, 0},
	} {
		d.Set(c.fault)
		err := sh(c.script)
		if (c.want == 0) != (err == nil) || (err != nil && !strings.Contains(err.Error(), text(c.want))) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	d.Set(faults.Good)
	if err := sh(sync + `;` + write); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(filepath.Join(back, "file"))
	if err != nil {
		t.Fatal(err)
	}
	if _, lost, err := d.PowerCut("*", func(int64) int64 { return 0 }); err != nil || lost != int64(len("one\n")) {
		t.Fatalf("power cut: %d bytes lost, %v, want one line", lost, err)
	}
	after, err := os.ReadFile(filepath.Join(back, "file"))
	if err != nil || !bytes.Equal(after, before[:len(before)-len("one\n")]) {
		t.Errorf("after a power cut: %q of %q, %v", after, before, err)
	}
}
