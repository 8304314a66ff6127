package auth

import (
	"testing"

	"pgregory.net/rapid"

	"pallas/events/labels"
)

// grants are any, for few labels.
var grants = func() *rapid.Generator[[]Grant] {
	selector := rapid.Map(rapid.SampledFrom([]string{"", "", "a=x", "a=y", "a in (x,y)", "!a", "b=x", "a=x,b=x", "a!=x", "b"}), func(s string) labels.Selector {
		sel, err := labels.Parse(s)
		if err != nil {
			panic(err)
		}
		return sel
	})
	grant := rapid.Custom(func(t *rapid.T) Grant {
		return Grant{Role: rapid.SampledFrom(append(Roles(), "janitor")).Draw(t, "role"), Selector: selector.Draw(t, "selector")}
	})
	return rapid.SliceOfN(grant, 0, 4)
}()

// everyLabels are all small sets of labels.
var everyLabels = func() (all []map[string]string) {
	for _, a := range []string{"", "x", "y"} {
		for _, b := range []string{"", "x", "y"} {
			m := map[string]string{}
			if a != "" {
				m["a"] = a
			}
			if b != "" {
				m["b"] = b
			}
			all = append(all, m)
		}
	}
	return all
}()

// TestTokenWithinOwner gives and takes the grants of a token's owner: at no time
// does the token permit what the owner may not do.
func TestTokenWithinOwner(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		token := RightsOf(grants.Draw(t, "token")...)
		for range rapid.IntRange(1, 4).Draw(t, "changes") {
			owner := RightsOf(grants.Draw(t, "owner")...)
			acting := token.Within(owner)
			for _, rule := range Rules {
				for _, m := range everyLabels {
					own, alone := owner.Scope(rule.Permission).Match(m), token.Scope(rule.Permission).Match(m)
					if got := acting.Scope(rule.Permission).Match(m); got != (own && alone) {
						t.Fatalf("%s for %v: the token may %v, alone it may %v, its owner may %v", rule.Permission, m, got, alone, own)
					}
				}
			}
		}
		if gone := token.Within(Rights{}); !gone.Scope(Self).Nothing() {
			t.Fatal("a token of nobody permits something")
		}
	})
}

// TestRightsFollowRules compares the scope of a permission with what the rules
// say, device by device.
func TestRightsFollowRules(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := grants.Draw(t, "grants")
		rights := RightsOf(g...)
		for _, rule := range Rules {
			for _, m := range everyLabels {
				want := rule.Role == ""
				for _, x := range g {
					want = want || x.Role.has(rule.Role) && x.Selector.Match(m) && (rule.Scoped || x.Selector.Empty())
				}
				if got := rights.Scope(rule.Permission).Match(m); got != want {
					t.Fatalf("%s of %v for %v: %v, want %v", rule.Permission, g, m, got, want)
				}
			}
		}
		if !rights.Equal(RightsOf(g...)) || rights.Equal(Rights{}) {
			t.Fatal("rights are not equal to themselves, or to none")
		}
	})
	if (Rights{}).Scope("unheard:of").Match(nil) || RightsOf(Grant{Role: RoleAdmin}).Scope("unheard:of").Match(nil) {
		t.Error("somebody has a permission that there is not")
	}
}
