package httpapi_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"pallas/events"
	"pallas/internal/auth"
	"pallas/internal/httpapi"
)

// known authenticates by a map: what is measured is what comes after.
type known map[string]httpapi.Principal

func (k known) Authenticate(_ context.Context, c httpapi.Credential) (httpapi.Principal, error) {
	p, ok := k[c.Token]
	if !ok {
		return p, httpapi.ErrUnauthorized
	}
	return p, nil
}

// BenchmarkAuthorize measures what it costs to let a request in that does
// nothing: of an admin without a scope, and of 1,000 users who take turns, each
// with three grants and a token that narrows them. The ratio is that of the
// second to the first, in the same run.
func BenchmarkAuthorize(b *testing.B) {
	const users = 1000
	callers := known{"admin": {Actor: "user:admin", User: "admin", Rights: auth.RightsOf(auth.Grant{Role: auth.RoleAdmin})}}
	for i := range users {
		id := fmt.Sprintf("user-%d", i)
		callers[id] = httpapi.Principal{Actor: events.UserActor(id), User: events.UserID(id), Rights: auth.RightsOf(
			selects(auth.RoleOperator, fmt.Sprintf("site=s%04d", i)), selects(auth.RoleOperator, fmt.Sprintf("site=s%04d,role in (pos,kiosk)", i+1)), selects(auth.RoleViewer, "region=r07"),
		).Within(auth.RightsOf(selects(auth.RoleOperator, "role!=db")))}
	}
	h, err := httpapi.New(httpapi.Config{
		Auth: callers, Log: slog.New(slog.DiscardHandler), Limits: httpapi.Limits{Rate: 0},
		Register: []httpapi.Register{func(api huma.API) {
			huma.Register(api, huma.Operation{OperationID: "look", Method: "GET", Path: "/api/v1/look", Extensions: httpapi.Needs(auth.OperateVMs)},
				func(ctx context.Context, _ *struct{}) (*struct{}, error) {
					if httpapi.RequestOf(ctx).Scope.Nothing() {
						b.Error("a request without a scope was let in")
					}
					return nil, nil
				})
		}},
	})
	must(b, err)
	requests := make([]*http.Request, users+1)
	for i := range requests {
		token := "admin"
		if i > 0 {
			token = fmt.Sprintf("user-%d", i-1)
		}
		requests[i] = httptest.NewRequest("GET", "/api/v1/look", nil)
		requests[i].Header.Set("Authorization", "Bearer "+token)
	}
	serve := func(r *http.Request) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != http.StatusNoContent {
			b.Fatalf("status %d: %s", w.Code, w.Body)
		}
	}
	var without time.Duration // each
	for _, c := range []struct {
		name  string
		first int
		n     int
	}{{"without", 0, 1}, {"scoped-1000", 1, users}} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				serve(requests[c.first+i%c.n])
				i++
			}
			each := b.Elapsed() / time.Duration(b.N)
			if c.n == 1 {
				without = each
			} else if without > 0 {
				b.ReportMetric(float64(each)/float64(without), "of-without")
			}
		})
	}
}
