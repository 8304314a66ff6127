package accesshttp

import (
	"context"
	"errors"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"pallas/internal/auth"
	"pallas/internal/httpapi"
)

func (h *Handlers) registerWhoami(api huma.API) {
	huma.Register(api, huma.Operation{
		OperationID: "whoami", Method: http.MethodGet, Path: httpapi.Prefix + "/whoami", Tags: []string{"access"},
		Summary: "Say whom the request acts for, and what that permits", Extensions: httpapi.Needs(auth.Self),
	}, h.whoami)
}

func (h *Handlers) whoami(ctx context.Context, _ *struct{}) (*struct{ Body httpapi.Whoami }, error) {
	r := httpapi.RequestOf(ctx)
	p := r.Principal
	standing, _, err := h.cfg.Commands.Standing(ctx, p.User)
	if err != nil {
		return nil, mapError(ctx, err)
	}
	person, err := h.cfg.People.Person(ctx, p.User)
	if err != nil && !errors.Is(err, auth.ErrUnknown) {
		return nil, mapError(ctx, err)
	}
	who := httpapi.Whoami{
		Actor: string(p.Actor), User: string(p.User), Login: person.Login, Name: person.Name, Grants: showGrants(standing.Grants),
		Method: "session", Session: p.Session, Expires: p.Expires,
	}
	if p.Token != "" {
		t, _, err := h.cfg.Commands.APIToken(ctx, p.User, p.Token)
		if err != nil {
			return nil, mapError(ctx, err)
		}
		kept, used, err := h.cfg.People.Token(ctx, p.Token)
		if err != nil && !errors.Is(err, auth.ErrUnknown) {
			return nil, mapError(ctx, err)
		}
		shown := showToken(p.Token, t, kept.Name, used, r.Time)
		who.Method, who.Token = "token", &shown
	}
	return &struct{ Body httpapi.Whoami }{who}, nil
}
