package labels

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func parse(t interface{ Fatal(...any) }, texts ...string) []Selector {
	out := make([]Selector, len(texts))
	for i, s := range texts {
		var err error
		if out[i], err = Parse(s); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func TestScope(t *testing.T) {
	fra, pos := Union(parse(t, "site=fra")...), Union(parse(t, "role=pos")...)
	sites := Union(parse(t, "site=fra", "site=muc")...)
	device := func(pairs ...string) map[string]string {
		m := map[string]string{}
		for _, p := range pairs {
			k, v, _ := strings.Cut(p, "=")
			m[k] = v
		}
		return m
	}
	for _, tc := range []struct {
		scope Scope
		text  string
		in    map[string]string
		want  bool
	}{
		{Scope{}, "nothing", device("site=fra"), false},
		{Union(), "nothing", device(), false},
		{Everything(), "everything", device(), true},
		{Union(parse(t, "site=fra", "")...), "everything", device(), true},
		{fra, "site=fra", device("site=fra"), true},
		{fra, "site=fra", device(), false},
		{sites, "site=fra or site=muc", device("site=muc"), true},
		{fra.Intersect(Everything()), "site=fra", device("site=fra"), true},
		{Everything().Intersect(fra), "site=fra", device("site=muc"), false},
		{fra.Intersect(Scope{}), "nothing", device("site=fra"), false},
		{sites.Intersect(pos), "site=fra or site=muc; within role=pos", device("site=muc", "role=pos"), true},
		{sites.Intersect(pos), "site=fra or site=muc; within role=pos", device("site=muc"), false},
	} {
		if got := tc.scope.Match(tc.in); got != tc.want || tc.scope.String() != tc.text {
			t.Errorf("%s (want %s) and %v: %v, want %v", tc.scope, tc.text, tc.in, got, tc.want)
		}
	}
}

func TestCommon(t *testing.T) {
	union := func(texts ...string) Scope { return Union(parse(t, texts...)...) }
	for _, tc := range []struct {
		scope        Scope
		common, rest string
	}{
		{Scope{}, "", "nothing"},
		{Everything(), "", "everything"},
		{union("a=1,!b"), "a=1,!b", "everything"},
		{union("a=1", "a in (2,3)", "a=1"), "a in (1,2,3)", "everything"},
		{union("a=1", "b=1"), "", "a=1 or b=1"},
		{union("a=1", "a!=2"), "", "a=1 or a!=2"},
		{union("a=1", "a=2,b"), "", "a=1 or a=2,b"},
		{union("a=1").Intersect(union("b", "!c")).Intersect(union("d=1", "d=2")), "a=1,d in (1,2)", "b or !c"},
	} {
		if common, rest := tc.scope.Common(); common.String() != tc.common || rest.String() != tc.rest {
			t.Errorf("%s: %q and %q, want %q and %q", tc.scope, common, rest, tc.common, tc.rest)
		}
	}
}

func TestWithin(t *testing.T) {
	for _, tc := range []struct {
		narrow, wide string
		want         bool
	}{
		{"", "", true},
		{"a=1", "", true},
		{"", "a=1", false},
		{"a=1", "a=1", true},
		{"a=1,b=2", "a=1", true},
		{"a=1", "a=1,b=2", false},
		{"a=1", "a in (1,2)", true},
		{"a in (1,3)", "a in (1,2)", false},
		{"a=1", "a", true},
		{"a=1", "!b", false},
		{"!a", "a!=1", true},
		{"a=2", "a!=1", true},
		{"a notin (1,2)", "a!=1", true},
		{"a!=1", "a notin (1,2)", false},
		{"a=1", "!a", false},
	} {
		s := parse(t, tc.narrow, tc.wide)
		if got := s[0].Within(s[1]); got != tc.want {
			t.Errorf("%q within %q: %v, want %v", tc.narrow, tc.wide, got, tc.want)
		}
	}
}

// TestScopeLaws checks, against every small set of labels, that an intersection
// holds what both hold, and that a selector within another never picks more.
func TestScopeLaws(t *testing.T) {
	keys, values := []string{"a", "b"}, []string{"", "x", "y"} // "" for no such label
	var all []map[string]string
	for _, a := range values {
		for _, b := range values {
			m := map[string]string{}
			for i, v := range []string{a, b} {
				if v != "" {
					m[keys[i]] = v
				}
			}
			all = append(all, m)
		}
	}
	requirement := rapid.Custom(func(t *rapid.T) string {
		key, value := rapid.SampledFrom(keys).Draw(t, "key"), rapid.SampledFrom(values[1:])
		switch rapid.IntRange(0, 4).Draw(t, "operator") {
		case 0:
			return key
		case 1:
			return "!" + key
		case 2:
			return key + "!=" + value.Draw(t, "value")
		case 3:
			return key + " notin (" + strings.Join(rapid.SliceOfN(value, 1, 2).Draw(t, "values"), ",") + ")"
		default:
			return key + " in (" + strings.Join(rapid.SliceOfN(value, 1, 2).Draw(t, "values"), ",") + ")"
		}
	})
	selector := rapid.Custom(func(t *rapid.T) Selector {
		return parse(t, strings.Join(rapid.SliceOfN(requirement, 0, 3).Draw(t, "requirements"), ","))[0]
	})
	scope := rapid.Map(rapid.SliceOfN(selector, 0, 3), func(s []Selector) Scope { return Union(s...) })
	rapid.Check(t, func(t *rapid.T) {
		s, o := scope.Draw(t, "scope"), scope.Draw(t, "other")
		narrow, wide := selector.Draw(t, "narrow"), selector.Draw(t, "wide")
		for _, m := range all {
			if got := s.Intersect(o).Match(m); got != (s.Match(m) && o.Match(m)) {
				t.Fatalf("%s and %s hold %v: %v", s, o, m, got)
			}
			if common, rest := s.Common(); s.Match(m) != (common.Match(m) && rest.Match(m)) {
				t.Fatalf("%s is not %s within %s: %v", s, common, rest, m)
			}
			if got := narrow.And(wide).Match(m); got != (narrow.Match(m) && wide.Match(m)) {
				t.Fatalf("%s and %s pick %v: %v", narrow, wide, m, got)
			}
			if narrow.Within(wide) && narrow.Match(m) && !wide.Match(m) {
				t.Fatalf("%s is not within %s: %v", narrow, wide, m)
			}
		}
		if i := len(narrow.Requirements()) - 1; i >= 0 && !narrow.Within(narrow.Without(i)) {
			t.Fatalf("%s is not within %s", narrow, narrow.Without(i))
		}
		if s.Everything() && slices.ContainsFunc(all, func(m map[string]string) bool { return !s.Match(m) }) {
			t.Fatalf("%s does not hold everything", s)
		}
	})
}
