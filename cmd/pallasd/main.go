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
	root.AddCommand(initCommand(), serveCommand(), resetCommand(), caCommand())
	return root
}

func initCommand() *cobra.Command {
	cfg := server.Defaults()
	var admin server.FirstAdmin
	var tokenFile string
	cmd := &cobra.Command{
		Use:   "init --data DIR",
		Short: "Make a data directory: the CA, a commented configuration, the first administrator",
		Long: "Make a data directory: the CA, a commented configuration, and the first administrator, who has no password.\n\n" +
			"The one-time link that it prints sets one, once the manager runs; \"pallasd reset-password\" makes another. --token-file writes an API token of the administrator as well, for automation.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cfg.Validate(); err != nil {
				return usageError{err}
			}
			log, err := server.NewLogger(server.LogConfig{Level: "warn", Format: "text"}, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			var file *os.File
			if tokenFile != "" {
				// Before anything is made: a token that cannot be kept is lost.
				if file, err = os.OpenFile(tokenFile, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
					return usageError{fmt.Errorf("--token-file: %w", err)}
				}
				admin.Token = true
			}
			first, err := server.Init(cmd.Context(), cfg, log, admin)
			if file != nil {
				if err == nil {
					_, err = fmt.Fprintln(file, first.Token)
				}
				if err = errors.Join(err, file.Close()); err != nil {
					err = errors.Join(err, os.Remove(tokenFile))
				}
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "configuration: %s/%s\nca file:       %s\n", cfg.DataDir, server.ConfigFile, server.CAFile(cfg))
			if file != nil {
				fmt.Fprintf(cmd.OutOrStdout(), "admin token:   %s\n", tokenFile)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "\nStart with:\n  pallasd serve --config %s/%s\n", cfg.DataDir, server.ConfigFile)
			printLink(cmd.OutOrStdout(), first)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.DataDir, "data", "", "directory to make (required)")
	f.StringVar(&cfg.HTTP.Listen, "listen", cfg.HTTP.Listen, "host:port of the API")
	f.StringVar(&cfg.HTTP.URL, "url", "", "https URL under which people and devices reach the API")
	f.StringVar(&cfg.MQTT.Listen, "mqtt-listen", cfg.MQTT.Listen, "host:port for devices")
	f.StringVar(&admin.Login, "admin", server.DefaultAdmin, "login of the first administrator")
	f.StringVar(&tokenFile, "token-file", "", "new file for an API token of the administrator, readable for its owner alone")
	return cmd
}

// printLink tells the person at the terminal how to get in.
func printLink(w io.Writer, first server.First) {
	fmt.Fprintf(w, "\nThen set the password of %s with this one-time link, until %s:\n  %s\nor with: pallas set-password --link-file -\n",
		first.Login, first.Expires.Format("2006-01-02 15:04 UTC"), first.Link)
}

func resetCommand() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "reset-password --config FILE LOGIN",
		Short: "Make a one-time link with which a user sets a new password",
		Long: "Make a one-time link with which a user sets a new password, on the manager's own machine, whether or not the manager runs.\n\n" +
			"It voids a link that was made before; the present password stays until the link is used. In a manager that has no users it makes the first administrator.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{errors.New("reset-password: want one LOGIN")}
			}
			cfg, err := load("reset-password", path)
			if err != nil {
				return err
			}
			log, err := server.NewLogger(server.LogConfig{Level: "warn", Format: "text"}, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			first, err := server.ResetPassword(cmd.Context(), cfg, log, args[0])
			if err != nil {
				return err
			}
			printLink(cmd.OutOrStdout(), first)
			return nil
		},
	}
	cmd.Flags().StringVar(&path, "config", "", "configuration file (required)")
	return cmd
}

// load reads the configuration of a command.
func load(command, path string) (server.Config, error) {
	cfg := server.Defaults()
	if path == "" {
		return cfg, usageError{fmt.Errorf("%s: --config FILE is missing; pallasd init writes one", command)}
	}
	if err := config.Load(path, &cfg); err != nil {
		return cfg, err
	}
	if err := cfg.Validate(); err != nil {
		return cfg, &config.Error{Path: path, Message: err.Error()}
	}
	return cfg, nil
}

func serveCommand() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "serve --config FILE",
		Short: "Run the device manager",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := load("serve", path)
			if err != nil {
				return err
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
