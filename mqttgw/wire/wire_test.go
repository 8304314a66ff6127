package wire_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"
	"pgregory.net/rapid"

	"pallas/mqttgw/wire"
)

// Generators of packets within the limits.

func genText() *rapid.Generator[string] { return rapid.StringN(0, 20, 80) }

func genID() *rapid.Generator[string] { return rapid.StringMatching(`[A-Za-z0-9._-]{1,12}`) }

func genUUID() *rapid.Generator[uuid.UUID] {
	return rapid.Custom(func(t *rapid.T) uuid.UUID {
		return uuid.UUID(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "uuid"))
	})
}

// genTime draws what a device may hold: any zone, to the nanosecond, or none.
func genTime() *rapid.Generator[time.Time] {
	return rapid.Custom(func(t *rapid.T) time.Time {
		if rapid.IntRange(0, 9).Draw(t, "none") == 0 {
			return time.Time{}
		}
		at := time.Unix(rapid.Int64Range(-62135596799, 253402300798).Draw(t, "seconds"), rapid.Int64Range(0, 999_999_999).Draw(t, "nanos"))
		return at.In(time.FixedZone("", rapid.IntRange(-12, 12).Draw(t, "zone")*3600))
	})
}

func genDER() *rapid.Generator[[]byte] { return rapid.SliceOfN(rapid.Byte(), 1, 80) }

func genUnix() *rapid.Generator[int64] { return rapid.Int64Range(0, 253402300799) }

func genList[T any](g *rapid.Generator[T]) *rapid.Generator[[]T] {
	return rapid.Custom(func(t *rapid.T) []T {
		s := rapid.SliceOfN(g, 0, 3).Draw(t, "list")
		if len(s) == 0 && rapid.Bool().Draw(t, "nil") {
			return nil
		}
		return s
	})
}

func genPtr[T any](g *rapid.Generator[T]) *rapid.Generator[*T] {
	return rapid.Custom(func(t *rapid.T) *T {
		if rapid.Bool().Draw(t, "nil") {
			return nil
		}
		return ptr(g.Draw(t, "value"))
	})
}

func genDisk() *rapid.Generator[wire.Disk] {
	return rapid.Custom(func(t *rapid.T) wire.Disk {
		return wire.Disk{
			Key: rapid.Int32().Draw(t, "key"), Label: genText().Draw(t, "label"), CapacityMiB: rapid.Int64().Draw(t, "capacity"),
			Datastore: genText().Draw(t, "datastore"), File: genText().Draw(t, "file"), Thin: rapid.Bool().Draw(t, "thin"),
		}
	})
}

func genNIC() *rapid.Generator[wire.NIC] {
	return rapid.Custom(func(t *rapid.T) wire.NIC {
		return wire.NIC{
			Key: rapid.Int32().Draw(t, "key"), Label: genText().Draw(t, "label"), MAC: genText().Draw(t, "mac"),
			Network: genText().Draw(t, "network"), Connected: rapid.Bool().Draw(t, "connected"),
		}
	})
}

func genVM() *rapid.Generator[wire.VM] {
	return rapid.Custom(func(t *rapid.T) wire.VM {
		return wire.VM{
			ID: genID().Draw(t, "id"), Name: genText().Draw(t, "name"),
			Power: rapid.SampledFrom([]string{wire.PowerOn, wire.PowerOff, wire.PowerSuspended, wire.PowerUnknown, "new"}).Draw(t, "power"),
			CPUs:  rapid.Int().Draw(t, "cpus"), MemoryMiB: rapid.Int64().Draw(t, "memory"), GuestID: genText().Draw(t, "guestId"),
			GuestName: genText().Draw(t, "guestName"), Hostname: genText().Draw(t, "hostname"), IPs: genList(genText()).Draw(t, "ips"),
			Tools: rapid.SampledFrom([]string{wire.ToolsRunning, wire.ToolsNotRunning, "new"}).Draw(t, "tools"),
			Disks: genList(genDisk()).Draw(t, "disks"), NICs: genList(genNIC()).Draw(t, "nics"), BootTime: genUnix().Draw(t, "boot"),
		}
	})
}

func genHost() *rapid.Generator[wire.Host] {
	return rapid.Custom(func(t *rapid.T) wire.Host {
		text := func(name string) string { return genText().Draw(t, name) }
		return wire.Host{
			Name: text("name"), Vendor: text("vendor"), Model: text("model"), Serial: text("serial"), UUID: text("uuid"),
			Product: text("product"), Version: text("version"), Build: text("build"), CPUModel: text("cpuModel"),
			CPUSockets: rapid.Int().Draw(t, "sockets"), CPUCores: rapid.Int().Draw(t, "cores"), CPUThreads: rapid.Int().Draw(t, "threads"),
			CPUMHz: rapid.Int().Draw(t, "mhz"), MemoryMiB: rapid.Int64().Draw(t, "memory"), BootTime: genUnix().Draw(t, "boot"),
			Maintenance: rapid.Bool().Draw(t, "maintenance"),
			License: wire.License{
				Name: text("licence"), Edition: text("edition"), Expires: genUnix().Draw(t, "expires"),
				Writable: rapid.Bool().Draw(t, "writable"), Reason: text("reason"),
			},
			Datastores: genList(rapid.Custom(func(t *rapid.T) wire.Datastore {
				return wire.Datastore{ID: genID().Draw(t, "id"), Name: genText().Draw(t, "name"), Type: genText().Draw(t, "type"), CapacityMiB: rapid.Int64().Draw(t, "capacity"), FreeMiB: rapid.Int64().Draw(t, "free"), Accessible: rapid.Bool().Draw(t, "accessible")}
			})).Draw(t, "datastores"),
			Networks: genList(rapid.Custom(func(t *rapid.T) wire.Network {
				return wire.Network{ID: genID().Draw(t, "id"), Name: genText().Draw(t, "name")}
			})).Draw(t, "networks"),
		}
	})
}

func genPatch() *rapid.Generator[wire.VMPatch] {
	return rapid.Custom(func(t *rapid.T) wire.VMPatch {
		old, now := genVM().Draw(t, "old"), genVM().Draw(t, "now")
		now.ID = old.ID
		p, _ := wire.DiffVM(old, now)
		return p
	})
}

func genHash() *rapid.Generator[[]byte] {
	return rapid.SliceOfN(rapid.Byte(), wire.HashSize, wire.HashSize)
}

func genReport() *rapid.Generator[wire.Report] {
	return rapid.Custom(func(t *rapid.T) wire.Report {
		r := wire.Report{Time: genTime().Draw(t, "time")}
		switch rapid.IntRange(0, 7).Draw(t, "kind") {
		case 0:
			r.Host = ptr(genHost().Draw(t, "host"))
		case 1:
			r.Condition = &wire.Condition{Condition: genText().Draw(t, "condition"), Message: genText().Draw(t, "message")}
		case 2:
			r.VM = ptr(genVM().Draw(t, "vm"))
		case 3:
			r.VMPatch = ptr(genPatch().Draw(t, "patch"))
		case 4:
			r.VMGone = &wire.VMGone{ID: genID().Draw(t, "id")}
		case 5:
			r.Inventory = &wire.Inventory{VMs: genList(genID()).Draw(t, "vms"), Hash: genHash().Draw(t, "hash")}
		case 6:
			r.Task = &wire.TaskState{ID: genUUID().Draw(t, "id"), State: genText().Draw(t, "state"), Percent: rapid.Int().Draw(t, "percent"), Code: genText().Draw(t, "code"), Message: genText().Draw(t, "message")}
		}
		return r
	})
}

const maxNumber = uint64(1)<<53 - 1

func genUp() *rapid.Generator[wire.Up] {
	return rapid.Custom(func(t *rapid.T) wire.Up {
		u := wire.Up{Version: wire.Version, Epoch: rapid.Uint64Range(1, maxNumber).Draw(t, "epoch")}
		if rapid.Bool().Draw(t, "hello") {
			first := rapid.Uint64Range(1, maxNumber).Draw(t, "first")
			u.Hello = &wire.Hello{
				Agent: genText().Draw(t, "agent"), Epoch: rapid.Uint64Range(1, maxNumber).Draw(t, "epoch"), First: first,
				Next: rapid.Uint64Range(first, maxNumber).Draw(t, "next"), Time: genTime().Draw(t, "time"), Open: genList(genUUID()).Draw(t, "open"),
			}
			if rapid.Bool().Draw(t, "inventory") {
				u.Hello.Inventory = genHash().Draw(t, "hash")
			}
			if rapid.Bool().Draw(t, "known instance") {
				u.Hello.Instance = rapid.SliceOfN(rapid.Byte(), wire.InstanceSize, wire.InstanceSize).Draw(t, "instance")
			}
		}
		u.Reports = genList(genReport()).Draw(t, "reports")
		first := rapid.Uint64Range(1, 1<<53-10).Draw(t, "first")
		for i := range u.Reports {
			u.Reports[i].Seq = first + uint64(i)
		}
		u.Bye = genPtr(rapid.Custom(func(t *rapid.T) wire.Bye { return wire.Bye{Reason: genText().Draw(t, "reason")} })).Draw(t, "bye")
		u.Renewal = genPtr(rapid.Custom(func(t *rapid.T) wire.Renewal { return wire.Renewal{CSR: genDER().Draw(t, "csr")} })).Draw(t, "renewal")
		u.Anchors = genList(rapid.SliceOfN(rapid.Byte(), wire.AnchorSize, wire.AnchorSize)).Draw(t, "anchors")
		return u
	})
}

func genDown() *rapid.Generator[wire.Down] {
	number := rapid.Uint64Range(0, maxNumber)
	return rapid.Custom(func(t *rapid.T) wire.Down {
		return wire.Down{
			Version: wire.Version,
			Welcome: genPtr(rapid.Custom(func(t *rapid.T) wire.Welcome {
				return wire.Welcome{
					Time: genTime().Draw(t, "time"), Next: number.Draw(t, "next"), Pending: rapid.Bool().Draw(t, "pending"),
					Settings: wire.Settings{Window: rapid.Int().Draw(t, "window"), KeepAlive: rapid.Int().Draw(t, "keepAlive"), Reconcile: rapid.Int().Draw(t, "reconcile"), Resend: rapid.Int().Draw(t, "resend"), Deflate: rapid.Bool().Draw(t, "deflate")},
				}
			})).Draw(t, "welcome"),
			Receipt: genPtr(rapid.Custom(func(t *rapid.T) wire.Receipt {
				return wire.Receipt{Epoch: number.Draw(t, "epoch"), Seq: number.Draw(t, "seq")}
			})).Draw(t, "receipt"),
			Tasks: genList(rapid.Custom(func(t *rapid.T) wire.Task {
				return wire.Task{ID: genUUID().Draw(t, "id"), Kind: genText().Draw(t, "kind"), VM: genText().Draw(t, "vm"), Deadline: genTime().Draw(t, "deadline")}
			})).Draw(t, "tasks"),
			Cancels: genList(genUUID()).Draw(t, "cancels"),
			Resend: genPtr(rapid.Custom(func(t *rapid.T) wire.Resend {
				return wire.Resend{Epoch: number.Draw(t, "epoch"), Seq: number.Draw(t, "seq")}
			})).Draw(t, "resend"),
			Resync: rapid.Bool().Draw(t, "resync"), Greet: rapid.Bool().Draw(t, "greet"), Renew: rapid.Bool().Draw(t, "renew"), Retired: rapid.Bool().Draw(t, "retired"),
			Certificate: genPtr(rapid.Custom(func(t *rapid.T) wire.Certificate {
				c := wire.Certificate{CAs: rapid.SliceOfN(genDER(), 1, 2).Draw(t, "cas")}
				if rapid.Bool().Draw(t, "leaf") {
					c.Leaf = genDER().Draw(t, "leaf")
				}
				return c
			})).Draw(t, "certificate"),
			Error: genPtr(rapid.Custom(func(t *rapid.T) wire.Error {
				return wire.Error{Code: genText().Draw(t, "code"), Message: genText().Draw(t, "message"), Seq: number.Draw(t, "seq")}
			})).Draw(t, "error"),
		}
	})
}

// sameInstant compares times as the wire keeps them: to two microseconds, and
// coarser far from 1970, where a float has fewer digits.
var sameInstant = cmp.Comparer(func(a, b time.Time) bool {
	if a.IsZero() || b.IsZero() {
		return a.IsZero() == b.IsZero()
	}
	tolerance := 2*time.Microsecond + time.Duration(float64(a.Unix())*1e9/(1<<51)).Abs()
	return a.Sub(b).Abs() <= tolerance
})

// stable compares times exactly within a lifetime of ours, to a microsecond.
var stable = cmp.Comparer(func(a, b time.Time) bool {
	if a.Year() >= 1902 && a.Year() <= 2100 {
		return a.Equal(b)
	}
	return cmp.Equal(a, b, sameInstant)
})

func TestRoundTrip(t *testing.T) {
	options := cmp.Options{cmpopts.EquateEmpty(), sameInstant}
	rapid.Check(t, func(t *rapid.T) {
		up := genUp().Draw(t, "up")
		b, err := wire.EncodeUp(up)
		if err != nil {
			t.Fatal(err)
		}
		gotUp, err := wire.DecodeUp(b)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(up, gotUp, options); diff != "" {
			t.Fatalf("up (-want +got):\n%s", diff)
		}
		down := genDown().Draw(t, "down")
		if b, err = wire.EncodeDown(down); err != nil {
			t.Fatal(err)
		}
		gotDown, err := wire.DecodeDown(b)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(down, gotDown, options); diff != "" {
			t.Fatalf("down (-want +got):\n%s", diff)
		}
	})
}

// What was decoded encodes to the same bytes, again and again: a stored report
// does not drift.
func TestDeterminism(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		up := genUp().Draw(t, "up")
		first, err := wire.EncodeUp(up)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := wire.EncodeUp(up); err != nil || !bytes.Equal(first, again) {
			t.Fatal("the same packet has two encodings")
		}
		decoded, err := wire.DecodeUp(first)
		if err != nil {
			t.Fatal(err)
		}
		second, err := wire.EncodeUp(decoded)
		if err != nil {
			t.Fatal(err)
		}
		twice, err := wire.DecodeUp(second)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(decoded, twice, stable); diff != "" {
			t.Fatalf("drifts (-first +second):\n%s", diff)
		}
	})
}

func TestTimes(t *testing.T) {
	zone := time.FixedZone("CET", 3600)
	for name, tc := range map[string]struct{ in, want time.Time }{
		"UTC":           {golTime, golTime},
		"another zone":  {golTime.In(zone), golTime},
		"nanoseconds":   {time.Date(2026, 1, 1, 0, 0, 0, 123_456_789, time.UTC), time.Date(2026, 1, 1, 0, 0, 0, 123_457_000, time.UTC)},
		"whole seconds": {time.Date(2026, 1, 1, 0, 0, 0, 0, zone), time.Date(2025, 12, 31, 23, 0, 0, 0, time.UTC)},
		"none":          {time.Time{}, time.Time{}},
		"1970":          {time.Unix(0, 0), time.Unix(0, 0).UTC()},
		"before 1970":   {time.Date(1969, 7, 20, 20, 17, 40, 0, time.UTC), time.Date(1969, 7, 20, 20, 17, 40, 0, time.UTC)},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := wire.EncodeUp(wire.Up{Version: 1, Hello: &wire.Hello{Epoch: 1, First: 1, Next: 1, Time: tc.in}})
			if err != nil {
				t.Fatal(err)
			}
			u, err := wire.DecodeUp(b)
			if err != nil {
				t.Fatal(err)
			}
			if got := u.Hello.Time; !got.Equal(tc.want) || got.Location() != time.UTC {
				t.Errorf("%v, want %v", got, tc.want)
			}
		})
	}
	// Microseconds survive exactly, as the event log needs them.
	rapid.Check(t, func(t *rapid.T) {
		at := time.UnixMicro(rapid.Int64Range(0, 4102444800_000000).Draw(t, "micros")).UTC()
		b, err := wire.EncodeDown(wire.Down{Version: 1, Welcome: &wire.Welcome{Time: at}})
		if err != nil {
			t.Fatal(err)
		}
		d, err := wire.DecodeDown(b)
		if err != nil || !d.Welcome.Time.Equal(at) {
			t.Fatalf("%v (%v), want %v", d.Welcome, err, at)
		}
	})
}

// A patch says what became empty: a pointer to an empty list or text is not a
// nil pointer.
func TestPatchKeepsEmptiness(t *testing.T) {
	for _, empty := range []*[]string{{}, ptr([]string(nil))} {
		p := wire.VMPatch{ID: "vm", IPs: empty, Name: ptr(""), CPUs: ptr(0), Disks: &[]wire.Disk{}}
		b, err := wire.EncodeUp(*up(wire.Report{VMPatch: &p}))
		if err != nil {
			t.Fatal(err)
		}
		u, err := wire.DecodeUp(b)
		if err != nil {
			t.Fatal(err)
		}
		got := *u.Reports[0].VMPatch
		if got.IPs == nil || len(*got.IPs) != 0 || got.Disks == nil || got.Name == nil || got.CPUs == nil || got.NICs != nil || got.Power != nil {
			t.Errorf("got %+v", got)
		}
		vm := got.Apply(golVM())
		if len(vm.IPs) != 0 || len(vm.Disks) != 0 || vm.Name != "" || vm.CPUs != 0 || len(vm.NICs) != 1 || vm.Power != wire.PowerOn {
			t.Errorf("applied: %+v", vm)
		}
	}
}

func TestDiffAndApply(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		old, now := genVM().Draw(t, "old"), genVM().Draw(t, "now")
		now.ID = old.ID
		p, changed := wire.DiffVM(old, now)
		if p.ID != old.ID {
			t.Fatal("the patch is for another machine")
		}
		equal := cmp.Equal(old, now, cmpopts.EquateEmpty())
		if changed == equal {
			t.Fatalf("changed %v, equal %v", changed, equal)
		}
		// Over the wire, as the manager applies it.
		b, err := wire.EncodeUp(*up(wire.Report{VMPatch: &p}))
		if err != nil {
			t.Fatal(err)
		}
		u, err := wire.DecodeUp(b)
		if err != nil {
			t.Fatal(err)
		}
		before := old
		if diff := cmp.Diff(now, u.Reports[0].VMPatch.Apply(old), cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
		if !cmp.Equal(before, old) {
			t.Fatal("Apply changed its argument")
		}
		if p, changed := wire.DiffVM(now, now); changed || !cmp.Equal(p, wire.VMPatch{ID: now.ID}) {
			t.Fatal("a machine differs from itself")
		}
		// A patch holds what changed and nothing else.
		same := old
		same.Name = old.Name + "x"
		if p, _ := wire.DiffVM(old, same); !cmp.Equal(p, wire.VMPatch{ID: old.ID, Name: &same.Name}) {
			t.Fatalf("a changed name gives %+v", p)
		}
	})
}

func TestHashInventory(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		host := genHost().Draw(t, "host")
		vms := rapid.SliceOfNDistinct(genVM(), 0, 4, func(v wire.VM) string { return v.ID }).Draw(t, "vms")
		want := wire.HashInventory(host, vms)
		if len(want) != wire.HashSize {
			t.Fatalf("%d bytes", len(want))
		}
		before := slices.Clone(vms)
		shuffled := rapid.Permutation(vms).Draw(t, "order")
		if !bytes.Equal(want, wire.HashInventory(host, shuffled)) {
			t.Fatal("depends on the order")
		}
		if !cmp.Equal(before, vms) {
			t.Fatal("the argument was sorted in place")
		}
		// Both sides compute it: one from the host, one from what was sent.
		over := func(v wire.VM) wire.VM {
			b, err := wire.EncodeUp(*up(wire.Report{VM: &v}))
			if err != nil {
				t.Fatal(err)
			}
			u, err := wire.DecodeUp(b)
			if err != nil {
				t.Fatal(err)
			}
			return *u.Reports[0].VM
		}
		flipped := make([]wire.VM, len(vms))
		for i, v := range vms {
			flipped[i] = over(v)
			if len(v.IPs) == 0 {
				flipped[i].IPs = []string{}
			}
			if len(v.Disks) == 0 {
				flipped[i].Disks = nil
			}
		}
		if !bytes.Equal(want, wire.HashInventory(host, flipped)) {
			t.Fatal("depends on nil or empty")
		}
		if len(vms) > 0 {
			if bytes.Equal(want, wire.HashInventory(host, vms[1:])) {
				t.Fatal("a missing machine goes unnoticed")
			}
			changed := slices.Clone(vms)
			changed[0].Name += "x"
			if bytes.Equal(want, wire.HashInventory(host, changed)) {
				t.Fatal("a changed name goes unnoticed")
			}
		}
		host.Maintenance = !host.Maintenance
		if bytes.Equal(want, wire.HashInventory(host, vms)) {
			t.Fatal("a changed host goes unnoticed")
		}
	})
	// The value is part of the protocol.
	if got, want := hexOf(wire.HashInventory(golHost(), []wire.VM{golVM()})), "35ac6801a29a40e30afb1c56563d68a3"; got != want {
		t.Errorf("hash of the golden host %s, want %s", got, want)
	}
	if got, want := hexOf(wire.HashInventory(wire.Host{}, nil)), hexOf(wire.HashInventory(wire.Host{}, []wire.VM{})); got != want {
		t.Errorf("no machines: %s and %s", got, want)
	}
}

func TestLimits(t *testing.T) {
	text := func(n int) string { return strings.Repeat("x", n) }
	host := func(f func(*wire.Host)) *wire.Up { h := golHost(); f(&h); return up(wire.Report{Host: &h}) }
	vm := func(f func(*wire.VM)) *wire.Up { v := golVM(); f(&v); return up(wire.Report{VM: &v}) }
	hello := func(f func(*wire.Hello)) *wire.Up {
		h := wire.Hello{Agent: "1", Epoch: 5, First: 3, Next: 4, Time: golTime}
		f(&h)
		return &wire.Up{Version: 1, Hello: &h}
	}
	reports := func(n int) *wire.Up {
		rs := make([]wire.Report, n)
		for i := range rs {
			rs[i].VMGone = &wire.VMGone{ID: "v"}
		}
		return up(rs...)
	}
	numbered := func(seqs ...uint64) *wire.Up {
		u := &wire.Up{Version: 1, Epoch: 1}
		for _, s := range seqs {
			u.Reports = append(u.Reports, wire.Report{Seq: s, VMGone: &wire.VMGone{ID: "v"}})
		}
		return u
	}
	// 2,000 ids as long as a UUID fit into a packet.
	ids := func(n int) *wire.Up {
		return up(wire.Report{Inventory: &wire.Inventory{VMs: slices.Repeat([]string{golVM().ID}, n), Hash: golHash}})
	}
	beyond := time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, tc := range []struct {
		name string
		up   *wire.Up
		down *wire.Down
		want error
	}{
		{name: "version 0", up: &wire.Up{}, want: wire.ErrVersion},
		{name: "version after ours", up: &wire.Up{Version: wire.Version + 1}, want: wire.ErrVersion},
		{name: "nothing but a version", up: &wire.Up{Version: 1}},
		{name: "reports at the limit", up: reports(wire.MaxReports)},
		{name: "reports beyond", up: reports(wire.MaxReports + 1), want: wire.ErrTooLarge},
		{name: "no epoch", up: &wire.Up{Version: 1, Reports: []wire.Report{{Seq: 1}}}, want: wire.ErrMalformed},
		{name: "epoch at the limit", up: &wire.Up{Version: 1, Epoch: maxNumber}},
		{name: "epoch beyond", up: &wire.Up{Version: 1, Epoch: maxNumber + 1}, want: wire.ErrMalformed},
		{name: "sequence 0", up: numbered(0), want: wire.ErrMalformed},
		{name: "sequence at the limit", up: numbered(maxNumber)},
		{name: "sequence beyond", up: numbered(maxNumber + 1), want: wire.ErrMalformed},
		{name: "sequences in order", up: numbered(7, 8, 9)},
		{name: "a gap", up: numbered(7, 9), want: wire.ErrMalformed},
		{name: "twice the same", up: numbered(7, 7), want: wire.ErrMalformed},
		{name: "backwards", up: numbered(8, 7), want: wire.ErrMalformed},
		{name: "two parts", up: up(wire.Report{VMGone: &wire.VMGone{ID: "v"}, Host: &wire.Host{}}), want: wire.ErrMalformed},
		{name: "report beyond year 9999", up: &wire.Up{Version: 1, Epoch: 1, Reports: []wire.Report{{Seq: 1, Time: beyond}}}, want: wire.ErrMalformed},
		{name: "hello", up: hello(func(*wire.Hello) {})},
		{name: "hello without an epoch", up: hello(func(h *wire.Hello) { h.Epoch = 0 }), want: wire.ErrMalformed},
		{name: "hello with an epoch beyond", up: hello(func(h *wire.Hello) { h.Epoch = maxNumber + 1 }), want: wire.ErrMalformed},
		{name: "hello without first", up: hello(func(h *wire.Hello) { h.First = 0 }), want: wire.ErrMalformed},
		{name: "hello with next before first", up: hello(func(h *wire.Hello) { h.Next = 2 }), want: wire.ErrMalformed},
		{name: "hello with next beyond", up: hello(func(h *wire.Hello) { h.Next = maxNumber + 1 }), want: wire.ErrMalformed},
		{name: "hello with a short hash", up: hello(func(h *wire.Hello) { h.Inventory = golHash[:15] }), want: wire.ErrMalformed},
		{name: "hello with a long hash", up: hello(func(h *wire.Hello) { h.Inventory = make([]byte, 17) }), want: wire.ErrMalformed},
		{name: "hello with an agent at the limit", up: hello(func(h *wire.Hello) { h.Agent = text(wire.MaxText) })},
		{name: "hello with an agent beyond", up: hello(func(h *wire.Hello) { h.Agent = text(wire.MaxText + 1) }), want: wire.ErrTooLarge},
		{name: "hello with open tasks at the limit", up: hello(func(h *wire.Hello) { h.Open = make([]uuid.UUID, wire.MaxItems) })},
		{name: "hello with open tasks beyond", up: hello(func(h *wire.Hello) { h.Open = make([]uuid.UUID, wire.MaxItems+1) }), want: wire.ErrTooLarge},
		{name: "hello beyond year 9999", up: hello(func(h *wire.Hello) { h.Time = beyond }), want: wire.ErrMalformed},
		{name: "bye at the limit", up: &wire.Up{Version: 1, Bye: &wire.Bye{Reason: text(wire.MaxText)}}},
		{name: "bye beyond", up: &wire.Up{Version: 1, Bye: &wire.Bye{Reason: text(wire.MaxText + 1)}}, want: wire.ErrTooLarge},
		{name: "host text at the limit", up: host(func(h *wire.Host) { h.CPUModel = text(wire.MaxText) })},
		{name: "host text beyond", up: host(func(h *wire.Host) { h.CPUModel = text(wire.MaxText + 1) }), want: wire.ErrTooLarge},
		{name: "licence reason beyond", up: host(func(h *wire.Host) { h.License.Reason = text(wire.MaxText + 1) }), want: wire.ErrTooLarge},
		{name: "datastores at the limit", up: host(func(h *wire.Host) { h.Datastores = make([]wire.Datastore, wire.MaxItems) })},
		{name: "datastores beyond", up: host(func(h *wire.Host) { h.Datastores = make([]wire.Datastore, wire.MaxItems+1) }), want: wire.ErrTooLarge},
		{name: "datastore text beyond", up: host(func(h *wire.Host) { h.Datastores[0].Name = text(wire.MaxText + 1) }), want: wire.ErrTooLarge},
		{name: "networks beyond", up: host(func(h *wire.Host) { h.Networks = make([]wire.Network, wire.MaxItems+1) }), want: wire.ErrTooLarge},
		{name: "network text beyond", up: host(func(h *wire.Host) { h.Networks[0].ID = text(wire.MaxText + 1) }), want: wire.ErrTooLarge},
		{name: "host booted at the limit", up: host(func(h *wire.Host) { h.BootTime = 253402300799 })},
		{name: "host booted beyond", up: host(func(h *wire.Host) { h.BootTime = 253402300800 }), want: wire.ErrMalformed},
		{name: "host booted before 1970", up: host(func(h *wire.Host) { h.BootTime = -1 }), want: wire.ErrMalformed},
		{name: "licence expires beyond", up: host(func(h *wire.Host) { h.License.Expires = math.MaxInt64 }), want: wire.ErrMalformed},
		{name: "condition beyond", up: up(wire.Report{Condition: &wire.Condition{Message: text(wire.MaxText + 1)}}), want: wire.ErrTooLarge},
		{name: "vm name at the limit", up: vm(func(v *wire.VM) { v.Name = text(wire.MaxText) })},
		{name: "vm name beyond", up: vm(func(v *wire.VM) { v.Name = text(wire.MaxText + 1) }), want: wire.ErrTooLarge},
		{name: "addresses at the limit", up: vm(func(v *wire.VM) { v.IPs = make([]string, wire.MaxItems) })},
		{name: "addresses beyond", up: vm(func(v *wire.VM) { v.IPs = make([]string, wire.MaxItems+1) }), want: wire.ErrTooLarge},
		{name: "an address beyond", up: vm(func(v *wire.VM) { v.IPs = []string{text(wire.MaxText + 1)} }), want: wire.ErrTooLarge},
		{name: "disks at the limit", up: vm(func(v *wire.VM) { v.Disks = make([]wire.Disk, wire.MaxItems) })},
		{name: "disks beyond", up: vm(func(v *wire.VM) { v.Disks = make([]wire.Disk, wire.MaxItems+1) }), want: wire.ErrTooLarge},
		{name: "disk text beyond", up: vm(func(v *wire.VM) { v.Disks[0].File = text(wire.MaxText + 1) }), want: wire.ErrTooLarge},
		{name: "nics beyond", up: vm(func(v *wire.VM) { v.NICs = make([]wire.NIC, wire.MaxItems+1) }), want: wire.ErrTooLarge},
		{name: "nic text beyond", up: vm(func(v *wire.VM) { v.NICs[0].MAC = text(wire.MaxText + 1) }), want: wire.ErrTooLarge},
		{name: "vm booted beyond", up: vm(func(v *wire.VM) { v.BootTime = 253402300800 }), want: wire.ErrMalformed},
		{name: "patch text beyond", up: up(wire.Report{VMPatch: &wire.VMPatch{ID: "v", Hostname: ptr(text(wire.MaxText + 1))}}), want: wire.ErrTooLarge},
		{name: "patch list beyond", up: up(wire.Report{VMPatch: &wire.VMPatch{ID: "v", IPs: ptr(make([]string, wire.MaxItems+1))}}), want: wire.ErrTooLarge},
		{name: "patch boot beyond", up: up(wire.Report{VMPatch: &wire.VMPatch{ID: "v", BootTime: ptr(int64(-1))}}), want: wire.ErrMalformed},
		{name: "gone id beyond", up: up(wire.Report{VMGone: &wire.VMGone{ID: text(wire.MaxText + 1)}}), want: wire.ErrTooLarge},
		{name: "inventory at the limit", up: ids(wire.MaxVMs)},
		{name: "inventory beyond", up: ids(wire.MaxVMs + 1), want: wire.ErrTooLarge},
		{name: "inventory without a hash", up: up(wire.Report{Inventory: &wire.Inventory{}}), want: wire.ErrMalformed},
		{name: "task message at the limit", up: up(wire.Report{Task: &wire.TaskState{Message: text(wire.MaxText)}})},
		{name: "task message beyond", up: up(wire.Report{Task: &wire.TaskState{Message: text(wire.MaxText + 1)}}), want: wire.ErrTooLarge},
		{name: "down version 0", down: &wire.Down{}, want: wire.ErrVersion},
		{name: "down of a later version", down: &wire.Down{Version: 7}},
		{name: "tasks at the limit", down: &wire.Down{Version: 1, Tasks: make([]wire.Task, wire.MaxTasks)}},
		{name: "tasks beyond", down: &wire.Down{Version: 1, Tasks: make([]wire.Task, wire.MaxTasks+1)}, want: wire.ErrTooLarge},
		{name: "cancels beyond", down: &wire.Down{Version: 1, Cancels: make([]uuid.UUID, wire.MaxItems+1)}, want: wire.ErrTooLarge},
		{name: "task kind beyond", down: &wire.Down{Version: 1, Tasks: []wire.Task{{Kind: text(wire.MaxText + 1)}}}, want: wire.ErrTooLarge},
		{name: "deadline beyond", down: &wire.Down{Version: 1, Tasks: []wire.Task{{Deadline: beyond}}}, want: wire.ErrMalformed},
		{name: "welcome beyond", down: &wire.Down{Version: 1, Welcome: &wire.Welcome{Time: beyond}}, want: wire.ErrMalformed},
		{name: "error message beyond", down: &wire.Down{Version: 1, Error: &wire.Error{Message: text(wire.MaxText + 1)}}, want: wire.ErrTooLarge},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var b []byte
			var err error
			if tc.up != nil {
				if b, err = wire.EncodeUp(*tc.up); err == nil {
					_, err = wire.DecodeUp(b)
				}
			} else {
				if b, err = wire.EncodeDown(*tc.down); err == nil {
					_, err = wire.DecodeDown(b)
				}
			}
			if !errors.Is(err, tc.want) || (tc.want == nil && err != nil) {
				t.Errorf("%v, want %v", err, tc.want)
			}
			if err != nil && len(err.Error()) > 300 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
		})
	}
}

func TestPacketSize(t *testing.T) {
	big := strings.Repeat("x", wire.MaxText)
	rs := make([]wire.Report, 40)
	for i := range rs {
		rs[i].VM = &wire.VM{Name: big}
	}
	if _, err := wire.EncodeUp(*up(rs...)); !errors.Is(err, wire.ErrTooLarge) {
		t.Errorf("encode: %v", err)
	}
	if _, err := wire.DecodeUp(make([]byte, wire.MaxPacket+1)); !errors.Is(err, wire.ErrTooLarge) {
		t.Errorf("decode: %v", err)
	}
	if _, err := wire.DecodeDown(make([]byte, wire.MaxPacket+1)); !errors.Is(err, wire.ErrTooLarge) {
		t.Errorf("decode: %v", err)
	}
}

// Either side may be newer.
func TestFutures(t *testing.T) {
	f := futures(t)
	u, err := wire.DecodeUp(f["up"].payload)
	if err != nil {
		t.Fatal(err)
	}
	var known []bool
	for _, r := range u.Reports {
		known = append(known, r.Known())
	}
	if !slices.Equal(known, []bool{true, false, true}) || u.Reports[1].Seq != 2 {
		t.Errorf("known %v", known)
	}
	if u.Reports[0].VM.Power != "hibernated" || u.Reports[2].Task.State != "paused" {
		t.Error("words of a later version were lost")
	}
	d, err := wire.DecodeDown(f["down"].payload)
	if err != nil {
		t.Fatal(err)
	}
	if d.Tasks[0].Kind != "vm.migrate" || d.Welcome.Settings.Window != 64 {
		t.Errorf("%+v", d)
	}
	// A later version is called that, even if a field changed its type.
	later := mustCBOR(t, map[int]any{1: 2, 3: "an epoch of text"})
	if _, err := wire.DecodeUp(later); !errors.Is(err, wire.ErrVersion) {
		t.Errorf("%v, want ErrVersion", err)
	}
	if _, err := wire.DecodeUp(mustCBOR(t, map[int]any{1: 1, 3: "an epoch of text"})); !errors.Is(err, wire.ErrMalformed) {
		t.Errorf("%v, want ErrMalformed", err)
	}
}

// garbage is what no device of ours sends.
func garbage(t testing.TB) map[string][]byte {
	t.Helper()
	deep := append(bytes.Repeat([]byte{0x81}, 60_000), 0x01)
	deepMap := append([]byte{0xa2, 0x01, 0x01, 0x06}, append(bytes.Repeat([]byte{0xa1, 0x01}, 30_000), 0x01)...)
	return map[string][]byte{
		"empty":                    nil,
		"text":                     []byte("hello"),
		"an integer":               {0x01},
		"half a packet":            goldenBytes(t, "up-vm")[:40],
		"something behind":         append(goldenBytes(t, "up-bye"), 0x00),
		"deep arrays":              deep,
		"deep in an unknown key":   deepMap,
		"array of 2^32 reports":    {0xa2, 0x01, 0x01, 0x04, 0x9b, 0, 0, 0, 1, 0, 0, 0, 0},
		"text of 2^62 bytes":       {0xa2, 0x01, 0x01, 0x05, 0xa1, 0x01, 0x7b, 0x40, 0, 0, 0, 0, 0, 0, 0},
		"indefinite length":        {0xbf, 0x01, 0x01, 0xff},
		"the same key twice":       {0xa2, 0x01, 0x01, 0x01, 0x01},
		"a tag":                    {0xa1, 0x01, 0xc1, 0x01},
		"invalid UTF-8":            {0xa2, 0x01, 0x01, 0x05, 0xa1, 0x01, 0x61, 0xff},
		"a version of 2^70":        {0xa1, 0x01, 0xc2, 0x49, 0x40, 0, 0, 0, 0, 0, 0, 0, 0},
		"an id of 15 bytes":        mustCBOR(t, map[int]any{1: 1, 5: []any{make([]byte, 15)}}),
		"an array of 5,000 zeroes": mustCBOR(t, map[int]any{1: 1, 99: make([]int, 5000)}),
		"65 keys":                  mustCBOR(t, map[int]any{1: 1, 99: manyKeys(65)}),
	}
}

// What is no packet is refused quickly and without much memory.
func TestGarbage(t *testing.T) {
	for name, b := range garbage(t) {
		t.Run(name, func(t *testing.T) {
			for direction, decode := range map[string]func([]byte) error{
				"up":   func(b []byte) error { _, err := wire.DecodeUp(b); return err },
				"down": func(b []byte) error { _, err := wire.DecodeDown(b); return err },
			} {
				if name == "an id of 15 bytes" && direction == "up" {
					continue // there it is another field
				}
				err := decode(b)
				if !errors.Is(err, wire.ErrMalformed) {
					t.Errorf("%s: %v, want ErrMalformed", direction, err)
				}
				if n := testing.AllocsPerRun(10, func() { _ = decode(b) }); n > 40 {
					t.Errorf("%s: %v allocations", direction, n)
				}
			}
		})
	}
}

func manyKeys(n int) map[int]int {
	m := map[int]int{}
	for i := range n {
		m[i+1] = i
	}
	return m
}

func TestClip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := string(rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "bytes")) + strings.Repeat(rapid.SampledFrom([]string{"", "x", "é", "€", "🚀"}).Draw(t, "rune"), rapid.IntRange(0, 2100).Draw(t, "n"))
		got := wire.Clip(s)
		if !utf8.ValidString(got) || len(got) > wire.MaxText {
			t.Fatalf("%d bytes, valid %v", len(got), utf8.ValidString(got))
		}
		if utf8.ValidString(s) && len(s) <= wire.MaxText && got != s {
			t.Fatal("changed what was fit")
		}
		b, err := wire.EncodeUp(*up(wire.Report{Condition: &wire.Condition{Message: got}}))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := wire.DecodeUp(b); err != nil {
			t.Fatal(err)
		}
	})
}

func TestTopics(t *testing.T) {
	const id = "6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f"
	if got := wire.Subject(wire.UpTopic(id)); got != "d."+id+".u" || wire.DeviceOfSubject(got) != id {
		t.Errorf("subject %s of %s", got, wire.DeviceOfSubject(got))
	}
	if wire.DownTopic(id) != "d/"+id+"/d" || wire.TelemetryTopic(id) != "d/"+id+"/t" {
		t.Error("topics changed")
	}
	for _, s := range []string{"", "d", "d.x", "d.x.u.v", "e.x.u", ".x.u"} {
		if got := wire.DeviceOfSubject(s); got != "" {
			t.Errorf("device of %q: %q", s, got)
		}
	}
}

func TestDescribe(t *testing.T) {
	f := futures(t)
	d, err := wire.Describe(f["up"].payload, wire.AnyDirection)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"reports[0].vm.14", "reports[0].vm.99", "reports[1].12", "reports[2].task.6", "8"}; d.Direction != wire.UpDirection || d.Problem != "" || !slices.Equal(d.Unknown, want) {
		t.Errorf("%s, problem %q, unknown %v", d.Direction, d.Problem, d.Unknown)
	}
	b, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"power":"hibernated"`, `"14":"later"`, `"id":"` + golTask.String() + `"`, `"time":"1970-01-01T00:00:01.5Z"`, `"time":null`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("%s does not contain %s", b, want)
		}
	}
	if d, err = wire.Describe(f["down"].payload, wire.AnyDirection); err != nil || d.Direction != wire.DownDirection || d.Problem != "" {
		t.Errorf("%s, problem %q (%v)", d.Direction, d.Problem, err)
	}
	// What a receiver refuses is shown with the reason.
	bad := mustCBOR(t, map[any]any{1: 9, 3: 5, "x": math.Inf(1), 5: map[int]any{1: strings.Repeat("y", wire.MaxText+1)}})
	if d, err = wire.Describe(bad, wire.UpDirection); err != nil || !strings.Contains(d.Problem, "version 9") {
		t.Errorf("problem %q (%v)", d.Problem, err)
	}
	if _, err := json.Marshal(d); err != nil {
		t.Error(err)
	}
	if _, err := wire.Describe([]byte("hello there"), wire.AnyDirection); !errors.Is(err, wire.ErrMalformed) {
		t.Errorf("%v, want ErrMalformed", err)
	}
	if _, err := wire.Describe(bad, "sideways"); err == nil {
		t.Error("a direction of its own accepted")
	}
}

func goodJoin() wire.Join {
	return wire.Join{
		URL: "https://manager.example:8443", CA: bytes.Repeat([]byte{7}, 32),
		Token: "019e1b7a-5a40-7c35-9d3c-2f0a1b2c3d4e.topsecret", Expires: golTime,
	}
}

func TestJoin(t *testing.T) {
	s := goodJoin().String()
	// The text is part of the protocol.
	if want := "pallas-join-1.pAF4HGh0dHBzOi8vbWFuYWdlci5leGFtcGxlOjg0NDMCWCAHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwN4LjAxOWUxYjdhLTVhNDAtN2MzNS05ZDNjLTJmMGExYjJjM2Q0ZS50b3BzZWNyZXQE-0HawQHmD___"; s != want {
		t.Errorf("join string %s, want %s", s, want)
	}
	got, err := wire.ParseJoin(" " + s[:60] + "\r\n" + s[60:] + "\n") // copied from a narrow terminal
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(goodJoin(), got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	d, err := wire.DescribeJoin(s)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	var logged bytes.Buffer
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("join", "join", got)
	direct, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	for what, text := range map[string]string{"description": string(b), "log": logged.String(), "JSON": string(direct)} {
		if strings.Contains(text, "topsecret") || strings.Contains(text, wire.JoinPrefix) {
			t.Errorf("the %s shows the secret: %s", what, text)
		}
	}
	if !strings.Contains(string(b), "019e1b7a-5a40-7c35-9d3c-2f0a1b2c3d4e.[redacted]") {
		t.Errorf("description %s", b)
	}
}

func TestParseJoinRefuses(t *testing.T) {
	with := func(f func(*wire.Join)) string { j := goodJoin(); f(&j); return j.String() }
	good := goodJoin().String()
	for name, tc := range map[string]struct{ in, says string }{
		"empty":            {"", "starts with"},
		"another prefix":   {"pallas-join-2.abc", "starts with"},
		"nothing behind":   {wire.JoinPrefix, "damaged"},
		"cut off":          {good[:len(good)-7], "damaged"},
		"a character more": {good + "A", "damaged"},
		"a space inside":   {good[:40] + " " + good[40:], "damaged"},
		"not base64":       {wire.JoinPrefix + "!!!", "damaged"},
		"not CBOR":         {wire.JoinPrefix + "AAAA", "damaged"},
		"huge":             {wire.JoinPrefix + strings.Repeat("A", 1<<20), "too long"},
		"plain http":       {with(func(j *wire.Join) { j.URL = "http://manager.example" }), "https://"},
		"no host":          {with(func(j *wire.Join) { j.URL = "https://" }), "https://"},
		"only a port":      {with(func(j *wire.Join) { j.URL = "https://:443" }), "https://"},
		"a path":           {with(func(j *wire.Join) { j.URL = "https://manager.example/x" }), "https://"},
		"a query":          {with(func(j *wire.Join) { j.URL = "https://manager.example?x=1" }), "https://"},
		"a user":           {with(func(j *wire.Join) { j.URL = "https://me:topsecret@manager.example" }), "https://"},
		"no URL":           {with(func(j *wire.Join) { j.URL = "" }), "https://"},
		"short CA":         {with(func(j *wire.Join) { j.CA = j.CA[:20] }), "SHA-256"},
		"no token":         {with(func(j *wire.Join) { j.Token = "" }), "no token"},
		"long token":       {with(func(j *wire.Join) { j.Token = strings.Repeat("topsecret", 40) }), "no token"},
		"expiry beyond":    {with(func(j *wire.Join) { j.Expires = time.Date(12000, 1, 1, 0, 0, 0, 0, time.UTC) }), "expiry"},
	} {
		t.Run(name, func(t *testing.T) {
			j, err := wire.ParseJoin(tc.in)
			if err == nil || !strings.Contains(err.Error(), tc.says) || !cmp.Equal(j, wire.Join{}) {
				t.Errorf("%v, want an error that says %q", err, tc.says)
			}
			if err != nil && strings.Contains(err.Error(), "topsecret") {
				t.Errorf("the error shows the secret: %v", err)
			}
		})
	}
}
