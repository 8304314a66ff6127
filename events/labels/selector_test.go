package labels

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	for in, want := range map[string]string{
		"":                             "",
		"  ":                           "",
		"site":                         "site",
		"!site":                        "!site",
		" ! site ":                     "!site",
		"site=fra":                     "site=fra",
		"site==fra":                    "site=fra",
		"site = fra":                   "site=fra",
		"site!=fra":                    "site!=fra",
		"site != fra":                  "site!=fra",
		"site in (fra,muc)":            "site in (fra,muc)",
		"site in(muc ,\tfra, muc)":     "site in (fra,muc)",
		"site notin (fra)":             "site notin (fra)",
		"a=1,b!=2 , c in (3),!d, e":    "a=1,b!=2,c in (3),!d,e",
		"in in (in,notin)":             "in in (in,notin)",
		"notin notin (in)":             "notin notin (in)",
		"in":                           "in",
		"example.com/site_1=a.b-c_D":   "example.com/site_1=a.b-c_D",
		"a=" + strings.Repeat("x", 63): "a=" + strings.Repeat("x", 63),
		"A9=9":                         "A9=9",
	} {
		s, err := Parse(in)
		if err != nil || s.String() != want {
			t.Errorf("%q: %q, %v; want %q", in, s, err, want)
		}
		if s.Empty() != (want == "") {
			t.Errorf("%q: Empty is %v", in, s.Empty())
		}
	}
}

func TestParseErrors(t *testing.T) {
	const key = `is not a label key: want up to 63 letters, digits, '.', '_' or '-', with a letter or digit at both ends`
	for in, want := range map[string]string{
		"s=fra,":                         "selector: position 7: want a label key, not the end",
		",a":                             `selector: position 1: want a label key, not ','`,
		"site1=":                         "selector: position 7: want a value after '='",
		"site==":                         "selector: position 7: want a value after '=='",
		"site!=,a":                       "selector: position 7: want a value after '!='",
		"site!fra":                       `selector: position 6: want '=' after '!', not 'f'`,
		"site fra":                       `selector: position 6: want '=', '!=', 'in', 'notin' or ',' after the key, not "fra"`,
		"site IN (fra)":                  `selector: position 6: want '=', '!=', 'in', 'notin' or ',' after the key, not "IN"`,
		"site in fra":                    `selector: position 9: want '(' after 'in', not 'f'`,
		"site in ()":                     "selector: position 10: want a value after '('",
		"site in (fra,)":                 "selector: position 14: want a value after ','",
		"site in (a b)":                  `selector: position 12: want ',' or ')' after a value, not 'b'`,
		"site in (a":                     "selector: position 11: want ',' or ')' after a value, not the end",
		"site=a;b":                       `selector: position 7: want ',' or the end, not ';'`,
		"site=a b":                       `selector: position 8: want ',' or the end, not 'b'`,
		"!site=a":                        `selector: position 6: want ',' or the end, not '='`,
		"-site=a":                        `selector: position 1: "-site" ` + key,
		"a=1,/x":                         `selector: position 5: "/x" ` + key,
		"a/b/c":                          `selector: position 1: "a/b/c" ` + key,
		"UP/x":                           `selector: position 1: "UP/x" ` + key,
		"a=x/y":                          `selector: position 3: "x/y" is not a label value: want up to 63 letters, digits, '.', '_' or '-', with a letter or digit at both ends`,
		"a=b-":                           `selector: position 3: "b-" is not a label value: want up to 63 letters, digits, '.', '_' or '-', with a letter or digit at both ends`,
		"ü=1":                            `selector: position 1: want a label key, not 'ü'`,
		"a=1,ö":                          `selector: position 5: want a label key, not 'ö'`,
		"a='1'":                          `selector: position 3: want a value after '='`,
		"a=1\n,b":                        `selector: position 4: want ',' or the end, not '\n'`,
		"a>1":                            `selector: position 2: want ',' or the end, not '>'`,
		"site in (a) (b)":                `selector: position 13: want ',' or the end, not '('`,
		strings.Repeat("a", maxLength+1): "selector: position 4097: too long: want at most 4096 bytes",
		strings.Repeat("a,", maxRequirements) + "a":  "selector: position 65: too many requirements: want at most 32",
		"a in (" + strings.Repeat("b,", maxValues+5): fmt.Sprintf("selector: position %d: too many values: want at most 256", 7+2*maxValues),
	} {
		_, err := Parse(in)
		var e *SyntaxError
		if !errors.As(err, &e) || err.Error() != want {
			t.Errorf("%q:\n got %v\nwant %s", in, err, want)
		}
	}
}

// FuzzParse checks that an error points into the text, and that the
// canonical spelling means the same.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "a=b", "a==b", "a!=b", "a in (x,y)", "a notin (x, y)", "!a", "a", "a=1,b", "a=", "a in (", "ü", "\xff", "a in (x,y),b!=c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		sel, err := Parse(s)
		if err != nil {
			var e *SyntaxError
			if !errors.As(err, &e) {
				t.Fatalf("%q: %v is no SyntaxError", s, err)
			}
			if n := utf8.RuneCountInString(s); e.Position < 1 || e.Position > max(n, len(s))+1 || e.Message == "" {
				t.Fatalf("%q: %v, of %d characters", s, e, n)
			}
			return
		}
		again, err := Parse(sel.String())
		if err != nil {
			t.Fatalf("%q reads as %q, which does not parse: %v", s, sel, err)
		}
		if diff := cmp.Diff(sel, again, cmp.AllowUnexported(Selector{}, Requirement{})); diff != "" {
			t.Fatalf("%q reads as %q (-first +again):\n%s", s, sel, diff)
		}
	})
}
