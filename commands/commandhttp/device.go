package commandhttp

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"

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

func (p LabelPatch) apply(old map[string]string) map[string]string {
	out := map[string]string{}
	if !p.clear {
		maps.Copy(out, old)
	}
	for k, v := range p.set {
		if v == nil {
			delete(out, k)
		} else {
			out[k] = *v
		}
	}
	return out
}

// UpdateDevice asks to change what operators may change of a device.
type UpdateDevice struct {
	Name   *string    `json:"name,omitempty" minLength:"1" maxLength:"253" example:"shop-0042" doc:"New display name: printable characters, no white space at the ends."`
	Labels LabelPatch `json:"labels,omitzero" doc:"Labels to set (string) or remove (null); others stay. null removes all. Keys and values are those of Kubernetes."`

	nameless bool // name is null, which encoding/json cannot tell from absent
}

// UnmarshalJSON reads the request.
func (u *UpdateDevice) UnmarshalJSON(b []byte) error {
	type plain UpdateDevice
	if err := json.Unmarshal(b, (*plain)(u)); err != nil {
		return err
	}
	var raw struct {
		Name json.RawMessage `json:"name"`
	}
	err := json.Unmarshal(b, &raw)
	u.nameless = string(raw.Name) == "null"
	return err
}

// RetireDevice says why a device is retired.
type RetireDevice struct {
	Reason string `json:"reason,omitempty" maxLength:"1024" example:"hardware replaced" doc:"Why, for the history."`
}

func (h *Handlers) registerDevices(api huma.API) {
	huma.Register(api, huma.Operation{
		OperationID: "update-device", Method: http.MethodPatch, Path: httpapi.Prefix + "/devices/{device}", Tags: []string{"devices"},
		Extensions: httpapi.Needs(auth.ManageDevices),
		Summary:    "Rename or label a device", Description: "A JSON merge patch (RFC 7396): absent fields stay as they are.",
		Errors: []int{http.StatusConflict, http.StatusPreconditionFailed},
	}, h.updateDevice)
	body := api.OpenAPI().Paths[httpapi.Prefix+"/devices/{device}"].Patch.RequestBody
	body.Content["application/merge-patch+json"] = body.Content["application/json"]
	huma.Register(api, huma.Operation{
		OperationID: "approve-device", Method: http.MethodPost, Path: httpapi.Prefix + "/devices/{device}/approve", Tags: []string{"devices"},
		Extensions: httpapi.Needs(auth.ManageDevices),
		Summary:    "Approve a device", Description: "Lets a pending device be managed. Approving an approved device changes nothing.",
		Errors: []int{http.StatusConflict, http.StatusPreconditionFailed},
	}, h.approveDevice)
	huma.Register(api, huma.Operation{
		OperationID: "retire-device", Method: http.MethodPost, Path: httpapi.Prefix + "/devices/{device}/retire", Tags: []string{"devices"},
		Extensions: httpapi.Needs(auth.RetireDevices),
		Summary:    "Retire a device", Description: "Ends a device for good: its session is closed and its certificates are worth nothing. Its history stays. Retiring a retired device changes nothing.",
		Errors: []int{http.StatusPreconditionFailed},
	}, h.retireDevice)
}

type updateDeviceInput struct {
	DevicePath
	MatchHeader
	Body UpdateDevice
}

// updateDevice gives up to two commands. Both are tried on the present state
// first, so that a bad field changes nothing at all.
func (h *Handlers) updateDevice(ctx context.Context, in *updateDeviceInput) (*DeviceWritten, error) {
	id, err := deviceID(in.Device)
	if err != nil {
		return nil, err
	}
	want, err := httpapi.IfMatch(in.IfMatch)
	if err != nil {
		return nil, err
	}
	if in.Body.nameless {
		return nil, httpapi.Invalid("body.name", "expected string: a device always has a name")
	}
	if in.Body.Name == nil && in.Body.Labels.empty() {
		return nil, httpapi.Invalid("body", "changes nothing: give name or labels")
	}
	// Somebody else may change the device between reading and writing. Labels
	// are merged into what was read, so begin again then, unless the caller
	// named a revision and nothing has been written at it.
	const attempts = 10
	for range attempts {
		d, err := h.device(ctx, id)
		if err != nil {
			return nil, mapError(ctx, err)
		}
		var list []commands.Command
		if in.Body.Name != nil {
			list = append(list, commands.RenameDevice{Device: id, Name: *in.Body.Name, IfRevision: want})
		}
		if !in.Body.Labels.empty() {
			list = append(list, commands.LabelDevice{Device: id, Labels: in.Body.Labels.apply(d.Labels), IfRevision: cmp.Or(want, d.Revision)})
		}
		for _, c := range list {
			if err := decide(ctx, c, commands.States{Device: d}); err != nil {
				return nil, mapError(ctx, err)
			}
		}
		res, err := h.doAll(ctx, list)
		if err == nil {
			return h.deviceWritten(ctx, id, res)
		}
		if res.Changed {
			want = 0 // the name is written: the caller's revision held then
		}
		if want != 0 || commands.KindOf(err) != commands.KindStale {
			return nil, mapError(ctx, err)
		}
	}
	return nil, mapError(ctx, fmt.Errorf("update device %s: %w", id, events.ErrConflict))
}

// doAll gives the commands one after the other. Labels after a new name expect
// the revision that the name left. On an error the result is that of the
// command before.
func (h *Handlers) doAll(ctx context.Context, list []commands.Command) (res commands.Result, err error) {
	for _, c := range list {
		if l, ok := c.(commands.LabelDevice); ok && res.Changed {
			l.IfRevision = res.Position
			c = l
		}
		next, err := h.do(ctx, "", c)
		if err != nil {
			return res, err
		}
		res = next
	}
	return res, nil
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
			AgentVersion: d.AgentVersion, Revision: d.Revision,
		},
	}, nil
}
