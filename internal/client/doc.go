// Package client is the API client of the command line, the demo and the
// tests. Its operations are generated from schema/openapi-3.0.yaml; only the
// connection is written by hand.
package client

//go:generate go tool -modfile=../../tools.mod oapi-codegen -config oapi-codegen.yaml ../../schema/openapi-3.0.yaml
