package commandhttp

import (
	"context"
	"encoding/json"
	"net/http"
	"reflect"

	"github.com/danielgtaylor/huma/v2"

	"pallas/commands"
	"pallas/events"
	"pallas/events/labels"
	"pallas/internal/auth"
	"pallas/internal/httpapi"
)

// DevicePath names a device.
type DevicePath struct {
	Device string `path:"device" example:"6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f" doc:"Device id."`
}

// DeviceWritten answers a change of a device.
type DeviceWritten struct {
	Written
	ETag string `header:"ETag" example:"\"1842\"" doc:"For If-Match of a following change."`
	Body httpapi.DeviceIdentity
}

// LabelPatch changes labels as a JSON merge patch (RFC 7396) does: a string
// sets a label, null removes it, others stay. null in place of the object
// removes all.
type LabelPatch struct {
	clear bool
	set   map[string]*string
}

// UnmarshalJSON reads a patch, null included.
func (p *LabelPatch) UnmarshalJSON(b []byte) error {
	p.clear = string(b) == "null"
	return json.Unmarshal(b, &p.set)
}

// MarshalJSON writes the patch back.
func (p LabelPatch) MarshalJSON() ([]byte, error) { return json.Marshal(p.set) }

// Schema describes the patch.
func (LabelPatch) Schema(huma.Registry) *huma.Schema {
	limit, length := labels.Max, labels.MaxValue
	value := &huma.Schema{Type: huma.TypeString, Nullable: true, MaxLength: &length}
	value.PrecomputeMessages()
	return &huma.Schema{
		Type: huma.TypeObject, Nullable: true, MaxProperties: &limit, AdditionalProperties: value,
		Examples: []any{map[string]any{"site": "fra", "old": nil}},
	}
}

func (p LabelPatch) empty() bool { return !p.clear && p.set == nil }

// added returns the labels that the patch sets.
func (p LabelPatch) added() map[string]string {
	out := map[string]string{}
	for k, v := range p.set {
		if v != nil {
			out[k] = *v
		}
	}
	return out
}

// Patched is one field of a JSON merge patch: absent it stays, null takes its
// value away.
type Patched[T any] struct {
	set   bool
	value *T
}

// UnmarshalJSON reads the field, null included.
func (p *Patched[T]) UnmarshalJSON(b []byte) error {
	p.set = true
	return json.Unmarshal(b, &p.value)
}

// MarshalJSON writes the field back.
func (p Patched[T]) MarshalJSON() ([]byte, error) { return json.Marshal(p.value) }

// Schema describes the field.
func (Patched[T]) Schema(r huma.Registry) *huma.Schema {
	s := huma.SchemaFromType(r, reflect.TypeFor[T]())
	s.Nullable = true
	return s
}

// SitePatch is a JSON merge patch of a site.
type SitePatch struct {
	Name      Patched[string]  `json:"name,omitzero" nullable:"false" minLength:"1" maxLength:"253" example:"Frankfurt, Zeil 106" doc:"Name of the place, required for a new one."`
	Latitude  Patched[float64] `json:"latitude,omitzero" minimum:"-90" maximum:"90" example:"50.1147" doc:"Degrees north (WGS 84), not without longitude. null forgets it."`
	Longitude Patched[float64] `json:"longitude,omitzero" minimum:"-180" maximum:"180" example:"8.6821" doc:"Degrees east (WGS 84), not without latitude. null forgets it."`
}

func (p Patched[T]) null() bool { return p.set && p.value == nil }

func (p Patched[T]) change() commands.Change[T] {
	return commands.Change[T]{Set: p.set, Value: p.value}
}

// UpdateDevice asks to change what operators may change of a device.
type UpdateDevice struct {
	Name   Patched[string]    `json:"name,omitzero" nullable:"false" minLength:"1" maxLength:"253" example:"shop-0042" doc:"New display name: printable characters, no white space at the ends."`
	Labels LabelPatch         `json:"labels,omitzero" doc:"Labels to set (string) or remove (null); others stay. null removes all. Keys and values are those of Kubernetes."`
	Notes  Patched[string]    `json:"notes,omitzero" maxLength:"4096" example:"Behind the counter." doc:"What people should know of the device, as text of at most 4096 bytes. null or nothing removes them. The history keeps them: they are no place for secrets or for what is personal."`
	Site   Patched[SitePatch] `json:"site,omitzero" example:"{\"name\":\"Frankfurt, Zeil 106\",\"latitude\":50.1147,\"longitude\":8.6821}" doc:"Where the device stands, as a merge patch too. null forgets it."`
}

// RetireDevice says why a device is retired.
type RetireDevice struct {
	Reason string `json:"reason,omitempty" maxLength:"1024" example:"hardware replaced" doc:"Why, for the history."`
}

func (h *Handlers) registerDevices(api huma.API) {
	huma.Register(api, huma.Operation{
		OperationID: "update-device", Method: http.MethodPatch, Path: httpapi.Prefix + "/devices/{device}", Tags: []string{"devices"},
		Extensions: httpapi.Needs(auth.ManageDevices),
		Summary:    "Name, label or describe a device", Description: "A JSON merge patch (RFC 7396): absent fields stay as they are. All of it happens, or nothing.",
		Errors: []int{http.StatusConflict, http.StatusPreconditionFailed},
	}, h.updateDevice)
	body := api.OpenAPI().Paths[httpapi.Prefix+"/devices/{device}"].Patch.RequestBody
	body.Content["application/merge-patch+json"] = body.Content["application/json"]
	huma.Register(api, huma.Operation{
		OperationID: "approve-device", Method: http.MethodPost, Path: httpapi.Prefix + "/devices/{device}/approve", Tags: []string{"devices"},
		Extensions: httpapi.Needs(auth.ManageDevices),
		Summary:    "Approve a device", Description: "Lets a pending or rejected device be managed. Approving an approved device changes nothing.",
		Errors: []int{http.StatusConflict, http.StatusPreconditionFailed},
	}, h.approveDevice)
	huma.Register(api, huma.Operation{
		OperationID: "rotate-certificate", Method: http.MethodPost, Path: httpapi.Prefix + "/devices/{device}/rotate-certificate", Tags: []string{"devices"},
		Extensions: httpapi.Needs(auth.ManageDevices),
		Summary:    "Have a device get another certificate",
		Description: "Asks the device to renew its certificate now instead of when it is due: at once if it is connected, otherwise when it comes back. " +
			"The answer says that the request is in the log; it is done when the device shows another certificate. Until then rotationRequestedAt says so, and asking again changes nothing. " +
			"The certificate before stays valid until its end: to shut a device out, quarantine or retire it.",
		Errors: []int{http.StatusConflict, http.StatusPreconditionFailed},
	}, h.rotateCertificate)
	huma.Register(api, huma.Operation{
		OperationID: "retire-device", Method: http.MethodPost, Path: httpapi.Prefix + "/devices/{device}/retire", Tags: []string{"devices"},
		Extensions: httpapi.Needs(auth.RetireDevices),
		Summary:    "Retire a device", Description: "Ends a device for good: its open tasks end, its certificates are worth nothing, its session is closed. A device that is connected is told to erase its identity. Its history stays. Retiring a retired device changes nothing.",
		Errors: []int{http.StatusPreconditionFailed},
	}, h.retireDevice)
	h.registerTrust(api)
}

type updateDeviceInput struct {
	DevicePath
	MatchHeader
	Body UpdateDevice
}

func (h *Handlers) updateDevice(ctx context.Context, in *updateDeviceInput) (*DeviceWritten, error) {
	u := in.Body
	switch {
	case u.Name.null():
		return nil, httpapi.Invalid("body.name", "expected string: a device always has a name")
	case u.Site.value != nil && u.Site.value.Name.null():
		return nil, httpapi.Invalid("body.site.name", "expected string: a site always has a name; null as the site forgets it")
	case !u.Name.set && u.Labels.empty() && !u.Notes.set && !u.Site.set:
		return nil, httpapi.Invalid("body", "changes nothing: give name, labels, notes or site")
	}
	return h.changeDevice(ctx, in.Device, in.IfMatch, func(id events.DeviceID, revision uint64) commands.Command {
		return u.command(id, revision)
	})
}

func (u UpdateDevice) command(id events.DeviceID, revision uint64) commands.UpdateDevice {
	c := commands.UpdateDevice{
		Device: id, Name: u.Name.value, Labels: u.Labels.set, ClearLabels: u.Labels.clear, Notes: u.Notes.value, IfRevision: revision,
	}
	if u.Notes.null() {
		c.Notes = new("")
	}
	switch p := u.Site.value; {
	case p != nil:
		c.Site = &commands.SitePatch{Name: p.Name.value, Latitude: p.Latitude.change(), Longitude: p.Longitude.change()}
	case u.Site.set:
		c.Site = &commands.SitePatch{Clear: true}
	}
	return c
}

func (h *Handlers) approveDevice(ctx context.Context, in *struct {
	DevicePath
	MatchHeader
},
) (*DeviceWritten, error) {
	return h.changeDevice(ctx, in.Device, in.IfMatch, func(id events.DeviceID, revision uint64) commands.Command {
		return commands.ApproveDevice{Device: id, IfRevision: revision}
	})
}

func (h *Handlers) rotateCertificate(ctx context.Context, in *struct {
	DevicePath
	MatchHeader
},
) (*DeviceWritten, error) {
	return h.changeDevice(ctx, in.Device, in.IfMatch, func(id events.DeviceID, revision uint64) commands.Command {
		return commands.RotateCertificate{Device: id, IfRevision: revision}
	})
}

func (h *Handlers) retireDevice(ctx context.Context, in *struct {
	DevicePath
	MatchHeader
	Body *RetireDevice
},
) (*DeviceWritten, error) {
	reason := ""
	if in.Body != nil {
		reason = in.Body.Reason
	}
	return h.changeDevice(ctx, in.Device, in.IfMatch, func(id events.DeviceID, revision uint64) commands.Command {
		return commands.RetireDevice{Device: id, Reason: reason, IfRevision: revision}
	})
}

func (h *Handlers) changeDevice(ctx context.Context, device, ifMatch string, command func(events.DeviceID, uint64) commands.Command) (*DeviceWritten, error) {
	id, err := deviceID(device)
	if err != nil {
		return nil, err
	}
	revision, err := httpapi.IfMatch(ifMatch)
	if err != nil {
		return nil, err
	}
	res, err := h.do(ctx, "", command(id, revision))
	if err != nil {
		return nil, mapError(ctx, err)
	}
	return h.deviceWritten(ctx, id, res)
}

func (h *Handlers) deviceWritten(ctx context.Context, id events.DeviceID, res commands.Result) (*DeviceWritten, error) {
	d, err := h.device(ctx, id)
	if err != nil {
		return nil, mapError(ctx, err)
	}
	connection := "never"
	switch {
	case d.Connected:
		connection = "connected"
	case d.Protocol != 0:
		connection = "lost"
	}
	return &DeviceWritten{
		Written: Written{Position: res.Position}, ETag: httpapi.ETag(d.Revision, nil),
		Body: httpapi.DeviceIdentity{
			ID: string(d.ID), Name: d.Name, Labels: httpapi.LabelsOf(d.Labels), Trust: string(d.Trust), Connection: connection,
			Notes: d.Notes, Site: httpapi.SiteOf(d.Site), AgentVersion: d.AgentVersion, Revision: d.Revision,
		},
	}, nil
}
