// Command pallas-agent manages one ESXi host for a Pallas device manager.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"pallas/agent"
	"pallas/agent/identity"
	"pallas/internal/config"
	"pallas/internal/version"
)

// Exit codes, also in docs/reference/pallas-agent.md.
const (
	exitFailed  = 1 // stopped because of an error; doctor: a line failed
	exitUsage   = 2 // wrong arguments or configuration
	exitRefused = 3 // the manager refuses this device
)

func main() {
	limitMemory()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// limitMemory keeps the program small on a machine that it shares with nothing,
// unless GOMEMLIMIT or GOGC say otherwise.
func limitMemory() {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(24 << 20)
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	cmd := command()
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if !errors.Is(err, errLinesFailed) { // they have been printed
		fmt.Fprintln(stderr, "pallas-agent:", err)
	}
	var ce *config.Error
	var ue usageError
	var re *identity.RefusedError
	var gone *identity.RetiredError
	switch {
	case errors.As(err, &ce), errors.As(err, &ue):
		return exitUsage
	case errors.As(err, &re), errors.As(err, &gone):
		return exitRefused
	}
	return exitFailed
}

// usageError marks what the person who started the program can mend.
type usageError struct{ error }

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "pallas-agent",
		Short:         "Manage one ESXi host for a Pallas device manager",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q; pallas-agent --help lists them", args[0])}
			}
			return cmd.Help()
		},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(
		configCommand("run", "Run the agent until it is told to stop", runAgent),
		configCommand("doctor", "Check, line by line, what an installation needs", doctor),
		configCommand("init", "Write a commented configuration file", writeSample),
		&cobra.Command{
			Use: "version", Short: "Print the version", Args: noArgs,
			Run: func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), version.String()) },
		})
	return root
}

// configCommand is a command whose one flag is the configuration file.
func configCommand(name, short string, f func(*cobra.Command, string) error) *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use: name + " --config FILE", Short: short, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if path == "" {
				return usageError{fmt.Errorf("%s: --config FILE is missing; pallas-agent init writes one", name)}
			}
			return f(cmd, path)
		},
	}
	cmd.Flags().StringVar(&path, "config", "", "configuration file (required)")
	return cmd
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("%s: unexpected argument %q", cmd.Name(), args[0])}
	}
	return nil
}

func runAgent(cmd *cobra.Command, path string) (err error) {
	s, err := load(path, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	defer func() {
		if cerr := s.driver.Close(); cerr != nil {
			s.log.Debug("cannot log out of the host", "error", cerr)
		}
	}()
	a, err := agent.New(agent.Config{
		Dir: s.DataDir, Join: s.join, Driver: s.driver, Version: version.String(), Log: s.log, Narrow: s.Link == linkNarrow,
	})
	if err != nil {
		return err
	}
	s.log.Info("agent starts", "version", version.String(), "host", s.Host.URL, "data_dir", s.DataDir)
	return a.Run(cmd.Context())
}
