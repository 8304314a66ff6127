package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pallas/internal/client"
)

func (a *app) events() *noun[client.Event] {
	return &noun[client.Event]{
		plural: "events", aliases: []string{"event", "ev"}, argument: "POSITION",
		name:  func(e client.Event) string { return e.Cursor },
		about: func(e client.Event) string { return e.Type },
		columns: []column[client.Event]{
			{head: "POSITION", value: func(e client.Event, _ time.Time) string { return e.Cursor }},
			{head: "TIME", value: func(e client.Event, _ time.Time) string { return stamp(e.Time) }},
			{head: "TYPE", value: func(e client.Event, _ time.Time) string { return e.Type }},
			{head: "SUBJECT", value: func(e client.Event, _ time.Time) string {
				kind, id := subject(e)
				return kind + "/" + short(id)
			}},
			{head: "ACTOR", value: func(e client.Event, _ time.Time) string { return actor(e.Actor) }},
			{head: "WHAT", value: func(e client.Event, _ time.Time) string { return clip(summary(e.Data), 80) }},
			{head: "FROM", wide: true, value: func(e client.Event, _ time.Time) string { return dash(str(e.Address)) }},
			{head: "CAUSE", wide: true, value: func(e client.Event, _ time.Time) string { return dash(str(e.Cause)) }},
			{head: "ID", wide: true, value: func(e client.Event, _ time.Time) string { return e.Id }},
		},
		filter: func(cmd *cobra.Command) lister[client.Event] {
			var (
				ef    eventFilter
				until string
				desc  bool
			)
			ef.flags(a, cmd)
			cmd.Flags().StringVar(&until, "until", "", "only those before this instant, or this long ago")
			cmd.Flags().BoolVar(&desc, "desc", false, "newest first")
			return func(ctx context.Context, s *session, p page) ([]client.Event, *string, error) {
				f, err := ef.params(ctx, s)
				if err != nil {
					return nil, nil, err
				}
				q := &client.ListEventsParams{Cursor: p.cursor, Limit: p.limit, Device: f.Device, Type: f.Type, Actor: f.Actor, Since: f.Since, After: f.After}
				if q.Until, err = instant("until", until, s.now, -1); err != nil {
					return nil, nil, err
				}
				if desc {
					q.Order = new(client.ListEventsParamsOrder("desc"))
				}
				return s.listEvents(ctx, q)
			}
		},
		find: func(ctx context.Context, s *session, arg string) (client.Event, error) { return s.event(ctx, arg) },
		describe: func(_ context.Context, _ *session, e client.Event, r *report) error {
			data, err := encodeYAML(e.Data)
			if err != nil {
				return err
			}
			report := ""
			if e.Report != nil {
				report = fmt.Sprintf("%d of epoch %d", e.Report.Seq, e.Report.Epoch)
			}
			kind, id := subject(e)
			if err := r.block("Event "+e.Cursor,
				"Type", fmt.Sprintf("%s, version %d", e.Type, e.Dataversion), "Id", e.Id, "Time", when(&e.Time, r.now), "Subject", kind+"/"+id,
				"Actor", e.Actor, "From", str(e.Address), "Cause", str(e.Cause), "Report", report,
				"Time of the device", when(e.Devicetime, r.now), "Trace", str(e.Traceparent)); err != nil {
				return err
			}
			t := &table{w: r.w, indent: "  "}
			for line := range strings.Lines(string(data)) {
				t.rows = append(t.rows, []cell{{text: strings.TrimRight(line, "\n")}}) // encodeYAML has cleaned it
			}
			return r.section("Data", t)
		},
	}
}

// eventFilter holds the flags that pick events, of history and live.
type eventFilter struct {
	device, actor, since, after string
	types                       []string
}

func (f *eventFilter) flags(a *app, cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.device, "device", "", "only those of this device: identity, inventory and tasks")
	fs.StringSliceVar(&f.types, "type", nil, "only those of one of these types, such as TaskFailed")
	fs.StringVar(&f.actor, "actor", "", "only those that this actor caused, such as user:admin")
	fs.StringVar(&f.since, "since", "", "only those from this instant on, or from this long ago: 2026-11-23T09:30:00Z, 10m, 24h, 7d")
	fs.StringVar(&f.after, "after", "", "only those after this position")
	_ = cmd.RegisterFlagCompletionFunc("device", complete(a, a.devices())) // the flag exists
}

func (f *eventFilter) params(ctx context.Context, s *session) (client.StreamEventsParams, error) {
	p := client.StreamEventsParams{Actor: one[string](f.actor), After: one[string](f.after), Type: some[string](f.types)}
	var err error
	if p.Since, err = instant("since", f.since, s.now, -1); err != nil {
		return p, err
	}
	p.Device, err = s.deviceID(ctx, &f.device)
	return p, err
}

func (s *session) listEvents(ctx context.Context, p *client.ListEventsParams) ([]client.Event, *string, error) {
	r, err := ask(ctx, s, func(ctx context.Context) (*client.ListEventsResponse, error) {
		return s.api.ListEventsWithResponse(ctx, p)
	})
	if err != nil {
		return nil, nil, err
	}
	return r.JSON200.Items, r.JSON200.Next, nil
}

// event returns the event of a cursor, or the first of a position.
func (s *session) event(ctx context.Context, arg string) (client.Event, error) {
	number, _, _ := strings.Cut(arg, ".")
	position, err := strconv.ParseInt(number, 10, 64)
	if err != nil || position < 1 {
		return client.Event{}, usagef("event %q: want its position, such as 1840 or 1840.1", arg)
	}
	items, _, err := s.listEvents(ctx, &client.ListEventsParams{After: new(strconv.FormatInt(position-1, 10)), Limit: new(int64(pageSize))})
	if err != nil {
		return client.Event{}, err
	}
	for _, e := range items {
		if e.Cursor == arg || arg == number && e.Position == position {
			return e, nil
		}
	}
	return client.Event{}, notFound("event", arg)
}

// subject splits the subject of an event, ev.<kind>.<id>.
func subject(e client.Event) (kind, id string) {
	kind, id, _ = strings.Cut(strings.TrimPrefix(e.Subject, "ev."), ".")
	return kind, id
}

// actor shortens device:<uuid>.
func actor(s string) string {
	if id, ok := strings.CutPrefix(s, "device:"); ok {
		return "device:" + short(id)
	}
	return s
}

// summary puts what an event says on one line.
func summary(data map[string]any) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(data)) {
		switch v := data[k].(type) {
		case nil:
		case map[string]any:
			if name, ok := v["name"].(string); ok {
				out = append(out, k+"="+name)
			} else if len(v) > 0 {
				out = append(out, k+"={"+summary(v)+"}")
			}
		case []any:
			out = append(out, fmt.Sprintf("%s=[%d]", k, len(v)))
		case float64:
			out = append(out, k+"="+strconv.FormatFloat(v, 'f', -1, 64))
		default:
			out = append(out, fmt.Sprintf("%s=%v", k, v))
		}
	}
	return strings.Join(out, " ")
}

// clip shortens text to n characters.
func clip(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

func (a *app) watchEvents(n *noun[client.Event]) *cobra.Command {
	var f eventFilter
	cmd := &cobra.Command{
		Use: n.plural, Aliases: n.aliases, Short: "Show events as they happen",
		Long: "Show events as they happen, from now on or from --since or --after. A lost connection is taken up again where it ended: nothing is lost or shown twice.\n\nCtrl-C is its normal end: exit code 0.",
	}
	f.flags(a, cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := a.open()
		if err != nil {
			return err
		}
		ctx := cmd.Context()
		p, err := f.params(ctx, s)
		if err != nil {
			return untilStopped(ctx, err)
		}
		if _, err := s.status(ctx); err != nil { // a wrong server is told at once, not waited for
			return untilStopped(ctx, err)
		}
		out := newWatchPrinter(a, n)
		return untilStopped(ctx, s.follow(ctx, p, a.lost, func(e client.Event) error {
			if err := out.add(e); err != nil {
				return err
			}
			return out.flush()
		}))
	}
	return cmd
}

// untilStopped makes the end by the person who watches a success.
func untilStopped(ctx context.Context, err error) error {
	if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
		return nil
	}
	return err
}
