package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"pallas/internal/auth"
	"pallas/internal/httpapi"
)

const permissionIntroduction = `# Permissions

Who may do what. This page is generated from the one table that decides it
(` + "`internal/auth`" + `) and from the operations of the API, by ` + "`go run ./schema/gen`" + `.

A **grant** gives a user a role, for all devices or for those that a label
selector picks. Each role has all permissions of the role before it. A request
needs the permission of its operation: without it the answer is 403, which names
the permission and the role that has it. What is outside the scope of one's
grants does not exist: it is in no list, count, event or export, and the answer
is the same 404 as for what was never there.
`

// permissionReference returns the reference of who may do what.
func permissionReference() (map[string][]byte, error) {
	needs := map[auth.Permission][]string{}
	for path, item := range api().Paths {
		for _, m := range []struct {
			method string
			op     *huma.Operation
		}{{"GET", item.Get}, {"POST", item.Post}, {"PUT", item.Put}, {"PATCH", item.Patch}, {"DELETE", item.Delete}} {
			if m.op != nil {
				p := httpapi.PermissionOf(m.op)
				needs[p] = append(needs[p], fmt.Sprintf("| `%s` | %s `%s` | %s |\n", m.op.OperationID, m.method, path, cell(m.op.Summary)))
			}
		}
	}
	needs[auth.ReadManager] = append(needs[auth.ReadManager], "| `metrics` | GET `/metrics` | Get the metrics |\n")
	var b strings.Builder
	b.WriteString(permissionIntroduction)
	b.WriteString("\n## Roles\n\n| permission |")
	for _, r := range auth.Roles() {
		fmt.Fprintf(&b, " %s |", r)
	}
	b.WriteString(" in a scope | what it permits |\n|---|" + strings.Repeat("---|", len(auth.Roles())) + "---|---|\n")
	for _, rule := range auth.Rules {
		fmt.Fprintf(&b, "| `%s` |", rule.Permission)
		for _, r := range auth.Roles() {
			has := ""
			if !auth.RightsOf(auth.Grant{Role: r}).Scope(rule.Permission).Nothing() {
				has = "yes"
			}
			fmt.Fprintf(&b, " %s |", has)
		}
		scoped := "only for all devices"
		switch {
		case rule.Scoped:
			scoped = "for its devices"
		case rule.Role == "":
			scoped = "everybody who is signed in"
		}
		fmt.Fprintf(&b, " %s | %s |\n", scoped, cell(rule.Doc))
	}
	b.WriteString("\n## Operations\n")
	for _, rule := range auth.Rules {
		operations(&b, "`"+string(rule.Permission)+"`", needs[rule.Permission])
	}
	operations(&b, "Without a token", needs[""])
	return map[string][]byte{"permissions.md": []byte(b.String())}, nil
}

func operations(b *strings.Builder, title string, rows []string) {
	if len(rows) == 0 {
		return
	}
	slices.SortFunc(rows, cmp.Compare[string])
	fmt.Fprintf(b, "\n### %s\n\n| operation | request | |\n|---|---|---|\n%s", title, strings.Join(rows, ""))
}
