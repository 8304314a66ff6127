package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"pallas/internal/client"
)

// trusts are the states of trust.
var trusts = []string{"pending", "approved", "rejected", "quarantined", "retired"}

func (a *app) devices() *noun[client.Device] {
	return &noun[client.Device]{
		plural: "devices", aliases: []string{"device", "dev"}, argument: "DEVICE",
		name:  func(d client.Device) string { return d.Name },
		about: func(d client.Device) string { return fmt.Sprintf("%s, %s", d.Trust, d.Connection) },
		id:    func(d client.Device) string { return d.Id.String() },
		kinds: []string{"device", "inventory"},
		columns: []column[client.Device]{
			{head: "NAME", value: func(d client.Device, _ time.Time) string { return d.Name }},
			{head: "ID", value: func(d client.Device, _ time.Time) string { return short(d.Id.String()) }},
			{head: "TRUST", status: true, value: func(d client.Device, _ time.Time) string { return string(d.Trust) }},
			{head: "CONNECTION", status: true, value: func(d client.Device, _ time.Time) string { return string(d.Connection) }},
			{head: "SINCE", value: func(d client.Device, now time.Time) string { return age(d.ConnectionSince, now) }},
			{head: "HOST", status: true, value: func(d client.Device, _ time.Time) string { return string(d.Condition) }},
			{head: "VMS", value: func(d client.Device, _ time.Time) string { return fmt.Sprintf("%d/%d on", d.Vms.On, d.Vms.Total) }},
			{head: "VERSION", value: func(d client.Device, _ time.Time) string {
				if d.Host == nil {
					return "-"
				}
				return d.Host.Version
			}},
			{head: "LABELS", value: func(d client.Device, _ time.Time) string { return dash(pairs(d.Labels)) }},
			{head: "UUID", wide: true, value: func(d client.Device, _ time.Time) string { return d.Id.String() }},
			{head: "AGENT", wide: true, value: func(d client.Device, _ time.Time) string { return dash(str(d.AgentVersion)) }},
			{head: "CERTIFICATE", wide: true, value: func(d client.Device, now time.Time) string {
				if d.Certificate == nil {
					return "-"
				}
				return until(d.Certificate.NotAfter, now)
			}},
			{head: "ADDRESS", wide: true, value: func(d client.Device, _ time.Time) string { return dash(str(d.Address)) }},
			{head: "SITE", wide: true, value: func(d client.Device, _ time.Time) string {
				if d.Site == nil {
					return "-"
				}
				return d.Site.Name
			}},
			{head: "LICENCE", wide: true, value: func(d client.Device, _ time.Time) string {
				if d.Host == nil {
					return "-"
				}
				return dash(str(d.Host.License.Name))
			}},
		},
		filter: func(cmd *cobra.Command) lister[client.Device] {
			var (
				selector, q, version, sort   string
				trust, connection, condition []string
			)
			f := cmd.Flags()
			f.StringVarP(&selector, "selector", "l", "", "only those with these labels: a=b,a!=b,a in (x,y),a notin (x,y),a,!a")
			f.StringVarP(&q, "query", "q", "", "only those with this text in name, host name or id")
			f.StringVar(&version, "version", "", "only those of this ESXi version")
			f.StringVar(&sort, "sort", "", "order: name or id")
			choice(cmd, &trust, "trust", "only those in one of these states", trusts...)
			choice(cmd, &connection, "connection", "only those in one of these states", "connected", "lost", "never")
			choice(cmd, &condition, "condition", "only those whose host is in one of these conditions", "ok", "readOnly", "denied", "unreachable", "unknown")
			return func(ctx context.Context, s *session, p page) ([]client.Device, *string, error) {
				return s.listDevices(ctx, &client.ListDevicesParams{
					Cursor: p.cursor, Limit: p.limit, Selector: one[string](selector), Q: one[string](q), Version: one[string](version),
					Sort: one[client.ListDevicesParamsSort](sort), Trust: some[client.ListDevicesParamsTrust](trust),
					Connection: some[client.ListDevicesParamsConnection](connection), Condition: some[client.ListDevicesParamsCondition](condition),
				})
			}
		},
		find: func(ctx context.Context, s *session, arg string) (client.Device, error) {
			d, err := s.findDevice(ctx, arg)
			if err != nil {
				return d, err
			}
			return s.device(ctx, d.Id.String()) // lists leave out what is long
		},
		suggest: func(ctx context.Context, s *session, text string) ([]client.Device, error) {
			items, _, err := s.listDevices(ctx, &client.ListDevicesParams{Q: one[string](text), Limit: new(int64(suggestions))})
			return items, err
		},
		describe: a.describeDevice,
	}
}

func (s *session) listDevices(ctx context.Context, p *client.ListDevicesParams) ([]client.Device, *string, error) {
	r, err := ask(ctx, s, func(ctx context.Context) (*client.ListDevicesResponse, error) {
		return s.api.ListDevicesWithResponse(ctx, p)
	})
	if err != nil {
		return nil, nil, err
	}
	return r.JSON200.Items, r.JSON200.Next, nil
}

func (s *session) device(ctx context.Context, id string) (client.Device, error) {
	r, err := ask(ctx, s, func(ctx context.Context) (*client.GetDeviceResponse, error) {
		return s.api.GetDeviceWithResponse(ctx, id, nil)
	})
	if err != nil {
		return client.Device{}, err
	}
	return *r.JSON200, nil
}

// findDevice returns the device of an id, an exact name, or a prefix of an id.
func (s *session) findDevice(ctx context.Context, arg string) (client.Device, error) {
	if id, err := uuid.Parse(arg); err == nil {
		return s.device(ctx, id.String())
	}
	if arg == "" {
		return client.Device{}, usagef("want a device: its name, its id, or the beginning of its id")
	}
	like, err := all(ctx, s, func(ctx context.Context, s *session, p page) ([]client.Device, *string, error) {
		return s.listDevices(ctx, &client.ListDevicesParams{Q: &arg, Cursor: p.cursor, Limit: p.limit})
	}, 0)
	if err != nil {
		return client.Device{}, err
	}
	return pick("device", arg, like, func(d client.Device) (string, string) { return d.Id.String(), d.Name })
}

// minPrefix is the shortest beginning of an id that stands for it.
const minPrefix = 4

// pick returns the one that an argument names among candidates: by id, by
// exact name, or by the beginning of an id.
func pick[T any](what, arg string, candidates []T, key func(T) (id, name string)) (T, error) {
	var zero T
	for _, match := range []func(id, name string) bool{
		func(id, _ string) bool { return id == arg },
		func(_, name string) bool { return name == arg },
		func(id, _ string) bool { return len(arg) >= minPrefix && strings.HasPrefix(id, strings.ToLower(arg)) },
	} {
		found := slices.DeleteFunc(slices.Clone(candidates), func(c T) bool { return !match(key(c)) })
		switch len(found) {
		case 0:
			continue
		case 1:
			return found[0], nil
		}
		e := usagef("%q stands for %d %ss; use the id", arg, len(found), what)
		for _, c := range found[:min(len(found), 10)] {
			id, name := key(c)
			e.Fields = append(e.Fields, client.FieldError{Field: id, Message: name})
		}
		return zero, e
	}
	return zero, notFound(what, arg)
}

func (a *app) describeDevice(ctx context.Context, s *session, d client.Device, r *report) error {
	now, id := r.now, d.Id.String()
	fetchVMs := func(ctx context.Context, s *session, p page) ([]client.VM, *string, error) {
		return s.listVMs(ctx, &client.ListVmsParams{Device: &d.Id, Cursor: p.cursor, Limit: p.limit})
	}
	machines, err := all(ctx, s, fetchVMs, 0)
	if err != nil {
		return err
	}
	open, err := all(ctx, s, func(ctx context.Context, s *session, p page) ([]client.Task, *string, error) {
		return s.listTasks(ctx, &client.ListTasksParams{Device: &d.Id, Open: new(true), Cursor: p.cursor, Limit: p.limit})
	}, 0)
	if err != nil {
		return err
	}
	happened, err := all(ctx, s, func(ctx context.Context, s *session, p page) ([]client.Event, *string, error) {
		return s.listEvents(ctx, &client.ListEventsParams{Device: &d.Id, Order: new(client.ListEventsParamsOrder("desc")), Cursor: p.cursor, Limit: p.limit})
	}, 10)
	if err != nil {
		return err
	}

	if err := r.block("Device "+d.Name,
		"Id", id, "Labels", pairs(d.Labels), "Site", place(d.Site), "Notes", str(d.Notes),
		"Registered", when(d.RegisteredAt, now), "Join token", str(d.JoinToken),
		"Approved", by(d.ApprovedAt, d.ApprovedBy, now), "Retired", by(d.RetiredAt, d.RetiredBy, now), "Reason", str(d.RetiredReason),
		"Revision", strconv.FormatInt(d.Revision, 10)); err != nil {
		return err
	}
	if err := r.trusted(d); err != nil {
		return err
	}
	if err := r.block("Connection",
		"State", string(d.Connection), "Since", when(d.ConnectionSince, now), "Lost because", str(d.LostReason),
		"Address", str(d.Address), "Agent", str(d.AgentVersion), "Usage", usageToday(d.Usage)); err != nil {
		return err
	}
	if c := d.Certificate; c != nil {
		if err := r.block("Certificate", "Serial", c.Serial, "Valid until", when(&c.NotAfter, now)); err != nil {
			return err
		}
	}
	if err := describeHost(d, r); err != nil {
		return err
	}
	if err := list(r, "Virtual machines", a.vms().columns, machines); err != nil {
		return err
	}
	if err := list(r, "Open tasks", a.tasks().columns, open); err != nil {
		return err
	}
	slices.Reverse(happened)
	return list(r, "Last events", a.events().columns, happened)
}

func describeHost(d client.Device, r *report) error {
	fields := []string{"Condition", string(d.Condition), "Because", str(d.ConditionMessage), "Since", when(d.ConditionSince, r.now)}
	h := d.Host
	if h == nil {
		return r.block("Host", fields...)
	}
	l := h.License
	may := "the licence permits changes"
	if !l.Writable {
		may = strings.TrimSuffix("the licence forbids changes: "+str(l.Reason), ": ")
	}
	if err := r.block("Host", append(fields,
		"Name", h.Name, "Product", strings.Join(strings.Fields(h.Product+" "+h.Version+" build "+h.Build), " "),
		"Hardware", strings.TrimSpace(str(h.Vendor)+" "+str(h.Model)), "Serial", str(h.Serial), "UUID", str(h.Uuid),
		"CPU", fmt.Sprintf("%d cores, %d threads in %d sockets, %d MHz %s", h.CpuCores, h.CpuThreads, h.CpuSockets, h.CpuMHz, str(h.CpuModel)),
		"Memory", size(h.MemoryMiB), "Maintenance", yesNo(h.Maintenance), "Booted", when(h.BootTime, r.now))...); err != nil {
		return err
	}
	if err := r.block("Licence", "Name", str(l.Name), "Edition", str(l.Edition), "Expires", when(l.Expires, r.now), "Changes", may); err != nil {
		return err
	}
	if h.Datastores != nil {
		if err := list(r, "Datastores", []column[client.Datastore]{
			{head: "NAME", value: func(d client.Datastore, _ time.Time) string { return d.Name }},
			{head: "TYPE", value: func(d client.Datastore, _ time.Time) string { return d.Type }},
			{head: "CAPACITY", value: func(d client.Datastore, _ time.Time) string { return size(d.CapacityMiB) }},
			{head: "FREE", value: func(d client.Datastore, _ time.Time) string { return size(d.FreeMiB) }},
			{head: "ACCESSIBLE", value: func(d client.Datastore, _ time.Time) string { return yesNo(d.Accessible) }},
		}, *h.Datastores); err != nil {
			return err
		}
	}
	if h.Networks == nil {
		return nil
	}
	return list(r, "Networks", []column[client.Network]{
		{head: "NAME", value: func(n client.Network, _ time.Time) string { return n.Name }},
		{head: "ID", value: func(n client.Network, _ time.Time) string { return n.Id }},
	}, *h.Networks)
}

// place is a site with its coordinates, as maps take them.
func place(s *client.Site) string {
	switch {
	case s == nil:
		return ""
	case s.Latitude == nil || s.Longitude == nil:
		return s.Name
	}
	return fmt.Sprintf("%s (%g, %g)", s.Name, *s.Latitude, *s.Longitude)
}

// by is when and who.
func by(t *time.Time, who *string, now time.Time) string {
	if t == nil {
		return ""
	}
	return strings.TrimSuffix(when(t, now)+" by "+str(who), " by ")
}

func (a *app) deviceCommand() *cobra.Command {
	cmd := group("device", "Decide about devices, name, label and describe them")
	cmd.Aliases = []string{"devices", "dev"}
	rename := &cobra.Command{
		Use: "rename DEVICE NAME", Short: "Give a device another name", Args: cobra.ExactArgs(2), ValidArgsFunction: firstOnly(complete(a, a.devices())),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.changeDevice(cmd.Context(), args[0], "renamed", func(ctx context.Context, s *session, d client.Device) error {
				_, err := s.updateDevice(ctx, d, client.UpdateDevice{Name: &args[1]})
				return err
			})
		},
	}
	cmd.AddCommand(a.approveCommand(), a.rejectCommand(), a.quarantineCommand(), a.releaseCommand(), a.rekeyCommand(), a.rotateCertificateCommand(), a.retireCommand(), a.labelCommand(), rename, a.noteCommand(), a.siteCommand())
	return cmd
}

func (a *app) noteCommand() *cobra.Command {
	return &cobra.Command{
		Use: "note DEVICE TEXT", Short: "Write down what people should know of a device",
		Long: "Write down what people should know of a device, in place of what was written before. An empty text removes it; - reads it from standard input.\n\n" +
			"The history keeps every text: it is no place for secrets or for what is personal.",
		Args: cobra.ExactArgs(2), ValidArgsFunction: firstOnly(complete(a, a.devices())),
		RunE: func(cmd *cobra.Command, args []string) error {
			text := args[1]
			if text == "-" {
				b, err := io.ReadAll(io.LimitReader(a.in, maxNotes+1))
				if err != nil {
					return usagef("standard input: %v", err)
				}
				text = strings.TrimSpace(string(b))
			}
			return a.changeDevice(cmd.Context(), args[0], "described", func(ctx context.Context, s *session, d client.Device) error {
				_, err := s.updateDevice(ctx, d, client.UpdateDevice{Notes: &text})
				return err
			})
		},
	}
}

// maxNotes is more than notes may have: the manager says what is too much.
const maxNotes = 16 << 10

func (a *app) siteCommand() *cobra.Command {
	var (
		position string
		forget   bool
	)
	cmd := &cobra.Command{
		Use: "site DEVICE {NAME | --forget}", Short: "Write down where a device stands",
		Args: cobra.RangeArgs(1, 2), ValidArgsFunction: firstOnly(complete(a, a.devices())),
		RunE: func(cmd *cobra.Command, args []string) error {
			if forget == (len(args) == 2) || forget && position != "" {
				return usagef("want the name of the site, or --forget alone")
			}
			// The generated client cannot say null.
			site := map[string]any{}
			switch {
			case forget:
				site = nil
			case cmd.Flags().Changed("at"):
				latitude, longitude, err := coordinates(position)
				if err != nil {
					return err
				}
				site["latitude"], site["longitude"] = latitude, longitude
			}
			if len(args) == 2 {
				site["name"] = args[1]
			}
			body, err := json.Marshal(map[string]any{"site": site})
			if err != nil {
				return err
			}
			return a.changeDevice(cmd.Context(), args[0], "described", func(ctx context.Context, s *session, d client.Device) error {
				_, err := ask(ctx, s, func(ctx context.Context) (*client.UpdateDeviceResponse, error) {
					return s.api.UpdateDeviceWithBodyWithResponse(ctx, d.Id.String(), nil, "application/merge-patch+json", bytes.NewReader(body))
				})
				return err
			})
		},
	}
	cmd.Flags().StringVar(&position, "at", "", "LATITUDE,LONGITUDE in degrees, such as 50.1147,8.6821; \"\" forgets them")
	cmd.Flags().BoolVar(&forget, "forget", false, "forget where it stands")
	return cmd
}

// coordinates reads degrees north and east; nothing is nil, nil.
func coordinates(s string) (latitude, longitude any, err error) {
	if s == "" {
		return nil, nil, nil
	}
	north, east, ok := strings.Cut(s, ",")
	a, err1 := strconv.ParseFloat(strings.TrimSpace(north), 64)
	b, err2 := strconv.ParseFloat(strings.TrimSpace(east), 64)
	if !ok || err1 != nil || err2 != nil || math.IsNaN(a) || math.IsNaN(b) || math.IsInf(a, 0) || math.IsInf(b, 0) {
		return nil, nil, usagef("--at %q: want LATITUDE,LONGITUDE in degrees, such as 50.1147,8.6821", s)
	}
	return a, b, nil
}

func (s *session) updateDevice(ctx context.Context, d client.Device, body client.UpdateDevice) (*client.UpdateDeviceResponse, error) {
	return ask(ctx, s, func(ctx context.Context) (*client.UpdateDeviceResponse, error) {
		return s.api.UpdateDeviceWithResponse(ctx, d.Id.String(), nil, body)
	})
}

// changeDevice changes the device that an argument names and shows what it is
// then.
func (a *app) changeDevice(ctx context.Context, arg, done string, change func(context.Context, *session, client.Device) error) error {
	s, err := a.open()
	if err != nil {
		return err
	}
	d, err := s.findDevice(ctx, arg)
	if err != nil {
		return err
	}
	if err := change(ctx, s, d); err != nil {
		return err
	}
	if d, err = s.device(ctx, d.Id.String()); err != nil {
		return err
	}
	if a.output != "" {
		return printAll(a, a.devices(), []client.Device{d})
	}
	a.say("device %s (%s) %s", d.Name, d.Id, done)
	return nil
}

func (a *app) approveCommand() *cobra.Command {
	return a.actionCommand(action{
		verb: "approve", done: "approved", short: "Let pending devices be managed",
		one: func(ctx context.Context, s *session, d client.Device, _ string) error {
			_, err := ask(ctx, s, func(ctx context.Context) (*client.ApproveDeviceResponse, error) {
				return s.api.ApproveDeviceWithResponse(ctx, d.Id.String(), nil)
			})
			return err
		},
	})
}

func (a *app) retireCommand() *cobra.Command {
	return a.actionCommand(action{
		verb: "retire", done: "retired", short: "End devices: their certificates are worth nothing from now on, for good", reason: true, final: true,
		one: func(ctx context.Context, s *session, d client.Device, reason string) error {
			_, err := ask(ctx, s, func(ctx context.Context) (*client.RetireDeviceResponse, error) {
				return s.api.RetireDeviceWithResponse(ctx, d.Id.String(), nil, client.RetireDevice{Reason: one[string](reason)})
			})
			return err
		},
	})
}

// confirm asks for the name of the device, since retiring has no way back.
func (a *app) confirm(d client.Device) error {
	a.note("This retires device %s (%s, %d virtual machines). It cannot be undone.", d.Name, d.Id, d.Vms.Total)
	fmt.Fprint(a.err, "Type its name to go on: ")
	line, err := bufio.NewReader(a.in).ReadString('\n')
	if strings.TrimSpace(line) == strings.TrimSpace(d.Name) {
		return nil
	}
	fmt.Fprintln(a.err)
	e := &Error{Code: exitUsage, Title: "not retired", Detail: "that is not the name of the device"}
	if err != nil {
		e.Hint = "without a terminal, use --yes"
	}
	return e
}

func (a *app) labelCommand() *cobra.Command {
	var m many
	do := action{verb: "label", done: "labelled"}
	cmd := &cobra.Command{
		Use: "label {DEVICE | -l SELECTOR | --all} KEY=VALUE… KEY-…", Short: "Set labels of devices, or remove them",
		Long: "Set labels of a device, or of those that -l or --all picks, or remove them. Those that are picked are counted first, as with pallas approve.",
		Args: cobra.ArbitraryArgs, ValidArgsFunction: firstOnly(complete(a, a.devices())),
		RunE: func(cmd *cobra.Command, args []string) error {
			names := args[:min(1, len(args))]
			if m.selector != "" || m.all {
				names = nil
			}
			picked, err := m.picked(cmd, len(names))
			if err != nil {
				return err
			}
			if args = args[len(names):]; len(args) == 0 {
				return usagef("want labels: KEY=VALUE to set one, KEY- to remove it")
			}
			set, err := labels(args, true)
			if err != nil {
				return err
			}
			if picked {
				return a.changeMany(cmd.Context(), do, m, client.ChangeDevices{Action: client.ChangeDevicesAction(do.verb), Labels: &set})
			}
			return a.changeDevice(cmd.Context(), names[0], do.done, func(ctx context.Context, s *session, d client.Device) error {
				_, err := s.updateDevice(ctx, d, client.UpdateDevice{Labels: &set})
				return err
			})
		},
	}
	m.flags(cmd, false)
	return cmd
}

// firstOnly completes the first argument alone.
func firstOnly(f cobra.CompletionFunc) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, text string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return f(cmd, args, text)
	}
}
