package client

import (
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"
)

const (
	// maxTries is how often a request is sent at most.
	maxTries = 5
	// maxRetryAfter is the longest that a manager is obeyed; who is told to
	// wait longer gets the answer instead.
	maxRetryAfter = 30 * time.Second
)

// Retry sends a request again when the manager was too busy for it and said
// when to come back: after a 429, which says that nothing was done, any
// request; after a 503 those that may be sent twice. It is safe for concurrent
// use.
type Retry struct {
	next HttpRequestDoer
}

// Option puts it between a client and its connection.
func (t *Retry) Option(c *Client) error {
	t.next, c.Client = c.Client, t
	return nil
}

// Do implements [HttpRequestDoer].
func (t *Retry) Do(r *http.Request) (*http.Response, error) {
	for try := 1; ; try++ {
		resp, err := t.next.Do(r)
		if err != nil || try == maxTries {
			return resp, err
		}
		wait, ok := retryAfter(r, resp)
		if deadline, set := r.Context().Deadline(); !ok || set && time.Until(deadline) < wait {
			return resp, nil
		}
		if r.GetBody != nil {
			if r.Body, err = r.GetBody(); err != nil {
				return resp, nil //nolint:nilerr // the answer that came is the better one
			}
		}
		_, _ = io.CopyN(io.Discard, resp.Body, 64<<10) // so that the connection can be used again
		_ = resp.Body.Close()
		pause := time.NewTimer(wait + rand.N(wait/4)) // not all at the same instant
		select {
		case <-pause.C:
		case <-r.Context().Done():
			pause.Stop()
			return nil, r.Context().Err()
		}
	}
}

// retryAfter returns when the request may be sent again, if it may.
func retryAfter(r *http.Request, resp *http.Response) (time.Duration, bool) {
	switch {
	case resp.StatusCode == http.StatusTooManyRequests:
	case resp.StatusCode == http.StatusServiceUnavailable && repeatable(r):
	default:
		return 0, false
	}
	if r.Body != nil && r.Body != http.NoBody && r.GetBody == nil {
		return 0, false
	}
	seconds, err := strconv.Atoi(resp.Header.Get("Retry-After"))
	wait := time.Duration(seconds) * time.Second
	return wait, err == nil && wait > 0 && wait <= maxRetryAfter
}

// repeatable says whether a request may be sent twice.
func repeatable(r *http.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodPut, http.MethodDelete:
		return true
	}
	return r.Header.Get("Idempotency-Key") != ""
}
