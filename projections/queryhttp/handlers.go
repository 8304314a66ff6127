package queryhttp

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"pallas/events"
	"pallas/events/labels"
	"pallas/internal/httpapi"
	"pallas/projections"
)

// Config says what the operations read.
type Config struct {
	// DB is the read model, Store the event log. Required.
	DB    *projections.DB
	Store events.Store
	// Usage is what devices' connections cost. Required.
	Usage *projections.Usage
	// LogBytes returns the size of the event log on disk. Required.
	LogBytes func(ctx context.Context) (uint64, error)
	// Version of the manager, for people.
	Version string
	// Heartbeat is how often a silent event stream says that it lives; 0 means
	// 15 s.
	Heartbeat time.Duration
}

// Handlers are the operations.
type Handlers struct {
	cfg  Config
	tail tail // of the log, for streams
	// reading holds a place for each stream that reads the past.
	reading chan struct{}
}

// pastReaders is how many streams read the past at the same time.
const pastReaders = 8

// New returns the operations.
func New(cfg Config) (*Handlers, error) {
	if cfg.DB == nil || cfg.Store == nil || cfg.Usage == nil || cfg.LogBytes == nil {
		return nil, errors.New("queryhttp: DB, Store, Usage and LogBytes are required")
	}
	if cfg.Heartbeat == 0 {
		cfg.Heartbeat = 15 * time.Second
	}
	return &Handlers{cfg: cfg, tail: tail{store: cfg.Store, db: cfg.DB}, reading: make(chan struct{}, pastReaders)}, nil
}

// Describe adds the operations to an API that only describes itself.
func Describe(api huma.API) { (&Handlers{}).Register(api) }

// Register adds the operations to an API.
func (h *Handlers) Register(api huma.API) {
	h.registerDevices(api)
	h.registerVMs(api)
	h.registerTasks(api)
	h.registerJoinTokens(api)
	h.registerEvents(api)
	h.registerStatus(api)
	h.registerUsage(api)
}

// waitTimeout bounds how long a read waits for its Pallas-Position.
const waitTimeout = 5 * time.Second

// Reading holds the headers of every read of the read model.
type Reading struct {
	At uint64 `header:"Pallas-Position" example:"1842" doc:"Position that the answer must show at least, as an earlier answer gave it. The read waits for it up to 5 seconds."`
}

// Shown holds the headers of an answer from the read model.
type Shown struct {
	Position uint64 `header:"Pallas-Position" example:"1843" doc:"Position in the event log that the answer shows at least."`
}

// Conditional holds the header of a read of one thing.
type Conditional struct {
	IfNoneMatch string `header:"If-None-Match" maxLength:"256" example:"\"1841.3f9k2\"" doc:"ETag of the caller's copy: 304 when that is still right."`
}

// One answers a read of one thing.
type One[T any] struct {
	Shown
	Status int
	ETag   string `header:"ETag" example:"\"1841.3f9k2\"" doc:"Changes whenever the answer does."`
	Body   T
}

// Page is one piece of a list.
type Page[T any] struct {
	Items []T    `json:"items" doc:"The items, in the list's order."`
	Next  string `json:"next,omitempty" example:"WyJkZXZpY2VzIiwic2hvcC0wMDQyIl0" doc:"Send it as cursor for the next piece. Absent at the end of the list."`
}

// List answers a read of a list.
type List[T any] struct {
	Shown
	Body Page[T]
}

// Window holds the parameters of a list.
type Window struct {
	Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"100" example:"100" doc:"How many items to answer at most."`
	Cursor string `query:"cursor" maxLength:"1024" example:"WyJkZXZpY2VzIiwic2hvcC0wMDQyIl0" doc:"next of the piece before, with the same filters and sort."`
}

func (w Window) of() projections.Window {
	return projections.Window{Limit: w.Limit, Cursor: w.Cursor}
}

// wait returns when the read model is complete and has the position that a
// request asks for, and which position it shows now.
func (h *Handlers) wait(ctx context.Context, r Reading) (uint64, error) {
	wctx, cancel := context.WithTimeout(ctx, waitTimeout)
	defer cancel()
	if err := h.cfg.DB.WaitReady(wctx); err != nil {
		s := h.cfg.DB.Status()
		return 0, httpapi.NewProblem(httpapi.KindBehind,
			fmt.Sprintf("the read model is being built from the log and is at position %d of %d; try again", s.Position, s.Last))
	}
	return h.reach(ctx, r)
}

// reach is wait for those who want to see a read model that is being built.
func (h *Handlers) reach(ctx context.Context, r Reading) (uint64, error) {
	if r.At > h.cfg.DB.Position() {
		wctx, cancel := context.WithTimeout(ctx, waitTimeout)
		defer cancel()
		if err := h.cfg.DB.Wait(wctx, r.At); err != nil {
			return 0, httpapi.NewProblem(httpapi.KindBehind,
				fmt.Sprintf("the read model is at position %d, not yet at %d; try again, or without Pallas-Position to see what it has", h.cfg.DB.Position(), r.At))
		}
	}
	return h.cfg.DB.Position(), nil
}

// scope returns the devices that the caller may see.
func scope(ctx context.Context) labels.Scope { return httpapi.RequestOf(ctx).Scope }

// list answers a page of rows as representations.
func list[R, T any](ctx context.Context, p projections.Page[R], err error, position uint64, show func(R) T) (*List[T], error) {
	if err != nil {
		return nil, mapError(ctx, err)
	}
	out := &List[T]{Shown: Shown{position}, Body: Page[T]{Items: make([]T, 0, len(p.Items)), Next: p.Next}}
	for _, row := range p.Items {
		out.Body.Items = append(out.Body.Items, show(row))
	}
	return out, nil
}

// one answers one representation, or that the caller has it already.
func one[T any](position, revision uint64, c Conditional, body T) *One[T] {
	out := &One[T]{Shown: Shown{position}, Status: http.StatusOK, ETag: httpapi.ETag(revision, body), Body: body}
	if httpapi.NotModified(c.IfNoneMatch, out.ETag) {
		out.Status = http.StatusNotModified
	}
	return out
}

// mapError returns the problem of an error of the read model.
func mapError(ctx context.Context, err error) error {
	var field *projections.FieldError
	var selector *labels.SyntaxError
	switch {
	case errors.As(err, &field):
		return httpapi.Invalid("query."+field.Field, field.Message)
	case errors.As(err, &selector):
		return httpapi.Invalid("query.selector", fmt.Sprintf("position %d: %s", selector.Position, selector.Message))
	case errors.Is(err, projections.ErrBadCursor):
		return httpapi.Invalid("query.cursor", projections.ErrBadCursor.Error())
	case errors.Is(err, projections.ErrClosed), errors.Is(err, projections.ErrBehind), errors.Is(err, projections.ErrStopped):
		return httpapi.NewProblem(httpapi.KindUnavailable, "the read model is not available now")
	}
	return httpapi.MapError(ctx, err)
}

// as converts the words of a parameter; its enum has checked them.
func as[T ~string](words []string) []T {
	out := make([]T, len(words))
	for i, w := range words {
		out[i] = T(w)
	}
	return out
}

// deviceParam parses a device that a query parameter names.
func deviceParam(s string) (events.DeviceID, error) {
	if s == "" {
		return "", nil
	}
	id, err := events.ParseDeviceID(s)
	if err != nil {
		return "", httpapi.Invalid("query.device", err.Error())
	}
	return id, nil
}
