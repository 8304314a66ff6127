// Command pallasd is the Pallas device manager.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"pallas/internal/config"
	"pallas/internal/server"
	"pallas/internal/version"
)

// Exit codes, also in docs/reference/pallasd.md.
const (
	exitFailed = 1 // could not start, or stopped because of an error
	exitUsage  = 2 // wrong arguments or configuration
)

func main() {
	unix.Umask(0o077) // what it writes is for nobody else, also in a directory that others may read
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
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
	fmt.Fprintln(stderr, "pallasd:", err)
	var ce *config.Error
	var ue usageError
	if errors.As(err, &ce) || errors.As(err, &ue) {
		return exitUsage
	}
	return exitFailed
}

// usageError marks what the person who started the program can mend.
type usageError struct{ error }

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "pallasd",
		Short:         "Manage virtualized edge devices",
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version.String(),
		Args:          cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q; see pallasd --help", args[0])}
			}
			return cmd.Help()
		},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(initCommand(), serveCommand())
	return root
}

func initCommand() *cobra.Command {
	cfg := server.Defaults()
	cmd := &cobra.Command{
		Use:   "init --data DIR",
		Short: "Make a data directory: the CA, a commented configuration, the first administrator's token",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cfg.Validate(); err != nil {
				return usageError{err}
			}
			log, err := server.NewLogger(server.LogConfig{Level: "warn", Format: "text"}, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			token, err := server.Init(cmd.Context(), cfg, log)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "configuration: %s/%s\nca file:       %s\nadmin token:   %s\n\nThe token is shown once. Start with:\n  pallasd serve --config %s/%s\n",
				cfg.DataDir, server.ConfigFile, server.CAFile(cfg), token, cfg.DataDir, server.ConfigFile)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.DataDir, "data", "", "directory to make (required)")
	f.StringVar(&cfg.HTTP.Listen, "listen", cfg.HTTP.Listen, "host:port of the API")
	f.StringVar(&cfg.HTTP.URL, "url", "", "https URL under which people and devices reach the API")
	f.StringVar(&cfg.MQTT.Listen, "mqtt-listen", cfg.MQTT.Listen, "host:port for devices")
	return cmd
}

func serveCommand() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "serve --config FILE",
		Short: "Run the device manager",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if path == "" {
				return usageError{errors.New("serve: --config FILE is missing; pallasd init writes one")}
			}
			cfg := server.Defaults()
			if err := config.Load(path, &cfg); err != nil {
				return err
			}
			if err := cfg.Validate(); err != nil {
				return &config.Error{Path: path, Message: err.Error()}
			}
			log, err := server.NewLogger(cfg.Log, cmd.ErrOrStderr())
			if err != nil {
				return usageError{err}
			}
			s, err := server.New(cfg, log)
			if err != nil {
				return err
			}
			return s.Run(cmd.Context())
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
