package auth_test

import (
	"errors"
	"testing"
	"time"

	"pallas/events"
	"pallas/internal/auth"
)

// TestIdentity: one person comes by an identity, until the person is forgotten.
func TestIdentity(t *testing.T) {
	now := time.Date(2026, 11, 28, 9, 0, 0, 0, time.UTC)
	p, _ := people(t, &now)
	ctx := t.Context()
	identity := auth.Identity{Issuer: "https://login.example.com", Subject: "4711"}
	ann := auth.Person{ID: events.UserID(events.NewID()), Login: "ann", Identity: &identity}
	if _, err := p.ByIdentity(ctx, identity); !errors.Is(err, auth.ErrUnknown) {
		t.Errorf("before: %v", err)
	}
	if err := p.Add(ctx, ann); err != nil {
		t.Fatal(err)
	}
	got, err := p.ByIdentity(ctx, identity)
	if err != nil || got.ID != ann.ID || got.Login != "ann" {
		t.Errorf("%+v, %v", got, err)
	}
	for _, other := range []auth.Identity{{}, {Issuer: identity.Issuer}, {Issuer: identity.Issuer + "/", Subject: "4711"}, {Issuer: identity.Issuer, Subject: "471"}} {
		if _, err := p.ByIdentity(ctx, other); !errors.Is(err, auth.ErrUnknown) {
			t.Errorf("%+v: %v", other, err)
		}
	}
	now = now.Add(time.Hour) // a claim of somebody who is there does not age
	if err := p.Add(ctx, auth.Person{ID: events.UserID(events.NewID()), Login: "ann2", Identity: &identity}); !errors.Is(err, auth.ErrIdentityTaken) {
		t.Errorf("a second person: %v", err)
	}
	if _, err := p.Change(ctx, ann.ID, func(p *auth.Person) error { p.Login = "anna"; return nil }); err != nil {
		t.Fatal(err)
	}
	if got, err := p.ByIdentity(ctx, identity); err != nil || got.Login != "anna" {
		t.Errorf("with another login: %+v, %v", got, err)
	}
	if err := p.Forget(ctx, ann.ID, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := p.ByIdentity(ctx, identity); !errors.Is(err, auth.ErrUnknown) {
		t.Errorf("forgotten: %v", err)
	}
	if err := p.Add(ctx, auth.Person{ID: events.UserID(events.NewID()), Login: "ann", Identity: &identity}); err != nil {
		t.Errorf("anew: %v", err)
	}
}
