package wire_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"pallas/mqttgw/wire"
)

// A golden is only ever added: -update writes those that are missing, and
// never one that is there. A device in the field speaks the old bytes.
var update = flag.Bool("update", false, "write the goldens that are missing")

const goldenDir = "testdata/golden"

type golden struct {
	name string
	up   *wire.Up
	down *wire.Down
	// deflated has up deflated. Another version of Go may deflate to other
	// bytes, so that the file has the right ones.
	deflated bool
}

func (g golden) rule() string {
	switch {
	case g.deflated:
		return "deflated"
	case g.up != nil:
		return "up"
	default:
		return "down"
	}
}

func (g golden) direction() wire.Direction {
	if g.up != nil {
		return wire.UpDirection
	}
	return wire.DownDirection
}

func (g golden) payload(t testing.TB) []byte {
	t.Helper()
	var b []byte
	var err error
	if g.deflated {
		if _, err := os.Stat(filepath.Join(goldenDir, g.name+".hex")); err == nil {
			return goldenBytes(t, g.name)
		}
		b, err = wire.EncodeUpDeflated(*g.up)
	} else if g.up != nil {
		b, err = wire.EncodeUp(*g.up)
	} else {
		b, err = wire.EncodeDown(*g.down)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func ptr[T any](v T) *T { return &v }

var (
	golHash = []byte{0x9f, 0x86, 0xd0, 0x81, 0x88, 0x4c, 0x7d, 0x65, 0x9a, 0x2f, 0xea, 0xa0, 0xc5, 0x5a, 0xd0, 0x15}
	golTask = uuid.MustParse("0f8fad5b-d9cb-569f-a165-70867728950e")
	golOpen = uuid.MustParse("7c9e6679-7425-50de-944b-e07fc1f90ae7")
	// What stands for a request and for certificates: the protocol does not look
	// into them.
	golCSR    = []byte("the bytes of a certificate request")
	golLeaf   = []byte("the bytes of a certificate")
	golCA     = []byte("the bytes of a CA's certificate")
	golNextCA = []byte("the bytes of another one")
	golTime   = time.Date(2026, 11, 23, 9, 30, 0, 250_000_000, time.UTC)
)

func golHost() wire.Host {
	return wire.Host{
		Name: "esx-fra-07", Vendor: "Dell Inc.", Model: "PowerEdge R650", Serial: "7XK2J93",
		UUID: "4c4c4544-0058-4b10-8032-b7c04f4a3933", Product: "VMware ESXi", Version: "8.0.2", Build: "22380479",
		CPUModel: "Intel(R) Xeon(R) Gold 5318Y CPU @ 2.10GHz", CPUSockets: 1, CPUCores: 24, CPUThreads: 48, CPUMHz: 2100,
		MemoryMiB: 131072, BootTime: 1763000000, Maintenance: true,
		License:    wire.License{Name: "VMware vSphere Hypervisor", Edition: "esxBasic", Expires: 1795000000, Writable: false, Reason: "the licence has no API write access"},
		Datastores: []wire.Datastore{{ID: "ds-1", Name: "datastore1", Type: "VMFS", CapacityMiB: 915715, FreeMiB: 604371, Accessible: true}},
		Networks:   []wire.Network{{ID: "net-1", Name: "VM Network"}},
	}
}

func golVM() wire.VM {
	return wire.VM{
		ID: "52e0b1f4-3c6c-8a1e-5a36-0c2f8d1b7e90", Name: "pos-1", Power: wire.PowerOn, CPUs: 2, MemoryMiB: 4096,
		GuestID: "ubuntu64Guest", GuestName: "Ubuntu Linux (64-bit)", Hostname: "pos-1.shop.example",
		IPs: []string{"192.0.2.17", "2001:db8::17"}, Tools: wire.ToolsRunning,
		Disks:    []wire.Disk{{Key: 2000, Label: "Hard disk 1", CapacityMiB: 40960, Datastore: "datastore1", File: "pos-1/pos-1.vmdk", Thin: true}},
		NICs:     []wire.NIC{{Key: 4000, Label: "Network adapter 1", MAC: "00:0c:29:3e:53:f1", Network: "VM Network", Connected: true}},
		BootTime: 1763900000,
	}
}

func golVM2() wire.VM {
	vm := golVM()
	vm.ID, vm.Name, vm.Hostname = "52e0b1f4-3c6c-8a1e-5a36-0c2f8d1b7e91", "pos-2", "pos-2.shop.example"
	return vm
}

func up(reports ...wire.Report) *wire.Up {
	for i := range reports {
		reports[i].Seq = uint64(17 + i)
		reports[i].Time = golTime
	}
	return &wire.Up{Version: 1, Epoch: 6021234567890123, Reports: reports}
}

// goldens are one packet or more of each kind.
func goldens() []golden {
	return []golden{
		{name: "up-hello-new", up: &wire.Up{Version: 1, Hello: &wire.Hello{Agent: "1.0.0", Epoch: 6021234567890123, First: 1, Next: 1, Time: golTime}}},
		{name: "up-hello", up: &wire.Up{Version: 1, Hello: &wire.Hello{
			Agent: "1.0.0", Epoch: 6021234567890123, First: 17, Next: 20, Inventory: golHash, Time: golTime, Open: []uuid.UUID{golOpen},
		}}},
		{name: "up-hello-without-clock", up: &wire.Up{Version: 1, Hello: &wire.Hello{Agent: "1.0.0", Epoch: 1, First: 1, Next: 1}}},
		{name: "up-hello-instance", up: &wire.Up{Version: 1, Hello: &wire.Hello{
			Agent: "1.1.0", Epoch: 6021234567890123, First: 17, Next: 17, Inventory: golHash, Time: golTime, Instance: []byte{0x1f, 0x0e, 0x2d, 0x3c, 0x4b, 0x5a, 0x69, 0x78},
		}}},
		{name: "up-bye", up: &wire.Up{Version: 1, Bye: &wire.Bye{Reason: "shutting down"}}},
		{name: "up-hello-anchors", up: &wire.Up{
			Version: 1, Hello: &wire.Hello{Agent: "1.0.0", Epoch: 6021234567890123, First: 17, Next: 17, Inventory: golHash, Time: golTime},
			Anchors: [][]byte{golHash[:8], golHash[8:]},
		}},
		{name: "up-anchors", up: &wire.Up{Version: 1, Anchors: [][]byte{golHash[:8]}}},
		{name: "up-renewal", up: &wire.Up{Version: 1, Renewal: &wire.Renewal{CSR: golCSR}}},
		{name: "up-host", up: up(wire.Report{Host: ptr(golHost())})},
		{name: "up-host-bare", up: up(wire.Report{Host: &wire.Host{Name: "esx"}})},
		{name: "up-condition", up: up(wire.Report{Condition: &wire.Condition{Condition: wire.ConditionUnreachable, Message: "dial tcp 192.0.2.1:443: i/o timeout"}})},
		{name: "up-vm", up: up(wire.Report{VM: ptr(golVM())})},
		{name: "up-vm-patch", up: up(wire.Report{VMPatch: &wire.VMPatch{ID: golVM().ID, Power: ptr(wire.PowerOff), Hostname: ptr(""), IPs: &[]string{}, Tools: ptr(wire.ToolsNotRunning), BootTime: ptr(int64(0))}})},
		{name: "up-vm-gone", up: up(wire.Report{VMGone: &wire.VMGone{ID: golVM().ID}})},
		{name: "up-inventory", up: up(wire.Report{Inventory: &wire.Inventory{VMs: []string{golVM().ID}, Hash: golHash}})},
		{name: "up-inventory-empty", up: up(wire.Report{Inventory: &wire.Inventory{Hash: golHash}})},
		{name: "up-tasks", up: up(
			wire.Report{Task: &wire.TaskState{ID: golTask, State: wire.StateAccepted}},
			wire.Report{Task: &wire.TaskState{ID: golTask, State: wire.StateProgress, Percent: 40}},
			wire.Report{Task: &wire.TaskState{ID: golTask, State: wire.StateSucceeded}},
			wire.Report{Task: &wire.TaskState{ID: golOpen, State: wire.StateFailed, Code: wire.CodeInvalidState, Message: "The attempted operation cannot be performed in the current state (Powered on)."}},
		)},
		{name: "up-deflated", deflated: true, up: up(
			wire.Report{Host: ptr(golHost())}, wire.Report{VM: ptr(golVM())}, wire.Report{VM: ptr(golVM2())},
			wire.Report{Inventory: &wire.Inventory{VMs: []string{golVM().ID, golVM2().ID}, Hash: golHash}},
		)},
		{name: "down-welcome", down: &wire.Down{Version: 1, Welcome: &wire.Welcome{
			Time: golTime, Next: 20, Settings: wire.Settings{Window: 64, KeepAlive: 240, Reconcile: 600, Resend: 10000},
		}}},
		{name: "down-welcome-pending", down: &wire.Down{Version: 1, Welcome: &wire.Welcome{
			Time: golTime, Next: 1, Settings: wire.Settings{Window: 64, KeepAlive: 240, Reconcile: 600, Resend: 10000}, Pending: true,
		}}},
		{name: "down-welcome-deflate", down: &wire.Down{Version: 1, Welcome: &wire.Welcome{
			Time: golTime, Next: 20, Settings: wire.Settings{Window: 64, KeepAlive: 240, Reconcile: 600, Resend: 10000, Deflate: true},
		}}},
		{name: "down-receipt", down: &wire.Down{Version: 1, Receipt: &wire.Receipt{Epoch: 6021234567890123, Seq: 19}}},
		{name: "down-tasks", down: &wire.Down{Version: 1, Tasks: []wire.Task{{ID: golTask, Kind: wire.TaskVMPowerOn, VM: golVM().ID, Deadline: golTime.Add(15 * time.Minute)}}}},
		{name: "down-tasks-time", down: &wire.Down{Version: 1, Time: golTime, Tasks: []wire.Task{{ID: golTask, Kind: wire.TaskVMPowerOn, VM: golVM().ID, Deadline: golTime.Add(15 * time.Minute)}}}},
		{name: "down-cancels", down: &wire.Down{Version: 1, Cancels: []uuid.UUID{golTask}}},
		{name: "down-resend", down: &wire.Down{Version: 1, Resend: &wire.Resend{Epoch: 6021234567890123, Seq: 18}}},
		{name: "down-resync", down: &wire.Down{Version: 1, Resync: true}},
		{name: "down-error", down: &wire.Down{Version: 1, Error: &wire.Error{Code: wire.ErrorInvalid, Message: "vm id \"a b\": want 1 to 64 letters, digits, '.', '_' or '-'", Seq: 17}}},
		{name: "down-certificate", down: &wire.Down{Version: 1, Certificate: &wire.Certificate{Leaf: golLeaf, CAs: [][]byte{golCA}}}},
		{name: "down-certificate-cas", down: &wire.Down{Version: 1, Certificate: &wire.Certificate{CAs: [][]byte{golCA, golNextCA}}}},
		{name: "down-renew", down: &wire.Down{Version: 1, Renew: true}},
		{name: "down-error-renewal", down: &wire.Down{Version: 1, Error: &wire.Error{Code: wire.ErrorRenewal, Message: "certificate request refused: signature: not made by the request's own key"}}},
		{name: "down-greet", down: &wire.Down{Version: 1, Greet: true}},
		{name: "down-retired", down: &wire.Down{Version: 1, Retired: true}},
	}
}

func TestGolden(t *testing.T) {
	var names []string
	for _, g := range goldens() {
		names = append(names, g.name)
		t.Run(g.name, func(t *testing.T) {
			payload := g.payload(t)
			diag, err := cbor.Diagnose(payload)
			if err != nil {
				t.Fatal(err)
			}
			if g.deflated {
				plain, err := wire.EncodeUp(*g.up)
				if err != nil {
					t.Fatal(err)
				}
				inflated, err := cbor.Diagnose(plain)
				if err != nil {
					t.Fatal(err)
				}
				diag += "\n/ inflated: / " + inflated
			}
			d, err := wire.Describe(payload, wire.AnyDirection)
			if err != nil {
				t.Fatal(err)
			}
			if d.Problem != "" || len(d.Unknown) != 0 || d.Direction != g.direction() {
				t.Errorf("described as %s, problem %q, unknown %v", d.Direction, d.Problem, d.Unknown)
			}
			text, err := json.MarshalIndent(d, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			hexText := lines(hex.EncodeToString(payload))
			if *update {
				for ext, s := range map[string]string{".hex": hexText, ".diag": diag + "\n", ".json": string(text) + "\n"} {
					writeMissing(t, filepath.Join(goldenDir, g.name+ext), s)
				}
			}
			same(t, g.name+".hex", hexText)
			same(t, g.name+".diag", diag+"\n")
			same(t, g.name+".json", string(text)+"\n")

			// The stored bytes decode to the packet.
			stored := goldenBytes(t, g.name)
			if g.up != nil {
				got, err := wire.DecodeUp(stored)
				if diff := cmp.Diff(*g.up, got); diff != "" || err != nil {
					t.Errorf("%v, (-want +got):\n%s", err, diff)
				}
			} else {
				got, err := wire.DecodeDown(stored)
				if diff := cmp.Diff(*g.down, got); diff != "" || err != nil {
					t.Errorf("%v, (-want +got):\n%s", err, diff)
				}
			}
		})
	}
	files, err := filepath.Glob(filepath.Join(goldenDir, "*.hex"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if name := strings.TrimSuffix(filepath.Base(f), ".hex"); !slices.Contains(names, name) {
			t.Errorf("%s has no packet in the table: a golden is never removed", name)
		}
	}
}

// lines breaks hex into lines of 32 bytes.
func lines(s string) string {
	var b strings.Builder
	for c := range slices.Chunk([]byte(s), 64) {
		b.Write(c)
		b.WriteByte('\n')
	}
	return b.String()
}

func goldenBytes(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(goldenDir, name+".hex"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := hex.DecodeString(string(bytes.Join(bytes.Fields(text), nil)))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writeMissing(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func same(t *testing.T, name, got string) {
	t.Helper()
	want, err := os.ReadFile(filepath.Join(goldenDir, name))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

type future struct {
	rule    string
	payload []byte
}

// futures are packets of a later build: with keys that this one does not know.
func futures(t testing.TB) map[string]future {
	type m = map[int]any
	vm := m{1: "vm-1", 2: "a", 3: "hibernated", 10: "running", 14: "later", 99: []any{m{1: m{2: 3}}}}
	return map[string]future{
		"up": {"up", mustCBOR(t, m{
			1: 1, 3: 5, 8: m{1: "x"}, 4: []any{
				m{1: 1, 2: 1.5, 5: vm},
				m{1: 2, 2: nil, 12: m{1: "a kind of tomorrow"}},
				m{1: 3, 2: 1, 9: m{1: golTask[:], 2: "paused", 6: true}},
			},
		})},
		"down": {"down", mustCBOR(t, m{
			1: 1, 4: []any{m{1: golTask[:], 2: "vm.migrate", 4: 1.5, 5: "to"}}, 99: m{1: 2}, 2: m{1: 1, 2: 3, 3: m{1: 64, 2: 1, 3: 1, 4: 1, 6: "q"}},
		})},
	}
}
