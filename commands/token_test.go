package commands

import (
	"fmt"
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
		bad("bad labels", "labels", "key", func(c *IssueJoinToken) { c.Labels = map[string]string{"": ""} }),

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
	})
}
