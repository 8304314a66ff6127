package cli

import (
	"context"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"pallas/internal/client"
)

// usageColumns are those of a day, whoever it is of.
func usageColumns[T any](day func(T) client.DayUsage) []column[T] {
	return []column[T]{
		{head: "DAY", value: func(u T, _ time.Time) string { return day(u).Day.String() }},
		{head: "RECEIVED", value: func(u T, _ time.Time) string { return volume(day(u).Received) }},
		{head: "SENT", value: func(u T, _ time.Time) string { return volume(day(u).Sent) }},
		{head: "TOTAL", value: func(u T, _ time.Time) string { return volume(day(u).Received + day(u).Sent) }},
	}
}

func (a *app) usageCommand() *cobra.Command {
	var since, until string
	device := &noun[client.DayUsage]{plural: "usage", name: func(u client.DayUsage) string { return u.Day.String() }, columns: usageColumns(func(u client.DayUsage) client.DayUsage { return u })}
	fleet := &noun[client.FleetDay]{
		plural: "usage", name: func(u client.FleetDay) string { return u.Day.String() },
		columns: append(usageColumns(func(u client.FleetDay) client.DayUsage {
			return client.DayUsage{Day: u.Day, Received: u.Received, Sent: u.Sent}
		}),
			column[client.FleetDay]{head: "DEVICES", value: func(u client.FleetDay, _ time.Time) string { return strconv.FormatInt(u.Devices, 10) }},
			column[client.FleetDay]{head: "P50", value: func(u client.FleetDay, _ time.Time) string { return volume(u.P50) }},
			column[client.FleetDay]{head: "P99", value: func(u client.FleetDay, _ time.Time) string { return volume(u.P99) }},
		),
	}
	cmd := &cobra.Command{
		Use: "usage [DEVICE]", Short: "Show the bytes on the wire per day, of one device or of all", Args: cobra.MaximumNArgs(1), ValidArgsFunction: firstOnly(complete(a, a.devices())),
		Long: "Show the bytes on the wire per day (UTC), of one device or of all, as the manager's sockets counted them:\nwith TLS and with IP and TCP headers. P50 and P99 are bytes of a device that day.",
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.open()
			if err != nil {
				return err
			}
			first, err := dayFlag("since", since, s.now)
			if err != nil {
				return err
			}
			last, err := dayFlag("until", until, s.now)
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			if len(args) == 0 {
				r, err := ask(ctx, s, func(ctx context.Context) (*client.GetUsageResponse, error) {
					return s.api.GetUsageWithResponse(ctx, &client.GetUsageParams{Since: first, Until: last})
				})
				if err != nil {
					return err
				}
				return printAll(a, fleet, r.JSON200.Days)
			}
			d, err := s.findDevice(ctx, args[0])
			if err != nil {
				return err
			}
			r, err := ask(ctx, s, func(ctx context.Context) (*client.GetDeviceUsageResponse, error) {
				return s.api.GetDeviceUsageWithResponse(ctx, d.Id.String(), &client.GetDeviceUsageParams{Since: first, Until: last})
			})
			if err != nil {
				return err
			}
			return printAll(a, device, r.JSON200.Days)
		},
	}
	cmd.Flags().StringVar(&since, "since", "", "first day, or how long ago: 2026-11-23, 7d; 30 days without it")
	cmd.Flags().StringVar(&until, "until", "", "last day, or how long ago; today without it")
	return cmd
}

// dayFlag reads a day in UTC.
func dayFlag(flag, s string, now time.Time) (*string, error) {
	t, err := instant(flag, s, now, -1)
	if t == nil || err != nil {
		return nil, err
	}
	return new(t.Format(time.DateOnly)), nil
}

// usageToday is what describe tells of a device's connections.
func usageToday(u *client.DeviceUsage) string {
	if u == nil {
		return ""
	}
	return volume(u.Today.Received) + " received, " + volume(u.Today.Sent) + " sent today (UTC)"
}

// volume writes bytes as network people count them, in powers of ten.
func volume(n int64) string {
	for _, u := range []struct {
		bytes int64
		name  string
	}{{1e12, "TB"}, {1e9, "GB"}, {1e6, "MB"}, {1e3, "kB"}} {
		if n >= u.bytes {
			return strconv.FormatFloat(float64(n)/float64(u.bytes), 'f', 1, 64) + " " + u.name
		}
	}
	return strconv.FormatInt(n, 10) + " B"
}
