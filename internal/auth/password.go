package auth

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/alexedwards/argon2id"
	"github.com/trustelem/zxcvbn"
	"golang.org/x/text/secure/precis"
)

// The cost of a password's hash, by the Password Storage Cheat Sheet of OWASP:
// 19 MiB of memory and two passes.
var passwordCost = argon2id.Params{Memory: 19 << 10, Iterations: 2, Parallelism: 1, SaltLength: 16, KeyLength: 32}

// Limits of passwords.
const (
	MinPassword = 12  // characters
	MaxPassword = 256 // bytes
	// minScore is the least estimate of zxcvbn, from 0 to 4: 10^8 guesses.
	minScore = 3
	// estimated is how many characters are estimated: the time goes with the
	// square of their number.
	estimated = 64
	// hashers is how many passwords are hashed at the same time, waiters how many
	// wait for their turn: each takes 19 MiB.
	hashers = 2
	waiters = 32
)

// ErrBusy says that too many passwords are being checked.
var ErrBusy = errors.New("too many passwords are being checked")

// Passwords hashes and checks passwords, a few at a time.
type Passwords struct {
	waiting, working chan struct{}
	// dummy is the hash of no password.
	dummy string
}

// NewPasswords returns a checker of passwords.
func NewPasswords() *Passwords {
	b64 := base64.RawStdEncoding.EncodeToString
	return &Passwords{
		waiting: make(chan struct{}, hashers+waiters), working: make(chan struct{}, hashers),
		dummy: fmt.Sprintf("$argon2id$v=19$m=%d,t=%d,p=%d$%s$%s", passwordCost.Memory, passwordCost.Iterations, passwordCost.Parallelism, b64(random(16)), b64(random(32))),
	}
}

// Hash returns the hash of a password as a PHC string, or ErrBusy.
func (p *Passwords) Hash(ctx context.Context, password string) (string, error) {
	leave, err := p.enter(ctx)
	if err != nil {
		return "", err
	}
	defer leave()
	normal, err := normalPassword(password)
	if err != nil {
		return "", err
	}
	h, err := argon2id.CreateHash(normal, &passwordCost)
	if err != nil {
		return "", fmt.Errorf("hash a password: %w", err)
	}
	return h, nil
}

// Verify says whether a hash is of the password, or ErrBusy. Without a hash, as
// for a login that nobody has, it does the same work and says no, so that the
// time tells nothing; the library compares keys in constant time.
func (p *Passwords) Verify(ctx context.Context, password, hash string) (bool, error) {
	leave, err := p.enter(ctx)
	if err != nil {
		return false, err
	}
	defer leave()
	known := hash != ""
	if !known {
		hash = p.dummy
	}
	normal, err := normalPassword(password)
	if err != nil {
		normal, known = "", false
	}
	ok, err := argon2id.ComparePasswordAndHash(normal, hash)
	if err != nil {
		return false, fmt.Errorf("check a password: %w", err)
	}
	return ok && known, nil
}

// enter waits for a turn.
func (p *Passwords) enter(ctx context.Context) (leave func(), err error) {
	select {
	case p.waiting <- struct{}{}:
	default:
		return nil, ErrBusy
	}
	select {
	case p.working <- struct{}{}:
		return func() { <-p.working; <-p.waiting }, nil
	case <-ctx.Done():
		<-p.waiting
		return nil, ctx.Err()
	}
}

// normalPassword returns the password as it is hashed: RFC 8265, so that the
// same characters are the same password whatever keyboard made them.
func normalPassword(s string) (string, error) {
	if len(s) > MaxPassword {
		return "", fmt.Errorf("has %d bytes: shorten it to at most %d", len(s), MaxPassword)
	}
	n, err := precis.OpaqueString.String(s)
	if err != nil {
		return "", errors.New("contains a character that no password can have: leave out control characters")
	}
	return n, nil
}

// CheckPassword says what is wrong with a new password of a person, or nil. It
// never repeats the password.
func CheckPassword(password string, of Person) error {
	normal, err := normalPassword(password)
	if err != nil {
		return err
	}
	if n := utf8.RuneCountInString(normal); n < MinPassword {
		return fmt.Errorf("has %d characters: want at least %d", n, MinPassword)
	}
	own := []string{of.Login, of.Name, of.Email, "pallas"}
	own = append(own, strings.FieldsFunc(of.Name+" "+of.Email+" "+of.Login, func(r rune) bool { return strings.ContainsRune(" @.-_", r) })...)
	for _, o := range own[:3] {
		if o != "" && strings.EqualFold(o, normal) {
			return errors.New("is the login, the name or the e-mail address: choose something else")
		}
	}
	text := []rune(normal)
	if zxcvbn.PasswordStrength(string(text[:min(len(text), estimated)]), own).Score < minScore {
		return errors.New("is easy to guess: use a longer one, such as four or five words that do not belong together")
	}
	return nil
}
