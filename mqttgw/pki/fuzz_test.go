package pki_test

import (
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
