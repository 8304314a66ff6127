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

// TrustReason says why the trust in a device changes.
type TrustReason struct {
	Reason string `json:"reason,omitempty" maxLength:"1024" example:"stolen from the van" doc:"Why, for the history."`
}

// RekeyDevice says which key becomes a device's.
type RekeyDevice struct {
	KeyHash string `json:"keyHash,omitempty" minLength:"64" maxLength:"64" example:"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08" doc:"The key to accept, as keyClaim of the device shows it. Without it the key that claims the device now."`
}

func (h *Handlers) registerTrust(api huma.API) {
	operation := func(id, verb, summary, description string) huma.Operation {
		return huma.Operation{
			OperationID: id, Method: http.MethodPost, Path: httpapi.Prefix + "/devices/{device}/" + verb, Tags: []string{"devices"},
			Summary: summary, Description: description, Errors: []int{http.StatusConflict, http.StatusPreconditionFailed},
			Extensions: httpapi.Needs(auth.ManageDevices),
		}
	}
	huma.Register(api, operation("reject-device", "reject", "Reject a device",
		"Turns a pending device down: its session is closed, and it gets nothing. It may be approved later. Rejecting a rejected device changes nothing."), h.rejectDevice)
	huma.Register(api, operation("quarantine-device", "quarantine", "Put a device into quarantine",
		"Closes the device's session at once and keeps it out until it is released. Its open tasks stay, until their deadlines. A device that is in quarantine already stays there for the first cause."), h.quarantineDevice)
	huma.Register(api, operation("release-device", "release", "Release a device from quarantine",
		"The device is trusted as it was before the quarantine, with the key that it had; a claim of another key is void. Releasing a device that is in no quarantine changes nothing."), h.releaseDevice)
	huma.Register(api, operation("rekey-device", "rekey", "Accept another key of a device",
		"For a device that was put into quarantine because another key claims its id, and whose machine was in truth rebuilt: the claimed key becomes the device's, the old one is worth nothing, and the quarantine ends. The device gets its certificate with its next attempt to enrol, while its join token is valid."), h.rekeyDevice)
}

type trustInput struct {
	DevicePath
	MatchHeader
	Body *TrustReason
}

func (in *trustInput) reason() string {
	if in.Body == nil {
		return ""
	}
	return in.Body.Reason
}

func (h *Handlers) rejectDevice(ctx context.Context, in *trustInput) (*DeviceWritten, error) {
	return h.changeDevice(ctx, in.Device, in.IfMatch, func(id events.DeviceID, revision uint64) commands.Command {
		return commands.RejectDevice{Device: id, Reason: in.reason(), IfRevision: revision}
	})
}

func (h *Handlers) quarantineDevice(ctx context.Context, in *trustInput) (*DeviceWritten, error) {
	return h.changeDevice(ctx, in.Device, in.IfMatch, func(id events.DeviceID, revision uint64) commands.Command {
		return commands.QuarantineDevice{Device: id, Cause: events.QuarantineOperator, Reason: in.reason(), IfRevision: revision}
	})
}

func (h *Handlers) releaseDevice(ctx context.Context, in *trustInput) (*DeviceWritten, error) {
	return h.changeDevice(ctx, in.Device, in.IfMatch, func(id events.DeviceID, revision uint64) commands.Command {
		return commands.ReleaseDevice{Device: id, Reason: in.reason(), IfRevision: revision}
	})
}

func (h *Handlers) rekeyDevice(ctx context.Context, in *struct {
	DevicePath
	MatchHeader
	Body *RekeyDevice
},
) (*DeviceWritten, error) {
	return h.changeDevice(ctx, in.Device, in.IfMatch, func(id events.DeviceID, revision uint64) commands.Command {
		c := commands.RekeyDevice{Device: id, IfRevision: revision}
		if in.Body != nil {
			c.KeyHash = in.Body.KeyHash
		}
		return c
	})
}
