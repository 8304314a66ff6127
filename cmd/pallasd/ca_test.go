package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCA goes through the commands beside a running manager and after it: each
// says how things are, and a step out of turn changes nothing.
func TestCA(t *testing.T) {
	dir, config := initialise(t)
	stop := serving(t, config)
	ca := func(want int, args ...string) string {
		t.Helper()
		code, stdout, stderr := pallasd(t, append([]string{"ca"}, append(args, "--config", config)...)...)
		if code != want || (want != 0 && strings.Count(stderr, "\n") != 1) {
			t.Fatalf("ca %s: exit code %d\n%s%s", strings.Join(args, " "), code, stdout, stderr)
		}
		return stdout + stderr
	}
	says := func(text string, parts ...string) {
		t.Helper()
		for _, p := range parts {
			if !strings.Contains(text, p) {
				t.Errorf("does not say %q:\n%s", p, text)
			}
		}
	}
	says(ca(0, "status"), "phase:   steady\n", "active:", "devices: 0")
	says(ca(1, "switch"), "not the next step: the phase is steady, want prepared")
	says(ca(0, "prepare"), "phase:   prepared since ", "active:", "next:", "0 do not trust the next CA yet")
	says(ca(1, "prepare"), "the phase is prepared, want steady")
	stop()
	says(ca(0, "switch"), "phase:   switched since ", "former:", "0 have no certificate of it")
	before, err := os.ReadFile(filepath.Join(dir, "pki", "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	says(ca(0, "retire"), "phase:   steady\n")
	after, err := os.ReadFile(filepath.Join(dir, "pki", "ca.crt"))
	if err != nil || string(after) == string(before) {
		t.Errorf("ca.crt is the former one: %v", err)
	}
	serving(t, config)
	says(ca(0, "rotate", "--wait", "20s"), "prepared: waiting", "switched: waiting", "phase:   steady\n")
}

func TestCARefusals(t *testing.T) {
	_, config := initialise(t)
	for _, args := range [][]string{{"ca", "status"}, {"ca", "status", "--config", config, "extra"}, {"ca", "retire", "--config", config, "--forcibly"}} {
		if code, _, stderr := pallasd(t, args...); code != exitUsage || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%q: exit code %d, %s", args, code, stderr)
		}
	}
	// Without a read model nobody knows who would stay outside.
	for _, step := range []string{"prepare", "switch"} {
		if code, stdout, stderr := pallasd(t, "ca", step, "--config", config); code != 0 || !strings.Contains(stdout, "devices: not known") {
			t.Errorf("%s: exit code %d\n%s%s", step, code, stdout, stderr)
		}
	}
	if code, _, stderr := pallasd(t, "ca", "retire", "--config", config); code != 1 || !strings.Contains(stderr, "is not known") || !strings.Contains(stderr, "--force") {
		t.Errorf("retire: exit code %d, %s", code, stderr)
	}
	if code, _, stderr := pallasd(t, "ca", "retire", "--config", config, "--force"); code != 0 {
		t.Errorf("retire --force: exit code %d, %s", code, stderr)
	}
}
