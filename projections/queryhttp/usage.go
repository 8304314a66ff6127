package queryhttp

import (
	"context"
	"fmt"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"pallas/events"
	"pallas/events/telemetry"
	"pallas/internal/auth"
	"pallas/internal/httpapi"
	"pallas/projections"
)

const (
	// usageDays is how many days are answered when nobody says.
	usageDays = 30
	// maxUsageDays is how many may be asked for.
	maxUsageDays = 400
)

// Days holds the parameters for a span of days.
type Days struct {
	Since string `query:"since" maxLength:"10" example:"2026-10-25" doc:"First day, in UTC. Without it 30 days are answered."`
	Until string `query:"until" maxLength:"10" example:"2026-11-23" doc:"Last day, in UTC; today without it. At most 400 days are answered."`
}

// Span answers a span of days.
type Span[T any] struct{ Body httpapi.Usage[T] }

func (d Days) span(ctx context.Context) (since, until telemetry.Day, err error) {
	until = telemetry.DayOf(httpapi.RequestOf(ctx).Time)
	if d.Until != "" {
		if until, err = telemetry.ParseDay(d.Until); err != nil {
			return "", "", httpapi.Invalid("query.until", err.Error())
		}
	}
	since = until.Add(1 - usageDays)
	if d.Since != "" {
		if since, err = telemetry.ParseDay(d.Since); err != nil {
			return "", "", httpapi.Invalid("query.since", err.Error())
		}
	}
	switch n := since.Until(until) + 1; {
	case n < 1:
		return "", "", httpapi.Invalid("query.since", fmt.Sprintf("%s is after the last day, %s", since, until))
	case n > maxUsageDays:
		return "", "", httpapi.Invalid("query.since", fmt.Sprintf("%s to %s are %d days, want at most %d", since, until, n, maxUsageDays))
	}
	return since, until, nil
}

func (h *Handlers) registerUsage(api huma.API) {
	huma.Register(api, huma.Operation{
		OperationID: "get-device-usage", Method: http.MethodGet, Path: httpapi.Prefix + "/devices/{device}/usage", Tags: []string{"devices"},
		Extensions: httpapi.Needs(auth.ReadFleet),
		Summary:    "Get what a device's connections cost", Description: "Bytes on the wire per day, as the manager's sockets counted them. A retired device keeps its days.",
	}, h.getDeviceUsage)
	huma.Register(api, huma.Operation{
		OperationID: "get-usage", Method: http.MethodGet, Path: httpapi.Prefix + "/usage", Tags: []string{"devices"},
		Extensions: httpapi.Needs(auth.ReadFleet),
		Summary:    "Get what the connections of all devices cost", Description: "Bytes on the wire per day, as the manager's sockets counted them. All devices are those that the caller may see.",
	}, h.getUsage)
}

func (h *Handlers) getDeviceUsage(ctx context.Context, in *struct {
	Reading
	DevicePath
	Days
},
) (*Span[httpapi.DayUsage], error) {
	id, err := in.id()
	if err != nil {
		return nil, err
	}
	since, until, err := in.span(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := h.wait(ctx, in.Reading); err != nil {
		return nil, err
	}
	if _, err := h.device(ctx, id); err != nil {
		return nil, err
	}
	days, err := h.cfg.Usage.Device(ctx, id, since, until)
	if err != nil {
		return nil, mapError(ctx, err)
	}
	return span(since, until, days, func(d projections.DayUsage) (httpapi.DayUsage, httpapi.DayUsage) {
		return dayUsage(d), dayUsage(d)
	}), nil
}

func (h *Handlers) getUsage(ctx context.Context, in *Days) (*Span[httpapi.FleetDay], error) {
	since, until, err := in.span(ctx)
	if err != nil {
		return nil, err
	}
	days, err := h.fleetUsage(ctx, since, until)
	if err != nil {
		return nil, mapError(ctx, err)
	}
	return span(since, until, days, func(d projections.FleetDay) (httpapi.FleetDay, httpapi.DayUsage) {
		day := dayUsage(d.DayUsage)
		return httpapi.FleetDay{DayUsage: day, Devices: d.Devices, P50: d.P50, P99: d.P99}, day
	}), nil
}

// fleetUsage is what the connections of all devices cost that the caller may see.
func (h *Handlers) fleetUsage(ctx context.Context, since, until telemetry.Day) ([]projections.FleetDay, error) {
	s := scope(ctx)
	if s.Everything() {
		return h.cfg.Usage.Fleet(ctx, since, until)
	}
	if _, err := h.wait(ctx, Reading{}); err != nil {
		return nil, err
	}
	devices, err := h.cfg.DB.DevicesWithin(ctx, s)
	if err != nil {
		return nil, err
	}
	return h.cfg.Usage.Of(ctx, devices, since, until)
}

// today is what a device's connections have cost so far today.
func (h *Handlers) today(ctx context.Context, id events.DeviceID) (*httpapi.DeviceUsage, error) {
	day := telemetry.DayOf(httpapi.RequestOf(ctx).Time)
	days, err := h.cfg.Usage.Device(ctx, id, day, day)
	if err != nil {
		return nil, mapError(ctx, err)
	}
	out := &httpapi.DeviceUsage{Today: httpapi.DayUsage{Day: string(day)}}
	if len(days) > 0 {
		out.Today = dayUsage(days[0])
	}
	return out, nil
}

// span answers days, and their sum.
func span[R, T any](since, until telemetry.Day, days []R, show func(R) (T, httpapi.DayUsage)) *Span[T] {
	u := httpapi.Usage[T]{Since: string(since), Until: string(until), Days: make([]T, 0, len(days))}
	for _, d := range days {
		shown, day := show(d)
		u.Days = append(u.Days, shown)
		u.Total.Received += day.Received
		u.Total.Sent += day.Sent
	}
	return &Span[T]{u}
}

func dayUsage(d projections.DayUsage) httpapi.DayUsage {
	return httpapi.DayUsage{Day: string(d.Day), Bytes: httpapi.Bytes{Received: d.Received, Sent: d.Sent}}
}
