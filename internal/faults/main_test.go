package faults_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

var (
	weatherFor  = flag.Duration("faults.for", 20*time.Second, "how long TestWeather goes on")
	weatherSeed = flag.Uint64("faults.seed", 0, "seed of TestWeather's plan; 0 takes one from the clock")
)

// bin holds the programs under test, built once.
var bin string

func TestMain(m *testing.M) {
	if path := os.Getenv(fleetEnv); path != "" {
		if err := runFleet(path); err != nil {
			fmt.Fprintln(os.Stderr, "fleet:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	flag.Parse()
	dir, err := os.MkdirTemp("", "pallas-faults-")
	if err == nil {
		defer os.RemoveAll(dir)
		bin = dir
		var out []byte
		if out, err = exec.Command("go", "build", "-o", dir, "pallas/cmd/pallasd", "pallas/cmd/pallas-sim").CombinedOutput(); err != nil {
			err = errors.Join(err, errors.New(string(out)))
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "build the programs:", err)
		return 1
	}
	return m.Run()
}

func program(name string) string { return filepath.Join(bin, name) }
