package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

const output = `goos: linux
goarch: amd64
pkg: pallas/events
cpu: Some CPU
BenchmarkEncode-2   	  100000	      4000 ns/op	     400 B/op	      5 allocs/op
BenchmarkEncode-2   	  100000	      2000 ns/op	     400 B/op	      5 allocs/op
BenchmarkEncode-2   	  100000	      9000 ns/op	     400 B/op	      7 allocs/op
PASS
ok  	pallas/events	3.2s
pkg: pallas/mqttgw
BenchmarkReports/1-2
    bench_test.go:12: a line of the benchmark
BenchmarkReports/1-2   	       1	         0.36 visible-of-raw	     38800 visible/s
BenchmarkReports/batch=16-2   	       1	         0.5 visible-of-raw
PASS
`

func TestRead(t *testing.T) {
	got, err := read(strings.NewReader(output))
	if err != nil {
		t.Fatal(err)
	}
	want := []*benchmark{
		{Package: "pallas/events", Name: "Encode", Runs: 3, Iterations: 100000, Figures: map[string]figure{
			"ns/op": {Median: 4000, Low: 2000, High: 9000}, "B/op": {Median: 400, Low: 400, High: 400}, "allocs/op": {Median: 5, Low: 5, High: 7},
		}},
		{Package: "pallas/mqttgw", Name: "Reports/1", Runs: 1, Iterations: 1, Figures: map[string]figure{
			"visible-of-raw": {Median: 0.36, Low: 0.36, High: 0.36}, "visible/s": {Median: 38800, Low: 38800, High: 38800},
		}},
		{Package: "pallas/mqttgw", Name: "Reports/batch=16", Runs: 1, Iterations: 1, Figures: map[string]figure{
			"visible-of-raw": {Median: 0.5, Low: 0.5, High: 0.5},
		}},
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(benchmark{}, figure{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestFailures(t *testing.T) {
	for name, tc := range map[string]struct{ in, says string }{
		"nothing":         {"", "no benchmark"},
		"only tests":      {"PASS\nok  \tpallas/events\t0.1s\n", "no benchmark"},
		"a benchmark":     {output + "--- FAIL: BenchmarkOther\n    x_test.go:1: broken\nFAIL\n", "--- FAIL: BenchmarkOther"},
		"a part":          {output + "    --- FAIL: BenchmarkOther/1000\nFAIL\n", "--- FAIL: BenchmarkOther/1000"},
		"a panic":         {output + "panic: oh\n", "panic: oh"},
		"a build":         {output + "FAIL\tpallas/web [build failed]\n", "pallas/web [build failed]"},
		"a line too long": {output + strings.Repeat("x", 17<<20), "too long"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := read(strings.NewReader(tc.in)); err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%v, want an error that says %q", err, tc.says)
			}
		})
	}
}

func TestRun(t *testing.T) {
	path := filepath.Join(t.TempDir(), "report.json")
	var log bytes.Buffer
	// What was measured before a failure is not lost.
	if err := run(t.Context(), strings.NewReader(output+"--- FAIL: BenchmarkOther\n"), &log, path); err == nil {
		t.Error("the failure is not passed on")
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got report
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if m := got.Machine; len(got.Benchmarks) != 3 || m.CPU == "" || m.CPUs < 1 || m.Memory <= 0 || m.Kernel == "" || m.Go == "" || m.Commit == "" {
		t.Errorf("report %s", b)
	}
	for _, want := range []string{"a line of the benchmark", "Reports/1         0.36    visible-of-raw", "Encode            4000    ns/op           2000 and 9000"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("no %q in\n%s", want, log.String())
		}
	}
}
