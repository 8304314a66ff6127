package commands

import (
	"time"

	"pallas/events"
	"pallas/events/labels"
)

// Command is a request to one aggregate. The variants are the struct types of
// this package that [Decide] lists.
//
//sumtype:decl
type Command interface {
	// Subject is the aggregate that decides.
	Subject() events.Subject
	// sealed keeps the set of variants closed.
	sealed()
}

// Meta is what the edge knows of a request.
type Meta struct {
	// CommandID identifies the request: the same id from the same actor for the
	// same command is the same request, and gets the answer of the first. At
	// most 255 bytes; "" means that the dispatcher makes one.
	CommandID string
	// Actor is who asks; required.
	Actor events.Actor
	// Scope holds the devices that the actor may touch: what is outside does not
	// exist for the command. Nil means that no scope binds the actor, which is
	// for the system, devices and join tokens only: without a scope a command of
	// a user about something with labels is a defect, and an error.
	Scope *labels.Scope
	// Source is the remote address without a port; "" for the system itself.
	Source string
	// Cause is the id of the command or task that led to this one, for the
	// system's own commands; "" means CommandID.
	Cause string
	// Traceparent is the W3C trace context of the request, if it had one.
	Traceparent string
	// Time is the instant of the request; zero means that the dispatcher reads
	// its clock, once.
	Time time.Time
}

// Result is the answer to a command that was not refused.
type Result struct {
	// Position of the decision in the log, or the aggregate's revision when
	// nothing had to be written.
	Position uint64
	// Changed says that this call appended a decision.
	Changed bool
	// Resync says that a fact of ReportInventory did not fit what is known: ask
	// the device for a complete inventory.
	Resync bool
	// Cursor is, for ReportInventory and ReportTasks, the highest sequence of
	// the epoch that is in this aggregate now. Facts after it that changed
	// nothing are not in the log and need not be.
	Cursor uint64
	// Invalid lists the facts of a report that were refused. The other facts
	// are in the log: one bad fact must not hold up a device's queue for ever.
	// Answer each with an error and count it as received.
	Invalid []InvalidFact
}

// InvalidFact is a reported fact that was refused.
type InvalidFact struct {
	Seq uint64
	// Message names the field and what is wrong with it.
	Message string
}

// Policy decides whether an actor may give a command. It sees every command
// before anything is read; its error, usually an [Error] of KindDenied, is the
// caller's answer. It must be quick and safe for concurrent use.
type Policy interface {
	Allow(c Command, m Meta) error
}

// Session is a device's live connection, as the device door sees it.
type Session struct {
	// Conn identifies the connection. A takeover gets another one.
	Conn uint64
	// Address is where the connection came from, without a port.
	Address      string
	AgentVersion string
	// Protocol is the version of the device protocol.
	Protocol int
	// At is when the session greeted the manager.
	At time.Time
}
