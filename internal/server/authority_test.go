package server_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pallas/events"
	"pallas/internal/client"
	"pallas/internal/config"
	"pallas/internal/server"
	"pallas/internal/servertest"
	"pallas/mqttgw/pki"
	"pallas/mqttgw/wire"
)

// sessions waits until so many devices have one.
func sessions(t *testing.T, m *servertest.Manager, want int) {
	t.Helper()
	servertest.Eventually(t, 3*time.Minute, func() error {
		if n := m.Metrics()["pallas_device_sessions"]; int(n) != want {
			return fmt.Errorf("%.0f devices have a session, want %d", n, want)
		}
		return nil
	})
}

// ca waits until so many devices do not know the newer CA, and so many have a
// certificate of the former one.
func ca(t *testing.T, m *servertest.Manager, phase pki.Phase, untold, old int) server.CAStatus {
	t.Helper()
	var c server.CAStatus
	servertest.Eventually(t, 3*time.Minute, func() (err error) {
		if c, err = server.ReadCA(t.Context(), m.Config); err != nil {
			return err
		}
		if c.Unknown != nil || c.State.Phase != phase || len(c.Untold) != untold || len(c.Old) != old {
			return fmt.Errorf("%s, %d untold, %d old, unknown: %w; want %s, %d, %d", c.State.Phase, len(c.Untold), len(c.Old), c.Unknown, phase, untold, old)
		}
		return nil
	})
	return c
}

// TestCARollover replaces the CA under a fleet of which a part is away for most
// of it, and kills the manager after each step: who comes back before the former
// CA is retired gets in, with join strings of before and after as well; who does
// not needs a new one.
func TestCARollover(t *testing.T) {
	devices, away := 200, 50
	if testing.Short() {
		devices, away = 12, 4
	}
	m := servertest.New(t, func(c *server.Config) {
		c.Devices.Grace = config.Duration(time.Second)
		c.Log.Level = "error"
	})
	m.Spawn()
	again := func() { m.Kill(); m.Spawn() }
	before := m.Join(devices + 2)
	fleet := make([]*site, devices)
	var wg sync.WaitGroup
	for i := range fleet {
		fleet[i] = newSite(t, fmt.Sprintf("site-%03d", i), before)
	}
	switchOn := func(sites []*site) {
		for _, s := range sites {
			s.on()
		}
	}
	switchOff := func(sites []*site) {
		for _, s := range sites {
			wg.Go(s.off)
		}
		wg.Wait()
	}
	switchOn(fleet)
	sessions(t, m, devices)
	absent, present := fleet[:away], fleet[away:]
	switchOff(absent)
	sessions(t, m, len(present))

	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(server.PrepareCA(m.Config))
	again()
	c := ca(t, m, pki.PhasePrepared, away, 0)
	if err := server.RetireCA(t.Context(), m.Config, true); !errors.Is(err, pki.ErrPhase) {
		t.Errorf("retire before the switch: %v", err)
	}
	if n := m.Metrics()[`pallas_ca_rollover_phase{phase="prepared"}`]; n != 1 {
		t.Error("the metrics do not say that a CA is prepared")
	}
	next := pki.AnchorID(c.State.Other().Certificate())

	check(server.SwitchCA(m.Config))
	again()
	ca(t, m, pki.PhaseSwitched, away, away)
	sessions(t, m, len(present))
	err := server.RetireCA(t.Context(), m.Config, false)
	if !errors.Is(err, server.ErrDevicesLeft) || !strings.HasPrefix(err.Error(), fmt.Sprint(away, " devices")) || !strings.Contains(err.Error(), " more") && away > 20 {
		t.Errorf("retire while devices are away: %v", err)
	}
	// Who joins now may have a join string of before, or of now.
	after := m.Join(2)
	newcomers := []*site{newSite(t, "old join string", before), newSite(t, "new join string", after)}
	switchOn(newcomers)
	sessions(t, m, len(present)+2)

	// All come back but one.
	lost, back := absent[0], absent[1:]
	switchOn(back)
	sessions(t, m, devices+1)
	ca(t, m, pki.PhaseSwitched, 1, 1)
	err = server.RetireCA(t.Context(), m.Config, false)
	if !errors.Is(err, server.ErrDevicesLeft) || !strings.Contains(err.Error(), lost.a.Device()) {
		t.Errorf("retire while one device is away: %v", err)
	}
	for _, s := range append(slices.Clone(back), present[0], newcomers[0]) {
		if d, err := deviceOf(m, s.a.Device()); err != nil || text(d.Certificate.Issuer) != next {
			t.Errorf("%s: %v, certificate %+v, want one of %s", s.name, err, d.Certificate, next)
		}
	}

	check(server.RetireCA(t.Context(), m.Config, true))
	again()
	m.API, err = client.Connect("https://"+m.Config.HTTP.Listen, server.CAFile(m.Config), m.Token)
	check(err)
	sessions(t, m, devices+1)
	task(t, m, back[0])

	// The one that was away all the time does not know whom it talks to.
	log := &lines{}
	lost.cfg.Log = log.logger()
	lost.on()
	servertest.Eventually(t, time.Minute, func() error {
		if !strings.Contains(log.String(), "certificate") {
			return errors.New("it says nothing")
		}
		return nil
	})
	sessions(t, m, devices+1)
	lost.off()
	lost.cfg.Join = m.Join(1)
	lost.on()
	sessions(t, m, devices+2)
	// Nor does a join string of before lead anywhere.
	j, err := wire.ParseJoin(before)
	check(err)
	if c, err := dialTLS(m.Config.HTTP.Listen, j); !errors.Is(err, wire.ErrPin) {
		t.Errorf("an old join string: %v", err)
		if err == nil {
			c.Close()
		}
	}

	switchOff(append(slices.Clone(fleet), newcomers...))
	m.Stop()
	store, done := m.OpenLog()
	defer done()
	var steps []string
	for _, r := range servertest.Records(t, store) {
		for _, e := range r.Entries {
			if r.Subject == events.AuthoritySubject() {
				steps = append(steps, e.Event.Type()+" by "+string(r.Actor))
			}
		}
	}
	if want := []string{"AuthorityPrepared by system:ca", "AuthoritySwitched by system:ca", "AuthorityRetired by system:ca"}; !slices.Equal(steps, want) {
		t.Errorf("the log says %q", steps)
	}
}

// TestCARolloverLive replaces the CA while the manager and its devices run, and
// nobody loses the session for it: each device ends its own once, to use its new
// certificate.
func TestCARolloverLive(t *testing.T) {
	const devices = 5
	m := servertest.Start(t)
	join := m.Join(devices)
	fleet := make([]*site, devices)
	for i := range fleet {
		fleet[i] = newSite(t, fmt.Sprintf("site-%d", i), join)
		fleet[i].on()
	}
	sessions(t, m, devices)
	steps := func(f func(server.Config) error, phase pki.Phase) {
		t.Helper()
		if err := f(m.Config); err != nil {
			t.Fatal(err)
		}
		ca(t, m, phase, 0, 0)
	}
	steps(server.PrepareCA, pki.PhasePrepared)
	for _, s := range fleet {
		if n := s.a.Stats().Sessions; n != 1 {
			t.Errorf("%s had %d sessions when it learned of the next CA", s.name, n)
		}
	}
	steps(server.SwitchCA, pki.PhaseSwitched)
	servertest.Eventually(t, 30*time.Second, func() error {
		for _, s := range fleet {
			if st := s.a.Stats(); st.Sessions != 2 || !st.Connected {
				return fmt.Errorf("%s had %d sessions, connected: %v", s.name, st.Sessions, st.Connected)
			}
		}
		return nil
	})
	steps(func(c server.Config) error { return server.RetireCA(t.Context(), c, false) }, pki.PhaseSteady)
	newer, err := client.Connect("https://"+m.Config.HTTP.Listen, server.CAFile(m.Config), m.Token)
	if err != nil {
		t.Fatal(err)
	}
	m.API = newer
	servertest.Eventually(t, 30*time.Second, func() error {
		for _, s := range fleet {
			d, err := deviceOf(m, s.a.Device())
			if err != nil {
				return err
			}
			if a := d.Certificate.Anchors; a == nil || len(*a) != 1 || (*a)[0] != text(d.Certificate.Issuer) {
				return fmt.Errorf("%s trusts %v, its certificate is of %s", s.name, a, text(d.Certificate.Issuer))
			}
		}
		return nil
	})
	for _, s := range fleet {
		if n := s.a.Stats().Sessions; n != 2 {
			t.Errorf("%s had %d sessions", s.name, n)
		}
		task(t, m, s)
	}
}

// dialTLS connects as a device does that enrols.
func dialTLS(addr string, j wire.Join) (*tls.Conn, error) { return tls.Dial("tcp", addr, j.TLS()) }
