package commandhttp

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"pallas/commands"
	"pallas/events"
	"pallas/internal/auth"
	"pallas/internal/httpapi"
)

// VMPath names a virtual machine.
type VMPath struct {
	DevicePath
	VM string `path:"vm" example:"52f7b6a1-40c1-8d3e-9a57-0f1e2d3c4b5a" doc:"Id of the virtual machine on its device."`
}

// SetVMPower asks for a power operation.
type SetVMPower struct {
	Action   string    `json:"action" enum:"on,off,reset,suspend,shutdown" example:"on" doc:"What to do. off and reset are hard; shutdown asks the guest and needs its tools."`
	Timeout  int       `json:"timeout,omitempty" minimum:"5" maximum:"2592000" example:"900" doc:"Seconds within which the device must take the task, or it expires. 900 when neither this nor deadline is given."`
	Deadline time.Time `json:"deadline,omitzero" example:"2026-11-23T09:45:00Z" doc:"The same as an instant, at most 30 days away. Not together with timeout."`
}

// defaultTimeout is how long a device has to take a task when the request does
// not say: long enough for a link that comes and goes.
const defaultTimeout = 15 * time.Minute

var powerKinds = map[string]events.TaskKind{
	"on": events.TaskVMPowerOn, "off": events.TaskVMPowerOff, "reset": events.TaskVMReset,
	"suspend": events.TaskVMSuspend, "shutdown": events.TaskVMShutdown,
}

// TaskWritten answers a request for work on a device.
type TaskWritten struct {
	Written
	Location string `header:"Location" example:"/api/v1/tasks/c0a8f3de-5f0e-5b1c-8d6f-2b3c4d5e6f70" doc:"Where to watch the task."`
	Body     httpapi.Task
}

func (h *Handlers) registerVMs(api huma.API) {
	huma.Register(api, huma.Operation{
		OperationID: "set-vm-power", Method: http.MethodPost, Path: httpapi.Prefix + "/vms/{device}/{vm}/power", Tags: []string{"vms"},
		Extensions:    httpapi.Needs(auth.OperateVMs),
		Summary:       "Power a virtual machine on or off, reset, suspend or shut it down",
		Description:   "Answers with a task when the request is in the log. The device does it when it is connected, before the deadline; the task says how it ended. The virtual machine's state changes when its host reports it.",
		DefaultStatus: http.StatusAccepted, Errors: []int{http.StatusConflict},
	}, h.setVMPower)
}

func (h *Handlers) setVMPower(ctx context.Context, in *struct {
	VMPath
	KeyHeader
	Body SetVMPower
},
) (*TaskWritten, error) {
	device, err := deviceID(in.Device)
	if err != nil {
		return nil, err
	}
	vm, err := events.ParseVMID(in.VM)
	if err != nil {
		return nil, httpapi.NewProblem(httpapi.KindNotFound, err.Error(), httpapi.FieldError{Field: "path.vm", Message: err.Error()})
	}
	r := httpapi.RequestOf(ctx)
	deadline := in.Body.Deadline
	switch {
	case !deadline.IsZero() && in.Body.Timeout != 0:
		return nil, httpapi.Invalid("body.timeout", "not together with deadline: give one of them")
	case in.Body.Timeout != 0:
		deadline = r.Time.Add(time.Duration(in.Body.Timeout) * time.Second)
	case deadline.IsZero():
		deadline = r.Time.Add(defaultTimeout)
	}
	// The device is part of the id: one key for two devices makes two tasks,
	// never one id twice.
	task := events.TaskID(events.NewID())
	if in.IdempotencyKey != "" {
		task = events.TaskID(events.DeriveID("task", string(r.Principal.Actor), in.IdempotencyKey, string(device)))
	}
	res, err := h.do(ctx, in.IdempotencyKey, commands.RequestTask{
		Device: device, Task: task, Kind: powerKinds[in.Body.Action], VM: vm, Deadline: deadline,
	})
	if err != nil {
		return nil, mapError(ctx, err)
	}
	return h.taskWritten(ctx, device, task, res)
}
