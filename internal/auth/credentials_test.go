package auth_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pallas/events"
	"pallas/internal/auth"
)

func open(t *testing.T) (*auth.Credentials, string) {
	t.Helper()
	dir := t.TempDir()
	s, err := server.NewServer(&server.Options{JetStream: true, StoreDir: dir, DontListen: true, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("nats-server is not ready")
	}
	nc, err := nats.Connect("", nats.InProcessServer(s))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	c, err := auth.Open(t.Context(), js, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c, dir
}

func TestToken(t *testing.T) {
	c, dir := open(t)
	if has, err := c.HasTokens(t.Context()); err != nil || has {
		t.Fatalf("HasTokens = %v, %v; want false", has, err)
	}
	token, err := c.CreateToken(t.Context(), "admin")
	if err != nil {
		t.Fatal(err)
	}
	if has, err := c.HasTokens(t.Context()); err != nil || !has {
		t.Errorf("HasTokens = %v, %v; want true", has, err)
	}
	if u, err := c.Authenticate(t.Context(), token); err != nil || u.Actor != "user:admin" {
		t.Errorf("Authenticate = %+v, %v", u, err)
	}
	other, err := c.CreateToken(t.Context(), "admin")
	if err != nil {
		t.Fatal(err)
	}
	flip := func(s string, i int) string {
		b := []byte(s)
		if b[i]++; b[i] > 'z' {
			b[i] = '0'
		}
		return string(b)
	}
	for name, bad := range map[string]string{
		"empty": "", "prefix only": "pls_", "noise": "pls_x", "secret changed": flip(token, 40),
		"checksum changed": flip(token, len(token)-1), "id of another": other[:20] + token[20:],
		"longer": token + "a", "shorter": token[:len(token)-1], "wildcard": "pls_*", "long": strings.Repeat("a", 1<<20),
	} {
		if _, err := c.Authenticate(t.Context(), bad); !errors.Is(err, auth.ErrDenied) {
			t.Errorf("%s: got %v, want ErrDenied", name, err)
		}
	}
	// Neither the token nor its secret part may be on disk.
	secret := []byte(token[len("pls_")+17:])
	err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, secret) {
			t.Errorf("%s holds the secret", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestJoin(t *testing.T) {
	c, _ := open(t)
	id, other := events.TokenID(events.NewID()), events.TokenID(events.NewID())
	secret, err := c.CreateJoin(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.CreateJoin(t.Context(), id); !errors.Is(err, auth.ErrExists) {
		t.Errorf("a second secret for one token: got %v, want ErrExists", err)
	}
	if err := c.VerifyJoin(t.Context(), id, secret); err != nil {
		t.Error(err)
	}
	for _, bad := range []struct {
		id     events.TokenID
		secret string
	}{{id, ""}, {id, secret[1:]}, {other, secret}, {"", secret}, {"*", secret}} {
		if err := c.VerifyJoin(t.Context(), bad.id, bad.secret); !errors.Is(err, auth.ErrDenied) {
			t.Errorf("%q: got %v, want ErrDenied", bad.id, err)
		}
	}
	if err := c.DeleteJoin(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if err := c.VerifyJoin(t.Context(), id, secret); !errors.Is(err, auth.ErrDenied) {
		t.Errorf("after deletion: %v", err)
	}
	if err := c.DeleteJoin(t.Context(), other); err != nil {
		t.Errorf("delete an unknown one: %v", err)
	}
}
