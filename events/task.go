package events

import "time"

// TaskKind is what a task does on the device. It is also the operation's name
// in the API and the CLI.
type TaskKind string

// The kinds of task.
const (
	TaskVMPowerOn  TaskKind = "vm.power-on"
	TaskVMPowerOff TaskKind = "vm.power-off"
	TaskVMReset    TaskKind = "vm.reset"
	TaskVMSuspend  TaskKind = "vm.suspend"
	TaskVMShutdown TaskKind = "vm.shutdown" // asks the guest; needs running tools
)

// TaskStatus is how far a task has come. The last five are ends: a task
// reaches exactly one of them and stays there.
type TaskStatus string

// The states of a task.
const (
	TaskStatusRequested TaskStatus = "requested"
	TaskStatusAccepted  TaskStatus = "accepted"
	TaskStatusSucceeded TaskStatus = "succeeded"
	TaskStatusFailed    TaskStatus = "failed"
	TaskStatusCancelled TaskStatus = "cancelled"
	TaskStatusRejected  TaskStatus = "rejected"
	TaskStatusExpired   TaskStatus = "expired"
)

// Ended says whether the status is one of the five ends.
func (s TaskStatus) Ended() bool {
	switch s {
	case TaskStatusSucceeded, TaskStatusFailed, TaskStatusCancelled, TaskStatusRejected, TaskStatusExpired:
		return true
	case TaskStatusRequested, TaskStatusAccepted:
		return false
	}
	return false
}

// TaskRequested says that somebody wants the device to do something.
type TaskRequested struct {
	Task TaskID   `json:"task"`
	Kind TaskKind `json:"kind"`
	VM   VMID     `json:"vm,omitempty"`
	// Deadline is when the task expires unless the device has accepted it.
	Deadline time.Time `json:"deadline"`
}

// TaskAccepted says that the device wrote the task to its journal and will
// bring it to an end.
type TaskAccepted struct {
	Task TaskID `json:"task"`
}

// TaskProgressed says how far an accepted task has come.
type TaskProgressed struct {
	Task TaskID `json:"task"`
	// Percent is 0 to 100.
	Percent int    `json:"percent"`
	Message string `json:"message,omitempty"`
}

// TaskSucceeded ends a task: it was done.
type TaskSucceeded struct {
	Task    TaskID `json:"task"`
	Message string `json:"message,omitempty"`
}

// TaskFailed ends a task: it was tried and did not work, or nobody can tell.
type TaskFailed struct {
	Task TaskID `json:"task"`
	// Code is one of the task error codes of the device protocol, such as
	// "invalid_state" or "interrupted".
	Code string `json:"code"`
	// Message is the host's own reason.
	Message string `json:"message"`
}

// TaskRejected ends a task that the device refused before it did anything.
type TaskRejected struct {
	Task    TaskID `json:"task"`
	Code    string `json:"code"`
	Message string `json:"message"`
}

// TaskCancelRequested says that somebody wants the task not to happen. The
// task ends when the device confirms, or at its deadline.
type TaskCancelRequested struct {
	Task TaskID `json:"task"`
}

// TaskCancelled ends a task that had not begun.
type TaskCancelled struct {
	Task    TaskID `json:"task"`
	Message string `json:"message,omitempty"`
}

// TaskExpired ends a task whose deadline passed.
type TaskExpired struct {
	Task    TaskID `json:"task"`
	Message string `json:"message"`
}

// TaskReportedLate records what a device said of a task that had already
// ended here. The end stays what it was; the truth is not hidden.
type TaskReportedLate struct {
	Task    TaskID     `json:"task"`
	Status  TaskStatus `json:"status"`
	Code    string     `json:"code,omitempty"`
	Message string     `json:"message,omitempty"`
}

func (TaskRequested) Type() string       { return "TaskRequested" }
func (TaskAccepted) Type() string        { return "TaskAccepted" }
func (TaskProgressed) Type() string      { return "TaskProgressed" }
func (TaskSucceeded) Type() string       { return "TaskSucceeded" }
func (TaskFailed) Type() string          { return "TaskFailed" }
func (TaskRejected) Type() string        { return "TaskRejected" }
func (TaskCancelRequested) Type() string { return "TaskCancelRequested" }
func (TaskCancelled) Type() string       { return "TaskCancelled" }
func (TaskExpired) Type() string         { return "TaskExpired" }
func (TaskReportedLate) Type() string    { return "TaskReportedLate" }

func (TaskRequested) sealed()       {}
func (TaskAccepted) sealed()        {}
func (TaskProgressed) sealed()      {}
func (TaskSucceeded) sealed()       {}
func (TaskFailed) sealed()          {}
func (TaskRejected) sealed()        {}
func (TaskCancelRequested) sealed() {}
func (TaskCancelled) sealed()       {}
func (TaskExpired) sealed()         {}
func (TaskReportedLate) sealed()    {}
