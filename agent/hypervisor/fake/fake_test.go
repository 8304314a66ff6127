package fake_test

import (
	"testing"

	"pallas/agent/hypervisor/fake"
	"pallas/agent/hypervisor/hypervisortest"
	"pallas/mqttgw/wire"
)

func TestConformance(t *testing.T) {
	hypervisortest.TestDriver(t, func(*testing.T) hypervisortest.Fixture {
		h := fake.Sample("one", 3)
		text := func(set func(string), value string) func(bool) {
			return func(on bool) {
				if on {
					set(value)
				} else {
					set("")
				}
			}
		}
		return hypervisortest.Fixture{
			Driver: h, On: "vm-1", Off: "vm-2",
			SetPower:       func(id, power string) { h.SetPower(id, power) },
			SetTools:       func(id, state string) { h.SetTools(id, state) },
			Rename:         func(id, name string) { h.AlterVM(id, func(vm *wire.VM) { vm.Name = name }) },
			AddVM:          func(name string) string { return h.PutVM(wire.VM{Name: name, CPUs: 1, MemoryMiB: 64}) },
			RemoveVM:       func(id string) { h.RemoveVM(id) },
			SetUnreachable: text(h.SetUnreachable, "no route to host"),
			SetDenied:      text(h.SetDenied, "wrong user name or password"),
			SetReadOnly:    text(func(s string) { h.SetReadOnly(s, false) }, "the licence prohibits the operation"),
			DropSessions:   func() {},
		}
	})
}
