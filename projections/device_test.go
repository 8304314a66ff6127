package projections

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"pallas/events"
	"pallas/events/labels"
)

// device returns the row of a device.
func (d *DB) mustDevice(t testing.TB, id events.DeviceID) Device {
	t.Helper()
	dev, err := d.Device(t.Context(), everything, id)
	if err != nil {
		t.Fatal(err)
	}
	return dev
}

func TestDeviceEvents(t *testing.T) {
	registered := func(l *eventLog) Device {
		p := l.device(deviceA, events.DeviceRegistered{
			Device: deviceA, Name: "Kiosk-1", JoinToken: token1,
			Labels: map[string]string{"site": "fra", "role": "pos"}, KeyHash: "k1", AgentVersion: "0.1.0",
		})
		return Device{
			ID: deviceA, Name: "Kiosk-1", Labels: map[string]string{"site": "fra", "role": "pos"},
			Trust: TrustPending, Connection: ConnectionNever, AgentVersion: "0.1.0", KeyHash: "k1",
			JoinToken: token1, RegisteredAt: at(1), Revision: p, ChangedPosition: p, ChangedAt: at(1),
			Standing: Standing{TrustSince: at(1), TrustBy: "user:ada"},
		}
	}
	stands := func(d *Device, trust Trust, minute int, reason string) {
		d.Trust, d.Standing = trust, Standing{TrustSince: at(minute), TrustBy: "user:ada", TrustReason: reason}
	}
	stolen := events.DeviceQuarantined{Cause: events.QuarantineOperator, Reason: "stolen"}
	claimed := events.DeviceKeyClaimed{KeyHash: "k2", JoinToken: token2, Name: "kiosk", AgentVersion: "0.3.0"}
	// touched is what each further decision on the device changes.
	touched := func(d *Device, position uint64, minute int) {
		d.Revision, d.ChangedPosition, d.ChangedAt = position, position, at(minute)
	}
	for _, tc := range []struct {
		name string
		when []events.Event // each a decision of its own
		want func(*Device)
	}{
		{"registered", nil, func(*Device) {}},
		{"approved", []events.Event{events.DeviceApproved{Policy: "manual"}}, func(d *Device) {
			stands(d, TrustApproved, 2, "")
			d.Approval, d.ApprovedBy, d.ApprovedAt = "manual", "user:ada", at(2)
		}},
		{"rejected", []events.Event{events.DeviceRejected{Reason: "no"}}, func(d *Device) { stands(d, TrustRejected, 2, "no") }},
		{"approved after all", []events.Event{events.DeviceRejected{Reason: "no"}, events.DeviceApproved{Policy: "manual"}}, func(d *Device) {
			stands(d, TrustApproved, 3, "")
			d.Approval, d.ApprovedBy, d.ApprovedAt = "manual", "user:ada", at(3)
		}},
		{"quarantined", []events.Event{stolen}, func(d *Device) {
			stands(d, TrustQuarantined, 2, "stolen")
			d.TrustCause, d.TrustBefore = events.QuarantineOperator, TrustPending
		}},
		{"released", []events.Event{stolen, claimed, events.DeviceReleased{Reason: "found"}}, func(d *Device) { stands(d, TrustPending, 4, "found") }},
		{"released from nothing", []events.Event{events.DeviceReleased{Reason: "found"}}, func(*Device) {}},
		{"claimed", []events.Event{stolen, claimed}, func(d *Device) {
			stands(d, TrustQuarantined, 2, "stolen")
			d.TrustCause, d.TrustBefore = events.QuarantineOperator, TrustPending
			d.Claim = &Claim{KeyHash: "k2", Name: "kiosk", AgentVersion: "0.3.0", JoinToken: token2, Address: "192.0.2.7", At: at(3)}
		}},
		{"rekeyed", []events.Event{
			events.CertificateIssued{Serial: "0a1b", KeyHash: "k1", NotAfter: at(100)},
			events.DeviceRekeyed{KeyHash: "k2", Policy: "token", JoinToken: token2},
		}, func(d *Device) { d.KeyHash, d.JoinToken = "k2", token2 }},
		{"certificate", []events.Event{events.CertificateIssued{Serial: "0a1b", KeyHash: "k2", NotBefore: at(0), NotAfter: at(100)}}, func(d *Device) {
			d.KeyHash, d.CertSerial, d.CertNotAfter = "k2", "0a1b", at(100)
		}},
		{"connected", []events.Event{events.DeviceConnected{Address: "198.51.100.4", AgentVersion: "0.2.0", Protocol: 1}}, func(d *Device) {
			d.Connection, d.ConnectionSince = ConnectionConnected, at(2)
			d.Address, d.AgentVersion, d.Protocol = "198.51.100.4", "0.2.0", 1
		}},
		{"lost", []events.Event{
			events.DeviceConnected{Address: "198.51.100.4", AgentVersion: "0.2.0", Protocol: 1},
			events.DeviceLost{Reason: "keepalive", Since: at(1)},
		}, func(d *Device) {
			d.Connection, d.ConnectionSince, d.LostReason = ConnectionLost, at(1), "keepalive"
			d.Address, d.AgentVersion, d.Protocol = "198.51.100.4", "0.2.0", 1
		}},
		{"lost, not known since when", []events.Event{events.DeviceLost{Reason: "not seen since the manager started"}}, func(d *Device) {
			d.Connection, d.ConnectionSince, d.LostReason = ConnectionLost, at(2), "not seen since the manager started"
		}},
		{"back again", []events.Event{events.DeviceLost{Reason: "keepalive"}, events.DeviceConnected{Address: "198.51.100.5", AgentVersion: "0.2.0", Protocol: 1}}, func(d *Device) {
			d.Connection, d.ConnectionSince = ConnectionConnected, at(3)
			d.Address, d.AgentVersion, d.Protocol = "198.51.100.5", "0.2.0", 1
		}},
		{"labelled", []events.Event{events.DeviceLabelled{Labels: map[string]string{"site": "muc"}}}, func(d *Device) {
			d.Labels = map[string]string{"site": "muc"}
		}},
		{"labels taken away", []events.Event{events.DeviceLabelled{}}, func(d *Device) { d.Labels = nil }},
		{"described", []events.Event{events.DeviceDescribed{Notes: "first floor", Site: &events.Site{Name: "Zeil", Latitude: new(50.5), Longitude: new(-8.0)}}}, func(d *Device) {
			d.Notes, d.Site = "first floor", &events.Site{Name: "Zeil", Latitude: new(50.5), Longitude: new(-8.0)}
		}},
		{"description taken away", []events.Event{events.DeviceDescribed{Notes: "a", Site: &events.Site{Name: "b"}}, events.DeviceDescribed{}}, func(*Device) {}},
		{"renamed", []events.Event{events.DeviceRenamed{Name: "Kasse 1"}}, func(d *Device) { d.Name = "Kasse 1" }},
		{"retired", []events.Event{events.DeviceRetired{Reason: "scrapped"}}, func(d *Device) {
			stands(d, TrustRetired, 2, "scrapped")
			d.RetiredAt, d.RetiredBy, d.RetiredReason = at(2), "user:ada", "scrapped"
		}},
		{"unknown type", []events.Event{unknown()}, func(*Device) {}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLog(t)
			want := registered(l)
			for i, e := range tc.when {
				touched(&want, l.device(deviceA, e), i+2)
			}
			tc.want(&want)
			d := given(t, l)
			if diff := cmp.Diff(want, d.mustDevice(t, deviceA)); diff != "" {
				t.Errorf("device (-want +got):\n%s", diff)
			}
			// The labels that lists are selected by are the same ones.
			for _, key := range []string{"site", "role"} {
				s, err := labels.Parse(key + "=" + want.Labels[key])
				if want.Labels[key] == "" {
					s, err = labels.Parse("!" + key)
				}
				if err != nil {
					t.Fatal(err)
				}
				if p, err := d.Devices(t.Context(), DeviceFilter{Scope: everything, Selector: s}); err != nil || len(p.Items) != 1 {
					t.Errorf("devices of %s: %d, %v; want 1", s, len(p.Items), err)
				}
			}
		})
	}
}

// TestDeviceOneDecision applies what an automatic approval appends at once.
func TestDeviceOneDecision(t *testing.T) {
	l := newLog(t)
	p := l.device(
		deviceA,
		events.DeviceRegistered{Device: deviceA, Name: "a", JoinToken: token1, KeyHash: "k", AgentVersion: "1"},
		events.DeviceApproved{Policy: "auto"},
		events.CertificateIssued{Serial: "1", KeyHash: "k", NotAfter: at(9)},
	)
	got := given(t, l).mustDevice(t, deviceA)
	if got.Trust != TrustApproved || got.Approval != "auto" || got.CertSerial != "1" || got.Revision != p {
		t.Errorf("device %+v", got)
	}
}

func TestDeviceNotFound(t *testing.T) {
	l := newLog(t)
	l.device(deviceA, events.DeviceRenamed{Name: "never registered"})
	d := given(t, l)
	_, err := d.Device(t.Context(), everything, deviceA)
	is(t, err, ErrNotFound)
}

// TestRetiredKeepsNoVMs also covers a report that was appended in the moment
// of retiring.
func TestRetiredKeepsNoVMs(t *testing.T) {
	l := newLog(t)
	l.register(deviceA, "a")
	l.inventory(deviceA, events.VMObserved{VM: events.VM{ID: vm1, Name: "x"}})
	l.device(deviceA, events.DeviceRetired{})
	l.inventory(deviceA, events.VMObserved{VM: events.VM{ID: vm2, Name: "y"}})
	p, err := given(t, l).VMs(t.Context(), VMFilter{Scope: everything})
	if err != nil || len(p.Items) != 0 {
		t.Errorf("vms of a retired device: %v, %v", p.Items, err)
	}
}

// fleet is a log with devices of many kinds, registered under the names "n00"
// and so on, in an order that is not that of their ids.
func fleet(t testing.TB, n int) *eventLog {
	l := newLog(t)
	for i := range n {
		id := fleetID(i)
		l.register(id, fmt.Sprintf("N%02d", i), fmt.Sprintf("site=s%d", i%3), fmt.Sprintf("parity=%d", i%2))
		if i%4 > 0 {
			l.device(id, events.DeviceApproved{Policy: "auto"})
		}
		switch i % 5 {
		case 1, 2:
			l.device(id, events.DeviceConnected{Address: "192.0.2.1", Protocol: 1})
		case 3:
			l.device(id, events.DeviceLost{Reason: "gone"})
		}
		if i%2 > 0 {
			l.inventory(id, events.HostObserved{Host: events.Host{
				Name: fmt.Sprintf("esx%02d.example", i), Serial: fmt.Sprintf("SN%04d", i), Version: fmt.Sprintf("8.0.%d", i%3),
				License: events.License{Writable: i%3 > 0},
			}})
		}
	}
	return l
}

func fleetID(i int) events.DeviceID {
	return events.DeviceID(fmt.Sprintf("%08x-0000-4000-8000-%012x", i*2654435761%(1<<32), i))
}

func mustSelector(t testing.TB, s string) Selector {
	t.Helper()
	sel, err := labels.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return sel
}

// TestDevicesPages reads every list in pages of each size and compares with
// the same condition on the rows in Go.
func TestDevicesPages(t *testing.T) {
	const n = 40
	d := given(t, fleet(t, n))
	var all []Device
	for i := range n {
		all = append(all, d.mustDevice(t, fleetID(i)))
	}
	version := func(d Device) string {
		if d.Host == nil {
			return ""
		}
		return d.Host.Version
	}
	for name, tc := range map[string]struct {
		filter DeviceFilter
		want   func(Device) bool
	}{
		"all":        {DeviceFilter{Scope: everything}, func(Device) bool { return true }},
		"trust":      {DeviceFilter{Scope: everything, Trust: []Trust{TrustPending}}, func(d Device) bool { return d.Trust == TrustPending }},
		"trusts":     {DeviceFilter{Scope: everything, Trust: []Trust{TrustPending, TrustApproved}}, func(Device) bool { return true }},
		"connection": {DeviceFilter{Scope: everything, Connection: []Connection{ConnectionLost}}, func(d Device) bool { return d.Connection == ConnectionLost }},
		"condition":  {DeviceFilter{Scope: everything, Condition: []events.Condition{events.ConditionReadOnly}}, func(d Device) bool { return d.Condition == events.ConditionReadOnly }},
		"conditions": {
			DeviceFilter{Scope: everything, Condition: []events.Condition{events.ConditionReadOnly, events.ConditionOK}},
			func(d Device) bool { return d.Condition != "" },
		},
		"version":  {DeviceFilter{Scope: everything, Version: "8.0.1"}, func(d Device) bool { return version(d) == "8.0.1" }},
		"selector": {DeviceFilter{Scope: everything, Selector: mustSelector(t, "site=s1")}, func(d Device) bool { return d.Labels["site"] == "s1" }},
		"selector and more": {
			DeviceFilter{Scope: everything, Selector: mustSelector(t, "parity!=1,site in (s0,s2)"), Trust: []Trust{TrustApproved}},
			func(d Device) bool {
				return d.Labels["parity"] != "1" && d.Labels["site"] != "s1" && d.Trust == TrustApproved
			},
		},
		"text in the name":   {DeviceFilter{Scope: everything, Text: "n1"}, func(d Device) bool { return d.Name[1] == '1' }},
		"text in the serial": {DeviceFilter{Scope: everything, Text: "sn000"}, func(d Device) bool { return d.Host != nil && d.Host.Serial < "SN0010" }},
		"text in the id":     {DeviceFilter{Scope: everything, Text: string(fleetID(7))[:8]}, func(d Device) bool { return d.ID == fleetID(7) }},
		"nothing":            {DeviceFilter{Scope: everything, Text: "%"}, func(Device) bool { return false }},
	} {
		for _, sort := range []Sort{SortName, SortID} {
			want := slices.DeleteFunc(slices.Clone(all), func(d Device) bool { return !tc.want(d) })
			if sort == SortID {
				slices.SortFunc(want, func(a, b Device) int { return cmpText(string(a.ID), string(b.ID)) })
			}
			for _, limit := range []int{1, 7, 1000} {
				t.Run(fmt.Sprintf("%s/%s/%d", name, sort, limit), func(t *testing.T) {
					f := tc.filter
					f.Sort, f.Limit = sort, limit
					got := pages(t, func(cursor string) (Page[Device], error) {
						f.Cursor = cursor
						return d.Devices(t.Context(), f)
					}, limit)
					if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
						t.Errorf("devices (-want +got):\n%s", diff)
					}
				})
			}
		}
	}
}

func cmpText(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// pages reads a list to its end.
func pages[T any](t testing.TB, get func(cursor string) (Page[T], error), limit int) []T {
	t.Helper()
	var items []T
	for cursor := ""; ; {
		p, err := get(cursor)
		if err != nil {
			t.Fatal(err)
		}
		if len(p.Items) > limit || p.Next != "" && len(p.Items) != limit {
			t.Fatalf("page of %d items of %d, next %q", len(p.Items), limit, p.Next)
		}
		items = append(items, p.Items...)
		if cursor = p.Next; cursor == "" {
			return items
		}
	}
}

func TestDevicesNamed(t *testing.T) {
	l := newLog(t)
	l.register(deviceA, "Kiosk")
	l.register(deviceB, "kiosk")
	l.register(deviceC, "0A00")
	d := given(t, l)
	for word, want := range map[string][]events.DeviceID{
		"KIOSK":         {deviceA, deviceB},
		string(deviceB): {deviceB},
		"0b000":         {deviceB},
		"0B000":         {deviceB},
		"0a00":          {deviceC}, // a name goes before the beginning of an id
		"0a0":           nil,       // too short
		"":              nil,
		"%":             nil,
	} {
		got, err := d.DevicesNamed(t.Context(), everything, word)
		if err != nil {
			t.Fatal(err)
		}
		var ids []events.DeviceID
		for _, dev := range got {
			ids = append(ids, dev.ID)
		}
		if diff := cmp.Diff(want, ids); diff != "" {
			t.Errorf("%q (-want +got):\n%s", word, diff)
		}
	}
}

func TestConnectedDevices(t *testing.T) {
	l := newLog(t)
	for _, id := range []events.DeviceID{deviceC, deviceA, deviceB} {
		l.register(id, "x")
		l.device(id, events.DeviceConnected{Protocol: 1})
	}
	l.device(deviceB, events.DeviceLost{})
	got, err := given(t, l).ConnectedDevices(t.Context())
	if diff := cmp.Diff([]events.DeviceID{deviceA, deviceC}, got); diff != "" || err != nil {
		t.Errorf("connected devices: %v (-want +got):\n%s", err, diff)
	}
}

func TestCounts(t *testing.T) {
	l := newLog(t)
	l.register(deviceA, "a")
	l.register(deviceB, "b")
	l.register(deviceC, "c")
	l.device(deviceA, events.DeviceApproved{Policy: "auto"}, events.DeviceConnected{Protocol: 1})
	l.device(deviceC, events.DeviceRetired{})
	l.inventory(deviceA, events.HostObserved{Host: events.Host{Version: "8.0.2", License: events.License{Writable: true}}},
		events.VMObserved{VM: events.VM{ID: vm1, Power: events.PowerOn}}, events.VMObserved{VM: events.VM{ID: vm2, Power: events.PowerOff}})
	l.tasks(deviceA, events.TaskRequested{Task: task1, Kind: events.TaskVMReset, VM: vm1})
	p := l.tasks(deviceA, events.TaskRequested{Task: task2, Kind: events.TaskVMReset, VM: vm1}, events.TaskSucceeded{Task: task2})
	got, err := given(t, l).Counts(t.Context(), everything)
	if err != nil {
		t.Fatal(err)
	}
	want := Counts{
		Position:   p,
		Trust:      map[Trust]int{TrustPending: 1, TrustApproved: 1, TrustRetired: 1},
		Connection: map[Connection]int{ConnectionConnected: 1, ConnectionNever: 1},
		Condition:  map[events.Condition]int{events.ConditionOK: 1, "": 1},
		Version:    map[string]int{"8.0.2": 1, "": 1},
		Power:      map[events.PowerState]int{events.PowerOn: 1, events.PowerOff: 1},
		OpenTasks:  map[events.TaskStatus]int{events.TaskStatusRequested: 1},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("counts (-want +got):\n%s", diff)
	}
}

// TestBadFilters gives each list what it must refuse.
func TestBadFilters(t *testing.T) {
	l := newLog(t)
	l.register(deviceA, "a")
	d := given(t, l)
	devices := func(f DeviceFilter) func(context.Context) error {
		return func(ctx context.Context) error { _, err := d.Devices(ctx, f); return err }
	}
	vms := func(f VMFilter) func(context.Context) error {
		return func(ctx context.Context) error { _, err := d.VMs(ctx, f); return err }
	}
	tasks := func(f TaskFilter) func(context.Context) error {
		return func(ctx context.Context) error { _, err := d.Tasks(ctx, f); return err }
	}
	tokens := func(f JoinTokenFilter) func(context.Context) error {
		return func(ctx context.Context) error { _, err := d.JoinTokens(ctx, f); return err }
	}
	uses := func(f TokenUseFilter) func(context.Context) error {
		return func(ctx context.Context) error { _, err := d.TokenUses(ctx, f); return err }
	}
	long := string(make([]byte, maxText+1))
	for name, tc := range map[string]struct {
		list  func(context.Context) error
		field string
	}{
		"devices limit":  {devices(DeviceFilter{Scope: everything, Window: Window{Limit: MaxLimit + 1}}), "limit"},
		"vms limit":      {vms(VMFilter{Scope: everything, Window: Window{Limit: -1}}), "limit"},
		"tasks limit":    {tasks(TaskFilter{Scope: everything, Window: Window{Limit: MaxLimit + 1}}), "limit"},
		"tokens limit":   {tokens(JoinTokenFilter{Scope: everything, Window: Window{Limit: -5}}), "limit"},
		"uses limit":     {uses(TokenUseFilter{Scope: everything, Window: Window{Limit: -5}}), "limit"},
		"devices sort":   {devices(DeviceFilter{Scope: everything, Sort: "age"}), "sort"},
		"vms sort":       {vms(VMFilter{Scope: everything, Sort: "age"}), "sort"},
		"devices text":   {devices(DeviceFilter{Scope: everything, Text: long}), "q"},
		"vms text":       {vms(VMFilter{Scope: everything, Text: long}), "q"},
		"task without a": {tasks(TaskFilter{Scope: everything, VM: vm1}), "vm"},
	} {
		var field *FieldError
		if err := tc.list(t.Context()); !errors.As(err, &field) || field.Field != tc.field {
			t.Errorf("%s: %v, want a FieldError for %q", name, err, tc.field)
		}
	}
	for _, cursor := range []string{
		"x", "!", "e30", encodeCursor("other", "a", "b"), encodeCursor("device-name", "a"), encodeCursor("device-name", "a", "b", "c"),
		encodeCursor("device-name", 1, "b"), encodeCursor("vm-name", nil, "a", "b"), encodeCursor("task", "a", "b"), encodeCursor("task", 1.5, "b"),
		encodeCursor("device-id", "a", "b"), encodeCursor("device-name", "a", "b") + "\n", encodeCursor("device-name", "a", "b") + "=",
	} {
		w := Window{Cursor: cursor}
		for _, list := range []func(context.Context) error{
			devices(DeviceFilter{Scope: everything, Window: w}), devices(DeviceFilter{Scope: everything, Window: w, Sort: SortID}), vms(VMFilter{Scope: everything, Window: w}), vms(VMFilter{Scope: everything, Window: w, Sort: SortID}),
			tasks(TaskFilter{Scope: everything, Window: w}), tokens(JoinTokenFilter{Scope: everything, Window: w}), uses(TokenUseFilter{Scope: everything, Window: w}),
		} {
			if err := list(t.Context()); !errors.Is(err, ErrBadCursor) {
				t.Errorf("cursor %q: %v", cursor, err)
			}
		}
	}
}
