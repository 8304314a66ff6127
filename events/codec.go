package events

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// stored is the JSON form of a decision in the log. The subject and the
// position are the log's own and not repeated.
type stored struct {
	// ID is the decision's identity: a UUID.
	ID ID `json:"id"`
	// Time is the manager's clock when it decided, in UTC, to the microsecond.
	Time time.Time `json:"time"`
	// Actor is who asked: "user:<id>", "token:<id>", "device:<id>" or
	// "system:<part>".
	Actor Actor `json:"actor"`
	// Source is the address the request came from, without a port.
	Source string `json:"source,omitempty"`
	// Cause is the id of the command or task that led here.
	Cause string `json:"cause,omitempty"`
	// Traceparent is the W3C trace context of the request, if it had one.
	Traceparent string `json:"traceparent,omitempty"`
	// Events became true together, at least one.
	Events []storedEvent `json:"events"`
}

// storedEvent is the JSON form of one event within a decision.
type storedEvent struct {
	// Type is the event's name, such as "DeviceRegistered".
	Type string `json:"type"`
	// Version is the version of the payload, from 1.
	Version int `json:"version"`
	// DeviceTime is when the device says it happened. It is a claim: order by
	// position, never by it.
	DeviceTime *time.Time `json:"deviceTime,omitempty"`
	// Report is the device's report that led to the event.
	Report *Report `json:"report,omitempty"`
	// Data is the payload, in the shape of the type and version.
	Data json.RawMessage `json:"data"`
}

// codec knows one event type: its newest version, how to decode that, and how
// to lift each older version to the one after it.
type codec struct {
	name    string
	version int
	zero    Event
	decode  func(json.RawMessage) (Event, error)
	// upcasts[v] turns the payload of version v into that of version v+1.
	upcasts map[int]func(json.RawMessage) (json.RawMessage, error)
}

func codecOf[E Event](version int) codec {
	var zero E
	return codec{
		name: zero.Type(), version: version, zero: zero,
		decode: func(b json.RawMessage) (Event, error) {
			var e E
			// JSON's null would leave e as it is, and pass for an event.
			if string(b) == "null" {
				return nil, errors.New("payload is null")
			}
			err := json.Unmarshal(b, &e)
			return e, err
		},
	}
}

// from adds how to lift the payload of an older version to the one after it.
func (c codec) from(version int, up func(json.RawMessage) (json.RawMessage, error)) codec {
	if c.upcasts == nil {
		c.upcasts = map[int]func(json.RawMessage) (json.RawMessage, error){}
	}
	c.upcasts[version] = up
	return c
}

// same is for a version that only added a field, absent before. It is a version
// of its own so that a build which would not heed the field does not know the
// event.
func same(b json.RawMessage) (json.RawMessage, error) { return b, nil }

// codecs is the closed table of event types. A type is added here, and nowhere
// else.
var codecs = []codec{
	codecOf[DeviceRegistered](1),
	codecOf[DeviceApproved](1),
	codecOf[CertificateIssued](1),
	codecOf[DeviceConnected](1),
	codecOf[DeviceLost](1),
	codecOf[DeviceLabelled](1),
	codecOf[DeviceRenamed](1),
	codecOf[DeviceDescribed](1),
	codecOf[DeviceRetired](1),
	codecOf[DeviceRejected](1),
	codecOf[DeviceQuarantined](1),
	codecOf[DeviceReleased](1),
	codecOf[DeviceKeyClaimed](1),
	codecOf[DeviceRekeyed](1),
	codecOf[CertificateRotationRequested](1),
	codecOf[DeviceAnchorsChanged](1),
	codecOf[HostObserved](1),
	codecOf[HostConditionChanged](1),
	codecOf[VMObserved](1),
	codecOf[VMChanged](1),
	codecOf[VMRemoved](1),
	codecOf[InventorySynced](1),
	codecOf[TaskRequested](1),
	codecOf[TaskAccepted](1),
	codecOf[TaskProgressed](1),
	codecOf[TaskSucceeded](1),
	codecOf[TaskFailed](1),
	codecOf[TaskRejected](1),
	codecOf[TaskCancelRequested](1),
	codecOf[TaskCancelled](1),
	codecOf[TaskExpired](1),
	codecOf[TaskReportedLate](1),
	codecOf[JoinTokenIssued](3).from(1, same).from(2, same),
	codecOf[JoinTokenUsed](1),
	codecOf[JoinTokenRevoked](1),
	codecOf[JoinRefused](1),
	codecOf[UserCreated](1),
	codecOf[RoleGranted](1),
	codecOf[RoleRevoked](1),
	codecOf[UserDisabled](1),
	codecOf[UserEnabled](1),
	codecOf[UserDeleted](1),
	codecOf[PasswordChanged](1),
	codecOf[PasswordResetIssued](1),
	codecOf[APITokenIssued](1),
	codecOf[APITokenRevoked](1),
	codecOf[APITokenUsed](1),
	codecOf[SignedIn](1),
	codecOf[SignInFailed](1),
	codecOf[SessionEnded](1),
	codecOf[AccessDenied](1),
	codecOf[AuthorityPrepared](1),
	codecOf[AuthoritySwitched](1),
	codecOf[AuthorityRetired](1),
	codecOf[AuthorityAdopted](1),
}

var codecByName = func() map[string]codec {
	m := make(map[string]codec, len(codecs))
	for _, c := range codecs {
		m[c.name] = c
	}
	return m
}()

// TypeInfo describes one type of event for documentation and schemas.
type TypeInfo struct {
	Name    string
	Version int
	// Zero is the zero value of the event's Go type.
	Zero Event
}

// Types lists every type of event that this build knows, in the order of the
// codec table.
func Types() []TypeInfo {
	out := make([]TypeInfo, len(codecs))
	for i, c := range codecs {
		out[i] = TypeInfo{Name: c.name, Version: c.version, Zero: c.zero}
	}
	return out
}

// EncodeEvent returns the version and the JSON payload of an event.
func EncodeEvent(e Event) (version int, data json.RawMessage, err error) {
	if u, ok := e.(Unknown); ok {
		return u.Version, u.Data, nil
	}
	c, ok := codecByName[e.Type()]
	if !ok {
		return 0, nil, fmt.Errorf("encode %s: not in the codec table", e.Type())
	}
	data, err = marshal(e)
	if err != nil {
		return 0, nil, fmt.Errorf("encode %s: %w", e.Type(), err)
	}
	return c.version, data, nil
}

// marshal is json.Marshal without the escapes for HTML, which would change the
// bytes of an Unknown event.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// DecodeEvent returns the event of a stored payload, lifted to the newest
// version. A type or version that this build does not know becomes [Unknown];
// a known one that does not decode is an error.
func DecodeEvent(name string, version int, data json.RawMessage) (Event, error) {
	c, ok := codecByName[name]
	if !ok || version > c.version {
		return Unknown{Name: name, Version: version, Data: bytes.Clone(data)}, nil
	}
	return c.decodeVersion(version, data)
}

func (c codec) decodeVersion(version int, data json.RawMessage) (Event, error) {
	for v := version; v < c.version; v++ {
		up, ok := c.upcasts[v]
		if !ok {
			return nil, fmt.Errorf("decode %s: no upcast from version %d", c.name, v)
		}
		var err error
		if data, err = up(data); err != nil {
			return nil, fmt.Errorf("decode %s: upcast from version %d: %w", c.name, v, err)
		}
	}
	e, err := c.decode(data)
	if err != nil {
		return nil, fmt.Errorf("decode %s version %d: %w", c.name, c.version, err)
	}
	return e, nil
}

// Encode returns the decision's stored form. Encoding is deterministic.
func Encode(d Decision) ([]byte, error) {
	if err := d.validate(); err != nil {
		return nil, err
	}
	s := stored{
		ID: d.ID, Time: d.Time.UTC(), Actor: d.Actor, Source: d.Source, Cause: d.Cause,
		Traceparent: d.Traceparent, Events: make([]storedEvent, len(d.Entries)),
	}
	for i, e := range d.Entries {
		version, data, err := EncodeEvent(e.Event)
		if err != nil {
			return nil, err
		}
		s.Events[i] = storedEvent{Type: e.Event.Type(), Version: version, Report: e.Report, Data: data}
		if e.DeviceTime != nil {
			at := e.DeviceTime.UTC()
			s.Events[i].DeviceTime = &at
		}
	}
	b, err := marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode decision: %w", err)
	}
	return b, nil
}

// Decode returns the decision of a stored form; its subject is the caller's.
func Decode(subject Subject, b []byte) (Decision, error) {
	var s stored
	if err := json.Unmarshal(b, &s); err != nil {
		return Decision{}, fmt.Errorf("decode decision: %w", err)
	}
	d := Decision{
		ID: s.ID, Subject: subject, Time: s.Time, Actor: s.Actor, Source: s.Source, Cause: s.Cause,
		Traceparent: s.Traceparent, Entries: make([]Entry, len(s.Events)),
	}
	for i, e := range s.Events {
		ev, err := DecodeEvent(e.Type, e.Version, e.Data)
		if err != nil {
			return Decision{}, err
		}
		d.Entries[i] = Entry{Event: ev, DeviceTime: e.DeviceTime, Report: e.Report}
	}
	if err := d.validate(); err != nil {
		return Decision{}, fmt.Errorf("decode decision: %w", err)
	}
	return d, nil
}

func (d Decision) validate() error {
	switch {
	case d.ID == "":
		return errors.New("decision without id")
	case d.Time.IsZero():
		return errors.New("decision without time")
	case d.Actor == "":
		return errors.New("decision without actor")
	case len(d.Entries) == 0:
		return errors.New("decision without events")
	}
	for _, e := range d.Entries {
		if e.Event == nil {
			return errors.New("decision with an empty entry")
		}
	}
	return d.Subject.Validate()
}
