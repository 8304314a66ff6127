package auth

import (
	"strings"
	"testing"

	"pallas/events"
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

// FuzzParseCookie checks that only what NewSession could have made names a
// session, and that its parts are safe as a key.
func FuzzParseCookie(f *testing.F) {
	id := events.UserID("019e1b7a-5a40-7c35-9d3c-2f0a1b2c3d4e")
	good := compactID(id) + "." + enc.EncodeToString(random(idBytes)) + "." + enc.EncodeToString(random(secretBytes))
	f.Add(good)
	f.Add("..")
	f.Add(strings.ToUpper(good))
	f.Add(good[:len(good)-1] + "*")
	f.Fuzz(func(t *testing.T, s string) {
		user, session, ok := parseCookie(s)
		if !ok {
			if user != "" || session != "" {
				t.Fatalf("%q is none and names %q, %q", s, user, session)
			}
			return
		}
		secret := s[strings.LastIndexByte(s, '.')+1:]
		if compactID(user)+"."+session+"."+secret != s || strings.ContainsAny(session, ".*> \r\n") {
			t.Fatalf("%q names %q, %q", s, user, session)
		}
		if _, err := events.ParseUUID("user", string(user)); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzParseLink checks that only what NewLink could have made names a user.
func FuzzParseLink(f *testing.F) {
	id := events.UserID("019e1b7a-5a40-7c35-9d3c-2f0a1b2c3d4e")
	body := LinkPrefix + compactID(id) + "_" + enc.EncodeToString(random(secretBytes))
	f.Add(body + checksum(body))
	f.Add(LinkPrefix)
	f.Add(body)
	f.Fuzz(func(t *testing.T, s string) {
		user, ok := parseLink(s)
		if !ok {
			if user != "" {
				t.Fatalf("%q is none and names %q", s, user)
			}
			return
		}
		body := s[:len(s)-len(checksum(""))]
		if !strings.HasPrefix(s, LinkPrefix+compactID(user)+"_") || body+checksum(body) != s {
			t.Fatalf("%q names %q", s, user)
		}
	})
}
