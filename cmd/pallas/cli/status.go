package cli

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"pallas/internal/client"
)

func (s *session) status(ctx context.Context) (client.Status, error) {
	r, err := ask(ctx, s, func(ctx context.Context) (*client.GetStatusResponse, error) {
		return s.api.GetStatusWithResponse(ctx, nil)
	})
	if err != nil {
		return client.Status{}, err
	}
	return *r.JSON200, nil
}

func (s *session) whoami(ctx context.Context) (client.Whoami, error) {
	r, err := ask(ctx, s, func(ctx context.Context) (*client.WhoamiResponse, error) { return s.api.WhoamiWithResponse(ctx) })
	if err != nil {
		return client.Whoami{}, err
	}
	return *r.JSON200, nil
}

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Say how the manager is",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.open()
			if err != nil {
				return err
			}
			st, err := s.status(cmd.Context())
			if err != nil {
				return err
			}
			if a.output != "" && a.output != formatTable && a.output != formatWide {
				return printAll(a, &noun[client.Status]{plural: "status", name: func(client.Status) string { return s.server }}, []client.Status{st})
			}
			r := &report{w: a.out, color: a.color(), now: a.now}
			d := st.Devices
			trouble := ""
			if p := st.Projection; p.Error != nil {
				trouble = *p.Error
			}
			return r.block("Manager "+s.server,
				"Version", st.Version, "Time", stamp(st.Time)+skew(time.Until(st.Time)),
				"Devices", fmt.Sprintf("%d: %d approved, %d pending, %d retired; %d connected", d.Total, d.Approved, d.Pending, d.Retired, d.Connected),
				"Virtual machines", fmt.Sprintf("%d: %d on", st.Vms.Total, st.Vms.On), "Open tasks", strconv.FormatInt(st.Tasks.Open, 10),
				"Event log", fmt.Sprintf("position %d, %s", st.Log.Position, size(st.Log.Bytes>>20)),
				"Read model", fmt.Sprintf("position %d, %d behind", st.Projection.Position, st.Projection.Lag), "Trouble", trouble)
		},
	}
}

// skew mentions a clock that is far from this machine's.
func skew(d time.Duration) string {
	if d.Abs() < 5*time.Second {
		return ""
	}
	return fmt.Sprintf(" (%v off this machine's clock)", d.Round(time.Second))
}

func (a *app) whoamiCommand() *cobra.Command {
	who := &noun[client.Whoami]{
		plural: "whoami",
		name:   func(w client.Whoami) string { return w.Login },
		columns: []column[client.Whoami]{
			{head: "LOGIN", value: func(w client.Whoami, _ time.Time) string { return w.Login }},
			{head: "ACTOR", value: func(w client.Whoami, _ time.Time) string { return w.Actor }},
			{head: "GRANTS", value: func(w client.Whoami, _ time.Time) string { return dash(grants(w.Grants)) }},
			{head: "TOKEN", value: func(w client.Whoami, _ time.Time) string {
				if w.Token == nil {
					return "-"
				}
				return w.Token.Id + " " + permits(*w.Token)
			}},
			{head: "EXPIRES", value: func(w client.Whoami, _ time.Time) string { return stamp(w.Expires) }},
		},
	}
	return &cobra.Command{
		Use: "whoami", Short: "Say whom the token stands for, and what it permits",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.open()
			if err != nil {
				return err
			}
			w, err := s.whoami(cmd.Context())
			if err != nil {
				return err
			}
			return printAll(a, who, []client.Whoami{w})
		},
	}
}
