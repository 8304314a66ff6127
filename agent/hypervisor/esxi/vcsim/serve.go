package vcsim

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

const (
	insideUser   = "vpxuser"
	maxSOAP      = 8 << 20
	pollInterval = time.Second
)

// insideKey marks requests of the host's own session.
type insideKey struct{}

// inside is the transport of the host's own session: it calls the service
// without a connection.
type inside struct{ h *Host }

func (i inside) RoundTrip(r *http.Request) (*http.Response, error) {
	rec := newRecorder()
	i.h.ServeHTTP(rec, r.WithContext(context.WithValue(r.Context(), insideKey{}, true)))
	if r.Body != nil {
		_ = r.Body.Close()
	}
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	return &http.Response{
		Status: strconv.Itoa(rec.code) + " " + http.StatusText(rec.code), StatusCode: rec.code,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: rec.header, Body: io.NopCloser(&rec.body), ContentLength: int64(rec.body.Len()), Request: r,
	}, nil
}

// recorder holds an answer until it may be sent.
type recorder struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

func newRecorder() *recorder { return &recorder{header: http.Header{}, code: http.StatusOK} }

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) WriteHeader(code int)        { r.code = code }
func (r *recorder) Write(b []byte) (int, error) { return r.body.Write(b) }

func (r *recorder) send(w http.ResponseWriter) {
	for k, v := range r.header {
		w.Header()[k] = v
	}
	w.WriteHeader(r.code)
	_, _ = w.Write(r.body.Bytes())
}

// ServeHTTP is the host's HTTPS service.
func (h *Host) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case strings.HasPrefix(r.URL.Path, "/sdk") && r.Method == http.MethodPost:
		h.serveSOAP(w, r)
	case strings.HasPrefix(r.URL.Path, "/folder/"):
		h.serveFolder(w, r)
	default:
		h.mux.ServeHTTP(w, r)
	}
}

// serveFolder guards the datastore's files, which the simulator gives to
// anybody.
func (h *Host) serveFolder(w http.ResponseWriter, r *http.Request) {
	user, password, basic := r.BasicAuth()
	switch {
	case basic && user == h.cfg.Username && password == h.Password():
	case h.session(r) != "":
	default:
		w.Header().Set("WWW-Authenticate", `Basic realm="VMware HTTP server"`)
		http.Error(w, "", http.StatusUnauthorized)
		return
	}
	if h.isReadOnly() && r.Method != http.MethodGet && r.Method != http.MethodHead {
		http.Error(w, "", http.StatusForbidden)
		return
	}
	if !h.pause(r.Context(), "folder") {
		return
	}
	h.mux.ServeHTTP(w, r)
}

// session returns the key of the request's live session, or "".
func (h *Host) session(r *http.Request) string {
	c, err := r.Cookie(soap.SessionCookieName)
	if err != nil {
		return ""
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.sessions[c.Value] {
		return c.Value
	}
	return ""
}

var vimTypes = types.TypeFunc()

func typeOf(name string) (reflect.Type, bool) {
	if t, ok := vimTypes(name); ok {
		return t, ok
	}
	_, local, _ := strings.Cut(name, ":")
	return vimTypes(local)
}

func (h *Host) serveSOAP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxSOAP))
	if err != nil {
		http.Error(w, "", http.StatusBadRequest)
		return
	}
	m, err := simulator.UnmarshalBody(typeOf, body)
	if err != nil || r.Context().Value(insideKey{}) != nil {
		h.call(w, r, body)
		return
	}
	h.mu.Lock()
	called := h.calls[m.Name]
	h.mu.Unlock()
	if called != nil {
		called()
	}
	if !h.pause(r.Context(), m.Name) {
		return
	}
	key := h.session(r)
	if key == "" {
		r.Header.Del("Cookie") // a dropped session
	}
	if f := h.refuse(m, key != ""); f != nil {
		writeFault(w, f)
		return
	}
	if h.answer(w, m) {
		return
	}
	switch m.Name {
	case "WaitForUpdatesEx":
		h.wait(w, r, body, m)
	case "Login":
		rec := newRecorder()
		h.call(rec, r, body)
		for _, c := range (&http.Response{Header: rec.header}).Cookies() {
			if c.Name == soap.SessionCookieName {
				h.mu.Lock()
				h.sessions[c.Value] = true
				h.mu.Unlock()
			}
		}
		rec.send(w)
	case "Logout":
		h.mu.Lock()
		delete(h.sessions, key)
		h.mu.Unlock()
		h.call(w, r, body)
	default:
		h.call(w, r, body)
	}
}

// call lets the simulator answer.
func (h *Host) call(w http.ResponseWriter, r *http.Request, body []byte) {
	rec := newRecorder()
	r = r.Clone(r.Context())
	r.Body = io.NopCloser(bytes.NewReader(body))
	h.mux.ServeHTTP(rec, r)
	worded := word(rec.body.Bytes())
	rec.body = *bytes.NewBuffer(worded)
	rec.header.Set("Content-Type", `text/xml; charset="utf-8"`)
	rec.send(w)
}

// wait answers WaitForUpdatesEx. The simulator would hold the call whatever
// becomes of the client; here it is asked again after each change, until the
// time is over, the client is gone or the host is closed.
func (h *Host) wait(w http.ResponseWriter, r *http.Request, body []byte, m *simulator.Method) {
	end := make(<-chan time.Time)
	if o := m.Body.(*types.WaitForUpdatesEx).Options; o != nil && o.MaxWaitSeconds != nil {
		t := time.NewTimer(time.Duration(*o.MaxWaitSeconds) * time.Second)
		defer t.Stop()
		end = t.C
	}
	poll := time.NewTicker(pollInterval)
	defer poll.Stop()
	over := false
	for {
		changed := h.changes()
		rec := newRecorder()
		h.call(rec, r, body)
		if over || rec.code != http.StatusOK || bytes.Contains(rec.body.Bytes(), []byte("<returnval")) {
			rec.send(w)
			return
		}
		select {
		case <-changed:
		case <-poll.C:
		case <-end:
			over = true
		case <-r.Context().Done():
			return
		case <-h.done:
			writeFault(w, new(types.RequestCanceled))
			return
		}
		if h.session(r) == "" {
			writeFault(w, notAuthenticated(m))
			return
		}
	}
}

// handle is the simulator's hook before each call.
func handle(_ *simulator.Context, m *simulator.Method) {
	if b, ok := m.Body.(*types.WaitForUpdatesEx); ok {
		o := types.WaitOptions{MaxWaitSeconds: types.NewInt32(0)}
		if b.Options != nil {
			o.MaxObjectUpdates = b.Options.MaxObjectUpdates
		}
		b.Options = &o
	}
}

// pause waits as SetDelay says. It returns false when nobody waits for the
// answer any more.
func (h *Host) pause(ctx context.Context, method string) bool {
	h.mu.Lock()
	d := h.delays[method] + h.delays["*"]
	h.mu.Unlock()
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
	case <-h.done:
	}
	return false
}

// logout ends a session in the simulator.
func (h *Host) logout(key string) {
	var env bytes.Buffer
	env.WriteString(`<?xml version="1.0"?><Envelope xmlns="http://schemas.xmlsoap.org/soap/envelope/"><Body>` +
		`<Logout xmlns="urn:vim25"><_this type="SessionManager">ha-sessionmgr</_this></Logout></Body></Envelope>`)
	r, err := http.NewRequestWithContext(context.Background(), http.MethodPost, h.URL(), nil)
	if err != nil {
		panic(err) // constant input
	}
	r.AddCookie(&http.Cookie{Name: soap.SessionCookieName, Value: key})
	h.call(newRecorder(), r, env.Bytes())
}

// validLogin is asked by the simulator.
func (h *Host) validLogin(r *types.Login) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return (r.UserName == h.cfg.Username && r.Password == h.password) ||
		(r.UserName == insideUser && r.Password == h.secret)
}
