package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"pallas/internal/client"
)

func (a *app) vms() *noun[client.VM] {
	return &noun[client.VM]{
		plural: "vms", aliases: []string{"vm"}, argument: "DEVICE/VM",
		name:  vmName,
		about: func(v client.VM) string { return string(v.Power) },
		id:    func(v client.VM) string { return v.Device.String() + "/" + v.Id },
		kinds: []string{"device", "inventory"},
		columns: []column[client.VM]{
			{head: "DEVICE", value: func(v client.VM, _ time.Time) string { return v.DeviceName }},
			{head: "NAME", value: func(v client.VM, _ time.Time) string { return v.Name }},
			{head: "POWER", status: true, value: func(v client.VM, _ time.Time) string { return string(v.Power) }},
			{head: "CPU", value: func(v client.VM, _ time.Time) string { return strconv.FormatInt(v.Cpus, 10) }},
			{head: "MEMORY", value: func(v client.VM, _ time.Time) string { return size(v.MemoryMiB) }},
			{head: "TOOLS", status: true, value: func(v client.VM, _ time.Time) string { return string(v.Tools) }},
			{head: "IPS", value: func(v client.VM, _ time.Time) string { return dash(strings.Join(v.Ips, ",")) }},
			{head: "ID", wide: true, value: func(v client.VM, _ time.Time) string { return v.Id }},
			{head: "GUEST", wide: true, value: func(v client.VM, _ time.Time) string { return dash(first(str(v.GuestName), str(v.GuestId))) }},
			{head: "HOSTNAME", wide: true, value: func(v client.VM, _ time.Time) string { return dash(str(v.Hostname)) }},
			{head: "DISKS", wide: true, value: func(v client.VM, _ time.Time) string {
				var mib int64
				for _, d := range v.Disks {
					mib += d.CapacityMiB
				}
				return fmt.Sprintf("%d, %s", len(v.Disks), size(mib))
			}},
			{head: "UP", wide: true, value: func(v client.VM, now time.Time) string { return age(v.BootTime, now) }},
			{head: "CHANGED", wide: true, value: func(v client.VM, now time.Time) string { return age(v.UpdatedAt, now) }},
		},
		filter: func(cmd *cobra.Command) lister[client.VM] {
			var (
				selector, q, device, sort string
				power, tools              []string
			)
			f := cmd.Flags()
			f.StringVarP(&selector, "selector", "l", "", "only those on devices with these labels")
			f.StringVarP(&q, "query", "q", "", "only those with this text in name, id, guest, host name or addresses")
			f.StringVar(&device, "device", "", "only those of this device")
			f.StringVar(&sort, "sort", "", "order: name or id")
			choice(cmd, &power, "power", "only those in one of these states", "on", "off", "suspended", "unknown")
			choice(cmd, &tools, "tools", "only those whose guest tools are in one of these states", "running", "notRunning", "notInstalled", "unknown")
			_ = cmd.RegisterFlagCompletionFunc("device", complete(a, a.devices())) // the flag exists
			return func(ctx context.Context, s *session, p page) ([]client.VM, *string, error) {
				id, err := s.deviceID(ctx, &device)
				if err != nil {
					return nil, nil, err
				}
				return s.listVMs(ctx, &client.ListVmsParams{
					Cursor: p.cursor, Limit: p.limit, Selector: one[string](selector), Q: one[string](q), Device: id,
					Sort: one[client.ListVmsParamsSort](sort), Power: some[client.ListVmsParamsPower](power), Tools: some[client.ListVmsParamsTools](tools),
				})
			}
		},
		find: func(ctx context.Context, s *session, arg string) (client.VM, error) { return s.findVM(ctx, arg) },
		suggest: func(ctx context.Context, s *session, text string) ([]client.VM, error) {
			device, name, named := strings.Cut(text, "/")
			p := &client.ListVmsParams{Limit: new(int64(suggestions))}
			if named {
				d, err := s.findDevice(ctx, device)
				if err != nil {
					return nil, err
				}
				p.Device, p.Q = &d.Id, one[string](name)
			}
			items, _, err := s.listVMs(ctx, p)
			return items, err
		},
		describe: describeVM,
	}
}

func vmName(v client.VM) string { return v.DeviceName + "/" + v.Name }

func (s *session) listVMs(ctx context.Context, p *client.ListVmsParams) ([]client.VM, *string, error) {
	r, err := ask(ctx, s, func(ctx context.Context) (*client.ListVmsResponse, error) {
		return s.api.ListVmsWithResponse(ctx, p)
	})
	if err != nil {
		return nil, nil, err
	}
	return r.JSON200.Items, r.JSON200.Next, nil
}

// deviceID returns the id that a --device flag names, nil for none. The flag's
// value becomes the id, so that the next page need not ask again.
func (s *session) deviceID(ctx context.Context, device *string) (*uuid.UUID, error) {
	if *device == "" {
		return nil, nil
	}
	if id, err := uuid.Parse(*device); err == nil {
		return &id, nil
	}
	d, err := s.findDevice(ctx, *device)
	*device = d.Id.String()
	return &d.Id, err
}

// findVM returns the virtual machine that DEVICE/VM names.
func (s *session) findVM(ctx context.Context, arg string) (client.VM, error) {
	device, name, ok := strings.Cut(arg, "/")
	if !ok || device == "" || name == "" {
		return client.VM{}, usagef("virtual machine %q: want DEVICE/VM, each by name or id", arg)
	}
	d, err := s.findDevice(ctx, device)
	if err != nil {
		return client.VM{}, err
	}
	like, err := all(ctx, s, func(ctx context.Context, s *session, p page) ([]client.VM, *string, error) {
		return s.listVMs(ctx, &client.ListVmsParams{Device: &d.Id, Q: &name, Cursor: p.cursor, Limit: p.limit})
	}, 0)
	if err != nil {
		return client.VM{}, err
	}
	return pick("virtual machine", name, like, func(v client.VM) (string, string) { return v.Id, v.Name })
}

func describeVM(_ context.Context, _ *session, v client.VM, r *report) error {
	if err := r.block("Virtual machine "+vmName(v),
		"Id", v.Id, "Device", v.DeviceName+" ("+v.Device.String()+")", "Power", string(v.Power), "Booted", when(v.BootTime, r.now),
		"CPUs", strconv.FormatInt(v.Cpus, 10), "Memory", size(v.MemoryMiB), "Guest", first(str(v.GuestName), str(v.GuestId)),
		"Tools", string(v.Tools), "Host name", str(v.Hostname), "Addresses", strings.Join(v.Ips, ", "),
		"First seen", when(v.FirstSeenAt, r.now), "Changed", when(v.UpdatedAt, r.now), "Revision", strconv.FormatInt(v.Revision, 10)); err != nil {
		return err
	}
	if err := list(r, "Disks", []column[client.Disk]{
		{head: "LABEL", value: func(d client.Disk, _ time.Time) string { return d.Label }},
		{head: "CAPACITY", value: func(d client.Disk, _ time.Time) string { return size(d.CapacityMiB) }},
		{head: "THIN", value: func(d client.Disk, _ time.Time) string {
			if d.Thin == nil {
				return "-"
			}
			return yesNo(*d.Thin)
		}},
		{head: "FILE", value: func(d client.Disk, _ time.Time) string { return dash(str(d.File)) }},
	}, v.Disks); err != nil {
		return err
	}
	return list(r, "Network adapters", []column[client.NIC]{
		{head: "LABEL", value: func(n client.NIC, _ time.Time) string { return n.Label }},
		{head: "MAC", value: func(n client.NIC, _ time.Time) string { return dash(str(n.Mac)) }},
		{head: "NETWORK", value: func(n client.NIC, _ time.Time) string { return dash(str(n.Network)) }},
		{head: "CONNECTED", value: func(n client.NIC, _ time.Time) string { return yesNo(n.Connected) }},
	}, v.Nics)
}

// powerActions are what vm power can do.
var powerActions = []struct {
	action client.SetVMPowerAction
	short  string
}{
	{client.SetVMPowerActionOn, "Power virtual machines on"},
	{client.SetVMPowerActionOff, "Power virtual machines off, without asking their guests"},
	{client.SetVMPowerActionReset, "Reset virtual machines, without asking their guests"},
	{client.SetVMPowerActionSuspend, "Suspend virtual machines"},
	{client.SetVMPowerActionShutdown, "Ask the guests to shut down; needs running guest tools"},
}

func (a *app) vmCommand() *cobra.Command {
	cmd := group("vm", "Act on virtual machines")
	cmd.Aliases = []string{"vms"}
	power := group("power", "Power virtual machines on or off, reset, suspend or shut them down")
	for _, p := range powerActions {
		power.AddCommand(a.powerCommand(p.action, p.short))
	}
	cmd.AddCommand(power)
	return cmd
}

func (a *app) powerCommand(action client.SetVMPowerAction, short string) *cobra.Command {
	var (
		w             waiting
		deadline, key string
	)
	cmd := &cobra.Command{
		Use: string(action) + " DEVICE/VM…", Short: short, Args: cobra.MinimumNArgs(1), ValidArgsFunction: complete(a, a.vms()),
		Long: short + ".\n\nEach becomes a task that its device does when it is connected. Without --wait the command ends when the requests are in the manager's log.",
	}
	f := cmd.Flags()
	w.flags(cmd)
	f.StringVar(&deadline, "deadline", "", "until when a device may begin: an instant, or a duration from now such as 10m")
	f.StringVar(&key, "idempotency-key", "", "a word of yours: the same command with the same key happens once")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		until, err := instant("deadline", deadline, a.now, +1)
		if err != nil {
			return err
		}
		s, err := a.open()
		if err != nil {
			return err
		}
		targets, err := findAll(ctx, s, a.vms(), args) // all of them exist before anything happens
		if err != nil {
			return err
		}
		tasks := make([]client.Task, 0, len(targets))
		for i, v := range targets {
			p := &client.SetVmPowerParams{IdempotencyKey: keyFor(key, i, len(targets))}
			r, err := ask(ctx, s, func(ctx context.Context) (*client.SetVmPowerResponse, error) {
				return s.api.SetVmPowerWithResponse(ctx, v.Device.String(), v.Id, p, client.SetVMPower{Action: action, Deadline: until})
			})
			if err != nil {
				for _, t := range tasks {
					a.note("task %s for %s was asked for before", t.Id, str(t.VmName))
				}
				e := asError(err)
				e.Detail = vmName(v) + ": " + e.Detail
				return e
			}
			task := *r.JSON202
			if task.VmName == nil {
				task.VmName = &v.Name
			}
			tasks = append(tasks, task)
		}
		return a.finish(ctx, s, tasks, w)
	}
	return cmd
}

// keyFor makes one key serve several requests.
func keyFor(key string, i, n int) *string {
	if key != "" && n > 1 {
		key += "." + strconv.Itoa(i)
	}
	return one[string](key)
}
