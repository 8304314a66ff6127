package httpapi

import (
	"time"

	"pallas/events"
)

// VM is a virtual machine as its host reports it.
type VM struct {
	Device      string    `json:"device" format:"uuid" example:"6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f" doc:"Device whose host runs it."`
	DeviceName  string    `json:"deviceName" example:"shop-0042" doc:"Display name of the device."`
	ID          string    `json:"id" example:"52f7b6a1-40c1-8d3e-9a57-0f1e2d3c4b5a" doc:"The host's own stable id, unique on the device only."`
	Name        string    `json:"name" example:"pos-server" doc:"Name on the host."`
	Power       string    `json:"power" enum:"on,off,suspended,unknown" example:"on" doc:"Power state, as reported."`
	CPUs        int       `json:"cpus" minimum:"0" example:"2" doc:"Virtual processors."`
	MemoryMiB   int64     `json:"memoryMiB" minimum:"0" example:"4096" doc:"Memory in MiB."`
	GuestID     string    `json:"guestId,omitempty" example:"debian12_64Guest" doc:"Configured guest system identifier."`
	GuestName   string    `json:"guestName,omitempty" example:"Debian GNU/Linux 12 (64-bit)" doc:"Guest system."`
	Hostname    string    `json:"hostname,omitempty" example:"pos-server.local" doc:"Host name, as the guest tools report it."`
	IPs         []string  `json:"ips" example:"[\"192.0.2.10\"]" doc:"Addresses, as the guest tools report them."`
	Tools       string    `json:"tools" enum:"running,notRunning,notInstalled,unknown" example:"running" doc:"Whether the guest tools run. A guest shutdown needs them."`
	Disks       []Disk    `json:"disks" doc:"Virtual disks."`
	NICs        []NIC     `json:"nics" doc:"Virtual network cards."`
	BootTime    time.Time `json:"bootTime,omitzero" example:"2026-11-23T05:00:00Z" doc:"When it was powered on."`
	FirstSeenAt time.Time `json:"firstSeenAt,omitzero" example:"2026-11-20T08:00:02Z" doc:"When the manager first heard of it."`
	UpdatedAt   time.Time `json:"updatedAt,omitzero" example:"2026-11-23T09:30:01Z" doc:"When its last change reached the manager."`
	Revision    uint64    `json:"revision" example:"1839" doc:"Position of the last event that changed it."`
}

// Disk is a virtual disk.
type Disk struct {
	Key         int32  `json:"key" example:"2000" doc:"Device key on the virtual machine."`
	Label       string `json:"label" example:"Hard disk 1" doc:"Label."`
	CapacityMiB int64  `json:"capacityMiB" minimum:"0" example:"40960" doc:"Size in MiB."`
	Datastore   string `json:"datastore,omitempty" example:"datastore1" doc:"Datastore that holds it."`
	File        string `json:"file,omitempty" example:"[datastore1] pos-server/pos-server.vmdk" doc:"File on the datastore."`
	Thin        bool   `json:"thin,omitempty" example:"true" doc:"Whether it is thin provisioned."`
}

// NIC is a virtual network card.
type NIC struct {
	Key       int32  `json:"key" example:"4000" doc:"Device key on the virtual machine."`
	Label     string `json:"label" example:"Network adapter 1" doc:"Label."`
	MAC       string `json:"mac,omitempty" example:"00:0c:29:aa:bb:cc" doc:"Hardware address."`
	Network   string `json:"network,omitempty" example:"VM Network" doc:"Network it is attached to."`
	Connected bool   `json:"connected" example:"true" doc:"Whether it is connected."`
}

// VMOf returns the representation of a virtual machine of a device.
func VMOf(device events.DeviceID, deviceName string, vm events.VM, updated time.Time, revision uint64) VM {
	out := VM{
		Device: string(device), DeviceName: deviceName, ID: string(vm.ID), Name: vm.Name, Power: string(vm.Power),
		CPUs: vm.CPUs, MemoryMiB: vm.MemoryMiB, GuestID: vm.GuestID, GuestName: vm.GuestName, Hostname: vm.Hostname,
		IPs: []string{}, Tools: string(vm.Tools), Disks: []Disk{}, NICs: []NIC{}, BootTime: vm.BootTime,
		UpdatedAt: updated, Revision: revision,
	}
	if out.Tools == "" {
		out.Tools = string(events.ToolsUnknown)
	}
	if out.Power == "" {
		out.Power = string(events.PowerUnknown)
	}
	out.IPs = append(out.IPs, vm.IPs...)
	for _, d := range vm.Disks {
		out.Disks = append(out.Disks, Disk(d))
	}
	for _, n := range vm.NICs {
		out.NICs = append(out.NICs, NIC(n))
	}
	return out
}
