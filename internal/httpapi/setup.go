package httpapi

import (
	_ "embed"
	"net/http"
)

//go:embed setup.html
var setupPage []byte

//go:embed setup.js
var setupScript []byte

//go:embed setup.css
var setupStyle []byte

// setupPolicy lets the page where a password is set load its own two files and
// talk to this API, and nothing else.
const setupPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// setup adds the page where a one-time link sets a password.
func (s *server) setup() {
	for path, file := range map[string]struct {
		contentType string
		body        []byte
	}{
		"/setup":           {"text/html; charset=utf-8", setupPage},
		"/setup/setup.js":  {"text/javascript; charset=utf-8", setupScript},
		"/setup/setup.css": {"text/css; charset=utf-8", setupStyle},
	} {
		s.mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", file.contentType)
			w.Header().Set("Content-Security-Policy", setupPolicy)
			_, _ = w.Write(file.body) // the client is gone: nothing to do about it
		})
	}
}
