package accesshttp

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"pallas/commands"
	"pallas/events"
	"pallas/internal/auth"
	"pallas/internal/httpapi"
)

// SignIn is what a person signs in with.
type SignIn struct {
	Login    string `json:"login" minLength:"1" maxLength:"1024" example:"ann" doc:"The user's login."`
	Password string `json:"password" minLength:"1" maxLength:"1024" format:"password" example:"correct horse battery staple" doc:"The user's password."`
}

// SessionBegun answers create-session.
type SessionBegun struct {
	SetCookie    string `header:"Set-Cookie" example:"__Host-pallas=…; Path=/; HttpOnly; Secure; SameSite=Strict" doc:"The session's cookie."`
	CacheControl string `header:"Cache-Control" example:"no-store" doc:"Always no-store: the answer holds a secret."`
	Body         httpapi.Session
}

// SessionList answers with the sessions of a user.
type SessionList struct {
	Items []httpapi.Session `json:"items" doc:"The sessions, the oldest first."`
}

func (h *Handlers) registerSessions(api huma.API) {
	const path = httpapi.Prefix + "/session"
	huma.Register(api, huma.Operation{
		OperationID: "create-session", Method: http.MethodPost, Path: path, Tags: []string{"access"}, Security: public(),
		Summary: "Sign in",
		Description: "Sets the cookie of a session, for browsers; programs use API tokens. A wrong password, an unknown login and a disabled user get the same answer. " +
			"After a few wrong passwords for a login from an address each further one must wait longer, up to a minute: 429 with Retry-After.",
		Errors: []int{http.StatusUnauthorized, http.StatusTooManyRequests},
	}, h.createSession)
	huma.Register(api, huma.Operation{
		OperationID: "end-session", Method: http.MethodDelete, Path: path, Tags: []string{"access"},
		Summary: "Sign out", Description: "Ends the session that the request comes with and removes its cookie. With an API token there is nothing to end, and nothing happens.", Extensions: httpapi.Needs(auth.Self),
	}, h.endSession)
	huma.Register(api, huma.Operation{
		OperationID: "list-sessions", Method: http.MethodGet, Path: httpapi.Prefix + "/sessions", Tags: []string{"access"},
		Summary: "List one's own sessions", Extensions: httpapi.Needs(auth.Self),
	}, func(ctx context.Context, _ *struct{}) (*struct{ Body SessionList }, error) {
		return h.listSessions(ctx, httpapi.RequestOf(ctx).Principal.User)
	})
	huma.Register(api, huma.Operation{
		OperationID: "end-own-session", Method: http.MethodDelete, Path: httpapi.Prefix + "/sessions/{session}", Tags: []string{"access"},
		Summary: "End a session of one's own", Extensions: httpapi.Needs(auth.Self),
	}, h.endOwnSession)
	huma.Register(api, huma.Operation{
		OperationID: "list-user-sessions", Method: http.MethodGet, Path: httpapi.Prefix + "/users/{user}/sessions", Tags: []string{"access"},
		Summary: "List the sessions of a user", Extensions: httpapi.Needs(auth.ReadAccess),
	}, func(ctx context.Context, in *UserPath) (*struct{ Body SessionList }, error) {
		id, err := in.id()
		if err != nil {
			return nil, err
		}
		return h.listSessions(ctx, id)
	})
	huma.Register(api, huma.Operation{
		OperationID: "end-user-sessions", Method: http.MethodDelete, Path: httpapi.Prefix + "/users/{user}/sessions", Tags: []string{"access"},
		Summary: "End all sessions of a user", Description: "The user has to sign in again. API tokens stay.", Extensions: httpapi.Needs(auth.ManageAccess),
	}, func(ctx context.Context, in *UserPath) (*struct{}, error) {
		id, err := in.id()
		if err != nil {
			return nil, err
		}
		if _, err := h.standing(ctx, id, 0); err != nil {
			return nil, mapError(ctx, err)
		}
		return nil, mapError(ctx, h.endSessions(ctx, id, "", "ended by an administrator"))
	})
}

// refused is the one answer to all who cannot sign in.
func refused() error {
	return httpapi.NewProblem(httpapi.KindUnauthorized, "login and password do not belong together, or the user is disabled")
}

func (h *Handlers) createSession(ctx context.Context, in *struct{ Body SignIn }) (*SessionBegun, error) {
	r := httpapi.RequestOf(ctx)
	end, wait := h.guesses.begin(fold(in.Body.Login), r.Source, h.cfg.Now())
	if wait > 0 {
		return nil, tooMany("wrong passwords were tried too often; nothing was checked: wait and try again", wait)
	}
	outcome := undecided
	defer func() { end(outcome) }()
	ctx, cancel := httpapi.Unconditional(ctx, writeTimeout)
	defer cancel()
	person, err := h.cfg.People.ByLogin(ctx, in.Body.Login)
	if err != nil && !errors.Is(err, auth.ErrUnknown) {
		return nil, mapError(ctx, err)
	}
	// An unknown login costs the same work.
	ok, err := h.passwords.Verify(ctx, in.Body.Password, person.Password)
	if err != nil {
		return nil, mapError(ctx, err)
	}
	reason := ""
	switch _, err := h.active(ctx, person.ID); {
	case person.ID == "":
		person.ID, reason = events.Nobody, "unknown login"
	case err != nil && !errors.Is(err, auth.ErrDenied):
		return nil, mapError(ctx, err)
	case !ok:
		reason = "wrong password"
	case err != nil:
		reason = "disabled"
	}
	if reason != "" {
		outcome = wrong
		if _, err := h.do(ctx, commands.RecordSignInFailure{User: person.ID, Method: events.MethodPassword, Reason: reason}); err != nil {
			h.cfg.Log.ErrorContext(ctx, "failure to sign in not recorded", slog.Any("error", err))
		}
		return nil, refused()
	}
	outcome = right
	return h.begin(ctx, person.ID, events.MethodPassword)
}

// begin begins a session of a user who has shown who they are.
func (h *Handlers) begin(ctx context.Context, user events.UserID, m events.SignInMethod) (*SessionBegun, error) {
	if _, err := h.as(ctx, user, commands.RecordSignIn{User: user, Method: m}); err != nil {
		return nil, mapError(ctx, err)
	}
	s, cookie, err := h.cfg.People.NewSession(ctx, user, m, h.cfg.SessionLife, httpapi.RequestOf(ctx).Source)
	if err != nil {
		return nil, mapError(ctx, err)
	}
	c := sessionCookie(cookie)
	c.Expires = s.Expires
	return &SessionBegun{SetCookie: c.String(), CacheControl: secretAnswer, Body: showSession(s, s.ID)}, nil
}

// sessionCookie is the cookie of a session, without its end. Strict: no other
// site can have a browser send it.
func sessionCookie(value string) http.Cookie {
	return http.Cookie{Name: httpapi.SessionCookie, Value: value, Path: "/", HttpOnly: true, Secure: true, SameSite: http.SameSiteStrictMode}
}

// SessionOver answers end-session.
type SessionOver struct {
	SetCookie string `header:"Set-Cookie" example:"__Host-pallas=; Path=/; Max-Age=0; HttpOnly; Secure; SameSite=Strict" doc:"Removes the session's cookie."`
}

func (h *Handlers) endSession(ctx context.Context, _ *struct{}) (*SessionOver, error) {
	p := httpapi.RequestOf(ctx).Principal
	if p.Session != "" {
		ctx, cancel := httpapi.Unconditional(ctx, writeTimeout)
		defer cancel()
		if err := h.cfg.People.EndSession(ctx, p.User, p.Session); err != nil {
			return nil, mapError(ctx, err)
		}
		if _, err := h.do(ctx, commands.RecordSessionsEnded{User: p.User, Count: 1, Reason: "signed out"}); err != nil {
			return nil, mapError(ctx, err)
		}
	}
	c := sessionCookie("")
	c.MaxAge = -1
	return &SessionOver{SetCookie: c.String()}, nil
}

func (h *Handlers) listSessions(ctx context.Context, user events.UserID) (*struct{ Body SessionList }, error) {
	if _, err := h.standing(ctx, user, 0); err != nil {
		return nil, mapError(ctx, err)
	}
	list, err := h.cfg.People.Sessions(ctx, user)
	if err != nil {
		return nil, mapError(ctx, err)
	}
	r := httpapi.RequestOf(ctx)
	out := &struct{ Body SessionList }{SessionList{Items: []httpapi.Session{}}}
	for _, s := range list {
		if r.Time.Before(s.Expires) && r.Time.Sub(s.Seen.At) < h.cfg.SessionIdle+time.Minute {
			out.Body.Items = append(out.Body.Items, showSession(s, r.Principal.Session))
		}
	}
	return out, nil
}

func (h *Handlers) endOwnSession(ctx context.Context, in *struct {
	Session string `path:"session" example:"4f2k9d0a7b1c8e3h" doc:"Id of the session."`
},
) (*struct{}, error) {
	user := httpapi.RequestOf(ctx).Principal.User
	ctx, cancel := httpapi.Unconditional(ctx, writeTimeout)
	defer cancel()
	list, err := h.cfg.People.Sessions(ctx, user)
	if err != nil {
		return nil, mapError(ctx, err)
	}
	for _, s := range list {
		if s.ID != in.Session {
			continue
		}
		if err := h.cfg.People.EndSession(ctx, user, s.ID); err != nil {
			return nil, mapError(ctx, err)
		}
		_, err := h.do(ctx, commands.RecordSessionsEnded{User: user, Count: 1, Reason: "ended by the user"})
		return nil, mapError(ctx, err)
	}
	return nil, httpapi.NotFound("session", in.Session)
}

// endSessions ends all sessions of a user but one, "" for all.
func (h *Handlers) endSessions(ctx context.Context, user events.UserID, but, reason string) error {
	ctx, cancel := httpapi.Unconditional(ctx, writeTimeout)
	defer cancel()
	n, err := h.cfg.People.EndSessions(ctx, user, but)
	if err != nil {
		return err
	}
	if n == 0 {
		return nil
	}
	_, err = h.do(ctx, commands.RecordSessionsEnded{User: user, Count: n, Reason: reason})
	return err
}

func showSession(s auth.Session, current string) httpapi.Session {
	return httpapi.Session{
		ID: s.ID, Method: string(s.Method), Source: s.Source, CreatedAt: s.Created, UsedAt: s.Seen.At, UsedFrom: s.Seen.Source,
		Expires: s.Expires, Current: s.ID == current,
	}
}
