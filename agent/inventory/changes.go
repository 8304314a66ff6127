package inventory

import (
	"errors"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"pallas/agent/hypervisor"
	"pallas/agent/store"
	"pallas/mqttgw/wire"
)

// changes is what the manager has to be told.
type changes struct {
	host      *wire.Host
	put       []wire.VM      // whole: new to the manager, or all of them
	patch     []wire.VMPatch // of machines that it knows
	patched   []wire.VM      // what the patches lead to
	gone      []string
	condition *wire.Condition
	inventory *wire.Inventory // the end of a complete inventory
}

func (c changes) empty() bool {
	return c.host == nil && c.put == nil && c.patch == nil && c.gone == nil && c.condition == nil && c.inventory == nil
}

// compare returns what leads from base to snap, or everything.
func compare(base store.Baseline, snap hypervisor.Snapshot, condition wire.Condition, everything bool) changes {
	var c changes
	if everything || base.Condition != condition.Condition {
		c.condition = &condition
	}
	if everything || !equalHost(base.Host, snap.Host) {
		c.host = &snap.Host
	}
	known := make(map[string]wire.VM, len(base.VMs))
	for _, vm := range base.VMs {
		known[vm.ID] = vm
	}
	ids := make([]string, 0, len(snap.VMs))
	for _, vm := range snap.VMs {
		old, ok := known[vm.ID]
		delete(known, vm.ID)
		ids = append(ids, vm.ID)
		if everything || !ok {
			c.put = append(c.put, vm)
		} else if p, changed := wire.DiffVM(old, vm); changed {
			c.patch, c.patched = append(c.patch, p), append(c.patched, vm)
		}
	}
	for id := range known {
		c.gone = append(c.gone, id)
	}
	slices.Sort(c.gone)
	if everything {
		c.inventory = &wire.Inventory{VMs: ids, Hash: wire.HashInventory(snap.Host, snap.VMs)}
	}
	return c
}

// equalHost compares what is sent: no list and an empty list are the same.
func equalHost(a, b wire.Host) bool {
	if !slices.Equal(a.Datastores, b.Datastores) || !slices.Equal(a.Networks, b.Networks) {
		return false
	}
	a.Datastores, a.Networks, b.Datastores, b.Networks = nil, nil, nil, nil
	return reflect.DeepEqual(a, b)
}

// write puts the reports and the new baseline into a transaction and returns
// the last report's sequence.
func (c changes) write(tx *store.Tx, now time.Time, log *slog.Logger) (seq uint64, err error) {
	report := func(r wire.Report) error {
		r.Time = now
		seq, err = tx.Report(r)
		if errors.Is(err, store.ErrBeyondLimits) {
			// clean made it fit; what still does not is one object too odd to
			// tell of, and must not hold up the others.
			log.Error("a report does not fit the protocol and is not sent", "error", err)
			return nil
		}
		return err
	}
	if c.condition != nil {
		if err := errors.Join(report(wire.Report{Condition: c.condition}), tx.SetCondition(c.condition.Condition)); err != nil {
			return 0, err
		}
	}
	if c.host != nil {
		if err := errors.Join(report(wire.Report{Host: c.host}), tx.SetHost(*c.host)); err != nil {
			return 0, err
		}
	}
	for _, id := range c.gone {
		// A complete inventory says by what it lists which machines are gone.
		if c.inventory == nil {
			if err := report(wire.Report{VMGone: &wire.VMGone{ID: id}}); err != nil {
				return 0, err
			}
		}
		if err := tx.DeleteVM(id); err != nil {
			return 0, err
		}
	}
	for _, vm := range c.put {
		if err := errors.Join(report(wire.Report{VM: &vm}), tx.PutVM(vm)); err != nil {
			return 0, err
		}
	}
	for i, p := range c.patch {
		if err := errors.Join(report(wire.Report{VMPatch: &p}), tx.PutVM(c.patched[i])); err != nil {
			return 0, err
		}
	}
	if c.inventory != nil {
		if err := errors.Join(report(wire.Report{Inventory: c.inventory}), tx.SetComplete()); err != nil {
			return 0, err
		}
	}
	return seq, nil
}

// maxText is what texts of a host are cut to. It is above what vSphere permits,
// and keeps any one object of reasonable size within a packet.
const maxText = 512

// clean makes a snapshot fit the protocol: texts are cut and made valid UTF-8,
// lists and the number of machines cut, what must be sorted is sorted. A
// driver's snapshot normally passes unchanged.
func clean(s hypervisor.Snapshot, log *slog.Logger) hypervisor.Snapshot {
	h := &s.Host
	clipAll(&h.Name, &h.Vendor, &h.Model, &h.Serial, &h.UUID, &h.Product, &h.Version, &h.Build, &h.CPUModel,
		&h.License.Name, &h.License.Edition, &h.License.Reason)
	h.Datastores = cut(h.Datastores, log, "datastores")
	for i := range h.Datastores {
		d := &h.Datastores[i]
		clipAll(&d.ID, &d.Name, &d.Type)
	}
	h.Networks = cut(h.Networks, log, "networks")
	for i := range h.Networks {
		clipAll(&h.Networks[i].ID, &h.Networks[i].Name)
	}
	if len(s.VMs) > wire.MaxVMs {
		log.Error("host has more machines than can be reported", "machines", len(s.VMs), "limit", wire.MaxVMs)
		s.VMs = s.VMs[:wire.MaxVMs]
	}
	for i := range s.VMs {
		vm := &s.VMs[i]
		clipAll(&vm.ID, &vm.Name, &vm.Power, &vm.GuestID, &vm.GuestName, &vm.Hostname, &vm.Tools)
		vm.IPs = cut(vm.IPs, log, "addresses")
		for j := range vm.IPs {
			clipAll(&vm.IPs[j])
		}
		vm.Disks = cut(vm.Disks, log, "disks")
		for j := range vm.Disks {
			clipAll(&vm.Disks[j].Label, &vm.Disks[j].Datastore, &vm.Disks[j].File)
		}
		vm.NICs = cut(vm.NICs, log, "network cards")
		for j := range vm.NICs {
			clipAll(&vm.NICs[j].Label, &vm.NICs[j].MAC, &vm.NICs[j].Network)
		}
	}
	return s
}

func cut[T any](list []T, log *slog.Logger, what string) []T {
	if len(list) <= wire.MaxItems {
		return list
	}
	log.Warn("more than can be reported", "of", what, "count", len(list), "limit", wire.MaxItems)
	return list[:wire.MaxItems]
}

func clipAll(texts ...*string) {
	for _, t := range texts {
		*t = clip(*t)
	}
}

// clip cuts a text to maxText bytes of valid UTF-8.
func clip(s string) string {
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "�")
	}
	if len(s) <= maxText {
		return s
	}
	s = s[:maxText]
	for !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s
}
