package projections

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"pallas/events"
)

const (
	anchorA = "0011223344556677"
	anchorB = "8899aabbccddeeff"
)

// certified is a log with a device for each of the ends, in days from at(0), and
// one that is retired.
func certified(t *testing.T, ends ...int) *eventLog {
	l := newLog(t)
	for i, days := range ends {
		id := fleetID(i)
		l.register(id, string(rune('a'+i)))
		l.device(id, events.CertificateIssued{Serial: "1", KeyHash: "k", NotBefore: at(0), NotAfter: at(0).Add(time.Duration(days) * day), Issuer: anchorA, Reason: events.CertificateEnrol})
	}
	l.register(deviceB, "retired")
	l.device(deviceB, events.CertificateIssued{Serial: "2", KeyHash: "k", NotBefore: at(0), NotAfter: at(0).Add(day), Issuer: anchorA}, events.DeviceRetired{})
	return l
}

func TestCertificateExpiresBefore(t *testing.T) {
	d := given(t, certified(t, 40, 3, 20, 0))
	for name, tc := range map[string]struct {
		f    DeviceFilter
		want string
	}{
		"none":         {DeviceFilter{Scope: everything, CertificateExpiresBefore: at(0)}, ""},
		"that instant": {DeviceFilter{Scope: everything, CertificateExpiresBefore: at(0).Add(3 * day)}, "d retired"},
		"three":        {DeviceFilter{Scope: everything, CertificateExpiresBefore: at(0).Add(30 * day)}, "b c d retired"},
		"not retired":  {DeviceFilter{Scope: everything, CertificateExpiresBefore: at(0).Add(30 * day), Trust: []Trust{TrustPending}}, "b c d"},
		"all":          {DeviceFilter{Scope: everything}, "a b c d retired"},
	} {
		var names []string
		for f := tc.f; ; {
			f.Limit = 2
			p, err := d.Devices(t.Context(), f)
			check(t, err)
			for _, x := range p.Items {
				names = append(names, x.Name)
			}
			if f.Cursor = p.Next; p.Next == "" {
				break
			}
		}
		if got := strings.Join(names, " "); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

func TestExpiry(t *testing.T) {
	d := given(t, certified(t, -1, 0, 3, 7, 20, 30, 40))
	now := at(0).Add(time.Second)
	got, err := d.Expiry(t.Context(), now)
	check(t, err)
	if want := (Expiry{Expired: 2, In7: 2, In30: 4}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	r := prometheus.NewRegistry()
	r.MustRegister(d.ExpiryCollector(func() time.Time { return now }))
	families, err := r.Gather()
	check(t, err)
	var lines []string
	for _, f := range families {
		for _, m := range f.GetMetric() {
			lines = append(lines, fmt.Sprint(f.GetName(), m.GetLabel(), m.GetGauge().GetValue()))
		}
	}
	slices.Sort(lines)
	if len(lines) != 3 || !strings.HasPrefix(lines[0], "pallas_certificates_expired") || !strings.HasSuffix(lines[0], "2") ||
		!strings.HasSuffix(lines[1], "4") || !strings.HasSuffix(lines[2], "2") {
		t.Errorf("metrics %q", lines)
	}
}

// A rotation is open until a certificate is issued, whatever asked for it.
func TestRotationAndAnchors(t *testing.T) {
	l := certified(t, 10)
	id := fleetID(0)
	l.device(id, events.CertificateRotationRequested{})
	asked := l.device(id, events.DeviceAnchorsChanged{Anchors: []string{anchorA, anchorB}})
	d := given(t, l)
	got, err := d.Device(t.Context(), everything, id)
	check(t, err)
	if got.RotationAt.IsZero() || !slices.Equal(got.Anchors, []string{anchorA, anchorB}) || got.CertIssuer != anchorA || got.Revision != asked {
		t.Errorf("rotation since %v, anchors %v, issuer %s, revision %d", got.RotationAt, got.Anchors, got.CertIssuer, got.Revision)
	}
	l.device(id, events.CertificateIssued{Serial: "3", KeyHash: "k", NotBefore: at(1), NotAfter: at(99), Issuer: anchorB, Reason: events.CertificateRotate})
	got, err = given(t, l).Device(t.Context(), everything, id)
	check(t, err)
	if !got.RotationAt.IsZero() || got.CertIssuer != anchorB || got.CertReason != events.CertificateRotate {
		t.Errorf("rotation since %v, issuer %s, reason %s", got.RotationAt, got.CertIssuer, got.CertReason)
	}
}

// DeviceTrusts reads beside the process that writes, and after it.
func TestDeviceTrusts(t *testing.T) {
	l := certified(t, 10, 20)
	second := fleetID(1)
	l.device(second, events.DeviceAnchorsChanged{Anchors: []string{anchorA, anchorB}})
	path := filepath.Join(t.TempDir(), "read.db")
	if _, err := DeviceTrusts(t.Context(), path); err == nil {
		t.Error("read a file that is not there")
	}
	d := openDB(t, path)
	r := run(t, d, l)
	last, err := l.Last(t.Context())
	check(t, err)
	wait(t, d, last)
	want := []DeviceTrust{
		{ID: fleetID(0), Issuer: anchorA, Anchors: []string{anchorA}},
		{ID: second, Issuer: anchorA, Anchors: []string{anchorA, anchorB}},
	}
	same := func(when string) {
		t.Helper()
		got, err := DeviceTrusts(t.Context(), path)
		check(t, err)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", when, diff)
		}
	}
	same("while it is written")
	check(t, r.stop())
	check(t, d.Close())
	same("after it was closed")
	if want[0].Trusts(anchorB) || !want[1].Trusts(anchorB) {
		t.Error("Trusts")
	}
	sqlExec(t, path, "PRAGMA user_version = 77")
	if _, err := DeviceTrusts(t.Context(), path); err == nil || !strings.Contains(err.Error(), "another version") {
		t.Errorf("another version: %v", err)
	}
}
