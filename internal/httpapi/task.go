package httpapi

import "time"

// Task is long-running work on a device.
type Task struct {
	ID              string      `json:"id" format:"uuid" example:"c0a8f3de-5f0e-5b1c-8d6f-2b3c4d5e6f70" doc:"Id. The same Idempotency-Key leads to the same task."`
	Device          string      `json:"device" format:"uuid" example:"6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f" doc:"Device that does the work."`
	DeviceName      string      `json:"deviceName,omitempty" example:"esx-fra-01.example.net" doc:"The device's name now. Absent in answers to writes."`
	Kind            string      `json:"kind" enum:"vm.power-on,vm.power-off,vm.reset,vm.suspend,vm.shutdown" example:"vm.power-on" doc:"What is to be done."`
	VM              string      `json:"vm,omitempty" example:"52f7b6a1-40c1-8d3e-9a57-0f1e2d3c4b5a" doc:"Virtual machine it is done to."`
	VMName          string      `json:"vmName,omitempty" example:"pos-server" doc:"Name of the virtual machine when the task was asked for. Absent in answers to writes."`
	Status          string      `json:"status" enum:"requested,accepted,succeeded,failed,cancelled,rejected,expired" example:"requested" doc:"How far it has come. The last five are ends; a task reaches exactly one."`
	Percent         int         `json:"percent" minimum:"0" maximum:"100" example:"40" doc:"Progress of an accepted task."`
	Code            string      `json:"code,omitempty" example:"invalid_state" doc:"Code of a failure or a rejection."`
	Message         string      `json:"message,omitempty" example:"The attempted operation cannot be performed in the current state (Powered on)." doc:"The host's own reason, or the last progress message."`
	CancelRequested bool        `json:"cancelRequested" example:"false" doc:"Whether somebody asked to cancel it."`
	RequestedBy     string      `json:"requestedBy,omitempty" example:"user:admin" doc:"Who asked for it. Absent in answers to writes."`
	RequestedAt     time.Time   `json:"requestedAt,omitzero" example:"2026-11-23T09:30:00Z" doc:"When it was asked for."`
	AcceptedAt      time.Time   `json:"acceptedAt,omitzero" example:"2026-11-23T09:30:00.05Z" doc:"When the device took it. Absent in answers to writes."`
	EndedAt         time.Time   `json:"endedAt,omitzero" example:"2026-11-23T09:30:02Z" doc:"When it ended."`
	Deadline        time.Time   `json:"deadline" example:"2026-11-23T09:45:00Z" doc:"When it expires unless it has ended."`
	Late            *LateReport `json:"late,omitempty" doc:"What the device said after the task had already ended here."`
	Revision        uint64      `json:"revision" example:"1840" doc:"Position of the last event of the task, or of the device's task queue in answers to writes."`
}

// LateReport is what a device said of a task that had already ended here. The
// end stays what it was.
type LateReport struct {
	Status  string    `json:"status" enum:"accepted,succeeded,failed,cancelled,rejected,expired" example:"succeeded" doc:"How it went on the device."`
	At      time.Time `json:"at" example:"2026-11-23T11:02:00Z" doc:"When the report arrived."`
	Code    string    `json:"code,omitempty" example:"interrupted" doc:"Code of a failure."`
	Message string    `json:"message,omitempty" example:"done before the link was lost" doc:"The host's own reason."`
}
