package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"pallas/events"
)

const draft = "https://json-schema.org/draft/2020-12/schema"

// eventSchemas describes the payload of each type of event, and the decision
// around it, as JSON Schema.
func eventSchemas(root string) (map[string][]byte, error) {
	m, err := parse(filepath.Join(root, "events"))
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{}
	for _, info := range events.Types() {
		t, ok := m.structs[info.Name]
		if !ok {
			return nil, fmt.Errorf("%s has no struct type", info.Name)
		}
		name := fmt.Sprintf("%s.v%d.schema.json", info.Name, info.Version)
		if files["schema/events/"+name], err = m.document(name, t); err != nil {
			return nil, err
		}
	}
	decision := m.structs["stored"]
	if len(decision.fields) == 0 {
		return nil, fmt.Errorf("the stored form of a decision has no struct type")
	}
	files["schema/events/decision.schema.json"], err = m.document("decision.schema.json", decision)
	return files, err
}

// document is the schema file of one struct type, with the types it needs
// beside it.
func (m *model) document(name string, t structType) ([]byte, error) {
	w := &writer{model: m, defs: map[string]object{}}
	root, err := w.structure(t)
	if err != nil {
		return nil, err
	}
	doc := object{{"$schema", draft}, {"$id", "urn:pallas:schema:events:" + strings.TrimSuffix(name, ".schema.json")}}
	doc = append(doc, root...)
	if len(w.defs) > 0 {
		var defs object
		for _, k := range slices.Sorted(maps.Keys(w.defs)) {
			defs = append(defs, member{k, w.defs[k]})
		}
		doc = append(doc, member{"$defs", defs})
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(doc); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return b.Bytes(), nil
}

// writer turns Go types into schemas and collects those of named types.
type writer struct {
	model *model
	defs  map[string]object
}

func (w *writer) structure(t structType) (object, error) {
	properties, required := object{}, []string{}
	for _, f := range t.fields {
		s, err := w.schema(f.expr)
		if err != nil {
			return nil, fmt.Errorf("%s.%s: %w", t.name, f.name, err)
		}
		if !f.optional {
			required = append(required, f.name)
			s = orNull(f.expr, s)
		}
		if f.doc != "" {
			// A description beside $ref is the field's own.
			s = append(object{{"description", sentence(f.doc)}}, s.without("description")...)
		}
		properties = append(properties, member{f.name, s})
	}
	out := object{{"title", title(t)}, {"description", t.doc}, {"type", "object"}, {"properties", properties}}
	if len(required) > 0 {
		out = append(out, member{"required", required})
	}
	return append(out, member{"additionalProperties", false}), nil
}

func title(t structType) string {
	switch t.name {
	case "stored":
		return "Decision"
	case "storedEvent":
		return "Event"
	}
	return t.name
}

// orNull lets a list or map that is always written be null: Go writes an empty
// one so.
func orNull(e ast.Expr, s object) object {
	switch e.(type) {
	case *ast.ArrayType, *ast.MapType:
		out := slices.Clone(s)
		for i, m := range out {
			if m.name == "type" {
				out[i].value = []any{m.value, "null"}
			}
		}
		return out
	}
	return s
}

func (w *writer) schema(e ast.Expr) (object, error) {
	switch e := e.(type) {
	case *ast.StarExpr:
		return w.schema(e.X)
	case *ast.ArrayType:
		items, err := w.schema(e.Elt)
		return object{{"type", "array"}, {"items", items}}, err
	case *ast.MapType:
		values, err := w.schema(e.Value)
		return object{{"type", "object"}, {"additionalProperties", values}}, err
	case *ast.SelectorExpr:
		switch name := fmt.Sprintf("%s.%s", e.X, e.Sel); name {
		case "time.Time":
			return object{{"type", "string"}, {"format", "date-time"}}, nil
		case "json.RawMessage":
			return object{}, nil
		}
	case *ast.Ident:
		return w.named(e.Name)
	}
	return nil, fmt.Errorf("no schema for %T", e)
}

func (w *writer) named(name string) (object, error) {
	switch name {
	case "string":
		return object{{"type", "string"}}, nil
	case "bool":
		return object{{"type", "boolean"}}, nil
	case "int", "int64":
		return object{{"type", "integer"}, {"format", "int64"}}, nil
	case "float64":
		return object{{"type", "number"}, {"format", "double"}}, nil
	case "int32":
		return object{{"type", "integer"}, {"format", "int32"}}, nil
	case "uint64":
		return object{{"type", "integer"}, {"format", "uint64"}, {"minimum", 0}}, nil
	}
	if t, ok := w.model.strings[name]; ok {
		s := object{{"description", t.doc}, {"type", "string"}}
		if len(t.values) > 0 {
			var values []string
			for _, v := range t.values {
				values = append(values, v.value)
			}
			s = append(s, member{"enum", values})
		}
		w.defs[name] = s
		return reference(name), nil
	}
	t, ok := w.model.structs[name]
	if !ok {
		return nil, fmt.Errorf("unknown type %s", name)
	}
	if _, ok := w.defs[name]; !ok {
		w.defs[name] = nil // a type may contain itself
		s, err := w.structure(t)
		if err != nil {
			return nil, err
		}
		w.defs[name] = s
	}
	return reference(name), nil
}

func reference(name string) object { return object{{"$ref", "#/$defs/" + name}} }

// object is a JSON object that keeps the order of its members.
type object []member

type member struct {
	name  string
	value any
}

func (o object) without(name string) object {
	return slices.DeleteFunc(slices.Clone(o), func(m member) bool { return m.name == name })
}

// MarshalJSON writes the members in their order; empty strings are left out.
func (o object) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	b.WriteByte('{')
	for _, m := range o {
		if m.value == "" {
			continue
		}
		if b.Len() > 1 {
			b.WriteByte(',')
		}
		if err := e.Encode(m.name); err != nil {
			return nil, err
		}
		b.WriteByte(':')
		if err := e.Encode(m.value); err != nil {
			return nil, err
		}
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}
