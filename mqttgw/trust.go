package mqttgw

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"time"

	"pallas/commands"
	"pallas/events"
	"pallas/mqttgw/pki"
	"pallas/mqttgw/renewal"
	"pallas/mqttgw/wire"
)

// What a device shows to the manager, and whom it trusts, is kept fresh over its
// session: it asks for a certificate when it is time, or when it is told to, and
// it is told of the CAs when they are others than it has.

const (
	// tellEach is how many sessions a shard tells of a change of the CAs in one
	// tick: it has each of them ask for a certificate, which costs about a
	// millisecond.
	tellEach = 4
	// issuedFor is how long a certificate is given again to the same request.
	issuedFor = 10 * time.Minute
)

// issued is a certificate that the device may not have got.
type issued struct {
	csr [sha256.Size]byte
	der []byte
	at  time.Time
}

// TrustChanged has all connected devices told of the CAs that there are now.
func (g *Gateway) TrustChanged() {
	for _, sh := range g.shards {
		sh.do(func() {
			sh.mu.Lock()
			defer sh.mu.Unlock()
			sh.untold = sh.untold[:0]
			for id, s := range sh.sessions {
				if s.greeted {
					sh.untold = append(sh.untold, id)
				}
			}
		})
	}
}

// tellTrust tells some of the devices that are to be told.
func (sh *shard) tellTrust(ctx context.Context) {
	n := min(tellEach, len(sh.untold))
	ids := sh.untold[:n]
	sh.untold = sh.untold[n:]
	for _, id := range ids {
		s, _ := sh.session(id)
		if s == nil {
			continue // its Hello will tell
		}
		sh.offerAnchors(s)
		device, err := sh.g.commands.Device(ctx, id)
		if err != nil {
			if ctx.Err() == nil {
				sh.g.log.Warn("look at a device's certificate", "device", id, "err", err)
			}
			continue
		}
		sh.offerRenewal(s, device)
	}
	if len(sh.untold) == 0 {
		sh.untold = nil
	}
}

// offerAnchors tells a device of the CAs unless it has them. One that does not
// say which it has would not understand.
func (sh *shard) offerAnchors(s *session) {
	if a := sh.g.cfg.Authority; a != nil && s.anchors != nil && s.anchors != a.State() {
		sh.g.send(s.id, wire.Down{Certificate: &wire.Certificate{CAs: anchorsOf(a.State())}})
	}
}

// offerRenewal has a device ask for a certificate if it should have another one.
func (sh *shard) offerRenewal(s *session, device commands.Device) {
	if !device.RotationAt.IsZero() || sh.outdated(device) {
		sh.g.send(s.id, wire.Down{Renew: true})
	}
}

// outdated says whether the device's certificate is of a CA that will be retired.
func (sh *shard) outdated(device commands.Device) bool {
	a := sh.g.cfg.Authority
	if a == nil || sh.g.cfg.Renewals == nil {
		return false
	}
	state := a.State()
	return state.Phase == pki.PhaseSwitched && device.Newest.Issuer != pki.AnchorID(state.Active().Certificate())
}

func anchorsOf(s *pki.State) (list [][]byte) {
	for _, c := range s.Anchors() {
		list = append(list, c.Raw)
	}
	return list
}

// noAnchors stands for CAs that are not those of any state.
var noAnchors = new(pki.State)

// heldAnchors hears which CAs the device accepts the manager by. device, if not
// nil, is what was just read of it: most say what is known, and that shall cost
// nothing.
func (sh *shard) heldAnchors(ctx context.Context, s *session, held [][]byte, device *commands.Device) error {
	if sh.g.cfg.Authority == nil || len(held) == 0 {
		s.anchors = nil
		return nil
	}
	s.issued = nil // it has been taken
	state := sh.g.cfg.Authority.State()
	s.anchors = state
	list := state.Anchors()
	for _, c := range list {
		if !containsBytes(held, wire.AnchorID(c)) {
			s.anchors = noAnchors
		}
	}
	if len(held) != len(list) { // none twice
		s.anchors = noAnchors
	}
	sh.offerAnchors(s)
	names := make([]string, len(held))
	for i, a := range held {
		names[i] = hex.EncodeToString(a)
	}
	report := commands.ReportAnchors{Device: s.id, Anchors: names}
	if device != nil {
		if out, err := commands.Decide(report, commands.States{Device: *device}, sh.g.now()); err == nil && len(out.Entries) == 0 {
			return nil
		}
	}
	_, err := sh.g.commands.Do(ctx, report, sh.meta(s))
	return err
}

func containsBytes(list [][]byte, b []byte) bool {
	for _, x := range list {
		if bytes.Equal(x, b) {
			return true
		}
	}
	return false
}

// meta says that the device itself is at work.
func (sh *shard) meta(s *session) commands.Meta {
	_, _, address := sh.state(s)
	return commands.Meta{Actor: events.DeviceActor(s.id), Source: address}
}

// renew answers a certificate request. The same request is given the same
// certificate again: the answer may have been lost.
func (sh *shard) renew(ctx context.Context, s *session, r wire.Renewal) {
	greeted, _, address := sh.state(s)
	if !greeted || sh.g.cfg.Renewals == nil {
		return // it asks again after its Hello
	}
	now, sum := sh.g.now(), sha256.Sum256(r.CSR)
	if i := s.issued; i == nil || i.csr != sum || now.Sub(i.at) > issuedFor {
		csr, err := pki.ParseCSRDER(r.CSR)
		if err == nil {
			cert, err2 := sh.g.cfg.Renewals.Renew(ctx, renewal.Request{Device: s.id, CSR: csr, Source: address})
			if err = err2; err == nil {
				sh.g.log.Info("certificate renewed", "device", s.id, "serial", pki.SerialHex(cert), "until", cert.NotAfter)
				s.issued = &issued{sum, cert.Raw, now}
			}
		}
		if err != nil {
			sh.renewalRefused(ctx, s, err)
			return
		}
	}
	d := wire.Down{Certificate: &wire.Certificate{Leaf: s.issued.der}}
	if a := sh.g.cfg.Authority; a != nil {
		d.Certificate.CAs = anchorsOf(a.State())
	}
	sh.g.send(s.id, d)
}

// renewalRefused tells the device why, if it is the device's fault.
func (sh *shard) renewalRefused(ctx context.Context, s *session, err error) {
	var ce *commands.Error
	switch isError := errors.As(err, &ce); {
	case isError && ce.Kind == commands.KindNotFound, isError && ce.Code == commands.CodeRetired,
		!isError && !errors.Is(err, pki.ErrCSR):
		sh.g.fail(ctx, s.id, "renew certificate", err)
	default:
		sh.g.broker.refuse(wire.ErrorRenewal)
		sh.blame(s, "renewal refused", "err", err)
		sh.g.send(s.id, wire.Down{Error: &wire.Error{Code: wire.ErrorRenewal, Message: err.Error()}})
	}
}
