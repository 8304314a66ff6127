package commands

import (
	"slices"
	"time"

	"pallas/events"
)

// JoinToken is the folded state of a join token. Revision 0 means that there
// is no such token. Its secret part is not here.
type JoinToken struct {
	ID      events.TokenID `json:"id"`
	Name    string         `json:"name,omitempty"`
	MaxUses int            `json:"maxUses"`
	Uses    int            `json:"uses"`
	// Recent lists the devices that took the newest uses, oldest first. Those
	// before them have registered or will not: thousands of devices share a
	// token, and each decision about it would carry them all.
	Recent      []events.DeviceID `json:"recent,omitempty"`
	Expires     time.Time         `json:"expires"`
	AutoApprove bool              `json:"autoApprove"`
	Labels      map[string]string `json:"labels,omitempty"`
	Revoked     bool              `json:"revoked"`
	Revision    uint64            `json:"revision"`
}

// IssueJoinToken lets devices register. A token id that is taken by a token
// with the same settings is the same request.
type IssueJoinToken struct {
	Token events.TokenID
	Name  string
	// MaxUses is how many devices may register with it, 1 to 100,000.
	MaxUses int
	// Expires is in the future and at most a year away.
	Expires     time.Time
	AutoApprove bool
	Labels      map[string]string
}

// recentUses is how many devices may be between their use of a token and their
// registration.
const recentUses = 256

// UseJoinToken takes one use of a token for a device. A device that registered
// with the token, or took one of its newest uses, keeps it: a repeat changes
// nothing, even when the token is used up.
type UseJoinToken struct {
	Token  events.TokenID
	Device events.DeviceID
}

// RevokeJoinToken ends a token: nobody may register with it any more.
type RevokeJoinToken struct{ Token events.TokenID }

// Subject returns the token's aggregate.
func (c IssueJoinToken) Subject() events.Subject { return events.TokenSubject(c.Token) }

// Subject returns the token's aggregate.
func (c UseJoinToken) Subject() events.Subject { return events.TokenSubject(c.Token) }

// Subject returns the token's aggregate.
func (c RevokeJoinToken) Subject() events.Subject { return events.TokenSubject(c.Token) }

func (IssueJoinToken) sealed()  {}
func (UseJoinToken) sealed()    {}
func (RevokeJoinToken) sealed() {}

func (t JoinToken) issue(c IssueJoinToken, now time.Time) ([]events.Event, error) {
	if t.Revision != 0 { // asked before: the answer is the token as it is
		if t.Name != c.Name || t.MaxUses != c.MaxUses || t.AutoApprove != c.AutoApprove {
			return nil, invalid("Idempotency-Key", "was used for another join token: use a new key")
		}
		return nil, nil
	}
	if c.Name != "" {
		if err := checkName("name", c.Name); err != nil {
			return nil, err
		}
	}
	if c.MaxUses < 1 || c.MaxUses > MaxUses {
		return nil, invalid("maxUses", "%d: want 1 to %d", c.MaxUses, MaxUses)
	}
	if err := first(checkWithin("expires", c.Expires, now, MaxExpiry), checkLabels(c.Labels)); err != nil {
		return nil, err
	}
	return []events.Event{events.JoinTokenIssued{
		Token: c.Token, Name: c.Name, MaxUses: c.MaxUses, Expires: instant(c.Expires),
		AutoApprove: c.AutoApprove, Labels: copyLabels(c.Labels),
	}}, nil
}

func (t JoinToken) use(c UseJoinToken, d Device, now time.Time) ([]events.Event, error) {
	if err := checkDevice(c.Device); err != nil {
		return nil, err
	}
	switch {
	case t.Revision == 0:
		return nil, notFound("join token %s is not known", clip(string(c.Token)))
	case t.Revoked:
		return nil, denied(CodeTokenClosed, "join token %s was revoked: ask for a new one", t.ID)
	case !now.Before(t.Expires):
		return nil, denied(CodeTokenEnded, "join token %s expired at %s: ask for a new one", t.ID, t.Expires.Format(time.RFC3339))
	case d.Revision != 0 && d.JoinToken == t.ID, slices.Contains(t.Recent, c.Device):
		return nil, nil
	case t.Uses >= t.MaxUses:
		return nil, denied(CodeTokenUsedUp, "join token %s has no use left (%d of %d taken): ask for a new one", t.ID, t.Uses, t.MaxUses)
	}
	return []events.Event{events.JoinTokenUsed{Device: c.Device}}, nil
}

func (t JoinToken) revoke(c RevokeJoinToken) ([]events.Event, error) {
	switch {
	case t.Revision == 0:
		return nil, notFound("join token %s is not known", clip(string(c.Token)))
	case t.Revoked:
		return nil, nil
	}
	return []events.Event{events.JoinTokenRevoked{}}, nil
}

// Evolve returns the state after a record of the token's aggregate. It is
// pure.
func (t JoinToken) Evolve(r events.Record) JoinToken { return evolve(t, r) }

func (t *JoinToken) fork() folded {
	c := *t
	c.Recent = slices.Clip(c.Recent) // an append makes a copy
	return &c
}

func (t *JoinToken) fold(r events.Record) {
	for _, en := range r.Entries {
		switch e := en.Event.(type) {
		case events.JoinTokenIssued:
			t.ID, t.Name, t.MaxUses, t.Expires = e.Token, e.Name, e.MaxUses, e.Expires
			t.AutoApprove, t.Labels = e.AutoApprove, copyLabels(e.Labels)
		case events.JoinTokenUsed:
			t.Uses++
			if t.Recent = append(t.Recent, e.Device); len(t.Recent) > recentUses {
				t.Recent = t.Recent[len(t.Recent)-recentUses:]
			}
		case events.JoinTokenRevoked:
			t.Revoked = true
		default:
		}
	}
	t.Revision = r.Position
}
