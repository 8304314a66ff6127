package commands

import (
	"regexp"
	"time"

	"pallas/events"
)

// AuthorityPhase is how far the replacement of the devices' CA has come.
type AuthorityPhase string

// The phases.
const (
	AuthoritySteady   AuthorityPhase = "steady"
	AuthorityPrepared AuthorityPhase = "prepared"
	AuthoritySwitched AuthorityPhase = "switched"
)

// Authority is the folded state of the CA that signs the certificates of
// devices. Revision 0 means that it was never replaced.
type Authority struct {
	Phase AuthorityPhase `json:"phase"`
	// Active signs. Other is the next one while prepared, the former one after
	// the switch. Both are the hex SHA-256 of a certificate.
	Active   string `json:"active"`
	Other    string `json:"other,omitempty"`
	Revision uint64 `json:"revision"`
}

// RecordAuthority records what the CA's files say. It writes only what is news,
// all steps that lie between.
type RecordAuthority struct {
	Phase  AuthorityPhase
	Active string
	// Other is "" for AuthoritySteady. NotAfter is when the younger of the two ends.
	Other    string
	NotAfter time.Time
	// Since is when the phase began.
	Since time.Time
}

// Subject returns the one aggregate of its kind.
func (c RecordAuthority) Subject() events.Subject { return events.AuthoritySubject() }

func (RecordAuthority) sealed() {}

var fingerprint = regexp.MustCompile(`^[0-9a-f]{64}$`)

func (a Authority) record(c RecordAuthority) ([]events.Event, error) {
	switch steady := c.Phase == AuthoritySteady; {
	case !steady && c.Phase != AuthorityPrepared && c.Phase != AuthoritySwitched:
		return nil, invalid("phase", "%q: want %s, %s or %s", clip(string(c.Phase)), AuthoritySteady, AuthorityPrepared, AuthoritySwitched)
	case !fingerprint.MatchString(c.Active):
		return nil, invalid("active", "%q: want a SHA-256 of 64 lower-case hex digits", clip(c.Active))
	case steady != (c.Other == "") || (!steady && !fingerprint.MatchString(c.Other)) || c.Other == c.Active:
		return nil, invalid("other", "%q does not fit the phase %s", clip(c.Other), c.Phase)
	case !storable(c.NotAfter) || !storable(c.Since):
		return nil, invalid("notAfter", "is beyond the year 9999")
	}
	want := Authority{c.Phase, c.Active, c.Other, a.Revision}
	if a == want || (a.Revision == 0 && c.Phase == AuthoritySteady) {
		return nil, nil // a CA that was never replaced is no news
	}
	// before is the CA that was there before this replacement began, next the
	// one that comes.
	before, next := c.Active, c.Other
	if c.Phase == AuthoritySwitched {
		before, next = c.Other, c.Active
	}
	since := instant(c.Since)
	prepared := events.AuthorityPrepared{Active: before, Next: next, NotAfter: instant(c.NotAfter), Since: since}
	switched := events.AuthoritySwitched{Active: next, Former: before, Since: since}

	var out []events.Event
	at := a // what is true after out
	if a.Phase == AuthorityPrepared && c.Active == a.Other {
		// Beyond the switch, perhaps to its end.
		out = append(out, events.AuthoritySwitched{Active: a.Other, Former: a.Active, Since: since})
		at = Authority{AuthoritySwitched, a.Other, a.Active, a.Revision}
	}
	if at.Phase == AuthoritySwitched && at.Active == before {
		out = append(out, events.AuthorityRetired{Active: at.Active, Former: at.Other})
		at = Authority{AuthoritySteady, at.Active, "", a.Revision}
	}
	switch {
	case at == want:
		return out, nil
	case a.Revision == 0:
	case at.Phase == AuthoritySteady && at.Active == before:
	default:
		out = append(out, events.AuthorityAdopted{Active: before})
	}
	switch c.Phase {
	case AuthorityPrepared:
		out = append(out, prepared)
	case AuthoritySwitched:
		out = append(out, prepared, switched)
	case AuthoritySteady:
	}
	return out, nil
}

// Evolve returns the state after a record of the aggregate. It is pure.
func (a Authority) Evolve(r events.Record) Authority { return evolve(a, r) }

func (a *Authority) fork() folded { c := *a; return &c }

func (a *Authority) copy() Authority { return *a }

func (a *Authority) size() int { return itemSize }

func (a *Authority) fold(r events.Record) {
	for _, en := range r.Entries {
		switch e := en.Event.(type) {
		case events.AuthorityPrepared:
			a.Phase, a.Active, a.Other = AuthorityPrepared, e.Active, e.Next
		case events.AuthoritySwitched:
			a.Phase, a.Active, a.Other = AuthoritySwitched, e.Active, e.Former
		case events.AuthorityRetired:
			a.Phase, a.Active, a.Other = AuthoritySteady, e.Active, ""
		case events.AuthorityAdopted:
			a.Phase, a.Active, a.Other = AuthoritySteady, e.Active, ""
		default:
		}
	}
	a.Revision = r.Position
}
