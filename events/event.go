package events

import (
	"encoding/json"
	"time"
)

// Event is a fact in the past tense. The variants are the struct types of this
// package that the codec table lists, and [Unknown].
type Event interface {
	// Type is the name under which the event is stored, such as
	// "DeviceRegistered".
	Type() string
	// sealed keeps the set of variants closed.
	sealed()
}

// Unknown is an event that this build has no type for. It keeps the stored
// form, and writes it back unchanged.
type Unknown struct {
	Name    string
	Version int
	Data    json.RawMessage
}

// Type returns the stored type name.
func (u Unknown) Type() string { return u.Name }
func (Unknown) sealed()        {}

// Report is the place of a device's report in the device's own numbering.
type Report struct {
	// Epoch identifies one life of the device's outbox. It changes only when
	// the outbox was lost.
	Epoch uint64 `json:"epoch"`
	// Seq counts from 1 within the epoch without a gap.
	Seq uint64 `json:"seq"`
}

// Actor is who caused a decision: "user:<id>", "token:<id>", "device:<id>" or
// "system:<part>".
type Actor string

// UserActor is a person.
func UserActor(id string) Actor { return Actor("user:" + id) }

// TokenActor is who holds a join token.
func TokenActor(id TokenID) Actor { return Actor("token:" + id) }

// DeviceActor is a device, by its certificate.
func DeviceActor(id DeviceID) Actor { return Actor("device:" + id) }

// SystemActor is a part of the manager itself.
func SystemActor(part string) Actor { return Actor("system:" + part) }

// Entry is one event within a decision.
type Entry struct {
	Event Event
	// DeviceTime is when the device says it happened; nil when the event does
	// not come from a device. It is a claim: order by position, never by it.
	DeviceTime *time.Time
	// Report is the device's report that led to the event, nil if none did.
	Report *Report
}

// Decision is one or more events of one aggregate that became true together.
type Decision struct {
	// ID is the decision's identity. Appending the same ID twice within the
	// deduplication window writes once.
	ID ID
	// Subject is the aggregate.
	Subject Subject
	// Time is the manager's clock when it decided, in UTC, to the microsecond.
	Time time.Time
	// Actor is who asked. Source is the address the request came from, without
	// a port; empty for the system itself.
	Actor  Actor
	Source string
	// Cause is the id of the command or task that led here.
	Cause string
	// Traceparent is the W3C trace context of the request, if it had one.
	Traceparent string
	// Entries are the events, at least one.
	Entries []Entry
}

// Record is a decision as the log holds it.
type Record struct {
	Decision
	// Position is the place in the whole log, from 1, without a gap. The
	// position of an aggregate's newest decision is also the aggregate's
	// revision.
	Position uint64
}
