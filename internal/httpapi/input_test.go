package httpapi_test

import (
	"bufio"
	"crypto/tls"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"pallas/commands"
	"pallas/events"
	"pallas/internal/httpapi"
)

// TestBadInput sends what a mistaken or hostile client may send. Each must
// answer its problem, name the field, and leave the log as it was.
func TestBadInput(t *testing.T) {
	m := start(t)
	dev := string(m.device(given{name: "shop", vms: []events.VM{
		machine("vm-on", "pos", events.PowerOn, events.ToolsRunning),
		machine("vm-off", "kiosk", events.PowerOff, events.ToolsNotInstalled),
		machine("vm-bare", "bare", events.PowerOn, events.ToolsNotInstalled),
		machine("vm-busy", "busy", events.PowerOn, events.ToolsRunning),
	}}))
	readOnly := string(m.device(given{name: "free", readOnly: true, vms: []events.VM{machine("vm-1", "a", events.PowerOff, events.ToolsUnknown)}}))
	retired := string(m.device(given{name: "old", retired: true, vms: []events.VM{machine("vm-1", "a", events.PowerOff, events.ToolsUnknown)}}))
	waiting := string(m.pending("new"))
	stolen := string(m.device(given{name: "stolen"}))
	m.command(commands.QuarantineDevice{Device: events.DeviceID(stolen), Cause: events.QuarantineOperator})
	spam := string(m.pending("spam"))
	m.command(commands.RejectDevice{Device: events.DeviceID(spam)})
	used, _ := want[httpapi.Task](m, 202, "POST", "/api/v1/vms/"+dev+"/vm-busy/power", `{"action":"off"}`, "Idempotency-Key", "used-key")
	m.command(commands.ReportTasks{Device: events.DeviceID(dev), Epoch: 1, Facts: []commands.TaskFact{
		{Seq: 100, Task: events.TaskID(used.ID), Status: events.TaskStatusAccepted},
		{Seq: 101, Task: events.TaskID(used.ID), Status: events.TaskStatusSucceeded},
	}})
	_, created := want[map[string]any](m, 201, "POST", "/api/v1/join-tokens", `{"name":"x"}`, "Idempotency-Key", "used-token-key")
	m.caughtUp()
	nobody, dpath := uuid.NewString(), "/api/v1/devices/"+dev
	power := "/api/v1/vms/" + dev + "/vm-off/power"
	_ = created

	cases := []struct {
		name         string
		method, path string
		body         string
		headers      []string
		status       int
		kind         httpapi.Kind
		field        string // that errors must name; "" for none
		detail       string // that the detail must contain
	}{
		// bodies
		{"no body", "POST", power, "", nil, 400, httpapi.KindMalformed, "", "body is required"},
		{"not JSON", "POST", power, `{`, nil, 400, httpapi.KindMalformed, "body", ""},
		{"two values", "POST", power, `{"action":"on"}{}`, nil, 400, httpapi.KindMalformed, "body", ""},
		{"an array", "POST", power, `[]`, nil, 422, httpapi.KindInvalid, "body", "object"},
		{"null", "POST", power, `null`, nil, 422, httpapi.KindInvalid, "body", "object"},
		{"a string", "POST", power, `"on"`, nil, 422, httpapi.KindInvalid, "body", ""},
		{"another media type", "POST", power, `action=on`, []string{"Content-Type", "application/x-www-form-urlencoded"}, 415, httpapi.KindMediaType, "", ""},
		{"unknown field", "POST", power, `{"action":"on","force":true}`, nil, 422, httpapi.KindInvalid, "body.force", ""},
		{"field in other case", "POST", power, `{"Action":"on"}`, nil, 422, httpapi.KindInvalid, "body.Action", ""},
		{"a body where none is taken", "POST", dpath + "/approve", `{"x":1}`, nil, 422, httpapi.KindInvalid, "body", "no body"},
		{"too large", "POST", power, `{"action":"` + strings.Repeat("x", 70<<10) + `"}`, nil, 413, httpapi.KindTooLarge, "", "65536"},

		// power
		{"missing action", "POST", power, `{}`, nil, 422, httpapi.KindInvalid, "body", "action"},
		{"unknown action", "POST", power, `{"action":"explode"}`, nil, 422, httpapi.KindInvalid, "body.action", "on, off, reset, suspend, shutdown"},
		{"action of a wrong type", "POST", power, `{"action":1}`, nil, 422, httpapi.KindInvalid, "body.action", "string"},
		{"action null", "POST", power, `{"action":null}`, nil, 422, httpapi.KindInvalid, "body.action", ""},
		{"timeout too small", "POST", power, `{"action":"on","timeout":4}`, nil, 422, httpapi.KindInvalid, "body.timeout", ">= 5"},
		{"timeout too large", "POST", power, `{"action":"on","timeout":2592001}`, nil, 422, httpapi.KindInvalid, "body.timeout", "<= 2592000"},
		{"timeout huge", "POST", power, `{"action":"on","timeout":1e30}`, nil, 422, httpapi.KindInvalid, "body.timeout", ""},
		{"timeout with a fraction", "POST", power, `{"action":"on","timeout":7.5}`, nil, 422, httpapi.KindInvalid, "body.timeout", "integer"},
		{"timeout a string", "POST", power, `{"action":"on","timeout":"60"}`, nil, 422, httpapi.KindInvalid, "body.timeout", "integer"},
		{"deadline no time", "POST", power, `{"action":"on","deadline":"tomorrow"}`, nil, 422, httpapi.KindInvalid, "body.deadline", ""},
		{"deadline past", "POST", power, `{"action":"on","deadline":"2001-01-01T00:00:00Z"}`, nil, 422, httpapi.KindInvalid, "body.deadline", "future"},
		{"deadline far", "POST", power, `{"action":"on","deadline":"2901-01-01T00:00:00Z"}`, nil, 422, httpapi.KindInvalid, "body.deadline", "30 days"},
		{"deadline and timeout", "POST", power, `{"action":"on","timeout":60,"deadline":"2901-01-01T00:00:00Z"}`, nil, 422, httpapi.KindInvalid, "body.timeout", "deadline"},
		{"idempotency key empty", "POST", power, `{"action":"on"}`, []string{"Idempotency-Key", ""}, 422, httpapi.KindInvalid, "header.Idempotency-Key", "empty"},
		{"idempotency key with a space", "POST", power, `{"action":"on"}`, []string{"Idempotency-Key", "a b"}, 422, httpapi.KindInvalid, "header.Idempotency-Key", ""},
		{"idempotency key too long", "POST", power, `{"action":"on"}`, []string{"Idempotency-Key", strings.Repeat("k", 129)}, 422, httpapi.KindInvalid, "header.Idempotency-Key", "128"},
		{"idempotency key of another task", "POST", power, `{"action":"on"}`, []string{"Idempotency-Key", "used-key"}, 422, httpapi.KindInvalid, "header.Idempotency-Key", "another task"},
		{"on while on", "POST", "/api/v1/vms/" + dev + "/vm-on/power", `{"action":"on"}`, nil, 409, httpapi.KindConflict, "", "already on"},
		{"off while off", "POST", power, `{"action":"off"}`, nil, 409, httpapi.KindConflict, "", "already off"},
		{"reset while off", "POST", power, `{"action":"reset"}`, nil, 409, httpapi.KindConflict, "", "is off"},
		{"shutdown without tools", "POST", "/api/v1/vms/" + dev + "/vm-bare/power", `{"action":"shutdown"}`, nil, 409, httpapi.KindConflict, "", "tools"},
		{"task for a read-only host", "POST", "/api/v1/vms/" + readOnly + "/vm-1/power", `{"action":"on"}`, nil, 409, httpapi.KindConflict, "", "RestrictedVersion"},
		{"task for a retired device", "POST", "/api/v1/vms/" + retired + "/vm-1/power", `{"action":"on"}`, nil, 409, httpapi.KindConflict, "", "retired"},
		{"task for a pending device", "POST", "/api/v1/vms/" + waiting + "/vm-1/power", `{"action":"on"}`, nil, 409, httpapi.KindConflict, "", "approval"},
		{"power of no machine", "POST", "/api/v1/vms/" + dev + "/none/power", `{"action":"on"}`, nil, 404, httpapi.KindNotFound, "", "none"},
		{"power on no device", "POST", "/api/v1/vms/" + nobody + "/vm-1/power", `{"action":"on"}`, nil, 404, httpapi.KindNotFound, "", nobody},
		{"machine id with odd letters", "POST", "/api/v1/vms/" + dev + "/a%2Fb%00/power", `{"action":"on"}`, nil, 404, httpapi.KindNotFound, "path.vm", ""},
		{"machine id too long", "POST", "/api/v1/vms/" + dev + "/" + strings.Repeat("v", 65) + "/power", `{"action":"on"}`, nil, 404, httpapi.KindNotFound, "path.vm", ""},

		// devices
		{"no device", "GET", "/api/v1/devices/" + nobody, "", nil, 404, httpapi.KindNotFound, "", nobody},
		{"a device id that is none", "GET", "/api/v1/devices/nope", "", nil, 404, httpapi.KindNotFound, "path.device", "lower-case UUID"},
		{"a device id in upper case", "GET", "/api/v1/devices/" + strings.ToUpper(dev), "", nil, 404, httpapi.KindNotFound, "path.device", ""},
		{"a device id with a wildcard", "GET", "/api/v1/devices/*", "", nil, 404, httpapi.KindNotFound, "path.device", ""},
		{"machines of no device", "GET", "/api/v1/devices/" + nobody + "/vms", "", nil, 404, httpapi.KindNotFound, "", nobody},
		{"approve no device", "POST", "/api/v1/devices/" + nobody + "/approve", "", nil, 404, httpapi.KindNotFound, "", nobody},
		{"approve a retired device", "POST", "/api/v1/devices/" + retired + "/approve", "", nil, 409, httpapi.KindConflict, "", "retired"},
		{"approve a device in quarantine", "POST", "/api/v1/devices/" + stolen + "/approve", "", nil, 409, httpapi.KindConflict, "", "release it first"},
		{"task for a device in quarantine", "POST", "/api/v1/vms/" + stolen + "/vm-1/power", `{"action":"on"}`, nil, 409, httpapi.KindConflict, "", "quarantine"},
		{"task for a rejected device", "POST", "/api/v1/vms/" + spam + "/vm-1/power", `{"action":"on"}`, nil, 409, httpapi.KindConflict, "", "rejected"},
		{"reject no device", "POST", "/api/v1/devices/" + nobody + "/reject", "", nil, 404, httpapi.KindNotFound, "", nobody},
		{"reject what is no id", "POST", "/api/v1/devices/x/reject", "", nil, 404, httpapi.KindNotFound, "path.device", "lower-case UUID"},
		{"reject an approved device", "POST", dpath + "/reject", "", nil, 409, httpapi.KindConflict, "", "is approved"},
		{"reject a device in quarantine", "POST", "/api/v1/devices/" + stolen + "/reject", "", nil, 409, httpapi.KindConflict, "", "release it first"},
		{"reject a retired device", "POST", "/api/v1/devices/" + retired + "/reject", "", nil, 409, httpapi.KindConflict, "", "retired"},
		{"reject with a stale revision", "POST", "/api/v1/devices/" + waiting + "/reject", "", []string{"If-Match", `"1"`}, 412, httpapi.KindStale, "header.If-Match", "revision"},
		{"reject for a long reason", "POST", "/api/v1/devices/" + waiting + "/reject", `{"reason":"` + strings.Repeat("r", 1025) + `"}`, nil, 422, httpapi.KindInvalid, "body.reason", "1024"},
		{"quarantine no device", "POST", "/api/v1/devices/" + nobody + "/quarantine", "", nil, 404, httpapi.KindNotFound, "", nobody},
		{"quarantine a retired device", "POST", "/api/v1/devices/" + retired + "/quarantine", "", nil, 409, httpapi.KindConflict, "", "retired"},
		{"quarantine for a cause of one's own", "POST", dpath + "/quarantine", `{"cause":"flood"}`, nil, 422, httpapi.KindInvalid, "body.cause", ""},
		{"quarantine for a reason with a control character", "POST", dpath + "/quarantine", `{"reason":"a\u0007"}`, nil, 422, httpapi.KindInvalid, "body.reason", "control"},
		{"quarantine with a stale revision", "POST", dpath + "/quarantine", "", []string{"If-Match", `"1"`}, 412, httpapi.KindStale, "header.If-Match", "revision"},
		{"release no device", "POST", "/api/v1/devices/" + nobody + "/release", "", nil, 404, httpapi.KindNotFound, "", nobody},
		{"release a retired device", "POST", "/api/v1/devices/" + retired + "/release", "", nil, 409, httpapi.KindConflict, "", "retired"},
		{"release with a stale revision", "POST", "/api/v1/devices/" + stolen + "/release", "", []string{"If-Match", `"1"`}, 412, httpapi.KindStale, "header.If-Match", "revision"},
		{"rekey no device", "POST", "/api/v1/devices/" + nobody + "/rekey", "", nil, 404, httpapi.KindNotFound, "", nobody},
		{"rekey without a claim", "POST", "/api/v1/devices/" + stolen + "/rekey", "", nil, 409, httpapi.KindConflict, "", "nobody claims"},
		{"rekey an approved device", "POST", dpath + "/rekey", "", nil, 409, httpapi.KindConflict, "", "nobody claims"},
		{"rekey a retired device", "POST", "/api/v1/devices/" + retired + "/rekey", "", nil, 409, httpapi.KindConflict, "", "retired"},
		{"rekey with half a key", "POST", "/api/v1/devices/" + stolen + "/rekey", `{"keyHash":"ab"}`, nil, 422, httpapi.KindInvalid, "body.keyHash", ""},
		{"rekey with a key in upper case", "POST", "/api/v1/devices/" + stolen + "/rekey", `{"keyHash":"` + strings.Repeat("AB", 32) + `"}`, nil, 422, httpapi.KindInvalid, "body.keyHash", "hex"},
		{"rekey with a stale revision", "POST", "/api/v1/devices/" + stolen + "/rekey", "", []string{"If-Match", `"1"`}, 412, httpapi.KindStale, "header.If-Match", "revision"},
		{"retire no device", "POST", "/api/v1/devices/" + nobody + "/retire", "", nil, 404, httpapi.KindNotFound, "", nobody},
		{"reason too long", "POST", dpath + "/retire", `{"reason":"` + strings.Repeat("r", 1025) + `"}`, nil, 422, httpapi.KindInvalid, "body.reason", "1024"},
		{"reason with a control character", "POST", dpath + "/retire", `{"reason":"a\u0007"}`, nil, 422, httpapi.KindInvalid, "body.reason", "control"},
		{"retire with a stale revision", "POST", dpath + "/retire", "", []string{"If-Match", `"1"`}, 412, httpapi.KindStale, "header.If-Match", "revision"},
		{"approve with a stale revision", "POST", "/api/v1/devices/" + waiting + "/approve", "", []string{"If-Match", `"1.abc"`}, 412, httpapi.KindStale, "header.If-Match", "revision"},
		{"patch with a stale revision", "PATCH", dpath, `{"name":"other","labels":{"a":"b"}}`, []string{"If-Match", `"1"`}, 412, httpapi.KindStale, "header.If-Match", "revision"},
		{"If-Match empty", "PATCH", dpath, `{"name":"other"}`, []string{"If-Match", ""}, 422, httpapi.KindInvalid, "header.If-Match", "empty"},
		{"If-Match no ETag", "PATCH", dpath, `{"name":"other"}`, []string{"If-Match", `hello`}, 422, httpapi.KindInvalid, "header.If-Match", ""},
		{"patch of nothing", "PATCH", dpath, `{}`, nil, 422, httpapi.KindInvalid, "body", "name, labels, notes or site"},
		{"empty name", "PATCH", dpath, `{"name":""}`, nil, 422, httpapi.KindInvalid, "body.name", ""},
		{"name null", "PATCH", dpath, `{"name":null}`, nil, 422, httpapi.KindInvalid, "body.name", "string"},
		{"name too long", "PATCH", dpath, `{"name":"` + strings.Repeat("n", 254) + `"}`, nil, 422, httpapi.KindInvalid, "body.name", "253"},
		{"name with space at the end", "PATCH", dpath, `{"name":"a "}`, nil, 422, httpapi.KindInvalid, "body.name", "white space"},
		{"good name and bad label", "PATCH", dpath, `{"name":"good","labels":{"-bad":"x"}}`, nil, 422, httpapi.KindInvalid, "body.labels", "-bad"},
		{"label of a wrong type", "PATCH", dpath, `{"labels":{"a":1}}`, nil, 422, httpapi.KindInvalid, "body.labels.a", "string"},
		{"labels a list", "PATCH", dpath, `{"labels":["a"]}`, nil, 422, httpapi.KindInvalid, "body.labels", ""},
		{"label value too long", "PATCH", dpath, `{"labels":{"a":"` + strings.Repeat("v", 64) + `"}}`, nil, 422, httpapi.KindInvalid, "body.labels.a", "63"},
		{"notes too long", "PATCH", dpath, `{"notes":"` + strings.Repeat("n", 4097) + `"}`, nil, 422, httpapi.KindInvalid, "body.notes", "4096"},
		{"notes of too many bytes", "PATCH", dpath, `{"notes":"` + strings.Repeat("ä", 2049) + `"}`, nil, 422, httpapi.KindInvalid, "body.notes", "4098 bytes"},
		{"notes with a control character", "PATCH", dpath, `{"notes":"a\u001b"}`, nil, 422, httpapi.KindInvalid, "body.notes", "control"},
		{"notes a number", "PATCH", dpath, `{"notes":7}`, nil, 422, httpapi.KindInvalid, "body.notes", "string"},
		{"site a text", "PATCH", dpath, `{"site":"Zeil"}`, nil, 422, httpapi.KindInvalid, "body.site", "object"},
		{"site without a name", "PATCH", dpath, `{"site":{"latitude":1,"longitude":1}}`, nil, 422, httpapi.KindInvalid, "body.site.name", "missing"},
		{"site of an empty name", "PATCH", dpath, `{"site":{"name":""}}`, nil, 422, httpapi.KindInvalid, "body.site.name", ""},
		{"site whose name is null", "PATCH", dpath, `{"site":{"name":null}}`, nil, 422, httpapi.KindInvalid, "body.site.name", "string"},
		{"site with half a position", "PATCH", dpath, `{"site":{"name":"Zeil","latitude":50}}`, nil, 422, httpapi.KindInvalid, "body.site.longitude", "both"},
		{"latitude out of range", "PATCH", dpath, `{"site":{"name":"Zeil","latitude":90.5,"longitude":8}}`, nil, 422, httpapi.KindInvalid, "body.site.latitude", "90"},
		{"longitude out of range", "PATCH", dpath, `{"site":{"name":"Zeil","latitude":50,"longitude":-181}}`, nil, 422, httpapi.KindInvalid, "body.site.longitude", "-180"},
		{"latitude a text", "PATCH", dpath, `{"site":{"name":"Zeil","latitude":"50","longitude":8}}`, nil, 422, httpapi.KindInvalid, "body.site.latitude", "number"},
		{"unknown field of a site", "PATCH", dpath, `{"site":{"name":"Zeil","height":8}}`, nil, 422, httpapi.KindInvalid, "body.site.height", ""},
		{"good name and bad site", "PATCH", dpath, `{"name":"good","site":{"name":" x"}}`, nil, 422, httpapi.KindInvalid, "body.site.name", "white space"},
		{"describe a retired device", "PATCH", "/api/v1/devices/" + retired, `{"notes":"x"}`, nil, 409, httpapi.KindConflict, "", "retired"},
		{"describe with a stale revision", "PATCH", dpath, `{"notes":"x"}`, []string{"If-Match", `"1"`}, 412, httpapi.KindStale, "header.If-Match", "revision"},
		{"rename a retired device", "PATCH", "/api/v1/devices/" + retired, `{"name":"x"}`, nil, 409, httpapi.KindConflict, "", "retired"},

		// many devices
		{"no action", "POST", bulkPath, `{"all":true}`, nil, 422, httpapi.KindInvalid, "body", "action"},
		{"an unknown action", "POST", bulkPath, `{"action":"explode","all":true}`, nil, 422, httpapi.KindInvalid, "body.action", "approve, reject, quarantine, release, label, rotate-certificate, retire"},
		{"no selector", "POST", bulkPath, `{"action":"approve"}`, nil, 422, httpapi.KindInvalid, "body.selector", "every device"},
		{"a selector of blanks", "POST", bulkPath, `{"action":"approve","selector":"  "}`, nil, 422, httpapi.KindInvalid, "body.selector", "every device"},
		{"a selector and all", "POST", bulkPath, `{"action":"approve","selector":"a","all":true}`, nil, 422, httpapi.KindInvalid, "body.all", "not together"},
		{"a bad selector of many", "POST", bulkPath, `{"action":"approve","selector":"site=fra,role ip (a)"}`, nil, 422, httpapi.KindInvalid, "body.selector", "position 15: "},
		{"a selector too long", "POST", bulkPath, `{"action":"approve","selector":"` + strings.Repeat("a", 4097) + `"}`, nil, 422, httpapi.KindInvalid, "body.selector", "4096"},
		{"an unknown trust", "POST", bulkPath, `{"action":"approve","all":true,"trust":["maybe"]}`, nil, 422, httpapi.KindInvalid, "body.trust[0]", "pending"},
		{"label without labels", "POST", bulkPath, `{"action":"label","all":true}`, nil, 422, httpapi.KindInvalid, "body.labels", "missing"},
		{"labels for another action", "POST", bulkPath, `{"action":"approve","all":true,"labels":{"a":"b"}}`, nil, 422, httpapi.KindInvalid, "body.labels", "only for"},
		{"a bad label for many", "POST", bulkPath, `{"action":"label","all":true,"labels":{"a b":"c"}}`, nil, 422, httpapi.KindInvalid, "body.labels", "a b"},
		{"a reason where none is taken", "POST", bulkPath, `{"action":"label","all":true,"labels":{"a":"b"},"reason":"x"}`, nil, 422, httpapi.KindInvalid, "body.reason", "takes none"},
		{"a bad reason for many", "POST", bulkPath, `{"action":"retire","all":true,"reason":"a\u0007"}`, nil, 422, httpapi.KindInvalid, "body.reason", "control"},
		{"expect less than nothing", "POST", bulkPath, `{"action":"approve","all":true,"expect":-1}`, nil, 422, httpapi.KindInvalid, "body.expect", ">= 0"},
		{"expect another number", "POST", bulkPath, `{"action":"approve","all":true,"expect":99}`, nil, 412, httpapi.KindStale, "body.expect", "not 99"},

		// lists
		{"unknown parameter", "GET", "/api/v1/devices?labels=a", "", nil, 422, httpapi.KindInvalid, "query.labels", "unknown"},
		{"parameter twice", "GET", "/api/v1/devices?limit=1&limit=2", "", nil, 422, httpapi.KindInvalid, "query.limit", "more than once"},
		{"empty parameter", "GET", "/api/v1/devices?limit=", "", nil, 422, httpapi.KindInvalid, "query.limit", "empty"},
		{"query badly encoded", "GET", "/api/v1/devices?q=%zz", "", nil, 400, httpapi.KindMalformed, "query", ""},
		{"limit zero", "GET", "/api/v1/devices?limit=0", "", nil, 422, httpapi.KindInvalid, "query.limit", ""},
		{"limit too large", "GET", "/api/v1/devices?limit=1001", "", nil, 422, httpapi.KindInvalid, "query.limit", "1000"},
		{"limit a word", "GET", "/api/v1/devices?limit=many", "", nil, 422, httpapi.KindInvalid, "query.limit", "integer"},
		{"limit beyond 64 bits", "GET", "/api/v1/devices?limit=99999999999999999999", "", nil, 422, httpapi.KindInvalid, "query.limit", ""},
		{"bad cursor", "GET", "/api/v1/devices?cursor=xyz", "", nil, 422, httpapi.KindInvalid, "query.cursor", ""},
		{"bad sort", "GET", "/api/v1/devices?sort=age", "", nil, 422, httpapi.KindInvalid, "query.sort", "name, id"},
		{"bad trust", "GET", "/api/v1/devices?trust=approved,maybe", "", nil, 422, httpapi.KindInvalid, "query.trust[1]", ""},
		{"bad selector", "GET", "/api/v1/devices?selector=a%20b", "", nil, 422, httpapi.KindInvalid, "query.selector", "position 3"},
		{"text too long", "GET", "/api/v1/devices?q=" + strings.Repeat("q", 257), "", nil, 422, httpapi.KindInvalid, "query.q", "256"},
		{"position no number", "GET", "/api/v1/devices", "", []string{"Pallas-Position", "soon"}, 422, httpapi.KindInvalid, "header.Pallas-Position", "integer"},
		{"machines of a device that is none", "GET", "/api/v1/vms?device=x", "", nil, 422, httpapi.KindInvalid, "query.device", ""},
		{"bad power", "GET", "/api/v1/vms?power=broken", "", nil, 422, httpapi.KindInvalid, "query.power[0]", ""},
		{"no machine", "GET", "/api/v1/vms/" + dev + "/none", "", nil, 404, httpapi.KindNotFound, "", "none"},
		{"bad status", "GET", "/api/v1/tasks?status=done", "", nil, 422, httpapi.KindInvalid, "query.status[0]", ""},
		{"bad bool", "GET", "/api/v1/tasks?open=perhaps", "", nil, 422, httpapi.KindInvalid, "query.open", "boolean"},
		{"machine without device", "GET", "/api/v1/tasks?vm=vm-1", "", nil, 422, httpapi.KindInvalid, "query.vm", "device"},
		{"no task", "GET", "/api/v1/tasks/" + nobody, "", nil, 404, httpapi.KindNotFound, "", nobody},
		{"a task id that is none", "GET", "/api/v1/tasks/7", "", nil, 404, httpapi.KindNotFound, "path.task", ""},
		{"cancel no task", "POST", "/api/v1/tasks/" + nobody + "/cancel", "", nil, 404, httpapi.KindNotFound, "", nobody},
		{"cancel an ended task", "POST", "/api/v1/tasks/" + used.ID + "/cancel", "", nil, 409, httpapi.KindConflict, "", "succeeded"},

		// events
		{"unknown type", "GET", "/api/v1/events?type=DeviceExploded", "", nil, 422, httpapi.KindInvalid, "query.type", "DeviceExploded"},
		{"since no time", "GET", "/api/v1/events?since=yesterday", "", nil, 422, httpapi.KindInvalid, "query.since", "RFC 3339"},
		{"since no day", "GET", "/api/v1/events?since=2026-02-30T00:00:00Z", "", nil, 422, httpapi.KindInvalid, "query.since", "RFC 3339"},
		{"until before since", "GET", "/api/v1/events?since=2026-02-02T00:00:00Z&until=2026-02-01T00:00:00Z", "", nil, 422, httpapi.KindInvalid, "query.until", "after since"},
		{"actor without a kind", "GET", "/api/v1/events?actor=admin", "", nil, 422, httpapi.KindInvalid, "query.actor", "user:"},
		{"after no place", "GET", "/api/v1/events?after=x", "", nil, 422, httpapi.KindInvalid, "query.after", ""},
		{"after too large", "GET", "/api/v1/events?after=9999999999999999999", "", nil, 422, httpapi.KindInvalid, "query.after", ""},
		{"cursor of the other order", "GET", "/api/v1/events?order=desc&cursor=asc.1.1", "", nil, 422, httpapi.KindInvalid, "query.cursor", ""},
		{"bad order", "GET", "/api/v1/events?order=up", "", nil, 422, httpapi.KindInvalid, "query.order", ""},
		{"device no id", "GET", "/api/v1/events?device=*", "", nil, 422, httpapi.KindInvalid, "query.device", ""},
		{"stream with a bad id", "GET", "/api/v1/events/stream", "", []string{"Last-Event-ID", "abc"}, 422, httpapi.KindInvalid, "header.Last-Event-ID", ""},
		{"stream with until", "GET", "/api/v1/events/stream?until=2026-01-01T00:00:00Z", "", nil, 422, httpapi.KindInvalid, "query.until", "unknown"},

		// join tokens
		{"ttl too small", "POST", "/api/v1/join-tokens", `{"ttl":59}`, nil, 422, httpapi.KindInvalid, "body.ttl", "60"},
		{"ttl too large", "POST", "/api/v1/join-tokens", `{"ttl":31536001}`, nil, 422, httpapi.KindInvalid, "body.ttl", "31536000"},
		{"no uses", "POST", "/api/v1/join-tokens", `{"maxUses":0}`, nil, 422, httpapi.KindInvalid, "body.maxUses", ""},
		{"too many uses", "POST", "/api/v1/join-tokens", `{"maxUses":100001}`, nil, 422, httpapi.KindInvalid, "body.maxUses", ""},
		{"unknown policy", "POST", "/api/v1/join-tokens", `{"approve":"yes"}`, nil, 422, httpapi.KindInvalid, "body.approve", "auto, manual"},
		{"bad label", "POST", "/api/v1/join-tokens", `{"labels":{"a b":"c"}}`, nil, 422, httpapi.KindInvalid, "body.labels", "a b"},
		{"name of spaces", "POST", "/api/v1/join-tokens", `{"name":"  "}`, nil, 422, httpapi.KindInvalid, "body.name", ""},
		{"a pattern that names all alike", "POST", "/api/v1/join-tokens", `{"maxUses":2,"namePattern":"till"}`, nil, 422, httpapi.KindInvalid, "body.namePattern", "the same name"},
		{"a pattern with an unknown placeholder", "POST", "/api/v1/join-tokens", `{"namePattern":"till-{i}"}`, nil, 422, httpapi.KindInvalid, "body.namePattern", "position 6"},
		{"a pattern too long", "POST", "/api/v1/join-tokens", `{"namePattern":"` + strings.Repeat("n", 129) + `"}`, nil, 422, httpapi.KindInvalid, "body.namePattern", "128"},
		{"a token for no device", "POST", "/api/v1/join-tokens", `{"device":"` + nobody + `"}`, nil, 422, httpapi.KindInvalid, "body.device", "no such device"},
		{"a token for what is no device", "POST", "/api/v1/join-tokens", `{"device":"` + strings.Repeat("x", 36) + `"}`, nil, 422, httpapi.KindInvalid, "body.device", "UUID"},
		{"a token for a retired device", "POST", "/api/v1/join-tokens", `{"device":"` + retired + `"}`, nil, 409, httpapi.KindConflict, "", "retired"},
		{"a token for a device with two uses", "POST", "/api/v1/join-tokens", `{"device":"` + dev + `","maxUses":2}`, nil, 422, httpapi.KindInvalid, "body.maxUses", "one use"},
		{"a token for a device with labels", "POST", "/api/v1/join-tokens", `{"device":"` + dev + `","labels":{"a":"b"}}`, nil, 422, httpapi.KindInvalid, "body.labels", "keeps its own"},
		{"a token for a device with approval", "POST", "/api/v1/join-tokens", `{"device":"` + dev + `","approve":"auto"}`, nil, 422, httpapi.KindInvalid, "body.approve", "as before"},
		{"a token for a device with a pattern", "POST", "/api/v1/join-tokens", `{"device":"` + dev + `","namePattern":"till-{n}"}`, nil, 422, httpapi.KindInvalid, "body.namePattern", "keeps its own"},
		{"the same key again", "POST", "/api/v1/join-tokens", `{"name":"x"}`, []string{"Idempotency-Key", "used-token-key"}, 409, httpapi.KindConflict, "header.Idempotency-Key", "shown once only"},
		{"no token", "GET", "/api/v1/join-tokens/" + nobody, "", nil, 404, httpapi.KindNotFound, "", nobody},
		{"revoke no token", "DELETE", "/api/v1/join-tokens/" + nobody, "", nil, 404, httpapi.KindNotFound, "", nobody},
		{"revoke what is no id", "DELETE", "/api/v1/join-tokens/x", "", nil, 404, httpapi.KindNotFound, "path.token", ""},

		// paths and methods
		{"no such path", "GET", "/api/v1/nothing", "", nil, 404, httpapi.KindNotFound, "", "/docs"},
		{"no such path outside the API", "GET", "/", "", nil, 404, httpapi.KindNotFound, "", ""},
		{"method not served", "DELETE", "/api/v1/devices", "", nil, 405, httpapi.KindMethod, "", "GET"},
		{"odd method", "BREW", "/api/v1/devices", "", nil, 405, httpapi.KindMethod, "", ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			before := m.last()
			a := m.do(c.method, c.path, c.body, c.headers...)
			if a.StatusCode != c.status {
				t.Fatalf("status %d, want %d: %s", a.StatusCode, c.status, a.body)
			}
			p := a.problem(t)
			if p.Type != httpapi.TypePrefix+c.kind.Name || p.Title != c.kind.Title || p.Status != c.status {
				t.Errorf("problem %s %q %d, want kind %s", p.Type, p.Title, p.Status, c.kind.Name)
			}
			if c.field != "" && !slices.ContainsFunc(p.Errors, func(f httpapi.FieldError) bool { return f.Field == c.field && f.Message != "" }) {
				t.Errorf("errors %+v do not name %s", p.Errors, c.field)
			}
			if !strings.Contains(p.Detail, c.detail) {
				t.Errorf("detail %q does not say %q", p.Detail, c.detail)
			}
			if p.Detail == "" || p.RequestID == "" || p.RequestID != a.Header.Get("Request-Id") {
				t.Errorf("detail %q, request id %q, header %q", p.Detail, p.RequestID, a.Header.Get("Request-Id"))
			}
			if after := m.last(); after != before {
				t.Errorf("the log went from %d to %d", before, after)
			}
		})
	}
}

// TestChunkedBody sends a body whose length is not told beforehand.
func TestChunkedBody(t *testing.T) {
	m := start(t)
	dev := string(m.device(given{name: "shop", vms: []events.VM{machine("vm-off", "kiosk", events.PowerOff, events.ToolsUnknown)}}))
	for _, c := range []struct {
		size, status int
	}{{100, 202}, {70 << 10, 413}} {
		body := `{"action":"on"` + strings.Repeat(" ", c.size) + `}`
		req, err := http.NewRequestWithContext(t.Context(), "POST", m.url+"/api/v1/vms/"+dev+"/vm-off/power", struct{ *strings.Reader }{strings.NewReader(body)})
		must(t, err)
		req.ContentLength = -1
		req.Header.Set("Authorization", "Bearer "+m.token)
		req.Header.Set("Content-Type", "application/json")
		a := m.send(req)
		if a.StatusCode != c.status {
			t.Errorf("%d bytes: status %d, want %d: %s", len(body), a.StatusCode, c.status, a.body)
		}
		if c.status == 413 && !strings.Contains(a.problem(t).Detail, "65536") {
			t.Errorf("detail %q does not name the limit", a.problem(t).Detail)
		}
	}
}

// TestBrokenBody sends chunks that are none: the request is at fault, not the
// manager.
func TestBrokenBody(t *testing.T) {
	m := start(t)
	u, err := url.Parse(m.url)
	must(t, err)
	dialer := tls.Dialer{Config: m.client.Transport.(*http.Transport).TLSClientConfig.Clone()}
	dialer.Config.NextProtos = []string{"http/1.1"}
	conn, err := dialer.DialContext(t.Context(), "tcp", u.Host)
	must(t, err)
	defer conn.Close()
	must(t, conn.SetDeadline(time.Now().Add(patience)))
	_, err = io.WriteString(conn, "POST /api/v1/join-tokens HTTP/1.1\r\nHost: "+u.Host+"\r\nAuthorization: Bearer "+m.token+
		"\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nnot a size\r\n{}\r\n")
	must(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	must(t, err)
	defer resp.Body.Close()
	if resp.StatusCode != 400 {
		t.Errorf("status %d, want 400", resp.StatusCode)
	}
	if strings.Contains(m.logged.String(), `"level":"ERROR"`) {
		t.Errorf("a client's fault is logged as the manager's: %s", m.logged)
	}
}
