package commands

import (
	"maps"
	"slices"
)

// The copies below share nothing with the cache.

func (d *Device) copy() Device {
	c := *d
	c.Labels = maps.Clone(d.Labels)
	c.Certificates = slices.Clone(d.Certificates)
	c.Site = copySite(d.Site)
	c.Quarantine = d.Quarantine.copy()
	c.FormerKeys = slices.Clone(d.FormerKeys)
	c.Anchors = slices.Clone(d.Anchors)
	return c
}

func (i *Inventory) copy() Inventory {
	c := *i
	if i.Host != nil {
		h := *i.Host
		h.Datastores, h.Networks = slices.Clone(h.Datastores), slices.Clone(h.Networks)
		c.Host = &h
	}
	c.VMs = cloneVMs(i.VMs)
	for id, vm := range c.VMs {
		vm.IPs, vm.Disks, vm.NICs = slices.Clone(vm.IPs), slices.Clone(vm.Disks), slices.Clone(vm.NICs)
		c.VMs[id] = vm
	}
	return c
}

func (t *Tasks) copy() Tasks {
	c := *t
	c.Tasks = maps.Clone(t.Tasks)
	c.Past = slices.Clone(t.Past)
	return c
}

func (t *JoinToken) copy() JoinToken {
	c := *t
	c.Recent = slices.Clone(t.Recent)
	c.Labels = maps.Clone(t.Labels)
	return c
}
