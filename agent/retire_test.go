package agent_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pallas/agent"
	"pallas/agent/hypervisor/fake"
	"pallas/agent/identity"
	"pallas/mqttgw/wire"
)

// files lists what is in a folder.
func files(t *testing.T, dir string) (out []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func wantRetired(t *testing.T, err error, device, dir string) {
	t.Helper()
	var retired *identity.RetiredError
	if !errors.As(err, &retired) || retired.Device != device || !strings.Contains(err.Error(), "new join string") {
		t.Errorf("run: %v, want the retirement of %s", err, device)
	}
	if left := files(t, dir); !slices.Equal(left, []string{"retired.json"}) {
		t.Errorf("left in the folder: %v", left)
	}
}

// TestRetired erases a device whose manager says so, and has the host make a new
// device with a new join string only.
func TestRetired(t *testing.T) {
	for name, tc := range map[string]struct {
		unreachable bool // the host, when the device is retired
	}{"host there": {false}, "host away": {true}} {
		t.Run(name, func(t *testing.T) {
			m := newManager(t)
			h := fake.Sample("shop-1", 1)
			a := start(t, m, t.TempDir(), h)
			m.until("the id is kept on the host", func() bool { return h.StoredID() == a.Device() && m.knows(h) })
			if tc.unreachable {
				h.SetUnreachable("cable")
			}
			m.set(func() { m.down(wire.Down{Retired: true}) })
			wantRetired(t, a.ended(), a.Device(), a.dir)
			if kept := h.StoredID(); (kept != "") != tc.unreachable {
				t.Errorf("the host keeps %q", kept)
			}
			if s := a.log.String(); strings.Contains(s, token) || strings.Contains(s, "PRIVATE KEY") {
				t.Error("a secret is in the log")
			}
			// Neither the join string that it had, nor none, makes a device of it.
			for _, join := range []string{m.join(), ""} {
				again := start(t, m, a.dir, h, func(c *agent.Config) { c.Join = join })
				wantRetired(t, again.ended(), a.Device(), a.dir)
			}
			h.SetUnreachable("")
			m.set(func() {
				m.token, m.epoch, m.next = "other.secret", 0, 1
				m.host, m.vms = wire.Host{}, map[string]wire.VM{}
			})
			b := start(t, m, a.dir, h)
			m.until("the new device is there", func() bool { return m.knows(h) && h.StoredID() == b.Device() })
			if b.Device() == a.Device() {
				t.Error("it is the retired device again")
			}
			if err := b.stop(); err != nil {
				t.Fatal(err)
			}
			c := start(t, m, a.dir, h, func(c *agent.Config) { c.Join = "" })
			m.until("it is back", func() bool { return c.Stats().Connected })
			if c.Device() != b.Device() {
				t.Errorf("device %s became %s", b.Device(), c.Device())
			}
		})
	}
}

// TestRetirementIsFinished starts on a folder whose erasure was interrupted.
func TestRetirementIsFinished(t *testing.T) {
	m := newManager(t)
	h := fake.Sample("shop-1", 1)
	a := start(t, m, t.TempDir(), h)
	m.until("the id is kept on the host", func() bool { return h.StoredID() == a.Device() && m.knows(h) })
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	note, err := json.Marshal(identity.Retired{Device: a.Device(), Manager: m.https.URL, JoinToken: "tok", At: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(a.dir, "retired.json"), note, 0o600); err != nil {
		t.Fatal(err)
	}
	b := start(t, m, a.dir, h)
	wantRetired(t, b.ended(), a.Device(), a.dir)
	if h.StoredID() != "" {
		t.Error("the host keeps the id")
	}
	if err := os.WriteFile(filepath.Join(a.dir, "retired.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := start(t, m, a.dir, h)
	if err := c.ended(); err == nil || !strings.Contains(err.Error(), "retired.json is damaged") {
		t.Errorf("a damaged note: %v", err)
	}
}
