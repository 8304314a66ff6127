package accesshttp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/mail"
	"slices"
	"unicode"

	"github.com/danielgtaylor/huma/v2"

	"pallas/commands"
	"pallas/events"
	"pallas/internal/auth"
	"pallas/internal/httpapi"
)

// GrantWish is a role to give.
type GrantWish struct {
	Role     string `json:"role" maxLength:"64" example:"operator" doc:"viewer, operator or admin."`
	Selector string `json:"selector,omitempty" maxLength:"4096" example:"site=fra" doc:"Label selector of the devices that the role is for. Absent or empty: it is for everything."`
}

// CreateUser says who a new user is and may do.
type CreateUser struct {
	Login  string      `json:"login" minLength:"1" maxLength:"128" example:"ann" doc:"What the user signs in with: letters, digits and signs without white space. Case does not matter."`
	Name   string      `json:"name,omitempty" maxLength:"253" example:"Ann Example" doc:"Name, for people."`
	Email  string      `json:"email,omitempty" maxLength:"253" example:"ann@example.com" doc:"E-mail address. The manager sends nothing to it."`
	Grants []GrantWish `json:"grants,omitempty" maxItems:"32" doc:"The roles that the user has. Without any the user can sign in and do nothing."`
}

// UpdateUser says what to change of who a user is.
type UpdateUser struct {
	Login *string `json:"login,omitempty" minLength:"1" maxLength:"128" example:"ann" doc:"New login."`
	Name  *string `json:"name,omitempty" maxLength:"253" example:"Ann Example" doc:"New name; empty for none."`
	Email *string `json:"email,omitempty" maxLength:"253" example:"ann@example.com" doc:"New e-mail address; empty for none."`

	null string // a field that is null, which encoding/json cannot tell from absent
}

// UnmarshalJSON reads the request.
func (u *UpdateUser) UnmarshalJSON(b []byte) error {
	type plain UpdateUser
	if err := json.Unmarshal(b, (*plain)(u)); err != nil {
		return err
	}
	var raw map[string]json.RawMessage
	err := json.Unmarshal(b, &raw)
	for _, k := range slices.Sorted(maps.Keys(raw)) {
		if string(raw[k]) == "null" {
			u.null = k
		}
	}
	return err
}

// DisableUser says why a user is disabled.
type DisableUser struct {
	Reason string `json:"reason,omitempty" maxLength:"1024" example:"left the company" doc:"Why, for the history, which forgets nothing: no names."`
}

// UserShown answers with a user.
type UserShown struct {
	Status   int
	Position uint64 `header:"Pallas-Position" example:"1843" doc:"Position in the event log that the answer shows at least."`
	ETag     string `header:"ETag" example:"\"1841.3f9k2\"" doc:"Changes whenever the answer does; for If-Match of a following change."`
	Body     httpapi.User
}

// UserCreated answers create-user.
type UserCreated struct {
	Written
	Location string `header:"Location" example:"/api/v1/users/019e1b7a-5a40-7c35-9d3c-2f0a1b2c3d4e" doc:"The user."`
	ETag     string `header:"ETag" example:"\"1841.3f9k2\"" doc:"For If-Match of a following change."`
	Body     httpapi.User
}

// UserPage is one piece of the list of users.
type UserPage struct {
	Items []httpapi.User `json:"items" doc:"The users, in the order in which they were made."`
	Next  string         `json:"next,omitempty" example:"019e1b7a-5a40-7c35-9d3c-2f0a1b2c3d4e" doc:"Send it as cursor for the next piece. Absent at the end of the list."`
}

func (h *Handlers) registerUsers(api huma.API) {
	huma.Register(api, huma.Operation{
		OperationID: "create-user", Method: http.MethodPost, Path: httpapi.Prefix + "/users", Tags: []string{"access"},
		Summary:       "Make a user",
		Description:   "The user has no password yet: reset-user-password makes the one-time link to set one. A repeat answers 409: the login is taken.",
		DefaultStatus: http.StatusCreated, Errors: []int{http.StatusConflict}, Extensions: httpapi.Needs(auth.ManageAccess),
	}, h.createUser)
	huma.Register(api, huma.Operation{
		OperationID: "list-users", Method: http.MethodGet, Path: httpapi.Prefix + "/users", Tags: []string{"access"},
		Summary: "List users", Description: "In the order in which they were made.", Extensions: httpapi.Needs(auth.ReadAccess),
	}, h.listUsers)
	huma.Register(api, huma.Operation{
		OperationID: "get-user", Method: http.MethodGet, Path: httpapi.Prefix + "/users/{user}", Tags: []string{"access"},
		Summary: "Get a user", Extensions: httpapi.Needs(auth.ReadAccess),
	}, h.getUser)
	huma.Register(api, huma.Operation{
		OperationID: "update-user", Method: http.MethodPatch, Path: httpapi.Prefix + "/users/{user}", Tags: []string{"access"},
		Summary: "Change login, name or e-mail address of a user", Description: "Absent fields stay as they are. What was there before is destroyed.",
		Errors: []int{http.StatusConflict, http.StatusPreconditionFailed}, Extensions: httpapi.Needs(auth.ManageAccess),
	}, h.updateUser)
	huma.Register(api, huma.Operation{
		OperationID: "disable-user", Method: http.MethodPost, Path: httpapi.Prefix + "/users/{user}/disable", Tags: []string{"access"},
		Summary:     "Disable a user",
		Description: "Sessions end and API tokens stop working at once. Enabling the user brings the tokens back, not the sessions. Disabling a disabled user changes nothing.",
		Errors:      []int{http.StatusConflict, http.StatusPreconditionFailed}, Extensions: httpapi.Needs(auth.ManageAccess),
	}, h.disableUser)
	api.OpenAPI().Paths[httpapi.Prefix+"/users/{user}/disable"].Post.RequestBody.Required = false
	huma.Register(api, huma.Operation{
		OperationID: "enable-user", Method: http.MethodPost, Path: httpapi.Prefix + "/users/{user}/enable", Tags: []string{"access"},
		Summary: "Enable a disabled user", Description: "Enabling a user who is not disabled changes nothing.",
		Errors: []int{http.StatusPreconditionFailed}, Extensions: httpapi.Needs(auth.ManageAccess),
	}, h.enableUser)
	huma.Register(api, huma.Operation{
		OperationID: "delete-user", Method: http.MethodDelete, Path: httpapi.Prefix + "/users/{user}", Tags: []string{"access"},
		Summary:     "Delete a user",
		Description: "Login, name, e-mail address, password, tokens and sessions are destroyed. The event log keeps the user's id, which nobody can tell whose it was.",
		Errors:      []int{http.StatusConflict, http.StatusPreconditionFailed}, Extensions: httpapi.Needs(auth.ManageAccess),
	}, h.deleteUser)
}

func (h *Handlers) createUser(ctx context.Context, in *struct{ Body CreateUser }) (*UserCreated, error) {
	person := auth.Person{ID: events.UserID(events.NewID()), Login: in.Body.Login, Name: in.Body.Name, Email: in.Body.Email}
	if err := checkPerson(person); err != nil {
		return nil, err
	}
	c := commands.CreateUser{User: person.ID}
	for _, g := range in.Body.Grants {
		c.Grants = append(c.Grants, newGrant(g))
	}
	// Try it before the person is stored, so that a refusal leaves nothing behind.
	access, err := h.cfg.Commands.Access(ctx)
	if err == nil {
		_, err = commands.Decide(c, commands.States{Access: access}, httpapi.RequestOf(ctx).Time)
	}
	if err != nil {
		return nil, mapError(ctx, err)
	}
	ctx, cancel := httpapi.Unconditional(ctx, writeTimeout)
	defer cancel()
	// The person comes first: a user in the log always has one. A person without a
	// user, after a crash in between, may do nothing and is destroyed.
	if err := h.cfg.People.Add(ctx, person); err != nil {
		return nil, mapError(ctx, err)
	}
	res, err := h.do(ctx, c)
	if commands.KindOf(err) != "" || errors.Is(err, events.ErrNoSpace) { // nothing was written
		return nil, mapError(ctx, errors.Join(err, h.cfg.People.Forget(ctx, person.ID, nil)))
	}
	if err != nil {
		return nil, mapError(ctx, err)
	}
	u, err := h.user(ctx, person.ID)
	if err != nil {
		return nil, mapError(ctx, err)
	}
	return &UserCreated{
		Written: Written{Position: res.Position}, Location: httpapi.Prefix + "/users/" + u.ID, ETag: httpapi.ETag(u.Revision, u), Body: u,
	}, nil
}

func (h *Handlers) listUsers(ctx context.Context, in *struct {
	Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"100" example:"100" doc:"How many users to answer at most."`
	Cursor string `query:"cursor" maxLength:"64" example:"019e1b7a-5a40-7c35-9d3c-2f0a1b2c3d4e" doc:"next of the piece before."`
	Login  string `query:"login" maxLength:"128" example:"ann" doc:"Only the user of this login."`
},
) (*struct {
	Position uint64 `header:"Pallas-Position" example:"1843" doc:"Position in the event log that the answer shows at least."`
	Body     UserPage
}, error,
) {
	if in.Cursor != "" {
		if _, err := events.ParseUUID("cursor", in.Cursor); err != nil {
			return nil, httpapi.Invalid("query.cursor", "want next of an earlier answer")
		}
	}
	access, err := h.cfg.Commands.Access(ctx)
	if err != nil {
		return nil, mapError(ctx, err)
	}
	ids := slices.Sorted(maps.Keys(access.Users)) // ids are in the order of their making
	if in.Login != "" {
		person, err := h.cfg.People.ByLogin(ctx, in.Login)
		if err != nil && !errors.Is(err, auth.ErrUnknown) {
			return nil, mapError(ctx, err)
		}
		ids = slices.DeleteFunc(ids, func(id events.UserID) bool { return id != person.ID })
	}
	page := UserPage{Items: []httpapi.User{}}
	for _, id := range ids {
		if string(id) <= in.Cursor {
			continue
		}
		if len(page.Items) == in.Limit {
			page.Next = page.Items[len(page.Items)-1].ID
			break
		}
		person, err := h.cfg.People.Person(ctx, id)
		if err != nil && !errors.Is(err, auth.ErrUnknown) {
			return nil, mapError(ctx, err)
		}
		page.Items = append(page.Items, showUser(id, person, access.Users[id]))
	}
	return &struct {
		Position uint64 `header:"Pallas-Position" example:"1843" doc:"Position in the event log that the answer shows at least."`
		Body     UserPage
	}{access.Revision, page}, nil
}

func (h *Handlers) getUser(ctx context.Context, in *struct {
	UserPath
	IfNoneMatch string `header:"If-None-Match" maxLength:"256" example:"\"1841.3f9k2\"" doc:"ETag of the caller's copy: 304 when that is still right."`
},
) (*UserShown, error) {
	id, err := in.id()
	if err != nil {
		return nil, err
	}
	out, err := h.shown(ctx, id)
	if err == nil && httpapi.NotModified(in.IfNoneMatch, out.ETag) {
		out.Status = http.StatusNotModified
	}
	return out, err
}

func (h *Handlers) updateUser(ctx context.Context, in *struct {
	UserPath
	MatchHeader
	Body UpdateUser
},
) (*UserShown, error) {
	id, revision, err := in.target(in.UserPath)
	if err != nil {
		return nil, err
	}
	b := in.Body
	switch {
	case b.null != "":
		return nil, httpapi.Invalid("body."+b.null, "expected string")
	case b.Login == nil && b.Name == nil && b.Email == nil:
		return nil, httpapi.Invalid("body", "give login, name or email")
	}
	standing, err := h.standing(ctx, id, revision)
	if err != nil {
		return nil, mapError(ctx, err)
	}
	change := func(p *auth.Person) error {
		for _, f := range []struct {
			to   *string
			from *string
		}{{&p.Login, b.Login}, {&p.Name, b.Name}, {&p.Email, b.Email}} {
			if f.from != nil {
				*f.to = *f.from
			}
		}
		return checkPerson(*p)
	}
	ctx, cancel := httpapi.Unconditional(ctx, writeTimeout)
	defer cancel()
	person, err := h.cfg.People.Change(ctx, id, change)
	if err != nil {
		return nil, mapError(ctx, err)
	}
	u := showUser(id, person, standing)
	return &UserShown{Status: http.StatusOK, Position: standing.Revision, ETag: httpapi.ETag(u.Revision, u), Body: u}, nil
}

func (h *Handlers) disableUser(ctx context.Context, in *struct {
	UserPath
	MatchHeader
	Body DisableUser
},
) (*UserShown, error) {
	id, revision, err := in.target(in.UserPath)
	if err != nil {
		return nil, err
	}
	ctx, cancel := httpapi.Unconditional(ctx, writeTimeout)
	defer cancel()
	if _, err := h.do(ctx, commands.DisableUser{User: id, Reason: in.Body.Reason, IfRevision: revision}); err != nil {
		return nil, mapError(ctx, err)
	}
	// From here on the user may do nothing; without this the sessions would come
	// back with the user.
	if err := h.endSessions(ctx, id, "", "the user was disabled"); err != nil {
		return nil, mapError(ctx, err)
	}
	return h.shown(ctx, id)
}

func (h *Handlers) enableUser(ctx context.Context, in *struct {
	UserPath
	MatchHeader
},
) (*UserShown, error) {
	id, revision, err := in.target(in.UserPath)
	if err != nil {
		return nil, err
	}
	if _, err := h.do(ctx, commands.EnableUser{User: id, IfRevision: revision}); err != nil {
		return nil, mapError(ctx, err)
	}
	return h.shown(ctx, id)
}

func (h *Handlers) deleteUser(ctx context.Context, in *struct {
	UserPath
	MatchHeader
},
) (*Written, error) {
	id, revision, err := in.target(in.UserPath)
	if err != nil {
		return nil, err
	}
	ctx, cancel := httpapi.Unconditional(ctx, writeTimeout)
	defer cancel()
	res, err := h.do(ctx, commands.DeleteUser{User: id, IfRevision: revision})
	if commands.KindOf(err) == commands.KindNotFound {
		// A deletion may have broken off after the log had it.
		if _, perr := h.cfg.People.Person(ctx, id); perr == nil {
			err = nil
		}
	}
	if err != nil {
		return nil, mapError(ctx, err)
	}
	state, err := h.cfg.Commands.User(ctx, id)
	if err != nil {
		return nil, mapError(ctx, err)
	}
	if err := h.cfg.People.Forget(ctx, id, slices.Collect(maps.Keys(state.Tokens))); err != nil {
		return nil, mapError(ctx, fmt.Errorf("forget a person: %w", err))
	}
	return &Written{Position: res.Position}, nil
}

// target parses the user of a path and the revision of an If-Match header.
func (m MatchHeader) target(p UserPath) (events.UserID, uint64, error) {
	id, err := p.id()
	if err != nil {
		return "", 0, err
	}
	revision, err := httpapi.IfMatch(m.IfMatch)
	return id, revision, err
}

// standing returns what the log knows of a user, at a revision if that is not 0.
func (h *Handlers) standing(ctx context.Context, id events.UserID, revision uint64) (commands.Standing, error) {
	access, err := h.cfg.Commands.Access(ctx)
	if err != nil {
		return commands.Standing{}, err
	}
	return access.Ready(id, revision)
}

// user returns a user's representation, by the log and the store of people.
func (h *Handlers) user(ctx context.Context, id events.UserID) (httpapi.User, error) {
	standing, err := h.standing(ctx, id, 0)
	if err != nil {
		return httpapi.User{}, err
	}
	person, err := h.cfg.People.Person(ctx, id)
	if err != nil && !errors.Is(err, auth.ErrUnknown) {
		return httpapi.User{}, err
	}
	return showUser(id, person, standing), nil
}

func (h *Handlers) shown(ctx context.Context, id events.UserID) (*UserShown, error) {
	u, err := h.user(ctx, id)
	if err != nil {
		return nil, mapError(ctx, err)
	}
	return &UserShown{Status: http.StatusOK, Position: u.Revision, ETag: httpapi.ETag(u.Revision, u), Body: u}, nil
}

func showUser(id events.UserID, p auth.Person, s commands.Standing) httpapi.User {
	u := httpapi.User{
		ID: string(id), Login: p.Login, Name: p.Name, Email: p.Email, State: "active", Password: p.Password != "",
		Grants: showGrants(s.Grants), CreatedAt: s.Created, Revision: s.Revision,
	}
	if s.Disabled {
		u.State, u.DisabledAt, u.Reason = "disabled", s.DisabledAt, s.Reason
	}
	return u
}

func showGrants(grants []commands.RoleGrant) []httpapi.Grant {
	out := make([]httpapi.Grant, len(grants))
	for i, g := range grants {
		out[i] = httpapi.Grant{ID: string(g.ID), Role: string(g.Role), Selector: g.Selector, At: g.At, By: string(g.By)}
	}
	return out
}

func newGrant(g GrantWish) commands.NewGrant {
	return commands.NewGrant{Grant: events.GrantID(events.NewID()), Role: events.Role(g.Role), Selector: g.Selector}
}

// checkPerson says what is wrong with who somebody is said to be.
func checkPerson(p auth.Person) error {
	if _, err := auth.FoldLogin(p.Login); err != nil {
		return httpapi.Invalid("body.login", err.Error())
	}
	for _, r := range p.Name {
		if !unicode.IsPrint(r) {
			return httpapi.Invalid("body.name", "contains a character that cannot be printed: remove it")
		}
	}
	if p.Email != "" {
		if a, err := mail.ParseAddress(p.Email); err != nil || a.Address != p.Email {
			return httpapi.Invalid("body.email", "is not an e-mail address such as ann@example.com")
		}
	}
	return nil
}
