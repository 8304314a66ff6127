package client

import (
	"net/http"
	"strconv"
	"sync/atomic"
)

// positionHeader carries a position in the event log, both ways.
const positionHeader = "Pallas-Position"

// Position makes a client read its own writes: each read asks for an answer
// that shows at least the newest position that a write has answered, or that
// Seen was told of. It is safe for concurrent use.
type Position struct {
	at   atomic.Int64
	next HttpRequestDoer
}

// Option puts the position between a client and its connection.
func (p *Position) Option(c *Client) error {
	p.next, c.Client = c.Client, p
	return nil
}

// Seen raises the position.
func (p *Position) Seen(position int64) {
	for old := p.at.Load(); position > old && !p.at.CompareAndSwap(old, position); old = p.at.Load() {
	}
}

// Do implements [HttpRequestDoer].
func (p *Position) Do(r *http.Request) (*http.Response, error) {
	read := r.Method == http.MethodGet
	if at := p.at.Load(); read && at > 0 {
		r.Header.Set(positionHeader, strconv.FormatInt(at, 10))
	}
	resp, err := p.next.Do(r)
	if err != nil || read {
		return resp, err
	}
	if at, err := strconv.ParseInt(resp.Header.Get(positionHeader), 10, 64); err == nil {
		p.Seen(at)
	}
	return resp, nil
}
