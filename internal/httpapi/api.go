package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/prometheus/client_golang/prometheus"

	"pallas/internal/auth"
)

// Prefix starts the path of every operation.
const Prefix = "/api/v1"

// APIVersion is the version of the API's description. It follows the shape of
// the API, not the manager's releases.
const APIVersion = "1.0.0"

// BodyLimit is the largest request body in bytes.
const BodyLimit = 64 << 10

// Header names of our own.
const (
	HeaderPosition       = "Pallas-Position"
	HeaderRequestID      = "Request-Id"
	HeaderIdempotencyKey = "Idempotency-Key"
)

// Register adds operations to an API. commandhttp, queryhttp and enroll each
// have one.
type Register func(huma.API)

// Config says what to serve.
type Config struct {
	// Auth checks API tokens and sessions. Required.
	Auth Authenticator
	// Denied hears of refusals for want of a permission; nil means that nobody
	// does.
	Denied DeniedFunc
	// Register lists who adds operations.
	Register []Register
	// Checks decide /readyz.
	Checks []Check
	// Gatherer feeds /metrics; nil means there is no such page.
	Gatherer prometheus.Gatherer
	// OpenMetrics serves /metrics without a token.
	OpenMetrics bool
	// Limits keep one caller from taking what all need.
	Limits Limits
	// Registerer takes the API's own metrics; may be nil.
	Registerer prometheus.Registerer
	// Log takes a line for each request. Required.
	Log *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// New returns the handler of the whole API.
func New(cfg Config) (http.Handler, error) {
	if cfg.Auth == nil || cfg.Log == nil {
		return nil, errors.New("httpapi: Auth and Log are required")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	metrics, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, fmt.Errorf("httpapi: register metrics: %w", err)
	}
	s := &server{cfg: cfg, mux: http.NewServeMux(), metrics: metrics, limits: newLimiter(cfg.Limits), denials: newDenials()}
	api := newAPI(s.mux, s.admit, s.authorize, checkRequest)
	for _, register := range cfg.Register {
		register(api)
	}
	describe(api.OpenAPI())
	doc, err := Render(api.OpenAPI())
	if err != nil {
		return nil, err
	}
	s.health()
	s.document(doc)
	s.setup()
	return http.HandlerFunc(s.serve), nil
}

// describe finishes the description once all operations are there: an object
// in an answer may grow, so only those in requests refuse unknown fields.
func describe(o *huma.OpenAPI) {
	requests := map[string]bool{}
	var walk func(*huma.Schema)
	walk = func(s *huma.Schema) {
		if s == nil {
			return
		}
		if name, ok := strings.CutPrefix(s.Ref, "#/components/schemas/"); ok && !requests[name] {
			requests[name] = true
			walk(o.Components.Schemas.Map()[name])
		}
		walk(s.Items)
		for _, p := range s.Properties {
			walk(p)
		}
	}
	for _, path := range o.Paths {
		for _, op := range []*huma.Operation{path.Get, path.Post, path.Put, path.Patch, path.Delete} {
			if op == nil || op.RequestBody == nil {
				continue
			}
			for _, m := range op.RequestBody.Content {
				walk(m.Schema)
			}
		}
	}
	for name, s := range o.Components.Schemas.Map() {
		if closed, ok := s.AdditionalProperties.(bool); ok && !closed && !requests[name] {
			s.AdditionalProperties = nil
		}
	}
}

// Spec returns the description of an API with these operations. Nothing is
// called but the registration, so that it needs no running parts.
func Spec(register ...Register) *huma.OpenAPI {
	api := newAPI(http.NewServeMux())
	for _, r := range register {
		r(api)
	}
	describe(api.OpenAPI())
	return api.OpenAPI()
}

func newAPI(mux humago.Mux, middlewares ...func(huma.API) func(huma.Context, func(huma.Context))) huma.API {
	api := humago.New(mux, huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{
				Title: "Pallas", Version: APIVersion,
				Description: description,
				License:     &huma.License{Name: "Apache-2.0", Identifier: "Apache-2.0"},
			},
			Servers: []*huma.Server{{URL: "/", Description: "This manager"}},
			Components: &huma.Components{
				Schemas: huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer),
				SecuritySchemes: map[string]*huma.SecurityScheme{
					"bearer":  {Type: "http", Scheme: "bearer", Description: "An API token, \"pls_…\"."},
					"session": {Type: "apiKey", In: "cookie", Name: SessionCookie, Description: "The cookie that create-session sets."},
				},
			},
			Security: []map[string][]string{{"bearer": {}}, {"session": {}}},
			Tags: []*huma.Tag{
				{Name: "devices", Description: "Edge hosts and who may be managed."},
				{Name: "vms", Description: "Virtual machines on the hosts."},
				{Name: "tasks", Description: "Work on devices: asked for with 202, done when the device says so."},
				{Name: "events", Description: "Everything that happened, as history and live."},
				{Name: "join-tokens", Description: "How devices get in."},
				{Name: "access", Description: "People and programs: who they are, what they may do, and how they get in."},
				{Name: "manager", Description: "The manager itself."},
			},
			OnAddOperation: []huma.AddOpFunc{complete},
		},
		Formats:                      map[string]huma.Format{"application/json": jsonFormat, "json": jsonFormat},
		DefaultFormat:                "application/json",
		RejectUnknownQueryParameters: true,
		Transformers:                 []huma.Transformer{stampProblem},
	})
	for _, m := range middlewares {
		api.UseMiddleware(m(api))
	}
	return api
}

const description = `The API of the Pallas device manager.

Changes answer 2xx when they are in the event log. Work on a device answers 202 with a task and its Location; the task ends by what the device reports.

**Read your own writes.** Every answer has a Pallas-Position header. Send the newest one along with a read, and the answer shows at least that position.

**Pages.** Lists answer items and, when there are more, next: send it as cursor. A cursor is opaque and stays valid.

**Errors** are RFC 9457 problems; type is stable, errors names the fields. Unknown fields and parameters are errors.`

// jsonFormat is JSON as huma writes it by default.
var jsonFormat = huma.DefaultJSONFormat

// complete gives every operation what all share: the body limit and the error
// answers. It panics about one without a permission.
func complete(oapi *huma.OpenAPI, op *huma.Operation) {
	checkPermission(op)
	problem := func(status int) {
		key := strconv.Itoa(status)
		if op.Responses[key] == nil {
			k := kindOf(status)
			op.Responses[key] = &huma.Response{
				Description: k.Title,
				Content: map[string]*huma.MediaType{"application/problem+json": {
					Schema: &huma.Schema{Ref: "#/components/schemas/Problem"},
				}},
			}
		}
	}
	delete(op.Responses, "default")
	if !isPublic(op) {
		problem(http.StatusUnauthorized)
		if PermissionOf(op) != auth.Self {
			problem(http.StatusForbidden)
		}
		problem(http.StatusTooManyRequests)
	}
	problem(http.StatusBadRequest)
	if op.RequestBody != nil {
		op.MaxBodyBytes = BodyLimit + 1 // huma refuses when the limit is reached
		problem(http.StatusRequestEntityTooLarge)
		problem(http.StatusUnsupportedMediaType)
	}
	if slices.ContainsFunc(op.Parameters, func(p *huma.Param) bool { return p.Name == "If-None-Match" }) {
		op.Responses["304"] = &huma.Response{Description: "The caller's copy is still right", Headers: op.Responses["200"].Headers}
	}
	if strings.Contains(op.Path, "{") {
		problem(http.StatusNotFound)
	}
	problem(http.StatusUnprocessableEntity)
	problem(http.StatusInternalServerError)
	problem(http.StatusServiceUnavailable)
	if op.Method != http.MethodGet {
		problem(http.StatusForbidden)
		problem(http.StatusInsufficientStorage)
	}
}

// stampProblem puts the request id into problems. A 401 has none, so that its
// body is the same whatever the reason.
func stampProblem(ctx huma.Context, _ string, v any) (any, error) {
	p, ok := v.(*Problem)
	if !ok || p.Status == http.StatusUnauthorized {
		return v, nil
	}
	out := *p
	out.RequestID = RequestOf(ctx.Context()).ID
	return &out, nil
}

// authorize lets a request pass that has a valid token which is within its
// limits and has the operation's permission, or whose operation is public (an
// empty, not nil, security list).
func (s *server) authorize(huma.API) func(huma.Context, func(huma.Context)) {
	return func(ctx huma.Context, next func(huma.Context)) {
		if isPublic(ctx.Operation()) {
			next(ctx)
			return
		}
		r, w := humago.Unwrap(ctx)
		if !s.authenticated(w, r) {
			return
		}
		leave, ok := s.admitCaller(w, r, ctx.Operation())
		if !ok {
			return
		}
		defer leave()
		if !s.permitted(w, r, ctx.Operation().OperationID, PermissionOf(ctx.Operation())) {
			return
		}
		if r.Method == http.MethodGet { // what changes something is finished once it has begun
			valid, stop := s.whileValid(ctx.Context(), credentialOf(r), requestOf(r.Context()).Principal.Rights)
			defer stop()
			ctx = huma.WithContext(ctx, valid)
		}
		next(ctx)
	}
}

// authenticated notes the principal of a request, or answers and returns false.
func (s *server) authenticated(w http.ResponseWriter, r *http.Request) bool {
	p, err := s.cfg.Auth.Authenticate(r.Context(), credentialOf(r))
	switch {
	case err == nil:
		requestOf(r.Context()).Principal = p
		return true
	case errors.Is(err, ErrUnauthorized):
		source, now := SourceNetwork(requestOf(r.Context()).Source), s.cfg.Now()
		if wait := s.limits.failures.Wait(source, now); wait > 0 {
			s.shed(w, r, "failures", NewProblem(KindTooMany, "too many requests without a valid token came from this address"), wait)
			return false
		}
		s.limits.failures.Charge(source, now, 1)
		w.Header().Set("WWW-Authenticate", `Bearer realm="pallas"`)
		writeProblem(w, r, NewProblem(KindUnauthorized, "send a valid API token as \"Authorization: Bearer <token>\", or sign in"))
	default:
		WriteError(w, r, fmt.Errorf("authenticate: %w", err))
	}
	return false
}

// checkRequest refuses what huma would silently ignore: a query string that
// does not decode, a parameter given twice, an empty parameter, a guard header
// given twice or empty, and a body for an operation that takes none.
func checkRequest(api huma.API) func(huma.Context, func(huma.Context)) {
	return func(ctx huma.Context, next func(huma.Context)) {
		r, w := humago.Unwrap(ctx)
		q, err := url.ParseQuery(r.URL.RawQuery)
		if err != nil {
			writeProblem(w, r, NewProblem(KindMalformed, "the query string is not encoded well", FieldError{Field: "query", Message: "want name=value pairs, percent-encoded"}))
			return
		}
		var fields []FieldError
		for name, values := range q {
			switch {
			case len(values) > 1:
				fields = append(fields, FieldError{Field: "query." + clip(name), Message: "given more than once"})
			case values[0] == "":
				fields = append(fields, FieldError{Field: "query." + clip(name), Message: "is empty: leave it out or give it a value"})
			}
		}
		for _, name := range []string{HeaderIdempotencyKey, "If-Match"} { // ignored, they would not guard
			switch values := r.Header.Values(name); {
			case len(values) > 1:
				fields = append(fields, FieldError{Field: "header." + name, Message: "given more than once"})
			case len(values) == 1 && values[0] == "":
				fields = append(fields, FieldError{Field: "header." + name, Message: "is empty: leave it out or give it a value"})
			}
		}
		if ctx.Operation().RequestBody == nil && r.ContentLength != 0 && r.Method != http.MethodGet {
			if hasBody(w, r) {
				fields = append(fields, FieldError{Field: "body", Message: "this operation takes no body"})
			}
		}
		if len(fields) > 0 {
			slices.SortFunc(fields, func(a, b FieldError) int { return strings.Compare(a.Field, b.Field) })
			writeProblem(w, r, NewProblem(KindInvalid, fields[0].Field+": "+fields[0].Message, fields...))
			return
		}
		next(ctx)
	}
}

// hasBody says whether a body comes with a request whose length may be unknown.
func hasBody(w http.ResponseWriter, r *http.Request) bool {
	if r.ContentLength > 0 {
		return true
	}
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(5 * time.Second)) // without it a client could hold the request open
	defer func() { _ = rc.SetReadDeadline(time.Time{}) }()
	n, _ := io.ReadFull(r.Body, make([]byte, 1))
	return n > 0
}

// ETag returns the entity tag of a representation at a revision: the revision,
// then, when there is a body, a hash of it. If-Match looks at the revision
// only; what a host reports meanwhile must not refuse an operator's change.
func ETag(revision uint64, body any) string {
	tag := strconv.FormatUint(revision, 10)
	if body == nil {
		return `"` + tag + `"`
	}
	h := fnv.New64a()
	if err := json.NewEncoder(h).Encode(body); err != nil {
		panic(err) // representations always encode
	}
	return `"` + tag + "." + strconv.FormatUint(h.Sum64(), 36) + `"`
}

// IfMatch returns the revision that an If-Match header names: the first number
// of an ETag. "" and "*" are 0, any.
func IfMatch(header string) (uint64, error) {
	if header == "" || header == "*" {
		return 0, nil
	}
	tag, ok := strings.CutPrefix(header, `"`)
	if tag, ok2 := strings.CutSuffix(tag, `"`); ok && ok2 {
		first, _, _ := strings.Cut(tag, ".")
		if n, err := strconv.ParseUint(first, 10, 64); err == nil && n > 0 {
			return n, nil
		}
	}
	return 0, Invalid("header.If-Match", `want one ETag as it was received, such as "1841.77", or *`)
}

// NotModified says whether an If-None-Match header names the entity tag.
func NotModified(header, etag string) bool {
	for tag := range strings.SplitSeq(header, ",") {
		tag = strings.TrimPrefix(strings.TrimSpace(tag), "W/")
		if tag == etag || tag == "*" {
			return true
		}
	}
	return false
}

// Unconditional returns a context for a change that must be finished once it
// has begun: it keeps the values of the request's context, not its end, and
// ends after d.
func Unconditional(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), d)
}
