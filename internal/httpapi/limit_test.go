package httpapi_test

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"pallas/internal/auth"
	"pallas/internal/httpapi"
)

func TestNetwork(t *testing.T) {
	for _, tc := range []struct {
		a, b string
		same bool
	}{
		{"192.0.2.1", "192.0.2.1", true},
		{"192.0.2.1", "192.0.2.2", false},
		{"192.0.2.1", "::ffff:192.0.2.1", true},
		{"2001:db8::1", "2001:db8::ffff:1", true},
		{"2001:db8::1", "2001:db8:0:1::1", false},
		{"fe80::1%eth0", "fe80::1%eth1", true},
		{"garbage", "", true},
		{"garbage", "0.0.0.0", false},
	} {
		if got := httpapi.SourceNetwork(tc.a) == httpapi.SourceNetwork(tc.b); got != tc.same {
			t.Errorf("%s and %s are one source: %v, want %v", tc.a, tc.b, got, tc.same)
		}
	}
}

// limited has the API know these limits, and stops its clock, so that nothing
// comes back by itself.
func limited(l httpapi.Limits, now *time.Time) option {
	return func(o *options) {
		o.httpapi = func(c *httpapi.Config) {
			c.Limits, c.Now = l, func() time.Time { return *now }
		}
	}
}

// shed demands an answer that sends the client away for so many seconds.
func (a answer) shed(t testing.TB, status int, name, seconds string) {
	t.Helper()
	p := a.problem(t)
	if a.StatusCode != status || p.Status != status || p.Type != httpapi.TypePrefix+name || p.Detail == "" {
		t.Errorf("answered %d %+v, want %d %s", a.StatusCode, p, status, name)
	}
	if got := a.Header.Get("Retry-After"); got != seconds {
		t.Errorf("Retry-After is %q, want %q", got, seconds)
	}
}

func TestRateOfAUser(t *testing.T) {
	now := time.Now()
	m := start(t, limited(httpapi.Limits{Rate: 0.5}, &now)) // a burst of one
	if a := m.do("GET", "/api/v1/devices", ""); a.StatusCode != 200 {
		t.Fatalf("the first request: %d", a.StatusCode)
	}
	m.do("GET", "/api/v1/devices", "").shed(t, 429, "too-many-requests", "2")
	m.do("POST", "/api/v1/join-tokens", `{"name":"x"}`).shed(t, 429, "too-many-requests", "2")

	// Tokens are no way around the limit of their user. Another user is not
	// concerned, nor is what must always answer.
	m.as(m.newToken("admin")).do("GET", "/api/v1/devices", "").shed(t, 429, "too-many-requests", "2")
	if a := m.as(m.newToken("other")).do("GET", "/api/v1/devices", ""); a.StatusCode != 200 {
		t.Errorf("another user: %d", a.StatusCode)
	}
	for _, path := range []string{"/livez", "/readyz", "/metrics"} {
		if a := m.do("GET", path, ""); a.StatusCode == 429 {
			t.Errorf("%s is limited", path)
		}
	}
	now = now.Add(2 * time.Second)
	if a := m.do("GET", "/api/v1/devices", ""); a.StatusCode != 200 {
		t.Errorf("after Retry-After: %d", a.StatusCode)
	}
	if a := m.do("GET", "/metrics", ""); !strings.Contains(string(a.body), `pallas_http_requests_shed_total{reason="rate"} 3`) {
		t.Errorf("metrics: %s", a.body)
	}
}

func TestFailuresOfASource(t *testing.T) {
	now := time.Now()
	m := start(t, limited(httpapi.Limits{FailureRate: 0.25, FailureBurst: 3}, &now))
	bad := []string{"Authorization", "Bearer pls_wrong"}
	for i := range 3 {
		if a := m.do("GET", "/api/v1/devices", "", bad...); a.StatusCode != 401 {
			t.Fatalf("failure %d: %d", i, a.StatusCode)
		}
	}
	m.do("GET", "/api/v1/devices", "", bad...).shed(t, 429, "too-many-requests", "4")
	m.do("GET", "/metrics", "", bad...).shed(t, 429, "too-many-requests", "4")
	if a := m.do("GET", "/api/v1/devices", ""); a.StatusCode != 200 {
		t.Errorf("a valid token from the same address: %d", a.StatusCode)
	}
	now = now.Add(4 * time.Second)
	if a := m.do("GET", "/api/v1/devices", "", bad...); a.StatusCode != 401 {
		t.Errorf("after Retry-After: %d", a.StatusCode)
	}
}

// TestPlaces holds event streams and requests open and asks for one more.
func TestPlaces(t *testing.T) {
	now := time.Now()
	entered, release := make(chan struct{}), make(chan struct{})
	m := start(t, limited(httpapi.Limits{Active: 4, Streams: 2}, &now), func(o *options) {
		limits := o.httpapi
		o.httpapi = func(c *httpapi.Config) {
			limits(c)
			c.Register = append(c.Register, func(api huma.API) {
				huma.Get(api, "/api/v1/held", func(context.Context, *struct{}) (*struct{}, error) {
					entered <- struct{}{}
					<-release
					return nil, nil
				}, func(o *huma.Operation) { o.Extensions = httpapi.Needs(auth.Self) })
			})
		}
	})
	for range 2 {
		req, err := http.NewRequestWithContext(t.Context(), "GET", m.url+"/api/v1/events/stream", nil)
		must(t, err)
		req.Header.Set("Authorization", "Bearer "+m.token)
		resp, err := m.client.Do(req)
		must(t, err)
		t.Cleanup(func() { must(t, resp.Body.Close()) })
		if resp.StatusCode != 200 {
			t.Fatalf("open a stream: %d", resp.StatusCode)
		}
	}
	m.do("GET", "/api/v1/events/stream", "").shed(t, 503, "overloaded", "1")
	if a := m.do("GET", "/api/v1/devices", ""); a.StatusCode != 200 {
		t.Errorf("streams took the place of requests: %d", a.StatusCode)
	}

	// A token has half of the places, all tokens together have all.
	var held sync.WaitGroup
	defer held.Wait()
	defer close(release)
	for i, token := range []string{m.token, m.newToken("second")} {
		m.token = token
		for range 2 {
			req, err := http.NewRequestWithContext(t.Context(), "GET", m.url+"/api/v1/held", nil)
			must(t, err)
			req.Header.Set("Authorization", "Bearer "+token)
			held.Go(func() {
				resp, err := m.client.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				if err := resp.Body.Close(); err != nil || resp.StatusCode != 204 {
					t.Errorf("a request that was let in: %d %v", resp.StatusCode, err)
				}
			})
			<-entered
		}
		if i == 0 {
			m.do("GET", "/api/v1/devices", "").shed(t, 429, "too-many-requests", "1")
		}
	}
	m.do("GET", "/api/v1/devices", "").shed(t, 503, "overloaded", "1")
	if a := m.do("GET", "/livez", ""); a.StatusCode != 200 {
		t.Errorf("/livez: %d", a.StatusCode)
	}
}
