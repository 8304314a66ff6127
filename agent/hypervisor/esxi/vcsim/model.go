package vcsim

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// hardware is a machine that one finds at the edge.
type hardware struct {
	vendor, model              string
	cpu                        string
	sockets, cores, threads    int16
	mhz                        int32
	memoryGiB                  int64
	version, build, apiVersion string
	datastores                 []datastore
	networks                   []network
}

type datastore struct {
	name, kind  string
	capacityGiB int64
	freePercent int64
}

type network struct {
	name string
	vlan int32
}

var catalogue = []hardware{
	{
		vendor: "Dell Inc.", model: "PowerEdge XR4510c", cpu: "Intel(R) Xeon(R) D-2776NT CPU @ 2.10GHz",
		sockets: 1, cores: 16, threads: 32, mhz: 2095, memoryGiB: 128,
		version: "8.0.3", build: "24022510", apiVersion: "8.0.3.0",
		datastores: []datastore{{"datastore1", "VMFS", 1788, 61}, {"backup", "NFS", 7450, 34}},
		networks:   []network{{"Store", 20}, {"Cameras", 30}},
	},
	{
		vendor: "HPE", model: "ProLiant MicroServer Gen10 Plus v2", cpu: "Intel(R) Xeon(R) E-2314 CPU @ 2.80GHz",
		sockets: 1, cores: 4, threads: 4, mhz: 2808, memoryGiB: 32,
		version: "8.0.2", build: "22380479", apiVersion: "8.0.2.0",
		datastores: []datastore{{"datastore1", "VMFS", 893, 27}},
		networks:   []network{{"Shop floor", 110}},
	},
	{
		vendor: "Supermicro", model: "SYS-E302-12D-4C", cpu: "Intel(R) Xeon(R) D-1718T CPU @ 2.60GHz",
		sockets: 1, cores: 4, threads: 8, mhz: 2594, memoryGiB: 64,
		version: "7.0.3", build: "21930508", apiVersion: "7.0.3.0",
		datastores: []datastore{{"nvme-local", "VMFS", 446, 48}, {"sata-local", "VMFS", 3576, 83}},
		networks:   []network{{"OT", 400}, {"IT", 410}},
	},
	{
		vendor: "Lenovo", model: "ThinkEdge SE350 V2", cpu: "Intel(R) Xeon(R) D-2733NT CPU @ 2.10GHz",
		sockets: 1, cores: 8, threads: 16, mhz: 2095, memoryGiB: 96,
		version: "8.0.1", build: "21495797", apiVersion: "8.0.1.0",
		datastores: []datastore{{"datastore1", "VMFS", 931, 72}},
		networks:   []network{{"Train control", 7}, {"Passenger WiFi", 8}},
	},
	{
		vendor: "Dell Inc.", model: "PowerEdge T350", cpu: "Intel(R) Xeon(R) E-2388G CPU @ 3.20GHz",
		sockets: 1, cores: 8, threads: 16, mhz: 3192, memoryGiB: 64,
		version: "8.0.3", build: "24280767", apiVersion: "8.0.3.0",
		datastores: []datastore{{"raid1", "VMFS", 1787, 15}, {"raid5", "VMFS", 5589, 56}},
		networks:   []network{{"Production", 50}},
	},
}

const gib = 1 << 30

// context returns a fresh locking context: the simulator shares locks within
// one and excludes others by it.
func (h *Host) context() *simulator.Context {
	c := *h.model.Service.Context
	return &c
}

// build makes the model, opens the host's own session and gives the host its
// face.
func (h *Host) build() error {
	hw := h.hardware()
	m := simulator.ESX()
	m.Machine, m.Datastore = 0, 0
	about := &m.ServiceContent.About
	about.Version, about.Build, about.ApiVersion = hw.version, hw.build, hw.apiVersion
	about.FullName = fmt.Sprintf("VMware ESXi %s build-%s", hw.version, hw.build)
	about.LicenseProductVersion = hw.version[:3]

	start.Lock()
	err := m.Create()
	start.Unlock()
	if err != nil {
		return err
	}
	h.model = m
	svc := m.Service
	reg := m.Map()
	// Any user is let in if none is set; ValidLogin has the last word.
	svc.Listen = &url.URL{Scheme: "https", Host: h.addr, Path: reg.Path, User: url.User(h.cfg.Username)}
	reg.SessionManager().ValidLogin = h.validLogin
	reg.Handler = func(ctx *simulator.Context, m *simulator.Method) (mo.Reference, types.BaseMethodFault) {
		handle(ctx, m)
		return nil, nil
	}
	svc.RegisterSDK(reg, reg.Path+"/vimService")
	svc.ServeMux.HandleFunc(reg.Path+"/vimServiceVersions.xml", svc.ServiceVersions)
	svc.ServeMux.HandleFunc("/folder/", svc.ServeDatastore)
	h.mux = http.Handler(svc.ServeMux)
	h.face(hw, *about)

	ctx := context.Background()
	if err := h.connect(ctx); err != nil {
		return err
	}
	if err := h.addDatastores(ctx, hw); err != nil {
		return err
	}
	if err := h.addNetworks(ctx, hw); err != nil {
		return err
	}
	reg.AddHandler(&observer{h})
	for _, vm := range h.cfg.VMs {
		if err := h.AddVM(ctx, vm); err != nil {
			return err
		}
	}
	// The simulator takes a thin disk's whole capacity off the free space; a
	// host takes what is written.
	for _, d := range hw.datastores {
		if err := h.SetFree(ctx, d.name, d.capacityGiB*gib/100*d.freePercent); err != nil {
			return err
		}
	}
	return nil
}

// face overwrites what the simulator says of itself. It runs before anybody
// can ask.
func (h *Host) face(hw hardware, about types.AboutInfo) {
	name := h.cfg.Name
	reg := h.model.Map()
	host := reg.Any("HostSystem").(*simulator.HostSystem)
	id := stableUUID(name, "host")
	serial := strings.ToUpper(id[:7])
	memory := hw.memoryGiB*gib - 47<<20 // what the firmware keeps
	boot := time.Now().UTC().Truncate(time.Second).Add(-time.Duration(h.cfg.Seed%2000+20) * time.Hour)
	idents := []types.HostSystemIdentificationInfo{{
		IdentifierValue: serial,
		IdentifierType:  &types.ElementDescription{Description: types.Description{Label: "Service tag", Summary: "Service tag of the system"}, Key: "ServiceTag"},
	}}

	host.Name = name
	host.Runtime.BootTime = &boot
	host.Runtime.HealthSystemRuntime = nil
	host.Config.Product = about
	short, domain, _ := strings.Cut(name, ".")
	if n := host.Config.Network; n != nil {
		n.DnsConfig = &types.HostDnsConfig{HostName: short, DomainName: domain}
	}
	s := &host.Summary
	s.Config.Name = name
	s.Config.Product = &about
	s.Hardware = &types.HostHardwareSummary{
		Vendor: hw.vendor, Model: hw.model, Uuid: id, OtherIdentifyingInfo: idents, MemorySize: memory,
		CpuModel: hw.cpu, CpuMhz: hw.mhz, NumCpuPkgs: hw.sockets, NumCpuCores: hw.cores, NumCpuThreads: hw.threads,
		NumNics: 4, NumHBAs: 2,
	}
	info := *host.Hardware
	info.SystemInfo = types.HostSystemInfo{
		Vendor: hw.vendor, Model: hw.model, Uuid: id, OtherIdentifyingInfo: idents, SerialNumber: serial,
	}
	info.CpuInfo = types.HostCpuInfo{
		NumCpuPackages: hw.sockets, NumCpuCores: hw.cores, NumCpuThreads: hw.threads, Hz: int64(hw.mhz) * 1_000_000,
	}
	info.MemorySize = memory
	info.CpuPkg = slices.Clone(info.CpuPkg)
	host.Hardware = &info

	reg.Get(*h.model.ServiceContent.LicenseManager).(*simulator.LicenseManager).Licenses = []types.LicenseManagerLicenseInfo{h.license()}
}

// license is a paid one, or the free one whose API only reads.
func (h *Host) license() types.LicenseManagerLicenseInfo {
	hw := h.hardware()
	major := hw.version[:1]
	feature := func(key, text string) types.KeyAnyValue {
		return types.KeyAnyValue{Key: "feature", Value: types.KeyValue{Key: key, Value: text}}
	}
	l := types.LicenseManagerLicenseInfo{
		LicenseKey: "XXXXX-XXXXX-XXXXX-XXXXX-00000",
		EditionKey: "esx.standard.cpuPackageCoreLimited",
		Name:       "VMware vSphere " + major + " Standard",
		CostUnit:   "cpuPackage:32",
		Total:      int32(hw.sockets), Used: int32(hw.sockets),
		Properties: []types.KeyAnyValue{
			feature("vsmp:128", "Up to 128-way virtual SMP"), feature("vimapi", "vSphere API"),
			feature("vpxagent", "vCenter agent for VMware host"), feature("vmotion", "vMotion"), feature("vstorage", "vStorage APIs"),
		},
	}
	if h.isReadOnly() {
		l.EditionKey, l.Name = "esxBasic", "VMware vSphere "+major+" Hypervisor"
		l.Properties = []types.KeyAnyValue{feature("vsmp:8", "Up to 8-way virtual SMP")}
	}
	l.Properties = append(l.Properties,
		types.KeyAnyValue{Key: "ProductName", Value: "VMware ESX Server"},
		types.KeyAnyValue{Key: "ProductVersion", Value: hw.version[:3]})
	return l
}

func (h *Host) system() *object.HostSystem {
	return object.NewHostSystem(h.vim, types.ManagedObjectReference{Type: "HostSystem", Value: "ha-host"})
}

func (h *Host) addDatastores(ctx context.Context, hw hardware) error {
	system, err := h.system().ConfigManager().DatastoreSystem(ctx)
	if err != nil {
		return err
	}
	for _, d := range hw.datastores {
		dir := h.datastoreDir(d.name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		ds, err := system.CreateLocalDatastore(ctx, d.name, dir)
		if err != nil {
			return fmt.Errorf("datastore %s: %w", d.name, err)
		}
		h.update(ds.Reference(),
			types.PropertyChange{Name: "summary.type", Val: d.kind},
			types.PropertyChange{Name: "summary.capacity", Val: d.capacityGiB * gib},
		)
	}
	return nil
}

func (h *Host) addNetworks(ctx context.Context, hw hardware) error {
	system, err := h.system().ConfigManager().NetworkSystem(ctx)
	if err != nil {
		return err
	}
	for _, n := range hw.networks {
		_, err := methods.AddPortGroup(ctx, h.vim, &types.AddPortGroup{This: system.Reference(), Portgrp: types.HostPortGroupSpec{
			Name: n.name, VlanId: n.vlan, VswitchName: "vSwitch0",
		}})
		if err != nil {
			return fmt.Errorf("network %s: %w", n.name, err)
		}
	}
	// The simulator adds a port group to the datacenter's networks only.
	reg := h.model.Map()
	dc := reg.Any("Datacenter").(*simulator.Datacenter)
	h.update(h.system().Reference(), types.PropertyChange{Name: "network", Val: slices.Clone(dc.Network)})
	return nil
}

// update changes properties under the object's lock, as the simulator's own
// tasks do, so that property collectors report them.
func (h *Host) update(ref types.ManagedObjectReference, changes ...types.PropertyChange) {
	ctx := h.context()
	if obj := ctx.Map.Get(ref); obj != nil {
		ctx.Map.AtomicUpdate(ctx, obj, changes)
	}
}
