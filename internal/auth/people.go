package auth

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/text/secure/precis"

	"pallas/events"
)

// PeopleBucket is the key-value bucket of what is known of people outside the
// log: all of it can be destroyed.
const PeopleBucket = "PEOPLE"

// Errors of the store of people.
var (
	ErrUnknown       = errors.New("no such person")
	ErrLoginTaken    = errors.New("login is taken")
	ErrIdentityTaken = errors.New("somebody comes by this identity already")
)

// Limits of what is kept of a person.
const (
	MaxLogin = 128 // bytes
	MaxText  = 253 // bytes of a name or an e-mail address
)

// Person is what is kept of a user outside the log.
type Person struct {
	ID    events.UserID `json:"id"`
	Login string        `json:"login"`
	Name  string        `json:"name,omitempty"`
	Email string        `json:"email,omitempty"`
	// Password is the argon2id hash as a PHC string; "" while there is none.
	Password string `json:"password,omitempty"`
	// Identity is who the person is to an OpenID Connect provider; nil for who
	// does not come by one. It never changes.
	Identity *Identity `json:"identity,omitempty"`
	Created  time.Time `json:"created"`
}

// String is the id alone: what is printed by mistake ends in a log.
func (p Person) String() string { return "user " + string(p.ID) }

// GoString is String.
func (p Person) GoString() string { return p.String() }

// People keeps what must be forgettable: who users are, and the hashes of their
// passwords, API tokens, sessions and one-time links.
type People struct {
	v   *vault
	now func() time.Time
}

// OpenPeople binds to the bucket, and makes it when it does not exist. room is
// as for [Open]; now is the clock, nil for the system's.
func OpenPeople(ctx context.Context, js jetstream.JetStream, replicas int, room func() error, now func() time.Time) (*People, error) {
	v, err := openVault(ctx, js, PeopleBucket, replicas, room)
	if err != nil {
		return nil, err
	}
	if now == nil {
		now = time.Now
	}
	return &People{v: v, now: now}, nil
}

// FoldLogin returns a login as logins are compared: RFC 8265, so that case and
// the width of characters do not matter. It refuses what cannot be one.
func FoldLogin(login string) (string, error) {
	if len(login) > MaxLogin {
		return "", fmt.Errorf("has %d bytes: shorten it to at most %d", len(login), MaxLogin)
	}
	folded, err := precis.UsernameCaseMapped.String(login)
	if err != nil || folded == "" {
		return "", fmt.Errorf("want 1 to %d letters, digits and signs without white space", MaxLogin)
	}
	return folded, nil
}

func personKey(id events.UserID) string { return "person." + string(id) }

// loginKey is a hash: a login may have characters that a key may not.
func loginKey(folded string) string {
	sum := sha256.Sum256([]byte(folded))
	return "login." + hex.EncodeToString(sum[:])
}

// Add stores a new person under a login that nobody has, ErrLoginTaken, and an
// identity that nobody has, if any: ErrIdentityTaken.
func (p *People) Add(ctx context.Context, person Person) error {
	folded, err := FoldLogin(person.Login)
	if err != nil {
		return err
	}
	person.Created = second(p.now())
	// The login comes first: it decides between two who want the same one. One
	// without a person, after a crash in between, is taken over.
	if err := p.claimLogin(ctx, folded, person.ID); err != nil {
		return err
	}
	if i := person.Identity; i != nil {
		if err := p.claimIdentity(ctx, *i, person.ID); err != nil {
			return err
		}
	}
	return p.v.create(ctx, personKey(person.ID), person)
}

// claim says whose a login or an identity is. The owner's record says it too; while that is
// being written, only the claim does.
type claim struct {
	User events.UserID `json:"user"`
	At   time.Time     `json:"at"`
}

// claimFor is how long a claim holds before its owner's record says the same.
const claimFor = time.Minute

// claimLogin gives a login to a person.
func (p *People) claimLogin(ctx context.Context, folded string, id events.UserID) error {
	err := p.claim(ctx, loginKey(folded), id, func(other events.UserID) (bool, error) { return p.holds(ctx, other, folded) })
	if errors.Is(err, errTaken) {
		err = ErrLoginTaken
	}
	return err
}

// errTaken says that somebody else has what is claimed.
var errTaken = errors.New("taken")

// claim gives a person what the key is of. holds says whether somebody's record
// has it.
func (p *People) claim(ctx context.Context, key string, id events.UserID, holds func(events.UserID) (bool, error)) error {
	want := claim{User: id, At: second(p.now())}
	for range 3 {
		var have claim
		revision, err := p.v.get(ctx, key, &have)
		if errors.Is(err, errMissing) {
			if err = p.v.create(ctx, key, want); !errors.Is(err, ErrExists) {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		if have.User == id {
			return nil
		}
		switch held, err := holds(have.User); {
		case err != nil:
			return err
		case held, want.At.Sub(have.At) < claimFor:
			return errTaken
		}
		if err = p.v.replace(ctx, key, want, revision); !errors.Is(err, errChanged) {
			return err
		}
	}
	return errTaken
}

// holds says whether a person's record has the login.
func (p *People) holds(ctx context.Context, id events.UserID, folded string) (bool, error) {
	person, err := p.Person(ctx, id)
	if errors.Is(err, ErrUnknown) {
		return false, nil
	}
	own, ferr := FoldLogin(person.Login)
	return err == nil && ferr == nil && own == folded, err
}

// Person returns a person, or ErrUnknown.
func (p *People) Person(ctx context.Context, id events.UserID) (Person, error) {
	var out Person
	_, err := p.v.get(ctx, personKey(id), &out)
	if errors.Is(err, errMissing) {
		err = ErrUnknown
	}
	return out, err
}

// ByLogin returns the person of a login, or ErrUnknown.
func (p *People) ByLogin(ctx context.Context, login string) (Person, error) {
	folded, err := FoldLogin(login)
	if err != nil {
		return Person{}, ErrUnknown
	}
	var c claim
	switch _, err := p.v.get(ctx, loginKey(folded), &c); {
	case errors.Is(err, errMissing):
		return Person{}, ErrUnknown
	case err != nil:
		return Person{}, err
	}
	person, err := p.Person(ctx, c.User)
	if own, ferr := FoldLogin(person.Login); err == nil && (ferr != nil || own != folded) {
		err = ErrUnknown // claimed by a change that broke off
	}
	return person, err
}

// IDs lists everybody, the oldest first.
func (p *People) IDs(ctx context.Context) ([]events.UserID, error) {
	keys, err := p.v.keys(ctx, "person.*")
	out := make([]events.UserID, len(keys))
	for i, k := range keys {
		out[i] = events.UserID(k[len("person."):])
	}
	return out, err
}

// Change changes a person. f may be called again when somebody else changes the
// same person meanwhile; its error ends the change. What was there before is
// destroyed.
func (p *People) Change(ctx context.Context, id events.UserID, f func(*Person) error) (Person, error) {
	for range 8 {
		var person Person
		revision, err := p.v.get(ctx, personKey(id), &person)
		switch {
		case errors.Is(err, errMissing):
			return Person{}, ErrUnknown
		case err != nil:
			return Person{}, err
		}
		old, err := FoldLogin(person.Login)
		if err != nil {
			return Person{}, fmt.Errorf("login of %s: %w", person, err)
		}
		if err := f(&person); err != nil {
			return Person{}, err
		}
		login, err := FoldLogin(person.Login)
		if err != nil {
			return Person{}, err
		}
		if login != old {
			if err := p.claimLogin(ctx, login, id); err != nil {
				return Person{}, err
			}
		}
		err = p.v.replace(ctx, personKey(id), person, revision)
		if errors.Is(err, errChanged) {
			continue
		}
		if err == nil && login != old {
			err = p.v.erase(ctx, loginKey(old))
		}
		return person, err
	}
	return Person{}, fmt.Errorf("change a person: %w", events.ErrConflict)
}

// Forget destroys everything that is kept of a person; tokens are those that the
// log knows of. Forgetting again is no error.
func (p *People) Forget(ctx context.Context, id events.UserID, tokens []events.APITokenID) error {
	// Secrets first: nobody gets in any more. The record of the person comes last,
	// so that what breaks off can be found and finished.
	for _, t := range tokens {
		if err := p.DeleteToken(ctx, t); err != nil {
			return err
		}
	}
	if _, err := p.EndSessions(ctx, id, ""); err != nil {
		return err
	}
	if err := p.v.erase(ctx, linkKey(id)); err != nil {
		return err
	}
	person, err := p.Person(ctx, id)
	switch {
	case errors.Is(err, ErrUnknown):
		return nil
	case err != nil:
		return err
	}
	var claims []string
	if folded, err := FoldLogin(person.Login); err == nil {
		claims = append(claims, loginKey(folded))
	}
	if person.Identity != nil {
		claims = append(claims, identityKey(*person.Identity))
	}
	for _, key := range claims {
		var c claim
		if _, err := p.v.get(ctx, key, &c); err == nil && c.User == id {
			if err := p.v.erase(ctx, key); err != nil {
				return err
			}
		}
	}
	return p.v.erase(ctx, personKey(id))
}

// Sweep destroys what has ended: sessions that were unused for idle or have
// expired, tokens and links that have expired, and what is kept of people who are
// not known to the log, as when their making broke off.
func (p *People) Sweep(ctx context.Context, idle time.Duration, known func(events.UserID) bool) error {
	now := p.now()
	ids, err := p.IDs(ctx)
	if err != nil {
		return err
	}
	for _, id := range ids {
		person, err := p.Person(ctx, id)
		switch {
		case errors.Is(err, ErrUnknown):
		case err != nil:
			return err
		case !known(id) && now.Sub(person.Created) > sweepAge:
			if err := p.Forget(ctx, id, nil); err != nil {
				return err
			}
		}
	}
	return errors.Join(
		p.sweepKeys(ctx, "session.*.*", func(key string) (bool, error) {
			var s Session
			_, err := p.v.get(ctx, key, &s)
			if err != nil {
				return false, err
			}
			_, rest, _ := strings.Cut(key, ".")
			user, id, _ := strings.Cut(rest, ".")
			seen, err := p.SessionSeen(ctx, events.UserID(user), id)
			return !now.Before(s.Expires) || now.Sub(s.Created) >= idle && now.Sub(seen.At) >= idle || !known(events.UserID(user)), err
		}),
		p.sweepKeys(ctx, "seen.*.*", func(key string) (bool, error) {
			var s Session
			_, err := p.v.get(ctx, "session"+strings.TrimPrefix(key, "seen"), &s)
			if errors.Is(err, errMissing) {
				var u Use
				_, err = p.v.get(ctx, key, &u) // one that is being begun has no session yet
				return now.Sub(u.At) > sweepAge, err
			}
			return false, err
		}),
		p.sweepKeys(ctx, "token.*", func(key string) (bool, error) {
			var t APIToken
			_, err := p.v.get(ctx, key, &t)
			return now.Sub(t.Expires) > sweepAge || !known(t.User), err
		}),
		p.sweepKeys(ctx, "used.*", func(key string) (bool, error) {
			var t APIToken
			_, err := p.v.get(ctx, "token"+strings.TrimPrefix(key, "used"), &t)
			if errors.Is(err, errMissing) {
				return true, nil
			}
			return false, err
		}),
		p.sweepKeys(ctx, "link.*", func(key string) (bool, error) {
			var l link
			_, err := p.v.get(ctx, key, &l)
			return !now.Before(l.Expires), err
		}),
	)
}

// sweepAge is how old something unfinished is that nobody finishes any more.
const sweepAge = 10 * time.Minute

// sweepKeys erases the keys that have ended.
func (p *People) sweepKeys(ctx context.Context, pattern string, ended func(key string) (bool, error)) error {
	keys, err := p.v.keys(ctx, pattern)
	if err != nil {
		return err
	}
	for _, k := range keys {
		gone, err := ended(k)
		if errors.Is(err, errMissing) {
			continue
		}
		if err == nil && gone {
			err = p.v.erase(ctx, k)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
