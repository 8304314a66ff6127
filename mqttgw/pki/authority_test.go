package pki_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pallas/mqttgw/pki"
)

// authority makes a directory with a CA.
func authority(t *testing.T) (string, *pki.Authority) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "pki")
	if _, err := pki.Create(dir, time.Now(), "Pallas device CA"); err != nil {
		t.Fatal(err)
	}
	return dir, open(t, dir)
}

func open(t *testing.T, dir string) *pki.Authority {
	t.Helper()
	a, err := pki.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// do does a step, and has the authority notice.
func do(t *testing.T, a *pki.Authority, dir string, step func(string, time.Time) (*pki.State, error)) *pki.State {
	t.Helper()
	s, err := step(dir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if changed, err := a.Reload(); err != nil || !changed {
		t.Fatalf("reload: changed %v, %v", changed, err)
	}
	if got := a.State(); got.Phase != s.Phase || !got.Active().Certificate().Equal(s.Active().Certificate()) {
		t.Errorf("the authority is %s by %s, the step made it %s by %s", got.Phase, got.Active().Certificate().Subject, s.Phase, s.Active().Certificate().Subject)
	}
	if changed, err := a.Reload(); err != nil || changed {
		t.Errorf("reload without a change: changed %v, %v", changed, err)
	}
	return a.State()
}

// accepts says whether somebody who trusts only the CA accepts what the server
// presents.
func accepts(chain tls.Certificate, ca *x509.Certificate, now time.Time) error {
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(ca)
	for _, der := range chain.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		between.AddCert(c)
	}
	_, err := chain.Leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, DNSName: "manager.example", CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	return err
}

// Who trusts the former CA alone, the new one alone, or both, accepts the manager
// until the former one is retired; devices with a certificate of either get in.
func TestRollover(t *testing.T) {
	dir, a := authority(t)
	first := a.State().Active()
	key := newKey(t)
	csr := newCSR(t, key, nil)
	issue := func() *x509.Certificate {
		_, cert, err := a.IssueDevice(csr, device, time.Now(), 0)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	enters := func(cert *x509.Certificate) bool {
		_, err := cert.Verify(x509.VerifyOptions{Roots: a.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		return err == nil
	}
	source, err := pki.NewServerSource(pki.ServerConfig{Authority: a, Hosts: []string{"manager.example"}, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	serves := func(ca *x509.Certificate, want bool) {
		t.Helper()
		chain, err := source.GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := accepts(*chain, ca, time.Now()); (err == nil) != want {
			t.Errorf("%s: who trusts %s accepts the manager: %v, want %v", a.State().Phase, ca.Subject, err, want)
		}
	}
	serves(first.Certificate(), true)
	old := issue()
	if got := a.Issuer(old); got != pki.AnchorID(first.Certificate()) {
		t.Errorf("issuer %s", got)
	}

	s := do(t, a, dir, pki.Prepare)
	next := s.Other()
	if s.Phase != pki.PhasePrepared || s.Active().Certificate().Subject.String() == next.Certificate().Subject.String() {
		t.Fatalf("after prepare: %+v", s)
	}
	serves(first.Certificate(), true)
	if cert := issue(); a.Issuer(cert) != pki.AnchorID(first.Certificate()) || !enters(cert) {
		t.Error("the next CA signs before the switch")
	}
	if n := strings.Count(string(a.CertificatePEM()), "BEGIN CERTIFICATE"); n != 2 {
		t.Errorf("devices are given %d CAs", n)
	}

	s = do(t, a, dir, pki.Switch)
	if s.Phase != pki.PhaseSwitched || !s.Active().Certificate().Equal(next.Certificate()) || !s.Other().Certificate().Equal(first.Certificate()) {
		t.Fatalf("after switch: %+v", s)
	}
	serves(first.Certificate(), true)
	serves(next.Certificate(), true)
	fresh := issue()
	if a.Issuer(fresh) != pki.AnchorID(next.Certificate()) || !enters(fresh) || !enters(old) {
		t.Error("after the switch not both kinds of certificate are good")
	}
	// A device that finds the CA by its fingerprint in the chain needs it there.
	chain, err := source.GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, ca := range []*pki.CA{first, next} {
		found := false
		for _, der := range chain.Certificate {
			found = found || string(der) == string(ca.Certificate().Raw)
		}
		if !found {
			t.Errorf("%s is not in the chain", ca.Certificate().Subject)
		}
	}

	s = do(t, a, dir, pki.Retire)
	if s.Phase != pki.PhaseSteady || s.Other() != nil || !s.Active().Certificate().Equal(next.Certificate()) {
		t.Fatalf("after retire: %+v", s)
	}
	serves(first.Certificate(), false)
	serves(next.Certificate(), true)
	if enters(old) || !enters(fresh) {
		t.Error("after retire the wrong certificates are good")
	}
	if ca, err := pki.Load(dir); err != nil || !ca.Certificate().Equal(next.Certificate()) {
		t.Errorf("ca.crt and ca.key are not the new CA's: %v", err)
	}
	for _, name := range []string{"next.crt", "next.key", "rollover.json"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", name, err)
		}
	}

	// And again, with the CA that can have one below it.
	do(t, a, dir, pki.Prepare)
	third := a.State().Other()
	do(t, a, dir, pki.Switch)
	serves(next.Certificate(), true)
	serves(third.Certificate(), true)
	do(t, a, dir, pki.Retire)
	serves(third.Certificate(), true)
}

// A former CA that ends before it is retired does not take the manager with it.
func TestFormerCAEnds(t *testing.T) {
	dir := t.TempDir()
	first, err := pki.Create(dir, time.Now().AddDate(-19, -11, 0), "Pallas device CA")
	if err != nil {
		t.Fatal(err)
	}
	a := open(t, dir)
	do(t, a, dir, pki.Prepare)
	s := do(t, a, dir, pki.Switch)
	late := first.Certificate().NotAfter.Add(time.Hour)
	chain, err := s.IssueServer([]string{"manager.example"}, late, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := accepts(chain, s.Active().Certificate(), late); err != nil {
		t.Error(err)
	}
}

// TestStepsOutOfTurn: each step but the next one is refused and changes nothing.
func TestStepsOutOfTurn(t *testing.T) {
	dir, a := authority(t)
	steps := []struct {
		name string
		do   func(string, time.Time) (*pki.State, error)
	}{{"prepare", pki.Prepare}, {"switch", pki.Switch}, {"retire", pki.Retire}}
	for i, next := range append(steps, steps[0]) {
		for j, other := range steps {
			if j == i%len(steps) {
				continue
			}
			before := a.State()
			if _, err := other.do(dir, time.Now()); !errors.Is(err, pki.ErrPhase) {
				t.Errorf("%s before %s: %v, want ErrPhase", other.name, next.name, err)
			}
			if changed, err := a.Reload(); changed || err != nil || a.State() != before {
				t.Errorf("%s before %s changed something: %v", other.name, next.name, err)
			}
		}
		do(t, a, dir, next.do)
	}
}

// TestStepsThatDie has each step die between any two of its changes to the disk:
// what is there then has one meaning, and the next command goes on from it.
func TestStepsThatDie(t *testing.T) {
	type files map[string]string // name → its content, "" for none
	read := func(dir string) files {
		f := files{}
		for _, name := range []string{"ca.crt", "ca.key", "next.crt", "next.key", "rollover.json"} {
			b, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
			f[name] = string(b)
		}
		return f
	}
	dir, _ := authority(t)
	steady := read(dir)
	step := func(f func(string, time.Time) (*pki.State, error)) files {
		if _, err := f(dir, time.Now()); err != nil {
			t.Fatal(err)
		}
		return read(dir)
	}
	prepared := step(pki.Prepare)
	switched := step(pki.Switch)
	retired := step(pki.Retire)
	retiring := `{"phase":"retiring","since":"2031-01-02T03:04:05Z"}`
	merge := func(base files, changes ...files) files {
		f := files{}
		for _, m := range append([]files{base}, changes...) {
			for k, v := range m {
				f[k] = v
			}
		}
		return f
	}
	first, second := steady["ca.crt"], retired["ca.crt"]

	for name, tc := range map[string]struct {
		files  files
		phase  pki.Phase
		active string
		next   func(string, time.Time) (*pki.State, error)
	}{
		"prepare: nothing yet":          {steady, pki.PhaseSteady, first, pki.Prepare},
		"prepare: a key":                {merge(steady, files{"next.key": prepared["next.key"]}), pki.PhaseSteady, first, pki.Prepare},
		"prepare: a key and a CA":       {merge(prepared, files{"rollover.json": ""}), pki.PhaseSteady, first, pki.Prepare},
		"prepare: done":                 {prepared, pki.PhasePrepared, first, pki.Switch},
		"switch: done":                  {switched, pki.PhaseSwitched, second, pki.Retire},
		"retire: it is decided":         {merge(switched, files{"rollover.json": retiring}), pki.PhaseSteady, second, pki.Prepare},
		"retire: the key has moved":     {merge(switched, files{"rollover.json": retiring, "ca.key": switched["next.key"], "next.key": ""}), pki.PhaseSteady, second, pki.Prepare},
		"retire: the certificate moved": {merge(switched, files{"rollover.json": retiring, "ca.crt": switched["next.crt"], "next.crt": ""}), pki.PhaseSteady, second, pki.Prepare},
		"retire: both have moved":       {merge(retired, files{"rollover.json": retiring}), pki.PhaseSteady, second, pki.Prepare},
		"retire: done":                  {retired, pki.PhaseSteady, second, pki.Prepare},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, content := range tc.files {
				if content == "" {
					continue
				}
				if err := os.WriteFile(filepath.Join(dir, file), []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			// What a write leaves that was not finished.
			if err := os.WriteFile(filepath.Join(dir, ".rollover.json-1"), []byte(`{"ph`), 0o600); err != nil {
				t.Fatal(err)
			}
			a := open(t, dir)
			s := a.State()
			if s.Phase != tc.phase || string(s.Active().CertificatePEM()) != tc.active {
				t.Errorf("phase %s, active %s; want %s", s.Phase, s.Active().Certificate().Subject, tc.phase)
			}
			do(t, a, dir, tc.next)
		})
	}
}

// TestDamagedRollover: a file that says nothing is an error that names it, and an
// authority that runs goes on as before.
func TestDamagedRollover(t *testing.T) {
	for _, text := range []string{"", "{", `{"phase":"steady"}`, `{"phase":"elsewhere"}`, `{"phase":"prepared","since":"2031-01-02T03:04:05Z"}`} {
		dir, a := authority(t)
		before := a.State()
		if err := os.WriteFile(filepath.Join(dir, "rollover.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := pki.Open(dir); err == nil {
			t.Errorf("%q was taken", text)
		}
		if changed, err := a.Reload(); err == nil || changed || a.State() != before {
			t.Errorf("%q: reload changed %v, %v", text, changed, err)
		}
	}
}
