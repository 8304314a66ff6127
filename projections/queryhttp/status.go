package queryhttp

import (
	"context"
	"fmt"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"pallas/events"
	"pallas/internal/auth"
	"pallas/internal/httpapi"
	"pallas/projections"
)

func (h *Handlers) registerStatus(api huma.API) {
	huma.Register(api, huma.Operation{
		OperationID: "get-status", Method: http.MethodGet, Path: httpapi.Prefix + "/status", Tags: []string{"manager"},
		Extensions: httpapi.Needs(auth.ReadFleet),
		Summary:    "Get the state of the manager", Description: "For people. Devices, virtual machines and tasks are counted as far as the caller may see them. Probes use /livez and /readyz, monitoring /metrics.",
	}, h.getStatus)
}

func (h *Handlers) getStatus(ctx context.Context, in *struct{ Reading }) (*struct {
	Shown
	Body httpapi.Status
}, error,
) {
	position, err := h.reach(ctx, in.Reading)
	if err != nil {
		return nil, err
	}
	last, err := h.cfg.Store.Last(ctx)
	if err != nil {
		return nil, mapError(ctx, err)
	}
	size, err := h.cfg.LogBytes(ctx)
	if err != nil {
		return nil, mapError(ctx, fmt.Errorf("size of the log: %w", err))
	}
	c, err := h.cfg.DB.Counts(ctx, scope(ctx))
	if err != nil {
		return nil, mapError(ctx, err)
	}
	body := httpapi.Status{
		Version: h.cfg.Version, Time: httpapi.RequestOf(ctx).Time, Log: httpapi.LogStatus{Position: last, Bytes: size},
		Projection: httpapi.ProjectionStatus{Position: c.Position, Lag: last - min(last, c.Position)},
		Devices: httpapi.DeviceCounts{
			Pending: c.Trust[projections.TrustPending], Approved: c.Trust[projections.TrustApproved],
			Rejected: c.Trust[projections.TrustRejected], Quarantined: c.Trust[projections.TrustQuarantined],
			Retired: c.Trust[projections.TrustRetired], Connected: c.Connection[projections.ConnectionConnected],
		},
		VMs:   httpapi.VMCounts{On: c.Power[events.PowerOn]},
		Tasks: httpapi.TaskCounts{},
	}
	for _, n := range c.Trust {
		body.Devices.Total += n
	}
	for _, n := range c.Power {
		body.VMs.Total += n
	}
	for _, n := range c.OpenTasks {
		body.Tasks.Open += n
	}
	if s := h.cfg.DB.Status(); s.Err != nil {
		body.Projection.Error = s.Err.Error()
		if httpapi.RequestOf(ctx).Principal.Rights.Scope(auth.ReadManager).Nothing() {
			body.Projection.Error = "it stands still" // the reason may name a device
		}
	}
	return &struct {
		Shown
		Body httpapi.Status
	}{Shown{position}, body}, nil
}

// Check returns the readiness of the read model, for /readyz: it runs, has
// once caught up with the log, and lags by at most maxLag decisions.
func (h *Handlers) Check(maxLag uint64) httpapi.Check {
	return httpapi.Check{Name: "projection", Run: func(context.Context) (string, error) {
		s := h.cfg.DB.Status()
		detail := fmt.Sprintf("at position %d of %d, %d behind", s.Position, s.Last, s.Lag)
		switch {
		case s.Err != nil:
			return "", s.Err
		case !s.Ready:
			return "", fmt.Errorf("catching up: %s", detail)
		case s.Lag > maxLag:
			return "", fmt.Errorf("behind: %s", detail)
		}
		return detail, nil
	}}
}

// LogCheck returns the readiness of the event log: it answers.
func (h *Handlers) LogCheck() httpapi.Check {
	return httpapi.Check{Name: "log", Run: func(ctx context.Context) (string, error) {
		last, err := h.cfg.Store.Last(ctx)
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("at position %d", last), nil
	}}
}
