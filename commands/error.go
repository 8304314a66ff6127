package commands

import (
	"errors"
	"fmt"
)

// Kind says what sort of refusal an [Error] is.
type Kind string

// The kinds of refusal.
const (
	KindInvalid  Kind = "invalid"  // a field is out of range: correct it
	KindNotFound Kind = "notFound" // no such object
	KindConflict Kind = "conflict" // the object is not in a state for it
	KindDenied   Kind = "denied"   // the caller may not
	KindStale    Kind = "stale"    // the object is not at the wanted revision
)

// Codes tell refusals of one kind apart, for callers that branch. They are
// stable.
const (
	CodeClone       = "clone"        // the device id is registered with another key
	CodePending     = "pending"      // the device waits for approval
	CodeRetired     = "retired"      // the device was retired
	CodeApproved    = "approved"     // the device is approved already
	CodeRejected    = "rejected"     // the device was rejected
	CodeQuarantined = "quarantined"  // the device is in quarantine
	CodeNoClaim     = "no_claim"     // nobody claims the device's id with that key
	CodeReadOnly    = "read_only"    // the host permits no changes
	CodePowerState  = "power_state"  // the virtual machine's power state forbids it
	CodeTools       = "tools"        // needs running guest tools
	CodeTaskOpen    = "task_open"    // the same task is open already
	CodeTaskLimit   = "task_limit"   // the device has too many open tasks
	CodeTaskEnded   = "task_ended"   // the task has ended
	CodeTaskReused  = "task_reused"  // the task id belongs to a task of the past
	CodeTokenUsedUp = "token_used"   // every use of the join token is taken
	CodeTokenEnded  = "token_ended"  // the join token has expired
	CodeTokenClosed = "token_closed" // the join token was revoked
	CodeOutOfScope  = "out_of_scope" // the labels would be outside the caller's scope
	CodeLastAdmin   = "last_admin"   // nobody would be left to administer everything
	CodeDisabled    = "disabled"     // the user is disabled
	CodeUserLimit   = "user_limit"   // there are too many users
	CodeGrantLimit  = "grant_limit"  // the user has too many grants
	CodeTokenLimit  = "token_limit"  // the user has too many API tokens
	CodeTokenDevice = "token_device" // the join token is for another device
	CodeKey         = "unknown_key"  // the key is not the one that the device registered with
	CodeLapsed      = "lapsed"       // the certificate ended too long ago to be renewed by its key
	CodeRenewals    = "renewals"     // the device got too many certificates lately
)

// Error is a refusal. Nothing was written.
type Error struct {
	Kind Kind
	// Field names the input at fault by its name in the API, or is empty.
	Field string
	// Code is one of the Code constants, or empty.
	Code string
	// Message is for people: what is wrong or what the state is, and what to
	// do.
	Message string
}

func (e *Error) Error() string {
	if e.Field == "" {
		return e.Message
	}
	return e.Field + ": " + e.Message
}

// KindOf returns the kind of the [Error] that err is or wraps, or "" when it
// wraps none.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return ""
}

func invalid(field, format string, args ...any) *Error {
	return &Error{Kind: KindInvalid, Field: field, Message: fmt.Sprintf(format, args...)}
}

func notFound(format string, args ...any) *Error {
	return &Error{Kind: KindNotFound, Message: fmt.Sprintf(format, args...)}
}

func conflict(code, format string, args ...any) *Error {
	return &Error{Kind: KindConflict, Code: code, Message: fmt.Sprintf(format, args...)}
}

func denied(code, format string, args ...any) *Error {
	return &Error{Kind: KindDenied, Code: code, Message: fmt.Sprintf(format, args...)}
}

func staleMessage(what string, want, have uint64) string {
	return fmt.Sprintf("%s is at revision %d, not %d: read it again and decide anew", what, have, want)
}
