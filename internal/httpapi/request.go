package httpapi

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"time"

	"pallas/events"
	"pallas/events/labels"
	"pallas/internal/auth"
)

// Principal is who a request acts for.
type Principal struct {
	Actor events.Actor
	User  events.UserID
	// Rights are what the caller may do. The zero Rights are nothing.
	Rights auth.Rights
	// Token is the API token that acts for the user, Session the session that the
	// user has begun; one of them is "".
	Token   events.APITokenID
	Session string
	// Expires is when the token or session ends.
	Expires time.Time
}

// ErrUnauthorized says that a credential is unknown, wrong, revoked or expired,
// or that its user is disabled or gone; not which.
var ErrUnauthorized = errors.New("credential refused")

// Authenticator checks credentials.
type Authenticator interface {
	// Authenticate returns whom the credential stands for, or an error that wraps
	// ErrUnauthorized. The time that it takes does not tell how much of a
	// credential was right.
	Authenticate(ctx context.Context, c Credential) (Principal, error)
}

// Request is what the edge knows of a request.
type Request struct {
	// ID is in the Request-Id header, in problems and in the log.
	ID string
	// Source is the address the connection came from, without a port. Headers
	// that claim another one are ignored.
	Source string
	// Traceparent is the W3C trace context, empty if absent or malformed.
	Traceparent string
	// Time is when the request arrived, in UTC to the microsecond.
	Time time.Time
	// Principal is the caller; empty for public operations.
	Principal Principal
	// Scope holds the devices for which the caller has the operation's
	// permission; nothing for public operations.
	Scope labels.Scope

	// demand is Principal.Rights.Scope for the operation, and tells of refusals.
	demand func(auth.Permission) (labels.Scope, error)

	cause  error // of an error answer, for the log
	broken bool  // the body could not be read
	shed   bool  // not let in
}

// body notes when a request's body breaks off, which is the client's fault.
type body struct {
	io.ReadCloser
	req *Request
}

func (b body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		b.req.broken = true
	}
	return n, err
}

type requestKey struct{}

// RequestOf returns what the edge knows of the request that ctx belongs to. It
// is empty for a context of no request.
func RequestOf(ctx context.Context) Request {
	if r := requestOf(ctx); r != nil {
		return *r
	}
	return Request{}
}

func requestOf(ctx context.Context) *Request {
	r, _ := ctx.Value(requestKey{}).(*Request)
	return r
}

var traceparent = regexp.MustCompile(`^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)

func newRequest(r *http.Request, now time.Time) *Request {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	tp := r.Header.Get("Traceparent")
	if !traceparent.MatchString(tp) || strings.Contains(tp, "-"+strings.Repeat("0", 32)+"-") || strings.Contains(tp, "-"+strings.Repeat("0", 16)+"-") {
		tp = ""
	}
	return &Request{ID: events.NewID(), Source: host, Traceparent: tp, Time: now.UTC().Truncate(time.Microsecond)}
}

// bearer returns the token of the Authorization header, "" when there is none.
func bearer(h http.Header) string {
	values := h.Values("Authorization")
	if len(values) != 1 {
		return ""
	}
	scheme, token, ok := strings.Cut(values[0], " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}
