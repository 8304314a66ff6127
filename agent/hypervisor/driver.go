package hypervisor

import (
	"context"
	"errors"
	"fmt"

	"pallas/mqttgw/wire"
)

// Snapshot is the complete state of a host. Lists are sorted as package wire
// prescribes.
type Snapshot struct {
	Host wire.Host
	VMs  []wire.VM // sorted by ID
}

// Driver talks to one host. Its methods are safe for concurrent use. Every
// error is, or wraps, an [Error].
type Driver interface {
	// Observe returns the complete current state, read from the host. It logs
	// in when needed, and again when the host dropped the session.
	Observe(ctx context.Context) (Snapshot, error)

	// Watch calls changed each time the host's state may have changed, at
	// least once after it is established, until ctx is done (nil) or the host
	// is lost (an error; the caller calls Watch again after a pause). Calls
	// are not concurrent, and changes during a call are folded into one.
	Watch(ctx context.Context, changed func()) error

	// Run carries out a task of one of the wire.Task kinds and returns when
	// the host says it is done or has failed; what it changed is then in
	// Observe. progress, which may be nil, may be called with 0 to 100.
	// Cancelling ctx gives up waiting; it does not undo.
	//
	// vm.shutdown needs running tools and is done when the machine is off.
	// Codes of its errors: CodeUnsupported for a kind the driver does not
	// know, CodeNotFound for a virtual machine that is not there,
	// CodeInvalidState for one whose power state does not allow the task,
	// CodeTools, CodeReadOnly (and Observe says so from then on), CodeDenied,
	// CodeUnreachable, and CodeHost for all else.
	Run(ctx context.Context, task wire.Task, progress func(percent int)) error

	// Check examines the host as an installation needs it: reachable,
	// certificate, login, rights, licence. It is for people: one line each, in
	// that order, stopping where going on makes no sense.
	Check(ctx context.Context) []CheckResult

	// LoadID and SaveID keep the device's permanent id on the host's own
	// storage, so that a rebuilt agent finds it again. LoadID returns "" when
	// there is none, and after SaveID was given "".
	LoadID(ctx context.Context) (string, error)
	SaveID(ctx context.Context, id string) error

	// Close logs out and frees what the driver holds.
	Close() error
}

// CheckResult is one line of Check.
type CheckResult struct {
	Name   string // such as "host login"
	OK     bool
	Detail string // what was found, or what to do
}

// Error is a host's fault in words that hold for every hypervisor.
type Error struct {
	// Code is one of wire's task error codes.
	Code string
	// Message is the host's own reason, fit for people.
	Message string
	// Err is the driver's inner error, if any.
	Err error
}

func (e *Error) Error() string {
	if e.Err == nil {
		return e.Message
	}
	return fmt.Sprintf("%s: %v", e.Message, e.Err)
}

// Unwrap returns the inner error.
func (e *Error) Unwrap() error { return e.Err }

// CodeOf returns the code of err: that of the [Error] it wraps, or
// wire.CodeHost.
func CodeOf(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return wire.CodeHost
}
