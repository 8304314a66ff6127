package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"pallas/internal/client"
)

func (a *app) rejectCommand() *cobra.Command {
	return a.actionCommand(action{
		verb: "reject", done: "rejected", short: "Turn pending devices down: they get nothing unless they are approved later", reason: true,
		one: func(ctx context.Context, s *session, d client.Device, reason string) error {
			_, err := ask(ctx, s, func(ctx context.Context) (*client.RejectDeviceResponse, error) {
				return s.api.RejectDeviceWithResponse(ctx, d.Id.String(), nil, client.TrustReason{Reason: one[string](reason)})
			})
			return err
		},
	})
}

func (a *app) quarantineCommand() *cobra.Command {
	return a.actionCommand(action{
		verb: "quarantine", done: "put into quarantine", short: "Cut devices off at once and keep them out until they are released", reason: true,
		one: func(ctx context.Context, s *session, d client.Device, reason string) error {
			_, err := ask(ctx, s, func(ctx context.Context) (*client.QuarantineDeviceResponse, error) {
				return s.api.QuarantineDeviceWithResponse(ctx, d.Id.String(), nil, client.TrustReason{Reason: one[string](reason)})
			})
			return err
		},
	})
}

func (a *app) releaseCommand() *cobra.Command {
	return a.actionCommand(action{
		verb: "release", done: "released", short: "End the quarantine of devices: they are trusted as before, with the key that they had", reason: true,
		one: func(ctx context.Context, s *session, d client.Device, reason string) error {
			_, err := ask(ctx, s, func(ctx context.Context) (*client.ReleaseDeviceResponse, error) {
				return s.api.ReleaseDeviceWithResponse(ctx, d.Id.String(), nil, client.TrustReason{Reason: one[string](reason)})
			})
			return err
		},
	})
}

func (a *app) rotateCertificateCommand() *cobra.Command {
	return a.actionCommand(action{
		verb: "rotate-certificate", done: "asked for another certificate", short: "Have devices get another certificate for their key, now or when they connect",
		one: func(ctx context.Context, s *session, d client.Device, _ string) error {
			_, err := ask(ctx, s, func(ctx context.Context) (*client.RotateCertificateResponse, error) {
				return s.api.RotateCertificateWithResponse(ctx, d.Id.String(), nil)
			})
			return err
		},
	})
}

func (a *app) rekeyCommand() *cobra.Command {
	var key string
	cmd := &cobra.Command{
		Use: "rekey DEVICE", Short: "Accept the other key that claims a device in quarantine: its machine was rebuilt",
		Long: "Accept the other key that claims a device in quarantine, because its machine was rebuilt. The key that it had is worth nothing from then on.\n\n" +
			"pallas describe device shows the claim. Release the device instead when the claim is a copy's.",
		Args: cobra.ExactArgs(1), ValidArgsFunction: firstOnly(complete(a, a.devices())),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.changeDevice(cmd.Context(), args[0], "has its new key", func(ctx context.Context, s *session, d client.Device) error {
				_, err := ask(ctx, s, func(ctx context.Context) (*client.RekeyDeviceResponse, error) {
					return s.api.RekeyDeviceWithResponse(ctx, d.Id.String(), nil, client.RekeyDevice{KeyHash: one[string](key)})
				})
				return err
			})
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "SHA-256 of the key to accept, as describe shows it; without it the one that claims the device now")
	return cmd
}

// trusted shows why a device is trusted as it is, and since when.
func (r *report) trusted(d client.Device) error {
	cause, before := "", ""
	if d.TrustCause != nil {
		cause = strings.ReplaceAll(string(*d.TrustCause), "_", " ")
	}
	if d.TrustBefore != nil {
		before = string(*d.TrustBefore)
	}
	if err := r.block("Trust",
		"State", string(d.Trust), "Since", by(d.TrustSince, d.TrustBy, r.now), "Because", str(d.TrustReason), "Cause", cause, "Before", before); err != nil {
		return err
	}
	c := d.KeyClaim
	if c == nil {
		return nil
	}
	return r.block("Claim of another key",
		"Key", c.KeyHash, "Name", c.Name, "Agent", str(c.AgentVersion), "Join token", c.JoinToken, "From", strings.TrimSpace(fmt.Sprintf("%s %s", str(c.Address), when(&c.At, r.now))))
}
