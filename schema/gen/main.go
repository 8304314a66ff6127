// Command gen writes the contracts that are generated from the code: files
// under schema/ and docs/reference/. Run it from the root of the repository:
//
//	go run ./schema/gen
//
// A test of this package fails when a committed file differs from what gen
// would write.
package main

//go:generate go -C ../.. run ./schema/gen

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// output is one group of generated files.
type output struct {
	name string
	// generate returns the files by their path from the root. It may read the
	// sources under root and writes nothing.
	generate func(root string) (map[string][]byte, error)
}

// outputs lists everything that is generated.
var outputs = []output{
	{"event schemas", eventSchemas},
	{"event reference", eventReference},
	{"OpenAPI", under("schema", openAPI)},
	{"problem reference", under("docs/reference", problemReference)},
	{"permission reference", under("docs/reference", permissionReference)},
}

// under is for files that need no source, with names from a folder.
func under(folder string, generate func() (map[string][]byte, error)) func(string) (map[string][]byte, error) {
	return func(string) (map[string][]byte, error) {
		files, err := generate()
		if err != nil {
			return nil, err
		}
		out := map[string][]byte{}
		for name, data := range files {
			out[path.Join(folder, name)] = data
		}
		return out, nil
	}
}

func main() {
	if err := run("."); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func run(root string) error {
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		return fmt.Errorf("run it from the root of the repository: %w", err)
	}
	for _, out := range outputs {
		files, err := out.generate(root)
		if err != nil {
			return fmt.Errorf("%s: %w", out.name, err)
		}
		for name, data := range files {
			file := filepath.Join(root, name)
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				return fmt.Errorf("%s: %w", out.name, err)
			}
			if err := os.WriteFile(file, data, 0o644); err != nil {
				return fmt.Errorf("%s: %w", out.name, err)
			}
		}
	}
	return nil
}

// drift returns a line for each file under root that is not what gen would
// write.
func drift(root string) ([]string, error) {
	var lines []string
	for _, out := range outputs {
		files, err := out.generate(root)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", out.name, err)
		}
		for name, want := range files {
			switch have, err := os.ReadFile(filepath.Join(root, name)); {
			case os.IsNotExist(err):
				lines = append(lines, name+" is missing")
			case err != nil:
				return nil, err
			case string(have) != string(want):
				lines = append(lines, name+firstDifference(string(have), string(want)))
			}
		}
	}
	slices.Sort(lines)
	return lines, nil
}

func firstDifference(have, want string) string {
	h, w := strings.Split(have, "\n"), strings.Split(want, "\n")
	for i := range min(len(h), len(w)) {
		if h[i] != w[i] {
			return fmt.Sprintf(" differs in line %d: has %q, would have %q", i+1, h[i], w[i])
		}
	}
	return fmt.Sprintf(" has %d lines, would have %d", len(h), len(w))
}
