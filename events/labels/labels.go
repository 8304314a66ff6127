package labels

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// Limits of labels.
const (
	Max      = 64  // labels of one object
	MaxValue = 63  // characters of a value, and of a key's name part
	maxKey   = 253 // characters of a key's prefix
)

// A key's name part and a value that is not empty, and the DNS name that a key
// may have before a slash; as Kubernetes defines them.
var (
	namePattern   = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)
	prefixPattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`)
)

// Check says what is wrong with labels, or nil.
func Check(m map[string]string) error {
	if len(m) > Max {
		return fmt.Errorf("%d labels: give at most %d", len(m), Max)
	}
	for _, key := range slices.Sorted(maps.Keys(m)) {
		prefix, _, found := strings.Cut(key, "/")
		switch {
		case found && !validPrefix(prefix):
			return fmt.Errorf("key %q: the part before the slash must be a lower-case DNS name", clip(key))
		case !validKey(key):
			return fmt.Errorf("key %q: want 1 to %d letters, digits, '-', '_' or '.', with a letter or digit at both ends", clip(key), MaxValue)
		}
		if v := m[key]; v != "" && !namePattern.MatchString(v) {
			return fmt.Errorf("value %q of %q: want at most %d letters, digits, '-', '_' or '.', with a letter or digit at both ends, or nothing", clip(v), clip(key), MaxValue)
		}
	}
	return nil
}

func validKey(key string) bool {
	prefix, name, found := strings.Cut(key, "/")
	if !found {
		return namePattern.MatchString(key)
	}
	return validPrefix(prefix) && namePattern.MatchString(name)
}

func validPrefix(prefix string) bool {
	return len(prefix) <= maxKey && prefixPattern.MatchString(prefix)
}

func clip(s string) string {
	if len(s) > 64 {
		return strings.ToValidUTF8(s[:64], "") + "…"
	}
	return s
}
