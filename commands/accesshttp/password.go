package accesshttp

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"pallas/commands"
	"pallas/events"
	"pallas/internal/auth"
	"pallas/internal/httpapi"
)

// ChangePassword replaces one's own password.
type ChangePassword struct {
	Old string `json:"old" minLength:"1" maxLength:"1024" format:"password" example:"correct horse battery staple" doc:"The present password."`
	New string `json:"new" minLength:"1" maxLength:"1024" format:"password" example:"four words nobody expects" doc:"The new one: at least 12 characters, hard to guess."`
}

// SetPassword sets a password with a one-time link.
type SetPassword struct {
	Link     string `json:"link" minLength:"1" maxLength:"1024" example:"https://manager.example.com/setup#plr_…" doc:"The link, or what follows its #."`
	Password string `json:"password" minLength:"1" maxLength:"1024" format:"password" example:"four words nobody expects" doc:"The new password: at least 12 characters, hard to guess."`
}

// PasswordSet answers set-password.
type PasswordSet struct {
	User  string `json:"user" format:"uuid" example:"019e1b7a-5a40-7c35-9d3c-2f0a1b2c3d4e" doc:"Whose password it is."`
	Login string `json:"login" example:"ann" doc:"What to sign in with."`
}

// PasswordLink is a one-time link.
type PasswordLink struct {
	Link    string    `json:"link" example:"https://manager.example.com/setup#plr_…" doc:"The link, for the user alone. It is shown this once, and works once."`
	Expires time.Time `json:"expires" example:"2026-11-24T09:30:00Z" doc:"When it ends."`
}

// PasswordLinkMade answers reset-user-password.
type PasswordLinkMade struct {
	Written
	CacheControl string `header:"Cache-Control" example:"no-store" doc:"Always no-store: the answer holds a secret."`
	Body         PasswordLink
}

func (h *Handlers) registerPasswords(api huma.API) {
	huma.Register(api, huma.Operation{
		OperationID: "change-password", Method: http.MethodPost, Path: httpapi.Prefix + "/password", Tags: []string{"access"},
		Summary: "Change one's own password", Description: "All other sessions end. API tokens stay.", Errors: []int{http.StatusConflict}, Extensions: httpapi.Needs(auth.Self),
	}, h.changePassword)
	huma.Register(api, huma.Operation{
		OperationID: "set-password", Method: http.MethodPost, Path: httpapi.Prefix + "/password/reset", Tags: []string{"access"}, Security: public(),
		Summary: "Set a password with a one-time link", Description: "The link works once. All sessions of the user end. A password that is refused leaves the link as it is.",
		Errors: []int{http.StatusUnauthorized, http.StatusTooManyRequests},
	}, h.setPassword)
	huma.Register(api, huma.Operation{
		OperationID: "reset-user-password", Method: http.MethodPost, Path: httpapi.Prefix + "/users/{user}/password-reset", Tags: []string{"access"},
		Summary:     "Make a one-time link with which a user sets a password",
		Description: "It is good for 24 hours, and voids one that was made before. The present password stays until the link is used.",
		Errors:      []int{http.StatusConflict}, Extensions: httpapi.Needs(auth.ManageAccess),
	}, func(ctx context.Context, in *UserPath) (*PasswordLinkMade, error) {
		id, err := in.id()
		if err != nil {
			return nil, err
		}
		r := httpapi.RequestOf(ctx)
		l, res, err := h.Link(ctx, id, commands.Meta{Actor: r.Principal.Actor, Source: r.Source, Traceparent: r.Traceparent, Time: r.Time})
		if err != nil {
			return nil, mapError(ctx, err)
		}
		return &PasswordLinkMade{Written: Written{Position: res.Position}, CacheControl: secretAnswer, Body: l}, nil
	})
}

// Link makes a one-time link with which a user sets a password.
func (h *Handlers) Link(ctx context.Context, user events.UserID, m commands.Meta) (PasswordLink, commands.Result, error) {
	ctx, cancel := httpapi.Unconditional(ctx, writeTimeout)
	defer cancel()
	if m.Time.IsZero() {
		m.Time = h.cfg.Now()
	}
	// The log comes first: it says whether there is such a user.
	res, err := h.cfg.Commands.Do(ctx, commands.IssuePasswordReset{User: user, Expires: m.Time.Add(auth.LinkLife)}, m)
	if err != nil {
		return PasswordLink{}, res, err
	}
	secret, expires, err := h.cfg.People.NewLink(ctx, user)
	return PasswordLink{Link: LinkURL(h.cfg.URL, secret), Expires: expires}, res, err
}

// LinkURL is a one-time link as people get it. The secret is in the fragment,
// which browsers send to nobody: it is in no request and in no log.
func LinkURL(manager, secret string) string { return manager + "/setup#" + secret }

// passwordProblem is the problem of a new password that is not good enough.
func passwordProblem(field string, err error) error {
	p := httpapi.Invalid(field, err.Error())
	return p
}

func (h *Handlers) changePassword(ctx context.Context, in *struct{ Body ChangePassword }) (*struct{}, error) {
	r := httpapi.RequestOf(ctx)
	ctx, cancel := httpapi.Unconditional(ctx, writeTimeout)
	defer cancel()
	person, err := h.cfg.People.Person(ctx, r.Principal.User)
	if err != nil {
		return nil, mapError(ctx, err)
	}
	if person.Password == "" {
		return nil, httpapi.NewProblem(httpapi.KindConflict, "there is no password to change: ask an administrator for a one-time link")
	}
	if err := auth.CheckPassword(in.Body.New, person); err != nil {
		return nil, passwordProblem("body.new", err)
	}
	end, wait := h.guesses.begin(fold(person.Login), r.Source, h.cfg.Now())
	if wait > 0 {
		return nil, tooMany("wrong passwords were tried too often; nothing was checked: wait and try again", wait)
	}
	outcome := undecided
	defer func() { end(outcome) }()
	ok, err := h.passwords.Verify(ctx, in.Body.Old, person.Password)
	if err != nil {
		return nil, mapError(ctx, err)
	}
	if !ok {
		outcome = wrong
		if _, err := h.do(ctx, commands.RecordSignInFailure{User: person.ID, Method: events.MethodPassword, Reason: "wrong old password"}); err != nil {
			h.cfg.Log.ErrorContext(ctx, "failure to sign in not recorded", slog.Any("error", err))
		}
		return nil, httpapi.Invalid("body.old", "is not the present password: nothing was changed")
	}
	outcome = right
	if in.Body.New == in.Body.Old {
		return nil, httpapi.Invalid("body.new", "is the present password: choose another one")
	}
	if err := h.replacePassword(ctx, person, in.Body.New, events.PasswordOwn, r.Principal.Session); err != nil {
		return nil, mapError(ctx, err)
	}
	return nil, nil
}

func (h *Handlers) setPassword(ctx context.Context, in *struct{ Body SetPassword }) (*struct{ Body PasswordSet }, error) {
	r := httpapi.RequestOf(ctx)
	end, wait := h.guesses.begin("", r.Source, h.cfg.Now())
	if wait > 0 {
		return nil, tooMany("links that are not good were tried too often; nothing was checked: wait and try again", wait)
	}
	outcome := undecided
	defer func() { end(outcome) }()
	ctx, cancel := httpapi.Unconditional(ctx, writeTimeout)
	defer cancel()
	secret := in.Body.Link
	if _, fragment, ok := strings.Cut(secret, "#"); ok {
		secret = fragment
	}
	secret = strings.TrimSpace(secret)
	user, err := h.cfg.People.CheckLink(ctx, secret)
	if err == nil {
		_, err = h.active(ctx, user)
	}
	var person auth.Person
	if err == nil {
		person, err = h.cfg.People.Person(ctx, user)
	}
	switch {
	case errors.Is(err, auth.ErrDenied), errors.Is(err, auth.ErrUnknown):
		outcome = wrong
		return nil, badLink()
	case err != nil:
		return nil, mapError(ctx, err)
	}
	if err := auth.CheckPassword(in.Body.Password, person); err != nil {
		return nil, passwordProblem("body.password", err)
	}
	how := events.PasswordReset
	if person.Password == "" {
		how = events.PasswordFirst
	}
	hash, err := h.passwords.Hash(ctx, in.Body.Password)
	if err != nil {
		return nil, mapError(ctx, err)
	}
	// Of two who use it at the same time one gets through.
	if _, err := h.cfg.People.UseLink(ctx, secret); err != nil {
		if errors.Is(err, auth.ErrDenied) {
			outcome = wrong
			return nil, badLink()
		}
		return nil, mapError(ctx, err)
	}
	outcome = right
	if err := h.store(ctx, person.ID, hash, how, ""); err != nil {
		return nil, mapError(ctx, err)
	}
	return &struct{ Body PasswordSet }{PasswordSet{User: string(person.ID), Login: person.Login}}, nil
}

func badLink() error {
	return httpapi.NewProblem(httpapi.KindUnauthorized, "the link is wrong, was used, or has expired: ask for a new one")
}

// replacePassword gives a person a new password. All sessions but one end.
func (h *Handlers) replacePassword(ctx context.Context, p auth.Person, password string, how events.PasswordChange, keep string) error {
	hash, err := h.passwords.Hash(ctx, password)
	if err != nil {
		return err
	}
	return h.store(ctx, p.ID, hash, how, keep)
}

func (h *Handlers) store(ctx context.Context, user events.UserID, hash string, how events.PasswordChange, keep string) error {
	if _, err := h.cfg.People.Change(ctx, user, func(p *auth.Person) error { p.Password = hash; return nil }); err != nil {
		return err
	}
	// Who made it necessary may have the old password, a link or a session.
	if err := h.cfg.People.DeleteLink(ctx, user); err != nil {
		return err
	}
	if err := h.endSessions(ctx, user, keep, "the password was changed"); err != nil {
		return err
	}
	_, err := h.as(ctx, user, commands.RecordPassword{User: user, How: how})
	return err
}
