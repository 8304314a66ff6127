package commands

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"pallas/events"
)

// JoinToken is the folded state of a join token. Without an ID there is no such
// token, whatever the revision: refusals may be recorded where there is none.
// Its secret part is not here.
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
	NamePattern string            `json:"namePattern,omitempty"`
	// Device is the one that it is for, "" for a token that makes new devices.
	Device events.DeviceID `json:"device,omitempty"`
	// Issued is the position at which it was issued.
	Issued   uint64 `json:"issued,omitempty"`
	Revoked  bool   `json:"revoked"`
	Revision uint64 `json:"revision"`
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
	// NamePattern makes the names of its devices; see [JoinToken.DeviceName].
	NamePattern string
	// Device makes it a token for one device that is known already: whatever key
	// the device comes with next becomes its key, and its name, labels and trust
	// stay. It has one use, and neither labels, name pattern nor
	// approval of its own.
	Device events.DeviceID
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

// RefuseJoins records that attempts to register were refused until no more were
// heard. The token is the one that was named last, or [events.NoToken].
type RefuseJoins struct {
	Token events.TokenID
	// Failures and Limit are as in [events.JoinRefused].
	Failures int
	Limit    string
}

// Subject returns the token's aggregate.
func (c IssueJoinToken) Subject() events.Subject { return events.TokenSubject(c.Token) }

// Subject returns the token's aggregate.
func (c UseJoinToken) Subject() events.Subject { return events.TokenSubject(c.Token) }

// Subject returns the token's aggregate.
func (c RevokeJoinToken) Subject() events.Subject { return events.TokenSubject(c.Token) }

// Subject returns the token's aggregate.
func (c RefuseJoins) Subject() events.Subject { return events.TokenSubject(c.Token) }

func (IssueJoinToken) sealed()  {}
func (UseJoinToken) sealed()    {}
func (RevokeJoinToken) sealed() {}
func (RefuseJoins) sealed()     {}

func (t JoinToken) issue(c IssueJoinToken, d Device, now time.Time) ([]events.Event, error) {
	if t.ID != "" { // asked before: the answer is the token as it is
		if t.Name != c.Name || t.MaxUses != c.MaxUses || t.AutoApprove != c.AutoApprove || t.NamePattern != c.NamePattern || t.Device != c.Device {
			return nil, invalid("Idempotency-Key", "was used for another join token: use a new key")
		}
		return nil, nil
	}
	if c.Name != "" {
		if err := checkName("name", c.Name); err != nil {
			return nil, err
		}
	}
	if c.Token == events.NoToken {
		return nil, invalid("token", "%s is for what names no token", c.Token)
	}
	if c.MaxUses < 1 || c.MaxUses > MaxUses {
		return nil, invalid("maxUses", "%d: want 1 to %d", c.MaxUses, MaxUses)
	}
	if err := first(checkWithin("expires", c.Expires, now, MaxExpiry), checkLabels(c.Labels), checkPattern(c.NamePattern, c.MaxUses), c.checkBound(d)); err != nil {
		return nil, err
	}
	if c.Device != "" { // they say who may see the token
		c.Labels = d.Labels
	}
	return []events.Event{events.JoinTokenIssued{
		Token: c.Token, Name: c.Name, MaxUses: c.MaxUses, Expires: instant(c.Expires),
		AutoApprove: c.AutoApprove, Labels: copyLabels(c.Labels), NamePattern: c.NamePattern, Device: c.Device,
	}}, nil
}

// checkBound checks what a token for one device may say.
func (c IssueJoinToken) checkBound(d Device) *Error {
	if c.Device == "" {
		return nil
	}
	if err := checkDevice(c.Device); err != nil {
		return err
	}
	switch {
	case d.Revision == 0:
		return notFound("device %s is not known", c.Device)
	case d.Trust == TrustRetired:
		return d.isRetired()
	case c.MaxUses != 1:
		return invalid("maxUses", "%d: a token for one device has one use", c.MaxUses)
	case len(c.Labels) > 0:
		return invalid("labels", "a token for one device has none: the device keeps its own")
	case c.NamePattern != "":
		return invalid("namePattern", "a token for one device has none: the device keeps its own name")
	case c.AutoApprove:
		return invalid("approve", "a token for one device approves nothing: the device is trusted as before")
	}
	return nil
}

func (t JoinToken) use(c UseJoinToken, d Device, now time.Time) ([]events.Event, error) {
	if err := checkDevice(c.Device); err != nil {
		return nil, err
	}
	switch {
	case t.ID == "":
		return nil, notFound("join token %s is not known", clip(string(c.Token)))
	case t.Revoked:
		return nil, denied(CodeTokenClosed, "join token %s was revoked: ask for a new one", t.ID)
	case t.Device != "" && t.Device != c.Device:
		return nil, denied(CodeTokenDevice, "join token %s is for another device", t.ID)
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
	case t.ID == "":
		return nil, notFound("join token %s is not known", clip(string(c.Token)))
	case t.Revoked:
		return nil, nil
	}
	return []events.Event{events.JoinTokenRevoked{}}, nil
}

func (t JoinToken) refuse(c RefuseJoins) ([]events.Event, error) {
	switch {
	case t.ID == "" && c.Token != events.NoToken:
		return nil, notFound("join token %s is not known", clip(string(c.Token)))
	case c.Failures < 1:
		return nil, invalid("failures", "%d: want at least 1", c.Failures)
	case c.Limit != "source" && c.Limit != "all":
		return nil, invalid("limit", "%q: want source or all", clip(c.Limit))
	}
	return []events.Event{events.JoinRefused{Failures: c.Failures, Limit: c.Limit}}, nil
}

// MaxPattern is how many characters a name pattern may have.
const MaxPattern = 128

// placeholder is what a name pattern has in braces, also where it is wrong.
var placeholder = regexp.MustCompile(`\{[^{}]*\}?|\}`)

func checkPattern(s string, uses int) *Error {
	const field, known = "namePattern", "{host}, {id8} or {n}"
	if s == "" {
		return nil
	}
	if err := checkName(field, s); err != nil {
		return err
	}
	if n := utf8.RuneCountInString(s); n > MaxPattern {
		return invalid(field, "has %d characters: shorten it to at most %d", n, MaxPattern)
	}
	found := placeholder.FindAllStringIndex(s, -1)
	for _, at := range found {
		switch p := s[at[0]:at[1]]; p {
		case "{host}", "{id8}", "{n}":
		default:
			return invalid(field, "position %d: %q is no placeholder: use %s", utf8.RuneCountInString(s[:at[0]])+1, p, known)
		}
	}
	if len(found) == 0 && uses > 1 {
		return invalid(field, "gives all %d devices the same name: put %s into it", uses, known)
	}
	return nil
}

// DeviceName returns the name that a device of the token begins with. host is
// what it calls itself, "" when its host has no name yet and the id has to
// serve; n is which use of the token it took.
//
// In the pattern {host} stands for the one, {n} for the other, with as many
// digits as the largest n may have, so that names sort; {id8} is the beginning
// of the id that the device is found by as well.
func (t JoinToken) DeviceName(id events.DeviceID, host string, n int) string {
	host = cmp.Or(host, string(id))
	if t.NamePattern == "" {
		return host
	}
	name := strings.NewReplacer(
		"{host}", host, "{id8}", string(id)[:min(8, len(id))], "{n}", fmt.Sprintf("%0*d", len(strconv.Itoa(t.MaxUses)), n),
	).Replace(t.NamePattern)
	if r := []rune(name); len(r) > MaxName {
		name = strings.TrimSpace(string(r[:MaxName]))
	}
	return name
}

// UseOf returns which use of the token a device took, from 1; 0 when it took
// none of the newest.
func (t JoinToken) UseOf(id events.DeviceID) int {
	i := slices.Index(t.Recent, id)
	if i < 0 {
		return 0
	}
	return t.Uses - (len(t.Recent) - 1 - i)
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
			t.AutoApprove, t.Labels, t.NamePattern = e.AutoApprove, copyLabels(e.Labels), e.NamePattern
			t.Device, t.Issued = e.Device, r.Position
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
