package auth_test

import (
	"errors"
	"testing"

	"pallas/events"
	"pallas/internal/auth"
)

func TestJoin(t *testing.T) {
	js, _ := jetStream(t)
	c, err := auth.Open(t.Context(), js, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	id, other := events.TokenID(events.NewID()), events.TokenID(events.NewID())
	secret, err := c.CreateJoin(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.CreateJoin(t.Context(), id); !errors.Is(err, auth.ErrExists) {
		t.Errorf("a second secret for one token: got %v, want ErrExists", err)
	}
	if err := c.VerifyJoin(t.Context(), id, secret); err != nil {
		t.Error(err)
	}
	for _, bad := range []struct {
		id     events.TokenID
		secret string
	}{{id, ""}, {id, secret[1:]}, {other, secret}, {"", secret}, {"*", secret}} {
		if err := c.VerifyJoin(t.Context(), bad.id, bad.secret); !errors.Is(err, auth.ErrDenied) {
			t.Errorf("%q: got %v, want ErrDenied", bad.id, err)
		}
	}
	if err := c.DeleteJoin(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if err := c.VerifyJoin(t.Context(), id, secret); !errors.Is(err, auth.ErrDenied) {
		t.Errorf("after deletion: %v", err)
	}
	if err := c.DeleteJoin(t.Context(), other); err != nil {
		t.Errorf("delete an unknown one: %v", err)
	}
}
