package httpapi_test

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"pallas/commands"
	"pallas/commands/commandhttp"
	"pallas/events"
	"pallas/events/labels"
	"pallas/internal/auth"
	"pallas/internal/httpapi"
)

const bulkPath = "/api/v1/devices/bulk"

// TestDescribe writes notes and a site beside name and labels: one decision,
// guarded by If-Match, shown where it is promised.
func TestDescribe(t *testing.T) {
	m := start(t)
	path := "/api/v1/devices/" + string(m.device(given{name: "shop", labels: map[string]string{"site": "fra"}}))
	before := m.last()
	d, a := want[httpapi.DeviceIdentity](m, 200, "PATCH", path, `{"name":"till","labels":{"role":"pos"},"notes":"behind\nthe counter","site":{"name":"Zeil","latitude":50.1147,"longitude":8.6821}}`)
	if d.Name != "till" || d.Labels["role"] != "pos" || d.Notes != "behind\nthe counter" || d.Site == nil || *d.Site.Latitude != 50.1147 {
		t.Errorf("answer %+v", d)
	}
	if m.last() != before+1 {
		t.Errorf("%d decisions, want one", m.last()-before)
	}
	etag := a.Header.Get("ETag")
	got, _ := want[httpapi.Device](m, 200, "GET", path, "", "Pallas-Position", a.position(t))
	if diff := cmp.Diff(&httpapi.Site{Name: "Zeil", Latitude: new(50.1147), Longitude: new(8.6821)}, got.Site); diff != "" || got.Notes != "behind\nthe counter" {
		t.Errorf("notes %q, site (-want +got):\n%s", got.Notes, diff)
	}
	list, _ := want[page[httpapi.Device]](m, 200, "GET", "/api/v1/devices", "")
	if len(list.Items) != 1 || list.Items[0].Site == nil || list.Items[0].Notes != "" {
		t.Errorf("list %+v", list.Items)
	}
	for _, step := range []struct {
		patch string
		notes string
		site  *httpapi.Site
	}{
		{`{"site":{"name":"Zeil 106"}}`, "behind\nthe counter", &httpapi.Site{Name: "Zeil 106", Latitude: new(50.1147), Longitude: new(8.6821)}},
		{`{"site":{"latitude":0,"longitude":0},"notes":null}`, "", &httpapi.Site{Name: "Zeil 106", Latitude: new(0.0), Longitude: new(0.0)}},
		{`{"site":{"latitude":null,"longitude":null},"notes":"n"}`, "n", &httpapi.Site{Name: "Zeil 106"}},
		{`{"site":null}`, "n", nil},
		{`{"site":{"name":"Zeil"},"notes":""}`, "", &httpapi.Site{Name: "Zeil"}},
	} {
		d, a := want[httpapi.DeviceIdentity](m, 200, "PATCH", path, step.patch, "If-Match", etag, "Content-Type", "application/merge-patch+json")
		if diff := cmp.Diff(step.site, d.Site); diff != "" || d.Notes != step.notes {
			t.Errorf("%s: notes %q, site (-want +got):\n%s", step.patch, d.Notes, diff)
		}
		etag = a.Header.Get("ETag")
	}
}

// changed decodes the answer of a change of many devices.
func (m *manager) changeMany(body string, headers ...string) (httpChanged, answer) {
	m.t.Helper()
	return want[httpChanged](m, 200, "POST", bulkPath, body, headers...)
}

type httpChanged = commandhttp.DevicesChanged

func TestBulk(t *testing.T) {
	m := start(t)
	ids := map[string]events.DeviceID{}
	for i := range 6 {
		name := fmt.Sprintf("fra-%d", i)
		ids[name] = m.device(given{name: name, labels: map[string]string{"site": "fra", "n": fmt.Sprint(i)}, retired: i == 5})
	}
	ids["muc"] = m.device(given{name: "muc", labels: map[string]string{"site": "muc"}})
	ids["bare"] = m.pending("bare")
	labelsOf := func(name string) map[string]string {
		d, err := m.commands.Device(t.Context(), ids[name])
		must(t, err)
		return d.Labels
	}

	// A dry run tells, and changes nothing.
	before := m.last()
	dry, _ := m.changeMany(`{"action":"label","selector":"site=fra","labels":{"role":"pos","n":null},"dryRun":true}`)
	refusal := commandhttp.Refusal{
		Device: string(ids["fra-5"]), Name: "fra-5", Code: commands.CodeRetired,
		Message: fmt.Sprintf("device %s was retired: it cannot be changed any more", ids["fra-5"]),
	}
	expected := httpChanged{DryRun: true, Targets: 6, Changed: 5, Refused: 1, Refusals: []commandhttp.Refusal{refusal}}
	if diff := cmp.Diff(expected, dry); diff != "" {
		t.Errorf("dry run (-want +got):\n%s", diff)
	}
	if m.last() != before {
		t.Errorf("the dry run wrote %d decisions", m.last()-before)
	}

	// The real run does as the dry run said, reads its own writes, and a repeat
	// does nothing twice.
	const real = `{"action":"label","selector":"site=fra","labels":{"role":"pos","n":null},"expect":6}`
	did, a := m.changeMany(real, "Idempotency-Key", "roll-out")
	expected.DryRun = false
	if diff := cmp.Diff(expected, did); diff != "" {
		t.Errorf("real run (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]string{"site": "fra", "role": "pos"}, labelsOf("fra-0")); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
	if labelsOf("muc")["role"] != "" || labelsOf("fra-5")["role"] != "" {
		t.Error("a device was changed that was not meant or retired")
	}
	found, _ := want[page[httpapi.Device]](m, 200, "GET", "/api/v1/devices?selector=role%3Dpos", "", "Pallas-Position", a.position(t))
	if len(found.Items) != 5 || m.last() != before+5 {
		t.Errorf("%d devices have the label, %d decisions", len(found.Items), m.last()-before)
	}
	m.command(commands.UpdateDevice{Device: ids["fra-0"], Labels: map[string]*string{"role": new("kiosk")}})
	before = m.last()
	again, _ := m.changeMany(real, "Idempotency-Key", "roll-out")
	if again.Changed != 0 || again.Unchanged != 5 || m.last() != before || labelsOf("fra-0")["role"] != "kiosk" {
		t.Errorf("the repeat: %+v, %d decisions, labels %v", again, m.last()-before, labelsOf("fra-0"))
	}
	// Another request with the same key is another request.
	if next, _ := m.changeMany(strings.Replace(real, "pos", "bar", 1), "Idempotency-Key", "roll-out"); next.Changed != 5 {
		t.Errorf("another request with the same key: %+v", next)
	}
	// All events of one request have one cause.
	causes := map[string]int{}
	for r, err := range m.store.Read(t.Context(), events.Filter{}) {
		must(t, err)
		if len(r.Entries) == 1 && r.Entries[0].Event.Type() == "DeviceLabelled" && r.Actor == "user:admin" {
			causes[r.Cause]++
		}
	}
	if diff := cmp.Diff(map[string]int{"roll-out": 10}, causes); diff != "" {
		t.Errorf("causes (-want +got):\n%s", diff)
	}

	// Approving what waits, by trust alone.
	if r, _ := m.changeMany(`{"action":"approve","all":true,"trust":["pending"]}`); r.Targets != 1 || r.Changed != 1 {
		t.Errorf("approve: %+v", r)
	}
	if r, _ := m.changeMany(`{"action":"approve","all":true,"trust":["pending"]}`); r.Targets != 0 || r.Refusals == nil {
		t.Errorf("approve nobody: %+v", r)
	}
	if r, _ := m.changeMany(`{"action":"retire","selector":"!site","reason":"a test"}`); r.Changed != 1 {
		t.Errorf("retire: %+v", r)
	}
	if d, err := m.commands.Device(t.Context(), ids["bare"]); err != nil || d.Trust != commands.TrustRetired {
		t.Errorf("the retired device is %s (%v)", d.Trust, err)
	}
}

// TestBulkTrust takes devices through every action that changes trust.
func TestBulkTrust(t *testing.T) {
	m := start(t)
	m.pending("waits")
	m.device(given{name: "works", labels: map[string]string{"site": "fra"}})
	for _, step := range []struct {
		body             string
		changed, refused int
		trusts           string
	}{
		{`{"action":"reject","all":true,"reason":"nobody ordered it"}`, 1, 1, "rejected approved"},
		{`{"action":"quarantine","selector":"site=fra","reason":"stolen"}`, 1, 0, "rejected quarantined"},
		{`{"action":"approve","all":true}`, 1, 1, "approved quarantined"},
		{`{"action":"quarantine","all":true}`, 1, 0, "quarantined quarantined"},
		{`{"action":"release","all":true,"trust":["quarantined"],"reason":"found"}`, 2, 0, "approved approved"},
		{`{"action":"release","all":true}`, 0, 0, "approved approved"},
		{`{"action":"rotate-certificate","all":true}`, 2, 0, "approved approved"},
		{`{"action":"rotate-certificate","all":true}`, 0, 0, "approved approved"},
		{`{"action":"retire","all":true}`, 2, 0, "retired retired"},
		{`{"action":"release","all":true}`, 0, 2, "retired retired"},
		{`{"action":"rotate-certificate","all":true}`, 0, 2, "retired retired"},
	} {
		r, a := m.changeMany(step.body)
		if r.Changed != step.changed || r.Refused != step.refused {
			t.Errorf("%s: %+v", step.body, r)
		}
		p, _ := want[page[httpapi.Device]](m, 200, "GET", "/api/v1/devices", "", "Pallas-Position", a.position(t))
		trusts := map[string]string{}
		for _, d := range p.Items {
			trusts[d.Name] = d.Trust
		}
		if got := trusts["waits"] + " " + trusts["works"]; got != step.trusts {
			t.Errorf("%s: %s, want %s", step.body, got, step.trusts)
		}
	}
}

// TestBulkExpect refuses when other devices are meant than those that a dry run
// counted.
func TestBulkExpect(t *testing.T) {
	m := start(t)
	for i := range 3 {
		m.device(given{name: fmt.Sprint(i), labels: map[string]string{"site": "fra"}})
	}
	before := m.last()
	a := m.do("POST", bulkPath, `{"action":"retire","selector":"site=fra","expect":2}`)
	if p := a.problem(t); a.StatusCode != http.StatusPreconditionFailed || p.Errors[0].Field != "body.expect" || !strings.Contains(p.Detail, "3 devices are meant now, not 2") {
		t.Errorf("%d %+v", a.StatusCode, p)
	}
	if m.last() != before {
		t.Error("something was changed")
	}
}

// A device that changed between being picked and its turn is judged as it is.
func TestBulkLooksAgain(t *testing.T) {
	var m *manager
	var moved events.DeviceID
	m = start(t, func(o *options) {
		o.commands = func(c *commandhttp.Config) {
			next := c.Select
			c.Select = func(ctx context.Context, sel labels.Selector, scope labels.Scope, trust []string, limit int) ([]events.DeviceID, error) {
				ids, err := next(ctx, sel, scope, trust, limit)
				m.command(commands.UpdateDevice{Device: moved, Labels: map[string]*string{"site": new("muc")}})
				return ids, err
			}
		}
	})
	m.device(given{name: "stays", labels: map[string]string{"site": "fra"}})
	moved = m.device(given{name: "moved", labels: map[string]string{"site": "fra"}})
	r, _ := m.changeMany(`{"action":"retire","selector":"site=fra"}`)
	if r.Targets != 2 || r.Changed != 1 || len(r.Refusals) != 1 || r.Refusals[0].Device != string(moved) || r.Refusals[0].Code != "moved" {
		t.Errorf("%+v", r)
	}
	if d, err := m.commands.Device(t.Context(), moved); err != nil || d.Trust != commands.TrustApproved {
		t.Errorf("the device that left is %s (%v)", d.Trust, err)
	}
}

// TestBulkTooMany refuses more devices than one request may change.
func TestBulkTooMany(t *testing.T) {
	many := make([]events.DeviceID, 10_001)
	for i := range many {
		many[i] = events.DeviceID(uuid.NewString())
	}
	m := start(t, func(o *options) {
		o.commands = func(c *commandhttp.Config) {
			c.Select = func(_ context.Context, _ labels.Selector, _ labels.Scope, _ []string, limit int) ([]events.DeviceID, error) {
				return many[:limit], nil
			}
		}
	})
	a := m.do("POST", bulkPath, `{"action":"approve","all":true,"dryRun":true}`)
	if p := a.problem(t); a.StatusCode != 422 || p.Errors[0].Field != "body.selector" || !strings.Contains(p.Detail, "more than 10000 devices: narrow it") {
		t.Errorf("%d %+v", a.StatusCode, p)
	}
}

// TestBulkBreaksOff fills the log in the middle: the answer counts what was
// done, and the repeat does the rest.
func TestBulkBreaksOff(t *testing.T) {
	full := make(chan struct{})
	left := make(chan struct{}, 4)
	m := start(t, func(o *options) { o.store = func(s events.Store) events.Store { return &filling{s, left, full} } })
	for i := range 8 {
		m.device(given{name: fmt.Sprint(i), labels: map[string]string{"site": "fra"}})
	}
	for range cap(left) {
		left <- struct{}{}
	}
	close(full)
	const body = `{"action":"label","selector":"site=fra","labels":{"role":"pos"}}`
	a := m.do("POST", bulkPath, body, "Idempotency-Key", "k")
	if p := a.problem(t); a.StatusCode != 507 || p.Detail != "4 of 8 devices were changed, then: The event log is full. Send the same request again for the others" {
		t.Errorf("%d %+v", a.StatusCode, p)
	}
	for range cap(left) {
		left <- struct{}{}
	}
	if r, _ := m.changeMany(body, "Idempotency-Key", "k"); r.Changed != 4 || r.Unchanged != 4 {
		t.Errorf("the repeat: %+v", r)
	}
}

// filling is a log that has room for only so many decisions once it is full.
type filling struct {
	events.Store
	left chan struct{}
	full chan struct{}
}

func (f *filling) Append(ctx context.Context, expected uint64, d events.Decision) (events.Appended, error) {
	select {
	case <-f.full:
	default:
		return f.Store.Append(ctx, expected, d)
	}
	select {
	case <-f.left:
		return f.Store.Append(ctx, expected, d)
	default:
		return events.Appended{}, events.ErrNoSpace
	}
}

// TestBulkWithinScope gives an operator and an administrator of one site what is
// theirs, and shows nothing of the others.
func TestBulkWithinScope(t *testing.T) {
	var m *manager
	var moved events.DeviceID
	var denied []auth.Permission
	m = start(t, func(o *options) {
		o.httpapi = func(c *httpapi.Config) {
			c.Denied = func(_ context.Context, _ httpapi.Principal, operation string, need auth.Permission) {
				if operation == "change-devices" {
					denied = append(denied, need)
				}
			}
		}
		o.commands = func(c *commandhttp.Config) {
			next := c.Select
			c.Select = func(ctx context.Context, sel labels.Selector, scope labels.Scope, trust []string, limit int) ([]events.DeviceID, error) {
				ids, err := next(ctx, sel, scope, trust, limit)
				if moved != "" {
					m.command(commands.UpdateDevice{Device: moved, Labels: map[string]*string{"site": new("muc")}})
				}
				return ids, err
			}
		}
	})
	fra := m.device(given{name: "fra", labels: map[string]string{"site": "fra"}})
	m.device(given{name: "muc", labels: map[string]string{"site": "muc"}})
	operator := m.as(m.grant("sam", selects(auth.RoleOperator, "site=fra")))
	admin := m.as(m.grant("ada", selects(auth.RoleAdmin, "site=fra")))

	if r, _ := operator.changeMany(`{"action":"label","all":true,"labels":{"a":"b"},"dryRun":true}`); r.Targets != 1 || r.Changed != 1 {
		t.Errorf("dry run: %+v", r)
	}
	if r, _ := operator.changeMany(`{"action":"label","all":true,"labels":{"a":"b"},"expect":1}`); r.Targets != 1 || r.Changed != 1 {
		t.Errorf("label: %+v", r)
	}
	before := m.last()
	for _, dry := range []string{"true", "false"} {
		r, _ := operator.changeMany(`{"action":"label","all":true,"labels":{"site":"muc"},"dryRun":` + dry + `}`)
		if r.Changed != 0 || len(r.Refusals) != 1 || r.Refusals[0].Code != commands.CodeOutOfScope || r.Refusals[0].Name != "fra" {
			t.Errorf("label out of the scope: %+v", r)
		}
	}
	a := operator.do("POST", bulkPath, `{"action":"retire","all":true,"dryRun":true}`)
	if p := a.problem(t); a.StatusCode != 403 || !strings.Contains(p.Detail, string(auth.RetireDevices)) {
		t.Errorf("an operator retires: %d %+v", a.StatusCode, p)
	}
	a = m.as(m.grant("vic", selects(auth.RoleViewer, ""))).do("POST", bulkPath, `{"action":"approve","all":true,"dryRun":true}`)
	if a.StatusCode != 403 {
		t.Errorf("a viewer approves: %d %s", a.StatusCode, a.body)
	}
	if diff := cmp.Diff([]auth.Permission{auth.RetireDevices, auth.ManageDevices}, denied); diff != "" {
		t.Errorf("refusals that were told (-want +got):\n%s", diff)
	}
	if m.last() != before {
		t.Errorf("%d decisions were written", m.last()-before)
	}

	// A device that leaves the scope meanwhile is not there any more.
	moved = m.device(given{name: "secret", labels: map[string]string{"site": "fra"}})
	r, _ := admin.changeMany(`{"action":"retire","all":true}`)
	if r.Targets != 2 || r.Changed != 1 || len(r.Refusals) != 1 || r.Refusals[0].Code != "moved" || r.Refusals[0].Name != "" {
		t.Errorf("retire: %+v", r)
	}
	for id, trust := range map[events.DeviceID]commands.Trust{fra: commands.TrustRetired, moved: commands.TrustApproved} {
		if d, err := m.commands.Device(t.Context(), id); err != nil || d.Trust != trust {
			t.Errorf("%s is %s (%v), want %s", id, d.Trust, err, trust)
		}
	}
}

// TestBulkRefusalsAreBounded lists the first hundred only.
func TestBulkRefusalsAreBounded(t *testing.T) {
	m := start(t)
	var ids []string
	for i := range 130 {
		ids = append(ids, string(m.pending(fmt.Sprint(i))))
	}
	for _, id := range ids {
		m.command(commands.RetireDevice{Device: events.DeviceID(id)})
	}
	r, _ := m.changeMany(`{"action":"approve","all":true,"dryRun":true}`)
	slices.Sort(ids)
	if r.Refused != 130 || len(r.Refusals) != 100 || r.Refusals[0].Device != ids[0] || r.Refusals[99].Device != ids[99] {
		t.Errorf("refused %d, listed %d", r.Refused, len(r.Refusals))
	}
}

// BenchmarkBulk labels 10,000 devices in one request, and gives the dispatcher
// the same commands in the same run. The metric to watch is the ratio.
func BenchmarkBulk(b *testing.B) {
	const devices, workers = 10_000, 16
	m := start(b)
	m.client.Timeout = time.Minute
	ids := make([]events.DeviceID, devices)
	for i := range ids {
		ids[i] = m.pending(fmt.Sprintf("shop-%05d", i))
	}
	m.caughtUp()
	var request, alone, dry time.Duration
	n := 0
	for b.Loop() {
		n++
		label := strconv.Itoa(n)
		begun := time.Now()
		if r, _ := m.changeMany(`{"action":"label","all":true,"labels":{"a":"` + label + `"},"dryRun":true}`); r.Changed != devices {
			b.Fatalf("%+v", r)
		}
		dry += time.Since(begun)
		begun = time.Now()
		if r, _ := m.changeMany(`{"action":"label","all":true,"labels":{"a":"` + label + `"},"expect":10000}`); r.Changed != devices {
			b.Fatalf("%+v", r)
		}
		request += time.Since(begun)
		m.caughtUp()
		begun = time.Now()
		var g errgroup.Group
		g.SetLimit(workers)
		for _, id := range ids {
			g.Go(func() error {
				_, err := m.commands.Do(b.Context(), commands.UpdateDevice{Device: id, Labels: map[string]*string{"b": &label}}, commands.Meta{Actor: "user:bench", Scope: new(labels.Everything()), CommandID: label})
				return err
			})
		}
		must(b, g.Wait())
		alone += time.Since(begun)
		m.caughtUp()
	}
	total := float64(n * devices)
	b.ReportMetric(total/dry.Seconds(), "dry/s")
	b.ReportMetric(total/request.Seconds(), "devices/s")
	b.ReportMetric(total/alone.Seconds(), "dispatcher/s")
	b.ReportMetric(alone.Seconds()/request.Seconds(), "of-dispatcher")
}
