package esxi

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"

	"pallas/agent/hypervisor"
)

// needed are the privileges that the agent's account must have on the host.
var needed = []string{
	"System.View", "System.Read",
	"VirtualMachine.Interact.PowerOn", "VirtualMachine.Interact.PowerOff",
	"VirtualMachine.Interact.Suspend", "VirtualMachine.Interact.Reset",
	"Datastore.Browse", "Datastore.FileManagement",
	"Global.Licenses",
}

// maxClock is how far the clocks of host and agent may be apart.
const maxClock = time.Minute

// Check implements [hypervisor.Driver].
func (d *Driver) Check(ctx context.Context) []hypervisor.CheckResult {
	var out []hypervisor.CheckResult
	line := func(name string, ok bool, format string, args ...any) {
		out = append(out, hypervisor.CheckResult{Name: name, OK: ok, Detail: fmt.Sprintf(format, args...)})
	}
	chain, err := d.handshake(ctx)
	if err != nil {
		line("host reachable", false, "%s: %v; check url, and that the agent's network leads to the host's management address", d.address(), err)
		return out
	}
	line("host reachable", true, "%s", d.address())

	now := time.Now()
	if err := d.trust.verify(d.url.Hostname(), chain, now); err != nil {
		line("host certificate", false, "%v", &certificateError{chain: chain, err: err})
		return out
	}
	leaf, how := chain[0], "chains to ca_file"
	switch {
	case d.trust.insecure:
		how = "NOT VERIFIED because insecure is set; pin it as thumbprint"
	case d.trust.pin != nil:
		how = "is the pinned one"
	}
	line("host certificate", true, "%s, %s, valid until %s", thumbprint(leaf), how, leaf.NotAfter.UTC().Format(time.DateOnly))

	// A login of its own, so that it is the configured password that is tried.
	s, err := d.login(ctx)
	if err != nil {
		line("host login", false, "%v", d.translate(ctx, "log in", err))
		return out
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = s.logout(ctx) // it ends by itself otherwise
	}()
	about := s.content.About
	line("host login", true, "%s as %s", about.FullName, d.cfg.Username)

	switch missing, err := s.missing(ctx); {
	case err != nil:
		line("host rights", false, "%v", d.translate(ctx, "read privileges", err))
	case len(missing) > 0:
		line("host rights", false, "the account %s lacks %s; give it a role with them on the host", d.cfg.Username, strings.Join(missing, ", "))
	default:
		line("host rights", true, "all %d privileges that the agent uses", len(needed))
	}

	l, err := d.license(ctx, s)
	switch {
	case err != nil:
		line("host licence", false, "%v", d.translate(ctx, "read licence", err))
	case !l.Writable:
		line("host licence", false, "%s: inventory is reported, tasks are refused", l.Reason)
	case l.Expires > 0 && l.Expires < now.Unix():
		line("host licence", false, "%s expired on %s", l.Name, time.Unix(l.Expires, 0).UTC().Format(time.DateOnly))
	case l.Name == "":
		line("host licence", true, "cannot be read with this account; nothing speaks against changes")
	default:
		line("host licence", true, "%s permits changes", l.Name)
	}

	before := time.Now()
	there, err := methods.GetCurrentTime(ctx, s)
	if err != nil {
		line("host clock", false, "%v", d.translate(ctx, "read clock", err))
		return out
	}
	here := before.Add(time.Since(before) / 2)
	diff := there.Sub(here).Round(time.Second)
	switch {
	case diff > maxClock:
		line("host clock", false, "the host's clock is %v ahead of the agent's; set up NTP on both", diff)
	case diff < -maxClock:
		line("host clock", false, "the host's clock is %v behind the agent's; set up NTP on both", -diff)
	default:
		line("host clock", true, "%s, within %v of the agent's", there.UTC().Format(time.DateTime), diff.Abs())
	}
	return out
}

// handshake connects and returns the certificates that the host shows, trusted
// or not.
func (d *Driver) handshake(ctx context.Context) ([]*x509.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.CallTimeout)
	defer cancel()
	raw, err := d.cfg.DialContext(ctx, "tcp", d.address())
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, &tls.Config{
		MinVersion: tls.VersionTLS12, ServerName: d.url.Hostname(),
		InsecureSkipVerify: true, // only looked at here, judged by the caller
	})
	defer func() { _ = conn.Close() }()
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	return conn.ConnectionState().PeerCertificates, nil
}

// missing returns the needed privileges that the session lacks.
func (s *session) missing(ctx context.Context) ([]string, error) {
	ref := s.content.AuthorizationManager
	if ref == nil {
		return nil, errors.New("the host has no authorization manager")
	}
	res, err := methods.HasPrivilegeOnEntity(ctx, s, &types.HasPrivilegeOnEntity{
		This: *ref, Entity: s.content.RootFolder, SessionId: s.key, PrivId: needed,
	})
	if err != nil {
		return nil, err
	}
	var out []string
	for i, p := range needed {
		if i >= len(res.Returnval) || !res.Returnval[i] {
			out = append(out, p)
		}
	}
	return out, nil
}
