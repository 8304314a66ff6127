package queryhttp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"pallas/events"
	"pallas/internal/auth"
	"pallas/internal/httpapi"
)

// EventFilter holds the parameters that pick events.
type EventFilter struct {
	Device string   `query:"device" format:"uuid" example:"6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f" doc:"Only events of this device: identity, inventory and tasks."`
	Type   []string `query:"type" maxItems:"64" example:"[\"TaskSucceeded\",\"TaskFailed\"]" doc:"Only events of these types; schema/events has a file for each."`
	Actor  string   `query:"actor" maxLength:"128" pattern:"^(user|token|device|system):." patternDescription:"user:, token:, device: or system: and an id" example:"user:admin" doc:"Only events that this actor caused."`
	Since  string   `query:"since" format:"date-time" example:"2026-11-23T00:00:00Z" doc:"Only events decided at this instant or later."`
	After  string   `query:"after" maxLength:"64" pattern:"^[0-9]{1,19}([.][0-9]{1,9})?$" patternDescription:"a position such as 1840, or an event's cursor such as 1840.1" example:"1840" doc:"Only events after this position or event cursor."`
}

// EventPage is one piece of the event history.
type EventPage struct {
	Items []httpapi.Event `json:"items" doc:"The events. May be fewer than limit, or none, while next is there: the piece then covers a stretch of the log where little matches."`
	Next  string          `json:"next,omitempty" example:"asc.1840.1" doc:"Send it as cursor for the next piece. Absent at the end of the log."`
}

const (
	typeJSON   = "application/json"
	typeNDJSON = "application/x-ndjson"
	typeSSE    = "text/event-stream"
)

func (h *Handlers) registerEvents(api huma.API) {
	schemas := api.OpenAPI().Components.Schemas
	huma.Register(api, huma.Operation{
		OperationID: "list-events", Method: http.MethodGet, Path: httpapi.Prefix + "/events", Tags: []string{"events"},
		Extensions: httpapi.Needs(auth.ReadFleet),
		Summary:    "List events",
		Description: "The history as pages, or with \"Accept: application/x-ndjson\" everything that matches as a stream of one event per line. " +
			"The stream ends where the log ended when the request came; it is cut off, without the final chunk, when something goes wrong.",
		Responses: map[string]*huma.Response{"200": {Description: "Events", Content: map[string]*huma.MediaType{
			typeJSON:   {Schema: schemas.Schema(typeOf[EventPage](), true, "")},
			typeNDJSON: {Schema: schemas.Schema(typeOf[httpapi.Event](), true, "")},
		}}},
	}, h.listEvents)
	huma.Register(api, huma.Operation{
		OperationID: "stream-events", Method: http.MethodGet, Path: httpapi.Prefix + "/events/stream", Tags: []string{"events"},
		Extensions: httpapi.Needs(auth.ReadFleet),
		Summary:    "Follow events live",
		Description: "Server-sent events: data is an event in JSON, id is where to go on. Send the last id as Last-Event-ID (browsers do) and nothing is lost or doubled. " +
			"Begins with what happens from now on, unless after, since or Last-Event-ID says otherwise. A comment each 15 seconds shows that the stream lives. A client that reads slower than events come is sent away by the end of the stream.",
		Responses: map[string]*huma.Response{"200": {Description: "Events", Content: map[string]*huma.MediaType{
			typeSSE: {Schema: &huma.Schema{Type: huma.TypeString, Description: "Server-sent events whose data is an Event.", Examples: []any{"id: 1840\ndata: {\"specversion\":\"1.0\"}\n\n"}}},
		}}},
	}, h.streamEvents)
}

type listEventsInput struct {
	EventFilter
	Until  string `query:"until" format:"date-time" example:"2026-11-24T00:00:00Z" doc:"Only events decided before this instant."`
	Order  string `query:"order" enum:"asc,desc" default:"asc" example:"desc" doc:"asc begins with the oldest, desc with the newest."`
	Limit  int    `query:"limit" minimum:"1" maximum:"1000" example:"100" doc:"How many events to answer at most. 100 for a page when not given, no limit for NDJSON."`
	Cursor string `query:"cursor" maxLength:"64" example:"asc.1840.1" doc:"next of the piece before, with the same filters and order."`
}

func (h *Handlers) listEvents(ctx context.Context, in *listEventsInput) (*huma.StreamResponse, error) {
	q, err := in.query()
	if err != nil {
		return nil, err
	}
	q.descending = in.Order == "desc"
	if q.until, err = instant("query.until", in.Until); err != nil {
		return nil, err
	}
	if in.Since != "" && in.Until != "" && !q.until.After(q.since) {
		return nil, httpapi.Invalid("query.until", "must be after since")
	}
	if in.Cursor != "" {
		if q.from, err = parseCursor(in.Cursor, in.Order); err != nil {
			return nil, err
		}
	}
	// The first page is read before the status is sent, so that an error is a
	// problem and not a broken stream.
	if q.last, err = h.cfg.Store.Last(ctx); err != nil {
		return nil, mapError(ctx, err)
	}
	eye := h.eyeOf(ctx)
	if err := h.settle(ctx, eye.sight, q.last); err != nil {
		return nil, err
	}
	position := strconv.FormatUint(q.last, 10)
	size := in.Limit
	if size == 0 {
		size = 100
	}
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		r, w := humago.Unwrap(hc)
		ndjson := accepts(r.Header.Get("Accept"), typeNDJSON)
		if ndjson && in.Limit == 0 {
			size = exportPage
		}
		p, err := q.page(ctx, h.cfg.Store, eye, size)
		if err != nil {
			httpapi.WriteError(w, r, mapError(ctx, err))
			return
		}
		w.Header().Set(httpapi.HeaderPosition, position)
		w.Header().Set("Vary", "Accept")
		if !ndjson {
			w.Header().Set("Content-Type", typeJSON)
			_ = json.NewEncoder(w).Encode(p) // the client is gone: nothing to do about it
			return
		}
		w.Header().Set("Content-Type", typeNDJSON)
		h.export(ctx, w, q, eye, p, in.Limit)
	}}, nil
}

// exportPage is how many events an export reads before it writes them.
const exportPage = 1000

// writeTimeout is how long a client may take to read what was written.
const writeTimeout = 30 * time.Second

// export writes page after page. What goes wrong now can only be shown by
// cutting the answer off.
func (h *Handlers) export(ctx context.Context, w http.ResponseWriter, q eventQuery, eye *eye, p EventPage, limit int) {
	rc := http.NewResponseController(w)
	enc := json.NewEncoder(w)
	for {
		if err := rc.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
			cutOff(ctx, err)
		}
		for _, e := range p.Items {
			if err := enc.Encode(e); err != nil {
				cutOff(ctx, err)
			}
		}
		if p.Next == "" || (limit != 0 && len(p.Items) == limit) {
			return
		}
		if err := rc.Flush(); err != nil {
			cutOff(ctx, err)
		}
		size := exportPage
		if limit != 0 {
			limit -= len(p.Items)
			size = limit
		}
		var err error
		if q.from, err = parseCursor(p.Next, q.order()); err != nil {
			cutOff(ctx, err)
		}
		if p, err = q.page(ctx, h.cfg.Store, eye, size); err != nil {
			cutOff(ctx, err)
		}
	}
}

// cutOff ends an answer that has begun, so that the client sees that it is not
// complete. It does not return.
func cutOff(ctx context.Context, err error) {
	if ctx.Err() == nil { // otherwise the client went away, which is no fault
		httpapi.Note(ctx, err)
	}
	panic(http.ErrAbortHandler)
}

type streamEventsInput struct {
	EventFilter
	LastEventID string `header:"Last-Event-ID" maxLength:"64" pattern:"^[0-9]{1,19}([.][0-9]{1,9})?$" patternDescription:"the id of an event that was received" example:"1840" doc:"id of the last event that was received. Goes before after."`
}

func (h *Handlers) streamEvents(ctx context.Context, in *streamEventsInput) (*huma.StreamResponse, error) {
	if in.LastEventID != "" {
		in.After = in.LastEventID
	}
	q, err := in.query()
	if err != nil {
		return nil, err
	}
	last, err := h.cfg.Store.Last(ctx)
	if err != nil {
		return nil, mapError(ctx, err)
	}
	if in.After == "" && in.Since == "" {
		q.after = place{last, all}
	}
	q.sight = sightOf(ctx)
	if err := h.settle(ctx, q.sight, last); err != nil {
		return nil, err
	}
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		_, w := humago.Unwrap(hc)
		w.Header().Set("Content-Type", typeSSE)
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Accel-Buffering", "no") // proxies must not hold events back
		h.stream(ctx, w, q)
	}}, nil
}

const (
	// streamChunk is how many bytes are written at a time, if so many are there.
	streamChunk = 32 << 10
	// pastSize is how many bytes are read before they are written.
	pastSize = 256 << 10
	// slowRetry is when a client that did not keep up may come back.
	slowRetry = "retry: 5000\n: too slow: go on with Last-Event-ID\n\n"
)

// stream writes events as they come, until the client or the server is gone, or
// the client does not keep up.
func (h *Handlers) stream(ctx context.Context, w http.ResponseWriter, q eventQuery) {
	rc := http.NewResponseController(w)
	write := func(text []byte) bool {
		if err := rc.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
			return false
		}
		_, err := w.Write(text)
		return err == nil && rc.Flush() == nil
	}
	if !write([]byte("retry: 2000\n: the stream is open\n\n")) {
		return
	}
	// Joined before the past is read: nothing is missed in between.
	s, err := h.tail.join(ctx, q)
	switch {
	case ctx.Err() != nil && err != nil:
		return
	case err != nil:
		cutOff(ctx, err)
	}
	defer h.tail.leave(s)
	switch err := h.past(ctx, s, write); {
	case ctx.Err() != nil:
		return
	case err != nil:
		cutOff(ctx, err) // the client comes back with Last-Event-ID
	}
	var text []byte
	beat := time.NewTicker(h.cfg.Heartbeat)
	defer beat.Stop()
	for {
		if len(text) > 0 && !write(text) {
			return
		}
		text = text[:0]
		select {
		case it, ok := <-s.found:
			for ; ok; it, ok = s.waiting(len(text)) {
				if text, err = s.query.appendSSE(text, it); err != nil {
					cutOff(ctx, err)
				}
			}
		case <-beat.C:
			text = append(text, ":\n\n"...)
		case <-ctx.Done():
			return
		}
		if len(text) > 0 {
			continue
		}
		if errors.Is(s.err, errSlow) {
			write([]byte(slowRetry))
			return
		}
		cutOff(ctx, s.err)
	}
}

// waiting returns the next item if there is one and the chunk has room.
func (s *stream) waiting(size int) (*item, bool) {
	if size >= streamChunk {
		return nil, false
	}
	select {
	case it, ok := <-s.found:
		return it, ok
	default:
		return nil, false
	}
}

// past writes what the client wants of before the stream's start.
func (h *Handlers) past(ctx context.Context, s *stream, write func([]byte) bool) error {
	q, eye := s.query, &eye{sight: s.query.sight, db: h.cfg.DB, judged: map[events.Subject]bool{}}
	for q.floor() < s.start {
		text, read, err := h.pastChunk(ctx, q, eye, s.start)
		if err != nil {
			return err
		}
		if len(text) > 0 && !write(text) {
			return context.Canceled // the client is gone
		}
		q.after = place{read, all}
	}
	return nil
}

// pastChunk returns the next events up to a position, and how far it read. Only
// some clients' are read at the same time, and none is waited for meanwhile:
// when all come back at once, others want to read too.
func (h *Handlers) pastChunk(ctx context.Context, q eventQuery, eye *eye, end uint64) (text []byte, read uint64, err error) {
	select {
	case h.reading <- struct{}{}:
		defer func() { <-h.reading }()
	case <-ctx.Done():
		return nil, 0, ctx.Err()
	}
	for r, err := range h.cfg.Store.Read(ctx, q.filter()) {
		if err != nil {
			return nil, 0, fmt.Errorf("read events: %w", err)
		}
		if r.Position > end {
			break
		}
		if len(text) >= pastSize {
			return text, read, nil
		}
		read = r.Position
		if !q.picks(r) {
			continue
		}
		if visible, err := eye.sees(ctx, r); err != nil {
			return nil, 0, err
		} else if !visible {
			continue
		}
		if text, err = q.appendSSE(text, newItem(r)); err != nil {
			return nil, 0, err
		}
	}
	return text, end, nil
}

// query returns what the parameters ask for.
func (f EventFilter) query() (eventQuery, error) {
	q := eventQuery{actor: events.Actor(f.Actor)}
	device, err := deviceParam(f.Device)
	if err != nil {
		return q, err
	}
	if q.since, err = instant("query.since", f.Since); err != nil {
		return q, err
	}
	if id, ok := strings.CutPrefix(f.Actor, "device:"); ok && device == "" {
		// A device acts on itself alone, and its history is found without a scan.
		if self, err := events.ParseDeviceID(id); err == nil {
			device = self
		}
	}
	if device != "" {
		q.subjects = []string{string(events.DeviceSubject(device)), string(events.InventorySubject(device)), string(events.TasksSubject(device))}
	}
	for _, t := range f.Type {
		if !slices.Contains(eventTypes, t) {
			return q, httpapi.Invalid("query.type", strconv.Quote(t)+" is no type of event; there are "+strings.Join(eventTypes, ", "))
		}
	}
	q.types = f.Type
	if f.After != "" {
		if q.after, err = parsePlace(f.After); err != nil {
			return q, httpapi.Invalid("query.after", "want a position such as 1840, or an event's cursor such as 1840.1")
		}
	}
	return q, nil
}

// instant parses an instant, "" to the zero one. The format has been checked.
func instant(field, s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return t, httpapi.Invalid(field, "want an RFC 3339 date-time such as 2026-11-23T09:30:00Z")
	}
	return t, nil
}

var eventTypes = func() []string {
	var out []string
	for _, t := range events.Types() {
		out = append(out, t.Name)
	}
	return out
}()

// accepts says whether an Accept header names a media type.
func accepts(header, mediaType string) bool {
	for part := range strings.SplitSeq(header, ",") {
		name, _, _ := strings.Cut(part, ";")
		if strings.EqualFold(strings.TrimSpace(name), mediaType) {
			return true
		}
	}
	return false
}
