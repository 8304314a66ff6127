package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pallas/events"
)

const root = "../.."

func TestDrift(t *testing.T) {
	lines, err := drift(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range lines {
		t.Errorf("%s (go run ./schema/gen)", line)
	}
}

func TestRunWritesWhatDriftWants(t *testing.T) {
	dir := t.TempDir()
	if err := run(dir); err == nil {
		t.Error("run in a folder that is not a repository gave no error")
	}
	if err := os.CopyFS(filepath.Join(dir, "events"), os.DirFS(filepath.Join(root, "events"))); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if lines, err := drift(dir); err != nil || len(lines) < len(events.Types()) {
		t.Errorf("without files drift says %v, %v", lines, err)
	}
	if err := run(dir); err != nil {
		t.Fatal(err)
	}
	if lines, err := drift(dir); err != nil || len(lines) > 0 {
		t.Errorf("after run drift says %v, %v", lines, err)
	}
	path := filepath.Join(dir, "docs/reference/events.md")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(b), "DeviceLost", "DeviceGone", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if lines, err := drift(dir); err != nil || len(lines) != 1 || !strings.Contains(lines[0], "differs in line") {
		t.Errorf("after a change drift says %v, %v", lines, err)
	}
}

// TestGoldensFitSchemas holds the examples of events against their schemas.
func TestGoldensFitSchemas(t *testing.T) {
	load := func(t *testing.T, path string) any {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			t.Fatal(err)
		}
		var v any
		if err := json.Unmarshal(b, &v); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		return v
	}
	check := func(t *testing.T, schema, instance string) {
		t.Helper()
		s := load(t, schema).(map[string]any)
		for _, problem := range validate(s, s, "", load(t, instance)) {
			t.Errorf("%s: %s", instance, problem)
		}
	}
	for _, info := range events.Types() {
		for v := 1; v <= info.Version; v++ {
			name := fmt.Sprintf("%s.v%d", info.Name, v)
			check(t, "schema/events/"+name+".schema.json", "events/testdata/golden/"+name+".json")
		}
	}
	check(t, "schema/events/decision.schema.json", "events/testdata/golden/decision.json")

	s := load(t, "schema/events/VMObserved.v1.schema.json").(map[string]any)
	for _, bad := range []string{
		`7`, `{}`, `{"vm":{}}`, `{"vm":{"id":"a","name":"n","power":"on","cpus":1,"memoryMiB":1,"tools":"running","more":1}}`,
		`{"vm":{"id":"a","name":"n","power":"sideways","cpus":1,"memoryMiB":1,"tools":"running"}}`,
		`{"vm":{"id":"a","name":"n","power":"on","cpus":1.5,"memoryMiB":1,"tools":"running"}}`,
		`{"vm":{"id":"a","name":"n","power":"on","cpus":1,"memoryMiB":1,"tools":"running","ips":[7]}}`,
	} {
		var v any
		if err := json.Unmarshal([]byte(bad), &v); err != nil {
			t.Fatal(err)
		}
		if len(validate(s, s, "", v)) == 0 {
			t.Errorf("%s fits the schema of VMObserved", bad)
		}
	}
}

// validate checks an instance against the keywords that gen writes, and reports
// any other keyword.
func validate(root, schema map[string]any, at string, v any) (problems []string) {
	bad := func(format string, args ...any) {
		problems = append(problems, at+": "+fmt.Sprintf(format, args...))
	}
	object, _ := v.(map[string]any)
	for keyword, arg := range schema {
		switch keyword {
		case "$schema", "$id", "$defs", "title", "description", "format":
		case "$ref":
			name := strings.TrimPrefix(arg.(string), "#/$defs/")
			def, ok := root["$defs"].(map[string]any)[name].(map[string]any)
			if !ok {
				bad("$ref to %v, which is not there", arg)
				continue
			}
			problems = append(problems, validate(root, def, at, v)...)
		case "type":
			types, ok := arg.([]any)
			if !ok {
				types = []any{arg}
			}
			fits := false
			for _, name := range types {
				fits = fits || isType(name.(string), v)
			}
			if !fits {
				bad("%v is not of type %v", v, arg)
			}
		case "enum":
			found := false
			for _, e := range arg.([]any) {
				found = found || e == v
			}
			if !found {
				bad("%v is none of %v", v, arg)
			}
		case "minimum":
			if n, ok := v.(float64); ok && n < arg.(float64) {
				bad("%v is less than %v", n, arg)
			}
		case "items":
			list, _ := v.([]any)
			for i, e := range list {
				problems = append(problems, validate(root, arg.(map[string]any), fmt.Sprintf("%s/%d", at, i), e)...)
			}
		case "required":
			for _, name := range arg.([]any) {
				if _, ok := object[name.(string)]; object != nil && !ok {
					bad("%v is missing", name)
				}
			}
		case "properties":
			for name, s := range arg.(map[string]any) {
				if e, ok := object[name]; ok {
					problems = append(problems, validate(root, s.(map[string]any), at+"/"+name, e)...)
				}
			}
		case "additionalProperties":
			known, _ := schema["properties"].(map[string]any)
			for name, e := range object {
				if _, ok := known[name]; ok {
					continue
				}
				if s, ok := arg.(map[string]any); ok {
					problems = append(problems, validate(root, s, at+"/"+name, e)...)
				} else if arg == false {
					bad("%s is not a property", name)
				}
			}
		default:
			bad("the schema has the keyword %s, which this test does not know", keyword)
		}
	}
	return problems
}

func isType(name string, v any) bool {
	switch v := v.(type) {
	case nil:
		return name == "null"
	case bool:
		return name == "boolean"
	case string:
		return name == "string"
	case float64:
		return name == "number" || name == "integer" && v == float64(int64(v))
	case []any:
		return name == "array"
	case map[string]any:
		return name == "object"
	}
	return false
}
