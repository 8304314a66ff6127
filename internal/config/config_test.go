package config_test

import (
	"strings"
	"testing"
	"time"

	"pallas/internal/config"
)

type sample struct {
	Name string `yaml:"name"`
	Log  struct {
		Level string `yaml:"level"`
	} `yaml:"log"`
	Grace config.Duration `yaml:"grace"`
	Count int             `yaml:"count"`
}

func TestDecode(t *testing.T) {
	s := sample{Name: "default", Count: 3}
	if err := config.Decode("f.yaml", strings.NewReader("# only a comment\nlog:\n  level: debug\ngrace: 90s\n"), &s); err != nil {
		t.Fatal(err)
	}
	if s.Name != "default" || s.Count != 3 || s.Log.Level != "debug" || time.Duration(s.Grace) != 90*time.Second {
		t.Errorf("got %+v", s)
	}
	if err := config.Decode("f.yaml", strings.NewReader(""), &s); err != nil {
		t.Errorf("empty file: %v", err)
	}
}

func TestDecodeRefuses(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"unknown key":        {"name: x\nnaem: y\n", `f.yaml:2: unknown field "naem"`},
		"unknown nested key": {"log:\n  levle: x\n", `f.yaml:2: unknown field "levle"`},
		"wrong type":         {"count: many\n", `f.yaml:1: count: "many" is not`},
		"not yaml":           {"a: [\n", "f.yaml:1: "},
		"duplicate key":      {"name: a\nname: b\n", "f.yaml:2: "},
		"duration":           {"grace: soon\n", "not a duration"},
	} {
		t.Run(name, func(t *testing.T) {
			var s sample
			err := config.Decode("f.yaml", strings.NewReader(c.in), &s)
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want one line with %q", err, c.want)
			}
		})
	}
	if err := config.Load("no/such/file.yaml", &sample{}); err == nil || err.Error() != "no/such/file.yaml: no such file or directory" {
		t.Errorf("missing file: %v", err)
	}
}
