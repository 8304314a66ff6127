package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
)

// machine is what figures depend on.
type machine struct {
	CPU    string  `json:"cpu"`
	CPUs   int     `json:"cpus"`
	Memory float64 `json:"memoryGiB"`
	Kernel string  `json:"kernel"`
	Go     string  `json:"go"`
	// Commit ends in "-dirty" when files differ from it.
	Commit string `json:"commit"`
}

func thisMachine(ctx context.Context) (machine, error) {
	m := machine{CPUs: runtime.NumCPU(), Go: runtime.Version()}
	cpu, err := field("/proc/cpuinfo", `model name\s*:\s*(.+)`)
	if err != nil {
		cpu = runtime.GOARCH // some architectures name no model
	}
	m.CPU = cpu
	memory, err := field("/proc/meminfo", `MemTotal:\s+(\d+) kB`)
	if err != nil {
		return m, err
	}
	kib, err := strconv.ParseFloat(memory, 64)
	if err != nil {
		return m, err
	}
	m.Memory = float64(int(kib/(1<<20)*10)) / 10
	if m.Kernel, err = field("/proc/sys/kernel/osrelease", `(.+)`); err != nil {
		return m, err
	}
	commit, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*").Output()
	if err != nil {
		return m, fmt.Errorf("ask git for the commit: %w", err)
	}
	m.Commit = strings.TrimSpace(string(commit))
	return m, nil
}

// field returns what the expression's group matches in a file of the kernel.
func field(path, expression string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	match := regexp.MustCompile(`(?m)^` + expression + `$`).FindSubmatch(b)
	if match == nil {
		return "", fmt.Errorf("%s has no line %s", path, expression)
	}
	return strings.TrimSpace(string(match[1])), nil
}
