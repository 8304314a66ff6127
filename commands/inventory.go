package commands

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	"pallas/events"
)

// Inventory is the folded state of what a device's host reports. Revision 0
// means that nothing was reported yet.
type Inventory struct {
	// Epoch and Seq are the place of the newest report that is in the log.
	Epoch uint64 `json:"epoch,omitempty"`
	Seq   uint64 `json:"seq,omitempty"`
	// Host is nil until it was observed.
	Host             *events.Host              `json:"host,omitempty"`
	Condition        events.Condition          `json:"condition,omitempty"`
	ConditionMessage string                    `json:"conditionMessage,omitempty"`
	VMs              map[events.VMID]events.VM `json:"vms,omitempty"`
	// Hash is that of the newest InventorySynced. It speaks of that moment
	// only: later changes do not touch it.
	Hash     string `json:"hash,omitempty"`
	Revision uint64 `json:"revision"`
}

// InventoryFact is one report of a device about its host.
type InventoryFact struct {
	// Seq is the report's number in the epoch.
	Seq uint64
	// Time is the device's clock; zero when it did not say.
	Time time.Time
	// Event is a HostObserved, HostConditionChanged, VMObserved, VMChanged,
	// VMRemoved or InventorySynced.
	Event events.Event
	// VMs are the ids of all virtual machines, with InventorySynced.
	VMs []events.VMID
}

// ReportInventory records what a device reports of its host, as far as it is
// news. Facts are in ascending order of their sequence; those that the log has
// already are skipped. A fact that is not valid is refused alone, see
// Result.Invalid.
type ReportInventory struct {
	Device events.DeviceID
	Epoch  uint64
	Facts  []InventoryFact
}

// Subject returns the inventory's aggregate.
func (c ReportInventory) Subject() events.Subject { return events.InventorySubject(c.Device) }

func (ReportInventory) sealed() {}

func (i Inventory) report(c ReportInventory, dev Device) (Outcome, error) {
	if err := first(
		checkNumbers(c.Epoch, len(c.Facts), func(n int) uint64 { return c.Facts[n].Seq }),
		dev.mayReport(c.Device),
	); err != nil {
		return Outcome{}, err
	}
	d := inventoryDraft{Inventory: i, epoch: c.Epoch, count: len(i.VMs)}
	if i.Epoch == c.Epoch {
		d.out.Cursor = i.Seq
	}
	for _, f := range c.Facts {
		if f.Seq <= d.out.Cursor {
			continue
		}
		n := len(d.out.Entries)
		if err := d.take(f); err != nil {
			d.out.Entries = d.out.Entries[:n]
			d.out.Invalid = append(d.out.Invalid, InvalidFact{Seq: f.Seq, Message: fmt.Sprintf("report %d: %s", f.Seq, err)})
		}
		if len(d.out.Entries) > n {
			d.out.Cursor = f.Seq
		}
	}
	return d.out, nil
}

// inventoryDraft is an inventory while facts are being taken, one after the
// other, each on top of those before it.
type inventoryDraft struct {
	Inventory
	epoch uint64
	// edits are the virtual machines that the facts so far changed, nil for one
	// that is gone; count is how many there are with them.
	edits map[events.VMID]*events.VM
	count int
	out   Outcome
}

// vm returns a virtual machine as the facts so far left it.
func (d *inventoryDraft) vm(id events.VMID) (events.VM, bool) {
	if vm, ok := d.edits[id]; ok {
		if vm == nil {
			return events.VM{}, false
		}
		return *vm, true
	}
	vm, ok := d.VMs[id]
	return vm, ok
}

// edit replaces a virtual machine; nil removes it.
func (d *inventoryDraft) edit(id events.VMID, vm *events.VM) {
	_, known := d.vm(id)
	switch {
	case known && vm == nil:
		d.count--
	case !known && vm != nil:
		d.count++
	}
	if d.edits == nil {
		d.edits = map[events.VMID]*events.VM{}
	}
	d.edits[id] = vm
}

// ids lists the virtual machines, sorted.
func (d *inventoryDraft) ids() []events.VMID {
	out := make([]events.VMID, 0, d.count)
	for id := range d.VMs {
		if _, edited := d.edits[id]; !edited {
			out = append(out, id)
		}
	}
	for id, vm := range d.edits {
		if vm != nil {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// write adds an event of a fact.
func (d *inventoryDraft) write(f InventoryFact, e events.Event) {
	d.out.Entries = append(d.out.Entries, reported(e, d.epoch, f.Seq, f.Time))
}

// take decides one fact: it adds events, or none when the fact is no news, or
// says what is wrong with the fact.
func (d *inventoryDraft) take(f InventoryFact) error {
	switch e := f.Event.(type) {
	case events.HostObserved:
		host, err := normalHost(e.Host)
		if err != nil {
			return err
		}
		if d.Host == nil || !equalHosts(*d.Host, host) {
			d.Host = &host
			d.write(f, events.HostObserved{Host: host})
		}
	case events.HostConditionChanged:
		if err := first(checkCondition(e.Condition), checkReported("condition.message", e.Message)); err != nil {
			return err
		}
		if d.Condition != e.Condition || d.ConditionMessage != e.Message {
			d.Condition, d.ConditionMessage = e.Condition, e.Message
			d.write(f, e)
		}
	case events.VMObserved:
		vm, err := normalVM(e.VM)
		if err != nil {
			return err
		}
		old, known := d.vm(vm.ID)
		if !known && d.count >= MaxVMs {
			return invalid("vm", "the device has %d virtual machines already: no more are taken", d.count)
		}
		if !known {
			d.edit(vm.ID, &vm)
			d.write(f, events.VMObserved{VM: vm})
		} else if p, changed := diffVM(old, vm); changed {
			d.edit(vm.ID, &vm)
			d.write(f, events.VMChanged{VM: vm.ID, Patch: p})
		}
	case events.VMChanged:
		if err := checkVMID(e.VM); err != nil {
			return err
		}
		old, known := d.vm(e.VM)
		if !known {
			d.out.Resync = true
			return nil
		}
		vm, err := normalVM(e.Patch.Apply(old))
		if err != nil {
			return err
		}
		if p, changed := diffVM(old, vm); changed {
			d.edit(e.VM, &vm)
			d.write(f, events.VMChanged{VM: e.VM, Patch: p})
		}
	case events.VMRemoved:
		if err := checkVMID(e.VM); err != nil {
			return err
		}
		if _, known := d.vm(e.VM); known {
			d.edit(e.VM, nil)
			d.write(f, e)
		}
	case events.InventorySynced:
		return d.sync(f, e)
	default:
		return invalid("kind", "%T is not a fact of an inventory", f.Event)
	}
	return nil
}

// sync ends a complete inventory: what is not listed is gone. When something
// is listed that is not known, then its own report was refused; the copy is
// not complete, and no InventorySynced claims that it is.
func (d *inventoryDraft) sync(f InventoryFact, e events.InventorySynced) error {
	if err := checkReported("inventory.hash", e.Hash); err != nil {
		return err
	}
	if len(f.VMs) > MaxVMs {
		return invalid("inventory.vms", "lists %d virtual machines: at most %d are taken", len(f.VMs), MaxVMs)
	}
	listed := make(map[events.VMID]bool, len(f.VMs))
	var missing events.VMID
	for _, id := range f.VMs {
		if err := checkVMID(id); err != nil {
			return err
		}
		listed[id] = true
		if _, known := d.vm(id); !known {
			missing = id
		}
	}
	gone := slices.DeleteFunc(d.ids(), func(id events.VMID) bool { return listed[id] })
	for _, id := range gone {
		d.edit(id, nil)
		d.write(f, events.VMRemoved{VM: id})
	}
	if missing != "" {
		d.out.Invalid = append(d.out.Invalid, InvalidFact{
			Seq:     f.Seq,
			Message: fmt.Sprintf("report %d: inventory.vms: lists %s, of which no valid report came", f.Seq, missing),
		})
		return nil
	}
	if d.Hash != e.Hash || len(gone) > 0 {
		d.Hash = e.Hash
		d.write(f, events.InventorySynced{Hash: e.Hash, VMs: d.count})
	}
	return nil
}

// Evolve returns the state after a record of the inventory's aggregate. It is
// pure.
func (i Inventory) Evolve(r events.Record) Inventory { return evolve(i, r) }

func (i *Inventory) fork() folded {
	c := *i
	c.VMs = cloneVMs(i.VMs)
	return &c
}

// cloneVMs copies the map; the lists within a virtual machine are never
// changed in place.
func cloneVMs(m map[events.VMID]events.VM) map[events.VMID]events.VM {
	if m == nil {
		return map[events.VMID]events.VM{}
	}
	return maps.Clone(m)
}

func (i *Inventory) fold(r events.Record) {
	if i.VMs == nil {
		i.VMs = map[events.VMID]events.VM{}
	}
	for _, en := range r.Entries {
		switch e := en.Event.(type) {
		case events.HostObserved:
			host := e.Host
			i.Host = &host
		case events.HostConditionChanged:
			i.Condition, i.ConditionMessage = e.Condition, e.Message
		case events.VMObserved:
			i.VMs[e.VM.ID] = tidyVM(e.VM)
		case events.VMChanged:
			if vm, ok := i.VMs[e.VM]; ok {
				i.VMs[e.VM] = tidyVM(e.Patch.Apply(vm))
			}
		case events.VMRemoved:
			delete(i.VMs, e.VM)
		case events.InventorySynced:
			i.Hash = e.Hash
		default:
		}
		if en.Report != nil {
			i.Epoch, i.Seq = en.Report.Epoch, en.Report.Seq
		}
	}
	i.Revision = r.Position
}

// tidyVM makes an empty list nil, so that a state is the same whether it was
// decided here or read from the log.
func tidyVM(vm events.VM) events.VM {
	vm.IPs, vm.Disks, vm.NICs = tidy(vm.IPs), tidy(vm.Disks), tidy(vm.NICs)
	return vm
}

func tidy[T any](list []T) []T {
	if len(list) == 0 {
		return nil
	}
	return list
}

// normalVM returns the virtual machine as it is stored, with lists of its own,
// or what is wrong with it.
func normalVM(vm events.VM) (events.VM, error) {
	if err := first(
		checkVMID(vm.ID),
		checkPower(vm.Power),
		checkTools(vm.Tools),
		checkSize("vm.cpus", int64(vm.CPUs)),
		checkSize("vm.memoryMiB", vm.MemoryMiB),
		checkReported("vm.name", vm.Name),
		checkReported("vm.guestId", vm.GuestID),
		checkReported("vm.guestName", vm.GuestName),
		checkReported("vm.hostname", vm.Hostname),
		checkReported("vm.ips", vm.IPs...),
		checkStorable("vm.bootTime", vm.BootTime),
		checkCount("vm.ips", len(vm.IPs)),
		checkCount("vm.disks", len(vm.Disks)),
		checkCount("vm.nics", len(vm.NICs)),
	); err != nil {
		return vm, err
	}
	for _, d := range vm.Disks {
		if err := first(checkSize("vm.disks.capacityMiB", d.CapacityMiB), checkReported("vm.disks", d.Label, d.Datastore, d.File)); err != nil {
			return vm, err
		}
	}
	for _, n := range vm.NICs {
		if err := checkReported("vm.nics", n.Label, n.MAC, n.Network); err != nil {
			return vm, err
		}
	}
	vm.IPs, vm.Disks, vm.NICs = slices.Clone(vm.IPs), slices.Clone(vm.Disks), slices.Clone(vm.NICs)
	vm.BootTime = instant(vm.BootTime)
	return tidyVM(vm), nil
}

// normalHost is normalVM for the host.
func normalHost(h events.Host) (events.Host, error) {
	if err := first(
		checkReported("host", h.Name, h.Vendor, h.Model, h.Serial, h.UUID, h.Product, h.Version, h.Build, h.CPUModel),
		checkReported("host.license", h.License.Name, h.License.Edition, h.License.Reason),
		checkSize("host.cpuSockets", int64(h.CPUSockets)),
		checkSize("host.cpuCores", int64(h.CPUCores)),
		checkSize("host.cpuThreads", int64(h.CPUThreads)),
		checkSize("host.cpuMHz", int64(h.CPUMHz)),
		checkSize("host.memoryMiB", h.MemoryMiB),
		checkStorable("host.bootTime", h.BootTime),
		checkStorable("host.license.expires", h.License.Expires),
		checkCount("host.datastores", len(h.Datastores)),
		checkCount("host.networks", len(h.Networks)),
	); err != nil {
		return h, err
	}
	for _, d := range h.Datastores {
		if err := first(
			checkSize("host.datastores.capacityMiB", d.CapacityMiB),
			checkSize("host.datastores.freeMiB", d.FreeMiB),
			checkReported("host.datastores", d.ID, d.Name, d.Type),
		); err != nil {
			return h, err
		}
	}
	for _, n := range h.Networks {
		if err := checkReported("host.networks", n.ID, n.Name); err != nil {
			return h, err
		}
	}
	h.Datastores, h.Networks = tidy(slices.Clone(h.Datastores)), tidy(slices.Clone(h.Networks))
	h.BootTime, h.License.Expires = instant(h.BootTime), instant(h.License.Expires)
	return h, nil
}

func equalHosts(a, b events.Host) bool {
	if !a.BootTime.Equal(b.BootTime) || !a.License.Expires.Equal(b.License.Expires) ||
		!slices.Equal(a.Datastores, b.Datastores) || !slices.Equal(a.Networks, b.Networks) {
		return false
	}
	for _, h := range []*events.Host{&a, &b} {
		h.BootTime, h.License.Expires, h.Datastores, h.Networks = time.Time{}, time.Time{}, nil, nil
	}
	return reflect.DeepEqual(a, b)
}

// diffVM returns the patch that turns old into now, and whether it says
// anything. An empty list in it is never nil: nil would be written as "not
// changed".
func diffVM(old, now events.VM) (events.VMPatch, bool) {
	var p events.VMPatch
	changed := false
	diff(&p.Name, old.Name, now.Name, &changed)
	diff(&p.Power, old.Power, now.Power, &changed)
	diff(&p.CPUs, old.CPUs, now.CPUs, &changed)
	diff(&p.MemoryMiB, old.MemoryMiB, now.MemoryMiB, &changed)
	diff(&p.GuestID, old.GuestID, now.GuestID, &changed)
	diff(&p.GuestName, old.GuestName, now.GuestName, &changed)
	diff(&p.Hostname, old.Hostname, now.Hostname, &changed)
	diffList(&p.IPs, old.IPs, now.IPs, &changed)
	diff(&p.Tools, old.Tools, now.Tools, &changed)
	diffList(&p.Disks, old.Disks, now.Disks, &changed)
	diffList(&p.NICs, old.NICs, now.NICs, &changed)
	if !old.BootTime.Equal(now.BootTime) {
		at := now.BootTime
		p.BootTime, changed = &at, true
	}
	return p, changed
}

func diff[T comparable](dst **T, old, now T, changed *bool) {
	if old != now {
		v := now // now itself stays off the heap when there is no difference
		*dst, *changed = &v, true
	}
}

func diffList[T comparable](dst **[]T, old, now []T, changed *bool) {
	if slices.Equal(old, now) {
		return
	}
	v := now
	if v == nil {
		v = []T{}
	}
	*dst, *changed = &v, true
}

func checkVMID(id events.VMID) *Error {
	if _, err := events.ParseVMID(string(id)); err != nil {
		return invalid("vm.id", "%s", err)
	}
	return nil
}

func checkPower(p events.PowerState) *Error {
	switch p {
	case events.PowerOn, events.PowerOff, events.PowerSuspended, events.PowerUnknown:
		return nil
	}
	return invalid("vm.power", "%q: want on, off, suspended or unknown", clip(string(p)))
}

func checkTools(t events.ToolsState) *Error {
	switch t {
	case events.ToolsRunning, events.ToolsNotRunning, events.ToolsNotInstalled, events.ToolsUnknown:
		return nil
	}
	return invalid("vm.tools", "%q: want running, notRunning, notInstalled or unknown", clip(string(t)))
}

func checkCondition(c events.Condition) *Error {
	switch c {
	case events.ConditionOK, events.ConditionReadOnly, events.ConditionDenied, events.ConditionUnreachable:
		return nil
	}
	return invalid("condition", "%q: want ok, readOnly, denied or unreachable", clip(string(c)))
}

func checkSize(field string, n int64) *Error {
	if n < 0 {
		return invalid(field, "%d: want 0 or more", n)
	}
	return nil
}

func checkCount(field string, n int) *Error {
	if n > MaxItems {
		return invalid(field, "%d items: at most %d are taken", n, MaxItems)
	}
	return nil
}

func checkStorable(field string, t time.Time) *Error {
	if !storable(t) {
		return invalid(field, "is beyond the year 9999")
	}
	return nil
}

// checkReported bounds texts that a device reports. What a host calls its
// things is its own matter, so any character is taken.
func checkReported(field string, texts ...string) *Error {
	for _, s := range texts {
		if len(s) > MaxText {
			return invalid(field, "a text of %d bytes: at most %d are taken", len(s), MaxText)
		}
	}
	return nil
}
