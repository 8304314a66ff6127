package projections

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"pallas/events"
	"pallas/events/labels"
	"pallas/events/telemetry"
)

// scopes are any, over the labels that labelled fleets have.
var scopes = func() *rapid.Generator[Scope] {
	key, value := rapid.SampledFrom([]string{"site", "role"}), rapid.SampledFrom([]string{"x", "y", "z"})
	requirement := rapid.Custom(func(t *rapid.T) string {
		k := key.Draw(t, "key")
		switch rapid.IntRange(0, 5).Draw(t, "operator") {
		case 0:
			return k
		case 1:
			return "!" + k
		case 2:
			return k + "!=" + value.Draw(t, "value")
		case 3:
			return k + " notin (" + strings.Join(rapid.SliceOfN(value, 1, 2).Draw(t, "values"), ",") + ")"
		case 4:
			return k + " in (" + strings.Join(rapid.SliceOfN(value, 1, 2).Draw(t, "values"), ",") + ")"
		default:
			return k + "=" + value.Draw(t, "value")
		}
	})
	selector := rapid.Custom(func(t *rapid.T) Selector {
		s, err := labels.Parse(strings.Join(rapid.SliceOfN(requirement, 0, 2).Draw(t, "requirements"), ","))
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
	layer := rapid.Map(rapid.SliceOfN(selector, 0, 3), func(s []Selector) Scope { return labels.Union(s...) })
	return rapid.Custom(func(t *rapid.T) Scope {
		s := layer.Draw(t, "layer")
		if rapid.Bool().Draw(t, "two layers") {
			s = s.Intersect(layer.Draw(t, "another"))
		}
		return s
	})
}()

// labelledFleet makes a fleet with labels of every kind, some changed later.
func labelledFleet(t testing.TB, seed uint64) *eventLog {
	l, rnd := newLog(t), rand.New(rand.NewPCG(seed, 1))
	pick := func() (m []string) {
		for _, key := range []string{"site", "role"} {
			if n := rnd.IntN(4); n > 0 {
				m = append(m, key+"="+[]string{"x", "y", "z"}[n-1])
			}
		}
		return m
	}
	set := func(pairs []string) map[string]string {
		m := map[string]string{}
		for _, p := range pairs {
			k, v, _ := strings.Cut(p, "=")
			m[k] = v
		}
		return m
	}
	for i := range 5 {
		id := events.TokenID(fmt.Sprintf("80000000-0000-7000-8000-%012x", i))
		l.token(id, events.JoinTokenIssued{Token: id, MaxUses: 9, Expires: at(1000), Labels: set(pick())})
		for range rnd.IntN(3) {
			l.token(id, events.JoinTokenUsed{Device: fleetID(rnd.IntN(22))}) // some never register
		}
	}
	for i := range 20 {
		id := fleetID(i)
		l.register(id, fmt.Sprintf("n%d", rnd.IntN(12)), pick()...)
		if i%3 > 0 {
			l.device(id, events.DeviceApproved{Policy: "auto"}, events.DeviceConnected{Protocol: 1})
			l.inventory(id, events.HostObserved{Host: events.Host{Version: fmt.Sprintf("8.0.%d", i%3)}})
		}
		for v := range rnd.IntN(3) {
			l.inventory(id, events.VMObserved{VM: events.VM{
				ID: events.VMID(fmt.Sprintf("vm-%d", v)), Name: fmt.Sprintf("m%d", rnd.IntN(9)), Power: []events.PowerState{events.PowerOn, events.PowerOff}[v%2],
			}})
		}
		for n := range rnd.IntN(3) {
			task := events.TaskID(fmt.Sprintf("70000000-0000-4000-800%d-%012x", n, i))
			l.tasks(id, events.TaskRequested{Task: task, Kind: events.TaskVMReset, VM: "vm-0", Deadline: at(1000)})
			if rnd.IntN(2) == 0 {
				l.tasks(id, events.TaskSucceeded{Task: task})
			}
		}
	}
	for range 6 {
		l.device(fleetID(rnd.IntN(20)), events.DeviceLabelled{Labels: set(pick())})
	}
	l.device(fleetID(7), events.DeviceRetired{})
	return l
}

// TestScopeShowsWhatItHolds compares every list, count and look-up within a
// scope with the naive filter of what somebody sees who may see everything.
func TestScopeShowsWhatItHolds(t *testing.T) {
	for seed := range uint64(2) {
		d := given(t, labelledFleet(t, seed))
		ctx := t.Context()
		devices := pages(t, func(c string) (Page[Device], error) {
			return d.Devices(ctx, DeviceFilter{Scope: everything, Window: Window{Cursor: c}})
		}, DefaultLimit)
		of := map[events.DeviceID]map[string]string{}
		for _, dev := range devices {
			of[dev.ID] = dev.Labels
		}
		rapid.Check(t, func(rt *rapid.T) {
			scope := scopes.Draw(rt, "scope")
			limit := rapid.IntRange(1, 9).Draw(rt, "limit")
			sort := rapid.SampledFrom([]Sort{SortName, SortID}).Draw(rt, "sort")
			device := rapid.SampledFrom([]events.DeviceID{"", "", fleetID(3), fleetID(8)}).Draw(rt, "device")
			power := rapid.SampledFrom([][]events.PowerState{nil, {events.PowerOn}}).Draw(rt, "power")
			status := rapid.SampledFrom([][]events.TaskStatus{nil, {events.TaskStatusSucceeded}}).Draw(rt, "status")
			selector := rapid.SampledFrom([]string{"", "site=x", "role in (x,y)"}).Draw(rt, "selector")
			open := rapid.Bool().Draw(rt, "open")
			in := func(id events.DeviceID) bool { return scope.Match(of[id]) }

			same(rt, "devices", limit, func(s Scope, w Window) (Page[Device], error) {
				return d.Devices(ctx, DeviceFilter{Scope: s, Selector: mustSelector(t, selector), Sort: sort, Window: w})
			}, scope, func(x Device) bool { return in(x.ID) })
			same(rt, "vms", limit, func(s Scope, w Window) (Page[VM], error) {
				return d.VMs(ctx, VMFilter{Scope: s, Selector: mustSelector(t, selector), Device: device, Power: power, Sort: sort, Window: w})
			}, scope, func(x VM) bool { return in(x.Device) })
			same(rt, "tasks", limit, func(s Scope, w Window) (Page[Task], error) {
				return d.Tasks(ctx, TaskFilter{Scope: s, Device: device, Status: status, Open: open, Window: w})
			}, scope, func(x Task) bool { return in(x.Device) })
			tokens := same(rt, "tokens", limit, func(s Scope, w Window) (Page[JoinToken], error) {
				return d.JoinTokens(ctx, JoinTokenFilter{Scope: s, Window: w})
			}, scope, func(x JoinToken) bool { return scope.Match(x.Labels) })
			for _, token := range tokens {
				same(rt, "uses", limit, func(s Scope, w Window) (Page[TokenUse], error) {
					return d.TokenUses(ctx, TokenUseFilter{Scope: s, Token: token.ID, Window: w})
				}, scope, func(x TokenUse) bool {
					_, registered := of[x.Device]
					return scope.Everything() || registered && in(x.Device)
				})
				_, err := d.JoinToken(ctx, scope, token.ID)
				found(rt, token.ID, err, scope.Match(token.Labels))
			}
			ids, err := d.DevicesWithin(ctx, scope)
			if err != nil {
				rt.Fatal(err)
			}
			for _, dev := range devices {
				_, err := d.Device(ctx, scope, dev.ID)
				found(rt, dev.ID, err, in(dev.ID))
				_, err = d.VM(ctx, scope, dev.ID, "vm-0")
				_, there := d.VM(ctx, everything, dev.ID, "vm-0")
				found(rt, dev.ID+"/vm-0", err, there == nil && in(dev.ID))
				task := events.TaskID(fmt.Sprintf("70000000-0000-4000-8000-%s", dev.ID[24:]))
				_, err = d.Task(ctx, scope, task)
				_, there = d.Task(ctx, everything, task)
				found(rt, task, err, there == nil && in(dev.ID))
				if slices.Contains(ids, dev.ID) != in(dev.ID) {
					rt.Fatalf("%s within %s: %v", dev.ID, scope, !in(dev.ID))
				}
				named, err := d.DevicesNamed(ctx, scope, dev.Name)
				if err != nil || slices.ContainsFunc(named, func(x Device) bool { return !in(x.ID) }) ||
					slices.ContainsFunc(named, func(x Device) bool { return x.ID == dev.ID }) != in(dev.ID) {
					rt.Fatalf("named %s within %s: %v, %v", dev.Name, scope, named, err)
				}
				vms, err := d.VMsNamed(ctx, scope, dev.ID, "vm-0")
				if err != nil || len(vms) > 0 && !in(dev.ID) {
					rt.Fatalf("vms of %s within %s: %v, %v", dev.ID, scope, vms, err)
				}
			}
			counts(rt, d, scope, devices, in)
		})
	}
}

// same compares a list within a scope, page by page, with the naive filter of the
// whole list, which it returns.
func same[T any](t *rapid.T, what string, limit int, list func(Scope, Window) (Page[T], error), scope Scope, in func(T) bool) (all []T) {
	read := func(s Scope, limit int) (items []T) {
		for cursor := ""; ; {
			p, err := list(s, Window{Cursor: cursor, Limit: limit})
			if err != nil {
				t.Fatalf("%s within %s: %v", what, s, err)
			}
			if p.Next != "" && len(p.Items) != limit {
				t.Fatalf("%s within %s: a page of %d, of %d", what, s, len(p.Items), limit)
			}
			items = append(items, p.Items...)
			if cursor = p.Next; cursor == "" {
				return items
			}
		}
	}
	all = read(everything, MaxLimit)
	want := slices.DeleteFunc(slices.Clone(all), func(x T) bool { return !in(x) })
	if diff := cmp.Diff(want, read(scope, limit), cmpopts.EquateEmpty()); diff != "" {
		t.Fatalf("%s within %s (-want +got):\n%s", what, scope, diff)
	}
	return all
}

func found[ID ~string](t *rapid.T, id ID, err error, want bool) {
	if want && err != nil || !want && !errors.Is(err, ErrNotFound) {
		t.Fatalf("%s: %v, found is %v", id, err, want)
	}
}

func counts(t *rapid.T, d *DB, scope Scope, devices []Device, in func(events.DeviceID) bool) {
	got, err := d.Counts(context.Background(), scope)
	if err != nil {
		t.Fatal(err)
	}
	want := Counts{
		Position: got.Position, Trust: map[Trust]int{}, Connection: map[Connection]int{}, Condition: map[events.Condition]int{}, Version: map[string]int{},
		Power: map[events.PowerState]int{}, OpenTasks: map[events.TaskStatus]int{},
	}
	for _, x := range devices {
		if !in(x.ID) {
			continue
		}
		want.Trust[x.Trust]++
		if x.Trust != TrustRetired {
			version := ""
			if x.Host != nil {
				version = x.Host.Version
			}
			want.Connection[x.Connection]++
			want.Condition[x.Condition]++
			want.Version[version]++
		}
		vms, err := d.VMs(context.Background(), VMFilter{Scope: everything, Device: x.ID})
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range vms.Items {
			want.Power[v.Power]++
		}
		tasks, err := d.Tasks(context.Background(), TaskFilter{Scope: everything, Device: x.ID, Open: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range tasks.Items {
			want.OpenTasks[k.Status]++
		}
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Fatalf("counts of %s (-want +got):\n%s", scope, diff)
	}
}

// TestUsageOf compares the usage of some devices with the sum of theirs.
func TestUsageOf(t *testing.T) {
	u := openUsage(t, t.TempDir()+"/telemetry.db", 0, nil)
	u.mustCatchUp(t, someUsage())
	for name, tc := range map[string]struct {
		devices []events.DeviceID
		want    []FleetDay
	}{
		"none":    {nil, nil},
		"unknown": {[]events.DeviceID{fleetID(1)}, nil},
		"one": {[]events.DeviceID{deviceA}, []FleetDay{
			{DayUsage{yesterday, telemetry.Bytes{Received: 11, Sent: 7}}, 1, 18, 18}, {DayUsage{today, telemetry.Bytes{Received: 3}}, 1, 3, 3},
		}},
		"two": {[]events.DeviceID{deviceA, deviceB}, []FleetDay{
			{DayUsage{yesterday, telemetry.Bytes{Received: 111, Sent: 14}}, 2, 18, 107}, {DayUsage{today, telemetry.Bytes{Received: 3}}, 1, 3, 3},
		}},
	} {
		got, err := u.Of(t.Context(), tc.devices, yesterday, today)
		if diff := cmp.Diff(tc.want, got); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
	}
	all, err := u.Fleet(t.Context(), "2031-01-01", today)
	if err != nil {
		t.Fatal(err)
	}
	some, err := u.Of(t.Context(), []events.DeviceID{deviceA, deviceB, deviceC}, "2031-01-01", today)
	if diff := cmp.Diff(all, some); err != nil || diff != "" {
		t.Errorf("everything: %v (-want +got):\n%s", err, diff)
	}
	if got, err := u.Of(t.Context(), []events.DeviceID{deviceA}, today, yesterday); err != nil || got != nil {
		t.Errorf("backwards: %v, %v", got, err)
	}
}
