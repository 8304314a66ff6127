package httpapi_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"pallas/commands"
	"pallas/events"
	"pallas/internal/httpapi"
)

// TestTrust takes devices through every standing, and reads each.
func TestTrust(t *testing.T) {
	m := start(t)
	read := func(id events.DeviceID) httpapi.Device {
		t.Helper()
		m.caughtUp()
		d, _ := want[httpapi.Device](m, 200, "GET", "/api/v1/devices/"+string(id), "")
		return d
	}
	// does changes a device, twice: the second time changes nothing.
	does := func(id events.DeviceID, verb, body, trust string) httpapi.Device {
		t.Helper()
		path := "/api/v1/devices/" + string(id) + "/" + verb
		d, _ := want[httpapi.DeviceIdentity](m, 200, "POST", path, body)
		if d.Trust != trust {
			t.Errorf("%s: %s, want %s", verb, d.Trust, trust)
		}
		before := m.last()
		if a := m.do("POST", path, body); m.last() != before {
			t.Errorf("%s again: %d, and the log grew", verb, a.StatusCode)
		}
		got := read(id)
		if got.Trust != trust || got.TrustBy != "user:admin" || got.TrustSince.IsZero() {
			t.Errorf("after %s: %+v", verb, got)
		}
		return got
	}
	shop, other := m.pending("shop"), m.device(given{name: "other"})
	if d := read(shop); d.Trust != "pending" || d.TrustSince.IsZero() || d.TrustBy != "system:test" {
		t.Errorf("pending: %+v", d)
	}
	if d := does(shop, "reject", `{"reason":"nobody ordered it"}`, "rejected"); d.TrustReason != "nobody ordered it" {
		t.Errorf("rejected: %+v", d)
	}
	if d := does(shop, "approve", "", "approved"); d.TrustReason != "" {
		t.Errorf("approved: %+v", d)
	}
	if d := does(shop, "quarantine", `{"reason":"stolen"}`, "quarantined"); d.TrustReason != "stolen" || d.TrustCause != "operator" || d.TrustBefore != "approved" || d.KeyClaim != nil {
		t.Errorf("quarantined: %+v", d)
	}
	key := strings.Repeat("ef", 32)
	m.command(commands.ClaimKey{Device: shop, KeyHash: key, Token: events.TokenID(events.NewID()), Name: "esx", AgentVersion: "1.1"})
	if d := read(shop); d.TrustCause != "operator" || d.KeyClaim == nil || d.KeyClaim.KeyHash != key || d.KeyClaim.Name != "esx" || d.KeyClaim.At.IsZero() {
		t.Errorf("claimed: %+v", d.KeyClaim)
	}

	counts := func() httpapi.DeviceCounts {
		t.Helper()
		m.caughtUp()
		s, _ := want[httpapi.Status](m, 200, "GET", "/api/v1/status", "")
		return s.Devices
	}
	rejected := m.pending("spam")
	does(rejected, "reject", "", "rejected")
	if diff := cmp.Diff(httpapi.DeviceCounts{Total: 3, Approved: 1, Rejected: 1, Quarantined: 1, Connected: 1}, counts()); diff != "" {
		t.Errorf("counts (-want +got):\n%s", diff)
	}
	for filter, name := range map[string]string{"quarantined": "shop", "rejected": "spam", "approved": "other", "quarantined,retired": "shop"} {
		l, _ := want[page[httpapi.Device]](m, 200, "GET", "/api/v1/devices?trust="+filter, "")
		if len(l.Items) != 1 || l.Items[0].Name != name {
			t.Errorf("trust=%s: %d devices, want %s", filter, len(l.Items), name)
		}
	}

	if d := does(shop, "release", `{"reason":"found"}`, "approved"); d.TrustReason != "found" || d.TrustCause != "" || d.TrustBefore != "" || d.KeyClaim != nil {
		t.Errorf("released: %+v", d)
	}
	m.command(commands.ClaimKey{Device: other, KeyHash: key, Token: events.TokenID(events.NewID()), Name: "esx"})
	if d := read(other); d.TrustCause != "clone" || d.Certificate == nil {
		t.Errorf("cloned: %+v", d)
	}
	if p := m.do("POST", "/api/v1/devices/"+string(other)+"/rekey", `{"keyHash":"`+strings.Repeat("01", 32)+`"}`).problem(t); p.Code != "no_claim" || !strings.Contains(p.Detail, key) {
		t.Errorf("accept another key: %+v", p)
	}
	if d := does(other, "rekey", `{"keyHash":"`+key+`"}`, "approved"); d.KeyClaim != nil || d.Certificate != nil {
		t.Errorf("rekeyed: %+v", d)
	}
	does(other, "quarantine", "", "quarantined")
	if d := does(other, "retire", `{"reason":"sold"}`, "retired"); d.TrustReason != "sold" || d.TrustCause != "" || d.RetiredReason != "sold" {
		t.Errorf("retired: %+v", d)
	}
}

// TestTokenForADevice makes a token that one device comes back with.
func TestTokenForADevice(t *testing.T) {
	m := start(t)
	id := m.device(given{name: "shop", labels: map[string]string{"site": "fra"}})
	type created struct {
		httpapi.JoinToken
		Join string `json:"join"`
	}
	c, _ := want[created](m, 201, "POST", "/api/v1/join-tokens", `{"name":"rebuilt","device":"`+string(id)+`"}`, "Idempotency-Key", "k")
	if c.Device != string(id) || c.Labels["site"] != "fra" || c.MaxUses != 1 || c.Approve != "manual" || c.Join == "" {
		t.Errorf("created %+v", c)
	}
	m.caughtUp()
	got, _ := want[httpapi.JoinToken](m, 200, "GET", "/api/v1/join-tokens/"+c.ID, "")
	if got.Device != string(id) || got.Labels["site"] != "fra" {
		t.Errorf("read %+v", got)
	}
	if a := m.do("POST", "/api/v1/join-tokens", `{"name":"rebuilt","device":"`+string(id)+`"}`, "Idempotency-Key", "k"); a.StatusCode != 409 {
		t.Errorf("the same key again: %d", a.StatusCode)
	}
}
