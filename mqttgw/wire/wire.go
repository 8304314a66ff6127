package wire

import (
	"time"

	"github.com/google/uuid"
)

// Version is the protocol version this package speaks. A manager serves every
// version from 1 to its own.
const Version = 1

// Limits of the protocol. Both sides enforce them; a packet beyond one is
// refused as a whole.
const (
	MaxPacket  = 128 << 10 // bytes of one MQTT payload
	MaxReports = 256       // reports in one Up
	MaxTasks   = 64        // tasks in one Down
	MaxText    = 4 << 10   // bytes of any text field
	MaxVMs     = 2000      // virtual machines of one host
	MaxItems   = 512       // disks, NICs, addresses, datastores, networks of one object

	MaxCertificate = 4 << 10 // bytes of a certificate or a certificate request
	MaxAnchors     = 4       // CAs that a device trusts at once
)

// AnchorSize is the length of the name of a CA in bytes, see [AnchorID].
const AnchorSize = 8

// Up is a packet from a device. Any combination of its parts may be present.
type Up struct {
	Version int      `cbor:"1,keyasint" json:"version"`
	Hello   *Hello   `cbor:"2,keyasint,omitempty" json:"hello"`
	Epoch   uint64   `cbor:"3,keyasint,omitempty" json:"epoch"`   // of Reports
	Reports []Report `cbor:"4,keyasint,omitempty" json:"reports"` // consecutive sequences
	Bye     *Bye     `cbor:"5,keyasint,omitempty" json:"bye"`
	// Renewal asks for another certificate.
	Renewal *Renewal `cbor:"6,keyasint,omitempty" json:"renewal"`
	// Anchors name the CAs that the device accepts the manager by, as [AnchorID]
	// does. It is sent with each Hello, and after each [Certificate].
	Anchors [][]byte `cbor:"7,keyasint,omitempty" json:"anchors"`
}

// Down is a packet to a device.
type Down struct {
	Version int      `cbor:"1,keyasint" json:"version"`
	Welcome *Welcome `cbor:"2,keyasint,omitempty" json:"welcome"`
	Receipt *Receipt `cbor:"3,keyasint,omitempty" json:"receipt"`
	Tasks   []Task   `cbor:"4,keyasint,omitempty" json:"tasks"`
	// Time is the manager's clock, by which the deadlines of Tasks are to be
	// judged: it may have been set since the Welcome. The zero value, from older
	// managers, says nothing.
	Time time.Time `cbor:"10,keyasint,omitzero" json:"time,omitzero"`
	// Cancels are tasks not to begin. A device answers each with a TaskState, also
	// one that it does not know.
	Cancels []uuid.UUID `cbor:"5,keyasint,omitempty" json:"cancels"`
	Resend  *Resend     `cbor:"6,keyasint,omitempty" json:"resend"`
	// Resync asks for a complete inventory.
	Resync bool   `cbor:"7,keyasint,omitempty" json:"resync"`
	Error  *Error `cbor:"8,keyasint,omitempty" json:"error"`
	// Greet asks the device for a Hello: the manager does not know the session.
	Greet bool `cbor:"9,keyasint,omitempty" json:"greet"`
	// Certificate is what the device shows and whom it trusts from the next
	// connection on.
	Certificate *Certificate `cbor:"11,keyasint,omitempty" json:"certificate"`
	// Renew asks the device for a Renewal, now and not when it is due.
	Renew bool `cbor:"12,keyasint,omitempty" json:"renew"`
	// Retired says that the device was retired: its certificate is worth nothing
	// any more, and it is to erase what makes it this device.
	Retired bool `cbor:"13,keyasint,omitempty" json:"retired"`
}

// Hello opens a session. A device sends it after each subscription, and again
// when a Down asks it to greet.
type Hello struct {
	Agent string `cbor:"1,keyasint" json:"agent"` // agent version
	Epoch uint64 `cbor:"2,keyasint" json:"epoch"` // of the outbox, below 2^53
	// First is the sequence of the oldest report without a receipt, or the
	// next one to be made when there is none. All before it are receipted.
	First uint64 `cbor:"3,keyasint" json:"first"`
	// Next is the sequence of the next report to be made: First when every
	// report is receipted.
	Next uint64 `cbor:"7,keyasint" json:"next"`
	// Inventory is the hash of the inventory that results once every report
	// before Next is applied; empty when the device has none yet.
	Inventory []byte `cbor:"4,keyasint,omitempty" json:"inventory"`
	// Time is the device's clock.
	Time time.Time `cbor:"5,keyasint" json:"time"`
	// Open is the tasks in the device's journal that have not ended there.
	Open []uuid.UUID `cbor:"6,keyasint,omitempty" json:"open"`
	// Instance is random, drawn at each start of the device's program, InstanceSize
	// bytes. When one comes back after another, two programs run as one device.
	// Empty from older devices.
	Instance []byte `cbor:"8,keyasint,omitempty" json:"instance"`
}

// Renewal asks for another certificate for the device's key, over a session that
// the one before made possible. It is answered with a [Certificate], or with an
// [Error] of ErrorRenewal. Without an answer it is sent again, the same bytes.
type Renewal struct {
	// CSR is a certificate request (PKCS #10, DER): P-256, common name = the
	// device's id, signed by the device's key.
	CSR []byte `cbor:"1,keyasint" json:"csr"`
}

// Certificate is the answer to a [Renewal], or tells of other CAs.
type Certificate struct {
	// Leaf is the device's certificate (DER); empty when it stays as it is.
	Leaf []byte `cbor:"1,keyasint,omitempty" json:"leaf"`
	// CAs are those by which the device accepts the manager from now on (DER), in
	// place of those that it had: one, or two while one takes over from the
	// other.
	CAs [][]byte `cbor:"2,keyasint" json:"cas"`
}

// InstanceSize is the length of [Hello].Instance in bytes.
const InstanceSize = 8

// Bye says that the device is about to close the session on purpose.
type Bye struct {
	Reason string `cbor:"1,keyasint,omitempty" json:"reason"`
}

// Welcome answers a Hello.
type Welcome struct {
	// Time is the manager's clock.
	Time time.Time `cbor:"1,keyasint" json:"time"`
	// Next is the sequence the manager expects next: all before it need not be
	// sent. They are not receipted by this.
	// A device for which it is before Hello.First or beyond Hello.Next knows that
	// it or the manager was set back to an older copy: it starts a new epoch.
	Next     uint64   `cbor:"2,keyasint" json:"next"`
	Settings Settings `cbor:"3,keyasint" json:"settings"`
	// Pending says that the device waits for approval: it keeps the session
	// and sends no reports until another Welcome.
	Pending bool `cbor:"4,keyasint,omitempty" json:"pending"`
}

// Settings govern a session.
type Settings struct {
	// Window is the number of reports that may be without a receipt.
	Window int `cbor:"1,keyasint" json:"window"`
	// KeepAlive is for the next connection, in seconds.
	KeepAlive int `cbor:"2,keyasint" json:"keepAlive"`
	// Reconcile is the interval of a full comparison with the host, in seconds.
	Reconcile int `cbor:"3,keyasint" json:"reconcile"`
	// Resend is how long to wait for a receipt before sending again, in
	// milliseconds. It doubles with each repeat, up to 60 s.
	Resend int `cbor:"4,keyasint" json:"resend"`
	// Deflate says that a device may deflate its packets; see EncodeUpDeflated.
	// A manager that does not know of it does not say so.
	Deflate bool `cbor:"5,keyasint,omitempty" json:"deflate"`
}

// Receipt says that every report up to Seq is in the log and durable. The
// device may forget them.
type Receipt struct {
	Epoch uint64 `cbor:"1,keyasint" json:"epoch"`
	Seq   uint64 `cbor:"2,keyasint" json:"seq"`
}

// Resend asks for the reports from Seq on: the manager saw a gap.
type Resend struct {
	Epoch uint64 `cbor:"1,keyasint" json:"epoch"`
	Seq   uint64 `cbor:"2,keyasint" json:"seq"`
}

// Error codes of [Error].
const (
	ErrorMalformed = "malformed"    // not CBOR, or not this protocol
	ErrorTooLarge  = "too_large"    // beyond a limit
	ErrorVersion   = "version"      // a protocol version the manager does not serve
	ErrorUnknown   = "unknown_kind" // a report of a kind the manager does not know
	ErrorInvalid   = "invalid"      // a field is out of range
	ErrorNoSpace   = "no_space"     // the manager cannot write; keep and retry
	ErrorRenewal   = "renewal"      // a Renewal was refused; the message says why
)

// Error tells the device that something it sent was refused.
type Error struct {
	Code    string `cbor:"1,keyasint" json:"code"`
	Message string `cbor:"2,keyasint" json:"message"`
	// Seq is the report it speaks of, 0 for none.
	Seq uint64 `cbor:"3,keyasint,omitempty" json:"seq"`
}

// Report is one numbered fact. Exactly one of its parts is set; none means a
// kind that this build does not know.
type Report struct {
	Seq  uint64    `cbor:"1,keyasint" json:"seq"`
	Time time.Time `cbor:"2,keyasint" json:"time"` // device clock, corrected by the manager's

	Host      *Host      `cbor:"3,keyasint,omitempty" json:"host"`
	Condition *Condition `cbor:"4,keyasint,omitempty" json:"condition"`
	VM        *VM        `cbor:"5,keyasint,omitempty" json:"vm"`      // complete
	VMPatch   *VMPatch   `cbor:"6,keyasint,omitempty" json:"vmPatch"` // changed fields
	VMGone    *VMGone    `cbor:"7,keyasint,omitempty" json:"vmGone"`
	Inventory *Inventory `cbor:"8,keyasint,omitempty" json:"inventory"`
	Task      *TaskState `cbor:"9,keyasint,omitempty" json:"task"`
}

// Known says whether the report is of a kind that this build knows.
func (r Report) Known() bool {
	return r.Host != nil || r.Condition != nil || r.VM != nil || r.VMPatch != nil ||
		r.VMGone != nil || r.Inventory != nil || r.Task != nil
}

// Inventory ends a complete inventory: the reports before it held the host and
// every virtual machine; whatever is not in VMs is gone.
type Inventory struct {
	VMs  []string `cbor:"1,keyasint,omitempty" json:"vms"` // ids, sorted
	Hash []byte   `cbor:"2,keyasint" json:"hash"`
}

// VMGone says that a virtual machine is no longer on the host.
type VMGone struct {
	ID string `cbor:"1,keyasint" json:"id"`
}

// Conditions of a host, as the agent sees it.
const (
	ConditionOK          = "ok"
	ConditionReadOnly    = "readOnly"
	ConditionDenied      = "denied"
	ConditionUnreachable = "unreachable"
)

// Condition says how well the agent can manage its host.
type Condition struct {
	Condition string `cbor:"1,keyasint" json:"condition"`
	Message   string `cbor:"2,keyasint,omitempty" json:"message"`
}

// Task is work for the device.
type Task struct {
	ID   uuid.UUID `cbor:"1,keyasint" json:"id"`
	Kind string    `cbor:"2,keyasint" json:"kind"`
	VM   string    `cbor:"3,keyasint,omitempty" json:"vm"`
	// Deadline is when the task must not begin any more, by the manager's
	// clock.
	Deadline time.Time `cbor:"4,keyasint" json:"deadline"`
}

// Kinds of task.
const (
	TaskVMPowerOn  = "vm.power-on"
	TaskVMPowerOff = "vm.power-off"
	TaskVMReset    = "vm.reset"
	TaskVMSuspend  = "vm.suspend"
	TaskVMShutdown = "vm.shutdown"
)

// States of a task that a device reports.
const (
	StateAccepted  = "accepted"
	StateProgress  = "progress"
	StateSucceeded = "succeeded"
	StateFailed    = "failed"
	StateRejected  = "rejected"
	StateCancelled = "cancelled"
)

// Task error codes, for StateFailed and StateRejected.
const (
	CodeInvalidState = "invalid_state" // the object is not in a state for it
	CodeNotFound     = "not_found"     // the object is not there
	CodeReadOnly     = "read_only"     // the host's licence forbids writing
	CodeDenied       = "denied"        // the host refuses the login or the right
	CodeUnreachable  = "unreachable"   // the host does not answer
	CodeTools        = "tools"         // needs running guest tools
	CodeUnsupported  = "unsupported"   // this agent or host cannot do it
	CodeInterrupted  = "interrupted"   // the agent stopped during it; outcome unknown
	CodeDeadline     = "deadline"      // arrived after its deadline
	CodeHost         = "host"          // any other fault of the host
)

// TaskState reports on a task.
type TaskState struct {
	ID      uuid.UUID `cbor:"1,keyasint" json:"id"`
	State   string    `cbor:"2,keyasint" json:"state"`
	Percent int       `cbor:"3,keyasint,omitempty" json:"percent"`
	Code    string    `cbor:"4,keyasint,omitempty" json:"code"`
	Message string    `cbor:"5,keyasint,omitempty" json:"message"`
}
