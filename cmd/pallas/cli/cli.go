package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"pallas/internal/version"
)

// app is one run of the program.
type app struct {
	in       io.Reader
	out, err io.Writer
	now      time.Time // when it started

	context, server, caFile, tokenFile string
	output                             string
	noColor                            bool
	timeout                            time.Duration
}

// Run runs the program and returns its exit code.
func Run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	a := &app{in: in, out: out, err: errOut, now: time.Now().UTC()}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	e := asError(err)
	e.write(errOut)
	return e.Code
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "pallas",
		Short:         "Manage virtualized edge devices",
		Long:          "Manage virtualized edge devices through the API of their device manager.\n\nBegin with \"pallas login\". Exit codes and output formats are in docs/reference/cli.md.",
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if !slices.Contains(formats, a.output) && a.output != "" {
				return usagef("-o %s: want one of %s", a.output, strings.Join(formats, ", "))
			}
			if a.timeout <= 0 {
				return usagef("--timeout %v: want more than 0", a.timeout)
			}
			return nil
		},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &Error{Code: exitUsage, Title: "usage", Detail: err.Error(), Hint: "see " + cmd.CommandPath() + " --help"}
	})
	f := root.PersistentFlags()
	f.StringVar(&a.context, "context", "", "context of the configuration file to use instead of the current one")
	f.StringVar(&a.server, "server", "", "URL of the manager (PALLAS_SERVER)")
	f.StringVar(&a.caFile, "ca-file", "", "PEM file of the CA to trust (PALLAS_CA_FILE)")
	f.StringVar(&a.tokenFile, "token-file", "", "file that holds the API token (PALLAS_TOKEN_FILE, or PALLAS_TOKEN for the token itself)")
	f.StringVarP(&a.output, "output", "o", "", "output format: "+strings.Join(formats, ", "))
	f.BoolVar(&a.noColor, "no-color", false, "no colour, as with NO_COLOR")
	f.DurationVar(&a.timeout, "timeout", 30*time.Second, "how long to wait for one answer of the manager")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp)) // the flag exists
	_ = root.RegisterFlagCompletionFunc("context", a.completeContexts)                                                 // the flag exists

	devices, vms, tasks, tokens, happened := a.devices(), a.vms(), a.tasks(), a.joinTokens(), a.events()
	get := group("get", "List things, or show some of them")
	get.AddCommand(getCommand(a, devices), getCommand(a, vms), getCommand(a, tasks), getCommand(a, happened), getCommand(a, tokens), getCommand(a, a.users()))
	describe := group("describe", "Tell people everything about a thing")
	describe.AddCommand(describeCommand(a, devices), describeCommand(a, vms), describeCommand(a, tasks), describeCommand(a, happened), describeCommand(a, tokens), describeCommand(a, a.users()))
	watch := group("watch", "Show things, then each change as it happens")
	watch.Long = watch.Short + ".\n\nWatching goes on over lost connections until Ctrl-C, which is its normal end: exit code 0."
	watch.AddCommand(watchCommand(a, devices), watchCommand(a, vms), watchCommand(a, tasks), a.watchEvents(happened), watchCommand(a, tokens))

	root.AddCommand(get, describe, watch,
		a.loginCommand(), a.logoutCommand(), a.contextCommand(),
		a.deviceCommand(), a.approveCommand(), a.rejectCommand(), a.quarantineCommand(), a.releaseCommand(), a.rekeyCommand(), a.rotateCertificateCommand(), a.retireCommand(), a.labelCommand(),
		a.vmCommand(), a.taskCommand(), a.joinTokenCommand(),
		a.userCommand(), a.roleCommand(), a.tokenCommand(), a.sessionCommand(), a.passwordCommand(), a.setPasswordCommand(),
		a.usageCommand(), a.statusCommand(), a.whoamiCommand(), a.versionCommand(), a.decodeCommand())
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	usageErrors(root)
	return root
}

// group is a command that only holds others.
func group(use, short string) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
}

// usageErrors makes what cobra says of wrong arguments a usage error, in every
// command.
func usageErrors(cmd *cobra.Command) {
	check := cmd.Args
	switch {
	case check != nil:
	case cmd.Name() == "help":
		check = cobra.ArbitraryArgs
	default:
		check = cobra.NoArgs
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		err := check(cmd, args)
		if err == nil {
			return nil
		}
		return &Error{Code: exitUsage, Title: "usage", Detail: err.Error(), Hint: "see " + cmd.CommandPath() + " --help"}
	}
	for _, c := range cmd.Commands() {
		usageErrors(c)
	}
}

// terminal says whether a stream is one.
func terminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

func (a *app) color() bool {
	return !a.noColor && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && terminal(a.out)
}

// say prints a sentence of what was done, for people.
func (a *app) say(format string, args ...any) {
	fmt.Fprintln(a.out, clean(fmt.Sprintf(format, args...)))
}

// note prints what is no result, such as a warning.
func (a *app) note(format string, args ...any) {
	fmt.Fprintln(a.err, clean(fmt.Sprintf(format, args...)))
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the versions of this program and of the manager, if it can be reached",
		RunE: func(cmd *cobra.Command, _ []string) error {
			a.say("client %s", version.String())
			a.timeout = min(a.timeout, 2*time.Second)
			s, err := a.open()
			if err != nil {
				return nil //nolint:nilerr // not logged in: there is no manager to ask
			}
			st, err := s.status(cmd.Context())
			if err != nil {
				a.note("server: %v", err)
				return nil
			}
			a.say("server %s", st.Version)
			return nil
		},
	}
}
