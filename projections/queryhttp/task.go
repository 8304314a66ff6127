package queryhttp

import (
	"context"
	"errors"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"pallas/events"
	"pallas/events/labels"
	"pallas/internal/auth"
	"pallas/internal/httpapi"
	"pallas/projections"
)

func (h *Handlers) registerTasks(api huma.API) {
	huma.Register(api, huma.Operation{
		OperationID: "list-tasks", Method: http.MethodGet, Path: httpapi.Prefix + "/tasks", Tags: []string{"tasks"},
		Extensions: httpapi.Needs(auth.ReadFleet),
		Summary:    "List tasks", Description: "Newest first.",
	}, h.listTasks)
	huma.Register(api, huma.Operation{
		OperationID: "get-task", Method: http.MethodGet, Path: httpapi.Prefix + "/tasks/{task}", Tags: []string{"tasks"},
		Extensions: httpapi.Needs(auth.ReadFleet),
		Summary:    "Get a task",
	}, h.getTask)
}

func (h *Handlers) listTasks(ctx context.Context, in *struct {
	Reading
	Window
	Device string   `query:"device" format:"uuid" example:"6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f" doc:"Only those of this device."`
	VM     string   `query:"vm" maxLength:"64" example:"52f7b6a1-40c1-8d3e-9a57-0f1e2d3c4b5a" doc:"Only those on this virtual machine. Needs device."`
	Status []string `query:"status" enum:"requested,accepted,succeeded,failed,cancelled,rejected,expired" example:"[\"failed\"]" doc:"Only those with one of these."`
	Kind   string   `query:"kind" enum:"vm.power-on,vm.power-off,vm.reset,vm.suspend,vm.shutdown" example:"vm.power-on" doc:"Only those of this kind."`
	Open   bool     `query:"open" example:"true" doc:"true leaves out those that have ended."`
},
) (*List[httpapi.Task], error) {
	id, err := deviceParam(in.Device)
	if err != nil {
		return nil, err
	}
	f := projections.TaskFilter{Scope: scope(ctx), Device: id, Status: as[events.TaskStatus](in.Status), Kind: events.TaskKind(in.Kind), Open: in.Open, Window: in.of()}
	if in.VM != "" {
		if f.VM, err = events.ParseVMID(in.VM); err != nil {
			return nil, httpapi.Invalid("query.vm", err.Error())
		}
		if id == "" {
			return nil, httpapi.Invalid("query.vm", "needs device: the id means nothing without it")
		}
	}
	position, err := h.wait(ctx, in.Reading)
	if err != nil {
		return nil, err
	}
	p, err := h.cfg.DB.Tasks(ctx, f)
	return list(ctx, p, err, position, task)
}

func (h *Handlers) getTask(ctx context.Context, in *struct {
	Reading
	Conditional
	Task string `path:"task" example:"c0a8f3de-5f0e-5b1c-8d6f-2b3c4d5e6f70" doc:"Task id."`
},
) (*One[httpapi.Task], error) {
	id, err := events.ParseUUID("task id", in.Task)
	if err != nil {
		return nil, httpapi.NewProblem(httpapi.KindNotFound, err.Error(), httpapi.FieldError{Field: "path.task", Message: err.Error()})
	}
	position, err := h.wait(ctx, in.Reading)
	if err != nil {
		return nil, err
	}
	t, err := h.cfg.DB.Task(ctx, scope(ctx), events.TaskID(id))
	switch {
	case errors.Is(err, projections.ErrNotFound):
		return nil, httpapi.NotFound("task", id)
	case err != nil:
		return nil, mapError(ctx, err)
	}
	return one(position, t.ChangedPosition, in.Conditional, task(t)), nil
}

// TaskDevice returns the device of a task, or "" when the log has no such task of
// a device in the scope. It first waits, bounded, until the read model has all of the log.
func (h *Handlers) TaskDevice(ctx context.Context, scope labels.Scope, id events.TaskID) (events.DeviceID, error) {
	last, err := h.cfg.Store.Last(ctx)
	if err != nil {
		return "", err
	}
	if _, err := h.wait(ctx, Reading{At: last}); err != nil {
		return "", err
	}
	t, err := h.cfg.DB.Task(ctx, scope, id)
	switch {
	case errors.Is(err, projections.ErrNotFound):
		return "", nil
	case err != nil:
		return "", mapError(ctx, err)
	}
	return t.Device, nil
}

func task(t projections.Task) httpapi.Task {
	out := httpapi.Task{
		ID: string(t.ID), Device: string(t.Device), DeviceName: t.DeviceName, Kind: string(t.Kind), VM: string(t.VM), VMName: t.VMName,
		Status: string(t.Status), Percent: t.Percent, Code: t.Code, Message: t.Message,
		CancelRequested: !t.CancelRequestedAt.IsZero(), RequestedBy: string(t.RequestedBy), RequestedAt: t.RequestedAt,
		AcceptedAt: t.AcceptedAt, EndedAt: t.EndedAt, Deadline: t.Deadline, Revision: t.ChangedPosition,
	}
	if l := t.Late; l != nil {
		out.Late = &httpapi.LateReport{Status: string(l.Status), At: l.At, Code: l.Code, Message: l.Message}
	}
	return out
}
