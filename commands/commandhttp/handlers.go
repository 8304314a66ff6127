package commandhttp

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"pallas/commands"
	"pallas/events"
	"pallas/events/labels"
	"pallas/internal/httpapi"
)

// Tokens keeps the secrets of join tokens.
type Tokens interface {
	// CreateJoin makes the secret of a token. Making a second one for the same
	// id is auth.ErrExists.
	CreateJoin(ctx context.Context, id events.TokenID) (secret string, err error)
	// DeleteJoin forgets it. An unknown id is no error.
	DeleteJoin(ctx context.Context, id events.TokenID) error
}

// JoinFunc builds the join string around a token, "<id>.<secret>".
type JoinFunc func(token string, expires time.Time) (string, error)

// TaskDeviceFunc returns the device of a task, or "" when there is no such
// task in the scope. It must know every task that is in the log when it is called. The
// write side has no index of its own from tasks to devices: aggregates are
// bounded by devices.
type TaskDeviceFunc func(ctx context.Context, scope labels.Scope, id events.TaskID) (events.DeviceID, error)

// Config says what the operations work on. All fields are required.
type Config struct {
	Commands   *commands.Dispatcher
	Tokens     Tokens
	Join       JoinFunc
	TaskDevice TaskDeviceFunc
	Select     SelectFunc
}

// Handlers are the operations.
type Handlers struct{ cfg Config }

// New returns the operations.
func New(cfg Config) (*Handlers, error) {
	if cfg.Commands == nil || cfg.Tokens == nil || cfg.Join == nil || cfg.TaskDevice == nil || cfg.Select == nil {
		return nil, errors.New("commandhttp: Commands, Tokens, Join, TaskDevice and Select are required")
	}
	return &Handlers{cfg: cfg}, nil
}

// Describe adds the operations to an API that only describes itself.
func Describe(api huma.API) { (&Handlers{}).Register(api) }

// Register adds the operations to an API.
func (h *Handlers) Register(api huma.API) {
	h.registerDevices(api)
	h.registerBulk(api)
	h.registerVMs(api)
	h.registerTasks(api)
	h.registerJoinTokens(api)
}

// writeTimeout bounds one change. It does not end with the client's
// connection: a half-made change helps nobody.
const writeTimeout = 10 * time.Second

// do gives one command on behalf of the request. Its errors are the
// dispatcher's own: mapError makes problems of them.
func (h *Handlers) do(ctx context.Context, key string, c commands.Command) (commands.Result, error) {
	return h.doIf(ctx, httpapi.RequestOf(ctx).Scope, key, c, nil)
}

// doIf is do within a scope and with a guard, see [commands.Dispatcher.DoIf].
func (h *Handlers) doIf(ctx context.Context, scope labels.Scope, key string, c commands.Command, guard func(commands.States) error) (commands.Result, error) {
	r := httpapi.RequestOf(ctx)
	ctx, cancel := httpapi.Unconditional(ctx, writeTimeout)
	defer cancel()
	return h.cfg.Commands.DoIf(ctx, c, commands.Meta{
		CommandID: key, Actor: r.Principal.Actor, Scope: &scope, Source: r.Source, Traceparent: r.Traceparent, Time: r.Time,
	}, guard)
}

// decide tries a command on a state, as the dispatcher would.
func decide(ctx context.Context, c commands.Command, s commands.States) error {
	r := httpapi.RequestOf(ctx)
	_, err := commands.DecideWithin(r.Scope, c, s, r.Time)
	return err
}

// device returns a device as the write side has it, if it is in the caller's
// scope.
func (h *Handlers) device(ctx context.Context, id events.DeviceID) (commands.Device, error) {
	return h.cfg.Commands.DeviceWithin(ctx, httpapi.RequestOf(ctx).Scope, id)
}

// inBody lists the fields of refusals that stand in a request's body; the
// others are in the header or the path.
var inBody = map[string]bool{
	"name": true, "labels": true, "approve": true, "keyHash": true, "notes": true, "site": true, "namePattern": true, "reason": true, "maxUses": true, "action": true, "deadline": true, "expires": true, "timeout": true, "ttl": true,
}

// mapError returns the problem of a refusal or of any other error.
func mapError(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	var e *commands.Error
	if !errors.As(err, &e) {
		return httpapi.MapError(ctx, err)
	}
	kinds := map[commands.Kind]httpapi.Kind{
		commands.KindInvalid: httpapi.KindInvalid, commands.KindNotFound: httpapi.KindNotFound, commands.KindConflict: httpapi.KindConflict,
		commands.KindDenied: httpapi.KindDenied, commands.KindStale: httpapi.KindStale,
	}
	k, ok := kinds[e.Kind]
	if !ok {
		return httpapi.MapError(ctx, err)
	}
	p := httpapi.NewProblem(k, e.Message)
	p.Code = e.Code
	if e.Field != "" {
		field := e.Field
		switch {
		case inBody[strings.SplitN(field, ".", 2)[0]]:
			field = "body." + field
		case field == "Idempotency-Key" || field == "If-Match":
			field = "header." + field
		default:
			field = "path." + field
		}
		p.Detail = field + ": " + e.Message
		p.Errors = []httpapi.FieldError{{Field: field, Message: e.Message}}
	}
	return p
}

// KeyHeader is the header that makes a repeat of a request recognisable.
type KeyHeader struct {
	IdempotencyKey string `header:"Idempotency-Key" minLength:"1" maxLength:"128" pattern:"^[!-~]{1,128}$" patternDescription:"1 to 128 visible ASCII characters" example:"0b1d5c4e-restart-pos" doc:"Makes the request safe to repeat: the same caller with the same key gets the answer of the first request, and nothing happens twice."`
}

// MatchHeader is the header that guards against lost updates.
type MatchHeader struct {
	IfMatch string `header:"If-Match" maxLength:"64" example:"\"1841.1841\"" doc:"ETag of the device as it was read. The change is refused with 412 when somebody changed the device meanwhile."`
}

// Written holds the headers of an answer to a change.
type Written struct {
	Position uint64 `header:"Pallas-Position" example:"1842" doc:"Position of the change in the event log."`
}

// deviceID parses the device of a path: what is not an id names nothing.
func deviceID(s string) (events.DeviceID, error) {
	id, err := events.ParseDeviceID(s)
	if err != nil {
		return "", httpapi.NewProblem(httpapi.KindNotFound, err.Error(), httpapi.FieldError{Field: "path.device", Message: err.Error()})
	}
	return id, nil
}
