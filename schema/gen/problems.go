package main

import (
	"fmt"
	"strings"

	"pallas/commands"
	"pallas/internal/httpapi"
)

const problemIntroduction = `# Problems

Every error of the HTTP API is a problem (RFC 9457, ` + "`application/problem+json`" + `).
This page is generated from the source by ` + "`go run ./schema/gen`" + `.

| member | meaning |
|---|---|
| type | the kind, one of those below; stable, branch on it |
| title | the kind in words |
| status | the HTTP status |
| detail | what is wrong with this request and what to do, for people; may change |
| code | a finer kind, of conflicts and refusals; stable |
| errors | the fields that are wrong: ` + "`field`" + ` such as ` + "`body.timeout`, `query.limit`, `path.device`, `header.If-Match`" + `, and ` + "`message`" + ` |
| requestId | the request, as in the Request-Id header and the manager's log; not in a 401, whose body is always the same |
`

// codes says what each finer kind means.
var codes = []struct{ code, meaning string }{
	{commands.CodeClone, "The device id is registered with another key."},
	{commands.CodePending, "The device waits for approval."},
	{commands.CodeRetired, "The device was retired."},
	{commands.CodeApproved, "The device is approved already: quarantine or retire it."},
	{commands.CodeRejected, "The device was rejected."},
	{commands.CodeQuarantined, "The device is in quarantine."},
	{commands.CodeNoClaim, "Nobody claims the device's id with that key."},
	{commands.CodeReadOnly, "The host permits no changes, by its licence."},
	{commands.CodePowerState, "The virtual machine's power state forbids it."},
	{commands.CodeTools, "The guest tools do not run."},
	{commands.CodeTaskOpen, "The same task is open already."},
	{commands.CodeTaskLimit, "The device has too many open tasks."},
	{commands.CodeTaskEnded, "The task has ended."},
	{commands.CodeTaskReused, "The Idempotency-Key belongs to a task that ended more than a day ago."},
	{"key_used", "The Idempotency-Key made a join token before; its secret was shown once."},
	{commands.CodeTokenUsedUp, "Every use of the join token is taken."},
	{commands.CodeTokenEnded, "The join token has expired."},
	{commands.CodeTokenClosed, "The join token was revoked."},
	{commands.CodeOutOfScope, "With these labels the device, or those of the join token, would be outside the scope of the caller's grants."},
	{commands.CodeTokenDevice, "The join token is for another device."},
}

// problemReference returns the reference of the HTTP API's errors.
func problemReference() (map[string][]byte, error) {
	var b strings.Builder
	b.WriteString(problemIntroduction)
	b.WriteString("\n## Types\n\n| type | status | title | when, and what to do |\n|---|---|---|---|\n")
	for _, k := range httpapi.Kinds() {
		fmt.Fprintf(&b, "| `%s%s` | %d | %s | %s |\n", httpapi.TypePrefix, k.Name, k.Status, k.Title, k.Meaning)
	}
	b.WriteString("\n## Codes\n\n| code | meaning |\n|---|---|\n")
	for _, c := range codes {
		fmt.Fprintf(&b, "| `%s` | %s |\n", c.code, c.meaning)
	}
	return map[string][]byte{"problems.md": []byte(b.String())}, nil
}
