package auth

import (
	"strings"
	"testing"
)

// FuzzIDOf checks that only what newToken could have made has an id, and that
// it is safe as a key.
func FuzzIDOf(f *testing.F) {
	_, token := newToken()
	f.Add(token)
	f.Add(TokenPrefix)
	f.Add(strings.ToUpper(token))
	f.Add(token[:len(token)-1] + "*")
	f.Fuzz(func(t *testing.T, s string) {
		id := idOf(s)
		if id == "" {
			return
		}
		body := s[:len(s)-len(checksum(""))]
		if !strings.HasPrefix(s, TokenPrefix+id+"_") || body+checksum(body) != s || strings.ContainsAny(id, ".*> \r\n") {
			t.Fatalf("%q has the id %q", s, id)
		}
	})
}
