package commands

import (
	"fmt"
	"time"

	"pallas/events"
)

// States are the folded aggregates that a command is decided on. Only those
// that the command concerns need be set: its own, and for RequestTask the
// device and its inventory, for the reports, for UseJoinToken, and for
// IssueJoinToken with a device, the device, for commands about a user who may do
// what.
type States struct {
	Device    Device
	Inventory Inventory
	Tasks     Tasks
	Token     JoinToken
	Access    Access
	User      User
	Authority Authority
}

// Outcome is what was decided. No entries means that nothing has to be
// written.
type Outcome struct {
	Entries []events.Entry
	// Resync, Cursor and Invalid are as in Result.
	Resync  bool
	Cursor  uint64
	Invalid []InvalidFact
}

// Decide returns what follows from a command, given the states and the instant
// of the request. It is pure: no clock, no I/O, and its inputs stay as they
// are. A refusal is an *[Error].
func Decide(c Command, s States, now time.Time) (Outcome, error) {
	now = instant(now)
	if err := checkSubject(c.Subject()); err != nil {
		return Outcome{}, err
	}
	switch c := c.(type) {
	case RegisterDevice:
		return plain(s.Device.register(c, now))
	case ApproveDevice:
		return plain(s.Device.approve(c))
	case RetireDevice:
		return plain(s.Device.retire(c))
	case UpdateDevice:
		return plain(s.Device.update(c))
	case RejectDevice:
		return plain(s.Device.reject(c))
	case QuarantineDevice:
		return plain(s.Device.quarantine(c))
	case ReleaseDevice:
		return plain(s.Device.release(c))
	case ClaimKey:
		return plain(s.Device.claim(c))
	case RekeyDevice:
		return plain(s.Device.rekey(c))
	case ConnectDevice:
		return plain(s.Device.connect(c))
	case LoseDevice:
		return plain(s.Device.lose(c))
	case RenewCertificate:
		return plain(s.Device.renew(c, now))
	case RotateCertificate:
		return plain(s.Device.rotate(c))
	case ReportAnchors:
		return plain(s.Device.reportAnchors(c))
	case RecordAuthority:
		return plain(s.Authority.record(c))
	case ReportInventory:
		return s.Inventory.report(c, s.Device)
	case RequestTask:
		return plain(s.Tasks.request(c, s.Device, s.Inventory, now))
	case CancelTask:
		return plain(s.Tasks.cancel(c))
	case ExpireTask:
		return plain(s.Tasks.expire(c, now))
	case EndTask:
		return plain(s.Tasks.end(c))
	case ReportTasks:
		return s.Tasks.report(c, s.Device)
	case IssueJoinToken:
		return plain(s.Token.issue(c, s.Device, now))
	case UseJoinToken:
		return plain(s.Token.use(c, s.Device, now))
	case RevokeJoinToken:
		return plain(s.Token.revoke(c))
	case RefuseJoins:
		return plain(s.Token.refuse(c))
	case CreateUser:
		return plain(s.Access.create(c))
	case GrantRole:
		return plain(s.Access.grant(c))
	case RevokeRole:
		return plain(s.Access.revoke(c))
	case DisableUser:
		return plain(s.Access.disable(c))
	case EnableUser:
		return plain(s.Access.enable(c))
	case DeleteUser:
		return plain(s.Access.remove(c))
	case IssueAPIToken:
		return plain(s.User.issueToken(c, s.Access, now))
	case RevokeAPIToken:
		return plain(s.User.revokeToken(c))
	case UseAPIToken:
		return plain(s.User.useToken(c))
	case RecordSignIn:
		return plain(recordSignIn(c, s.Access))
	case RecordSignInFailure:
		return plain(recordFailure(c))
	case RecordPassword:
		return plain(recordPassword(c, s.Access))
	case IssuePasswordReset:
		return plain(issueReset(c, s.Access, now))
	case RecordSessionsEnded:
		return plain(recordEnded(c, s.Access))
	case DenyAccess:
		return plain(s.User.deny(c, s.Access, now))
	}
	return Outcome{}, fmt.Errorf("decide on %T: not a command of this package", c)
}

// plain makes an outcome of events that no device reported.
func plain(list []events.Event, err error) (Outcome, error) {
	if err != nil || len(list) == 0 {
		return Outcome{}, err
	}
	out := Outcome{Entries: make([]events.Entry, len(list))}
	for i, e := range list {
		out.Entries[i] = events.Entry{Event: e}
	}
	return out, nil
}

// reported makes the entry of an event that a device reported. The device's
// clock is a claim: an instant that cannot be written down is left out.
func reported(e events.Event, epoch, seq uint64, at time.Time) events.Entry {
	en := events.Entry{Event: e, Report: &events.Report{Epoch: epoch, Seq: seq}}
	if !at.IsZero() && storable(at) {
		at = instant(at)
		en.DeviceTime = &at
	}
	return en
}

// checkNumbers refuses a report whose numbering makes no sense: that is a fault
// of the caller, not of a fact.
func checkNumbers(epoch uint64, n int, seq func(int) uint64) *Error {
	switch {
	case epoch == 0 || epoch >= maxNumber:
		return invalid("epoch", "%d: want 1 to 2^53-1", epoch)
	case n > MaxFacts:
		return invalid("facts", "%d facts: give at most %d", n, MaxFacts)
	}
	last := uint64(0)
	for i := range n {
		s := seq(i)
		if s <= last || s >= maxNumber {
			return invalid("facts", "sequence %d after %d: want ascending sequences from 1 to 2^53-1", s, last)
		}
		last = s
	}
	return nil
}

// folded is the state of one aggregate. One that is in the cache is never
// changed: fork it first.
type folded interface {
	// fork returns a copy that may be folded into without touching the
	// original.
	fork() folded
	// fold applies a record in place. Events that it has no meaning for, the
	// unknown ones included, only advance the revision.
	fold(events.Record)
	// size is about how many bytes the state takes.
	size() int
}

// newFolded returns the state of an aggregate that nothing has happened to.
func newFolded(s events.Subject) (folded, error) {
	switch s.Kind() {
	case events.KindDevice:
		return &Device{}, nil
	case events.KindInventory:
		return &Inventory{}, nil
	case events.KindTasks:
		return &Tasks{}, nil
	case events.KindToken:
		return &JoinToken{}, nil
	case events.KindAccess:
		return &Access{}, nil
	case events.KindUser:
		return &User{}, nil
	case events.KindAuthority:
		return &Authority{}, nil
	}
	return nil, fmt.Errorf("subject %q: no aggregate of this package", s)
}

// evolve is the pure form of fold.
func evolve[P interface {
	*S
	folded
}, S any](s S, r events.Record) S {
	n := P(&s).fork()
	n.fold(r)
	return *n.(P)
}
