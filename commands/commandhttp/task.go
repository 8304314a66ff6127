package commandhttp

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"pallas/commands"
	"pallas/events"
	"pallas/internal/auth"
	"pallas/internal/httpapi"
)

func (h *Handlers) registerTasks(api huma.API) {
	huma.Register(api, huma.Operation{
		OperationID: "cancel-task", Method: http.MethodPost, Path: httpapi.Prefix + "/tasks/{task}/cancel", Tags: []string{"tasks"},
		Extensions:    httpapi.Needs(auth.OperateVMs),
		Summary:       "Ask for a task not to happen",
		Description:   "A task that its device has not begun becomes cancelled when the device confirms, or at its deadline. One that has begun goes on to its end. Asking twice changes nothing.",
		DefaultStatus: http.StatusAccepted, Errors: []int{http.StatusConflict},
	}, h.cancelTask)
}

func (h *Handlers) cancelTask(ctx context.Context, in *struct {
	Task string `path:"task" example:"c0a8f3de-5f0e-5b1c-8d6f-2b3c4d5e6f70" doc:"Task id."`
},
) (*TaskWritten, error) {
	id, err := events.ParseUUID("task id", in.Task)
	if err != nil {
		return nil, httpapi.NewProblem(httpapi.KindNotFound, err.Error(), httpapi.FieldError{Field: "path.task", Message: err.Error()})
	}
	task := events.TaskID(id)
	device, err := h.cfg.TaskDevice(ctx, httpapi.RequestOf(ctx).Scope, task)
	switch {
	case err != nil:
		return nil, mapError(ctx, err)
	case device == "":
		return nil, httpapi.NotFound("task", id)
	}
	// The labels that count are those of the write side.
	switch _, err := h.device(ctx, device); {
	case commands.KindOf(err) == commands.KindNotFound:
		return nil, httpapi.NotFound("task", id)
	case err != nil:
		return nil, mapError(ctx, err)
	}
	// A task that ended long ago is no longer in the queue's state.
	tasks, err := h.cfg.Commands.Tasks(ctx, device)
	if err != nil {
		return nil, mapError(ctx, err)
	}
	if _, ok := tasks.Tasks[task]; !ok {
		p := httpapi.NewProblem(httpapi.KindConflict, "the task ended more than a day ago")
		p.Code = commands.CodeTaskEnded
		return nil, p
	}
	res, err := h.do(ctx, "", commands.CancelTask{Device: device, Task: task})
	switch {
	case commands.KindOf(err) == commands.KindNotFound:
		return nil, httpapi.NotFound("task", id)
	case err != nil:
		return nil, mapError(ctx, err)
	}
	return h.taskWritten(ctx, device, task, res)
}

// taskWritten answers with the task as the write side has it.
func (h *Handlers) taskWritten(ctx context.Context, device events.DeviceID, id events.TaskID, res commands.Result) (*TaskWritten, error) {
	tasks, err := h.cfg.Commands.Tasks(ctx, device)
	if err != nil {
		return nil, mapError(ctx, err)
	}
	k, ok := tasks.Tasks[id]
	if !ok {
		return nil, httpapi.NotFound("task", string(id))
	}
	body := httpapi.Task{
		ID: string(k.ID), Device: string(device), Kind: string(k.Kind), VM: string(k.VM), Status: string(k.Status), Percent: k.Percent,
		Code: k.Code, CancelRequested: k.CancelRequested, RequestedAt: k.RequestedAt, EndedAt: k.EndedAt, Deadline: k.Deadline,
		Revision: tasks.Revision,
	}
	return &TaskWritten{
		Written:  Written{Position: res.Position},
		Location: httpapi.Prefix + "/tasks/" + string(id),
		Body:     body,
	}, nil
}
