package commands

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pallas/events"
)

func certificate(serial, key string) events.CertificateIssued {
	return events.CertificateIssued{Serial: serial, KeyHash: key, NotBefore: t0.Add(-time.Hour), NotAfter: t0.Add(90 * 24 * time.Hour)}
}

func registerWith(f func(*RegisterDevice)) RegisterDevice {
	c := RegisterDevice{
		Device: dev, Name: "shop-1", Token: tok, KeyHash: key1, AgentVersion: "1.0",
		Labels: map[string]string{"site": "fra"}, Certificate: certificate("0a", key1),
	}
	if f != nil {
		f(&c)
	}
	return c
}

func TestDevice(t *testing.T) {
	connected := with(approved, onDevice(events.DeviceConnected{Address: "10.0.0.1", AgentVersion: "1.0", Protocol: 1}))
	lost := with(connected, onDevice(events.DeviceLost{Reason: "gone"}))
	connect := ConnectDevice{Device: dev, Address: "10.0.0.1", AgentVersion: "1.0", Protocol: 1}
	bad := func(name, field, says string, f func(*RegisterDevice)) scene {
		return scene{name: "register refuses " + name, when: registerWith(f), refused: KindInvalid, field: field, says: says}
	}
	play(t, []scene{
		{name: "register a new device", when: registerWith(nil), then: emit(registered, certificate("0a", key1))},
		{
			name: "register a new device that is approved at once", when: registerWith(func(c *RegisterDevice) { c.AutoApprove = true }),
			then: emit(registered, events.DeviceApproved{Policy: "auto"}, certificate("0a", key1)),
		},
		{name: "register again with the same key", given: pending, when: registerWith(nil), then: emit(certificate("0a", key1))},
		{name: "register again without a token", given: pending, when: registerWith(func(c *RegisterDevice) { c.Token = "" }), then: emit(certificate("0a", key1))},
		{name: "register the same certificate twice", given: with(pending, onDevice(certificate("0a", key1))), when: registerWith(nil)},
		{
			name: "register a clone", given: approved,
			when: registerWith(func(c *RegisterDevice) { c.KeyHash, c.Certificate = key2, certificate("0b", key2) }), refused: KindConflict, code: CodeClone, says: "registered with another key",
		},
		{name: "register a retired device", given: retired, when: registerWith(nil), refused: KindDenied, code: CodeRetired, says: "was retired"},
		bad("an upper-case id", "device", "lower-case UUID", func(c *RegisterDevice) { c.Device = events.DeviceID(strings.ToUpper(string(dev))) }),
		bad("an id that is not random", "device", "version 4", func(c *RegisterDevice) { c.Device = events.DeviceID(tok) }),
		bad("no name", "name", "is empty", func(c *RegisterDevice) { c.Name = "" }),
		bad("a long name", "name", "at most 253", func(c *RegisterDevice) { c.Name = strings.Repeat("ä", 254) }),
		bad("an unprintable name", "name", "cannot be printed", func(c *RegisterDevice) { c.Name = "a\x07b" }),
		bad("a name with spaces around", "name", "white space", func(c *RegisterDevice) { c.Name = " a" }),
		bad("a name that is not UTF-8", "name", "UTF-8", func(c *RegisterDevice) { c.Name = "a\xff" }),
		bad("a key hash that is none", "keyHash", "64 lower-case hex", func(c *RegisterDevice) { c.KeyHash = "A1" }),
		bad("an agent version with a newline in Latin-1", "agentVersion", "UTF-8", func(c *RegisterDevice) { c.AgentVersion = "\xe4" }),
		bad("an endless agent version", "agentVersion", "at most 253", func(c *RegisterDevice) { c.AgentVersion = strings.Repeat("1", 254) }),
		bad("no token", "token", "join token id", func(c *RegisterDevice) { c.Token = "" }),
		bad("a certificate without serial", "certificate.serial", "hex", func(c *RegisterDevice) { c.Certificate.Serial = "" }),
		bad("a certificate of another key", "certificate.keyHash", "another key", func(c *RegisterDevice) { c.Certificate.KeyHash = key2 }),
		bad("a certificate of no key", "certificate.keyHash", "hex", func(c *RegisterDevice) { c.Certificate.KeyHash = "" }),
		bad("an expired certificate", "certificate.notAfter", "not valid", func(c *RegisterDevice) { c.Certificate.NotAfter = t0 }),
		bad("a certificate that ends before it begins", "certificate.notAfter", "not valid", func(c *RegisterDevice) {
			c.Certificate.NotBefore, c.Certificate.NotAfter = t0.Add(2*time.Hour), t0.Add(time.Hour)
		}),
		bad("a certificate beyond the year 9999", "certificate.notAfter", "not valid", func(c *RegisterDevice) { c.Certificate.NotAfter = t0.AddDate(9000, 0, 0) }),
		bad("bad labels", "labels", `key "-a"`, func(c *RegisterDevice) { c.Labels = map[string]string{"-a": ""} }),

		{name: "approve a pending device", given: pending, when: ApproveDevice{Device: dev}, then: emit(events.DeviceApproved{Policy: "manual"})},
		{name: "approve at the wanted revision", given: pending, when: ApproveDevice{Device: dev, IfRevision: 1}, then: emit(events.DeviceApproved{Policy: "manual"})},
		{name: "approve an approved device", given: approved, when: ApproveDevice{Device: dev}},
		{name: "approve a retired device", given: retired, when: ApproveDevice{Device: dev}, refused: KindConflict, code: CodeRetired, says: "was retired"},
		{name: "approve an unknown device", when: ApproveDevice{Device: dev}, refused: KindNotFound, says: "is not known"},
		{name: "approve at another revision", given: pending, when: ApproveDevice{Device: dev, IfRevision: 7}, refused: KindStale, field: "If-Match", says: "at revision 1, not 7"},

		{name: "retire", given: approved, when: RetireDevice{Device: dev, Reason: "sold"}, then: emit(events.DeviceRetired{Reason: "sold"})},
		{name: "retire a pending device", given: pending, when: RetireDevice{Device: dev}, then: emit(events.DeviceRetired{})},
		{name: "retire a retired device", given: retired, when: RetireDevice{Device: dev, Reason: "again"}},
		{name: "retire an unknown device", when: RetireDevice{Device: dev}, refused: KindNotFound, says: "is not known"},
		{name: "retire for a long reason", given: approved, when: RetireDevice{Device: dev, Reason: strings.Repeat("x", 1025)}, refused: KindInvalid, field: "reason", says: "at most 1024"},
		{name: "retire for a reason with a control character", given: approved, when: RetireDevice{Device: dev, Reason: "a\x00"}, refused: KindInvalid, field: "reason", says: "control character"},
		{name: "retire at another revision", given: approved, when: RetireDevice{Device: dev, IfRevision: 1}, refused: KindStale, field: "If-Match", says: "at revision 2, not 1"},

		{name: "connect", given: approved, when: connect, then: emit(events.DeviceConnected{Address: "10.0.0.1", AgentVersion: "1.0", Protocol: 1})},
		{name: "connect while pending", given: pending, when: connect, then: emit(events.DeviceConnected{Address: "10.0.0.1", AgentVersion: "1.0", Protocol: 1})},
		{name: "connect when connected", given: connected, when: connect},
		{name: "connect from another address", given: connected, when: ConnectDevice{Device: dev, Address: "10.9.9.9", AgentVersion: "1.0", Protocol: 1}},
		{
			name: "connect with another agent", given: connected, when: ConnectDevice{Device: dev, Address: "10.0.0.1", AgentVersion: "1.1", Protocol: 1},
			then: emit(events.DeviceConnected{Address: "10.0.0.1", AgentVersion: "1.1", Protocol: 1}),
		},
		{
			name: "connect with another protocol", given: connected, when: ConnectDevice{Device: dev, Address: "10.0.0.1", AgentVersion: "1.0", Protocol: 2},
			then: emit(events.DeviceConnected{Address: "10.0.0.1", AgentVersion: "1.0", Protocol: 2}),
		},
		{name: "connect after a loss", given: lost, when: connect, then: emit(events.DeviceConnected{Address: "10.0.0.1", AgentVersion: "1.0", Protocol: 1})},
		{name: "connect a retired device", given: retired, when: connect, refused: KindDenied, code: CodeRetired, says: "was retired"},
		{name: "connect an unknown device", when: connect, refused: KindNotFound, says: "is not known"},
		{name: "connect without a protocol", given: approved, when: ConnectDevice{Device: dev}, refused: KindInvalid, field: "protocol", says: "at least 1"},
		{name: "connect from a bad address", given: approved, when: ConnectDevice{Device: dev, Address: "\x01", Protocol: 1}, refused: KindInvalid, field: "address", says: "control"},
		{name: "connect with a bad agent version", given: approved, when: ConnectDevice{Device: dev, AgentVersion: "\x01", Protocol: 1}, refused: KindInvalid, field: "agentVersion", says: "control"},

		{name: "lose", given: connected, when: LoseDevice{Device: dev, Reason: "keep-alive", Since: t0}, then: emit(events.DeviceLost{Reason: "keep-alive", Since: t0})},
		{name: "lose a lost device", given: lost, when: LoseDevice{Device: dev, Reason: "keep-alive"}},
		{name: "lose a device that never connected", given: approved, when: LoseDevice{Device: dev}},
		{name: "lose a retired device", given: with(connected, onDevice(events.DeviceRetired{})), when: LoseDevice{Device: dev, Reason: "x"}, then: emit(events.DeviceLost{Reason: "x"})},
		{name: "lose an unknown device", when: LoseDevice{Device: dev}, refused: KindNotFound, says: "is not known"},
		{name: "lose for a long reason", given: connected, when: LoseDevice{Device: dev, Reason: strings.Repeat("x", 1025)}, refused: KindInvalid, field: "reason", says: "at most"},
		{name: "lose since a time beyond all", given: connected, when: LoseDevice{Device: dev, Since: t0.AddDate(9000, 0, 0)}, refused: KindInvalid, field: "since", says: "9999"},
		{name: "a malformed id", given: connected, when: ApproveDevice{Device: "*.>"}, refused: KindInvalid, field: "device", says: "lower-case UUID"},
	})
}

func TestLabels(t *testing.T) {
	for _, tc := range []struct {
		key, value string
		ok         bool
	}{
		{"a", "", true},
		{"a", "b", true},
		{"A.b_c-d9", "A.b_c-d9", true},
		{"example.com/a", "x", true},
		{strings.Repeat("a", 63), strings.Repeat("b", 63), true},
		{strings.Repeat("a", 64), "", false},
		{"a", strings.Repeat("b", 64), false},
		{"", "x", false},
		{"-a", "", false},
		{"a-", "", false},
		{"a b", "", false},
		{"a", "b c", false},
		{"a", "-b", false},
		{"/a", "", false},
		{"a/", "", false},
		{"a/b/c", "", false},
		{"Example.com/a", "", false},
		{"a..b/c", "", false},
		{strings.Repeat("a", 254) + "/c", "", false},
		{"ä", "", false},
		{"a", "ä", false},
	} {
		if err := checkLabels(map[string]string{tc.key: tc.value}); (err == nil) != tc.ok {
			t.Errorf("label %q=%q: got error %v, want ok %t", tc.key, tc.value, err, tc.ok)
		}
	}
}

func TestDeviceRemembersCertificates(t *testing.T) {
	h := pending
	for i := range 12 {
		c := certificate(fmt.Sprintf("%02x", i), key1)
		if i == 11 {
			c.NotAfter = t0.Add(-time.Hour) // expired by now
		}
		h = with(h, onDevice(c))
	}
	h[len(h)-1].Time = t0
	got := h.states().Device.Certificates
	if len(got) != 8 || got[0].Serial != "03" || got[7].Serial != "0a" {
		t.Errorf("remembered %d certificates, from %v; want the 8 newest that are valid", len(got), got)
	}
}
