// Package version says which build this is.
package version

import (
	"runtime/debug"
	"strings"
)

// number is set by the linker for a release: -X pallas/internal/version.number=1.2.3.
var number = "0.1.0-dev"

// String returns the version, followed by the first digits of the commit when
// the build recorded it: "0.1.0-dev+1a2b3c4d5e6f".
func String() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return number
	}
	var rev, dirty string
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			rev = s.Value
		case "vcs.modified":
			if s.Value == "true" {
				dirty = ".dirty"
			}
		}
	}
	if rev == "" {
		return number
	}
	return number + "+" + strings.ToLower(rev[:min(12, len(rev))]) + dirty
}
