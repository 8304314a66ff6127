package httpapi_test

import (
	"errors"
	"strings"
	"testing"

	"pallas/internal/httpapi"
)

func FuzzIfMatch(f *testing.F) {
	for _, s := range []string{"", "*", `"17"`, `"17.abc"`, `W/"17"`, `"0"`, `"`, `""`, `"17","18"`, "17", `"17`, `"-1"`, `"99999999999999999999"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := httpapi.IfMatch(s)
		switch {
		case err != nil:
			var p *httpapi.Problem
			if !errors.As(err, &p) || p.Errors[0].Field != "header.If-Match" {
				t.Fatalf("%q: %v", s, err)
			}
		case n == 0:
			if s != "" && s != "*" {
				t.Fatalf("%q matches everything", s)
			}
		case !strings.HasPrefix(s, `"`) || !strings.HasSuffix(s, `"`):
			t.Fatalf("%q is revision %d", s, n)
		}
	})
}

func TestETag(t *testing.T) {
	a, b := httpapi.ETag(17, httpapi.VM{Name: "a"}), httpapi.ETag(17, httpapi.VM{Name: "b"})
	if a == b || a != httpapi.ETag(17, httpapi.VM{Name: "a"}) || httpapi.ETag(17, nil) != `"17"` {
		t.Errorf("tags %s %s %s", a, b, httpapi.ETag(17, nil))
	}
	if n, err := httpapi.IfMatch(a); n != 17 || err != nil {
		t.Errorf("%s is revision %d, %v", a, n, err)
	}
	for header, hit := range map[string]bool{a: true, "W/" + a: true, `"1", ` + a: true, "*": true, b: false, "": false} {
		if got := httpapi.NotModified(header, a); got != hit {
			t.Errorf("If-None-Match %s against %s: %v", header, a, got)
		}
	}
}
