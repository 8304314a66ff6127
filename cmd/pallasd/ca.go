package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"pallas/internal/server"
	"pallas/mqttgw/pki"
)

// The commands work on the files of the CA, whether the manager runs or not. It
// notices within a second or two.

func caCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ca",
		Short: "Look at the CA of the devices, and replace it",
		Long: "Replaces the CA that signs the certificates of devices, without anybody losing the connection.\n\n" +
			"  prepare  makes the next CA. Devices that are connected, or connect, learn to trust it too.\n" +
			"  switch   lets the next CA sign. Devices that are connected, or connect, get a certificate of it.\n" +
			"  retire   ends the former CA. Devices that were away all the time need a new join token then.\n\n" +
			"Days or weeks may lie between the steps; status says who is left. rotate does all three and waits in between.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		caStep("status", "Say how far the replacement of the CA has come", func(_ context.Context, _ server.Config, _ io.Writer) error { return nil }),
		caStep("prepare", "Make the next CA", func(_ context.Context, cfg server.Config, _ io.Writer) error { return server.PrepareCA(cfg) }),
		caStep("switch", "Let the next CA sign", func(_ context.Context, cfg server.Config, _ io.Writer) error { return server.SwitchCA(cfg) }),
		caRetireCommand(), caRotateCommand(),
	)
	return cmd
}

// caStep is a command that does something and then says how things are.
func caStep(use, short string, do func(ctx context.Context, cfg server.Config, out io.Writer) error) *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use: use + " --config FILE", Short: short, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := load("ca "+use, path)
			if err != nil {
				return err
			}
			if err := do(cmd.Context(), cfg, cmd.OutOrStdout()); err != nil {
				return err
			}
			c, err := server.ReadCA(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			printCA(cmd.OutOrStdout(), c)
			return nil
		},
	}
	cmd.Flags().StringVar(&path, "config", "", "configuration file (required)")
	return cmd
}

func caRetireCommand() *cobra.Command {
	var force bool
	cmd := caStep("retire", "End the former CA", func(ctx context.Context, cfg server.Config, _ io.Writer) error {
		err := server.RetireCA(ctx, cfg, force)
		if errors.Is(err, server.ErrDevicesLeft) {
			err = fmt.Errorf("%w; wait until they have connected, or give --force and enrol them again", err)
		}
		return err
	})
	cmd.Flags().BoolVar(&force, "force", false, "also when devices would stay outside")
	return cmd
}

func caRotateCommand() *cobra.Command {
	var wait time.Duration
	cmd := caStep("rotate", "Replace the CA: prepare, switch and retire, with the waits between them", func(ctx context.Context, cfg server.Config, out io.Writer) error {
		return rotateCA(ctx, cfg, wait, out)
	})
	cmd.Long = "Goes on from the step that was done last, and waits after each for the devices: first until all trust the next CA, then until all have a certificate of it. " +
		"It never leaves a device outside: when --wait is over before all devices have come by, it ends with an error, and can be started again at any time. " +
		"The manager has to run meanwhile."
	cmd.Flags().DurationVar(&wait, "wait", time.Hour, "how long to wait for devices in all")
	return cmd
}

// rotateTick is how often devices are counted.
const rotateTick = time.Second

func rotateCA(ctx context.Context, cfg server.Config, wait time.Duration, out io.Writer) error {
	deadline := time.After(wait)
	tick := time.NewTicker(rotateTick)
	defer tick.Stop()
	c, err := server.ReadCA(ctx, cfg)
	if err != nil {
		return err
	}
	if c.State.Phase == pki.PhaseSteady {
		if err := server.PrepareCA(cfg); err != nil {
			return err
		}
		fmt.Fprintln(out, "prepared: waiting until all devices trust the next CA")
	}
	last := -1
	for {
		if c, err = server.ReadCA(ctx, cfg); err != nil {
			return err
		}
		left := len(c.Left())
		switch {
		case c.Unknown != nil:
		case left > 0:
			if left != last {
				fmt.Fprintf(out, "%d of %d devices are left\n", left, c.Devices)
				last = left
			}
		case c.State.Phase == pki.PhasePrepared:
			if err := server.SwitchCA(cfg); err != nil {
				return err
			}
			fmt.Fprintln(out, "switched: waiting until all devices have a certificate of the new CA")
			last = -1
			continue
		default:
			return server.RetireCA(ctx, cfg, false)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-deadline:
			if c.Unknown != nil {
				return fmt.Errorf("which devices are left is not known: %w", c.Unknown)
			}
			return fmt.Errorf("%d of %d devices have not come by in %v (pallasd ca status lists them): start rotate again later, or go on with ca switch or ca retire --force", left, c.Devices, wait)
		case <-tick.C:
		}
	}
}

func printCA(out io.Writer, c server.CAStatus) {
	show := func(role string, ca *pki.CA) {
		cert := ca.Certificate()
		fmt.Fprintf(out, "%-8s %s  %s, until %s\n         SHA-256 %x\n", role+":", pki.AnchorID(cert), cert.Subject.CommonName, cert.NotAfter.UTC().Format(time.DateOnly), ca.Fingerprint())
	}
	fmt.Fprintf(out, "phase:   %s", c.State.Phase)
	if !c.State.Since.IsZero() {
		fmt.Fprintf(out, " since %s", c.State.Since.UTC().Format(time.RFC3339))
	}
	fmt.Fprintln(out)
	show("active", c.State.Active())
	other := "former"
	if c.State.Phase == pki.PhasePrepared {
		other = "next"
	}
	if c.State.Other() != nil {
		show(other, c.State.Other())
	}
	if c.Unknown != nil {
		fmt.Fprintf(out, "devices: not known: %v\n", c.Unknown)
		return
	}
	fmt.Fprintf(out, "devices: %d\n", c.Devices)
	switch c.State.Phase {
	case pki.PhasePrepared:
		fmt.Fprintf(out, "         %d do not trust the next CA yet\n", len(c.Untold))
	case pki.PhaseSwitched:
		fmt.Fprintf(out, "         %d do not trust the new CA yet, %d have no certificate of it\n", len(c.Untold), len(c.Old))
		if left := c.Left(); len(left) > 0 {
			fmt.Fprintln(out, "         these would stay outside if the former CA were retired:")
			for _, id := range left {
				fmt.Fprintf(out, "           %s\n", id)
			}
		}
	case pki.PhaseSteady:
	}
}
