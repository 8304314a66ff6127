package main

import (
	"fmt"
	"go/ast"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"pallas/events"
)

const eventIntroduction = `# Events

Everything that ever happened to a fleet, by type. This page is generated from
the source by ` + "`go run ./schema/gen`" + `; the same as JSON Schema (2020-12) is in
[schema/events](../../schema/events).

The log is a sequence of **decisions**: one or more events of one aggregate that
became true together. A decision is one message in the stream ` + "`EVENTS`" + `, on
the subject of its aggregate, ` + "`ev.<kind>.<id>`" + `; its place in the stream is its
**position**, and the position of an aggregate's newest decision is the
aggregate's **revision**.

The shape of a type and version never changes after a release. A new meaning gets
a new version, and readers lift the old one; a type or version that a reader does
not know is kept as it is. Times are RFC 3339 in UTC. Payloads carry no secret
and no personal data beyond a user id.
`

// sections are the kinds of aggregate and the source file that has their
// events.
var sections = []struct{ file, title, subject string }{
	{"device.go", "Device", "ev.device.<device id>"},
	{"trust.go", "Trust in a device", "ev.device.<device id>"},
	{"certificate.go", "Trust between device and manager", "ev.device.<device id>"},
	{"inventory.go", "Inventory", "ev.inventory.<device id>"},
	{"task.go", "Tasks", "ev.tasks.<device id>"},
	{"token.go", "Join tokens", "ev.token.<token id>"},
	{"access.go", "Who may do what", "ev.access.00000000-0000-0000-0000-000000000000"},
	{"user.go", "How users get in", "ev.user.<user id>"},
	{"authority.go", "The CA of the devices", "ev.authority.devices"},
}

// eventReference writes docs/reference/events.md.
func eventReference(root string) (map[string][]byte, error) {
	m, err := parse(filepath.Join(root, "events"))
	if err != nil {
		return nil, err
	}
	p := &page{model: m}
	p.WriteString(eventIntroduction)

	p.WriteString("\n| event | version | when |\n|---|---|---|\n")
	for _, info := range events.Types() {
		when, _, _ := strings.Cut(m.structs[info.Name].doc, "\n\n")
		fmt.Fprintf(p, "| [%s](#%s) | %d | %s |\n", info.Name, strings.ToLower(info.Name), info.Version, cell(when))
	}

	p.WriteString("\n## The decision\n\nThe message of a decision; its subject and position are the log's own.\n")
	p.fields(m.structs["stored"])
	p.WriteString("\nEach of its events:\n")
	p.fields(m.structs["storedEvent"])

	left := map[string]bool{}
	for _, info := range events.Types() {
		left[info.Name] = true
	}
	for _, s := range sections {
		fmt.Fprintf(p, "\n## %s\n\nSubject `%s`.\n", s.title, s.subject)
		for _, info := range events.Types() {
			t := m.structs[info.Name]
			if t.file != s.file {
				continue
			}
			delete(left, info.Name)
			fmt.Fprintf(p, "\n### %s\n\n%s\n", info.Name, t.doc)
			p.fields(t)
		}
	}
	if len(left) > 0 {
		return nil, fmt.Errorf("no section for %v", slices.Sorted(maps.Keys(left)))
	}

	p.WriteString("\n## Types of fields\n")
	written := map[string]bool{}
	for len(written) < len(p.used) {
		for _, name := range slices.Clone(p.used) {
			if !written[name] {
				written[name] = true
				p.named(name)
			}
		}
	}
	return map[string][]byte{"docs/reference/events.md": []byte(p.String())}, nil
}

// page is Markdown in the making.
type page struct {
	strings.Builder
	model *model
	used  []string // named types that fields have, in the order of their use
}

func (p *page) fields(t structType) {
	if len(t.fields) == 0 {
		p.WriteString("\nNo fields.\n")
		return
	}
	p.WriteString("\n| field | type | |\n|---|---|---|\n")
	for _, f := range t.fields {
		optional := ""
		if f.optional {
			optional = ", optional"
		}
		fmt.Fprintf(p, "| `%s` | %s%s | %s |\n", f.name, p.kind(f.expr), optional, cell(sentence(f.doc)))
	}
}

func (p *page) named(name string) {
	fmt.Fprintf(p, "\n### %s\n", name)
	if t, ok := p.model.structs[name]; ok {
		fmt.Fprintf(p, "\n%s\n", t.doc)
		p.fields(t)
		return
	}
	t := p.model.strings[name]
	fmt.Fprintf(p, "\n%s\n", t.doc)
	if len(t.values) > 0 {
		p.WriteString("\n| value | |\n|---|---|\n")
		for _, v := range t.values {
			fmt.Fprintf(p, "| `%s` | %s |\n", v.value, cell(sentence(v.doc)))
		}
	}
}

// kind names a Go type in words that are not Go's.
func (p *page) kind(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return p.kind(e.X)
	case *ast.ArrayType:
		return "list of " + p.kind(e.Elt)
	case *ast.MapType:
		return "map of " + p.kind(e.Value)
	case *ast.SelectorExpr:
		if e.Sel.Name == "Time" {
			return "time"
		}
		return "any"
	case *ast.Ident:
		switch e.Name {
		case "string":
			return "text"
		case "bool":
			return "boolean"
		case "int", "int32", "int64", "uint64":
			return "integer"
		case "storedEvent":
			return "event"
		}
		if !slices.Contains(p.used, e.Name) {
			p.used = append(p.used, e.Name)
		}
		return fmt.Sprintf("[%s](#%s)", e.Name, strings.ToLower(e.Name))
	}
	return "?"
}

// cell makes text fit into a cell of a table.
func cell(s string) string {
	return strings.NewReplacer("\n\n", " ", "|", `\|`, "<", "&lt;").Replace(s)
}
