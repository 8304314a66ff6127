package httpapi_test

import (
	"bytes"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/danielgtaylor/huma/v2"

	"pallas/commands/accesshttp"
	"pallas/commands/commandhttp"
	"pallas/internal/auth"
	"pallas/internal/httpapi"
	"pallas/mqttgw/enroll"
	"pallas/projections/queryhttp"
)

func spec() *huma.OpenAPI {
	return httpapi.Spec(commandhttp.Describe, accesshttp.Describe, queryhttp.Describe, func(api huma.API) { enroll.Register(api, enroll.Config{}) })
}

var operations = []string{
	"approve-device", "begin-oidc-session", "cancel-task", "change-devices", "change-password", "create-join-token", "create-session", "create-token", "create-user", "create-user-token",
	"delete-user", "disable-user", "enable-user", "end-own-session", "end-session", "end-user-sessions", "enroll-device", "finish-oidc-session",
	"get-device", "get-device-usage", "get-join-token", "get-status", "get-task", "get-usage", "get-user", "get-vm", "grant-role",
	"list-device-vms", "list-devices", "list-events", "list-join-tokens", "list-roles", "list-sessions", "list-tasks", "list-tokens",
	"list-user-sessions", "list-user-tokens", "list-users", "list-vms", "quarantine-device", "reject-device", "rekey-device", "release-device", "renew-certificate",
	"reset-user-password", "retire-device", "revoke-join-token",
	"revoke-role", "revoke-token", "revoke-user-token", "rotate-certificate", "set-password", "set-vm-power", "stream-events", "update-device", "update-user", "whoami",
}

// TestSpec demands what a stranger needs from the description.
func TestSpec(t *testing.T) {
	o := spec()
	var ids []string
	tags := map[string]bool{}
	for _, tag := range o.Tags {
		tags[tag.Name] = true
	}
	for path, item := range o.Paths {
		for method, op := range map[string]*huma.Operation{"GET": item.Get, "POST": item.Post, "PATCH": item.Patch, "DELETE": item.Delete, "PUT": item.Put} {
			if op == nil {
				continue
			}
			ids = append(ids, op.OperationID)
			at := method + " " + path
			if op.Summary == "" || len(op.Tags) == 0 || !tags[op.Tags[0]] {
				t.Errorf("%s: summary %q, tags %v", at, op.Summary, op.Tags)
			}
			for _, p := range op.Parameters {
				if p.Description == "" || p.Schema == nil || len(p.Schema.Examples) == 0 {
					t.Errorf("%s: parameter %s has no description or no example", at, p.Name)
				}
			}
			for status, r := range op.Responses {
				if status >= "400" && r.Content["application/problem+json"] == nil {
					t.Errorf("%s: answer %s is no problem", at, status)
				}
				for name, h := range r.Headers {
					if h.Schema == nil || h.Schema.Description == "" || len(h.Schema.Examples) == 0 {
						t.Errorf("%s: header %s of answer %s has no description or no example", at, name, status)
					}
				}
			}
			// A proof that fails is no credential that is missing: it is denied.
			if proof := op.OperationID == "renew-certificate"; (op.Responses["401"] == nil) != proof || op.Responses["422"] == nil || op.Responses["500"] == nil {
				t.Errorf("%s: answers %v lack 401, 422 or 500", at, slices.Collect(maps.Keys(op.Responses)))
			}
			need, public := httpapi.PermissionOf(op), op.Security != nil && len(op.Security) == 0
			if _, ok := auth.RuleOf(need); ok == public {
				t.Errorf("%s: needs the permission %q, and is public: %v", at, need, public)
			}
			// What changes something is refused to pages of other sites.
			if refused := need != auth.Self || method != "GET"; !public && (op.Responses["403"] != nil) != refused {
				t.Errorf("%s: answers 403: %v, want %v", at, !refused, refused)
			}
			if op.RequestBody != nil && op.Responses["413"] == nil {
				t.Errorf("%s: takes a body and has no 413", at)
			}
		}
	}
	slices.Sort(ids)
	if !slices.Equal(ids, operations) {
		t.Errorf("operations %q, want %q", ids, operations)
	}
	requests := []string{
		"ChangeDevices", "ChangePassword", "CreateAPIToken", "CreateJoinToken", "CreateUser", "DisableUser", "EnrollRequest", "GrantWish", "RekeyDevice", "RenewRequest", "RetireDevice", "SetPassword",
		"SetVMPower", "SignIn", "TrustReason", "UpdateDevice", "UpdateUser",
	}
	for name, s := range o.Components.Schemas.Map() {
		for field, p := range s.Properties {
			if p.Ref != "" || (p.Items != nil && p.Items.Ref != "") {
				continue
			}
			if p.Description == "" && p.Type != "object" || len(p.Examples) == 0 {
				t.Errorf("%s.%s has no description or no example", name, field)
			}
		}
		if closed := s.AdditionalProperties == false; closed != slices.Contains(requests, name) {
			t.Errorf("%s refuses unknown fields: %v", name, closed)
		}
	}
}

func TestRender(t *testing.T) {
	a, err := httpapi.Render(spec())
	must(t, err)
	b, err := httpapi.Render(spec())
	must(t, err)
	if !bytes.Equal(a.YAML, b.YAML) || !bytes.Equal(a.JSON, b.JSON) || !bytes.Equal(a.YAML30, b.YAML30) {
		t.Error("two descriptions of the same API differ")
	}
	if !bytes.Contains(a.YAML30, []byte("openapi: 3.0.3")) || regexp.MustCompile(`type:\s*\n\s+- `).Match(a.YAML30) {
		t.Error("the 3.0 description has things of 3.1")
	}
}

func TestKinds(t *testing.T) {
	seen := map[string]bool{}
	for i, k := range httpapi.Kinds() {
		if seen[k.Name] || k.Title == "" || k.Meaning == "" || k.Status < 400 || k.Name != strings.ToLower(k.Name) {
			t.Errorf("kind %+v", k)
		}
		seen[k.Name] = true
		if i > 0 && k.Status < httpapi.Kinds()[i-1].Status {
			t.Errorf("%s is out of order", k.Name)
		}
	}
}
