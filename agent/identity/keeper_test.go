package identity_test

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pallas/agent/identity"
	"pallas/mqttgw/pki"
	"pallas/mqttgw/wire"
)

// kept is an enrolled device with a keeper and a clock.
type kept struct {
	*identity.Keeper
	t   *testing.T
	dir string
	ca  *pki.CA
	id  identity.Identity
	now time.Time
}

const certLife = 90 * 24 * time.Hour

func keep(t *testing.T) *kept {
	t.Helper()
	ca, err := pki.Create(filepath.Join(t.TempDir(), "ca"), time.Now(), "Test CA")
	if err != nil {
		t.Fatal(err)
	}
	k := &kept{t: t, dir: t.TempDir(), ca: ca, now: time.Now()}
	k.id = ensure(t, k.dir)
	leaf := k.issue(ca)
	text := `{"manager":"https://manager.example","joinToken":"tok","certificate":` + quote(pemOf(leaf)) + `,"ca":` + quote(string(ca.CertificatePEM())) + `,"mqtt":"manager.example:8883"}`
	if err := os.WriteFile(filepath.Join(k.dir, "enrolment.json"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	k.open()
	return k
}

// open loads the data folder as a start of the agent does.
func (k *kept) open() {
	k.t.Helper()
	id, err := identity.Load(k.dir)
	if err != nil {
		k.t.Fatal(err)
	}
	k.id = id
	if k.Keeper, err = identity.NewKeeper(id, identity.KeeperConfig{
		Dir: k.dir, Now: func() time.Time { return k.now }, Clock: func(time.Time) {}, Log: slog.New(slog.DiscardHandler),
	}); err != nil {
		k.t.Fatal(err)
	}
}

func quote(s string) string { return `"` + strings.ReplaceAll(s, "\n", `\n`) + `"` }

func pemOf(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// issue signs a certificate for the device's key at the present time.
func (k *kept) issue(ca *pki.CA) []byte {
	k.t.Helper()
	id := k.id
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: id.Device}}, id.Key)
	if err != nil {
		k.t.Fatal(err)
	}
	csr, err := pki.ParseCSRDER(der)
	if err != nil {
		k.t.Fatal(err)
	}
	_, cert, err := ca.IssueDevice(csr, id.Device, k.now, certLife)
	if err != nil {
		k.t.Fatal(err)
	}
	return cert.Raw
}

func (k *kept) shown() []byte {
	_, cert, _ := k.Credentials()
	return cert.Certificate[0]
}

// A certificate is due when two thirds of its life have passed, or up to a
// twelfth later.
func TestRenewalIsDue(t *testing.T) {
	for range 20 {
		k := keep(t)
		began := k.now
		k.now = began.Add(certLife*2/3 - time.Hour)
		if k.Wait() == 0 {
			t.Error("due before two thirds have passed")
		}
		k.now = began.Add(certLife*2/3 + certLife/12 + time.Hour)
		if k.Wait() != 0 {
			t.Errorf("not due: wait %v", k.Wait())
		}
	}
	spread := map[bool]int{}
	for range 20 {
		k := keep(t)
		k.now = k.now.Add(certLife*2/3 + certLife/24)
		spread[k.Wait() == 0]++
	}
	if len(spread) != 2 {
		t.Errorf("all devices ask at the same time: %v", spread)
	}
}

// One request is under way at a time, and it stays the same until it is answered
// or refused.
func TestRequestIsRepeated(t *testing.T) {
	k := keep(t)
	request := func() []byte {
		t.Helper()
		csr, err := k.Request()
		if err != nil {
			t.Fatal(err)
		}
		return csr
	}
	k.Ask()
	if k.Wait() != 0 {
		t.Fatal("asked for, and not due")
	}
	first := request()
	if k.Wait() == 0 {
		t.Error("sent again at once")
	}
	k.Ask() // the manager may say it more than once
	if k.Wait() == 0 {
		t.Error("sent again because it was asked for twice")
	}
	k.Connected()
	if k.Wait() != 0 || !bytes.Equal(request(), first) {
		t.Error("another session, another request")
	}
	csr, err := pki.ParseCSRDER(first)
	if err != nil {
		t.Fatal(err)
	}
	if err := pki.VerifyCSR(csr, k.id.Device); err != nil {
		t.Error(err)
	}
	k.Refused()
	if k.Wait() == 0 {
		t.Error("asks again at once after a refusal")
	}
	k.Ask()
	if k.Wait() != 0 || bytes.Equal(request(), first) {
		t.Error("an operator's wish does not count after a refusal")
	}
	if _, _, err := k.Take(wire.Certificate{Leaf: k.issue(k.ca), CAs: [][]byte{k.ca.Certificate().Raw}}); err != nil {
		t.Fatal(err)
	}
	if k.Wait() == 0 {
		t.Error("asks again after the answer")
	}
}

func TestTake(t *testing.T) {
	k := keep(t)
	next, err := pki.Create(filepath.Join(t.TempDir(), "next"), time.Now(), "Next CA")
	if err != nil {
		t.Fatal(err)
	}
	cas := [][]byte{next.Certificate().Raw, k.ca.Certificate().Raw}
	version, _, _ := k.Credentials()
	renewed, left, err := k.Take(wire.Certificate{CAs: cas})
	if err != nil || renewed || left < certLife-time.Hour {
		t.Errorf("CAs: renewed %v, left %v, %v", renewed, left, err)
	}
	if v, _, pool := k.Credentials(); v == version || len(k.Anchors()) != 2 || !bytes.Equal(k.Anchors()[0], wire.AnchorID(next.Certificate())) || pool == nil {
		t.Error("the CAs are not in use")
	}
	version, _, _ = k.Credentials()
	if _, _, err := k.Take(wire.Certificate{CAs: cas}); err != nil {
		t.Error(err)
	}
	if v, _, _ := k.Credentials(); v != version {
		t.Error("what is known was taken for news")
	}
	leaf := k.issue(next)
	if renewed, _, err := k.Take(wire.Certificate{Leaf: leaf, CAs: cas}); err != nil || !renewed {
		t.Errorf("certificate: renewed %v, %v", renewed, err)
	}
	k.open()
	if !bytes.Equal(k.shown(), leaf) || len(k.Anchors()) != 2 {
		t.Error("not on the disk")
	}
	if k.id.Enrolment.MQTT != "manager.example:8883" || k.id.Enrolment.JoinToken != "tok" {
		t.Errorf("the rest of the enrolment changed: %+v", k.id.Enrolment)
	}
}

// What is not for this device, or not good, is refused, and nothing changes.
func TestTakeRefuses(t *testing.T) {
	k := keep(t)
	other := keep(t)
	stranger, err := pki.Create(filepath.Join(t.TempDir(), "stranger"), time.Now(), "Stranger")
	if err != nil {
		t.Fatal(err)
	}
	root := [][]byte{k.ca.Certificate().Raw}
	past := *k
	past.now = k.now.Add(-2 * certLife)
	before, err := os.ReadFile(filepath.Join(k.dir, "enrolment.json"))
	if err != nil {
		t.Fatal(err)
	}
	shown := k.shown()
	for name, tc := range map[string]struct {
		c    wire.Certificate
		says string
	}{
		"another device's":   {wire.Certificate{Leaf: other.issue(k.ca), CAs: root}, "not for this device's key"},
		"of an unknown CA":   {wire.Certificate{Leaf: k.issue(stranger), CAs: root}, "none of the CAs"},
		"that has ended":     {wire.Certificate{Leaf: past.issue(k.ca), CAs: root}, "it ended at"},
		"garbage":            {wire.Certificate{Leaf: []byte("certificate"), CAs: root}, "certificate"},
		"a leaf for a CA":    {wire.Certificate{Leaf: k.issue(k.ca), CAs: [][]byte{k.issue(k.ca)}}, "not that of a CA"},
		"garbage for a CA":   {wire.Certificate{CAs: [][]byte{[]byte("CA")}}, "CA certificate"},
		"no CA":              {wire.Certificate{Leaf: k.issue(k.ca)}, "no CA certificate"},
		"a CA, a broken one": {wire.Certificate{CAs: [][]byte{root[0], root[0][:100]}}, "CA certificate"},
	} {
		if _, _, err := k.Take(tc.c); err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v, want it to say %q", name, err, tc.says)
		}
	}
	if after, err := os.ReadFile(filepath.Join(k.dir, "enrolment.json")); err != nil || !bytes.Equal(before, after) || !bytes.Equal(k.shown(), shown) {
		t.Errorf("something changed: %v", err)
	}
	// A folder that cannot be written: the certificate that is there goes on.
	if err := os.RemoveAll(k.dir); err != nil {
		t.Fatal(err)
	}
	if _, _, err := k.Take(wire.Certificate{Leaf: k.issue(k.ca), CAs: root}); !errors.Is(err, fs.ErrNotExist) || !bytes.Equal(k.shown(), shown) {
		t.Errorf("no folder: %v", err)
	}
}

// TestKilledWhileStoring has the agent die between receiving a certificate and
// having it on the disk: it starts with the one before or with the new one, and
// asks again if it is the one before.
func TestKilledWhileStoring(t *testing.T) {
	k := keep(t)
	dir := k.dir
	old, err := os.ReadFile(filepath.Join(dir, "enrolment.json"))
	if err != nil {
		t.Fatal(err)
	}
	before := k.shown()
	k.now = k.now.Add(certLife * 8 / 10)
	leaf := k.issue(k.ca)
	if _, _, err := k.Take(wire.Certificate{Leaf: leaf, CAs: [][]byte{k.ca.Certificate().Raw}}); err != nil {
		t.Fatal(err)
	}
	stored, err := os.ReadFile(filepath.Join(dir, "enrolment.json"))
	if err != nil {
		t.Fatal(err)
	}
	const temporary = "enrolment.json.new-123"
	for name, tc := range map[string]struct {
		files map[string][]byte
		want  []byte
	}{
		"before anything":    {map[string][]byte{"enrolment.json": old}, before},
		"an empty file":      {map[string][]byte{"enrolment.json": old, temporary: nil}, before},
		"half a file":        {map[string][]byte{"enrolment.json": old, temporary: stored[:len(stored)/2]}, before},
		"a file, not in use": {map[string][]byte{"enrolment.json": old, temporary: stored}, before},
		"in use":             {map[string][]byte{"enrolment.json": stored}, leaf},
	} {
		t.Run(name, func(t *testing.T) {
			k.t = t
			for _, f := range []string{"enrolment.json", temporary} {
				if err := os.Remove(filepath.Join(dir, f)); err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Fatal(err)
				}
			}
			for f, b := range tc.files {
				if err := os.WriteFile(filepath.Join(dir, f), b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			k.open()
			if !bytes.Equal(k.shown(), tc.want) {
				t.Error("shows the other certificate")
			}
			if due := k.Wait() == 0; due != bytes.Equal(tc.want, before) {
				t.Errorf("asks for a certificate: %v", due)
			}
		})
	}
}
