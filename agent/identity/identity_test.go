package identity_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"pallas/agent/hypervisor/fake"
	"pallas/agent/identity"
	"pallas/agent/retry"
	"pallas/mqttgw/pki"
	"pallas/mqttgw/wire"
)

func ensure(t *testing.T, dir string) identity.Identity {
	t.Helper()
	id, err := identity.Ensure(t.Context(), dir, nil)
	if err != nil {
		t.Fatalf("ensure: %v", err)
	}
	return id
}

func TestEnsureMakesAnIdentityOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	id := ensure(t, dir)
	if u, err := uuid.Parse(id.Device); err != nil || u.Version() != 4 {
		t.Errorf("device id %q, want a random UUID", id.Device)
	}
	again := ensure(t, dir)
	if again.Device != id.Device || !again.Key.Equal(id.Key) || again.Enrolment != nil {
		t.Error("a second start made another identity")
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, want 0600", e.Name(), info.Mode())
		}
	}
	if len(entries) != 2 {
		t.Errorf("%d files, want the id and the key: %v", len(entries), entries)
	}
}

func TestEnsureAsksForAFormerID(t *testing.T) {
	const former = "6f1c1d5e-6f0b-4b7e-9d0e-0d6d1f6f2a01"
	find := func(context.Context) string { return former }
	dir := t.TempDir()
	id, err := identity.Ensure(t.Context(), dir, find)
	if err != nil || id.Device != former {
		t.Errorf("device %q, %v, want the former one", id.Device, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	empty := t.TempDir()
	if _, err := identity.Ensure(ctx, empty, func(context.Context) string { cancel(); return "" }); !errors.Is(err, context.Canceled) {
		t.Errorf("stopped while looking: %v", err)
	}
	if _, err := os.Stat(filepath.Join(empty, "device.id")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a start that was stopped while looking made an id")
	}
}

func TestFindAndKeep(t *testing.T) {
	h := fake.Sample("one", 0)
	ctx := t.Context()
	log := slog.New(slog.DiscardHandler)
	for stored, want := range map[string]string{
		"": "", "garbage": "", " 6F1C1D5E-6F0B-4B7E-9D0E-0D6D1F6F2A01\n": "6f1c1d5e-6f0b-4b7e-9d0e-0d6d1f6f2a01",
	} {
		h.SetStoredID(stored)
		if got, err := identity.Find(ctx, h); err != nil || got != want {
			t.Errorf("find in %q: %q, %v, want %q", stored, got, err, want)
		}
	}
	if err := identity.Keep(ctx, h, "new", log); err != nil || h.StoredID() != "new" {
		t.Errorf("keep: %v, host has %q", err, h.StoredID())
	}
	h.SetUnreachable("cable")
	if _, err := identity.Find(ctx, h); err == nil {
		t.Error("find on an unreachable host: no error")
	}
	if err := identity.Keep(ctx, h, "other", log); err == nil {
		t.Error("keep on an unreachable host: no error")
	}
}

func TestDamagedFilesAreNamed(t *testing.T) {
	for _, name := range []string{"device.id", "device.key", "enrolment.json"} {
		dir := t.TempDir()
		ensure(t, dir)
		if err := os.WriteFile(filepath.Join(dir, name), []byte("damaged"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := identity.Load(dir); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("damaged %s: %v, want an error that names it", name, err)
		}
	}
}

// door is an enrolment door with a real CA.
type door struct {
	ca    *pki.CA
	url   string
	serve func(w http.ResponseWriter, asked int, req wire.EnrollRequest) bool // false: issue a certificate
	asked int
}

func newDoor(t *testing.T) *door {
	t.Helper()
	ca, err := pki.Create(filepath.Join(t.TempDir(), "ca"), time.Now(), "Test CA")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.IssueServer([]string{"127.0.0.1"}, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	d := &door{ca: ca}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d.asked++
		var req wire.EnrollRequest
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			t.Error(err)
		}
		if d.serve != nil && d.serve(w, d.asked, req) {
			return
		}
		if err := json.NewEncoder(w).Encode(d.answer(t, req)); err != nil {
			t.Error(err)
		}
	}))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	t.Cleanup(s.Close)
	d.url = s.URL
	return d
}

func (d *door) answer(t *testing.T, req wire.EnrollRequest) wire.EnrollResponse {
	t.Helper()
	csr, err := pki.ParseCSR([]byte(req.CSR))
	if err != nil {
		t.Fatal(err)
	}
	cert, _, err := d.ca.IssueDevice(csr, req.Device, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return wire.EnrollResponse{Device: req.Device, Certificate: string(cert), CA: string(d.ca.CertificatePEM()), MQTT: "127.0.0.1:8883", Time: time.Now()}
}

func (d *door) enrol(ctx context.Context, t *testing.T, dir string, change ...func(*identity.EnrolConfig)) (identity.Identity, error) {
	t.Helper()
	c := identity.EnrolConfig{
		Dir: dir, Join: wire.Join{URL: d.url, CA: d.ca.Fingerprint(), Token: "id.secret", Expires: time.Now().Add(time.Hour)},
		Name: "host", Version: "1", Now: time.Now, Log: slog.New(slog.DiscardHandler),
		Backoff: retry.Backoff{Base: time.Millisecond, Cap: time.Millisecond},
	}
	for _, f := range change {
		f(&c)
	}
	return identity.Enrol(ctx, ensure(t, dir), c)
}

func TestEnrol(t *testing.T) {
	d := newDoor(t)
	dir := t.TempDir()
	d.serve = func(w http.ResponseWriter, asked int, _ wire.EnrollRequest) bool {
		if asked > 3 {
			return false
		}
		w.WriteHeader([]int{503, 429, 408}[asked-1])
		return true
	}
	id, err := d.enrol(t.Context(), t, dir)
	if err != nil {
		t.Fatalf("enrol: %v", err)
	}
	loaded, err := identity.Load(dir)
	if err != nil || loaded.Enrolment == nil || loaded.Enrolment.MQTT != "127.0.0.1:8883" || loaded.Enrolment.Manager != d.url {
		t.Fatalf("load: %+v, %v", loaded.Enrolment, err)
	}
	for _, i := range []identity.Identity{id, loaded} {
		cert, pool, err := i.Certificate()
		if err != nil || len(cert.Certificate) == 0 || cert.Leaf.Subject.CommonName != id.Device || !pool.Equal(d.ca.Pool()) {
			t.Errorf("certificate: %v", err)
		}
		if left := time.Until(i.Enrolment.Expires()); left < 59*time.Minute || left > time.Hour {
			t.Errorf("expires in %v, want an hour", left)
		}
	}
	if err := os.Remove(filepath.Join(dir, "device.key")); err != nil {
		t.Fatal(err)
	}
	if got := ensure(t, dir); got.Enrolment != nil || got.Device != id.Device {
		t.Errorf("with a new key: %+v, want the same device, not enrolled", got)
	}
}

func TestEnrolWaitsAsLongAsItIsTold(t *testing.T) {
	d := newDoor(t)
	var first time.Time
	d.serve = func(w http.ResponseWriter, asked int, _ wire.EnrollRequest) bool {
		if asked == 1 {
			first = time.Now()
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
		}
		return asked == 1
	}
	if _, err := d.enrol(t.Context(), t, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	if waited := time.Since(first); waited < time.Second {
		t.Errorf("asked again after %v, want what Retry-After says, 1 s", waited)
	}
}

// A person has to decide about the device: that may take a while.
func TestEnrolWaitsForAPerson(t *testing.T) {
	for code, status := range map[string]int{"clone": 409, "quarantined": 403, "rejected": 403} {
		d := newDoor(t)
		d.serve = func(w http.ResponseWriter, asked int, _ wire.EnrollRequest) bool {
			if asked <= 3 {
				w.WriteHeader(status)
				_, _ = io.WriteString(w, `{"title":"no","detail":"wait","code":"`+code+`"}`)
			}
			return asked <= 3
		}
		if id, err := d.enrol(t.Context(), t, t.TempDir()); err != nil || id.Enrolment == nil || d.asked != 4 {
			t.Errorf("%s: %v after %d requests", code, err, d.asked)
		}
	}
}

func TestEnrolGivesUpOnARefusal(t *testing.T) {
	for _, tt := range []struct {
		status     int
		body, want string
	}{
		{401, `{"title":"Unauthorized","detail":"the join token has expired"}`, "the join token has expired"},
		{403, `{"title":"Forbidden"}`, "Forbidden"},
		{403, `{"title":"Forbidden","detail":"the device was retired","code":"retired"}`, "was retired"},
		{409, `no json`, "Conflict"},
		{422, `{"detail":"validation failed","errors":[{"message":"too long","location":"body.name"}]}`, "body.name too long"},
		{302, ``, "Found"},
	} {
		d := newDoor(t)
		d.serve = func(w http.ResponseWriter, _ int, _ wire.EnrollRequest) bool {
			w.Header().Set("Location", "https://elsewhere.example/")
			w.WriteHeader(tt.status)
			_, _ = io.WriteString(w, tt.body)
			return true
		}
		_, err := d.enrol(t.Context(), t, t.TempDir())
		var refused *identity.RefusedError
		if !errors.As(err, &refused) || refused.Status != tt.status || !strings.Contains(err.Error(), tt.want) || d.asked != 1 {
			t.Errorf("status %d: %v after %d requests, want %q after 1", tt.status, err, d.asked, tt.want)
		}
	}
}

func TestEnrolDoesNotUseAnExpiredJoinString(t *testing.T) {
	d := newDoor(t)
	_, err := d.enrol(t.Context(), t, t.TempDir(), func(c *identity.EnrolConfig) { c.Join.Expires = time.Now().Add(-time.Minute) })
	var refused *identity.RefusedError
	if !errors.As(err, &refused) || d.asked != 0 || !strings.Contains(err.Error(), "expired") {
		t.Errorf("%v after %d requests", err, d.asked)
	}
}

func TestEnrolTrustsThePinnedCAOnly(t *testing.T) {
	d, other := newDoor(t), newDoor(t)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := d.enrol(ctx, t, t.TempDir(), func(c *identity.EnrolConfig) { c.Join.CA = other.ca.Fingerprint() }); !errors.Is(err, context.DeadlineExceeded) || d.asked != 0 {
		t.Errorf("%v after %d requests, want none", err, d.asked)
	}
}

func TestEnrolChecksTheAnswer(t *testing.T) {
	d, other := newDoor(t), newDoor(t)
	for name, spoil := range map[string]func(*wire.EnrollResponse){
		"no certificate":           func(r *wire.EnrollResponse) { r.Certificate = "" },
		"certificate of another":   func(r *wire.EnrollResponse) { r.Certificate = string(other.ca.CertificatePEM()) },
		"no CA":                    func(r *wire.EnrollResponse) { r.CA = "" },
		"CA that was not pinned":   func(r *wire.EnrollResponse) { r.CA = string(other.ca.CertificatePEM()) },
		"no address of the broker": func(r *wire.EnrollResponse) { r.MQTT = "" },
	} {
		d.serve = func(w http.ResponseWriter, _ int, req wire.EnrollRequest) bool {
			r := d.answer(t, req)
			spoil(&r)
			if err := json.NewEncoder(w).Encode(r); err != nil {
				t.Error(err)
			}
			return true
		}
		dir := t.TempDir()
		if _, err := d.enrol(t.Context(), t, dir); err == nil {
			t.Errorf("%s: no error", name)
		}
		if _, err := os.Stat(filepath.Join(dir, "enrolment.json")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: the answer was kept", name)
		}
	}
}
