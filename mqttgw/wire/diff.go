package wire

import "slices"

// DiffVM returns the patch that turns old into now, and whether it is not
// empty. Both must be of one id.
func DiffVM(old, now VM) (VMPatch, bool) {
	p := VMPatch{ID: now.ID}
	changed := false
	diff(&p.Name, old.Name, now.Name, &changed)
	diff(&p.Power, old.Power, now.Power, &changed)
	diff(&p.CPUs, old.CPUs, now.CPUs, &changed)
	diff(&p.MemoryMiB, old.MemoryMiB, now.MemoryMiB, &changed)
	diff(&p.GuestID, old.GuestID, now.GuestID, &changed)
	diff(&p.GuestName, old.GuestName, now.GuestName, &changed)
	diff(&p.Hostname, old.Hostname, now.Hostname, &changed)
	diffSlice(&p.IPs, old.IPs, now.IPs, &changed)
	diff(&p.Tools, old.Tools, now.Tools, &changed)
	diffSlice(&p.Disks, old.Disks, now.Disks, &changed)
	diffSlice(&p.NICs, old.NICs, now.NICs, &changed)
	diff(&p.BootTime, old.BootTime, now.BootTime, &changed)
	return p, changed
}

// Apply returns vm with the patch's fields in place of its own.
func (p VMPatch) Apply(vm VM) VM {
	set(&vm.Name, p.Name)
	set(&vm.Power, p.Power)
	set(&vm.CPUs, p.CPUs)
	set(&vm.MemoryMiB, p.MemoryMiB)
	set(&vm.GuestID, p.GuestID)
	set(&vm.GuestName, p.GuestName)
	set(&vm.Hostname, p.Hostname)
	set(&vm.IPs, p.IPs)
	set(&vm.Tools, p.Tools)
	set(&vm.Disks, p.Disks)
	set(&vm.NICs, p.NICs)
	set(&vm.BootTime, p.BootTime)
	return vm
}

func diff[T comparable](dst **T, old, now T, changed *bool) {
	if old != now {
		*dst, *changed = &now, true
	}
}

func diffSlice[T comparable](dst **[]T, old, now []T, changed *bool) {
	if !slices.Equal(old, now) {
		*dst, *changed = &now, true
	}
}

func set[T any](dst *T, src *T) {
	if src != nil {
		*dst = *src
	}
}
