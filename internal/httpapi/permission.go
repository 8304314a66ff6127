package httpapi

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	lru "github.com/hashicorp/golang-lru/v2"

	"pallas/events"
	"pallas/events/labels"
	"pallas/internal/auth"
)

// permissionKey is the member of an operation's description that names its
// permission.
const permissionKey = "x-pallas-permission"

// Needs is the Extensions of an operation that needs a permission. Every
// operation that is not public has one: it cannot be registered without.
func Needs(p auth.Permission) map[string]any { return map[string]any{permissionKey: string(p)} }

// PermissionOf returns what an operation needs, and "" for one that is public.
func PermissionOf(op *huma.Operation) auth.Permission {
	p, _ := op.Extensions[permissionKey].(string)
	return auth.Permission(p)
}

// checkPermission panics about an operation that would let everybody in: it
// could not be served, and nobody would notice.
func checkPermission(op *huma.Operation) {
	p := PermissionOf(op)
	if _, ok := auth.RuleOf(p); ok != isPublic(op) {
		return
	}
	if isPublic(op) {
		panic(fmt.Sprintf("httpapi: operation %s needs %s, but is public", op.OperationID, p))
	}
	panic(fmt.Sprintf("httpapi: operation %s needs the permission %q, which auth.Rules does not have: set its Extensions with Needs, or make it public", op.OperationID, p))
}

// DeniedFunc hears of a caller who was refused an operation for want of a
// permission. A repeat of the same caller and operation is told once a minute.
type DeniedFunc func(ctx context.Context, p Principal, operation string, need auth.Permission)

// deniedEvery is how often the same refusal is told.
const deniedEvery = time.Minute

// denials remembers which refusals were told, and when.
type denials = lru.Cache[denial, time.Time]

type denial struct {
	actor     events.Actor
	operation string
}

func newDenials() *denials {
	c, err := lru.New[denial, time.Time](remembered)
	if err != nil {
		panic(err) // a negative size
	}
	return c
}

// permitted notes the devices for which the caller has a permission, or answers
// that there are none and returns false.
func (s *server) permitted(w http.ResponseWriter, r *http.Request, operation string, need auth.Permission) bool {
	req := requestOf(r.Context())
	req.demand = func(need auth.Permission) (labels.Scope, error) {
		scope := req.Principal.Rights.Scope(need)
		if !scope.Nothing() {
			return scope, nil
		}
		s.denied(r.Context(), operation, need)
		return scope, NewProblem(KindDenied, deniedDetail(need))
	}
	scope, err := req.demand(need)
	if req.Scope = scope; err != nil {
		WriteError(w, r, err)
		return false
	}
	return true
}

// Demand returns the devices for which the caller has another permission beside
// the one of the operation, or the problem that there are none. It is for
// operations of which a part needs more than the rest.
func Demand(ctx context.Context, need auth.Permission) (labels.Scope, error) {
	req := requestOf(ctx)
	if req == nil || req.demand == nil {
		return labels.Scope{}, NewProblem(KindDenied, deniedDetail(need))
	}
	scope, err := req.demand(need)
	return scope.Intersect(req.Scope), err
}

// denied tells that a caller was refused.
func (s *server) denied(ctx context.Context, operation string, need auth.Permission) {
	req := requestOf(ctx)
	if s.cfg.Denied != nil {
		key := denial{req.Principal.Actor, operation}
		if told, ok := s.denials.Get(key); !ok || req.Time.Sub(told) >= deniedEvery {
			s.denials.Add(key, req.Time)
			s.cfg.Denied(ctx, req.Principal, operation, need)
		}
	}
}

// deniedDetail says what a permission takes.
func deniedDetail(need auth.Permission) string {
	rule, _ := auth.RuleOf(need)
	if rule.Scoped {
		return fmt.Sprintf("it needs the permission %s, which the role %s has: ask an administrator for it", need, rule.Role)
	}
	return fmt.Sprintf("it needs the permission %s, which the role %s has when it is granted for all devices: ask an administrator for it", need, rule.Role)
}
