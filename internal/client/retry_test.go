package client_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pallas/internal/client"
)

// handled lets a handler answer without a network, so that waiting takes no
// time.
type handled struct{ http.Handler }

func (h handled) Do(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result(), nil
}

func TestRetry(t *testing.T) {
	for name, c := range map[string]struct {
		method, key string
		status      int
		after       string
		refused     int // how many requests are
		deadline    time.Duration
		tries, want int
	}{
		"read, limited":                {method: "GET", status: 429, after: "2", refused: 2, tries: 3, want: 200},
		"read, busy":                   {method: "GET", status: 503, after: "1", refused: 1, tries: 2, want: 200},
		"change, limited":              {method: "POST", status: 429, after: "2", refused: 1, tries: 2, want: 200},
		"change, busy":                 {method: "POST", status: 503, after: "1", refused: 9, tries: 1, want: 503},
		"change with a key, busy":      {method: "POST", key: "k", status: 503, after: "1", refused: 1, tries: 2, want: 200},
		"not told when":                {method: "GET", status: 503, refused: 9, tries: 1, want: 503},
		"told a date":                  {method: "GET", status: 503, after: "Fri, 31 Dec 1999 23:59:59 GMT", refused: 9, tries: 1, want: 503},
		"told too long":                {method: "GET", status: 429, after: "3600", refused: 9, tries: 1, want: 429},
		"no time left":                 {method: "GET", status: 429, after: "20", refused: 9, deadline: 10 * time.Second, tries: 1, want: 429},
		"never":                        {method: "GET", status: 429, after: "1", refused: 99, tries: 5, want: 429},
		"another error is not retried": {method: "GET", status: 500, after: "1", refused: 9, tries: 1, want: 500},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tries := 0
				var bodies []string
				server := handled{http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.Body != nil {
						b, _ := io.ReadAll(r.Body)
						bodies = append(bodies, string(b))
					}
					if tries++; tries <= c.refused {
						w.Header().Set("Retry-After", c.after)
						w.WriteHeader(c.status)
					}
				})}
				api, err := client.NewClient("https://manager", client.WithHTTPClient(server), new(client.Retry).Option)
				if err != nil {
					t.Fatal(err)
				}
				ctx := t.Context()
				if c.deadline > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, c.deadline)
					defer cancel()
				}
				r, err := http.NewRequestWithContext(ctx, c.method, "https://manager/x", strings.NewReader("body"))
				if err != nil {
					t.Fatal(err)
				}
				if c.key != "" {
					r.Header.Set("Idempotency-Key", c.key)
				}
				resp, err := api.Client.Do(r)
				if err != nil {
					t.Fatal(err)
				}
				_ = resp.Body.Close()
				if resp.StatusCode != c.want || tries != c.tries {
					t.Errorf("%d after %d tries, want %d after %d", resp.StatusCode, tries, c.want, c.tries)
				}
				for i, b := range bodies {
					if b != "body" {
						t.Errorf("try %d sent %q", i+1, b)
					}
				}
			})
		})
	}
}

func TestRetryEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		server := handled{http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "20")
			w.WriteHeader(http.StatusTooManyRequests)
			time.AfterFunc(time.Second, cancel)
		})}
		api, err := client.NewClient("https://manager", client.WithHTTPClient(server), new(client.Retry).Option)
		if err != nil {
			t.Fatal(err)
		}
		r, err := http.NewRequestWithContext(ctx, "GET", "https://manager/x", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := api.Client.Do(r)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
		if resp != nil {
			_ = resp.Body.Close()
		}
	})
}
