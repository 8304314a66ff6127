package queryhttp

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"pallas/events"
	"pallas/events/labels"
	"pallas/internal/auth"
	"pallas/internal/httpapi"
	"pallas/projections"
)

// DevicePath names a device.
type DevicePath struct {
	Device string `path:"device" example:"6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f" doc:"Device id."`
}

func (p DevicePath) id() (events.DeviceID, error) {
	id, err := events.ParseDeviceID(p.Device)
	if err != nil {
		return "", httpapi.NewProblem(httpapi.KindNotFound, err.Error(), httpapi.FieldError{Field: "path.device", Message: err.Error()})
	}
	return id, nil
}

// Labelled holds the parameters that pick by labels and text.
type Labelled struct {
	Selector string `query:"selector" maxLength:"4096" example:"site=fra,role in (pos,kiosk)" doc:"Label selector over the device's labels, in the grammar of Kubernetes: a=b, a!=b, a in (x,y), a notin (x,y), a, !a; commas mean and."`
	Text     string `query:"q" maxLength:"256" example:"shop-00" doc:"Text that must be part of a name or another identifying field, or that an id begins with. Case does not matter."`
}

// Sorted holds the parameter for the order of a list by names.
type Sorted struct {
	Sort string `query:"sort" enum:"name,id" default:"name" example:"name" doc:"Order of the list."`
}

type listDevicesInput struct {
	Reading
	Labelled
	Sorted
	Window
	Trust      []string `query:"trust" enum:"pending,approved,rejected,quarantined,retired" example:"[\"approved\"]" doc:"Only devices with one of these."`
	Connection []string `query:"connection" enum:"connected,lost,never" example:"[\"connected\"]" doc:"Only devices with one of these."`
	Condition  []string `query:"condition" enum:"ok,readOnly,denied,unreachable,unknown" example:"[\"denied\",\"unreachable\"]" doc:"Only devices with one of these."`
	Version    string   `query:"version" maxLength:"64" example:"8.0.3" doc:"Only devices whose hypervisor has exactly this version."`
	// CertificateExpiresBefore is checked by huma: RFC 3339.
	CertificateExpiresBefore time.Time `query:"certificateExpiresBefore" example:"2026-12-24T00:00:00Z" doc:"Only devices whose newest certificate ends before this instant (RFC 3339). Those that were retired are among them unless trust leaves them out."`
}

func (h *Handlers) registerDevices(api huma.API) {
	huma.Register(api, huma.Operation{
		OperationID: "list-devices", Method: http.MethodGet, Path: httpapi.Prefix + "/devices", Tags: []string{"devices"},
		Extensions: httpapi.Needs(auth.ReadFleet),
		Summary:    "List devices", Description: "In the order of names, or of ids. Datastores and networks are only in get-device.",
	}, h.listDevices)
	huma.Register(api, huma.Operation{
		OperationID: "get-device", Method: http.MethodGet, Path: httpapi.Prefix + "/devices/{device}", Tags: []string{"devices"},
		Extensions: httpapi.Needs(auth.ReadFleet),
		Summary:    "Get a device",
	}, h.getDevice)
	huma.Register(api, huma.Operation{
		OperationID: "list-device-vms", Method: http.MethodGet, Path: httpapi.Prefix + "/devices/{device}/vms", Tags: []string{"devices", "vms"},
		Extensions: httpapi.Needs(auth.ReadFleet),
		Summary:    "List the virtual machines of a device", Description: "In the order of names, or of ids.",
	}, h.listDeviceVMs)
}

func (h *Handlers) listDevices(ctx context.Context, in *listDevicesInput) (*List[httpapi.Device], error) {
	sel, err := labels.Parse(in.Selector)
	if err != nil {
		return nil, mapError(ctx, err)
	}
	conditions := as[events.Condition](in.Condition)
	for i, c := range conditions {
		if c == "unknown" { // what the read model has before the first report
			conditions[i] = ""
		}
	}
	position, err := h.wait(ctx, in.Reading)
	if err != nil {
		return nil, err
	}
	p, err := h.cfg.DB.Devices(ctx, projections.DeviceFilter{
		Scope: scope(ctx),
		Trust: as[projections.Trust](in.Trust), Connection: as[projections.Connection](in.Connection), Condition: conditions,
		Version: in.Version, Selector: sel, Text: in.Text, Sort: projections.Sort(in.Sort), Window: in.of(),
		CertificateExpiresBefore: in.CertificateExpiresBefore,
	})
	return list(ctx, p, err, position, func(d projections.Device) httpapi.Device { return device(d, false) })
}

func (h *Handlers) getDevice(ctx context.Context, in *struct {
	Reading
	Conditional
	DevicePath
},
) (*One[httpapi.Device], error) {
	id, err := in.id()
	if err != nil {
		return nil, err
	}
	position, err := h.wait(ctx, in.Reading)
	if err != nil {
		return nil, err
	}
	d, err := h.device(ctx, id)
	if err != nil {
		return nil, err
	}
	body := device(d, true)
	if body.Usage, err = h.today(ctx, id); err != nil {
		return nil, err
	}
	return one(position, d.Revision, in.Conditional, body), nil
}

func (h *Handlers) device(ctx context.Context, id events.DeviceID) (projections.Device, error) {
	d, err := h.cfg.DB.Device(ctx, scope(ctx), id)
	switch {
	case errors.Is(err, projections.ErrNotFound):
		return d, httpapi.NotFound("device", string(id))
	case err != nil:
		return d, mapError(ctx, err)
	}
	return d, nil
}

func (h *Handlers) listDeviceVMs(ctx context.Context, in *struct {
	Reading
	DevicePath
	Sorted
	Window
	VMState
},
) (*List[httpapi.VM], error) {
	id, err := in.id()
	if err != nil {
		return nil, err
	}
	position, err := h.wait(ctx, in.Reading)
	if err != nil {
		return nil, err
	}
	if _, err := h.device(ctx, id); err != nil {
		return nil, err
	}
	p, err := h.cfg.DB.VMs(ctx, projections.VMFilter{
		Scope: scope(ctx), Device: id, Power: as[events.PowerState](in.Power), Tools: as[events.ToolsState](in.Tools), Sort: projections.Sort(in.Sort), Window: in.of(),
	})
	return list(ctx, p, err, position, vm)
}

func device(d projections.Device, details bool) httpapi.Device {
	out := httpapi.Device{
		ID: string(d.ID), Name: d.Name, Labels: httpapi.LabelsOf(d.Labels), Site: httpapi.SiteOf(d.Site), Trust: string(d.Trust),
		Connection: string(d.Connection), ConnectionSince: d.ConnectionSince, LostReason: d.LostReason, Address: d.Address, AgentVersion: d.AgentVersion,
		Condition: httpapi.ConditionOf(d.Condition), ConditionMessage: d.ConditionMessage, ConditionSince: d.ConditionSince,
		RegisteredAt: d.RegisteredAt, ApprovedAt: d.ApprovedAt, ApprovedBy: string(d.ApprovedBy),
		RetiredAt: d.RetiredAt, RetiredBy: string(d.RetiredBy), RetiredReason: d.RetiredReason,
		JoinToken: string(d.JoinToken), VMs: httpapi.VMCounts{Total: d.VMs, On: d.VMsOn}, Host: httpapi.HostOf(d.Host, details),
		UpdatedAt: d.ChangedAt, Revision: d.Revision,
	}
	if details {
		out.Notes = d.Notes
	}
	out.TrustSince, out.TrustBy, out.TrustReason = d.TrustSince, string(d.TrustBy), d.TrustReason
	out.TrustCause, out.TrustBefore = string(d.TrustCause), string(d.TrustBefore)
	if c := d.Claim; c != nil {
		out.KeyClaim = &httpapi.KeyClaim{
			KeyHash: c.KeyHash, Name: c.Name, AgentVersion: c.AgentVersion, JoinToken: string(c.JoinToken), Address: c.Address, At: c.At,
		}
	}
	if d.CertSerial != "" {
		out.Certificate = &httpapi.Certificate{
			Serial: d.CertSerial, NotAfter: d.CertNotAfter, Issuer: d.CertIssuer, Reason: string(d.CertReason),
			RotationRequestedAt: d.RotationAt, Anchors: d.Anchors,
		}
	}
	return out
}
