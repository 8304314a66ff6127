package httpapi

import (
	_ "embed"
	"io/fs"
	"net/http"

	swaggerfiles "github.com/swaggo/files/v2"
)

//go:embed docs.html
var docsPage []byte

//go:embed docs.js
var docsScript []byte

// docsPolicy lets the documentation page load what this server has, and
// nothing else. Swagger UI sets style attributes.
const docsPolicy = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// document adds the OpenAPI document and the documentation page.
func (s *server) document(d Document) {
	serve := func(path, contentType, policy string, body []byte) {
		s.mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", contentType)
			if policy != "" {
				w.Header().Set("Content-Security-Policy", policy)
			}
			_, _ = w.Write(body) // the client is gone: nothing to do about it
		})
	}
	serve("/openapi.yaml", "application/yaml", "", d.YAML)
	serve("/openapi.json", "application/json", "", d.JSON)
	serve("/openapi-3.0.yaml", "application/yaml", "", d.YAML30)
	serve("/docs", "text/html; charset=utf-8", docsPolicy, docsPage)
	serve("/docs/init.js", "text/javascript; charset=utf-8", "", docsScript)
	for name, contentType := range map[string]string{
		"swagger-ui-bundle.js": "text/javascript; charset=utf-8",
		"swagger-ui.css":       "text/css; charset=utf-8",
		"favicon-32x32.png":    "image/png",
	} {
		b, err := fs.ReadFile(swaggerfiles.FS, name)
		if err != nil {
			panic(err) // embedded: cannot fail
		}
		serve("/docs/"+name, contentType, "", b)
	}
}
