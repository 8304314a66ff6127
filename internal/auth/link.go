package auth

import (
	"context"
	"errors"
	"strings"
	"time"

	"pallas/events"
)

// LinkPrefix starts the secret of every one-time link, so that people and secret
// scanners recognise one.
const LinkPrefix = "plr_"

// LinkLife is how long a one-time link is good for.
const LinkLife = 24 * time.Hour

type link struct {
	Hash    []byte    `json:"hash"`
	Expires time.Time `json:"expires"`
}

func linkKey(user events.UserID) string { return "link." + string(user) }

// NewLink makes the secret of a one-time link with which a user can set a
// password: "plr_<user>_<secret><checksum>". One that was made before is void.
func (p *People) NewLink(ctx context.Context, user events.UserID) (secret string, expires time.Time, err error) {
	body := LinkPrefix + compactID(user) + "_" + enc.EncodeToString(random(secretBytes))
	secret = body + checksum(body)
	expires = second(p.now()).Add(LinkLife)
	if err := p.v.erase(ctx, linkKey(user)); err != nil {
		return "", time.Time{}, err
	}
	return secret, expires, p.v.put(ctx, linkKey(user), link{Hash: hash(secret), Expires: expires})
}

// CheckLink returns whose password a one-time link may set, or ErrDenied, and
// leaves the link as it is. It takes the same work for a link that does not
// exist as for a wrong one.
func (p *People) CheckLink(ctx context.Context, secret string) (events.UserID, error) {
	user, _, err := p.link(ctx, secret)
	return user, err
}

// UseLink is CheckLink, and voids the link. Of several callers with the same
// link one succeeds.
func (p *People) UseLink(ctx context.Context, secret string) (events.UserID, error) {
	user, revision, err := p.link(ctx, secret)
	if err != nil {
		return "", err
	}
	if err := p.v.take(ctx, linkKey(user), revision); err != nil {
		if errors.Is(err, errChanged) {
			err = ErrDenied
		}
		return "", err
	}
	return user, nil
}

// DeleteLink voids the link of a user. One that does not exist is no error.
func (p *People) DeleteLink(ctx context.Context, user events.UserID) error {
	return p.v.erase(ctx, linkKey(user))
}

func (p *People) link(ctx context.Context, secret string) (events.UserID, uint64, error) {
	user, _ := parseLink(secret)
	l := link{Hash: make([]byte, len(hash("")))}
	revision, err := p.v.get(ctx, linkKey(user), &l)
	if err != nil && !errors.Is(err, errMissing) {
		return "", 0, err
	}
	if !same(l.Hash, secret) || err != nil || !p.now().Before(l.Expires) {
		return "", 0, ErrDenied
	}
	return user, revision, nil
}

// parseLink returns whom the secret of a link is for. What is not of the form is
// for nobody.
func parseLink(s string) (events.UserID, bool) {
	rest, ok := strings.CutPrefix(s, LinkPrefix)
	u, tail, cut := strings.Cut(rest, "_")
	sumLen := len(checksum(""))
	if !ok || !cut || len(tail) != enc.EncodedLen(secretBytes)+sumLen {
		return "", false
	}
	body := s[:len(s)-sumLen]
	secret := tail[:len(tail)-sumLen]
	b, err := enc.DecodeString(secret)
	if err != nil || enc.EncodeToString(b) != secret || body+checksum(body) != s {
		return "", false
	}
	return expandID(u)
}
