// Package cli is the command line of the operators. A file per noun: how it is
// listed, found, shown and changed, on top of the generated API client; what
// the nouns have in common (paging, printing, watching, errors) is written
// once. It promises the exit codes of docs/reference/cli.md and never prints a
// secret that it was given.
package cli

//go:generate go test -run ^TestReference$ -update .
