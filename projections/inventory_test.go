package projections

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"pallas/events"
)

func fullHost() events.Host {
	return events.Host{
		Name: "esx01.example", Vendor: "Dell Inc.", Model: "XR4000", Serial: "SN-77", UUID: "4c4c4544-0000-1000-8000-000000000001",
		Product: "VMware ESXi", Version: "8.0.2", Build: "22380479", CPUModel: "Xeon D-2776NT",
		CPUSockets: 1, CPUCores: 16, CPUThreads: 32, CPUMHz: 2095, MemoryMiB: 131072, BootTime: at(-100), Maintenance: true,
		License:    events.License{Name: "vSphere 8", Edition: "esx.standard", Expires: at(5000), Writable: true, Reason: "because"},
		Datastores: []events.Datastore{{ID: "ds-1", Name: "datastore1", Type: "VMFS", CapacityMiB: 1 << 20, FreeMiB: 1 << 19, Accessible: true}},
		Networks:   []events.Network{{ID: "net-1", Name: "VM Network"}},
	}
}

func fullVM(id events.VMID) events.VM {
	return events.VM{
		ID: id, Name: "Till Server", Power: events.PowerOn, CPUs: 4, MemoryMiB: 8192,
		GuestID: "ubuntu64Guest", GuestName: "Ubuntu Linux (64-bit)", Hostname: "till.example", IPs: []string{"192.0.2.10", "2001:db8::10"},
		Tools:    events.ToolsRunning,
		Disks:    []events.Disk{{Key: 2000, Label: "Hard disk 1", CapacityMiB: 40960, Datastore: "ds-1", File: "till/till.vmdk", Thin: true}},
		NICs:     []events.NIC{{Key: 4000, Label: "Network adapter 1", MAC: "00:50:56:00:00:01", Network: "net-1", Connected: true}},
		BootTime: at(-50),
	}
}

func TestHostEvents(t *testing.T) {
	readOnly := fullHost()
	readOnly.License = events.License{Name: "vSphere 8 Hypervisor", Writable: false, Reason: "free licence"}
	bare := events.Host{Name: "bare", Product: "VMware ESXi", Version: "7.0.3", Build: "1", License: events.License{Writable: true}}
	for _, tc := range []struct {
		name string
		when []events.Event
		want Device // of the fields below
	}{
		{
			"observed",
			[]events.Event{events.HostObserved{Host: fullHost()}},
			Device{Host: new(fullHost()), HostAt: at(2), Condition: events.ConditionOK},
		},
		{
			"observed again replaces all",
			[]events.Event{events.HostObserved{Host: fullHost()}, events.HostObserved{Host: bare}},
			Device{Host: &bare, HostAt: at(3), Condition: events.ConditionOK},
		},
		{
			"licence forbids writing",
			[]events.Event{events.HostObserved{Host: readOnly}},
			Device{Host: &readOnly, HostAt: at(2), Condition: events.ConditionReadOnly, ConditionMessage: "free licence"},
		},
		{
			"licence bought",
			[]events.Event{events.HostObserved{Host: readOnly}, events.HostObserved{Host: fullHost()}},
			Device{Host: new(fullHost()), HostAt: at(3), Condition: events.ConditionOK},
		},
		{
			"condition",
			[]events.Event{events.HostConditionChanged{Condition: events.ConditionDenied, Message: "wrong password"}},
			Device{Condition: events.ConditionDenied, ConditionMessage: "wrong password", ConditionSince: at(2)},
		},
		{
			"the agent's word on the condition stays",
			[]events.Event{
				events.HostConditionChanged{Condition: events.ConditionUnreachable, Message: "no route"}, events.HostObserved{Host: readOnly},
			},
			Device{Host: &readOnly, HostAt: at(3), Condition: events.ConditionUnreachable, ConditionMessage: "no route", ConditionSince: at(2)},
		},
		{
			"synced",
			[]events.Event{events.InventorySynced{Hash: "abcd", VMs: 3}},
			Device{InventoryHash: "abcd", InventorySyncedAt: at(2)},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLog(t)
			first := l.register(deviceA, "a")
			var last uint64
			for _, e := range tc.when {
				last = l.inventory(deviceA, e)
			}
			got := given(t, l).mustDevice(t, deviceA)
			if got.Revision != first || got.ChangedPosition != last || !got.ChangedAt.Equal(at(1+len(tc.when))) {
				t.Errorf("revision %d, changed at %d, %s; want %d, %d", got.Revision, got.ChangedPosition, got.ChangedAt, first, last)
			}
			got = Device{
				Host: got.Host, HostAt: got.HostAt, Condition: got.Condition, ConditionMessage: got.ConditionMessage,
				ConditionSince: got.ConditionSince, InventoryHash: got.InventoryHash, InventorySyncedAt: got.InventorySyncedAt,
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("device (-want +got):\n%s", diff)
			}
		})
	}
}

func TestVMEvents(t *testing.T) {
	observed := events.VMObserved{VM: fullVM(vm1)}
	patched := fullVM(vm1)
	patched.Power, patched.IPs, patched.Tools = events.PowerOff, nil, events.ToolsNotRunning
	other := events.VM{
		ID: vm1, Name: "Other", Power: events.PowerSuspended, CPUs: 1, MemoryMiB: 64, GuestID: "other", GuestName: "Other", Hostname: "o",
		IPs: []string{"192.0.2.1"}, Tools: events.ToolsUnknown, Disks: []events.Disk{{Key: 1, Label: "d"}}, NICs: []events.NIC{{Key: 2, Label: "n"}}, BootTime: at(-1),
	}
	for _, tc := range []struct {
		name      string
		when      []events.Event
		want      []events.VM
		firstSeen int
	}{
		{"observed", []events.Event{observed}, []events.VM{fullVM(vm1)}, 2},
		{"observed again", []events.Event{observed, events.VMObserved{VM: other}}, []events.VM{other}, 2},
		{"changed a little", []events.Event{observed, events.VMChanged{VM: vm1, Patch: events.VMPatch{
			Power: new(events.PowerOff), IPs: new([]string{}), Tools: new(events.ToolsNotRunning),
		}}}, []events.VM{patched}, 2},
		{"changed in every field", []events.Event{observed, events.VMChanged{VM: vm1, Patch: events.VMPatch{
			Name: &other.Name, Power: &other.Power, CPUs: &other.CPUs, MemoryMiB: &other.MemoryMiB, GuestID: &other.GuestID, GuestName: &other.GuestName,
			Hostname: &other.Hostname, IPs: &other.IPs, Tools: &other.Tools, Disks: &other.Disks, NICs: &other.NICs, BootTime: &other.BootTime,
		}}}, []events.VM{other}, 2},
		{"changed in no field", []events.Event{observed, events.VMChanged{VM: vm1}}, []events.VM{fullVM(vm1)}, 2},
		{"changed but not known", []events.Event{events.VMChanged{VM: vm1, Patch: events.VMPatch{CPUs: new(9)}}}, nil, 0},
		{"removed", []events.Event{observed, events.VMRemoved{VM: vm1}}, nil, 0},
		{"back", []events.Event{observed, events.VMRemoved{VM: vm1}, observed}, []events.VM{fullVM(vm1)}, 4},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLog(t)
			l.register(deviceA, "a")
			var last uint64
			for _, e := range tc.when {
				last = l.inventory(deviceA, e)
			}
			d := given(t, l)
			p, err := d.VMs(t.Context(), VMFilter{Scope: everything, Device: deviceA})
			if err != nil {
				t.Fatal(err)
			}
			var want []VM
			for _, vm := range tc.want {
				want = append(want, VM{
					VM: vm, Device: deviceA, DeviceName: "a",
					FirstSeenAt: at(tc.firstSeen), ChangedAt: at(1 + len(tc.when)), ChangedPosition: last,
				})
			}
			if diff := cmp.Diff(want, p.Items, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("vms (-want +got):\n%s", diff)
			}
			one, err := d.VM(t.Context(), everything, deviceA, vm1)
			if len(want) == 0 {
				is(t, err, ErrNotFound)
			} else if diff := cmp.Diff(want[0], one); diff != "" || err != nil {
				t.Errorf("vm: %v (-want +got):\n%s", err, diff)
			}
		})
	}
}

// TestPatchShapes sends more shapes of patches than statements are kept
// prepared.
func TestPatchShapes(t *testing.T) {
	l := newLog(t)
	l.register(deviceA, "a")
	want := fullVM(vm1)
	l.inventory(deviceA, events.VMObserved{VM: want})
	for shape := range 1 << 9 {
		var p events.VMPatch
		bit := func(n int) bool { return shape>>n&1 == 1 }
		text := fmt.Sprint(shape)
		if bit(0) {
			p.Name = &text
		}
		if bit(1) {
			p.CPUs = &shape
		}
		if bit(2) {
			p.MemoryMiB = new(int64(shape))
		}
		if bit(3) {
			p.GuestID = &text
		}
		if bit(4) {
			p.GuestName = &text
		}
		if bit(5) {
			p.Hostname = &text
		}
		if bit(6) {
			p.IPs = &[]string{text}
		}
		if bit(7) {
			p.BootTime = new(at(shape))
		}
		if bit(8) {
			p.Disks = &[]events.Disk{{Key: int32(shape), Label: text}}
		}
		l.inventory(deviceA, events.VMChanged{VM: vm1, Patch: p})
		want = p.Apply(want)
	}
	d := given(t, l)
	got, err := d.VM(t.Context(), everything, deviceA, vm1)
	if diff := cmp.Diff(want, got.VM); diff != "" || err != nil {
		t.Errorf("vm: %v (-want +got):\n%s", err, diff)
	}
	if n := len(d.w.stmts); n > maxStatements {
		t.Errorf("%d statements kept", n)
	}
}

func vmFleet(t testing.TB) *eventLog {
	l := newLog(t)
	l.register(deviceA, "Frankfurt", "site=fra")
	l.register(deviceB, "Munich", "site=muc", "tier=1")
	for i := range 12 {
		id := deviceA
		if i%3 == 0 {
			id = deviceB
		}
		vm := events.VM{
			ID: events.VMID(fmt.Sprintf("vm-%02d", 99-i)), Name: fmt.Sprintf("App%02d", i/2), Power: events.PowerOff,
			Tools: events.ToolsNotInstalled, GuestName: "Debian GNU/Linux", Hostname: fmt.Sprintf("Host%02d.example", i), IPs: []string{fmt.Sprintf("2001:DB8::%x", i)},
		}
		if i%2 == 0 {
			vm.Power, vm.Tools = events.PowerOn, events.ToolsRunning
		}
		l.inventory(id, events.VMObserved{VM: vm})
	}
	return l
}

func TestVMsPages(t *testing.T) {
	d := given(t, vmFleet(t))
	all, err := d.VMs(t.Context(), VMFilter{Scope: everything})
	if err != nil || len(all.Items) != 12 {
		t.Fatalf("vms: %d, %v", len(all.Items), err)
	}
	for i, v := range all.Items[1:] {
		p := all.Items[i]
		if p.Name > v.Name || p.Name == v.Name && (p.Device > v.Device || p.Device == v.Device && p.ID >= v.ID) {
			t.Errorf("%s %s %s comes before %s %s %s", p.Name, p.Device, p.ID, v.Name, v.Device, v.ID)
		}
	}
	on := func(v VM) bool { return v.Power == events.PowerOn }
	for name, tc := range map[string]struct {
		filter VMFilter
		want   func(VM) bool
	}{
		"all":        {VMFilter{Scope: everything}, func(VM) bool { return true }},
		"device":     {VMFilter{Scope: everything, Device: deviceB}, func(v VM) bool { return v.Device == deviceB }},
		"power":      {VMFilter{Scope: everything, Power: []events.PowerState{events.PowerOn}}, on},
		"powers":     {VMFilter{Scope: everything, Power: []events.PowerState{events.PowerOn, events.PowerOff}}, func(VM) bool { return true }},
		"device, on": {VMFilter{Scope: everything, Device: deviceA, Power: []events.PowerState{events.PowerOn}}, func(v VM) bool { return v.Device == deviceA && on(v) }},
		"tools":      {VMFilter{Scope: everything, Tools: []events.ToolsState{events.ToolsRunning}}, on},
		"selector":   {VMFilter{Scope: everything, Selector: mustSelector(t, "site=muc,tier")}, func(v VM) bool { return v.Device == deviceB }},
		"not":        {VMFilter{Scope: everything, Selector: mustSelector(t, "tier!=1")}, func(v VM) bool { return v.Device == deviceA }},
		"name":       {VMFilter{Scope: everything, Text: "APP03"}, func(v VM) bool { return v.Name == "App03" }},
		"hostname":   {VMFilter{Scope: everything, Text: "HOST1"}, func(v VM) bool { return v.Hostname[4] == '1' }},
		"guest":      {VMFilter{Scope: everything, Text: "gnu/"}, func(VM) bool { return true }},
		"address":    {VMFilter{Scope: everything, Text: "db8::a"}, func(v VM) bool { return v.IPs[0] == "2001:DB8::a" }},
		"id":         {VMFilter{Scope: everything, Text: "vm-90"}, func(v VM) bool { return v.ID == "vm-90" }},
		"nothing":    {VMFilter{Scope: everything, Text: "_"}, func(VM) bool { return false }},
	} {
		for _, sort := range []Sort{SortName, SortID} {
			var want []VM
			for _, v := range all.Items {
				if tc.want(v) {
					want = append(want, v)
				}
			}
			opts := cmp.Options{cmpopts.EquateEmpty()}
			if sort == SortID {
				opts = append(opts, cmpopts.SortSlices(func(a, b VM) bool {
					return a.Device < b.Device || a.Device == b.Device && a.ID < b.ID
				}))
			}
			for _, limit := range []int{1, 5, 1000} {
				t.Run(fmt.Sprintf("%s/%s/%d", name, sort, limit), func(t *testing.T) {
					f := tc.filter
					f.Sort, f.Limit = sort, limit
					got := pages(t, func(cursor string) (Page[VM], error) {
						f.Cursor = cursor
						return d.VMs(t.Context(), f)
					}, limit)
					if diff := cmp.Diff(want, got, opts); diff != "" {
						t.Errorf("vms (-want +got):\n%s", diff)
					}
				})
			}
		}
	}
	if got := d.mustDevice(t, deviceB); got.VMs != 4 || got.VMsOn != 2 {
		t.Errorf("device has %d vms, %d on; want 4, 2", got.VMs, got.VMsOn)
	}
}

func TestVMsNamed(t *testing.T) {
	d := given(t, vmFleet(t))
	for word, want := range map[string]int{"app00": 1, "APP03": 1, "vm-98": 1, "vm-99": 0, "": 0, "app": 0} {
		got, err := d.VMsNamed(t.Context(), everything, deviceA, word)
		if err != nil || len(got) != want {
			t.Errorf("%q: %d, %v; want %d", word, len(got), err, want)
		}
	}
}
