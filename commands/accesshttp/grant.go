package accesshttp

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"pallas/commands"
	"pallas/events"
	"pallas/internal/auth"
	"pallas/internal/httpapi"
)

func (h *Handlers) registerGrants(api huma.API) {
	huma.Register(api, huma.Operation{
		OperationID: "grant-role", Method: http.MethodPost, Path: httpapi.Prefix + "/users/{user}/grants", Tags: []string{"access"},
		Summary:     "Give a user a role",
		Description: "For everything, or for the devices that a label selector picks. The same role with the same selector is given once: a repeat changes nothing.",
		Errors:      []int{http.StatusConflict, http.StatusPreconditionFailed}, Extensions: httpapi.Needs(auth.ManageAccess),
	}, h.grantRole)
	huma.Register(api, huma.Operation{
		OperationID: "revoke-role", Method: http.MethodDelete, Path: httpapi.Prefix + "/users/{user}/grants/{grant}", Tags: []string{"access"},
		Summary: "Take a grant from a user", Description: "It counts for the next request, of the user's API tokens too.",
		Errors: []int{http.StatusConflict, http.StatusPreconditionFailed}, Extensions: httpapi.Needs(auth.ManageAccess),
	}, h.revokeRole)
	huma.Register(api, huma.Operation{
		OperationID: "list-roles", Method: http.MethodGet, Path: httpapi.Prefix + "/roles", Tags: []string{"access"},
		Summary: "List the roles and what each permits", Description: "From the least to the most; each has the permissions of those before it.", Extensions: httpapi.Needs(auth.Self),
	}, listRoles)
}

func (h *Handlers) grantRole(ctx context.Context, in *struct {
	UserPath
	MatchHeader
	Body GrantWish
},
) (*UserShown, error) {
	id, revision, err := in.target(in.UserPath)
	if err != nil {
		return nil, err
	}
	if _, err := h.do(ctx, commands.GrantRole{User: id, NewGrant: newGrant(in.Body), IfRevision: revision}); err != nil {
		return nil, mapError(ctx, err)
	}
	return h.shown(ctx, id)
}

func (h *Handlers) revokeRole(ctx context.Context, in *struct {
	UserPath
	MatchHeader
	Grant string `path:"grant" example:"019e1b7a-5a40-7c35-9d3c-2f0a1b2c3d4f" doc:"Grant id."`
},
) (*UserShown, error) {
	id, revision, err := in.target(in.UserPath)
	if err != nil {
		return nil, err
	}
	if _, err := h.do(ctx, commands.RevokeRole{User: id, Grant: events.GrantID(in.Grant), IfRevision: revision}); err != nil {
		return nil, mapError(ctx, err)
	}
	return h.shown(ctx, id)
}

// RoleList answers list-roles.
type RoleList struct {
	Items []httpapi.Role `json:"items" doc:"The roles."`
}

func listRoles(context.Context, *struct{}) (*struct{ Body RoleList }, error) {
	out := &struct{ Body RoleList }{}
	for _, r := range auth.Roles() {
		role := httpapi.Role{Role: string(r), Permissions: []httpapi.Permission{}}
		for _, rule := range auth.Rules {
			if rule.Role == r {
				role.Permissions = append(role.Permissions, httpapi.Permission{Permission: string(rule.Permission), Scoped: rule.Scoped, Doc: rule.Doc})
			}
		}
		out.Body.Items = append(out.Body.Items, role)
	}
	return out, nil
}
