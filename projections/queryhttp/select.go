package queryhttp

import (
	"context"

	"pallas/events"
	"pallas/events/labels"
	"pallas/projections"
)

// SelectDevices returns the devices, at most limit, that a selector picks within
// a scope and that are in one of the states of trust; none means any. It first
// waits, bounded, until the read model has all of the log.
func (h *Handlers) SelectDevices(ctx context.Context, sel labels.Selector, scope labels.Scope, trust []string, limit int) ([]events.DeviceID, error) {
	last, err := h.cfg.Store.Last(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := h.wait(ctx, Reading{At: last}); err != nil {
		return nil, err
	}
	ids, err := h.cfg.DB.SelectDevices(ctx, projections.Selection{Selector: sel, Scope: scope, Trust: as[projections.Trust](trust), Limit: limit})
	if err != nil {
		return nil, mapError(ctx, err)
	}
	return ids, nil
}
