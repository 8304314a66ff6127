package esxi

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"pallas/agent/hypervisor"
	"pallas/mqttgw/wire"
)

// hostRef is the one host of every ESXi.
var hostRef = types.ManagedObjectReference{Type: "HostSystem", Value: "ha-host"}

// session is one login.
type session struct {
	d       *Driver
	client  *client
	content types.ServiceContent
	key     string
}

// RoundTrip implements [soap.RoundTripper]. It bounds each call.
func (s *session) RoundTrip(ctx context.Context, req, res soap.HasFault) error {
	limit := s.d.cfg.CallTimeout
	if _, ok := req.(*methods.WaitForUpdatesExBody); ok {
		limit += s.d.cfg.KeepAlive
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := s.client.RoundTrip(ctx, req, res)
	if err != nil && ctx.Err() != nil && !soap.IsSoapFault(err) {
		return ctx.Err() // whatever the connection looked like at its end
	}
	return err
}

func (s *session) logout(ctx context.Context) error {
	_, err := methods.Logout(ctx, s, &types.Logout{This: *s.content.SessionManager})
	return err
}

// login opens a session.
func (d *Driver) login(ctx context.Context) (*session, error) {
	s := &session{d: d, client: &client{url: d.url, http: &http.Client{Transport: d.transport, CheckRedirect: noRedirect}}}
	var err error
	if s.content, err = methods.GetServiceContent(ctx, s); err != nil {
		return nil, err
	}
	if s.content.About.ApiType != "HostAgent" || s.content.SessionManager == nil {
		return nil, &hypervisor.Error{Code: wire.CodeUnsupported, Message: fmt.Sprintf(
			"%s is a %s, not a standalone ESXi host: give the address of the host itself", d.url.Host, s.content.About.FullName)}
	}
	res, err := methods.Login(ctx, s, &types.Login{
		This: *s.content.SessionManager, UserName: d.cfg.Username, Password: string(d.cfg.Password), Locale: "en_US",
	})
	if err != nil {
		return nil, err
	}
	s.key = res.Returnval.Key
	return s, nil
}

// noRedirect: the API does not, and the password goes nowhere else.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// refusal is a refused login. While it holds the driver answers from memory.
type refusal struct {
	err   error
	pause time.Duration
	until time.Time
}

// connect returns the session, opening it if there is none, or if it is stale.
func (d *Driver) connect(ctx context.Context, stale *session) (*session, error) {
	select {
	case d.gate <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-d.gate }()
	if d.closed {
		return nil, &hypervisor.Error{Code: wire.CodeInterrupted, Message: "the driver is closed"}
	}
	if d.session != nil && d.session != stale {
		return d.session, nil
	}
	d.session = nil
	if d.refusal.err != nil && time.Now().Before(d.refusal.until) {
		return nil, d.refusal.err
	}
	s, err := d.login(ctx)
	if isFault[*types.InvalidLogin](err) {
		if d.refusal.pause == 0 {
			d.refusal.pause = d.cfg.LoginPause
		} else {
			d.refusal.pause = min(2*d.refusal.pause, maxLoginPause)
		}
		d.refusal.err, d.refusal.until = err, time.Now().Add(d.refusal.pause)
		d.log.Warn("host refused the login", "user", d.cfg.Username, "pause", max(d.refusal.pause, 0))
	}
	if err != nil {
		return nil, err
	}
	d.session, d.refusal = s, refusal{}
	d.log.Debug("logged in to host", "host", d.url.Host)
	return s, nil
}

// with calls f with a session, once more with a new one if the host has
// dropped it. Its error is a [hypervisor.Error].
func (d *Driver) with(ctx context.Context, doing string, f func(*session) error) error {
	var stale *session
	for {
		s, err := d.connect(ctx, stale)
		if err == nil {
			if err = f(s); err == nil {
				return nil
			}
			if stale == nil && isFault[*types.NotAuthenticated](err) {
				stale = s
				continue
			}
		}
		return d.translate(ctx, doing, err)
	}
}
