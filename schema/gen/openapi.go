package main

import (
	"github.com/danielgtaylor/huma/v2"

	"pallas/commands/accesshttp"
	"pallas/commands/commandhttp"
	"pallas/internal/httpapi"
	"pallas/mqttgw/enroll"
	"pallas/projections/queryhttp"
)

// api is the description of the whole API.
func api() *huma.OpenAPI {
	return httpapi.Spec(
		commandhttp.Describe, accesshttp.Describe, queryhttp.Describe,
		func(api huma.API) { enroll.Register(api, enroll.Config{}) },
	)
}

// openAPI returns the files that describe the HTTP API, by their path under
// schema/.
func openAPI() (map[string][]byte, error) {
	d, err := httpapi.Render(api())
	if err != nil {
		return nil, err
	}
	return map[string][]byte{"openapi.yaml": d.YAML, "openapi-3.0.yaml": d.YAML30}, nil
}
