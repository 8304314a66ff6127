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

// VMState holds the parameters that pick virtual machines by state.
type VMState struct {
	Power []string `query:"power" enum:"on,off,suspended,unknown" example:"[\"on\"]" doc:"Only those with one of these power states."`
	Tools []string `query:"tools" enum:"running,notRunning,notInstalled,unknown" example:"[\"running\"]" doc:"Only those with one of these states of the guest tools."`
}

func (h *Handlers) registerVMs(api huma.API) {
	huma.Register(api, huma.Operation{
		OperationID: "list-vms", Method: http.MethodGet, Path: httpapi.Prefix + "/vms", Tags: []string{"vms"},
		Extensions: httpapi.Needs(auth.ReadFleet),
		Summary:    "List virtual machines", Description: "Of all devices, in the order of names, or of device and id.",
	}, h.listVMs)
	huma.Register(api, huma.Operation{
		OperationID: "get-vm", Method: http.MethodGet, Path: httpapi.Prefix + "/vms/{device}/{vm}", Tags: []string{"vms"},
		Extensions: httpapi.Needs(auth.ReadFleet),
		Summary:    "Get a virtual machine",
	}, h.getVM)
}

func (h *Handlers) listVMs(ctx context.Context, in *struct {
	Reading
	Labelled
	Sorted
	Window
	VMState
	Device string `query:"device" format:"uuid" example:"6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f" doc:"Only those of this device."`
},
) (*List[httpapi.VM], error) {
	id, err := deviceParam(in.Device)
	if err != nil {
		return nil, err
	}
	sel, err := labels.Parse(in.Selector)
	if err != nil {
		return nil, mapError(ctx, err)
	}
	position, err := h.wait(ctx, in.Reading)
	if err != nil {
		return nil, err
	}
	p, err := h.cfg.DB.VMs(ctx, projections.VMFilter{
		Scope: scope(ctx), Device: id, Power: as[events.PowerState](in.Power), Tools: as[events.ToolsState](in.Tools),
		Selector: sel, Text: in.Text, Sort: projections.Sort(in.Sort), Window: in.of(),
	})
	return list(ctx, p, err, position, vm)
}

func (h *Handlers) getVM(ctx context.Context, in *struct {
	Reading
	Conditional
	DevicePath
	VM string `path:"vm" example:"52f7b6a1-40c1-8d3e-9a57-0f1e2d3c4b5a" doc:"Id of the virtual machine on its device."`
},
) (*One[httpapi.VM], error) {
	id, err := in.id()
	if err != nil {
		return nil, err
	}
	vmID, err := events.ParseVMID(in.VM)
	if err != nil {
		return nil, httpapi.NewProblem(httpapi.KindNotFound, err.Error(), httpapi.FieldError{Field: "path.vm", Message: err.Error()})
	}
	position, err := h.wait(ctx, in.Reading)
	if err != nil {
		return nil, err
	}
	v, err := h.cfg.DB.VM(ctx, scope(ctx), id, vmID)
	switch {
	case errors.Is(err, projections.ErrNotFound):
		return nil, httpapi.NotFound("virtual machine", in.Device+"/"+in.VM)
	case err != nil:
		return nil, mapError(ctx, err)
	}
	return one(position, v.ChangedPosition, in.Conditional, vm(v)), nil
}

func vm(v projections.VM) httpapi.VM {
	out := httpapi.VMOf(v.Device, v.DeviceName, v.VM, v.ChangedAt, v.ChangedPosition)
	out.FirstSeenAt = v.FirstSeenAt
	return out
}
