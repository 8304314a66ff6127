// Command benchreport turns the output of "go test -bench", on standard input,
// into one JSON object on standard output that also says what machine it is
// from. Standard error gets the input as it comes and a table at the end. It
// fails when a benchmark, a test or a build did, and when there was no
// benchmark at all.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"golang.org/x/perf/benchfmt"
)

func main() {
	out := flag.String("o", "", "write the JSON to this file instead of standard output")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "benchreport: takes no arguments; pipe the output of go test -bench into it")
		os.Exit(2)
	}
	if err := run(context.Background(), os.Stdin, os.Stderr, *out); err != nil {
		fmt.Fprintln(os.Stderr, "benchreport:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, in io.Reader, log io.Writer, out string) error {
	benchmarks, failed := read(io.TeeReader(in, log))
	if len(benchmarks) > 0 {
		m, err := thisMachine(ctx)
		if err != nil {
			return err
		}
		if err := table(log, benchmarks); err != nil {
			return err
		}
		b, err := json.MarshalIndent(report{Machine: m, Benchmarks: benchmarks}, "", "  ")
		if err != nil {
			return err
		}
		b = append(b, '\n')
		if out == "" {
			_, err = os.Stdout.Write(b)
		} else {
			err = os.WriteFile(out, b, 0o644)
		}
		if err != nil {
			return err
		}
	}
	return failed
}

type report struct {
	Machine    machine      `json:"machine"`
	Benchmarks []*benchmark `json:"benchmarks"`
}

// benchmark is one benchmark's figures, over all its runs.
type benchmark struct {
	Package string `json:"package"`
	// Name has neither "Benchmark" nor GOMAXPROCS.
	Name string `json:"name"`
	Runs int    `json:"runs"`
	// Iterations are of the last run.
	Iterations int               `json:"iterations"`
	Figures    map[string]figure `json:"figures"` // by unit

	units []string // in the order of the output
}

// figure is the median of a benchmark's runs, and what they lie between.
type figure struct {
	Median float64 `json:"median"`
	Low    float64 `json:"low"`
	High   float64 `json:"high"`

	all []float64
}

// read returns the benchmarks in the order of their first run, and an error
// when the output tells of a failure.
func read(in io.Reader) ([]*benchmark, error) {
	var lines bytes.Buffer
	var failures []error
	s := bufio.NewScanner(in)
	s.Buffer(nil, 16<<20)
	for s.Scan() {
		line := s.Text()
		if trimmed := strings.TrimSpace(line); strings.HasPrefix(trimmed, "--- FAIL") || strings.HasPrefix(line, "FAIL\t") || strings.HasPrefix(line, "panic:") {
			failures = append(failures, errors.New(trimmed))
		}
		lines.WriteString(line)
		lines.WriteByte('\n')
	}
	if err := s.Err(); err != nil {
		failures = append(failures, fmt.Errorf("read: %w", err))
	}
	var list []*benchmark
	byName := map[string]*benchmark{}
	for r := benchfmt.NewReader(&lines, "standard input"); r.Scan(); {
		// A line that is none is output of a test; without its figures it shows
		// in the table.
		result, ok := r.Result().(*benchfmt.Result)
		if !ok {
			continue
		}
		base, parts := result.Name.Parts()
		name := string(base)
		for _, p := range parts {
			if p[0] != '-' { // GOMAXPROCS
				name += string(p)
			}
		}
		pkg := result.GetConfig("pkg")
		b := byName[pkg+" "+name]
		if b == nil {
			b = &benchmark{Package: pkg, Name: name, Figures: map[string]figure{}}
			byName[pkg+" "+name] = b
			list = append(list, b)
		}
		b.add(result)
	}
	if len(list) == 0 {
		failures = append(failures, errors.New("no benchmark in the input"))
	}
	return list, errors.Join(failures...)
}

func (b *benchmark) add(r *benchfmt.Result) {
	b.Runs++
	b.Iterations = r.Iters
	for _, v := range r.Values {
		if v.OrigUnit != "" { // benchfmt makes seconds of nanoseconds
			v.Value, v.Unit = v.OrigValue, v.OrigUnit
		}
		f, ok := b.Figures[v.Unit]
		if !ok {
			b.units = append(b.units, v.Unit)
		}
		f.all = append(f.all, v.Value)
		slices.Sort(f.all)
		n := len(f.all)
		f.Low, f.High = f.all[0], f.all[n-1]
		f.Median = (f.all[(n-1)/2] + f.all[n/2]) / 2
		b.Figures[v.Unit] = f
	}
}

func table(w io.Writer, list []*benchmark) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\nbenchmark\tmedian\tunit\tbetween")
	for _, b := range list {
		name := b.Name
		for _, unit := range b.units {
			f, between := b.Figures[unit], ""
			if b.Runs > 1 {
				between = short(f.Low) + " and " + short(f.High)
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", name, short(f.Median), unit, between)
			name = ""
		}
	}
	return t.Flush()
}

// short writes four digits, all of a larger whole number.
func short(f float64) string {
	if f >= 1000 || f <= -1000 {
		return strconv.FormatFloat(f, 'f', 0, 64)
	}
	return strconv.FormatFloat(f, 'g', 4, 64)
}
