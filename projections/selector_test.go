package projections

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"pallas/events"
)

func TestParseSelector(t *testing.T) {
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
		s, err := ParseSelector(in)
		if err != nil || s.String() != want {
			t.Errorf("%q: %q, %v; want %q", in, s, err, want)
		}
		if s.Empty() != (want == "") {
			t.Errorf("%q: Empty is %v", in, s.Empty())
		}
	}
}

func TestParseSelectorErrors(t *testing.T) {
	const key = `is not a label key: want up to 63 letters, digits, '.', '_' or '-', with a letter or digit at both ends`
	for in, want := range map[string]string{
		"s=fra,":                                 "selector: position 7: want a label key, not the end",
		",a":                                     `selector: position 1: want a label key, not ','`,
		"site1=":                                 "selector: position 7: want a value after '='",
		"site==":                                 "selector: position 7: want a value after '=='",
		"site!=,a":                               "selector: position 7: want a value after '!='",
		"site!fra":                               `selector: position 6: want '=' after '!', not 'f'`,
		"site fra":                               `selector: position 6: want '=', '!=', 'in', 'notin' or ',' after the key, not "fra"`,
		"site IN (fra)":                          `selector: position 6: want '=', '!=', 'in', 'notin' or ',' after the key, not "IN"`,
		"site in fra":                            `selector: position 9: want '(' after 'in', not 'f'`,
		"site in ()":                             "selector: position 10: want a value after '('",
		"site in (fra,)":                         "selector: position 14: want a value after ','",
		"site in (a b)":                          `selector: position 12: want ',' or ')' after a value, not 'b'`,
		"site in (a":                             "selector: position 11: want ',' or ')' after a value, not the end",
		"site=a;b":                               `selector: position 7: want ',' or the end, not ';'`,
		"site=a b":                               `selector: position 8: want ',' or the end, not 'b'`,
		"!site=a":                                `selector: position 6: want ',' or the end, not '='`,
		"-site=a":                                `selector: position 1: "-site" ` + key,
		"a=1,/x":                                 `selector: position 5: "/x" ` + key,
		"a/b/c":                                  `selector: position 1: "a/b/c" ` + key,
		"UP/x":                                   `selector: position 1: "UP/x" ` + key,
		"a=x/y":                                  `selector: position 3: "x/y" is not a label value: want up to 63 letters, digits, '.', '_' or '-', with a letter or digit at both ends`,
		"a=b-":                                   `selector: position 3: "b-" is not a label value: want up to 63 letters, digits, '.', '_' or '-', with a letter or digit at both ends`,
		"ü=1":                                    `selector: position 1: want a label key, not 'ü'`,
		"a=1,ö":                                  `selector: position 5: want a label key, not 'ö'`,
		"a='1'":                                  `selector: position 3: want a value after '='`,
		"a=1\n,b":                                `selector: position 4: want ',' or the end, not '\n'`,
		"a>1":                                    `selector: position 2: want ',' or the end, not '>'`,
		"site in (a) (b)":                        `selector: position 13: want ',' or the end, not '('`,
		strings.Repeat("a", maxSelectorLength+1): "selector: position 4097: too long: want at most 4096 bytes",
		strings.Repeat("a,", maxSelectorRequirements) + "a":  "selector: position 65: too many requirements: want at most 32",
		"a in (" + strings.Repeat("b,", maxSelectorValues+5): fmt.Sprintf("selector: position %d: too many values: want at most 256", 7+2*maxSelectorValues),
	} {
		_, err := ParseSelector(in)
		var e *SelectorError
		if !errors.As(err, &e) || err.Error() != want {
			t.Errorf("%q:\n got %v\nwant %s", in, err, want)
		}
	}
}

// FuzzParseSelector checks that an error points into the text, and that the
// canonical spelling means the same.
func FuzzParseSelector(f *testing.F) {
	for _, s := range []string{"", "a=b", "a==b", "a!=b", "a in (x,y)", "a notin (x, y)", "!a", "a", "a=1,b", "a=", "a in (", "ü", "\xff", "a in (x,y),b!=c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		sel, err := ParseSelector(s)
		if err != nil {
			var e *SelectorError
			if !errors.As(err, &e) {
				t.Fatalf("%q: %v is no SelectorError", s, err)
			}
			if n := utf8.RuneCountInString(s); e.Position < 1 || e.Position > max(n, len(s))+1 || e.Message == "" {
				t.Fatalf("%q: %v, of %d characters", s, e, n)
			}
			return
		}
		again, err := ParseSelector(sel.String())
		if err != nil {
			t.Fatalf("%q reads as %q, which does not parse: %v", s, sel, err)
		}
		if diff := cmp.Diff(sel, again, cmp.AllowUnexported(Selector{}, requirement{})); diff != "" {
			t.Fatalf("%q reads as %q (-first +again):\n%s", s, sel, diff)
		}
	})
}

// matches is the selector's meaning in plain words.
func (s Selector) matches(labels map[string]string) bool {
	for _, r := range s.requirements {
		value, has := labels[r.key]
		var ok bool
		switch r.op {
		case opExists:
			ok = has
		case opNotExists:
			ok = !has
		case opEqual, opIn:
			ok = has && slices.Contains(r.values, value)
		case opNotEqual, opNotIn:
			ok = !has || !slices.Contains(r.values, value)
		}
		if !ok {
			return false
		}
	}
	return true
}

// TestSelectorSQL compares what SQL selects with the naive meaning, for
// devices and for virtual machines, in both orders.
func TestSelectorSQL(t *testing.T) {
	keys, values := []string{"a", "b", "example.com/c"}, []string{"x", "y", "z"}
	labels := map[events.DeviceID]map[string]string{}
	l := newLog(t)
	n := 0
	// Every combination of three labels with three values or none.
	for i := range 64 {
		m := map[string]string{}
		for k, key := range keys {
			if v := i >> (2 * k) & 3; v < 3 {
				m[key] = values[v]
			}
		}
		id := fleetID(n)
		n++
		labels[id] = m
		l.device(id, events.DeviceRegistered{Device: id, Name: fmt.Sprintf("d%d", i%5), Labels: m})
		l.inventory(id, events.VMObserved{VM: events.VM{ID: vm1, Name: "x"}})
	}
	d := given(t, l)

	genRequirement := rapid.Custom(func(t *rapid.T) string {
		key := rapid.SampledFrom(append(keys, "none")).Draw(t, "key")
		value := rapid.SampledFrom(append(values, "none"))
		set := func() string {
			return "(" + strings.Join(rapid.SliceOfN(value, 1, 4).Draw(t, "values"), ",") + ")"
		}
		switch rapid.IntRange(0, 5).Draw(t, "operator") {
		case 0:
			return key
		case 1:
			return "!" + key
		case 2:
			return key + "=" + value.Draw(t, "value")
		case 3:
			return key + "!=" + value.Draw(t, "value")
		case 4:
			return key + " in " + set()
		default:
			return key + " notin " + set()
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		text := strings.Join(rapid.SliceOfN(genRequirement, 0, 4).Draw(t, "requirements"), ",")
		sel, err := ParseSelector(text)
		if err != nil {
			t.Fatal(err)
		}
		want := map[events.DeviceID]bool{}
		for id, m := range labels {
			if sel.matches(m) {
				want[id] = true
			}
		}
		for _, sort := range []Sort{SortName, SortID} {
			devices, err := d.Devices(t.Context(), DeviceFilter{Selector: sel, Sort: sort, Window: Window{Limit: MaxLimit}})
			if err != nil {
				t.Fatal(err)
			}
			got := map[events.DeviceID]bool{}
			for _, dev := range devices.Items {
				got[dev.ID] = true
			}
			if !cmp.Equal(want, got) || len(devices.Items) != len(want) {
				t.Fatalf("devices of %q: %d, want %d", text, len(devices.Items), len(want))
			}
			vms, err := d.VMs(t.Context(), VMFilter{Selector: sel, Sort: sort, Window: Window{Limit: MaxLimit}})
			if err != nil {
				t.Fatal(err)
			}
			for _, vm := range vms.Items {
				if !want[vm.Device] {
					t.Fatalf("vms of %q: on %s", text, vm.Device)
				}
			}
			if len(vms.Items) != len(want) {
				t.Fatalf("vms of %q: %d, want %d", text, len(vms.Items), len(want))
			}
		}
	})
}
