package server_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pallas/agent"
	"pallas/agent/hypervisor/fake"
	"pallas/agent/identity"
	"pallas/events"
	"pallas/internal/client"
	"pallas/internal/config"
	"pallas/internal/server"
	"pallas/internal/servertest"
	"pallas/mqttgw/pki"
	"pallas/mqttgw/wire"
)

// site is an agent on a fake host whose power can be cut.
type site struct {
	t    *testing.T
	name string
	cfg  agent.Config
	host *fake.Host

	a    *agent.Agent
	stop func()
}

func newSite(t *testing.T, name, join string) *site {
	h := fake.Sample(name, 1)
	return &site{t: t, name: name, host: h, cfg: agent.Config{
		Dir: filepath.Join(t.TempDir(), name), Join: join, Driver: h, Version: "test", Log: slog.New(slog.DiscardHandler),
		BackoffBase: 50 * time.Millisecond, BackoffCap: 300 * time.Millisecond, NoSync: true, Debounce: 10 * time.Millisecond,
		Change: 100 * time.Millisecond,
	}}
}

// on starts the agent.
func (s *site) on() {
	s.t.Helper()
	a, err := agent.New(s.cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	s.a = a
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Errorf("%s: %v", s.name, err)
		}
	})
	s.t.Cleanup(s.stop)
}

// off stops it.
func (s *site) off() { s.stop() }

// serial of the certificate in the data folder.
func (s *site) serial() string {
	s.t.Helper()
	id, err := identity.Load(s.cfg.Dir)
	if err != nil {
		s.t.Fatal(err)
	}
	cert, _, err := id.Certificate()
	if err != nil {
		s.t.Fatal(err)
	}
	return pki.SerialHex(cert.Leaf)
}

// lines is a log that is looked at.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) { l.mu.Lock(); defer l.mu.Unlock(); return l.b.Write(b) }

func (l *lines) String() string { l.mu.Lock(); defer l.mu.Unlock(); return l.b.String() }

func (l *lines) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func deviceOf(m *servertest.Manager, id string) (client.Device, error) {
	r, err := m.API.GetDeviceWithResponse(context.Background(), id, nil)
	if err != nil || r.JSON200 == nil {
		return client.Device{}, cmp.Or(err, fmt.Errorf("device %s: %s", id, r.Body))
	}
	return *r.JSON200, nil
}

// certificates lists what the log has of them.
func certificates(t *testing.T, m *servertest.Manager) (list []events.CertificateIssued) {
	t.Helper()
	store, done := m.OpenLog()
	defer done()
	for _, r := range servertest.Records(t, store) {
		for _, e := range r.Entries {
			if c, ok := e.Event.(events.CertificateIssued); ok {
				list = append(list, c)
			}
		}
	}
	return list
}

func reasons(list []events.CertificateIssued) (out []events.CertificateReason) {
	for _, c := range list {
		out = append(out, c.Reason)
	}
	return out
}

const life = 90 * 24 * time.Hour

// TestRenewalOverTheSession lets two thirds of a certificate's life pass: the
// device has another one, of the same key, and uses it.
func TestRenewalOverTheSession(t *testing.T) {
	var clock wallClock
	m := servertest.New(t, func(c *server.Config) { c.Devices.Grace = config.Duration(time.Minute) })
	m.Clock = clock.Now
	m.Run()
	s := newSite(t, "site", m.Join(1))
	s.on()
	servertest.Eventually(t, 30*time.Second, func() error { return connected(m, 1) })
	first := s.serial()
	// Not before its time, however often it connects.
	m.Stop()
	clock.set(life * 6 / 10)
	m.Run()
	servertest.Eventually(t, 30*time.Second, func() error { return connected(m, 1) })
	task(t, m, s)
	if s.serial() != first {
		t.Fatal("renewed too early")
	}
	m.Stop()
	clock.set(life * 8 / 10)
	m.Run()
	sessions := s.a.Stats().Sessions
	servertest.Eventually(t, 30*time.Second, func() error {
		if s.serial() == first {
			return errors.New("not renewed")
		}
		return nil
	})
	// It connects again by itself, with the new one.
	servertest.Eventually(t, 30*time.Second, func() error {
		if n := s.a.Stats().Sessions; n < sessions+2 || !s.a.Stats().Connected {
			return fmt.Errorf("%d sessions, there were %d", n, sessions)
		}
		return nil
	})
	d, err := deviceOf(m, s.a.Device())
	if err != nil {
		t.Fatal(err)
	}
	if d.Certificate.Serial != s.serial() || text((*string)(d.Certificate.Reason)) != "renew" || len(text(d.Certificate.Issuer)) != 16 {
		t.Errorf("the manager shows %+v, the device has %s", *d.Certificate, s.serial())
	}
	// The one before has ended; the device notices nothing.
	m.Stop()
	clock.set(life + life/10)
	m.Run()
	servertest.Eventually(t, 30*time.Second, func() error { return connected(m, 1) })
	task(t, m, s)
	if n := m.Metrics()[`pallas_certificates_expired`]; n != 0 {
		t.Errorf("%v certificates have ended", n)
	}
	m.Stop()
	if got := reasons(certificates(t, m)); !slices.Equal(got, []events.CertificateReason{"enrol", "renew"}) {
		t.Errorf("certificates %q", got)
	}
}

// task has the device do something, which proves that its session works in both
// directions.
func task(t *testing.T, m *servertest.Manager, s *site) {
	t.Helper()
	vm := fmt.Sprintf("vm-%d", time.Now().UnixNano())
	s.host.PutVM(wire.VM{ID: vm, Name: vm, Power: wire.PowerOff, Tools: wire.ToolsNotRunning})
	var id string
	servertest.Eventually(t, 30*time.Second, func() (err error) {
		id, err = powerOn(t.Context(), m, s.a.Device(), vm, "key-"+vm)
		return err
	})
	if got := taskIs(t, m, id, client.TaskStatusSucceeded, client.TaskStatusFailed, client.TaskStatusExpired); got.Status != client.TaskStatusSucceeded {
		t.Fatalf("task is %s: %s", got.Status, text(got.Message))
	}
}

// TestLapsedCertificate has agents come back after their certificate has ended:
// by their key within the grace, not after it, and never when it is forbidden.
func TestLapsedCertificate(t *testing.T) {
	const day = 24 * time.Hour
	for name, tc := range map[string]struct {
		grace time.Duration
		away  time.Duration // after the end of the certificate
		back  bool
	}{
		"within the grace": {30 * day, 29 * day, true},
		"after the grace":  {30 * day, 31 * day, false},
		"forbidden":        {0, time.Hour, false},
	} {
		t.Run(name, func(t *testing.T) {
			var clock wallClock
			m := servertest.New(t, func(c *server.Config) {
				c.Devices.Grace = config.Duration(time.Second)
				c.Devices.CertificateGrace = config.Duration(tc.grace)
			})
			m.Clock = clock.Now
			m.Run()
			s := newSite(t, "site", m.Join(1))
			s.on()
			servertest.Eventually(t, 30*time.Second, func() error { return connected(m, 1) })
			s.off()
			s.cfg.Join = "" // what is written on a host outlives its join string
			m.Stop()
			clock.set(life + tc.away)
			m.Run()
			servertest.Eventually(t, 30*time.Second, func() error { return connected(m, 0) })
			log := &lines{}
			s.cfg.Log = log.logger()
			s.on()
			if tc.back {
				servertest.Eventually(t, 30*time.Second, func() error { return connected(m, 1) })
				task(t, m, s)
			} else {
				servertest.Eventually(t, 30*time.Second, func() error {
					if !strings.Contains(log.String(), "put a new join string into join_file") || !strings.Contains(log.String(), "status=403") {
						return errors.New("the operator is told nothing")
					}
					return nil
				})
				if err := connected(m, 0); err != nil {
					t.Error(err)
				}
				// What a person does then.
				s.off()
				s.cfg.Join = m.Join(1)
				s.on()
				servertest.Eventually(t, 30*time.Second, func() error { return connected(m, 1) })
			}
			m.Stop()
			want := []events.CertificateReason{"enrol", "lapsed"}
			if !tc.back {
				want = []events.CertificateReason{"enrol", "enrol"}
			}
			if got := reasons(certificates(t, m)); !slices.Equal(got, want) {
				t.Errorf("certificates %q, want %q", got, want)
			}
		})
	}
}

func rotate(t *testing.T, m *servertest.Manager, id string) client.DeviceIdentity {
	t.Helper()
	r, err := m.API.RotateCertificateWithResponse(t.Context(), id, nil)
	if err != nil || r.JSON200 == nil {
		t.Fatalf("rotate: %v %s", err, r.Body)
	}
	return *r.JSON200
}

// TestRotateCertificate asks for a new certificate of a device that is connected,
// and of one that is not, and of one that was retired.
func TestRotateCertificate(t *testing.T) {
	m := servertest.Start(t, func(c *server.Config) { c.Devices.Grace = config.Duration(time.Second) })
	s := newSite(t, "site", m.Join(1))
	s.on()
	servertest.Eventually(t, 30*time.Second, func() error { return connected(m, 1) })
	first := s.serial()
	renewed := func(not string) func() error {
		return func() error {
			d, err := deviceOf(m, s.a.Device())
			if err != nil {
				return err
			}
			if s.serial() == not || d.Certificate.Serial != s.serial() || d.Certificate.RotationRequestedAt != nil {
				return fmt.Errorf("certificate %s, the manager knows %+v", s.serial(), *d.Certificate)
			}
			return nil
		}
	}
	rotate(t, m, s.a.Device())
	servertest.Eventually(t, 30*time.Second, renewed(first))
	task(t, m, s)

	s.off()
	servertest.Eventually(t, 30*time.Second, func() error { return connected(m, 0) })
	second := s.serial()
	asked := rotate(t, m, s.a.Device())
	if again := rotate(t, m, s.a.Device()); again.Revision != asked.Revision {
		t.Errorf("asking twice changed something: %d, %d", asked.Revision, again.Revision)
	}
	servertest.Eventually(t, 30*time.Second, func() error {
		d, err := deviceOf(m, s.a.Device())
		if err == nil && d.Certificate.RotationRequestedAt == nil {
			err = errors.New("the request does not show")
		}
		return err
	})
	s.on()
	servertest.Eventually(t, 30*time.Second, renewed(second))
	servertest.Eventually(t, 30*time.Second, func() error { return connected(m, 1) })
	if n := m.Metrics()[`pallas_certificates_issued_total{reason="rotate"}`]; n != 2 {
		t.Errorf("%v rotations counted", n)
	}

	s.off()
	r, err := m.API.RetireDeviceWithResponse(t.Context(), s.a.Device(), nil, client.RetireDeviceJSONRequestBody{})
	if err != nil || r.JSON200 == nil {
		t.Fatalf("retire: %v", err)
	}
	refused, err := m.API.RotateCertificateWithResponse(t.Context(), s.a.Device(), nil)
	if err != nil || refused.StatusCode() != 409 {
		t.Errorf("rotate a retired device: %v, %s", err, refused.Body)
	}
	m.Stop()
	if got := reasons(certificates(t, m)); !slices.Equal(got, []events.CertificateReason{"enrol", "rotate", "rotate"}) {
		t.Errorf("certificates %q", got)
	}
}

// TestCertificateEndsWithinGrace ends a certificate while its device is connected
// and knows nothing of it: the session ends with it, and the device comes back by
// its key.
func TestCertificateEndsWithinGrace(t *testing.T) {
	const life = time.Hour
	var clock wallClock
	m := servertest.New(t, func(c *server.Config) {
		c.Devices.CertificateLife = config.Duration(life)
	})
	m.Clock = clock.Now
	clock.set(10*time.Second - life)
	m.Run()
	s := newSite(t, "site", m.Join(1))
	s.on()
	servertest.Eventually(t, 30*time.Second, func() error { return connected(m, 1) })
	first := s.serial()
	clock.set(0)
	servertest.Eventually(t, time.Minute, func() error {
		if s.serial() == first || s.a.Stats().Sessions < 2 || !s.a.Stats().Connected {
			return fmt.Errorf("%d sessions, connected: %v", s.a.Stats().Sessions, s.a.Stats().Connected)
		}
		return nil
	})
	task(t, m, s)
	s.off()
	m.Stop()
	if got := reasons(certificates(t, m)); !slices.Equal(got, []events.CertificateReason{"enrol", "lapsed"}) {
		t.Errorf("certificates %q", got)
	}
}
