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

// Config says what the operations work on.
type Config struct {
	// Commands and People are required.
	Commands *commands.Dispatcher
	People   *auth.People
	// URL is how people reach the manager, for one-time links. Required.
	URL string
	// SessionIdle is how long a session may be unused, SessionLife how long it
	// lasts in all; 0 means 12 hours and 7 days.
	SessionIdle, SessionLife time.Duration
	// OIDC is the provider by which people may sign in; nil for none.
	OIDC *OIDC
	// Now is the clock; nil means the system's.
	Now func() time.Time
	// Log defaults to no log.
	Log *slog.Logger
}

// The lifetimes of sessions when the configuration says nothing.
const (
	DefaultSessionIdle = 12 * time.Hour
	DefaultSessionLife = 7 * 24 * time.Hour
)

// Handlers are the operations, and the authenticator.
type Handlers struct {
	cfg       Config
	passwords *auth.Passwords
	guesses   *guesses
	uses      *uses
	rights    *rightsCache
	oidc      *provider // nil for none
}

// New returns the operations.
func New(cfg Config) (*Handlers, error) {
	if cfg.Commands == nil || cfg.People == nil || cfg.URL == "" {
		return nil, errors.New("accesshttp: Commands, People and URL are required")
	}
	if cfg.SessionIdle == 0 {
		cfg.SessionIdle = DefaultSessionIdle
	}
	if cfg.SessionLife == 0 {
		cfg.SessionLife = DefaultSessionLife
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	h := &Handlers{cfg: cfg, passwords: auth.NewPasswords(), guesses: newGuesses(), uses: newUses(), rights: newRightsCache()}
	if cfg.OIDC != nil {
		h.oidc = newProvider(*cfg.OIDC, cfg.URL+oidcCallback, cfg.Now)
	}
	return h, nil
}

// Describe adds the operations to an API that only describes itself.
func Describe(api huma.API) { (&Handlers{}).Register(api) }

// Register adds the operations to an API.
func (h *Handlers) Register(api huma.API) {
	h.registerUsers(api)
	h.registerGrants(api)
	h.registerTokens(api)
	h.registerSessions(api)
	h.registerOIDC(api)
	h.registerPasswords(api)
	h.registerWhoami(api)
}

// public is the security of an operation for those who have no credential yet.
func public() []map[string][]string { return []map[string][]string{} }

// writeTimeout bounds one change. It does not end with the client's connection:
// a half-made change helps nobody.
const writeTimeout = 20 * time.Second

// do gives one command on behalf of the request.
func (h *Handlers) do(ctx context.Context, c commands.Command) (commands.Result, error) {
	r := httpapi.RequestOf(ctx)
	actor := r.Principal.Actor
	if actor == "" { // somebody who is about to sign in
		actor = events.SystemActor("sign-in")
	}
	return h.cfg.Commands.Do(ctx, c, commands.Meta{Actor: actor, Source: r.Source, Traceparent: r.Traceparent, Time: r.Time})
}

// as gives one command of a user who is about to sign in.
func (h *Handlers) as(ctx context.Context, user events.UserID, c commands.Command) (commands.Result, error) {
	r := httpapi.RequestOf(ctx)
	return h.cfg.Commands.Do(ctx, c, commands.Meta{Actor: events.UserActor(string(user)), Source: r.Source, Traceparent: r.Traceparent, Time: r.Time})
}

// inPath lists the fields of refusals that stand in a request's path; the others
// are in its body.
var inPath = map[string]bool{"user": true, "grant": true, "token": true}

var kinds = map[commands.Kind]httpapi.Kind{
	commands.KindInvalid: httpapi.KindInvalid, commands.KindNotFound: httpapi.KindNotFound, commands.KindConflict: httpapi.KindConflict,
	commands.KindDenied: httpapi.KindDenied, commands.KindStale: httpapi.KindStale,
}

// mapError returns the problem of a refusal or of any other error.
func mapError(ctx context.Context, err error) error {
	var e *commands.Error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, auth.ErrUnknown):
		return httpapi.NewProblem(httpapi.KindNotFound, "the user is gone")
	case errors.Is(err, auth.ErrLoginTaken):
		p := httpapi.NewProblem(httpapi.KindConflict, "another user has this login", httpapi.FieldError{Field: "body.login", Message: "is taken: choose another one"})
		p.Code = "login_taken"
		return p
	case errors.Is(err, auth.ErrBusy):
		return huma.ErrorWithHeaders(
			httpapi.NewProblem(httpapi.KindOverloaded, "too many passwords are being checked; nothing was done: try again"),
			http.Header{"Retry-After": {httpapi.RetryAfter(time.Second)}})
	case !errors.As(err, &e):
		return httpapi.MapError(ctx, err)
	}
	k, ok := kinds[e.Kind]
	if !ok {
		return httpapi.MapError(ctx, err)
	}
	p := httpapi.NewProblem(k, e.Message)
	p.Code = e.Code
	if e.Field != "" {
		field := "body." + e.Field
		switch {
		case e.Field == "Idempotency-Key" || e.Field == "If-Match":
			field = "header." + e.Field
		case inPath[e.Field]:
			field = "path." + e.Field
		}
		p.Detail = field + ": " + e.Message
		p.Errors = []httpapi.FieldError{{Field: field, Message: e.Message}}
	}
	return p
}

// tooMany is the problem of a request that comes too soon.
func tooMany(detail string, wait time.Duration) error {
	return huma.ErrorWithHeaders(httpapi.NewProblem(httpapi.KindTooMany, detail), http.Header{"Retry-After": {httpapi.RetryAfter(wait)}})
}

// Written holds the headers of an answer to a change.
type Written struct {
	Position uint64 `header:"Pallas-Position" example:"1842" doc:"Position of the change in the event log."`
}

// MatchHeader is the header that guards against lost updates.
type MatchHeader struct {
	IfMatch string `header:"If-Match" maxLength:"64" example:"\"1841.77\"" doc:"ETag of the user as it was read. The change is refused with 412 when what the user may do was changed meanwhile."`
}

// UserPath names a user.
type UserPath struct {
	User string `path:"user" example:"019e1b7a-5a40-7c35-9d3c-2f0a1b2c3d4e" doc:"User id."`
}

// id parses the user of a path: what is not an id names nothing.
func (p UserPath) id() (events.UserID, error) {
	s, err := events.ParseUUID("user id", p.User)
	if err != nil {
		return "", httpapi.NewProblem(httpapi.KindNotFound, err.Error(), httpapi.FieldError{Field: "path.user", Message: err.Error()})
	}
	return events.UserID(s), nil
}

// secretAnswer is the Cache-Control of an answer that holds a secret.
const secretAnswer = "no-store"

// fold returns the text that guesses of a login are counted under.
func fold(login string) string {
	if folded, err := auth.FoldLogin(login); err == nil {
		return folded
	}
	return strings.ToLower(login[:min(len(login), auth.MaxLogin)])
}
