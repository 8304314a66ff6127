package cli

import (
	"bufio"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"pallas/internal/client"
)

// many picks devices for a change and says how to go about it.
type many struct {
	selector, reason, key string
	trust                 []string
	all, yes, dryRun      bool
}

func (m *many) flags(cmd *cobra.Command, reason bool) {
	f := cmd.Flags()
	f.StringVarP(&m.selector, "selector", "l", "", "all devices with these labels: a=b,a!=b,a in (x,y),a notin (x,y),a,!a")
	f.BoolVar(&m.all, "all", false, "all devices")
	choice(cmd, &m.trust, "trust", "with -l or --all, only those in one of these states", trusts...)
	f.BoolVar(&m.dryRun, "dry-run", false, "with -l or --all, only say what would happen")
	f.BoolVar(&m.yes, "yes", false, "do not ask")
	f.StringVar(&m.key, "idempotency-key", "", "with -l or --all, a word of yours: the same command with the same key does nothing twice")
	if reason {
		f.StringVar(&m.reason, "reason", "", "why, for those who read the log")
	}
}

// picked says whether devices are picked, not named.
func (m *many) picked(cmd *cobra.Command, names int) (bool, error) {
	picked := m.selector != "" || m.all
	switch {
	case m.selector != "" && m.all:
		return false, usagef("-l and --all: want one of them")
	case picked && names > 0:
		return false, usagef("want the names of devices, or -l or --all, not both")
	case !picked && names == 0:
		return false, usagef("want devices: their names or ids, or -l with the labels of those that are meant, or --all")
	}
	for _, flag := range []string{"trust", "dry-run", "idempotency-key"} {
		if !picked && cmd.Flags().Changed(flag) {
			return false, usagef("--%s goes with -l or --all", flag)
		}
	}
	return picked, nil
}

// meant says in words which devices are picked.
func (m *many) meant() string {
	var words []string
	if len(m.trust) > 0 {
		words = append(words, "that are "+strings.Join(m.trust, " or "))
	}
	if m.selector != "" {
		words = append(words, "with "+m.selector)
	}
	return strings.Join(words, " ")
}

// action is something that is done with devices.
type action struct {
	verb, done string // as in "approve" and "approved"
	short      string
	reason     bool
	final      bool // there is no way back: ask for named devices too
	// one does it with a device that is named.
	one func(ctx context.Context, s *session, d client.Device, reason string) error
}

func (a *app) actionCommand(do action) *cobra.Command {
	var m many
	cmd := &cobra.Command{
		Use: do.verb + " {DEVICE… | -l SELECTOR | --all}", Short: do.short,
		Long: do.short + ".\n\nDevices that -l or --all picks are counted first; what would happen is shown, and on a terminal the number of devices is asked for. " +
			"Without a terminal, --yes is needed. The exit code is 4 when a device was refused.",
		Args: cobra.ArbitraryArgs, ValidArgsFunction: complete(a, a.devices()),
		RunE: func(cmd *cobra.Command, args []string) error {
			picked, err := m.picked(cmd, len(args))
			if err != nil {
				return err
			}
			if picked {
				return a.changeMany(cmd.Context(), do, m, client.ChangeDevices{Action: client.ChangeDevicesAction(do.verb), Reason: one[string](m.reason)})
			}
			return a.changeNamed(cmd.Context(), args, do, m)
		},
	}
	m.flags(cmd, do.reason)
	return cmd
}

// changeNamed does something with the devices that arguments name, and shows
// what they are then. A name that stands for none ends it before anything is
// done.
func (a *app) changeNamed(ctx context.Context, args []string, do action, m many) error {
	s, err := a.open()
	if err != nil {
		return err
	}
	devices, err := findAll(ctx, s, a.devices(), args)
	if err != nil {
		return err
	}
	switch {
	case !do.final || m.yes:
	case len(devices) == 1:
		err = a.confirm(devices[0])
	default:
		for _, d := range devices {
			a.note("  %s (%s, %d virtual machines)", d.Name, d.Id, d.Vms.Total)
		}
		err = a.confirmNumber(fmt.Sprintf("This will %s %d devices. It cannot be undone.", do.verb, len(devices)), do.done, len(devices))
	}
	if err != nil {
		return err
	}
	for i, d := range devices {
		if err := do.one(ctx, s, d, m.reason); err != nil {
			return err
		}
		if devices[i], err = s.device(ctx, d.Id.String()); err != nil {
			return err
		}
		if a.output == "" {
			a.say("device %s (%s) %s", devices[i].Name, d.Id, do.done)
		}
	}
	if a.output == "" {
		return nil
	}
	return printAll(a, a.devices(), devices)
}

// changeMany does something with the devices that are picked, after a look at
// what would come of it.
func (a *app) changeMany(ctx context.Context, do action, m many, body client.ChangeDevices) error {
	s, err := a.open()
	if err != nil {
		return err
	}
	body.Selector, body.Trust, body.DryRun = one[string](m.selector), some[client.ChangeDevicesTrust](m.trust), new(true)
	if m.all {
		body.All = new(true)
	}
	look, err := s.changeDevices(ctx, "", body)
	if err != nil {
		return err
	}
	a.note("%s %s", devicesOf(look.Targets), strings.TrimSpace(m.meant()+": "+outcome(look)))
	switch {
	case m.dryRun:
		a.noteRefusals(look)
		return a.printChange(look)
	case look.Changed == 0:
		if err := a.printChange(look); err != nil {
			return err
		}
		return refused(look)
	case !m.yes:
		a.noteRefusals(look)
		question := fmt.Sprintf("This will %s %s.", do.verb, devicesOf(look.Changed))
		if do.final {
			question += " It cannot be undone."
		}
		if err := a.confirmNumber(question, do.done, int(look.Targets)); err != nil {
			return err
		}
	}
	// The key makes it safe to send the request again while the manager is busy.
	body.DryRun, body.Expect = nil, &look.Targets
	result, err := s.changeDevices(ctx, first(m.key, uuid.NewString()), body)
	if err != nil {
		return err
	}
	if a.output == "" {
		a.say("%s %s", devicesOf(result.Changed), do.done)
	}
	if err := a.printChange(result); err != nil {
		return err
	}
	return refused(result)
}

func (s *session) changeDevices(ctx context.Context, key string, body client.ChangeDevices) (client.DevicesChanged, error) {
	r, err := ask(ctx, s, func(ctx context.Context) (*client.ChangeDevicesResponse, error) {
		return s.api.ChangeDevicesWithResponse(ctx, &client.ChangeDevicesParams{IdempotencyKey: one[string](key)}, body)
	})
	if err != nil {
		return client.DevicesChanged{}, err
	}
	return *r.JSON200, nil
}

// printChange prints the numbers for programs; people were told.
func (a *app) printChange(r client.DevicesChanged) error {
	if a.output == "" {
		return nil
	}
	return printAll(a, changes, []client.DevicesChanged{r})
}

// shownRefusals is how many refusals a person is shown.
const shownRefusals = 10

func (a *app) noteRefusals(r client.DevicesChanged) {
	for _, f := range r.Refusals[:min(len(r.Refusals), shownRefusals)] {
		a.note("  %s: %s", f.Name, f.Message)
	}
	if more := int(r.Refused) - shownRefusals; more > 0 {
		a.note("  and %d more", more)
	}
}

// refused is the error of a change that some devices refused, nil if none did.
func refused(r client.DevicesChanged) error {
	if r.Refused == 0 {
		return nil
	}
	e := &Error{Code: exitRefused, Title: devicesOf(r.Refused) + " refused"}
	for _, f := range r.Refusals[:min(len(r.Refusals), shownRefusals)] {
		e.Fields = append(e.Fields, client.FieldError{Field: f.Name, Message: f.Message})
	}
	if r.Refused > shownRefusals {
		e.Hint = fmt.Sprintf("%d more; -o json lists the first 100", r.Refused-shownRefusals)
	}
	return e
}

// changes shows the numbers of a change of many devices.
var changes = &noun[client.DevicesChanged]{
	plural: "changes",
	name:   func(r client.DevicesChanged) string { return strconv.FormatInt(r.Changed, 10) },
	columns: []column[client.DevicesChanged]{
		{head: "TARGETS", value: func(r client.DevicesChanged, _ time.Time) string { return strconv.FormatInt(r.Targets, 10) }},
		{head: "CHANGED", value: func(r client.DevicesChanged, _ time.Time) string { return strconv.FormatInt(r.Changed, 10) }},
		{head: "UNCHANGED", value: func(r client.DevicesChanged, _ time.Time) string { return strconv.FormatInt(r.Unchanged, 10) }},
		{head: "REFUSED", value: func(r client.DevicesChanged, _ time.Time) string { return strconv.FormatInt(r.Refused, 10) }},
	},
}

// outcome says what would come of a change.
func outcome(r client.DevicesChanged) string {
	words := []string{fmt.Sprintf("%d would change", r.Changed)}
	if r.Unchanged > 0 {
		words = append(words, fmt.Sprintf("%d need no change", r.Unchanged))
	}
	if r.Refused > 0 {
		words = append(words, fmt.Sprintf("%d would be refused", r.Refused))
	}
	return strings.Join(words, ", ")
}

// devicesOf is a number of devices in words.
func devicesOf(n int64) string {
	if n == 1 {
		return "1 device"
	}
	return fmt.Sprintf("%d devices", n)
}

// confirmNumber asks a person for the number of devices, who has to look at it
// for that.
func (a *app) confirmNumber(question, done string, n int) error {
	a.note("%s", question)
	e := &Error{Code: exitUsage, Title: "not " + done}
	if !terminal(a.in) {
		e.Detail, e.Hint = "there is no terminal to ask at", "look at it with --dry-run, then use --yes"
		return e
	}
	fmt.Fprint(a.err, "Type the number of devices to go on: ")
	line, err := bufio.NewReader(a.in).ReadString('\n')
	if strings.TrimSpace(line) == strconv.Itoa(n) {
		return nil
	}
	if err != nil {
		fmt.Fprintln(a.err)
	}
	e.Detail = fmt.Sprintf("that is not the number of devices, which is %d", n)
	return e
}
