package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"

	"pallas/internal/client"
)

// silence is how long a stream may say nothing: the manager sends a comment
// every 15 seconds.
const silence = 50 * time.Second

// stopped is an error of who handles events, not of the stream.
type stopped struct{ error }

func (s stopped) Unwrap() error { return s.error }

// follow hands events to handle as they happen, until handle returns an error
// or the context ends. A stream that breaks is taken up again after the last
// event that was handled; lost is told each time. Who follows has asked the
// manager something before, so one that does not answer comes back.
func (s *session) follow(ctx context.Context, p client.StreamEventsParams, lost func(error), handle func(client.Event) error) error {
	wait := backoff.NewExponentialBackOff()
	wait.MaxInterval = 15 * time.Second
	for {
		opened, err := s.stream(ctx, &p, handle)
		var stop stopped
		switch {
		case errors.As(err, &stop):
			return stop.error
		case ctx.Err() != nil:
			return ctx.Err()
		case !transient(err):
			return err
		}
		if opened {
			wait.Reset()
		}
		lost(err)
		pause := time.NewTimer(wait.NextBackOff())
		select {
		case <-ctx.Done():
			pause.Stop()
			return ctx.Err()
		case <-pause.C:
		}
	}
}

// transient says whether a stream may come back by itself.
func transient(err error) bool {
	code := asError(err).Code
	return code == exitUnreachable || code == exitError
}

// stream reads one event stream to its end and keeps the place in p. It never
// returns a nil error.
func (s *session) stream(ctx context.Context, p *client.StreamEventsParams, handle func(client.Event) error) (opened bool, err error) {
	within, cancel := context.WithCancel(ctx)
	defer cancel()
	watchdog := time.AfterFunc(s.timeout, cancel)
	defer watchdog.Stop()
	r, err := s.api.StreamEvents(within, p)
	if err != nil {
		if ctx.Err() == nil && within.Err() != nil {
			err = context.DeadlineExceeded
		}
		return false, unanswered(s.server, err)
	}
	defer r.Body.Close() //nolint:errcheck // read only
	if r.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(r.Body, 64<<10)) // what there is of it
		return false, problem(r.StatusCode, body)
	}
	var data []byte
	id := ""
	lines := bufio.NewReader(r.Body)
	for {
		watchdog.Reset(silence)
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return true, &Error{Code: exitUnreachable, Title: "the event stream ended", Detail: s.server}
		}
		field, value, _ := strings.Cut(string(bytes.TrimRight(line, "\r\n")), ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case field == "id":
			id = value
		case field == "data":
			data = append(data, value...)
		case field == "" && value == "" && len(data) > 0: // the end of an event
			var e client.Event
			if err := json.Unmarshal(data, &e); err != nil {
				return true, stopped{&Error{Code: exitError, Title: "cannot read the event stream", Detail: err.Error()}}
			}
			if err := handle(e); err != nil {
				return true, stopped{err}
			}
			p.LastEventID, data = new(id), data[:0]
		}
	}
}

// lost tells the person that a stream has to be taken up again.
func (a *app) lost(err error) { a.note("%v; connecting again", err) }
