package auth

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"pallas/events"
)

// MaxSessions is how many sessions a user has at the same time: one more ends
// the one that was begun first.
const MaxSessions = 50

// Session is a person who has signed in with a browser.
type Session struct {
	ID      string              `json:"-"` // tells the sessions of a user apart
	User    events.UserID       `json:"user"`
	Method  events.SignInMethod `json:"method"`
	Hash    []byte              `json:"hash"`
	Created time.Time           `json:"created"`
	// Expires is when it ends at the latest.
	Expires time.Time `json:"expires"`
	Source  string    `json:"source,omitempty"`
	// Seen is the last use, as far as it is written down.
	Seen Use `json:"-"`
}

func sessionKey(user events.UserID, id string) string { return "session." + string(user) + "." + id }
func seenKey(user events.UserID, id string) string    { return "seen." + string(user) + "." + id }

// NewSession begins a session that ends after life, and returns it with the
// value of its cookie.
func (p *People) NewSession(ctx context.Context, user events.UserID, m events.SignInMethod, life time.Duration, source string) (Session, string, error) {
	now := second(p.now())
	id := enc.EncodeToString(random(idBytes))
	cookie := strings.Join([]string{compactID(user), id, enc.EncodeToString(random(secretBytes))}, ".")
	s := Session{ID: id, User: user, Method: m, Hash: hash(cookie), Created: now, Expires: now.Add(life), Source: source, Seen: Use{At: now, Source: source}}
	if err := p.v.put(ctx, seenKey(user, id), s.Seen); err != nil {
		return Session{}, "", err
	}
	if err := p.v.create(ctx, sessionKey(user, id), s); err != nil {
		return Session{}, "", err
	}
	all, err := p.Sessions(ctx, user)
	if err != nil {
		return Session{}, "", err
	}
	for i := range len(all) - MaxSessions {
		if err := p.EndSession(ctx, user, all[i].ID); err != nil {
			return Session{}, "", err
		}
	}
	return s, cookie, nil
}

// VerifySession returns the session of a cookie's value, without its last use,
// or ErrDenied. It takes the same work for a session that does not exist as for
// one whose secret is wrong.
func (p *People) VerifySession(ctx context.Context, cookie string) (Session, error) {
	user, id, _ := parseCookie(cookie)
	s := Session{Hash: make([]byte, len(hash("")))}
	_, err := p.v.get(ctx, sessionKey(user, id), &s)
	if err != nil && !errors.Is(err, errMissing) {
		return Session{}, err
	}
	s.ID = id
	if !same(s.Hash, cookie) || err != nil || !p.now().Before(s.Expires) {
		return Session{}, ErrDenied
	}
	return s, nil
}

// SessionSeen returns the last use of a session that is written down.
func (p *People) SessionSeen(ctx context.Context, user events.UserID, id string) (Use, error) {
	var u Use
	_, err := p.v.get(ctx, seenKey(user, id), &u)
	if errors.Is(err, errMissing) {
		err = nil
	}
	return u, err
}

// NoteSessionUse writes down the last use of a session.
func (p *People) NoteSessionUse(ctx context.Context, user events.UserID, id string, u Use) error {
	return p.v.put(ctx, seenKey(user, id), u)
}

// Sessions lists a user's sessions, the oldest first.
func (p *People) Sessions(ctx context.Context, user events.UserID) ([]Session, error) {
	keys, err := p.v.keys(ctx, "session."+string(user)+".*")
	if err != nil {
		return nil, err
	}
	var out []Session
	for _, k := range keys {
		s := Session{ID: k[strings.LastIndexByte(k, '.')+1:]}
		_, err := p.v.get(ctx, k, &s)
		if errors.Is(err, errMissing) {
			continue // it ended meanwhile
		}
		if err == nil {
			s.Seen, err = p.SessionSeen(ctx, user, s.ID)
		}
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b Session) int { return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID)) })
	return out, nil
}

// EndSession ends a session. An unknown one is no error.
func (p *People) EndSession(ctx context.Context, user events.UserID, id string) error {
	return errors.Join(p.v.erase(ctx, sessionKey(user, id)), p.v.erase(ctx, seenKey(user, id)))
}

// EndSessions ends all sessions of a user but one, "" for all, and returns how
// many there were.
func (p *People) EndSessions(ctx context.Context, user events.UserID, but string) (int, error) {
	keys, err := p.v.keys(ctx, "session."+string(user)+".*")
	n := 0
	for _, k := range keys {
		id := k[strings.LastIndexByte(k, '.')+1:]
		if id == but {
			continue
		}
		if err := p.EndSession(ctx, user, id); err != nil {
			return n, err
		}
		n++
	}
	return n, err
}

// ValidSessionID says whether a text could be the id of a session.
func ValidSessionID(s string) bool {
	b, err := enc.DecodeString(s)
	return err == nil && len(b) == idBytes && enc.EncodeToString(b) == s
}

// parseCookie splits the value of a session's cookie, "<user>.<id>.<secret>".
// What is not of that form has no user.
func parseCookie(s string) (user events.UserID, id string, ok bool) {
	u, rest, _ := strings.Cut(s, ".")
	id, secret, _ := strings.Cut(rest, ".")
	user, ok = expandID(u)
	b, err := enc.DecodeString(secret)
	if !ok || !ValidSessionID(id) || err != nil || len(b) != secretBytes || enc.EncodeToString(b) != secret {
		return "", "", false
	}
	return user, id, true
}

// compactID is a user's id without dashes.
func compactID(id events.UserID) string { return strings.ReplaceAll(string(id), "-", "") }

// expandID is the reverse of compactID.
func expandID(s string) (events.UserID, bool) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != 16 || hex.EncodeToString(b) != s {
		return "", false
	}
	return events.UserID(uuid.UUID(b).String()), true
}
