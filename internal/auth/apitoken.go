package auth

import (
	"context"
	"errors"
	"time"

	"pallas/events"
)

// APIToken is what is kept of an API token outside the log.
type APIToken struct {
	ID   events.APITokenID `json:"-"`
	User events.UserID     `json:"user"`
	// Name is the owner's own, and may say who that is.
	Name    string    `json:"name,omitempty"`
	Hash    []byte    `json:"hash"`
	Expires time.Time `json:"expires"`
}

// Use is the last use of an API token or a session.
type Use struct {
	At     time.Time `json:"at"`
	Source string    `json:"source,omitempty"`
}

// UseInterval is how often the use of an API token or a session is written down.
const UseInterval = time.Minute

func tokenKey(id events.APITokenID) string { return "token." + string(id) }
func usedKey(id events.APITokenID) string  { return "used." + string(id) }

// NewAPIToken returns a token and its id. It opens nothing before AddToken.
func NewAPIToken() (id events.APITokenID, token string) {
	s, token := newToken()
	return events.APITokenID(s), token
}

// AddToken stores the hash of a token that [NewAPIToken] made.
func (p *People) AddToken(ctx context.Context, user events.UserID, name, token string, expires time.Time) error {
	return p.v.create(ctx, tokenKey(events.APITokenID(idOf(token))), APIToken{User: user, Name: name, Hash: hash(token), Expires: second(expires)})
}

// VerifyToken returns what is kept of a token, or ErrDenied. What it permits,
// and whether it was revoked, is the log's to say. It takes the same work for a
// token that does not exist as for one whose secret is wrong.
func (p *People) VerifyToken(ctx context.Context, token string) (APIToken, error) {
	id := events.APITokenID(idOf(token))
	t := APIToken{Hash: make([]byte, len(hash("")))}
	_, err := p.v.get(ctx, tokenKey(id), &t)
	if err != nil && !errors.Is(err, errMissing) {
		return APIToken{}, err
	}
	t.ID = id
	if !same(t.Hash, token) || err != nil || !p.now().Before(t.Expires) {
		return APIToken{}, ErrDenied
	}
	return t, nil
}

// Token returns what is kept of a token, and its last use, zero for none.
func (p *People) Token(ctx context.Context, id events.APITokenID) (APIToken, Use, error) {
	t, use := APIToken{ID: id}, Use{}
	switch _, err := p.v.get(ctx, tokenKey(id), &t); {
	case errors.Is(err, errMissing):
		return t, use, ErrUnknown
	case err != nil:
		return t, use, err
	}
	if _, err := p.v.get(ctx, usedKey(id), &use); err != nil && !errors.Is(err, errMissing) {
		return t, use, err
	}
	return t, use, nil
}

// NoteTokenUse writes down the last use of a token.
func (p *People) NoteTokenUse(ctx context.Context, id events.APITokenID, u Use) error {
	return p.v.put(ctx, usedKey(id), u)
}

// DeleteToken destroys what is kept of a token. An unknown id is no error.
func (p *People) DeleteToken(ctx context.Context, id events.APITokenID) error {
	return errors.Join(p.v.erase(ctx, tokenKey(id)), p.v.erase(ctx, usedKey(id)))
}
