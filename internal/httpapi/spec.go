package httpapi

import (
	"fmt"

	"github.com/danielgtaylor/huma/v2"
)

// Document is the description of the API in the forms that are served and
// committed.
type Document struct {
	YAML, JSON []byte // OpenAPI 3.1
	YAML30     []byte // OpenAPI 3.0, for tools that know no newer
}

// Render returns the forms of a description. The same description gives the
// same bytes.
func Render(o *huma.OpenAPI) (Document, error) {
	var d Document
	var err error
	if d.JSON, err = o.MarshalJSON(); err != nil {
		return d, fmt.Errorf("render OpenAPI as JSON: %w", err)
	}
	if d.YAML, err = o.YAML(); err != nil {
		return d, fmt.Errorf("render OpenAPI as YAML: %w", err)
	}
	if d.YAML30, err = o.DowngradeYAML(); err != nil {
		return d, fmt.Errorf("render OpenAPI 3.0: %w", err)
	}
	return d, nil
}
