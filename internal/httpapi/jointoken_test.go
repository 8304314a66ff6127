package httpapi_test

import (
	"testing"

	"pallas/internal/httpapi"
)

// TestNamePattern issues a token that names its devices, and reads it again.
func TestNamePattern(t *testing.T) {
	m := start(t)
	made, a := want[httpapi.JoinToken](m, 201, "POST", "/api/v1/join-tokens", `{"maxUses":20,"namePattern":"till-{n}"}`)
	got, _ := want[httpapi.JoinToken](m, 200, "GET", "/api/v1/join-tokens/"+made.ID, "", "Pallas-Position", a.position(t))
	list, _ := want[page[httpapi.JoinToken]](m, 200, "GET", "/api/v1/join-tokens", "")
	if len(list.Items) != 1 {
		t.Fatalf("tokens %+v", list.Items)
	}
	for _, j := range []httpapi.JoinToken{made, got, list.Items[0]} {
		if j.NamePattern != "till-{n}" || j.MaxUses != 20 || j.State != "active" {
			t.Errorf("token %+v", j)
		}
	}
}
