// Package config reads the YAML files of pallasd and pallas-agent. It is strict:
// a key that nobody reads is an error that names it and its line, because a
// setting that is silently ignored is worse than none.
package config
