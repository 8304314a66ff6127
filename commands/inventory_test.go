package commands

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pallas/events"
)

// report makes a report of consecutive facts from a sequence on, in epoch 7.
func report(from uint64, es ...events.Event) ReportInventory {
	c := ReportInventory{Device: dev, Epoch: 7}
	for i, e := range es {
		c.Facts = append(c.Facts, InventoryFact{Seq: from + uint64(i), Time: t0.Add(-time.Second), Event: e})
	}
	return c
}

func synced(hash string, ids ...events.VMID) ReportInventory {
	return ReportInventory{Device: dev, Epoch: 7, Facts: []InventoryFact{{Seq: 1, Event: events.InventorySynced{Hash: hash}, VMs: ids}}}
}

func power(id events.VMID, p events.PowerState) events.VMChanged {
	return events.VMChanged{VM: id, Patch: events.VMPatch{Power: &p}}
}

func TestInventory(t *testing.T) {
	on, off := vmOf(web, events.PowerOn), vmOf(web, events.PowerOff)
	known := with(approved, seen(on))
	logged := with(known, history{reportedAt(events.InventorySubject(dev), 7, 20, power(web, events.PowerOff))})
	withIPs := on
	withIPs.IPs = []string{"10.0.0.5"}
	name := func(s string) events.VMChanged { return events.VMChanged{VM: web, Patch: events.VMPatch{Name: &s}} }
	invalid := func(what, says string, e events.Event) scene {
		return scene{name: "refuse " + what, given: known, when: report(1, e), invalid: []string{"report 1: " + says}}
	}
	badVM := func(what, says string, f func(*events.VM)) scene {
		vm := on
		f(&vm)
		return invalid(what, says, events.VMObserved{VM: vm})
	}
	badHost := func(what, says string, f func(*events.Host)) scene {
		h := host(true, "")
		f(&h.Host)
		return invalid(what, says, h)
	}
	var all []events.Event
	for i := range MaxVMs {
		all = append(all, events.VMObserved{VM: vmOf(events.VMID(fmt.Sprintf("vm-%d", i)), events.PowerOn)})
	}
	full := with(approved, onInventory(all...))
	play(t, []scene{
		{
			name: "a first report", given: approved, when: report(1, host(true, ""), events.VMObserved{VM: on}),
			then: emit(host(true, ""), events.VMObserved{VM: on}), cursor: 2,
		},
		{name: "the host as it is", given: known, when: report(1, host(true, ""))},
		{name: "the host changed", given: known, when: report(1, host(false, "free")), then: emit(host(false, "free")), cursor: 1},
		{
			name: "a condition", given: known, when: report(1, events.HostConditionChanged{Condition: events.ConditionDenied, Message: "wrong password"}),
			then: emit(events.HostConditionChanged{Condition: events.ConditionDenied, Message: "wrong password"}), cursor: 1,
		},
		{
			name: "a condition as it is", given: with(known, onInventory(events.HostConditionChanged{Condition: events.ConditionOK})),
			when: report(1, events.HostConditionChanged{Condition: events.ConditionOK}),
		},
		{name: "a virtual machine as it is", given: known, when: report(1, events.VMObserved{VM: on})},
		{name: "a complete virtual machine of which a field differs", given: known, when: report(1, events.VMObserved{VM: off}), then: emit(power(web, events.PowerOff)), cursor: 1},
		{name: "a change", given: known, when: report(1, power(web, events.PowerOff)), then: emit(power(web, events.PowerOff)), cursor: 1},
		{name: "a change that is none", given: known, when: report(1, power(web, events.PowerOn))},
		{
			name: "a change of which a part is none", given: known,
			when: report(1, events.VMChanged{VM: web, Patch: events.VMPatch{Power: ptr(events.PowerOff), CPUs: ptr(2), IPs: ptr([]string{})}}),
			then: emit(power(web, events.PowerOff)), cursor: 1,
		},
		{
			name: "the last address goes", given: with(approved, seen(withIPs)), when: report(1, events.VMObserved{VM: on}),
			then: emit(events.VMChanged{VM: web, Patch: events.VMPatch{IPs: ptr([]string{})}}), cursor: 1,
		},
		{name: "a change of an unknown virtual machine", given: known, when: report(1, power(db, events.PowerOff), name("x")), then: emit(name("x")), cursor: 2, resync: true},
		{
			name: "facts stand on those before them", given: known,
			when: report(1, power(web, events.PowerOff), power(web, events.PowerOff), power(web, events.PowerOn), events.VMRemoved{VM: web}, events.VMRemoved{VM: web}, events.VMObserved{VM: on}),
			then: emit(power(web, events.PowerOff), power(web, events.PowerOn), events.VMRemoved{VM: web}, events.VMObserved{VM: on}), cursor: 6,
		},
		{name: "a removal", given: known, when: report(1, events.VMRemoved{VM: web}), then: emit(events.VMRemoved{VM: web}), cursor: 1},
		{name: "a removal of what is not there", given: known, when: report(1, events.VMRemoved{VM: db})},
		{name: "a complete inventory", given: known, when: synced("h1", web), then: emit(events.InventorySynced{Hash: "h1", VMs: 1}), cursor: 1},
		{name: "the same inventory again", given: with(known, onInventory(events.InventorySynced{Hash: "h1", VMs: 1})), when: synced("h1", web)},
		{
			name: "a complete inventory without a virtual machine", given: with(known, seen(vmOf(db, events.PowerOn))), when: synced("h1", db),
			then: emit(events.VMRemoved{VM: web}, events.InventorySynced{Hash: "h1", VMs: 1}), cursor: 1,
		},
		{
			name: "a complete inventory with more than is known", given: known, when: synced("h1", db),
			then: emit(events.VMRemoved{VM: web}), cursor: 1, invalid: []string{"lists vm-db"},
		},
		{name: "facts that are in the log", given: logged, when: report(19, name("old"), power(web, events.PowerOn)), cursor: 20},
		{name: "facts after those in the log", given: logged, when: report(20, power(web, events.PowerOn), name("new")), then: emit(name("new")), cursor: 21},
		{
			name: "a new epoch begins anew", given: logged, when: ReportInventory{Device: dev, Epoch: 8, Facts: []InventoryFact{{Seq: 1, Event: power(web, events.PowerOn)}}},
			then: emit(power(web, events.PowerOn)), cursor: 1,
		},
		{
			name: "a bad fact among good ones", given: known, when: report(1, power(web, "burning"), power(web, events.PowerOff)),
			then: emit(power(web, events.PowerOff)), cursor: 2, invalid: []string{`report 1: vm.power: "burning"`},
		},
		{name: "no facts", given: logged, when: ReportInventory{Device: dev, Epoch: 7}, cursor: 20},

		badVM("a bad id", "vm.id", func(v *events.VM) { v.ID = "a b" }),
		badVM("an unknown power state", "vm.power", func(v *events.VM) { v.Power = "" }),
		badVM("an unknown tools state", "vm.tools", func(v *events.VM) { v.Tools = "old" }),
		badVM("negative CPUs", "vm.cpus", func(v *events.VM) { v.CPUs = -1 }),
		badVM("negative memory", "vm.memoryMiB", func(v *events.VM) { v.MemoryMiB = -1 }),
		badVM("an endless name", "vm.name", func(v *events.VM) { v.Name = strings.Repeat("x", 4097) }),
		badVM("an endless guest id", "vm.guestId", func(v *events.VM) { v.GuestID = strings.Repeat("x", 4097) }),
		badVM("an endless guest name", "vm.guestName", func(v *events.VM) { v.GuestName = strings.Repeat("x", 4097) }),
		badVM("an endless host name", "vm.hostname", func(v *events.VM) { v.Hostname = strings.Repeat("x", 4097) }),
		badVM("an endless address", "vm.ips", func(v *events.VM) { v.IPs = []string{strings.Repeat("x", 4097)} }),
		badVM("many addresses", "vm.ips", func(v *events.VM) { v.IPs = make([]string, 513) }),
		badVM("many disks", "vm.disks", func(v *events.VM) { v.Disks = make([]events.Disk, 513) }),
		badVM("many network cards", "vm.nics", func(v *events.VM) { v.NICs = make([]events.NIC, 513) }),
		badVM("a negative disk", "vm.disks.capacityMiB", func(v *events.VM) { v.Disks = []events.Disk{{CapacityMiB: -1}} }),
		badVM("a disk with an endless file", "vm.disks", func(v *events.VM) { v.Disks = []events.Disk{{File: strings.Repeat("x", 4097)}} }),
		badVM("a card with an endless label", "vm.nics", func(v *events.VM) { v.NICs = []events.NIC{{Label: strings.Repeat("x", 4097)}} }),
		badVM("a start beyond all time", "vm.bootTime", func(v *events.VM) { v.BootTime = t0.AddDate(9000, 0, 0) }),
		badHost("an endless host", "host:", func(h *events.Host) { h.Vendor = strings.Repeat("x", 4097) }),
		badHost("an endless licence", "host.license", func(h *events.Host) { h.License.Reason = strings.Repeat("x", 4097) }),
		badHost("negative sockets", "host.cpuSockets", func(h *events.Host) { h.CPUSockets = -1 }),
		badHost("negative cores", "host.cpuCores", func(h *events.Host) { h.CPUCores = -1 }),
		badHost("negative threads", "host.cpuThreads", func(h *events.Host) { h.CPUThreads = -1 }),
		badHost("a negative clock rate", "host.cpuMHz", func(h *events.Host) { h.CPUMHz = -1 }),
		badHost("negative host memory", "host.memoryMiB", func(h *events.Host) { h.MemoryMiB = -1 }),
		badHost("a boot beyond all time", "host.bootTime", func(h *events.Host) { h.BootTime = t0.AddDate(9000, 0, 0) }),
		badHost("a licence beyond all time", "host.license.expires", func(h *events.Host) { h.License.Expires = t0.AddDate(9000, 0, 0) }),
		badHost("many datastores", "host.datastores", func(h *events.Host) { h.Datastores = make([]events.Datastore, 513) }),
		badHost("many networks", "host.networks", func(h *events.Host) { h.Networks = make([]events.Network, 513) }),
		badHost("a negative capacity", "host.datastores.capacityMiB", func(h *events.Host) { h.Datastores = []events.Datastore{{CapacityMiB: -1}} }),
		badHost("negative free space", "host.datastores.freeMiB", func(h *events.Host) { h.Datastores = []events.Datastore{{FreeMiB: -1}} }),
		badHost("an endless datastore", "host.datastores", func(h *events.Host) { h.Datastores = []events.Datastore{{Name: strings.Repeat("x", 4097)}} }),
		badHost("an endless network", "host.networks", func(h *events.Host) { h.Networks = []events.Network{{Name: strings.Repeat("x", 4097)}} }),
		invalid("an unknown condition", "condition", events.HostConditionChanged{Condition: "tired"}),
		invalid("an endless condition", "condition.message", events.HostConditionChanged{Condition: events.ConditionOK, Message: strings.Repeat("x", 4097)}),
		invalid("a change of a bad id", "vm.id", events.VMChanged{VM: "/"}),
		invalid("a change to something bad", "vm.cpus", events.VMChanged{VM: web, Patch: events.VMPatch{CPUs: ptr(-1)}}),
		invalid("a removal of a bad id", "vm.id", events.VMRemoved{VM: "/"}),
		invalid("another event", "kind", events.DeviceApproved{}),
		invalid("no event", "kind", nil),
		{name: "refuse a list with a bad id", given: known, when: synced("h", web, "/"), invalid: []string{"vm.id"}},
		{name: "refuse an endless list", given: known, when: synced("h", make([]events.VMID, 2001)...), invalid: []string{"inventory.vms"}},
		{name: "refuse an endless hash", given: known, when: synced(strings.Repeat("h", 4097), web), invalid: []string{"inventory.hash"}},
		{name: "refuse one machine too many", given: full, when: report(1, events.VMObserved{VM: on}), invalid: []string{"2000 virtual machines already"}},

		{name: "a report of an unknown device", when: report(1, host(true, "")), refused: KindNotFound, says: "is not known"},
		{name: "a report of a pending device", given: pending, when: report(1, host(true, "")), refused: KindDenied, code: CodePending, says: "waits for approval"},
		{name: "a report of a retired device", given: retired, when: report(1, host(true, "")), refused: KindDenied, code: CodeRetired, says: "was retired"},
		{name: "a report without an epoch", given: approved, when: ReportInventory{Device: dev}, refused: KindInvalid, field: "epoch", says: "want 1 to"},
		{name: "a report with a huge epoch", given: approved, when: ReportInventory{Device: dev, Epoch: 1 << 53}, refused: KindInvalid, field: "epoch", says: "want 1 to"},
		{name: "a report with sequence 0", given: approved, when: report(0, host(true, "")), refused: KindInvalid, field: "facts", says: "ascending"},
		{name: "a report with a huge sequence", given: approved, when: report(1<<53, host(true, "")), refused: KindInvalid, field: "facts", says: "ascending"},
		{
			name: "a report with facts in disorder", given: approved, when: ReportInventory{Device: dev, Epoch: 7, Facts: []InventoryFact{{Seq: 2}, {Seq: 2}}},
			refused: KindInvalid, field: "facts", says: "sequence 2 after 2",
		},
		{name: "an endless report", given: approved, when: ReportInventory{Device: dev, Epoch: 7, Facts: make([]InventoryFact, 4097)}, refused: KindInvalid, field: "facts", says: "at most 4096"},
	})
}

func ptr[T any](v T) *T { return &v }

func TestReportedEntries(t *testing.T) {
	c := report(5, power(web, events.PowerOff), power(web, events.PowerOn))
	c.Facts[0].Time = time.Date(2031, 1, 2, 4, 0, 0, 123456789, time.FixedZone("", 3600))
	c.Facts[1].Time = time.Date(12031, 1, 2, 4, 0, 0, 0, time.UTC) // cannot be written down
	out, err := Decide(c, with(approved, seen(vmOf(web, events.PowerOn))).states(), t0)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2031, 1, 2, 3, 0, 0, 123456000, time.UTC)
	want := []events.Entry{
		{Event: power(web, events.PowerOff), DeviceTime: &at, Report: &events.Report{Epoch: 7, Seq: 5}},
		{Event: power(web, events.PowerOn), Report: &events.Report{Epoch: 7, Seq: 6}},
	}
	if diff := cmp.Diff(want, out.Entries); diff != "" {
		t.Error(diff)
	}
}
