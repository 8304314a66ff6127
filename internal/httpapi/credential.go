package httpapi

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"pallas/internal/auth"
)

// SessionCookie is the name of the cookie of a session. Browsers take one with
// this prefix only over HTTPS, from this very host and for all of it.
const SessionCookie = "__Host-pallas"

// Credential is what a request shows of its caller. It has an API token or a
// session's cookie, never both.
type Credential struct {
	// Token is that of the Authorization header.
	Token string
	// Session is the value of the session's cookie. It counts only in a request
	// without an Authorization header.
	Session string
	// Again says that the credential was good when the request came and is looked
	// at once more because the request is still being answered: no use of its own.
	Again bool
}

// credentialOf returns what a request shows of its caller.
func credentialOf(r *http.Request) Credential {
	if len(r.Header.Values("Authorization")) > 0 {
		return Credential{Token: bearer(r.Header)}
	}
	if c := r.CookiesNamed(SessionCookie); len(c) == 1 {
		return Credential{Session: c[0].Value}
	}
	return Credential{}
}

// foreign says that a request that changes something, and may have been made by
// a browser, comes from a page of another site. A browser sends the cookie of a
// session along without being asked; it never sends a token.
func foreign(r *http.Request) bool {
	if len(r.Header.Values("Authorization")) > 0 {
		return false
	}
	return new(http.CrossOriginProtection).Check(r) != nil
}

// recheck is how long a request may be under way before its credential is looked
// at again: how long an event stream outlives its session or token.
const recheck = time.Second

// whileValid returns a context that ends when the credential of its request does,
// or when it gives other rights than it gave then: the answer was begun for those.
func (s *server) whileValid(ctx context.Context, c Credential, rights auth.Rights) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	c.Again = true
	var mu sync.Mutex
	var timer *time.Timer
	done := false
	mu.Lock()
	timer = time.AfterFunc(recheck, func() {
		p, err := s.cfg.Auth.Authenticate(ctx, c)
		if errors.Is(err, ErrUnauthorized) || err == nil && !p.Rights.Equal(rights) {
			cancel(ErrUnauthorized)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if !done {
			timer.Reset(recheck)
		}
	})
	mu.Unlock()
	return ctx, func() {
		mu.Lock()
		done = true
		timer.Stop()
		mu.Unlock()
		cancel(nil)
	}
}
