package queryhttp

import (
	"context"
	"errors"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"pallas/events"
	"pallas/internal/auth"
	"pallas/internal/httpapi"
	"pallas/projections"
)

func (h *Handlers) registerJoinTokens(api huma.API) {
	huma.Register(api, huma.Operation{
		OperationID: "list-join-tokens", Method: http.MethodGet, Path: httpapi.Prefix + "/join-tokens", Tags: []string{"join-tokens"},
		Extensions: httpapi.Needs(auth.ManageJoining),
		Summary:    "List join tokens", Description: "Newest first, without their secrets.",
	}, h.listJoinTokens)
	huma.Register(api, huma.Operation{
		OperationID: "get-join-token", Method: http.MethodGet, Path: httpapi.Prefix + "/join-tokens/{token}", Tags: []string{"join-tokens"},
		Extensions: httpapi.Needs(auth.ManageJoining),
		Summary:    "Get a join token", Description: "Without its secret.",
	}, h.getJoinToken)
}

func (h *Handlers) listJoinTokens(ctx context.Context, in *struct {
	Reading
	Window
	Active bool `query:"active" example:"true" doc:"true leaves out those that no device can register with any more."`
},
) (*List[httpapi.JoinToken], error) {
	position, err := h.wait(ctx, in.Reading)
	if err != nil {
		return nil, err
	}
	now := httpapi.RequestOf(ctx).Time
	f := projections.JoinTokenFilter{Scope: scope(ctx), Window: in.of()}
	if in.Active {
		f.UsableAt = now
	}
	p, err := h.cfg.DB.JoinTokens(ctx, f)
	return list(ctx, p, err, position, func(t projections.JoinToken) httpapi.JoinToken { return joinToken(ctx, t) })
}

func (h *Handlers) getJoinToken(ctx context.Context, in *struct {
	Reading
	Conditional
	Token string `path:"token" example:"019e1b7a-5a40-7c35-9d3c-2f0a1b2c3d4e" doc:"Join token id."`
},
) (*One[httpapi.JoinToken], error) {
	id, err := events.ParseUUID("join token id", in.Token)
	if err != nil {
		return nil, httpapi.NewProblem(httpapi.KindNotFound, err.Error(), httpapi.FieldError{Field: "path.token", Message: err.Error()})
	}
	position, err := h.wait(ctx, in.Reading)
	if err != nil {
		return nil, err
	}
	t, err := h.cfg.DB.JoinToken(ctx, scope(ctx), events.TokenID(id))
	switch {
	case errors.Is(err, projections.ErrNotFound):
		return nil, httpapi.NotFound("join token", id)
	case err != nil:
		return nil, mapError(ctx, err)
	}
	return one(position, t.Revision, in.Conditional, joinToken(ctx, t)), nil
}

func joinToken(ctx context.Context, t projections.JoinToken) httpapi.JoinToken {
	return httpapi.JoinToken{
		ID: string(t.ID), Name: t.Name, MaxUses: t.MaxUses, Uses: t.Used, Approve: httpapi.ApproveOf(t.AutoApprove), Labels: httpapi.LabelsOf(t.Labels), NamePattern: t.NamePattern,
		Device: string(t.Device), Expires: t.Expires, State: httpapi.JoinTokenState(!t.RevokedAt.IsZero(), t.Used, t.MaxUses, t.Expires, httpapi.RequestOf(ctx).Time),
		CreatedBy: string(t.CreatedBy), CreatedAt: t.CreatedAt, RevokedBy: string(t.RevokedBy), RevokedAt: t.RevokedAt, Revision: t.Revision,
	}
}
