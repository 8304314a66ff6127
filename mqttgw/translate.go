package mqttgw

import (
	"encoding/hex"
	"time"

	"pallas/commands"
	"pallas/events"
	"pallas/mqttgw/wire"
)

// The protocol and the log have each their own types, so that one can change
// without the other. What a device reported and what the log holds must still
// be the same thing: the inventory hash is computed over the way back.

// inventoryFact returns the fact of a report that is neither about a task nor
// of an unknown kind.
func inventoryFact(r wire.Report) commands.InventoryFact {
	f := commands.InventoryFact{Seq: r.Seq, Time: r.Time}
	switch {
	case r.Host != nil:
		f.Event = events.HostObserved{Host: hostFromWire(*r.Host)}
	case r.Condition != nil:
		f.Event = events.HostConditionChanged{Condition: events.Condition(r.Condition.Condition), Message: r.Condition.Message}
	case r.VM != nil:
		f.Event = events.VMObserved{VM: vmFromWire(*r.VM)}
	case r.VMPatch != nil:
		f.Event = events.VMChanged{VM: events.VMID(r.VMPatch.ID), Patch: patchFromWire(*r.VMPatch)}
	case r.VMGone != nil:
		f.Event = events.VMRemoved{VM: events.VMID(r.VMGone.ID)}
	case r.Inventory != nil:
		f.VMs = mapSlice(r.Inventory.VMs, func(id string) events.VMID { return events.VMID(id) })
		f.Event = events.InventorySynced{Hash: hex.EncodeToString(r.Inventory.Hash), VMs: len(f.VMs)}
	}
	return f
}

// taskFact returns the fact of a report about a task.
func taskFact(r wire.Report) commands.TaskFact {
	t := r.Task
	f := commands.TaskFact{
		Seq: r.Seq, Time: r.Time, Task: events.TaskID(t.ID.String()),
		Percent: t.Percent, Code: t.Code, Message: t.Message,
	}
	if t.State == wire.StateProgress {
		f.Progress = true
	} else {
		f.Status = events.TaskStatus(t.State)
	}
	return f
}

// hashInventory returns the hash that a device with this inventory reports, or
// nil when the host was not observed yet.
func hashInventory(i commands.Inventory) []byte {
	if i.Host == nil {
		return nil
	}
	vms := make([]wire.VM, 0, len(i.VMs))
	for _, vm := range i.VMs {
		vms = append(vms, vmToWire(vm))
	}
	return wire.HashInventory(hostToWire(*i.Host), vms)
}

func hostFromWire(h wire.Host) events.Host {
	return events.Host{
		Name: h.Name, Vendor: h.Vendor, Model: h.Model, Serial: h.Serial, UUID: h.UUID,
		Product: h.Product, Version: h.Version, Build: h.Build,
		CPUModel: h.CPUModel, CPUSockets: h.CPUSockets, CPUCores: h.CPUCores, CPUThreads: h.CPUThreads, CPUMHz: h.CPUMHz,
		MemoryMiB: h.MemoryMiB, BootTime: fromUnix(h.BootTime), Maintenance: h.Maintenance,
		License: events.License{
			Name: h.License.Name, Edition: h.License.Edition, Expires: fromUnix(h.License.Expires),
			Writable: h.License.Writable, Reason: h.License.Reason,
		},
		Datastores: mapSlice(h.Datastores, func(d wire.Datastore) events.Datastore { return events.Datastore(d) }),
		Networks:   mapSlice(h.Networks, func(n wire.Network) events.Network { return events.Network(n) }),
	}
}

func hostToWire(h events.Host) wire.Host {
	return wire.Host{
		Name: h.Name, Vendor: h.Vendor, Model: h.Model, Serial: h.Serial, UUID: h.UUID,
		Product: h.Product, Version: h.Version, Build: h.Build,
		CPUModel: h.CPUModel, CPUSockets: h.CPUSockets, CPUCores: h.CPUCores, CPUThreads: h.CPUThreads, CPUMHz: h.CPUMHz,
		MemoryMiB: h.MemoryMiB, BootTime: toUnix(h.BootTime), Maintenance: h.Maintenance,
		License: wire.License{
			Name: h.License.Name, Edition: h.License.Edition, Expires: toUnix(h.License.Expires),
			Writable: h.License.Writable, Reason: h.License.Reason,
		},
		Datastores: mapSlice(h.Datastores, func(d events.Datastore) wire.Datastore { return wire.Datastore(d) }),
		Networks:   mapSlice(h.Networks, func(n events.Network) wire.Network { return wire.Network(n) }),
	}
}

func vmFromWire(v wire.VM) events.VM {
	return events.VM{
		ID: events.VMID(v.ID), Name: v.Name, Power: events.PowerState(v.Power), CPUs: v.CPUs, MemoryMiB: v.MemoryMiB,
		GuestID: v.GuestID, GuestName: v.GuestName, Hostname: v.Hostname, IPs: v.IPs, Tools: events.ToolsState(v.Tools),
		Disks: disksFromWire(v.Disks), NICs: nicsFromWire(v.NICs), BootTime: fromUnix(v.BootTime),
	}
}

func vmToWire(v events.VM) wire.VM {
	return wire.VM{
		ID: string(v.ID), Name: v.Name, Power: string(v.Power), CPUs: v.CPUs, MemoryMiB: v.MemoryMiB,
		GuestID: v.GuestID, GuestName: v.GuestName, Hostname: v.Hostname, IPs: v.IPs, Tools: string(v.Tools),
		Disks:    mapSlice(v.Disks, func(d events.Disk) wire.Disk { return wire.Disk(d) }),
		NICs:     mapSlice(v.NICs, func(n events.NIC) wire.NIC { return wire.NIC(n) }),
		BootTime: toUnix(v.BootTime),
	}
}

func patchFromWire(p wire.VMPatch) events.VMPatch {
	return events.VMPatch{
		Name:      p.Name,
		Power:     mapPtr(p.Power, func(s string) events.PowerState { return events.PowerState(s) }),
		CPUs:      p.CPUs,
		MemoryMiB: p.MemoryMiB,
		GuestID:   p.GuestID,
		GuestName: p.GuestName,
		Hostname:  p.Hostname,
		IPs:       p.IPs,
		Tools:     mapPtr(p.Tools, func(s string) events.ToolsState { return events.ToolsState(s) }),
		Disks:     mapPtr(p.Disks, disksFromWire),
		NICs:      mapPtr(p.NICs, nicsFromWire),
		BootTime:  mapPtr(p.BootTime, fromUnix),
	}
}

func disksFromWire(d []wire.Disk) []events.Disk {
	return mapSlice(d, func(d wire.Disk) events.Disk { return events.Disk(d) })
}

func nicsFromWire(n []wire.NIC) []events.NIC {
	return mapSlice(n, func(n wire.NIC) events.NIC { return events.NIC(n) })
}

// fromUnix and toUnix treat 0 seconds and the zero time as the same: unknown.
func fromUnix(sec int64) time.Time {
	if sec == 0 {
		return time.Time{}
	}
	return time.Unix(sec, 0).UTC()
}

func toUnix(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

func mapSlice[A, B any](in []A, f func(A) B) []B {
	if in == nil {
		return nil
	}
	out := make([]B, len(in))
	for i, a := range in {
		out[i] = f(a)
	}
	return out
}

func mapPtr[A, B any](in *A, f func(A) B) *B {
	if in == nil {
		return nil
	}
	b := f(*in)
	return &b
}
