package auth

import (
	"testing"

	"pallas/events"
)

// TestRolesAreThoseOfTheLog: the log has words of its own, and they are the same.
func TestRolesAreThoseOfTheLog(t *testing.T) {
	want := []events.Role{events.RoleViewer, events.RoleOperator, events.RoleAdmin}
	got := Roles()
	if len(got) != len(want) {
		t.Fatalf("roles %v, want %v", got, want)
	}
	for i, r := range got {
		if string(r) != string(want[i]) {
			t.Errorf("role %d is %q, in the log %q", i, r, want[i])
		}
	}
}
