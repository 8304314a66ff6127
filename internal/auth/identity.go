package auth

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"

	"pallas/events"
)

// Identity is who a person is to an OpenID Connect provider. It is compared byte
// by byte; a provider never gives a subject to somebody else (OpenID Connect Core
// 1.0, section 5.7), which it may do with names and e-mail addresses.
type Identity struct {
	Issuer  string `json:"issuer"`
	Subject string `json:"subject"`
}

// identityKey is a hash, as of logins. An issuer is a URL and has no NUL.
func identityKey(i Identity) string {
	sum := sha256.Sum256([]byte(i.Issuer + "\x00" + i.Subject))
	return "identity." + hex.EncodeToString(sum[:])
}

// ByIdentity returns the person who comes by an identity, or ErrUnknown.
func (p *People) ByIdentity(ctx context.Context, i Identity) (Person, error) {
	var c claim
	switch _, err := p.v.get(ctx, identityKey(i), &c); {
	case errors.Is(err, errMissing):
		return Person{}, ErrUnknown
	case err != nil:
		return Person{}, err
	}
	person, err := p.Person(ctx, c.User)
	if err == nil && !person.is(i) {
		err = ErrUnknown // claimed by a making that broke off
	}
	return person, err
}

// claimIdentity gives an identity to a person.
func (p *People) claimIdentity(ctx context.Context, i Identity, id events.UserID) error {
	err := p.claim(ctx, identityKey(i), id, func(other events.UserID) (bool, error) {
		person, err := p.Person(ctx, other)
		if errors.Is(err, ErrUnknown) {
			return false, nil
		}
		return err == nil && person.is(i), err
	})
	if errors.Is(err, errTaken) {
		err = ErrIdentityTaken
	}
	return err
}

func (p Person) is(i Identity) bool { return p.Identity != nil && *p.Identity == i }
