package accesshttp

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"pallas/commands"
	"pallas/events"
	"pallas/internal/auth"
)

// TestTokenWithinOwner: whatever the grants of an owner become, a token permits
// nothing that the owner may not do.
func TestTokenWithinOwner(t *testing.T) {
	role := rapid.SampledFrom([]events.Role{events.RoleViewer, events.RoleOperator, events.RoleAdmin})
	selector := rapid.SampledFrom([]string{"", "site=fra", "site in (fra,ber)", "!site", "site!=fra,role=pos", "role"})
	device := rapid.MapOfN(rapid.SampledFrom([]string{"site", "role"}), rapid.SampledFrom([]string{"fra", "ber", "pos"}), 0, 2)
	rapid.Check(t, func(t *rapid.T) {
		cache := newRightsCache()
		const owner, id = events.UserID("019e1b7a-5a40-7c35-9d3c-2f0a1b2c3d4e"), events.APITokenID("0123456789abcdef")
		token := commands.APIToken{Selector: selector.Draw(t, "token's selector"), Expires: time.Now()}
		if rapid.Bool().Draw(t, "with a role") {
			token.Role = role.Draw(t, "token's role")
		}
		for revision := range uint64(rapid.IntRange(1, 4).Draw(t, "changes")) {
			s := commands.Standing{Revision: revision}
			for range rapid.IntRange(0, 3).Draw(t, "grants") {
				s.Grants = append(s.Grants, commands.RoleGrant{Role: role.Draw(t, "role"), Selector: selector.Draw(t, "selector")})
			}
			whole, err := cache.of(owner, s, "", commands.APIToken{})
			if err != nil {
				t.Fatal(err)
			}
			part, err := cache.of(owner, s, id, token)
			if err != nil {
				t.Fatal(err)
			}
			for _, rule := range auth.Rules {
				labels := device.Draw(t, "device")
				if part.Scope(rule.Permission).Match(labels) && !whole.Scope(rule.Permission).Match(labels) {
					t.Fatalf("the token has %s for %v, its owner has not", rule.Permission, labels)
				}
				if part.Scope(rule.Permission).Everything() && !whole.Scope(rule.Permission).Everything() {
					t.Fatalf("the token has %s for everything, its owner has not", rule.Permission)
				}
			}
		}
	})
}
