package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// model is what a package's source says of its types. The source is read, not
// the compiled types, because only it has the comments.
type model struct {
	structs map[string]structType
	strings map[string]stringType
}

type structType struct {
	name   string
	file   string // such as "device.go"
	doc    string
	fields []field
}

type field struct {
	name     string // in JSON
	doc      string
	optional bool
	expr     ast.Expr
}

// stringType is a string with a name, and the constants declared for it.
type stringType struct {
	doc    string
	values []constant
}

type constant struct{ value, doc string }

// parse reads the sources of one package, without its tests.
func parse(dir string) (*model, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	m := &model{structs: map[string]structType{}, strings: map[string]stringType{}}
	fset := token.NewFileSet()
	var parsed []*ast.File
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, path, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		parsed = append(parsed, f)
		if err := m.types(filepath.Base(path), f); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	if len(m.structs) == 0 {
		return nil, fmt.Errorf("no types in %s", dir)
	}
	for _, f := range parsed {
		if err := m.constants(f); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *model) types(file string, f *ast.File) error {
	for _, decl := range f.Decls {
		gen, ok := decl.(*ast.GenDecl)
		if !ok || gen.Tok != token.TYPE {
			continue
		}
		for _, spec := range gen.Specs {
			ts := spec.(*ast.TypeSpec)
			doc := text(ts.Doc, gen.Doc)
			switch t := ts.Type.(type) {
			case *ast.StructType:
				fields, err := fields(t)
				if err != nil {
					return fmt.Errorf("%s: %w", ts.Name.Name, err)
				}
				m.structs[ts.Name.Name] = structType{name: ts.Name.Name, file: file, doc: doc, fields: fields}
			case *ast.Ident:
				if t.Name == "string" {
					m.strings[ts.Name.Name] = stringType{doc: doc}
				}
			}
		}
	}
	return nil
}

// fields returns the fields that have a JSON name.
func fields(t *ast.StructType) ([]field, error) {
	var out []field
	for _, f := range t.Fields.List {
		if f.Tag == nil {
			continue
		}
		tag, err := strconv.Unquote(f.Tag.Value)
		if err != nil {
			return nil, err
		}
		name, options, _ := strings.Cut(reflect.StructTag(tag).Get("json"), ",")
		if name == "" || name == "-" {
			continue
		}
		opts := strings.Split(options, ",")
		out = append(out, field{
			name: name, doc: text(f.Doc, f.Comment), expr: f.Type,
			optional: slices.Contains(opts, "omitempty") || slices.Contains(opts, "omitzero"),
		})
	}
	return out, nil
}

// constants adds the string constants of a named type to it.
func (m *model) constants(f *ast.File) error {
	for _, decl := range f.Decls {
		gen, ok := decl.(*ast.GenDecl)
		if !ok || gen.Tok != token.CONST {
			continue
		}
		for _, spec := range gen.Specs {
			vs := spec.(*ast.ValueSpec)
			ident, ok := vs.Type.(*ast.Ident)
			if !ok {
				continue
			}
			named, ok := m.strings[ident.Name]
			if !ok {
				continue
			}
			for _, v := range vs.Values {
				lit, ok := v.(*ast.BasicLit)
				if !ok {
					return fmt.Errorf("constant %s of %s is not a literal", vs.Names[0].Name, ident.Name)
				}
				value, err := strconv.Unquote(lit.Value)
				if err != nil {
					return err
				}
				named.values = append(named.values, constant{value: value, doc: text(vs.Comment)})
			}
			m.strings[ident.Name] = named
		}
	}
	return nil
}

// text returns the first comment that there is, as running text: paragraphs are
// separated by an empty line.
func text(groups ...*ast.CommentGroup) string {
	for _, g := range groups {
		if s := strings.TrimSpace(g.Text()); s != "" {
			paragraphs := strings.Split(s, "\n\n")
			for i, p := range paragraphs {
				paragraphs[i] = strings.Join(strings.Fields(p), " ")
			}
			return unlinked.Replace(strings.Join(paragraphs, "\n\n"))
		}
	}
	return ""
}

// unlinked takes the brackets off Go doc links, which mean nothing elsewhere.
var unlinked = strings.NewReplacer("[VM]", "VM", "[Unknown]", "Unknown", "[Event]", "Event")

// sentence makes a comment that began as a remark look like a sentence.
func sentence(s string) string {
	if s == "" {
		return ""
	}
	s = strings.ToUpper(s[:1]) + s[1:]
	if !strings.HasSuffix(s, ".") {
		s += "."
	}
	return s
}
