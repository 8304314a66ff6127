// Command demo runs all of Pallas in one process: a device manager, and
// simulated ESXi hosts with a real agent each. It only wires what pallasd and
// pallas-agent are made of; every connection between the parts is a real one.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"pallas/internal/version"
)

type options struct {
	hosts      int
	data       string
	listen     string
	mqttListen string
	json       bool
	check      bool
	verbose    bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:           "demo",
		Short:         "Run a device manager with simulated ESXi hosts",
		Args:          cobra.NoArgs,
		Version:       version.String(),
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.hosts, "hosts", 3, "how many ESXi hosts to simulate")
	f.StringVar(&o.data, "data", "", "directory to keep and to open again (default: a temporary one, removed at the end)")
	f.StringVar(&o.listen, "listen", "127.0.0.1:0", "host:port of the API; port 0 takes a free one")
	f.StringVar(&o.mqttListen, "mqtt-listen", "127.0.0.1:0", "host:port for devices; port 0 takes a free one")
	f.BoolVar(&o.json, "json", false, "print one JSON line when ready, nothing else, on standard output")
	f.BoolVar(&o.check, "check", false, "run the main job against the demo and exit with 0 or 1")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "log what the parts do on standard error")
	return cmd
}

func (o options) run(ctx context.Context, stdout, stderr io.Writer) (err error) {
	if o.hosts < 1 || o.hosts > 100 {
		return fmt.Errorf("--hosts: %d is out of range, want 1 to 100", o.hosts)
	}
	level := slog.LevelWarn
	if o.verbose {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	if o.data == "" {
		dir, err := os.MkdirTemp("", "pallas-demo-")
		if err != nil {
			return fmt.Errorf("temporary directory: %w", err)
		}
		defer os.RemoveAll(dir) //nolint:errcheck // a temporary directory
		o.data = dir
	}
	start := time.Now()
	d, err := newDemo(ctx, o, log)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- d.run(ctx) }()
	select {
	case <-d.ready:
	case err := <-done:
		return err
	}
	if o.check {
		err := d.check(ctx, stdout)
		cancel()
		return errors.Join(err, <-done)
	}
	if o.json {
		if err := json.NewEncoder(stdout).Encode(d.ports()); err != nil {
			return err
		}
	} else {
		d.greet(stdout, time.Since(start))
	}
	return <-done
}
