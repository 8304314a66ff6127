package pki_test

import (
	"bytes"
	"crypto/tls"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"pallas/mqttgw/pki"
)

// No files make Load panic, and a CA that it accepts can issue.
func FuzzLoad(f *testing.F) {
	dir := f.TempDir()
	if _, err := pki.Create(dir, time.Now(), "Test CA"); err != nil {
		f.Fatal(err)
	}
	var files [2][]byte
	for i, name := range []string{pki.CertFile, pki.KeyFile} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			f.Fatal(err)
		}
		files[i] = b
	}
	f.Add(files[0], files[1])
	f.Add(files[1], files[0])
	f.Add(files[0][:len(files[0])/2], []byte(nil))
	f.Fuzz(func(t *testing.T, cert, key []byte) {
		dir := t.TempDir()
		for name, b := range map[string][]byte{pki.CertFile: cert, pki.KeyFile: key} {
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		ca, err := pki.Load(dir)
		if (err == nil) == (ca == nil) {
			t.Fatalf("%v, %v", ca, err)
		}
		if err != nil {
			return
		}
		if _, err := ca.IssueServer([]string{"localhost"}, time.Now(), 0); err != nil && time.Now().Before(ca.Certificate().NotAfter) {
			t.Fatal(err)
		}
	})
}

// Whatever is in the file of ticket keys, there are keys afterwards, and the
// file is one that is read without complaint.
func FuzzTicketKeys(f *testing.F) {
	now := time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)
	path := filepath.Join(f.TempDir(), "tickets")
	pki.LoadTicketKeys(path, slog.New(slog.DiscardHandler)).Apply(&tls.Config{MinVersion: tls.VersionTLS13}, now)
	good, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(append(good, good...))
	f.Add(bytes.Replace(good, []byte("2031"), []byte("9999"), 1))
	f.Add([]byte("-----BEGIN TLS SESSION TICKET KEY-----\n"))
	f.Add([]byte(" \n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "tickets")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		pki.LoadTicketKeys(path, slog.New(slog.DiscardHandler)).Apply(&tls.Config{MinVersion: tls.VersionTLS13}, now)
		var log bytes.Buffer
		pki.LoadTicketKeys(path, slog.New(slog.NewTextHandler(&log, nil))).Apply(&tls.Config{MinVersion: tls.VersionTLS13}, now)
		if log.Len() > 0 {
			t.Fatalf("%q: %s", b, &log)
		}
	})
}

// Whatever the file says of the replacement of the CA, the directory is either
// refused or has an active CA, and an authority that runs keeps one.
func FuzzRollover(f *testing.F) {
	dir := f.TempDir()
	if _, err := pki.Create(dir, now, "Test CA"); err != nil {
		f.Fatal(err)
	}
	if _, err := pki.Prepare(dir, now); err != nil {
		f.Fatal(err)
	}
	path := filepath.Join(dir, "rollover.json")
	good, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	for _, phase := range []string{"steady", "switched", "retiring", ""} {
		f.Add(bytes.Replace(good, []byte("prepared"), []byte(phase), 1))
	}
	f.Add([]byte("{"))
	running, err := pki.Open(dir)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if a, err := pki.Open(dir); err == nil && (a.State().Active() == nil || len(a.State().Anchors()) == 0) {
			t.Fatalf("%q: no active CA", b)
		}
		if _, err := running.Reload(); running.State().Active() == nil {
			t.Fatalf("%q: no active CA any more: %v", b, err)
		}
	})
}
