package server

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pallas/commands"
	"pallas/events"
	"pallas/mqttgw/pki"
	"pallas/projections"
)

// authorityTick is how often the CA's files are looked at.
const authorityTick = time.Second

// followAuthority notices what pallasd ca does to the CA, in whatever process,
// and writes down what is news, also that of the time before this start.
func (s *Server) followAuthority(ctx context.Context, changed func()) {
	tick := time.NewTicker(authorityTick)
	defer tick.Stop()
	recorded, told := false, ""
	for {
		switch news, err := s.ca.Reload(); {
		case err != nil && err.Error() != told:
			told = err.Error()
			s.log.Error("CA not read; going on with what was read before", "error", err)
		case err == nil:
			told = ""
			if news {
				recorded = false
				s.log.Info("CA changed", "phase", s.ca.State().Phase, "active", pki.AnchorID(s.ca.State().Active().Certificate()))
				changed()
			}
		}
		if !recorded {
			switch err := s.recordAuthority(ctx); {
			case err == nil:
				recorded = true
			case ctx.Err() == nil:
				s.log.Warn("change of the CA not written down; trying again", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (s *Server) recordAuthority(ctx context.Context) error {
	st := s.ca.State()
	c := commands.RecordAuthority{
		Phase: commands.AuthorityPhase(st.Phase), Active: hex.EncodeToString(st.Active().Fingerprint()), Since: st.Since,
		NotAfter: st.Active().Certificate().NotAfter,
	}
	if other := st.Other(); other != nil {
		c.Other = hex.EncodeToString(other.Fingerprint())
		if st.Phase == pki.PhasePrepared {
			c.NotAfter = other.Certificate().NotAfter
		}
	}
	_, err := s.commands.Do(ctx, c, commands.Meta{Actor: events.SystemActor("ca")})
	return err
}

// authorityCollector tells how the CA does.
type authorityCollector struct{ ca *pki.Authority }

var (
	caExpiry = prometheus.NewDesc("pallas_ca_expiry_timestamp_seconds",
		"When a CA that devices trust ends, in Unix seconds.", []string{"role", "ca"}, nil)
	caPhase = prometheus.NewDesc("pallas_ca_rollover_phase",
		"1 for the phase that the replacement of the CA is in.", []string{"phase"}, nil)
)

func (authorityCollector) Describe(ch chan<- *prometheus.Desc) { ch <- caExpiry; ch <- caPhase }

func (c authorityCollector) Collect(ch chan<- prometheus.Metric) {
	st := c.ca.State()
	add := func(role string, ca *pki.CA) {
		cert := ca.Certificate()
		ch <- prometheus.MustNewConstMetric(caExpiry, prometheus.GaugeValue, float64(cert.NotAfter.Unix()), role, pki.AnchorID(cert))
	}
	add("active", st.Active())
	if st.Other() != nil {
		add(otherRole(st.Phase), st.Other())
	}
	for _, p := range []pki.Phase{pki.PhaseSteady, pki.PhasePrepared, pki.PhaseSwitched} {
		is := 0.0
		if p == st.Phase {
			is = 1
		}
		ch <- prometheus.MustNewConstMetric(caPhase, prometheus.GaugeValue, is, string(p))
	}
}

func otherRole(p pki.Phase) string {
	if p == pki.PhasePrepared {
		return "next"
	}
	return "former"
}

// CAStatus is how far the replacement of the CA has come.
type CAStatus struct {
	State *pki.State
	// Devices is how many there are that are not retired.
	Devices int
	// Untold are those that do not accept the manager by the newer CA yet, Old
	// those whose newest certificate is of the former one. Both are empty while
	// there is one CA.
	Untold, Old []events.DeviceID
	// Unknown says why the devices are not known, nil when they are.
	Unknown error
}

// Left lists the devices that would stay outside if the former CA were retired.
func (c CAStatus) Left() []events.DeviceID {
	return slices.Compact(slices.Sorted(slices.Values(slices.Concat(c.Untold, c.Old))))
}

// ReadCA returns the state of the CA of a data directory, whether its manager
// runs or not. What devices have is what the read model knows of them.
func ReadCA(ctx context.Context, cfg Config) (CAStatus, error) {
	a, err := pki.Open(pkiDir(cfg))
	if err != nil {
		return CAStatus{}, err
	}
	c := CAStatus{State: a.State()}
	trusts, err := projections.DeviceTrusts(ctx, filepath.Join(cfg.DataDir, "readmodel.db"))
	if err != nil {
		c.Unknown = err
		return c, nil //nolint:nilerr // it is a part of the answer
	}
	c.Devices = len(trusts)
	if c.State.Phase == pki.PhaseSteady {
		return c, nil
	}
	newer := c.State.Active()
	if c.State.Phase == pki.PhasePrepared {
		newer = c.State.Other()
	}
	id := pki.AnchorID(newer.Certificate())
	for _, t := range trusts {
		if !t.Trusts(id) {
			c.Untold = append(c.Untold, t.ID)
		}
		if c.State.Phase == pki.PhaseSwitched && t.Issuer != id {
			c.Old = append(c.Old, t.ID)
		}
	}
	return c, nil
}

// PrepareCA makes the next CA. A manager that runs notices by itself.
func PrepareCA(cfg Config) error {
	_, err := pki.Prepare(pkiDir(cfg), time.Now())
	return err
}

// SwitchCA lets the next CA sign.
func SwitchCA(cfg Config) error {
	_, err := pki.Switch(pkiDir(cfg), time.Now())
	return err
}

// ErrDevicesLeft says that devices would stay outside.
var ErrDevicesLeft = errors.New("devices would stay outside")

// maxLeft is how many ids an error lists.
const maxLeft = 20

// RetireCA ends the former CA. Unless it is forced it refuses, with
// ErrDevicesLeft, while there are devices that need it or nobody knows.
func RetireCA(ctx context.Context, cfg Config, force bool) error {
	c, err := ReadCA(ctx, cfg)
	if err != nil {
		return err
	}
	if !force && c.State.Phase == pki.PhaseSwitched {
		left := c.Left()
		switch {
		case c.Unknown != nil:
			return fmt.Errorf("whether %w is not known: %w", ErrDevicesLeft, c.Unknown)
		case len(left) > 0:
			ids := make([]string, 0, maxLeft)
			for _, id := range left[:min(maxLeft, len(left))] {
				ids = append(ids, string(id))
			}
			more := ""
			if n := len(left) - len(ids); n > 0 {
				more = fmt.Sprintf(" and %d more", n)
			}
			return fmt.Errorf("%d %w, since they have no certificate of the new CA or do not trust it yet: %s%s", len(left), ErrDevicesLeft, strings.Join(ids, ", "), more)
		}
	}
	_, err = pki.Retire(pkiDir(cfg), time.Now())
	return err
}
