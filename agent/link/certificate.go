package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"reflect"
	"slices"
	"time"

	"pallas/mqttgw/wire"
)

// errChange ends a session whose certificate was replaced.
var errChange = errors.New("connecting again with the new certificate")

// calmFor is how long a calm moment is waited for to connect again.
const calmFor = 5 * time.Minute

// credentials has the next connections made with what the keeper has.
func (l *Link) credentials() {
	if l.c.Keeper == nil {
		return
	}
	version, cert, cas := l.c.Keeper.Credentials()
	if version == l.version {
		return
	}
	l.version = version
	for i := range l.ways {
		config := l.ways[i].tls.Clone()
		config.Certificates, config.RootCAs = []tls.Certificate{cert}, cas
		if config.ClientSessionCache != nil {
			// What was agreed on before is bound to the certificate before.
			config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
		}
		l.ways[i].tls = config
	}
}

// recover looks for another certificate when the one that there is has ended, or
// the door did not take it, and says whether there is one now.
func (l *Link) recover(ctx context.Context, err error) bool {
	k := l.c.Keeper
	if k == nil || ctx.Err() != nil || (!k.Lapsed() && !certificateRefused(err)) {
		return false
	}
	return k.Recover(ctx)
}

// alerts by which the other side refuses a certificate (RFC 8446 section 6).
var certificateAlerts = []uint64{
	42,  // bad_certificate
	44,  // certificate_revoked
	45,  // certificate_expired
	46,  // certificate_unknown
	48,  // unknown_ca
	116, // certificate_required
}

// certificateRefused says whether a handshake ended because of the device's
// certificate. The standard library has no exported type for an alert from the
// other side: it is a number of eight bits within a net.OpError.
func certificateRefused(err error) bool {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" {
		return false
	}
	v := reflect.ValueOf(op.Err)
	return v.Kind() == reflect.Uint8 && slices.Contains(certificateAlerts, v.Uint())
}

// certificate takes what the manager issued.
func (s *session) certificate(c wire.Certificate) error {
	k := s.l.c.Keeper
	if k == nil {
		return nil
	}
	renewed, left, err := k.Take(c)
	if err != nil {
		k.Refused()
		s.l.c.Log.Error("certificate from the manager not taken", "error", err)
		return nil
	}
	if renewed {
		s.l.c.Log.Info("certificate renewed", "expires", k.Expires())
		s.changeAt = time.Now().Add(rand.N(max(min(s.l.c.Change, left/10), 0) + 1))
	}
	if err := s.c.publish(wire.Up{Anchors: k.Anchors()}); err != nil {
		return fmt.Errorf("tell the CAs: %w", err)
	}
	return nil
}

// tendCertificate asks for a certificate when it is time, and ends the session
// at a calm moment when there is one.
func (s *session) tendCertificate(now time.Time) error {
	k := s.l.c.Keeper
	if k == nil || !s.l.welcomed.Load() {
		return nil
	}
	if !s.changeAt.IsZero() && !now.Before(s.changeAt) {
		_, first, next := s.l.c.Store.Numbers()
		if calm := first == next && s.c.tcp.unacknowledged() == 0; !calm && now.Before(s.changeAt.Add(calmFor)) {
			s.changeCheck = now.Add(time.Second)
			return nil
		}
		if err := s.c.bye("new certificate"); err != nil {
			s.l.c.Log.Debug("goodbye not sent", "error", err)
		}
		return errChange
	}
	if k.Wait() > 0 {
		return nil
	}
	csr, err := k.Request()
	if err != nil {
		k.Refused()
		s.l.c.Log.Error("cannot renew the certificate", "error", err)
		return nil
	}
	if err := s.c.publish(wire.Up{Renewal: &wire.Renewal{CSR: csr}}); err != nil {
		return fmt.Errorf("ask for a certificate: %w", err)
	}
	return nil
}

// certificateAt is when tendCertificate has something to do at the latest.
func (s *session) certificateAt(now time.Time) time.Time {
	if s.l.c.Keeper == nil || !s.l.welcomed.Load() {
		return time.Time{}
	}
	at := now.Add(s.l.c.Keeper.Wait())
	change := s.changeAt
	if s.changeCheck.After(change) {
		change = s.changeCheck
	}
	if !change.IsZero() && change.Before(at) {
		at = change
	}
	return at
}
