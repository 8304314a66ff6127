package commands

import (
	"context"
	"fmt"
	"strings"
	"time"

	"pallas/events"
	"pallas/events/labels"
)

// scopeOf returns the scope that binds a command. A user always has one for what
// has labels: to forget it must not mean everything. Who may change what has
// none is for the edge to say, by the permission alone.
func scopeOf(c Command, m Meta) (labels.Scope, error) {
	switch {
	case !hasLabels(c.Subject()):
	case m.Scope != nil:
		return *m.Scope, nil
	case strings.HasPrefix(string(m.Actor), "user:"):
		return labels.Scope{}, fmt.Errorf("%s of %s: it carries no scope", typeName(c), m.Actor)
	}
	return labels.Everything(), nil
}

// DecideWithin is [Decide] for somebody who may touch the devices of a scope,
// and the join tokens whose devices would be in it. What is outside does not
// exist: the answer is that for an unknown id, whatever else is wrong. And
// nothing may leave the scope by its labels.
func DecideWithin(scope labels.Scope, c Command, s States, now time.Time) (Outcome, error) {
	if scope.Everything() {
		return Decide(c, s, now)
	}
	hidden := !reaches(scope, c.Subject(), s)
	if hidden {
		s = States{}
	}
	out, err := Decide(c, s, now)
	switch {
	case err != nil:
		return Outcome{}, err
	case hidden: // something that would be made anew, but is there
		return Outcome{}, notFound("%s %s is not known", c.Subject().Kind(), clip(c.Subject().Key()))
	}
	for _, en := range out.Entries {
		if m, ok := labelsOf(en.Event); ok && !scope.Match(m) {
			return Outcome{}, outside()
		}
	}
	return out, nil
}

// DeviceWithin is [Dispatcher.Device] for somebody who may touch the devices of a
// scope: one outside is not known.
func (d *Dispatcher) DeviceWithin(ctx context.Context, scope labels.Scope, id events.DeviceID) (Device, error) {
	s, err := d.Device(ctx, id)
	if err == nil && !scope.Match(s.Labels) {
		return Device{}, unknownDevice(id)
	}
	return s, err
}

// hasLabels says whether an aggregate has labels, which decide who may touch it:
// its device's, or those of the join token's devices.
func hasLabels(s events.Subject) bool { return s.Device() != "" || s.Kind() == events.KindToken }

// reaches says whether the aggregate does not exist, or belongs to what a scope
// holds.
func reaches(scope labels.Scope, s events.Subject, st States) bool {
	switch {
	case s.Device() != "":
		return st.Device.Revision == 0 || scope.Match(st.Device.Labels)
	case s.Kind() == events.KindToken:
		return st.Token.ID == "" || scope.Match(st.Token.Labels)
	}
	return scope.Everything()
}

// labelsOf returns the labels that an event gives to a device or to the devices
// of a join token.
func labelsOf(e events.Event) (map[string]string, bool) {
	switch e := e.(type) {
	case events.DeviceRegistered:
		return e.Labels, true
	case events.DeviceLabelled:
		return e.Labels, true
	case events.JoinTokenIssued:
		return e.Labels, true
	default:
		return nil, false
	}
}

// outside refuses labels by which something would leave the caller's scope. It
// does not spell the scope: the caller knows its own grants.
func outside() *Error {
	return &Error{
		Kind: KindDenied, Field: "labels", Code: CodeOutOfScope,
		Message: "with these labels it would be outside the scope of your grants: keep the labels that they select by, or ask an administrator",
	}
}
