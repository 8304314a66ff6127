package commands

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pallas/events"
)

func TestJoinToken(t *testing.T) {
	issued := events.JoinTokenIssued{Token: tok, Name: "shops", MaxUses: 2, Expires: t0.Add(time.Hour), AutoApprove: true, Labels: map[string]string{"site": "fra"}}
	issue := func(f func(*IssueJoinToken)) IssueJoinToken {
		c := IssueJoinToken{Token: tok, Name: "shops", MaxUses: 2, Expires: t0.Add(time.Hour), AutoApprove: true, Labels: map[string]string{"site": "fra"}}
		if f != nil {
			f(&c)
		}
		return c
	}
	unlimited := issue(func(c *IssueJoinToken) { c.Name = "" })
	bad := func(name, field, says string, f func(*IssueJoinToken)) scene {
		return scene{name: "issue refuses " + name, when: issue(f), refused: KindInvalid, field: field, says: says}
	}
	use := UseJoinToken{Token: tok, Device: dev}
	usedBy := func(ids ...events.DeviceID) (h history) {
		h = onToken(issued)
		for _, id := range ids {
			h = with(h, onToken(events.JoinTokenUsed{Device: id}))
		}
		return h
	}
	large := issued
	large.MaxUses = recentUses + 1
	crowd := with(onToken(large), onToken(events.JoinTokenUsed{Device: dev}))
	for i := range recentUses {
		crowd = with(crowd, onToken(events.JoinTokenUsed{Device: events.DeviceID(fmt.Sprintf("8b1c2e8a-0d5b-4c67-9c3e-%012x", i))}))
	}
	third := events.DeviceID("8b1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f")
	expired := issued
	expired.Expires = t0
	play(t, []scene{
		{name: "issue", when: issue(nil), then: emit(issued)},
		{name: "issue without a name", when: unlimited, then: emit(events.JoinTokenIssued{Token: tok, MaxUses: 2, Expires: issued.Expires, AutoApprove: true, Labels: issued.Labels})},
		{name: "issue again", given: onToken(issued), when: issue(func(c *IssueJoinToken) { c.Expires = t0.Add(time.Minute) })},
		{name: "issue another with the same id", given: onToken(issued), when: issue(func(c *IssueJoinToken) { c.MaxUses = 3 }), refused: KindInvalid, field: "Idempotency-Key", says: "another join token"},
		bad("a malformed id", "token", "UUID", func(c *IssueJoinToken) { c.Token = "x" }),
		bad("no uses", "maxUses", "1 to 100000", func(c *IssueJoinToken) { c.MaxUses = 0 }),
		bad("too many uses", "maxUses", "1 to 100000", func(c *IssueJoinToken) { c.MaxUses = 100_001 }),
		bad("no expiry", "expires", "is missing", func(c *IssueJoinToken) { c.Expires = time.Time{} }),
		bad("an expiry now", "expires", "not in the future", func(c *IssueJoinToken) { c.Expires = t0 }),
		bad("an expiry in two years", "expires", "365 days", func(c *IssueJoinToken) { c.Expires = t0.AddDate(2, 0, 0) }),
		bad("an unprintable name", "name", "printed", func(c *IssueJoinToken) { c.Name = "\n" }),
		bad("the id that is for none", "token", "names no token", func(c *IssueJoinToken) { c.Token = events.NoToken }),
		bad("bad labels", "labels", "key", func(c *IssueJoinToken) { c.Labels = map[string]string{"": ""} }),
		{
			name: "issue with a name pattern", when: issue(func(c *IssueJoinToken) { c.NamePattern = "{host}-{id8}-{n}" }),
			then: emit(events.JoinTokenIssued{Token: tok, Name: "shops", MaxUses: 2, Expires: issued.Expires, AutoApprove: true, Labels: issued.Labels, NamePattern: "{host}-{id8}-{n}"}),
		},
		{
			name: "issue for one device with a plain name", when: issue(func(c *IssueJoinToken) { c.MaxUses, c.NamePattern = 1, "kiosk" }),
			then: emit(events.JoinTokenIssued{Token: tok, Name: "shops", MaxUses: 1, Expires: issued.Expires, AutoApprove: true, Labels: issued.Labels, NamePattern: "kiosk"}),
		},
		{name: "issue again with another pattern", given: onToken(issued), when: issue(func(c *IssueJoinToken) { c.NamePattern = "x-{n}" }), refused: KindInvalid, field: "Idempotency-Key", says: "another join token"},
		bad("one name for many", "namePattern", "all 2 devices the same name", func(c *IssueJoinToken) { c.NamePattern = "kiosk" }),
		bad("an unknown placeholder", "namePattern", `position 6: "{name}" is no placeholder: use {host}, {id8} or {n}`, func(c *IssueJoinToken) { c.NamePattern = "shöp-{name}-{n}" }),
		bad("a brace that is not closed", "namePattern", `position 3: "{n"`, func(c *IssueJoinToken) { c.NamePattern = "a-{n" }),
		bad("a brace that is not opened", "namePattern", `position 4: "}"`, func(c *IssueJoinToken) { c.NamePattern = "a-n}" }),
		bad("braces in braces", "namePattern", `position 3: "{"`, func(c *IssueJoinToken) { c.NamePattern = "a-{{n}}" }),
		bad("a pattern with white space at its end", "namePattern", "white space", func(c *IssueJoinToken) { c.NamePattern = "{n} " }),
		bad("a long pattern", "namePattern", "at most 128", func(c *IssueJoinToken) { c.NamePattern = "{n}" + strings.Repeat("x", 126) }),

		{name: "use", given: onToken(issued), when: use, then: emit(events.JoinTokenUsed{Device: dev})},
		{name: "use again", given: usedBy(dev), when: use},
		{name: "use again although used up", given: usedBy(dev, dev2), when: use},
		{name: "use again when registered, although used up by others since", given: with(crowd, onDevice(registered)), when: use},
		{name: "use again when neither registered nor among the newest", given: crowd, when: use, refused: KindDenied, code: CodeTokenUsedUp, says: "257 of 257"},
		{name: "use the last", given: usedBy(dev2), when: use, then: emit(events.JoinTokenUsed{Device: dev})},
		{name: "use one too many", given: usedBy(dev2, third), when: use, refused: KindDenied, code: CodeTokenUsedUp, says: "2 of 2"},
		{name: "use an expired one", given: onToken(expired), when: use, refused: KindDenied, code: CodeTokenEnded, says: "expired"},
		{name: "use a revoked one", given: with(usedBy(dev), onToken(events.JoinTokenRevoked{})), when: use, refused: KindDenied, code: CodeTokenClosed, says: "revoked"},
		{name: "use an unknown one", when: use, refused: KindNotFound, says: "is not known"},
		{name: "use for a malformed device", given: onToken(issued), when: UseJoinToken{Token: tok, Device: "x"}, refused: KindInvalid, field: "device", says: "UUID"},

		{name: "revoke", given: onToken(issued), when: RevokeJoinToken{Token: tok}, then: emit(events.JoinTokenRevoked{})},
		{name: "revoke again", given: with(onToken(issued), onToken(events.JoinTokenRevoked{})), when: RevokeJoinToken{Token: tok}},
		{name: "revoke an unknown one", when: RevokeJoinToken{Token: tok}, refused: KindNotFound, says: "is not known"},

		{name: "refusals of a token", given: onToken(issued), when: RefuseJoins{Token: tok, Failures: 30, Limit: "source"}, then: emit(events.JoinRefused{Failures: 30, Limit: "source"})},
		{name: "refusals of no token", when: RefuseJoins{Token: events.NoToken, Failures: 1, Limit: "all"}, then: emit(events.JoinRefused{Failures: 1, Limit: "all"})},
		{name: "refusals of an unknown token", when: RefuseJoins{Token: tok, Failures: 1, Limit: "all"}, refused: KindNotFound, says: "is not known"},
		{name: "no refusals", given: onToken(issued), when: RefuseJoins{Token: tok, Limit: "all"}, refused: KindInvalid, field: "failures", says: "at least 1"},
		{name: "refusals of no limit", given: onToken(issued), when: RefuseJoins{Token: tok, Failures: 1}, refused: KindInvalid, field: "limit", says: "source or all"},
		{name: "use what only refusals are known of", given: onToken(events.JoinRefused{Failures: 1, Limit: "all"}), when: use, refused: KindNotFound, says: "is not known"},
		{name: "revoke what only refusals are known of", given: onToken(events.JoinRefused{Failures: 1, Limit: "all"}), when: RevokeJoinToken{Token: tok}, refused: KindNotFound, says: "is not known"},
	})
}

func TestDeviceName(t *testing.T) {
	for _, tc := range []struct {
		pattern, host string
		n, uses       int
		want          string
	}{
		{"", "esx-1", 1, 1, "esx-1"},
		{"", "", 1, 1, string(dev)},
		{"shop-{n}", "esx-1", 7, 9, "shop-7"},
		{"shop-{n}", "esx-1", 7, 100, "shop-007"},
		{"{host}/{id8}", "esx-1", 7, 9, "esx-1/6f1c2e8a"},
		{"{host}", "", 7, 9, string(dev)},
		{"{host}{n}", "{id8}", 7, 9, "{id8}7"}, // what a device says is no pattern
		{"{host}-{n}", strings.Repeat("ä", 253), 7, 9, strings.Repeat("ä", 253)},
		{"{host} {n}", strings.Repeat("ä", 252), 7, 9, strings.Repeat("ä", 252)},
	} {
		token := JoinToken{NamePattern: tc.pattern, MaxUses: tc.uses}
		if got := token.DeviceName(dev, tc.host, tc.n); got != tc.want {
			t.Errorf("%q for %q: %q, want %q", tc.pattern, tc.host, got, tc.want)
		}
	}
}

func TestUseOf(t *testing.T) {
	id := func(i int) events.DeviceID {
		return events.DeviceID(fmt.Sprintf("8b1c2e8a-0d5b-4c67-9c3e-%012x", i))
	}
	h := onToken(events.JoinTokenIssued{Token: tok, MaxUses: 1000, Expires: t0.Add(time.Hour)})
	for i := range recentUses + 10 {
		h = with(h, onToken(events.JoinTokenUsed{Device: id(i + 1)}))
	}
	token := h.states().Token
	for _, n := range []int{11, 12, recentUses + 10} {
		if got := token.UseOf(id(n)); got != n {
			t.Errorf("device %d took use %d", n, got)
		}
	}
	for _, n := range []int{10, recentUses + 11} {
		if got := token.UseOf(id(n)); got != 0 {
			t.Errorf("device %d took use %d, want 0: it is not among the newest", n, got)
		}
	}
}
