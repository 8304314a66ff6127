package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"pallas/internal/auth"
)

// server is the handler around everything.
type server struct {
	cfg     Config
	mux     *http.ServeMux
	metrics *metrics
	limits  *limiter
	denials *denials
}

type metrics struct {
	requests *prometheus.HistogramVec
	active   prometheus.Gauge
	shed     *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "pallas_http_request_duration_seconds", Help: "Time from a request's arrival to the end of its answer.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"route", "status"}),
		active: prometheus.NewGauge(prometheus.GaugeOpts{Name: "pallas_http_requests_active", Help: "Requests being answered, event streams included."}),
		shed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pallas_http_requests_shed_total",
			Help: "Requests that were not let in, by reason: rate or concurrency of a user, failures of a source, or overloaded.",
		}, []string{"reason"}),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.requests, m.active, m.shed} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (s *server) serve(rw http.ResponseWriter, r *http.Request) {
	start := s.cfg.Now()
	req := newRequest(r, start)
	r = r.WithContext(context.WithValue(r.Context(), requestKey{}, req))
	r.Body = body{r.Body, req}
	w := &recorder{ResponseWriter: rw}
	s.metrics.active.Inc()
	route := "none"
	defer func() {
		s.metrics.active.Dec()
		p := recover()
		if err, _ := p.(error); p != nil && !errors.Is(err, http.ErrAbortHandler) {
			req.cause = panicError{p}
			s.cfg.Log.ErrorContext(r.Context(), "handler panicked", "request_id", req.ID, "route", route, "panic", p, "stack", string(debug.Stack()))
			if w.status == 0 {
				writeProblem(w, r, internal())
				p = nil
			} else {
				p = http.ErrAbortHandler // the answer is half sent: cut it off
			}
		}
		s.finish(r, req, w, route, start)
		if p != nil {
			panic(p)
		}
	}()
	secure(w.Header())
	w.Header().Set(HeaderRequestID, req.ID)
	if r.ContentLength > BodyLimit {
		w.Header().Set("Connection", "close")
		writeProblem(w, r, NewProblem(KindTooLarge, tooLarge))
		return
	}
	if foreign(r) {
		p := NewProblem(KindDenied, "the request was made by a page of another site, and nothing was done")
		p.Code = "cross_origin"
		writeProblem(w, r, p)
		return
	}
	h, pattern := s.mux.Handler(r)
	if pattern == "" {
		s.unrouted(w, r, h)
		return
	}
	route = pattern
	s.mux.ServeHTTP(w, r)
}

// unrouted answers a path or a method that nothing serves, as problem. The
// mux's own handler knows which of them it is.
func (s *server) unrouted(w http.ResponseWriter, r *http.Request, h http.Handler) {
	probe := &headerProbe{header: http.Header{}}
	h.ServeHTTP(probe, r)
	if probe.status == http.StatusMethodNotAllowed {
		allow := probe.header.Get("Allow")
		w.Header().Set("Allow", allow)
		writeProblem(w, r, NewProblem(KindMethod, "allowed here: "+allow))
		return
	}
	writeProblem(w, r, NewProblem(KindNotFound, "nothing is served under "+clip(r.URL.Path)+"; /docs shows what is"))
}

func (s *server) finish(r *http.Request, req *Request, w *recorder, route string, start time.Time) {
	d := s.cfg.Now().Sub(start)
	status := w.status
	if status == 0 {
		status = http.StatusOK
	}
	s.metrics.requests.WithLabelValues(route, strconv.Itoa(status)).Observe(d.Seconds())
	level := slog.LevelInfo
	attrs := []slog.Attr{
		slog.String("request_id", req.ID), slog.String("method", r.Method), slog.String("route", route), slog.Int("status", status),
		slog.Duration("duration", d), slog.Int64("bytes", w.bytes), slog.String("source", req.Source),
	}
	if req.Principal.Actor != "" {
		attrs = append(attrs, slog.String("actor", string(req.Principal.Actor)))
	}
	if req.Traceparent != "" {
		attrs = append(attrs, slog.String("traceparent", req.Traceparent))
	}
	if req.cause != nil {
		attrs = append(attrs, slog.String("error", req.cause.Error()))
		level = slog.LevelError
	}
	page := !strings.HasPrefix(route, "GET "+Prefix) && r.Method == http.MethodGet
	if level == slog.LevelInfo && (page || req.shed) {
		level = slog.LevelDebug // probes, metrics, pages and what is shed come often and say little
	}
	s.cfg.Log.LogAttrs(r.Context(), level, "http request", attrs...)
}

// secure sets the headers that every answer has. A page that needs more sets
// its own policy.
func secure(h http.Header) {
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Cache-Control", "private, no-cache")
}

type panicError struct{ value any }

func (panicError) Error() string { return "panic" }

// recorder notes status and size for the log. Unwrap lets
// [http.ResponseController] reach the connection.
type recorder struct {
	http.ResponseWriter
	status int
	bytes  int64
}

func (w *recorder) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *recorder) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(b)
	w.bytes += int64(n)
	return n, err
}

func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// headerProbe takes the head of an answer and forgets the rest.
type headerProbe struct {
	header http.Header
	status int
}

func (p *headerProbe) Header() http.Header         { return p.header }
func (p *headerProbe) Write(b []byte) (int, error) { return len(b), nil }
func (p *headerProbe) WriteHeader(status int)      { p.status = status }

// Check is one thing that must be well for the manager to be ready.
type Check struct {
	// Name is a word, such as "projection".
	Name string
	// Run returns how it is, for people, and an error when it is not well. It
	// must be quick: probes come often.
	Run func(ctx context.Context) (detail string, err error)
}

// checkTimeout bounds all checks of a probe together.
const checkTimeout = 3 * time.Second

type readiness struct {
	Status string        `json:"status"` // "ready" or "not ready"
	Checks []checkResult `json:"checks"`
}

type checkResult struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty"`
}

// health adds /livez, /readyz and /metrics.
func (s *server) health() {
	s.mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]string{"status": "alive"})
	})
	s.mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), checkTimeout)
		defer cancel()
		out, status := readiness{Status: "ready", Checks: []checkResult{}}, http.StatusOK
		for _, c := range s.cfg.Checks {
			detail, err := c.Run(ctx)
			res := checkResult{Name: c.Name, OK: err == nil, Detail: detail}
			if err != nil {
				res.Detail, out.Status, status = err.Error(), "not ready", http.StatusServiceUnavailable
			}
			out.Checks = append(out.Checks, res)
		}
		writeJSON(w, status, out)
	})
	if s.cfg.Gatherer == nil {
		return
	}
	metrics := promhttp.HandlerFor(s.cfg.Gatherer, promhttp.HandlerOpts{ErrorLog: promLog{s.cfg.Log}})
	s.mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		if s.cfg.OpenMetrics || s.authenticated(w, r) && s.permitted(w, r, "metrics", auth.ReadManager) {
			metrics.ServeHTTP(w, r)
		}
	})
}

type promLog struct{ log *slog.Logger }

func (l promLog) Println(v ...any) { l.log.Error("gather metrics", "error", v) }

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client is gone: nothing to do about it
}
