package mqttgw

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"
	"pgregory.net/rapid"

	"pallas/commands"
	"pallas/events"
	"pallas/mqttgw/wire"
)

// filled draws a value with every field set to something, so that a field that
// the translation forgets is noticed.
func filled[T any](t *rapid.T) T {
	var v T
	fill(t, reflect.ValueOf(&v).Elem())
	return v
}

func fill(t *rapid.T, v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i))
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), rapid.IntRange(0, 3).Draw(t, "n"), 3))
		for i := range v.Len() {
			fill(t, v.Index(i))
		}
	case reflect.Pointer:
		if rapid.Bool().Draw(t, "set") {
			v.Set(reflect.New(v.Type().Elem()))
			fill(t, v.Elem())
		}
	case reflect.String:
		v.SetString(rapid.StringMatching(`[a-zé<]{0,5}`).Draw(t, "s"))
	case reflect.Bool:
		v.SetBool(rapid.Bool().Draw(t, "b"))
	case reflect.Int, reflect.Int32, reflect.Int64:
		v.SetInt(rapid.Int64Range(0, 1<<30).Draw(t, "i"))
	default:
		t.Fatalf("a field of kind %v", v.Kind())
	}
}

var sameLists = cmpopts.EquateEmpty()

// What a device reports, stored as JSON and read back, is what it reported.
func TestTranslationRoundTrip(t *testing.T) {
	stored := func(t *rapid.T, in, out any) {
		b, err := json.Marshal(in)
		if err == nil {
			err = json.Unmarshal(b, out)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Run("host", rapid.MakeCheck(func(t *rapid.T) {
		h := filled[wire.Host](t)
		var back events.Host
		stored(t, hostFromWire(h), &back)
		if diff := cmp.Diff(h, hostToWire(back), sameLists); diff != "" {
			t.Fatal(diff)
		}
	}))
	t.Run("virtual machine", rapid.MakeCheck(func(t *rapid.T) {
		v := filled[wire.VM](t)
		var back events.VM
		stored(t, vmFromWire(v), &back)
		if diff := cmp.Diff(v, vmToWire(back), sameLists); diff != "" {
			t.Fatal(diff)
		}
	}))
	t.Run("hash", rapid.MakeCheck(func(t *rapid.T) {
		h, vms := filled[wire.Host](t), filled[[]wire.VM](t)
		host := hostFromWire(h)
		inv := commands.Inventory{Host: &host, VMs: map[events.VMID]events.VM{}}
		unique := vms[:0]
		for _, v := range vms {
			if _, ok := inv.VMs[events.VMID(v.ID)]; !ok {
				inv.VMs[events.VMID(v.ID)] = vmFromWire(v)
				unique = append(unique, v)
			}
		}
		if !bytes.Equal(hashInventory(inv), wire.HashInventory(h, unique)) {
			t.Fatal("the hashes differ")
		}
	}))
	// A patch means the same in both vocabularies.
	t.Run("patch", rapid.MakeCheck(func(t *rapid.T) {
		v, p := filled[wire.VM](t), filled[wire.VMPatch](t)
		p.ID = v.ID
		got := vmToWire(patchFromWire(p).Apply(vmFromWire(v)))
		if diff := cmp.Diff(p.Apply(v), got, sameLists); diff != "" {
			t.Fatal(diff)
		}
	}))
}

func TestFacts(t *testing.T) {
	at := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	id := uuid.New()
	power := wire.PowerOff
	off := events.PowerOff
	for name, c := range map[string]struct {
		report wire.Report
		want   any
	}{
		"condition": {
			wire.Report{Condition: &wire.Condition{Condition: wire.ConditionDenied, Message: "m"}},
			commands.InventoryFact{Event: events.HostConditionChanged{Condition: events.ConditionDenied, Message: "m"}},
		},
		"change": {
			wire.Report{VMPatch: &wire.VMPatch{ID: "v", Power: &power}},
			commands.InventoryFact{Event: events.VMChanged{VM: "v", Patch: events.VMPatch{Power: &off}}},
		},
		"gone": {
			wire.Report{VMGone: &wire.VMGone{ID: "v"}},
			commands.InventoryFact{Event: events.VMRemoved{VM: "v"}},
		},
		"complete": {
			wire.Report{Inventory: &wire.Inventory{VMs: []string{"v", "w"}, Hash: []byte{0xAB, 1}}},
			commands.InventoryFact{Event: events.InventorySynced{Hash: "ab01", VMs: 2}, VMs: []events.VMID{"v", "w"}},
		},
		"progress": {
			wire.Report{Task: &wire.TaskState{ID: id, State: wire.StateProgress, Percent: 40, Message: "m"}},
			commands.TaskFact{Task: events.TaskID(id.String()), Progress: true, Percent: 40, Message: "m"},
		},
		"failure": {
			wire.Report{Task: &wire.TaskState{ID: id, State: wire.StateFailed, Code: wire.CodeHost, Message: "m"}},
			commands.TaskFact{Task: events.TaskID(id.String()), Status: events.TaskStatusFailed, Code: "host", Message: "m"},
		},
	} {
		c.report.Seq, c.report.Time = 9, at
		var got any
		switch want := c.want.(type) {
		case commands.InventoryFact:
			want.Seq, want.Time = 9, at
			c.want, got = want, inventoryFact(c.report)
		case commands.TaskFact:
			want.Seq, want.Time = 9, at
			c.want, got = want, taskFact(c.report)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// The words of both vocabularies are the same, and stay so.
func TestWordsAgree(t *testing.T) {
	for _, c := range [][2]string{
		{wire.PowerOn, string(events.PowerOn)},
		{wire.PowerOff, string(events.PowerOff)},
		{wire.PowerSuspended, string(events.PowerSuspended)},
		{wire.PowerUnknown, string(events.PowerUnknown)},
		{wire.ToolsRunning, string(events.ToolsRunning)},
		{wire.ToolsNotRunning, string(events.ToolsNotRunning)},
		{wire.ToolsNotInstalled, string(events.ToolsNotInstalled)},
		{wire.ToolsUnknown, string(events.ToolsUnknown)},
		{wire.ConditionOK, string(events.ConditionOK)},
		{wire.ConditionReadOnly, string(events.ConditionReadOnly)},
		{wire.ConditionDenied, string(events.ConditionDenied)},
		{wire.ConditionUnreachable, string(events.ConditionUnreachable)},
		{wire.TaskVMPowerOn, string(events.TaskVMPowerOn)},
		{wire.TaskVMPowerOff, string(events.TaskVMPowerOff)},
		{wire.TaskVMReset, string(events.TaskVMReset)},
		{wire.TaskVMSuspend, string(events.TaskVMSuspend)},
		{wire.TaskVMShutdown, string(events.TaskVMShutdown)},
		{wire.StateAccepted, string(events.TaskStatusAccepted)},
		{wire.StateSucceeded, string(events.TaskStatusSucceeded)},
		{wire.StateFailed, string(events.TaskStatusFailed)},
		{wire.StateRejected, string(events.TaskStatusRejected)},
		{wire.StateCancelled, string(events.TaskStatusCancelled)},
	} {
		if c[0] != c[1] {
			t.Errorf("the protocol says %q, the log %q", c[0], c[1])
		}
	}
}
