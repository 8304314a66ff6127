package accesshttp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"pallas/commands"
	"pallas/events"
	"pallas/events/labels"
	"pallas/internal/auth"
	"pallas/internal/httpapi"
)

// Authenticate returns whom a request acts for. It costs a look into the store
// of credentials and two into memory; what this manager decides counts at once,
// what another one decides within a few seconds.
func (h *Handlers) Authenticate(ctx context.Context, c httpapi.Credential) (httpapi.Principal, error) {
	var p httpapi.Principal
	var err error
	if c.Session != "" {
		p, err = h.session(ctx, c)
	} else {
		p, err = h.token(ctx, c)
	}
	if errors.Is(err, auth.ErrDenied) {
		err = httpapi.ErrUnauthorized
	}
	return p, err
}

func (h *Handlers) token(ctx context.Context, c httpapi.Credential) (httpapi.Principal, error) {
	kept, err := h.cfg.People.VerifyToken(ctx, c.Token)
	if err != nil {
		return httpapi.Principal{}, err
	}
	standing, err := h.active(ctx, kept.User)
	if err != nil {
		return httpapi.Principal{}, err
	}
	now := h.cfg.Now()
	t, ok, err := h.cfg.Commands.APIToken(ctx, kept.User, kept.ID)
	switch {
	case err != nil:
		return httpapi.Principal{}, err
	case !ok || !now.Before(t.Expires):
		return httpapi.Principal{}, auth.ErrDenied
	}
	rights, err := h.rights.of(kept.User, standing, kept.ID, t)
	if err != nil {
		return httpapi.Principal{}, err
	}
	if source := httpapi.RequestOf(ctx).Source; !c.Again {
		network := httpapi.SourceNetwork(source)
		h.uses.note(use{
			user: kept.User, token: kept.ID, source: source, at: now,
			foreign: !slices.Contains(t.Networks, network.String()),
		})
	}
	return httpapi.Principal{Actor: events.UserActor(string(kept.User)), User: kept.User, Rights: rights, Token: kept.ID, Expires: t.Expires}, nil
}

func (h *Handlers) session(ctx context.Context, c httpapi.Credential) (httpapi.Principal, error) {
	s, err := h.cfg.People.VerifySession(ctx, c.Session)
	if err != nil {
		return httpapi.Principal{}, err
	}
	standing, err := h.active(ctx, s.User)
	if err != nil {
		return httpapi.Principal{}, err
	}
	now := h.cfg.Now()
	n := use{user: s.User, session: s.ID, source: httpapi.RequestOf(ctx).Source, at: now}
	if last, ok := h.uses.seen.Get(n.key()); !ok || now.Sub(last) >= h.cfg.SessionIdle {
		// Another manager may have seen it since.
		seen, err := h.cfg.People.SessionSeen(ctx, s.User, s.ID)
		if err != nil {
			return httpapi.Principal{}, err
		}
		for _, at := range []time.Time{s.Created, seen.At} {
			if at.After(last) {
				last = at
			}
		}
		if now.Sub(last) >= h.cfg.SessionIdle {
			if err := h.cfg.People.EndSession(ctx, s.User, s.ID); err != nil {
				h.cfg.Log.WarnContext(ctx, "session not ended", slog.String("user", string(s.User)), slog.Any("error", err))
			}
			return httpapi.Principal{}, auth.ErrDenied
		}
	}
	rights, err := h.rights.of(s.User, standing, "", commands.APIToken{})
	if err != nil {
		return httpapi.Principal{}, err
	}
	if !c.Again {
		h.uses.seen.Add(n.key(), now)
		h.uses.note(n)
	}
	return httpapi.Principal{Actor: events.UserActor(string(s.User)), User: s.User, Rights: rights, Session: s.ID, Expires: s.Expires}, nil
}

// active returns the standing of a user who is there and not disabled.
func (h *Handlers) active(ctx context.Context, id events.UserID) (commands.Standing, error) {
	s, ok, err := h.cfg.Commands.Standing(ctx, id)
	if err == nil && (!ok || s.Disabled) {
		err = auth.ErrDenied
	}
	return s, err
}

// rightsCache spares parsing the same selectors for each request.
type rightsCache struct {
	lru *lru.Cache[rightsKey, auth.Rights]
}

// rightsKey names what rights follow from: the grants of a user at a revision,
// and the token, which never changes.
type rightsKey struct {
	user     events.UserID
	revision uint64
	token    events.APITokenID
}

func newRightsCache() *rightsCache {
	c, _ := lru.New[rightsKey, auth.Rights](remembered) // the size is positive
	return &rightsCache{c}
}

// of returns the rights of a user, and, with a token, those that the token has
// as well.
func (c *rightsCache) of(user events.UserID, s commands.Standing, id events.APITokenID, t commands.APIToken) (auth.Rights, error) {
	key := rightsKey{user, s.Revision, id}
	if r, ok := c.lru.Get(key); ok {
		return r, nil
	}
	grants := make([]auth.Grant, 0, len(s.Grants))
	for _, g := range s.Grants {
		sel, err := labels.Parse(g.Selector)
		if err != nil {
			return auth.Rights{}, fmt.Errorf("grant %s: %w", g.ID, err)
		}
		grants = append(grants, auth.Grant{Role: auth.Role(g.Role), Selector: sel})
	}
	r := auth.RightsOf(grants...)
	if id != "" {
		sel, err := labels.Parse(t.Selector)
		if err != nil {
			return auth.Rights{}, fmt.Errorf("API token %s: %w", id, err)
		}
		r = r.Within(auth.RightsOf(auth.Grant{Role: auth.Role(t.Bound()), Selector: sel}))
	}
	c.lru.Add(key, r)
	return r, nil
}
