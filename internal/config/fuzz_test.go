package config_test

import (
	"errors"
	"strings"
	"testing"

	"pallas/internal/config"
)

// FuzzDecode checks that every file is read or refused with one line.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{"", "name: x\ncount: 3\ngrace: 90s\nlog: {level: debug}\n", "a: [\n", "count: many\n", "grace: soon\n", "log: &a\n  level: *a\n", "name: !!binary x\n", "? {\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var v sample
		err := config.Decode("f.yaml", strings.NewReader(s), &v)
		if err == nil {
			return
		}
		var e *config.Error
		if !errors.As(err, &e) || e.Line < 0 || e.Message == "" || strings.Contains(err.Error(), "\n") {
			t.Fatalf("%q: %q, want one line", s, err)
		}
	})
}
