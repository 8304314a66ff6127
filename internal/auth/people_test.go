package auth_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pallas/events"
	"pallas/internal/auth"
)

// people opens a store of people on a store of its own, with a clock that the
// test sets, and returns the folder that it is in.
func people(t testing.TB, now *time.Time) (*auth.People, string) {
	t.Helper()
	js, dir := jetStream(t)
	clock := time.Now
	if now != nil {
		clock = func() time.Time { return *now }
	}
	p, err := auth.OpenPeople(t.Context(), js, 1, nil, clock)
	if err != nil {
		t.Fatal(err)
	}
	return p, dir
}

func jetStream(t testing.TB) (jetstream.JetStream, string) {
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
	return js, dir
}

func newUser() events.UserID { return events.UserID(events.NewID()) }

func TestLoginIsUnique(t *testing.T) {
	p, _ := people(t, nil)
	ann := auth.Person{ID: newUser(), Login: "Ann.Example", Name: "Ann"}
	if err := p.Add(t.Context(), ann); err != nil {
		t.Fatal(err)
	}
	for _, login := range []string{"ann.example", "ANN.EXAMPLE", "ａnn.example"} {
		if err := p.Add(t.Context(), auth.Person{ID: newUser(), Login: login}); !errors.Is(err, auth.ErrLoginTaken) {
			t.Errorf("%q: got %v, want ErrLoginTaken", login, err)
		}
		if got, err := p.ByLogin(t.Context(), login); err != nil || got.ID != ann.ID {
			t.Errorf("%q finds %v, %v", login, got, err)
		}
	}
	for _, login := range []string{"", " ", "a b", "a\x00", strings.Repeat("a", 129), "a\u202eb"} {
		if err := p.Add(t.Context(), auth.Person{ID: newUser(), Login: login}); err == nil {
			t.Errorf("%q is accepted", login)
		}
		if _, err := p.ByLogin(t.Context(), login); !errors.Is(err, auth.ErrUnknown) {
			t.Errorf("%q: got %v, want ErrUnknown", login, err)
		}
	}
	bob := auth.Person{ID: newUser(), Login: "bob"}
	if err := p.Add(t.Context(), bob); err != nil {
		t.Fatal(err)
	}
	rename := func(id events.UserID, login string) error {
		_, err := p.Change(t.Context(), id, func(x *auth.Person) error { x.Login = login; return nil })
		return err
	}
	if err := rename(bob.ID, "ANN.example"); !errors.Is(err, auth.ErrLoginTaken) {
		t.Errorf("rename to a taken login: %v", err)
	}
	if err := rename(bob.ID, "robert"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.ByLogin(t.Context(), "bob"); !errors.Is(err, auth.ErrUnknown) {
		t.Errorf("the old login: %v", err)
	}
	if got, err := p.ByLogin(t.Context(), "Robert"); err != nil || got.ID != bob.ID {
		t.Errorf("the new login finds %v, %v", got, err)
	}
	if err := rename(ann.ID, "bob"); err != nil {
		t.Errorf("a login that became free: %v", err)
	}
	if err := rename(newUser(), "x"); !errors.Is(err, auth.ErrUnknown) {
		t.Errorf("rename nobody: %v", err)
	}
	// Of many who want one login at the same time, one gets it.
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		wg.Go(func() { errs[i] = p.Add(t.Context(), auth.Person{ID: newUser(), Login: "cay"}) })
	}
	wg.Wait()
	got := 0
	for _, err := range errs {
		if err == nil {
			got++
		} else if !errors.Is(err, auth.ErrLoginTaken) {
			t.Error(err)
		}
	}
	if got != 1 {
		t.Errorf("%d got the same login", got)
	}
}

// TestForget looks for what is left of somebody in every byte of the store.
func TestForget(t *testing.T) {
	p, dir := people(t, nil)
	ann := auth.Person{ID: newUser(), Login: "ann-of-the-test", Name: "Annabel Exemplaria", Email: "annabel@exemplaria.example"}
	if err := p.Add(t.Context(), ann); err != nil {
		t.Fatal(err)
	}
	other := auth.Person{ID: newUser(), Login: "somebody-else"}
	if err := p.Add(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	const oldHash, hash = "$argon2id$old-hash-of-annabel", "$argon2id$new-hash-of-annabel"
	for _, h := range []string{oldHash, hash} {
		if _, err := p.Change(t.Context(), ann.ID, func(x *auth.Person) error { x.Password = h; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.Change(t.Context(), ann.ID, func(x *auth.Person) error { x.Email = "second@exemplaria.example"; return nil }); err != nil {
		t.Fatal(err)
	}
	id, token := auth.NewAPIToken()
	if err := p.AddToken(t.Context(), ann.ID, "Annabels laptop", token, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := p.NoteTokenUse(t.Context(), id, auth.Use{At: time.Now()}); err != nil {
		t.Fatal(err)
	}
	_, cookie, err := p.NewSession(t.Context(), ann.ID, events.MethodPassword, time.Hour, "203.0.113.77")
	if err != nil {
		t.Fatal(err)
	}
	link, _, err := p.NewLink(t.Context(), ann.ID)
	if err != nil {
		t.Fatal(err)
	}
	left := func() (found []string) {
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			b, err := os.ReadFile(path)
			for _, s := range []string{ann.Login, ann.Name, ann.Email, "second@exemplaria", oldHash, hash, "Annabels laptop", "203.0.113.77"} {
				if bytes.Contains(b, []byte(s)) {
					found = append(found, s)
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	// The search finds what is there, and what was replaced is gone already.
	before := strings.Join(left(), " ")
	for _, s := range []string{ann.Login, ann.Name, "second@exemplaria", hash, "Annabels laptop", "203.0.113.77"} {
		if !strings.Contains(before, s) {
			t.Errorf("%q is not found while it is kept", s)
		}
	}
	for _, s := range []string{oldHash, ann.Email} {
		if strings.Contains(before, s) {
			t.Errorf("%q is on the disk after it was replaced", s)
		}
	}
	for range 2 { // again is no error
		if err := p.Forget(t.Context(), ann.ID, []events.APITokenID{id}); err != nil {
			t.Fatal(err)
		}
	}
	if after := left(); len(after) > 0 {
		t.Errorf("left on the disk: %q", after)
	}
	if _, err := p.Person(t.Context(), ann.ID); !errors.Is(err, auth.ErrUnknown) {
		t.Errorf("person: %v", err)
	}
	if _, err := p.ByLogin(t.Context(), ann.Login); !errors.Is(err, auth.ErrUnknown) {
		t.Errorf("login: %v", err)
	}
	if _, err := p.VerifyToken(t.Context(), token); !errors.Is(err, auth.ErrDenied) {
		t.Errorf("token: %v", err)
	}
	if _, err := p.VerifySession(t.Context(), cookie); !errors.Is(err, auth.ErrDenied) {
		t.Errorf("session: %v", err)
	}
	if _, err := p.UseLink(t.Context(), link); !errors.Is(err, auth.ErrDenied) {
		t.Errorf("link: %v", err)
	}
	if ids, err := p.IDs(t.Context()); err != nil || len(ids) != 1 || ids[0] != other.ID {
		t.Errorf("people: %v, %v", ids, err)
	}
	if err := p.Add(t.Context(), auth.Person{ID: newUser(), Login: ann.Login}); err != nil {
		t.Errorf("the login is not free: %v", err)
	}
}

func TestAPIToken(t *testing.T) {
	now := time.Now()
	p, dir := people(t, &now)
	user := newUser()
	id, token := auth.NewAPIToken()
	if err := p.AddToken(t.Context(), user, "script", token, now.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := p.AddToken(t.Context(), user, "script", token, now.Add(time.Hour)); !errors.Is(err, auth.ErrExists) {
		t.Errorf("the same again: %v", err)
	}
	if got, err := p.VerifyToken(t.Context(), token); err != nil || got.User != user || got.ID != id || got.Name != "script" {
		t.Errorf("VerifyToken = %+v, %v", got, err)
	}
	_, other := auth.NewAPIToken()
	for name, bad := range map[string]string{
		"empty": "", "prefix only": "pls_", "noise": "pls_x", "secret changed": flip(token, 40), "unknown": other,
		"checksum changed": flip(token, len(token)-1), "id of another": other[:20] + token[20:],
		"longer": token + "a", "shorter": token[:len(token)-1], "wildcard": "pls_*", "long": strings.Repeat("a", 1<<20),
	} {
		if _, err := p.VerifyToken(t.Context(), bad); !errors.Is(err, auth.ErrDenied) {
			t.Errorf("%s: got %v, want ErrDenied", name, err)
		}
	}
	if _, use, err := p.Token(t.Context(), id); err != nil || !use.At.IsZero() {
		t.Errorf("use of an unused token: %v, %v", use, err)
	}
	want := auth.Use{At: now.UTC().Truncate(time.Second), Source: "203.0.113.7"}
	if err := p.NoteTokenUse(t.Context(), id, want); err != nil {
		t.Fatal(err)
	}
	if _, use, err := p.Token(t.Context(), id); err != nil || use != want {
		t.Errorf("use %v, %v; want %v", use, err, want)
	}
	nowhere(t, dir, token[len("pls_")+17:])
	now = now.Add(time.Hour)
	if _, err := p.VerifyToken(t.Context(), token); !errors.Is(err, auth.ErrDenied) {
		t.Errorf("an expired one: %v", err)
	}
	now = now.Add(-time.Hour)
	for range 2 {
		if err := p.DeleteToken(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.VerifyToken(t.Context(), token); !errors.Is(err, auth.ErrDenied) {
		t.Errorf("a deleted one: %v", err)
	}
}

func TestSession(t *testing.T) {
	now := time.Now()
	p, dir := people(t, &now)
	user := newUser()
	s, cookie, err := p.NewSession(t.Context(), user, events.MethodPassword, time.Hour, "203.0.113.7")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := p.VerifySession(t.Context(), cookie); err != nil || got.User != user || got.ID != s.ID {
		t.Errorf("VerifySession = %+v, %v", got, err)
	}
	_, other, err := p.NewSession(t.Context(), user, events.MethodPassword, time.Hour, "")
	if err != nil {
		t.Fatal(err)
	}
	secret := cookie[strings.LastIndexByte(cookie, '.')+1:]
	for name, bad := range map[string]string{
		"empty": "", "dots": "..", "secret of another": cookie[:len(cookie)-len(secret)] + other[len(other)-len(secret):],
		"secret changed": flip(cookie, len(cookie)-1), "user changed": flip(cookie, 3), "longer": cookie + "a", "wildcards": "*.*.*", "long": strings.Repeat("a", 1<<20),
	} {
		if _, err := p.VerifySession(t.Context(), bad); !errors.Is(err, auth.ErrDenied) {
			t.Errorf("%s: got %v, want ErrDenied", name, err)
		}
	}
	nowhere(t, dir, secret)
	if list, err := p.Sessions(t.Context(), user); err != nil || len(list) != 2 || list[0].Source+list[1].Source != "203.0.113.7" {
		t.Errorf("Sessions = %+v, %v", list, err)
	}
	if n, err := p.EndSessions(t.Context(), user, s.ID); err != nil || n != 1 {
		t.Errorf("EndSessions = %d, %v", n, err)
	}
	if _, err := p.VerifySession(t.Context(), other); !errors.Is(err, auth.ErrDenied) {
		t.Errorf("an ended one: %v", err)
	}
	if _, err := p.VerifySession(t.Context(), cookie); err != nil {
		t.Errorf("the one that was kept: %v", err)
	}
	now = now.Add(time.Hour)
	if _, err := p.VerifySession(t.Context(), cookie); !errors.Is(err, auth.ErrDenied) {
		t.Errorf("an expired one: %v", err)
	}
	// One more than there may be ends the first.
	var first string
	for i := range auth.MaxSessions + 1 {
		now = now.Add(time.Second)
		_, c, err := p.NewSession(t.Context(), user, events.MethodPassword, time.Hour, "")
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = c
		}
	}
	if list, err := p.Sessions(t.Context(), user); err != nil || len(list) != auth.MaxSessions {
		t.Errorf("%d sessions, %v", len(list), err)
	}
	if _, err := p.VerifySession(t.Context(), first); !errors.Is(err, auth.ErrDenied) {
		t.Errorf("the first of too many: %v", err)
	}
}

func TestLink(t *testing.T) {
	now := time.Now()
	p, dir := people(t, &now)
	user := newUser()
	old, _, err := p.NewLink(t.Context(), user)
	if err != nil {
		t.Fatal(err)
	}
	link, expires, err := p.NewLink(t.Context(), user)
	if err != nil || expires.Sub(now) > auth.LinkLife || expires.Sub(now) < auth.LinkLife-time.Minute {
		t.Fatalf("expires %v, %v", expires, err)
	}
	nowhere(t, dir, link[len("plr_")+33:])
	for name, bad := range map[string]string{
		"empty": "", "the one before": old, "changed": flip(link, 45), "of another": flip(link, 6), "longer": link + "a", "a token's": "pls_" + link[4:],
	} {
		if _, err := p.UseLink(t.Context(), bad); !errors.Is(err, auth.ErrDenied) {
			t.Errorf("%s: got %v, want ErrDenied", name, err)
		}
	}
	for range 2 {
		if got, err := p.CheckLink(t.Context(), link); err != nil || got != user {
			t.Fatalf("CheckLink = %s, %v", got, err)
		}
	}
	// Of many who use it at the same time, one gets through.
	errs := make([]error, 8)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { _, errs[i] = p.UseLink(t.Context(), link) })
	}
	wg.Wait()
	used := 0
	for _, err := range errs {
		if err == nil {
			used++
		} else if !errors.Is(err, auth.ErrDenied) {
			t.Error(err)
		}
	}
	if used != 1 {
		t.Errorf("the link was used %d times", used)
	}
	link, _, err = p.NewLink(t.Context(), user)
	if err != nil {
		t.Fatal(err)
	}
	now = now.Add(auth.LinkLife)
	if _, err := p.UseLink(t.Context(), link); !errors.Is(err, auth.ErrDenied) {
		t.Errorf("an expired one: %v", err)
	}
}

// TestSweep leaves behind what a crash would, and what has ended.
func TestSweep(t *testing.T) {
	now := time.Now()
	p, _ := people(t, &now)
	kept, orphan := auth.Person{ID: newUser(), Login: "kept"}, auth.Person{ID: newUser(), Login: "orphan"}
	for _, x := range []auth.Person{kept, orphan} {
		if err := p.Add(t.Context(), x); err != nil {
			t.Fatal(err)
		}
	}
	_, short, err := p.NewSession(t.Context(), kept.ID, events.MethodPassword, time.Hour, "")
	if err != nil {
		t.Fatal(err)
	}
	long, _, err := p.NewSession(t.Context(), kept.ID, events.MethodPassword, 30*time.Hour, "")
	if err != nil {
		t.Fatal(err)
	}
	id, token := auth.NewAPIToken()
	if err := p.AddToken(t.Context(), kept.ID, "", token, now.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	known := func(id events.UserID) bool { return id == kept.ID }
	sweep := func() {
		t.Helper()
		if err := p.Sweep(t.Context(), 24*time.Hour, known); err != nil {
			t.Fatal(err)
		}
	}
	sweep() // too young to be an orphan
	if _, err := p.Person(t.Context(), orphan.ID); err != nil {
		t.Errorf("one that is being made: %v", err)
	}
	if _, err := p.VerifySession(t.Context(), short); err != nil {
		t.Errorf("a live session: %v", err)
	}
	now = now.Add(2 * time.Hour)
	sweep()
	if _, err := p.Person(t.Context(), orphan.ID); !errors.Is(err, auth.ErrUnknown) {
		t.Errorf("an orphan: %v", err)
	}
	if _, err := p.Person(t.Context(), kept.ID); err != nil {
		t.Errorf("one that is known: %v", err)
	}
	if list, err := p.Sessions(t.Context(), kept.ID); err != nil || len(list) != 1 || list[0].ID != long.ID {
		t.Errorf("sessions %+v, %v", list, err)
	}
	if _, _, err := p.Token(t.Context(), id); !errors.Is(err, auth.ErrUnknown) {
		t.Errorf("an expired token: %v", err)
	}
	now = now.Add(23 * time.Hour) // idle
	sweep()
	if list, err := p.Sessions(t.Context(), kept.ID); err != nil || len(list) != 0 {
		t.Errorf("sessions %+v, %v", list, err)
	}
}

func TestPasswords(t *testing.T) {
	p := auth.NewPasswords()
	const password = "four words nobody expects"
	hash, err := p.Hash(t.Context(), password)
	if err != nil || !strings.HasPrefix(hash, "$argon2id$v=19$m=19456,t=2,p=1$") {
		t.Fatalf("Hash = %q, %v", hash, err)
	}
	for _, c := range []struct {
		password, hash string
		want           bool
	}{
		{password, hash, true},
		{"four words nobody\u00a0expects", hash, true}, // RFC 8265: a space is a space
		{password + " ", hash, false},
		{"", hash, false},
		{"a\x00", hash, false},
		{strings.Repeat("a", 1000), hash, false},
		{password, "", false},
		{"", "", false},
	} {
		if got, err := p.Verify(t.Context(), c.password, c.hash); err != nil || got != c.want {
			t.Errorf("%q against %q: %v, %v", c.password, c.hash, got, err)
		}
	}
	if _, err := p.Verify(t.Context(), password, "no hash"); err == nil {
		t.Error("a damaged hash is no error")
	}
	ann := auth.Person{Login: "annabel.exemplaria", Name: "Annabel Exemplaria", Email: "annabel@exemplaria.example"}
	for password, says := range map[string]string{
		"short":                        "at least 12",
		"password1234":                 "easy to guess",
		"qwertyuiop12":                 "easy to guess",
		"aaaaaaaaaaaaaaaaaaaa":         "easy to guess",
		"annabel.exemplaria":           "is the login",
		"ANNABEL EXEMPLARIA":           "is the login",
		"exemplaria1234":               "easy to guess",
		"a\x00bcdefghijklmnop":         "control characters",
		strings.Repeat("word ", 60):    "at most 256",
		"correct horse battery staple": "",
		"four words nobody expects":    "",
		"пять слов которых не ждут": "",
	} {
		err := auth.CheckPassword(password, ann)
		switch {
		case says == "" && err != nil:
			t.Errorf("%q: %v", password, err)
		case says != "" && (err == nil || !strings.Contains(err.Error(), says)):
			t.Errorf("%q: %v, want it to say %q", password, err, says)
		case err != nil && strings.Contains(err.Error(), password):
			t.Errorf("the error repeats the password: %v", err)
		}
	}
}

// TestPasswordsAreBounded: each takes memory, so few are hashed at a time and few
// wait.
func TestPasswordsAreBounded(t *testing.T) {
	p := auth.NewPasswords()
	var wg sync.WaitGroup
	errs := make([]error, 200)
	for i := range errs {
		wg.Go(func() { _, errs[i] = p.Verify(t.Context(), "x", "") })
	}
	wg.Wait()
	busy := 0
	for _, err := range errs {
		if errors.Is(err, auth.ErrBusy) {
			busy++
		} else if err != nil {
			t.Error(err)
		}
	}
	if busy == 0 || busy > 200-34 {
		t.Errorf("%d of 200 were turned away", busy)
	}
}

// BenchmarkVerify is what a credential costs a request, and a password a sign-in.
func BenchmarkVerify(b *testing.B) {
	p, _ := people(b, nil)
	user := newUser()
	_, token := auth.NewAPIToken()
	if err := p.AddToken(b.Context(), user, "", token, time.Now().Add(time.Hour)); err != nil {
		b.Fatal(err)
	}
	_, cookie, err := p.NewSession(b.Context(), user, events.MethodPassword, time.Hour, "")
	if err != nil {
		b.Fatal(err)
	}
	b.Run("token", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := p.VerifyToken(b.Context(), token); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("session", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := p.VerifySession(b.Context(), cookie); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("password", func(b *testing.B) {
		passwords := auth.NewPasswords()
		b.ReportAllocs()
		for b.Loop() {
			if _, err := passwords.Verify(b.Context(), "four words nobody expects", ""); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func flip(s string, i int) string {
	b := []byte(s)
	if b[i]++; b[i] > 'z' || b[i] == ':' {
		b[i] = '0'
	}
	return string(b)
}

// nowhere demands that a secret is in no file.
func nowhere(t *testing.T, dir, secret string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(secret)) {
			t.Errorf("%s holds the secret", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
