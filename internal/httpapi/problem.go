package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"pallas/events"
)

// Problem is an error answer (RFC 9457). docs/reference/problems.md lists the
// types.
type Problem struct {
	Type      string       `json:"type" format:"uri" example:"urn:pallas:problem:invalid" doc:"Kind of problem. Stable: branch on it."`
	Title     string       `json:"title" example:"The request is not valid" doc:"The kind in words."`
	Status    int          `json:"status" example:"422" doc:"HTTP status code."`
	Detail    string       `json:"detail,omitempty" example:"body.timeout: expected number >= 5" doc:"What is wrong with this request, and what to do about it."`
	Code      string       `json:"code,omitempty" example:"vm_already_on" doc:"Finer kind, for a conflict."`
	RequestID string       `json:"requestId,omitempty" example:"019e1b7a-5a40-7c35-9d3c-2f0a1b2c3d4e" doc:"Id of the request, as in the Request-Id header and the manager's log."`
	Errors    []FieldError `json:"errors,omitempty" doc:"The fields that are wrong."`
}

// FieldError says what is wrong with one field of a request.
type FieldError struct {
	Field   string `json:"field" example:"body.timeout" doc:"The field: body., query., path. or header. and its name."`
	Message string `json:"message" example:"expected number >= 5" doc:"What is wrong with it."`
}

// Kind is a kind of problem: its status, the last part of its type URI and its
// title.
type Kind struct {
	Status int
	Name   string
	Title  string
	// Meaning says, for the reference, when it happens and what to do.
	Meaning string
}

// TypePrefix starts every problem's type.
const TypePrefix = "urn:pallas:problem:"

// The kinds of problem.
var (
	KindMalformed     = Kind{http.StatusBadRequest, "malformed", "The request cannot be read", "The body is missing, broken off or not JSON, or the query string is not encoded well. Correct the request."}
	KindUnauthorized  = Kind{http.StatusUnauthorized, "unauthorized", "A valid token is needed", "The Authorization header is missing and there is no session, or the token or session is wrong, revoked or expired, or its user is disabled. Which of them is not told. Send \"Authorization: Bearer <token>\", or sign in."}
	KindDenied        = Kind{http.StatusForbidden, "denied", "Not allowed", "The token is valid, but may not do this: the detail names the permission that is missing and the role that has it, or the labels that would leave one's scope."}
	KindNotFound      = Kind{http.StatusNotFound, "not-found", "There is no such thing", "The path is unknown, or what it names does not exist."}
	KindMethod        = Kind{http.StatusMethodNotAllowed, "method-not-allowed", "The method is not allowed here", "The path exists for other methods; the Allow header lists them."}
	KindTimeout       = Kind{http.StatusRequestTimeout, "timeout", "The request took too long to arrive", "The body did not arrive in time. Send it again."}
	KindConflict      = Kind{http.StatusConflict, "conflict", "The state does not permit this", "What is asked for does not fit the present state, which the detail names; code says it for programs. Nothing was changed."}
	KindStale         = Kind{http.StatusPreconditionFailed, "stale", "Somebody changed it meanwhile", "If-Match names another revision than the present one, or expect another number of devices than are meant now. Read it again and decide anew. Nothing was changed."}
	KindTooLarge      = Kind{http.StatusRequestEntityTooLarge, "too-large", "The body is too large", "Bodies are limited to 64 KiB."}
	KindMediaType     = Kind{http.StatusUnsupportedMediaType, "unsupported-media-type", "The body's media type is not supported", "Send application/json (or application/merge-patch+json where an operation takes a merge patch)."}
	KindNotAcceptable = Kind{http.StatusNotAcceptable, "not-acceptable", "The answer cannot be given in that form", "The Accept header permits none of the operation's media types."}
	KindInvalid       = Kind{http.StatusUnprocessableEntity, "invalid", "The request is not valid", "A field is missing, unknown, of the wrong type or out of range; errors lists them all. Nothing was changed."}
	KindTooMany       = Kind{http.StatusTooManyRequests, "too-many-requests", "Too many requests", "The user has sent more than http.rate requests a second or has too many under way, too many requests without a valid token came from this address, or enrolment was tried too often from it or failed too often in all, or a password was guessed too often. Nothing was done. Try again after the seconds of Retry-After."}
	KindInternal      = Kind{http.StatusInternalServerError, "internal", "Something went wrong inside the manager", "A defect. The manager's log has the cause under the request id."}
	KindUnavailable   = Kind{http.StatusServiceUnavailable, "unavailable", "The manager cannot answer now", "The event log or another part did not answer. Whether a change was made is not known: send the same request again, with the same Idempotency-Key."}
	KindOverloaded    = Kind{http.StatusServiceUnavailable, "overloaded", "The manager is busy", "Too many requests are being answered at the same time, or too many event streams are open. Nothing was done. Try again after the seconds of Retry-After."}
	KindBehind        = Kind{http.StatusServiceUnavailable, "behind", "The read model is behind", "The position in the Pallas-Position request header did not arrive in the read model within 5 seconds. The change is safe in the log; ask again."}
	KindNoSpace       = Kind{http.StatusInsufficientStorage, "no-space", "The event log is full", "The log's disk or limit is full. Nothing was changed; reads go on. Make room."}
)

// Kinds lists every kind of problem, in the order of their status.
func Kinds() []Kind {
	return []Kind{
		KindMalformed, KindUnauthorized, KindDenied, KindNotFound, KindMethod, KindNotAcceptable, KindTimeout, KindConflict, KindStale,
		KindTooLarge, KindMediaType, KindInvalid, KindTooMany, KindInternal, KindUnavailable, KindOverloaded, KindBehind, KindNoSpace,
	}
}

// NewProblem returns a problem of a kind. The detail is for people and names
// no inner errors.
func NewProblem(k Kind, detail string, fields ...FieldError) *Problem {
	return &Problem{Type: TypePrefix + k.Name, Title: k.Title, Status: k.Status, Detail: detail, Errors: fields}
}

// Invalid returns the problem of one bad field, such as "query.after".
func Invalid(field, message string) *Problem {
	return NewProblem(KindInvalid, field+": "+message, FieldError{Field: field, Message: message})
}

// NotFound returns the problem of a thing that does not exist.
func NotFound(what, id string) *Problem {
	return NewProblem(KindNotFound, fmt.Sprintf("there is no %s %q", what, clip(id)))
}

// Error returns the detail, or the title where there is none.
func (p *Problem) Error() string {
	if p.Detail != "" {
		return p.Detail
	}
	return p.Title
}

// GetStatus returns the HTTP status.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType returns the media type of problems.
func (p *Problem) ContentType(string) string { return "application/problem+json" }

// MapError returns the problem of an error that a part below answered. An
// error it does not know becomes a 500 without its text; the text goes to the
// log.
func MapError(ctx context.Context, err error) error {
	var p *Problem
	switch {
	case errors.As(err, &p):
		return p
	case errors.Is(err, events.ErrNoSpace):
		return logged(ctx, err, NewProblem(KindNoSpace, "the manager's disk or its event log is full, and nothing was changed: make room there, then send the request again"))
	case errors.Is(err, events.ErrConflict):
		return logged(ctx, err, NewProblem(KindUnavailable, "it is being changed too often at the same time; try again"))
	case errors.Is(err, events.ErrUnavailable), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return logged(ctx, err, NewProblem(KindUnavailable, "the event log did not answer in time; send the same request again"))
	default:
		return logged(ctx, err, internal())
	}
}

var tooLarge = fmt.Sprintf("the body is larger than %d bytes: send less", BodyLimit)

func internal() *Problem {
	return NewProblem(KindInternal, "the manager's log has the cause under this request id")
}

// Note keeps an error that cannot be told to the client any more, because the
// answer has begun, for the log line of the request.
func Note(ctx context.Context, err error) { _ = logged(ctx, err, nil) }

// logged keeps the cause for the access log line of the request.
func logged(ctx context.Context, cause error, p *Problem) *Problem {
	if r := requestOf(ctx); r != nil {
		r.cause = cause
	}
	return p
}

// kindOf returns the kind for a status that huma chose.
func kindOf(status int) Kind {
	for _, k := range Kinds() {
		if k.Status == status {
			return k
		}
	}
	if status >= 400 && status < 500 {
		return Kind{status, KindMalformed.Name, KindMalformed.Title, ""}
	}
	return KindInternal
}

// fromHuma turns what huma's checks found into a problem. It drops the values
// that huma would echo: they may be secrets. A malformed id in the path names
// nothing that exists, so it is a 404 that says what ids look like.
func fromHuma(status int, msg string, errs ...error) huma.StatusError {
	switch {
	case status >= http.StatusInternalServerError:
		return internal()
	case status == http.StatusRequestEntityTooLarge:
		return NewProblem(KindTooLarge, tooLarge)
	}
	var fields []FieldError
	for _, err := range errs {
		if err == nil {
			continue
		}
		var d huma.ErrorDetailer
		if !errors.As(err, &d) {
			fields = append(fields, FieldError{Field: "body", Message: err.Error()})
			continue
		}
		det := d.ErrorDetail()
		f := FieldError{Field: det.Location, Message: det.Message}
		if !slices.Contains(fields, f) {
			fields = append(fields, f)
		}
	}
	slices.SortStableFunc(fields, func(a, b FieldError) int { return strings.Compare(a.Field, b.Field) })
	if status == http.StatusUnprocessableEntity && len(fields) > 0 && !slices.ContainsFunc(fields, func(f FieldError) bool { return !strings.HasPrefix(f.Field, "path.") }) {
		status = http.StatusNotFound
	}
	k := kindOf(status)
	if len(fields) == 0 {
		return NewProblem(k, msg)
	}
	detail := fields[0].Field + ": " + fields[0].Message
	if n := len(fields) - 1; n > 0 {
		detail += fmt.Sprintf(" (and %d more)", n)
	}
	return NewProblem(k, detail, fields...)
}

// WriteError answers an error from a handler that writes its own answers and
// has not begun to.
func WriteError(w http.ResponseWriter, r *http.Request, err error) {
	var p *Problem
	if !errors.As(MapError(r.Context(), err), &p) {
		p = internal()
	}
	writeProblem(w, r, p)
}

// writeProblem answers outside huma.
func writeProblem(w http.ResponseWriter, r *http.Request, p *Problem) {
	out := *p
	if req := requestOf(r.Context()); req != nil && p.Status != http.StatusUnauthorized {
		out.RequestID = req.ID
	}
	w.Header().Set("Content-Type", out.ContentType(""))
	w.WriteHeader(out.Status)
	if r.Method == http.MethodHead {
		return
	}
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(out) // the client is gone: nothing to do about it
}

func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}

// huma keeps its error constructor and these switches in package variables;
// this is the one place that sets them, before any API exists.
func init() {
	huma.NewError = fromHuma
	huma.NewErrorWithContext = func(ctx huma.Context, status int, msg string, errs ...error) huma.StatusError {
		if r := requestOf(ctx.Context()); r != nil && r.broken && status == http.StatusInternalServerError {
			return NewProblem(KindMalformed, "the body broke off, or its chunks are not well formed: send it again")
		}
		se := fromHuma(status, msg, errs...)
		if p, ok := se.(*Problem); ok && p.Status == http.StatusInternalServerError {
			_ = logged(ctx.Context(), fmt.Errorf("%s: %w", msg, errors.Join(errs...)), p)
		}
		return se
	}
	huma.ErrorFormatter = func(format string, args ...any) string {
		for i, a := range args {
			if f, ok := a.(float64); ok { // limits are whole numbers: no exponents
				args[i] = strconv.FormatFloat(f, 'f', -1, 64)
			}
		}
		return fmt.Sprintf(format, args...)
	}
	huma.ValidateStrictCasing = true
	huma.DefaultArrayNullable = false
}
