// Package layers holds the test of the import rules of docs/architecture.md.
package layers

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

type pkg struct {
	ImportPath string
	Imports    []string
	Deps       []string
	Module     *struct{ Main bool }
}

// layer gives the layer of a package of ours; imports point down only. The
// longest matching prefix counts.
var layer = map[string]int{
	"pallas/mqttgw/wire": 1, "pallas/mqttgw/pki": 1, "pallas/events": 1, "pallas/events/labels": 0, "pallas/events/merkle": 1, "pallas/schema": 1,
	"pallas/internal/config": 1, "pallas/internal/netlab": 1, "pallas/internal/client": 1, "pallas/internal/version": 1,
	"pallas/agent/hypervisor": 1, // speaks the inventory of mqttgw/wire
	"pallas/commands":         2, "pallas/projections": 2, "pallas/events/jsstore": 2, "pallas/events/eventstest": 2,
	"pallas/agent": 2, "pallas/agent/hypervisor/esxi": 2, "pallas/agent/hypervisor/fake": 2, "pallas/agent/hypervisor/hypervisortest": 2,
	"pallas/internal/auth": 2, "pallas/internal/httpapi": 2,
	"pallas/web": 3, "pallas/commands/commandhttp": 3, "pallas/commands/accesshttp": 3, "pallas/projections/queryhttp": 3,
	"pallas/mqttgw/enroll": 3, "pallas/mqttgw": 3, "pallas/commands/reactors": 3,
	"pallas/internal/server": 4, "pallas/internal/servertest": 4, "pallas/schema/gen": 5,
	"pallas/cmd": 5, "pallas/internal/layers": 5, "pallas/internal/benchreport": 5, "pallas/internal/faults": 5,
}

// forbidden lists, for packages under a prefix, what they must not import, nor
// any package of ours that they depend on: what a library needs for itself is
// its own affair. An exception is a longer prefix with its own list.
var forbidden = map[string][]string{
	"pallas/commands": {
		"pallas/projections", "database/sql", "net/http", "github.com/nats-io/", "github.com/mattn/go-sqlite3",
		"github.com/danielgtaylor/huma", "github.com/vmware/govmomi",
	},
	"pallas/commands/reactors": {
		"pallas/projections", "database/sql", "github.com/nats-io/", "github.com/mattn/go-sqlite3",
		"github.com/danielgtaylor/huma", "github.com/vmware/govmomi",
	},
	"pallas/commands/accesshttp":  {"pallas/projections", "database/sql", "github.com/nats-io/nats-server", "github.com/vmware/govmomi"},
	"pallas/commands/commandhttp": {"pallas/projections", "database/sql", "github.com/nats-io/nats-server", "github.com/vmware/govmomi"},
	"pallas/projections":          {"pallas/commands", "github.com/nats-io/", "github.com/danielgtaylor/huma", "github.com/vmware/govmomi"},
	"pallas/projections/queryhttp": {
		"pallas/commands", "github.com/nats-io/nats-server", "github.com/vmware/govmomi",
	},
	"pallas/events":         {"github.com/nats-io/", "net/http", "database/sql", "github.com/danielgtaylor/huma"},
	"pallas/events/jsstore": {"github.com/nats-io/nats-server", "github.com/mattn/go-sqlite3", "github.com/danielgtaylor/huma"},
	"pallas/mqttgw":         {"github.com/vmware/govmomi", "github.com/mattn/go-sqlite3", "pallas/projections", "pallas/agent"},
	"pallas/agent": {
		"pallas/events", "pallas/commands", "pallas/projections", "pallas/internal", "github.com/nats-io/",
		"github.com/mattn/go-sqlite3", "github.com/danielgtaylor/huma", "github.com/vmware/govmomi",
	},
	"pallas/agent/hypervisor/esxi": {
		"pallas/events", "pallas/commands", "pallas/projections", "pallas/internal", "github.com/nats-io/",
		"github.com/mattn/go-sqlite3", "github.com/danielgtaylor/huma",
	},
	"pallas/cmd/pallas-agent": {
		"pallas/events", "pallas/commands", "pallas/projections", "github.com/nats-io/", "github.com/mattn/go-sqlite3",
		"github.com/danielgtaylor/huma", "github.com/vmware/govmomi/simulator",
	},
	"pallas/cmd/pallas-sim": {
		"pallas/events", "pallas/commands", "pallas/projections", "pallas/internal/server", "github.com/nats-io/", "github.com/mattn/go-sqlite3",
		"github.com/danielgtaylor/huma", "github.com/vmware/govmomi",
	},
	"pallas/cmd/pallas":  {"pallas/internal/server", "github.com/nats-io/nats-server", "github.com/mattn/go-sqlite3", "github.com/vmware/govmomi"},
	"pallas/cmd/pallasd": {"github.com/vmware/govmomi", "pallas/agent"},
}

func TestLayers(t *testing.T) {
	pkgs := list(t)
	if len(pkgs) < 15 {
		t.Fatalf("found only %d packages", len(pkgs))
	}
	ours := make(map[string]pkg)
	for _, p := range pkgs {
		ours[p.ImportPath] = p
	}
	for _, p := range pkgs {
		own, ok := longest(layer, p.ImportPath)
		if !ok {
			t.Errorf("%s has no layer: give it one here and in docs/architecture.md", p.ImportPath)
			continue
		}
		for _, imp := range p.Imports {
			if to, ok := longest(layer, imp); ok && strings.HasPrefix(imp, "pallas/") && to > own {
				t.Errorf("%s (layer %d) imports %s (layer %d): imports point down only", p.ImportPath, own, imp, to)
			}
		}
		rules, _ := longest(forbidden, p.ImportPath)
		for _, dep := range append(p.Deps, p.ImportPath) {
			for _, imp := range ours[dep].Imports {
				for _, no := range rules {
					if within(imp, strings.TrimSuffix(no, "/")) {
						t.Errorf("%s must not depend on %s (imported by %s)", p.ImportPath, imp, dep)
					}
				}
			}
		}
		for _, imp := range p.Imports {
			if direct(imp, "github.com/mattn/go-sqlite3") && p.ImportPath != "pallas/projections" {
				t.Errorf("%s imports SQLite: only projections may", p.ImportPath)
			}
			if direct(imp, "github.com/vmware/govmomi") && !within(p.ImportPath, "pallas/agent/hypervisor/esxi", "pallas/cmd/demo") {
				t.Errorf("%s imports %s: only the ESXi driver and the demo may", p.ImportPath, imp)
			}
			if direct(imp, "github.com/nats-io/nats-server/v2") && !within(p.ImportPath, "pallas/mqttgw", "pallas/internal/server") {
				t.Errorf("%s imports %s: only the device door and the server may", p.ImportPath, imp)
			}
			if direct(imp, "github.com/danielgtaylor/huma/v2") && !within(p.ImportPath, "pallas/commands/commandhttp", "pallas/commands/accesshttp", "pallas/projections/queryhttp",
				"pallas/mqttgw/enroll", "pallas/internal/httpapi", "pallas/internal/server", "pallas/schema/gen") {
				t.Errorf("%s imports %s: only HTTP packages may", p.ImportPath, imp)
			}
		}
	}
}

func direct(imp, module string) bool { return imp == module || strings.HasPrefix(imp, module+"/") }

func within(path string, roots ...string) bool {
	for _, r := range roots {
		if path == r || strings.HasPrefix(path, r+"/") {
			return true
		}
	}
	return false
}

func longest[V any](m map[string]V, path string) (v V, ok bool) {
	best := -1
	for k, x := range m {
		if within(path, k) && len(k) > best {
			v, ok, best = x, true, len(k)
		}
	}
	return v, ok
}

func list(t *testing.T) (out []pkg) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-json=ImportPath,Imports,Deps,Module", "pallas/...")
	b, err := cmd.Output()
	if err != nil {
		var ee *exec.ExitError
		if errors.As(err, &ee) {
			t.Fatalf("go list: %s", ee.Stderr)
		}
		t.Fatal(err)
	}
	for d := json.NewDecoder(strings.NewReader(string(b))); ; {
		var p pkg
		switch err := d.Decode(&p); {
		case errors.Is(err, io.EOF):
			return out
		case err != nil:
			t.Fatal(err)
		case p.Module != nil && p.Module.Main:
			out = append(out, p)
		}
	}
}
