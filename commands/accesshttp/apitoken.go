package accesshttp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"pallas/commands"
	"pallas/events"
	"pallas/events/labels"
	"pallas/internal/auth"
	"pallas/internal/httpapi"
)

// CreateAPIToken says what a new API token permits.
type CreateAPIToken struct {
	Name     string `json:"name,omitempty" maxLength:"253" example:"backup script" doc:"What it is for."`
	Role     string `json:"role,omitempty" maxLength:"64" example:"viewer" doc:"viewer, operator or admin: no more than its owner has. Absent: all that its owner may do at the time of a request."`
	Selector string `json:"selector,omitempty" maxLength:"4096" example:"site=fra" doc:"Label selector of the devices that it is for; with a role, within one of its owner's grants. Absent or empty: all of them."`
	TTL      int    `json:"ttl,omitempty" minimum:"60" maximum:"31536000" example:"7776000" doc:"Seconds until it ends. Absent: 90 days, or as long as the token lasts that the request comes with."`
}

// defaultTokenLife is how long an API token lasts that nobody said it of.
const defaultTokenLife = 90 * 24 * time.Hour

// CreatedAPIToken is a new API token with its secret.
type CreatedAPIToken struct {
	httpapi.APIToken
	Token string `json:"token" example:"pls_4f2k9d0a7b1c8e3h_…" doc:"The token. It is shown this once."`
}

// APITokenCreated answers the creation of an API token.
type APITokenCreated struct {
	Written
	CacheControl string `header:"Cache-Control" example:"no-store" doc:"Always no-store: the answer holds a secret."`
	Body         CreatedAPIToken
}

// APITokenList answers with the API tokens of a user.
type APITokenList struct {
	Items []httpapi.APIToken `json:"items" doc:"The tokens, the newest first. Revoked ones are gone."`
}

// TokenPath names an API token.
type TokenPath struct {
	Token string `path:"token" example:"4f2k9d0a7b1c8e3h" doc:"Id of the token."`
}

func (h *Handlers) registerTokens(api huma.API) {
	const own, others = httpapi.Prefix + "/tokens", httpapi.Prefix + "/users/{user}/tokens"
	const created = " The answer holds the secret, once. A token permits what both it and its owner's grants permit, at each request anew."
	huma.Register(api, huma.Operation{
		OperationID: "create-token", Method: http.MethodPost, Path: own, Tags: []string{"access"},
		Summary:       "Make an API token of one's own",
		Description:   "A token that is made with a token permits no more, and lasts no longer, than that one." + created,
		DefaultStatus: http.StatusCreated, Errors: []int{http.StatusConflict}, Extensions: httpapi.Needs(auth.Self),
	}, func(ctx context.Context, in *struct{ Body CreateAPIToken }) (*APITokenCreated, error) {
		return h.createToken(ctx, httpapi.RequestOf(ctx).Principal.User, in.Body)
	})
	huma.Register(api, huma.Operation{
		OperationID: "list-tokens", Method: http.MethodGet, Path: own, Tags: []string{"access"},
		Summary: "List one's own API tokens", Description: "Without their secrets.", Extensions: httpapi.Needs(auth.Self),
	}, func(ctx context.Context, _ *struct{}) (*struct{ Body APITokenList }, error) {
		return h.listTokens(ctx, httpapi.RequestOf(ctx).Principal.User)
	})
	huma.Register(api, huma.Operation{
		OperationID: "revoke-token", Method: http.MethodDelete, Path: own + "/{token}", Tags: []string{"access"},
		Summary: "Revoke an API token of one's own", Description: "It opens nothing any more, from the next request on.", Extensions: httpapi.Needs(auth.Self),
	}, func(ctx context.Context, in *TokenPath) (*Written, error) {
		return h.revokeToken(ctx, httpapi.RequestOf(ctx).Principal.User, in.Token)
	})
	huma.Register(api, huma.Operation{
		OperationID: "create-user-token", Method: http.MethodPost, Path: others, Tags: []string{"access"},
		Summary: "Make an API token of a user", Description: "For programs that are users of their own." + created,
		DefaultStatus: http.StatusCreated, Errors: []int{http.StatusConflict}, Extensions: httpapi.Needs(auth.ManageAccess),
	}, func(ctx context.Context, in *struct {
		UserPath
		Body CreateAPIToken
	},
	) (*APITokenCreated, error) {
		id, err := in.id()
		if err != nil {
			return nil, err
		}
		return h.createToken(ctx, id, in.Body)
	})
	huma.Register(api, huma.Operation{
		OperationID: "list-user-tokens", Method: http.MethodGet, Path: others, Tags: []string{"access"},
		Summary: "List the API tokens of a user", Description: "Without their secrets.", Extensions: httpapi.Needs(auth.ReadAccess),
	}, func(ctx context.Context, in *UserPath) (*struct{ Body APITokenList }, error) {
		id, err := in.id()
		if err != nil {
			return nil, err
		}
		return h.listTokens(ctx, id)
	})
	huma.Register(api, huma.Operation{
		OperationID: "revoke-user-token", Method: http.MethodDelete, Path: others + "/{token}", Tags: []string{"access"},
		Summary: "Revoke an API token of a user", Description: "It opens nothing any more, from the next request on.", Extensions: httpapi.Needs(auth.ManageAccess),
	}, func(ctx context.Context, in *struct {
		UserPath
		TokenPath
	},
	) (*Written, error) {
		id, err := in.id()
		if err != nil {
			return nil, err
		}
		return h.revokeToken(ctx, id, in.Token)
	})
}

func (h *Handlers) createToken(ctx context.Context, user events.UserID, wish CreateAPIToken) (*APITokenCreated, error) {
	r := httpapi.RequestOf(ctx)
	id, token := auth.NewAPIToken()
	c := commands.IssueAPIToken{
		User: user, Token: id, Role: events.Role(wish.Role), Selector: wish.Selector, Expires: r.Time.Add(time.Duration(wish.TTL) * time.Second),
	}
	if wish.TTL == 0 {
		c.Expires = r.Time.Add(defaultTokenLife)
		if r.Principal.Token != "" && r.Principal.Expires.Before(c.Expires) {
			c.Expires = r.Principal.Expires
		}
	}
	if err := checkPerson(auth.Person{Login: "x", Name: wish.Name}); err != nil {
		return nil, err
	}
	if err := h.withinCaller(ctx, c); err != nil {
		return nil, mapError(ctx, err)
	}
	// Try it before the secret exists, so that a refusal leaves nothing behind.
	access, err := h.cfg.Commands.Access(ctx)
	if err != nil {
		return nil, mapError(ctx, err)
	}
	state, err := h.cfg.Commands.User(ctx, user)
	if err == nil {
		_, err = commands.Decide(c, commands.States{Access: access, User: state}, r.Time)
	}
	if err != nil {
		return nil, mapError(ctx, err)
	}
	ctx, cancel := httpapi.Unconditional(ctx, writeTimeout)
	defer cancel()
	// The secret comes first: a token in the log always has one. A secret without
	// a token, after a crash in between, opens nothing.
	if err := h.cfg.People.AddToken(ctx, user, wish.Name, token, c.Expires); err != nil {
		return nil, mapError(ctx, err)
	}
	res, err := h.do(ctx, c)
	if commands.KindOf(err) != "" || errors.Is(err, events.ErrNoSpace) { // nothing was written
		return nil, mapError(ctx, errors.Join(err, h.cfg.People.DeleteToken(ctx, id)))
	}
	if err != nil {
		return nil, mapError(ctx, err)
	}
	sel, err := labels.Parse(c.Selector) // it was parsed before
	if err != nil {
		return nil, mapError(ctx, err)
	}
	t := commands.APIToken{Role: c.Role, Selector: sel.String(), Issued: r.Time, Expires: c.Expires}
	return &APITokenCreated{
		Written: Written{Position: res.Position}, CacheControl: secretAnswer,
		Body: CreatedAPIToken{APIToken: showToken(id, t, wish.Name, auth.Use{}, r.Time), Token: token},
	}, nil
}

// withinCaller refuses a token that permits more, or lasts longer, than the one
// that asks for it: who finds a weak token must not make a strong one of it.
func (h *Handlers) withinCaller(ctx context.Context, c commands.IssueAPIToken) error {
	p := httpapi.RequestOf(ctx).Principal
	if p.Token == "" {
		return nil
	}
	t, ok, err := h.cfg.Commands.APIToken(ctx, p.User, p.Token)
	if err != nil {
		return err
	}
	sel, err := labels.Parse(c.Selector)
	if err != nil {
		return nil //nolint:nilerr // the decision says what is wrong with it
	}
	own := commands.Standing{Grants: []commands.RoleGrant{{Role: t.Bound(), Selector: t.Selector}}}
	switch {
	case !slices.Contains(auth.Roles(), auth.Role(c.Bound())):
		return nil // likewise
	case !ok || !own.Covers(c.Bound(), sel):
		return httpapi.Invalid("body.role", fmt.Sprintf("is more than the token permits that this request came with (%s for %s): sign in, or ask for less",
			t.Bound(), cmp.Or(t.Selector, "everything")))
	case c.Expires.After(t.Expires):
		return httpapi.Invalid("body.ttl", fmt.Sprintf("is longer than the token lasts that this request came with (until %s): sign in, or ask for less",
			t.Expires.Format(time.RFC3339)))
	}
	return nil
}

func (h *Handlers) listTokens(ctx context.Context, user events.UserID) (*struct{ Body APITokenList }, error) {
	if _, err := h.standing(ctx, user, 0); err != nil {
		return nil, mapError(ctx, err)
	}
	state, err := h.cfg.Commands.User(ctx, user)
	if err != nil {
		return nil, mapError(ctx, err)
	}
	out := &struct{ Body APITokenList }{APITokenList{Items: []httpapi.APIToken{}}}
	for id, t := range state.Tokens {
		kept, used, err := h.cfg.People.Token(ctx, id)
		if err != nil && !errors.Is(err, auth.ErrUnknown) {
			return nil, mapError(ctx, err)
		}
		out.Body.Items = append(out.Body.Items, showToken(id, t, kept.Name, used, httpapi.RequestOf(ctx).Time))
	}
	slices.SortFunc(out.Body.Items, func(a, b httpapi.APIToken) int {
		return cmp.Or(b.IssuedAt.Compare(a.IssuedAt), cmp.Compare(a.ID, b.ID))
	})
	return out, nil
}

func (h *Handlers) revokeToken(ctx context.Context, user events.UserID, token string) (*Written, error) {
	id := events.APITokenID(token)
	ctx, cancel := httpapi.Unconditional(ctx, writeTimeout)
	defer cancel()
	res, err := h.do(ctx, commands.RevokeAPIToken{User: user, Token: id})
	if err != nil {
		return nil, mapError(ctx, err)
	}
	if err := h.cfg.People.DeleteToken(ctx, id); err != nil {
		return nil, mapError(ctx, fmt.Errorf("destroy an API token: %w", err))
	}
	return &Written{Position: res.Position}, nil
}

func showToken(id events.APITokenID, t commands.APIToken, name string, used auth.Use, now time.Time) httpapi.APIToken {
	out := httpapi.APIToken{
		ID: string(id), Name: name, Role: string(t.Role), Selector: t.Selector, Expires: t.Expires, State: "active",
		IssuedAt: t.Issued, UsedAt: used.At, UsedFrom: used.Source, Networks: append([]string{}, t.Networks...),
	}
	if !now.Before(t.Expires) {
		out.State = "expired"
	}
	return out
}
