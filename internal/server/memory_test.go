package server

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMemoryLimitIsChecked(t *testing.T) {
	for limit, ok := range map[int64]bool{0: true, 64 << 20: true, 6 << 30: true, 64<<20 - 1: false, 6144: false, -1: false} {
		cfg := Defaults()
		cfg.DataDir, cfg.Memory.Limit = "/somewhere", limit
		if err := cfg.Validate(); (err == nil) != ok || (err != nil && !strings.HasPrefix(err.Error(), "memory.limit: ")) {
			t.Errorf("memory.limit %d: %v", limit, err)
		}
	}
}

func TestAvailableMemoryIsTheGroups(t *testing.T) {
	write := func(path, content string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	machine := availableMemory(t.TempDir(), t.TempDir())
	if machine < 64<<20 {
		t.Fatalf("the machine has %d bytes", machine)
	}
	for name, c := range map[string]struct {
		groups string
		files  map[string]string
		want   int64
	}{
		"version 2":                    {"0::/a/b\n", map[string]string{"a/b/memory.max": "33554432\n", "memory.max": "max\n"}, 32 << 20},
		"version 2, the parent's":      {"0::/a/b\n", map[string]string{"a/b/memory.max": "max\n", "a/memory.max": "16777216\n"}, 16 << 20},
		"version 2 in a container":     {"0::/\n", map[string]string{"memory.max": "8388608\n"}, 8 << 20},
		"version 1":                    {"4:cpu:/x\n5:memory:/a\n", map[string]string{"memory/a/memory.limit_in_bytes": "4194304\n"}, 4 << 20},
		"version 1, a path from above": {"5:memory:/not/here\n", map[string]string{"memory/memory.limit_in_bytes": "2097152\n"}, 2 << 20},
		"no limit":                     {"0::/a\n5:memory:/a\n", map[string]string{"a/memory.max": "max\n", "memory/a/memory.limit_in_bytes": "9223372036854771712\n"}, machine},
		"garbage":                      {"memory\n0::\n5:memory\n", map[string]string{"memory.max": "many\n"}, machine},
	} {
		proc, cgroup := t.TempDir(), t.TempDir()
		write(filepath.Join(proc, "self/cgroup"), c.groups)
		for path, content := range c.files {
			write(filepath.Join(cgroup, path), content)
		}
		if got := availableMemory(proc, cgroup); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

func TestRushCollectsInShorterTurns(t *testing.T) {
	for live, want := range map[uint64]int{0: calmGC, 8 << 20: calmGC, 16 << 20: 50, 32 << 20: rushGC, 4 << 30: rushGC} {
		if got := rushPercent(live); got != want {
			t.Errorf("%d bytes live: %d %%, want %d", live, got, want)
		}
	}
}
