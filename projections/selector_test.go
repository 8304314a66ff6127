package projections

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"pallas/events"
	"pallas/events/labels"
)

// TestSelectorSQL compares what SQL selects with the naive meaning, for
// devices and for virtual machines, in both orders.
func TestSelectorSQL(t *testing.T) {
	keys, values := []string{"a", "b", "example.com/c"}, []string{"x", "y", "z"}
	byDevice := map[events.DeviceID]map[string]string{}
	l := newLog(t)
	n := 0
	// Every combination of three labels with three values or none.
	for i := range 64 {
		m := map[string]string{}
		for k, key := range keys {
			if v := i >> (2 * k) & 3; v < 3 {
				m[key] = values[v]
			}
		}
		id := fleetID(n)
		n++
		byDevice[id] = m
		l.device(id, events.DeviceRegistered{Device: id, Name: fmt.Sprintf("d%d", i%5), Labels: m})
		l.inventory(id, events.VMObserved{VM: events.VM{ID: vm1, Name: "x"}})
	}
	d := given(t, l)

	genRequirement := rapid.Custom(func(t *rapid.T) string {
		key := rapid.SampledFrom(append(keys, "none")).Draw(t, "key")
		value := rapid.SampledFrom(append(values, "none"))
		set := func() string {
			return "(" + strings.Join(rapid.SliceOfN(value, 1, 4).Draw(t, "values"), ",") + ")"
		}
		switch rapid.IntRange(0, 5).Draw(t, "operator") {
		case 0:
			return key
		case 1:
			return "!" + key
		case 2:
			return key + "=" + value.Draw(t, "value")
		case 3:
			return key + "!=" + value.Draw(t, "value")
		case 4:
			return key + " in " + set()
		default:
			return key + " notin " + set()
		}
	})
	genScope := rapid.Map(rapid.SliceOfN(genRequirement, 0, 2), func(texts []string) labels.Scope {
		var list []Selector
		for _, s := range texts {
			list = append(list, mustSelector(t, s))
		}
		return labels.Union(list...)
	})
	rapid.Check(t, func(t *rapid.T) {
		text := strings.Join(rapid.SliceOfN(genRequirement, 0, 4).Draw(t, "requirements"), ",")
		sel, err := labels.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		want := map[events.DeviceID]bool{}
		for id, m := range byDevice {
			if sel.Match(m) {
				want[id] = true
			}
		}
		for _, sort := range []Sort{SortName, SortID} {
			devices, err := d.Devices(t.Context(), DeviceFilter{Scope: everything, Selector: sel, Sort: sort, Window: Window{Limit: MaxLimit}})
			if err != nil {
				t.Fatal(err)
			}
			got := map[events.DeviceID]bool{}
			for _, dev := range devices.Items {
				got[dev.ID] = true
			}
			if !cmp.Equal(want, got) || len(devices.Items) != len(want) {
				t.Fatalf("devices of %q: %d, want %d", text, len(devices.Items), len(want))
			}
			vms, err := d.VMs(t.Context(), VMFilter{Scope: everything, Selector: sel, Sort: sort, Window: Window{Limit: MaxLimit}})
			if err != nil {
				t.Fatal(err)
			}
			for _, vm := range vms.Items {
				if !want[vm.Device] {
					t.Fatalf("vms of %q: on %s", text, vm.Device)
				}
			}
			if len(vms.Items) != len(want) {
				t.Fatalf("vms of %q: %d, want %d", text, len(vms.Items), len(want))
			}
		}
		scope := labels.Everything()
		for range rapid.IntRange(0, 2).Draw(t, "layers") {
			scope = scope.Intersect(genScope.Draw(t, "scope"))
		}
		limit := rapid.SampledFrom([]int{0, 3, 100}).Draw(t, "limit")
		selected, err := d.SelectDevices(t.Context(), Selection{Selector: sel, Scope: scope, Limit: limit})
		if err != nil {
			t.Fatal(err)
		}
		var meant []events.DeviceID
		for _, id := range slices.Sorted(maps.Keys(byDevice)) {
			if want[id] && scope.Match(byDevice[id]) {
				meant = append(meant, id)
			}
		}
		if meant = meant[:min(len(meant), limit)]; !slices.Equal(meant, selected) {
			t.Fatalf("selection of %q within %s: %v, want %v", text, scope, selected, meant)
		}
	})
}
