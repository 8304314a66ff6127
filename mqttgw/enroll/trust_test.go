package enroll_test

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pallas/commands"
	"pallas/events"
	"pallas/mqttgw/pki"
)

// tokenFor issues a join token for one device.
func (m *manager) tokenFor(d device) (events.TokenID, string) {
	m.t.Helper()
	id := events.TokenID(events.NewID())
	secret, err := m.creds.CreateJoin(m.t.Context(), id)
	if err != nil {
		m.t.Fatal(err)
	}
	m.do(commands.IssueJoinToken{Token: id, MaxUses: 1, Expires: m.clock.now().Add(time.Hour), Device: events.DeviceID(d.id)})
	return id, string(id) + "." + secret
}

// enrolled makes a device that has enrolled.
func (m *manager) enrolled() device {
	m.t.Helper()
	_, token := m.token(1, true, time.Hour)
	d := newDevice(m.t)
	m.answers(d, token, http.StatusOK, "")
	return d
}

// answers posts a request of the device and checks the answer.
func (m *manager) answers(d device, token string, status int, code string) answer {
	m.t.Helper()
	a := m.post(d.request(m.t, token))
	if a.status != status || a.problem.Code != code {
		m.t.Errorf("%d %s, want %d %s", a.status, a.body, status, code)
	}
	return a
}

func (m *manager) state(d device) commands.Device {
	m.t.Helper()
	s, err := m.commands.Device(m.t.Context(), events.DeviceID(d.id))
	if err != nil {
		m.t.Fatal(err)
	}
	return s
}

// as is another machine with the device's id, and a key of its own.
func (d device) as(t *testing.T) device {
	c := newDevice(t)
	c.id = d.id
	return c
}

// A second key is not let in, and the first is kept out until a person decides.
func TestClone(t *testing.T) {
	m := startManager(t)
	original := m.enrolled()
	id, text := m.token(1, true, time.Hour)
	clone := original.as(t)
	subject := events.DeviceSubject(events.DeviceID(original.id))
	before := m.types(subject)
	for range 3 { // asking again is no news
		if a := m.answers(clone, text, http.StatusConflict, "clone"); a.ok.Certificate != "" {
			t.Error("the clone has a certificate")
		}
	}
	if diff := cmp.Diff(append(before, "DeviceQuarantined", "DeviceKeyClaimed"), m.types(subject)); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	s := m.state(original)
	if s.Trust != commands.TrustQuarantined || s.Quarantine.Cause != events.QuarantineClone || s.Quarantine.Before != commands.TrustApproved {
		t.Errorf("state %+v", s)
	}
	if c := s.Quarantine.Claim; c == nil || c.KeyHash != pki.KeyHash(&clone.key.PublicKey) || c.JoinToken != id {
		t.Errorf("claim %+v", c)
	}
	if state, err := m.commands.JoinToken(t.Context(), id); err != nil || state.Uses != 0 {
		t.Errorf("the clone took a use: %+v (%v)", state, err)
	}
	if m.count("clone") != 3 {
		t.Error("the clone was not counted")
	}
	m.answers(original, text, http.StatusForbidden, "quarantined")

	t.Run("released", func(t *testing.T) {
		m.do(commands.ReleaseDevice{Device: events.DeviceID(original.id)})
		m.answers(original, text, http.StatusOK, "")
		m.answers(clone, text, http.StatusConflict, "clone") // and is seen again
		if s := m.state(original); s.Trust != commands.TrustQuarantined || s.KeyHash != pki.KeyHash(&original.key.PublicKey) {
			t.Errorf("state %+v", s)
		}
	})
	t.Run("accepted", func(t *testing.T) {
		m.do(commands.RekeyDevice{Device: events.DeviceID(original.id)})
		if a := m.answers(clone, text, http.StatusOK, ""); !a.ok.Approved || !clone.key.PublicKey.Equal(parse(t, a.ok.Certificate).PublicKey) {
			t.Errorf("answer %+v", a.ok)
		}
		m.answers(clone, text, http.StatusOK, "")
		m.answers(original, text, http.StatusConflict, "clone")
		if s := m.state(original); s.Name != "esx-1" || s.Labels["site"] != "fra" {
			t.Errorf("name and labels are lost: %+v", s)
		}
	})
}

// Many keys from one token do not fill the log.
func TestClonesAreBounded(t *testing.T) {
	m := startManager(t)
	original := m.enrolled()
	_, text := m.token(1, true, time.Hour)
	for range 25 {
		m.answers(original.as(t), text, http.StatusConflict, "clone")
	}
	if n := len(m.types(events.DeviceSubject(events.DeviceID(original.id)))); n > 3+1+16 {
		t.Errorf("%d events", n)
	}
}

// A token for a device gives it a new key once, whatever became of the old one.
func TestTokenForADevice(t *testing.T) {
	m := startManager(t)
	for name, tc := range map[string]struct {
		before func(device)
		status int
		code   string
	}{
		"approved":    {func(device) {}, 200, ""},
		"as a clone":  {func(d device) { m.quarantine(d, events.QuarantineClone) }, 200, ""},
		"stolen":      {func(d device) { m.quarantine(d, events.QuarantineOperator) }, 403, "quarantined"},
		"a flooder":   {func(d device) { m.quarantine(d, events.QuarantineFlood) }, 403, "quarantined"},
		"a pretender": {func(d device) { m.quarantine(d, events.QuarantineClientID) }, 403, "quarantined"},
		"retired":     {func(d device) { m.do(commands.RetireDevice{Device: events.DeviceID(d.id)}) }, 403, "retired"},
	} {
		t.Run(name, func(t *testing.T) {
			old := m.enrolled()
			id, token := m.tokenFor(old)
			tc.before(old)
			rebuilt := old.as(t)
			a := m.answers(rebuilt, token, tc.status, tc.code)
			if state, err := m.commands.JoinToken(t.Context(), id); err != nil || state.Uses > 0 != (tc.status == 200) {
				t.Errorf("token %+v, %v", state, err)
			}
			if tc.status != http.StatusOK {
				if s := m.state(old); s.KeyHash != pki.KeyHash(&old.key.PublicKey) {
					t.Error("the key changed")
				}
				return
			}
			if s := m.state(old); s.Trust != commands.TrustApproved || s.KeyHash != pki.KeyHash(&rebuilt.key.PublicKey) || s.Name != "esx-1" || s.Labels["site"] != "fra" || s.Quarantine != nil {
				t.Errorf("state %+v", s)
			}
			if !a.ok.Approved {
				t.Error("is not approved any more")
			}
			m.answers(rebuilt, token, 200, "") // the answer was lost
			m.answers(old.as(t), token, 409, "clone")
			m.do(commands.ReleaseDevice{Device: events.DeviceID(old.id)})
			// A later token makes this one worthless for another key, too.
			_, later := m.tokenFor(old)
			m.answers(old, later, 200, "")
			m.answers(rebuilt, token, 409, "clone")
		})
	}
	t.Run("of another device", func(t *testing.T) {
		mine, other := m.enrolled(), m.enrolled()
		_, token := m.tokenFor(mine)
		before := m.position()
		m.answers(other, token, 401, "")
		m.answers(newDevice(t), token, 401, "")
		if m.position() != before {
			t.Error("something was written")
		}
	})
	t.Run("with the same key", func(t *testing.T) {
		d := m.enrolled()
		_, token := m.tokenFor(d)
		m.answers(d, token, 200, "")
		m.answers(d, token, 200, "")
		m.answers(d.as(t), token, 409, "clone")
	})
	t.Run("a pending device stays pending", func(t *testing.T) {
		_, first := m.token(1, false, time.Hour)
		d := newDevice(t)
		m.answers(d, first, 200, "")
		_, token := m.tokenFor(d)
		if a := m.answers(d.as(t), token, 200, ""); a.ok.Approved {
			t.Error("it is approved")
		}
	})
}

func (m *manager) quarantine(d device, cause events.QuarantineCause) {
	m.t.Helper()
	m.do(commands.QuarantineDevice{Device: events.DeviceID(d.id), Cause: cause, Reason: fmt.Sprintf("test of %s", cause)})
}

// A device that is not wanted gets no certificate, until it is approved.
func TestRejected(t *testing.T) {
	m := startManager(t)
	_, token := m.token(1, false, time.Hour)
	d := newDevice(t)
	m.answers(d, token, 200, "")
	m.do(commands.RejectDevice{Device: events.DeviceID(d.id), Reason: "nobody ordered it"})
	before := m.position()
	m.answers(d, token, 403, "rejected")
	if m.position() != before {
		t.Error("a rejected device wrote to the log")
	}
	m.do(commands.ApproveDevice{Device: events.DeviceID(d.id)})
	m.answers(d, token, 200, "")
}
