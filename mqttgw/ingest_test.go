package mqttgw

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/prometheus/client_golang/prometheus"

	"pallas/commands"
	"pallas/events"
	"pallas/events/eventstest"
	"pallas/mqttgw/wire"
)

// entries returns the reports in the log of one aggregate, as "seq type".
func (d *door) entries(s events.Subject) (out []string) {
	d.t.Helper()
	for r, err := range d.store.Load(d.t.Context(), s, 0) {
		check(d.t, err)
		for _, e := range r.Entries {
			if e.Report != nil {
				out = append(out, fmt.Sprintf("%d %s", e.Report.Seq, e.Event.Type()))
			}
		}
	}
	return out
}

func (dev *device) inventory() []string {
	dev.door.t.Helper()
	return dev.door.entries(events.InventorySubject(dev.id))
}

func expect(t *testing.T, what string, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// The life of a session, with a client that many people use.
func TestSession(t *testing.T) {
	d := newDoor(t)
	dev := d.device()
	down := make(chan wire.Down, 100)
	opts := mqtt.NewClientOptions().AddBroker("ssl://" + d.broker.MQTTAddr()).SetClientID(string(dev.id)).
		SetTLSConfig(&tls.Config{RootCAs: d.ca.Pool(), Certificates: []tls.Certificate{dev.cert}}).SetAutoReconnect(false)
	c := mqtt.NewClient(opts)
	wait := func(tok mqtt.Token) {
		t.Helper()
		if !tok.WaitTimeout(patience) || tok.Error() != nil {
			t.Fatalf("MQTT: %v", tok.Error())
		}
	}
	wait(c.Connect())
	wait(c.Subscribe(wire.DownTopic(string(dev.id)), 0, func(_ mqtt.Client, m mqtt.Message) {
		p, err := wire.DecodeDown(m.Payload())
		if err != nil {
			t.Errorf("received %x: %v", m.Payload(), err)
		}
		down <- p
	}))
	next := func(want func(wire.Down) bool) wire.Down {
		t.Helper()
		for {
			select {
			case p := <-down:
				if want(p) {
					return p
				}
			case <-time.After(patience):
				t.Fatal("no such packet")
			}
		}
	}
	send := func(u wire.Up, qos byte) {
		u.Version = wire.Version
		wait(c.Publish(wire.UpTopic(string(dev.id)), qos, false, must(wire.EncodeUp(u))(t)))
	}
	send(wire.Up{Hello: &wire.Hello{Agent: "1.2.3", Epoch: 7, First: 1, Next: 1, Time: time.Now()}}, 0)
	w := next(func(p wire.Down) bool { return p.Welcome != nil }).Welcome
	if w.Next != 1 || w.Pending || w.Settings.Window == 0 || w.Settings.KeepAlive == 0 || w.Settings.Reconcile == 0 || w.Settings.Resend != 500 {
		t.Errorf("welcome %+v", w)
	}
	if since := time.Since(w.Time); since < 0 || since > time.Minute {
		t.Errorf("welcome says it is %v", w.Time)
	}
	// A client that publishes with QoS 1 is served as well.
	send(wire.Up{Epoch: 7, Reports: []wire.Report{host(1, "esx"), vm(2, "vm-1", "one")}}, 1)
	r := next(func(p wire.Down) bool { return p.Receipt != nil }).Receipt
	expect(t, "receipt", *r, wire.Receipt{Epoch: 7, Seq: 2})
	expect(t, "log", dev.inventory(), []string{"1 HostObserved", "2 VMObserved"})
	expect(t, "connections", d.broker.MQTTConns(), 1)
	expect(t, "sessions", d.gateway.Sessions(), 1)
	send(wire.Up{Bye: &wire.Bye{Reason: "shutting down"}}, 0)
	c.Disconnect(250)
	eventually(t, "presence hears of the end", func() bool { return len(d.presence.of(dev.id)) == 2 })
	if calls := d.presence.of(dev.id); !strings.HasPrefix(calls[0], "connected") || !strings.HasSuffix(calls[1], "device said goodbye: shutting down") {
		t.Errorf("presence heard %q", calls)
	}
	expect(t, "sessions", d.gateway.Sessions(), 0)
}

func TestReportsGoToTheirAggregates(t *testing.T) {
	d := newDoor(t)
	dev := d.device()
	c, _ := dev.connect(wireHello())
	c.report(host(1, "esx"), vm(2, "vm-1", "one"))
	c.receipt(2)
	task := events.TaskID(uuid.NewString())
	d.do(commands.RequestTask{Device: dev.id, Task: task, Kind: events.TaskVMPowerOn, VM: "vm-1", Deadline: time.Now().Add(time.Hour)})
	tasks := must(d.commands.Tasks(t.Context(), dev.id))(t)
	check(t, d.gateway.PushTasks(t.Context(), dev.id, tasks.Open()))
	got := c.down(func(d wire.Down) bool { return len(d.Tasks) > 0 }).Tasks
	id := uuid.MustParse(string(task))
	expect(t, "task", got, []wire.Task{{ID: id, Kind: wire.TaskVMPowerOn, VM: "vm-1", Deadline: tasks.Tasks[task].Deadline}})
	on := wire.PowerOn
	state := func(seq uint64, state string) wire.Report {
		return wire.Report{Seq: seq, Time: time.Now(), Task: &wire.TaskState{ID: id, State: state}}
	}
	c.report(
		state(3, wire.StateAccepted),
		wire.Report{Seq: 4, Time: time.Unix(0, 0), VMPatch: &wire.VMPatch{ID: "vm-1", Power: &on}}, // a clock in 1970
		state(5, wire.StateSucceeded),
		wire.Report{Seq: 6, Time: time.Now(), Condition: &wire.Condition{Condition: wire.ConditionReadOnly, Message: "free"}},
		wire.Report{Seq: 7, Time: time.Now()}, // of a kind that is not known here
		wire.Report{Seq: 8, Time: time.Now(), VM: &wire.VM{ID: "vm-2", Name: "two", Power: "sideways", Tools: wire.ToolsUnknown}},
		wire.Report{Seq: 9, Time: time.Now(), VMGone: &wire.VMGone{ID: "vm-1"}},
	)
	if e := c.failure(wire.ErrorUnknown); e.Seq != 7 {
		t.Errorf("unknown kind: %+v", e)
	}
	if e := c.failure(wire.ErrorInvalid); e.Seq != 8 || !strings.Contains(e.Message, "power") {
		t.Errorf("invalid: %+v", e)
	}
	c.receipt(9)
	expect(t, "inventory", dev.inventory(), []string{
		"1 HostObserved", "2 VMObserved", "4 VMChanged", "6 HostConditionChanged", "9 VMRemoved",
	})
	for r, err := range d.store.Load(t.Context(), events.InventorySubject(dev.id), 0) {
		check(t, err)
		for _, e := range r.Entries {
			if want := e.Report.Seq == 4; (e.DeviceTime.Year() == 1970) != want || r.Time.Year() < 2020 {
				t.Errorf("report %d: device time %v, time %v", e.Report.Seq, e.DeviceTime, r.Time)
			}
		}
	}
	expect(t, "tasks", d.entries(events.TasksSubject(dev.id)), []string{"3 TaskAccepted", "5 TaskSucceeded"})
}

func TestGapAndRepeats(t *testing.T) {
	d := newDoor(t)
	dev := d.device()
	c, _ := dev.connect(wireHello())
	c.report(vm(1, "vm-1", "a"))
	c.report(vm(3, "vm-3", "c")) // 2 is lost
	got := c.down(func(d wire.Down) bool { return d.Resend != nil }).Resend
	expect(t, "resend", *got, wire.Resend{Epoch: 1, Seq: 2})
	for range 3 {
		c.report(vm(2, "vm-2", "b"), vm(3, "vm-3", "c"))
		c.receipt(3) // also for a repeat: the first one may be lost
	}
	c.report(vm(1, "vm-1", "a"), vm(2, "vm-2", "b"), vm(3, "vm-3", "c"), vm(4, "vm-4", "d"))
	c.receipt(4)
	expect(t, "log", dev.inventory(), []string{"1 VMObserved", "2 VMObserved", "3 VMObserved", "4 VMObserved"})
	expect(t, "what was counted", d.refusals("gap"), 1)

	// Another connection goes on where the log is.
	w := must(d.commands.Inventory(t.Context(), dev.id))(t)
	if w.Seq != 4 {
		t.Errorf("cursor %d, want 4", w.Seq)
	}
	c.leave()
	c, welcome := dev.connect(wire.Hello{First: 2, Next: 6})
	if welcome.Next != 5 {
		t.Errorf("welcome expects %d, want 5", welcome.Next)
	}
	c.receipt(4) // covers what the device still had
}

// Facts that change nothing are not in the log, but received all the same.
func TestReceiptsCoverWhatWasNoNews(t *testing.T) {
	d := newDoor(t)
	dev := d.device()
	c, _ := dev.connect(wireHello())
	c.report(vm(1, "vm-1", "a"), vm(2, "vm-1", "a"))
	c.receipt(2)
	c.report(vm(3, "vm-1", "a"))
	c.receipt(3)
	expect(t, "log", dev.inventory(), []string{"1 VMObserved"})
}

func TestReceiptDelay(t *testing.T) {
	const delay = 400 * time.Millisecond
	d := newDoor(t, func(c *Config) { c.ReceiptDelay = delay })
	dev := d.device()
	c, _ := dev.connect(wireHello())
	for seq := uint64(1); seq <= 20; seq++ {
		began := time.Now()
		c.report(vm(seq, fmt.Sprintf("vm-%d", seq), "x"))
		r := c.receipt(seq)
		if took := time.Since(began); took < delay {
			t.Fatalf("receipt for %d after %v", r.Seq, took)
		}
		if seq == 3 {
			break
		}
	}
	// Many reports, few receipts.
	c.drain()
	for seq := uint64(4); seq <= 103; seq++ {
		c.report(vm(seq, fmt.Sprintf("vm-%d", seq), "x"))
	}
	n := 0
	c.down(func(d wire.Down) bool {
		if d.Receipt != nil {
			n++
		}
		return d.Receipt != nil && d.Receipt.Seq == 103
	})
	if n > 10 {
		t.Errorf("%d receipts for 100 reports", n)
	}
}

// A receipt never covers what is not in the log, whatever the log does and
// however often the gateway is restarted in the middle.
func TestReceiptsNeverExceedTheLog(t *testing.T) {
	d := newDoor(t)
	dev := d.device()
	c, _ := dev.connect(wireHello())
	const n = 300
	var sent, receipted uint64
	c.t = t
	restart, full := 0, 0
	deadline := time.Now().Add(2 * patience)
	for receipted < n {
		if time.Now().After(deadline) {
			t.Fatalf("receipts only up to %d", receipted)
		}
		switch {
		case full == 0 && sent == 60, full == 1 && sent == 200:
			full++
			d.store.setRefuse(events.ErrNoSpace)
		case restart == 0 && receipted > 100, restart == 1 && receipted > 220:
			restart++
			d.stop()
			d.open()
		}
		if sent < n && sent < receipted+32 {
			sent++
			c.report(vm(sent, fmt.Sprintf("vm-%d", sent), "x"))
		}
		select {
		case got := <-c.in:
			switch {
			case got.Receipt != nil:
				// An append that was cut off by the restart may be in the log
				// although nobody said so: then only the log knows.
				if got.Receipt.Seq > d.store.appendedSeq(dev.id) && int(got.Receipt.Seq) > len(dev.inventory()) {
					t.Fatalf("receipt for %d, the log has %d", got.Receipt.Seq, len(dev.inventory()))
				}
				receipted = max(receipted, got.Receipt.Seq)
			case got.Resend != nil:
				sent = min(sent, got.Resend.Seq-1)
			case got.Error != nil && got.Error.Code == wire.ErrorNoSpace:
				d.store.setRefuse(nil)
				sent = receipted
			case got.Greet:
				c.hello(wire.Hello{First: receipted + 1, Next: max(sent, receipted) + 1})
				sent = receipted
			case got.Welcome != nil:
				sent = receipted
			}
		case <-time.After(50 * time.Millisecond):
			sent = receipted // the device's timer: send again
		}
	}
	expect(t, "restarts and full disks", []int{restart, full}, []int{2, 2})
	got := dev.inventory()
	var want []string
	for i := range n {
		want = append(want, fmt.Sprintf("%d VMObserved", i+1))
	}
	expect(t, "log", got, want)
	if d.refusals(wire.ErrorNoSpace) == 0 {
		t.Error("the full log was not counted")
	}
	calls := d.presence.of(dev.id)
	for _, call := range calls {
		if strings.HasPrefix(call, "disconnected") {
			t.Errorf("presence heard %q of a device that never left", call)
		}
	}
}

// The inventory is compared when everything before Hello.Next is applied, not
// earlier and not later.
func TestInventoryHash(t *testing.T) {
	d := newDoor(t)
	dev := d.device()
	h := wire.Host{
		Name: "esx", BootTime: 1_700_000_000, License: wire.License{Writable: true},
		Datastores: []wire.Datastore{{ID: "d", Name: "d", FreeMiB: 3}},
	}
	one := wire.VM{
		ID: "vm-1", Name: "one", Power: wire.PowerOn, CPUs: 2, MemoryMiB: 1024, IPs: []string{"10.0.0.1"}, Tools: wire.ToolsRunning,
		Disks: []wire.Disk{{Key: 2000, Label: "d", CapacityMiB: 1}}, NICs: []wire.NIC{{Key: 4000, MAC: "00:00"}}, BootTime: 1_700_000_001,
	}
	two := wire.VM{ID: "vm-2", Name: "two", Power: wire.PowerOff, Tools: wire.ToolsUnknown}
	at := time.Now()
	full := []wire.Report{{Seq: 1, Time: at, Host: &h}, {Seq: 2, Time: at, VM: &one}, {Seq: 3, Time: at, VM: &two}, {
		Seq: 4, Time: at, Inventory: &wire.Inventory{VMs: []string{"vm-1", "vm-2"}, Hash: wire.HashInventory(h, []wire.VM{one, two})},
	}}
	c, _ := dev.connect(wireHello())
	c.report(full...)
	c.receipt(4)
	resyncs := func(got []wire.Down) (n int) {
		for _, p := range got {
			if p.Resync {
				n++
			}
			if p.Error != nil {
				t.Errorf("error %+v", *p.Error)
			}
		}
		return n
	}
	// settled returns what the device receives up to the answer of one more
	// Hello without a hash.
	settled := func() []wire.Down {
		t.Helper()
		c.ping()
		c.hello(wire.Hello{First: 1000, Next: 1000})
		var got []wire.Down
		c.down(func(p wire.Down) bool {
			got = append(got, p)
			return p.Welcome != nil && p.Welcome.Next == 1000
		})
		return got
	}
	again := func(hello wire.Hello, reports ...wire.Report) []wire.Down {
		t.Helper()
		c.leave()
		c = dev.link()
		c.hello(hello)
		if len(reports) > 0 {
			c.report(reports...)
		}
		return settled()
	}
	same := wire.HashInventory(h, []wire.VM{one, two})
	expect(t, "resyncs, equal", resyncs(again(wire.Hello{First: 5, Inventory: same})), 0)
	expect(t, "resyncs, other", resyncs(again(wire.Hello{First: 5, Inventory: make([]byte, wire.HashSize)})), 1)
	// Reports 5 and 6 are before Next, 7 is made after the Hello and arrives
	// in the same packet.
	two2, two3 := two, two
	two2.Power, two3.Power = wire.PowerOn, wire.PowerSuspended
	on, suspended, name := wire.PowerOn, wire.PowerSuspended, "zwei"
	two2.Name, two3.Name = name, name
	changes := []wire.Report{
		{Seq: 5, Time: at, VMPatch: &wire.VMPatch{ID: "vm-2", Name: &name}},
		{Seq: 6, Time: at, VMPatch: &wire.VMPatch{ID: "vm-2", Power: &on}},
		{Seq: 7, Time: at, VMPatch: &wire.VMPatch{ID: "vm-2", Power: &suspended}},
	}
	after6 := wire.HashInventory(h, []wire.VM{one, two2})
	expect(t, "resyncs, boundary within a packet", resyncs(again(wire.Hello{First: 5, Next: 7, Inventory: after6}, changes...)), 0)
	after7 := wire.HashInventory(h, []wire.VM{one, two3})
	expect(t, "resyncs, all applied", resyncs(again(wire.Hello{First: 8, Next: 8, Inventory: after7})), 0)
	// A change of something that the manager does not know.
	ghost := wire.Report{Seq: 1000, Time: at, VMPatch: &wire.VMPatch{ID: "vm-9", Name: &name}}
	c.leave()
	c, _ = dev.connect(wire.Hello{First: 1000, Next: 1000})
	c.report(ghost)
	c.down(func(p wire.Down) bool { return p.Resync })
	c.receipt(1000)
	// A complete inventory that is not what it says it is.
	c.report(wire.Report{Seq: 1001, Time: at, Inventory: &wire.Inventory{VMs: []string{"vm-1"}, Hash: make([]byte, wire.HashSize)}})
	if e := c.failure(wire.ErrorInvalid); e.Seq != 1001 {
		t.Errorf("wrong hash: %+v", e)
	}
	c.receipt(1001)
}

func TestPendingDevice(t *testing.T) {
	d := newDoor(t)
	dev := d.identity()
	dev.register(false)
	c, w := dev.connect(wireHello())
	if !w.Pending {
		t.Fatal("welcomed as approved")
	}
	before := d.last()
	c.report(vm(1, "vm-1", "x"))
	eventually(t, "its report is refused", func() bool { return d.refusals("pending") == 1 })
	expect(t, "log", d.last(), before)
	check(t, d.gateway.PushTasks(t.Context(), dev.id, []commands.Task{{ID: events.TaskID(uuid.NewString())}}))
	d.do(commands.ApproveDevice{Device: dev.id})
	check(t, d.gateway.Refresh(t.Context(), dev.id))
	got := c.down(func(p wire.Down) bool { return p.Welcome != nil || len(p.Tasks) > 0 })
	if got.Welcome == nil || got.Welcome.Pending || got.Welcome.Next != 1 {
		t.Errorf("after approval: %+v", got)
	}
	c.report(vm(1, "vm-1", "x"))
	c.receipt(1)
	// Retired while nobody kicked it: a refresh ends the session.
	d.do(commands.RetireDevice{Device: dev.id})
	check(t, d.gateway.Refresh(t.Context(), dev.id))
	c.waitClosed(patience)
}

// What a device that was away has to know of its task queue comes with the
// Welcome.
func TestHelloBringsTasks(t *testing.T) {
	d := newDoor(t)
	dev := d.device()
	c, _ := dev.connect(wireHello())
	c.report(vm(1, "vm-1", "a"), vm(2, "vm-2", "b"), vm(3, "vm-3", "c"), vm(4, "vm-4", "d"), vm(5, "vm-5", "e"))
	c.receipt(5)
	request := func(vm events.VMID) events.TaskID {
		id := events.TaskID(uuid.NewString())
		d.do(commands.RequestTask{Device: dev.id, Task: id, Kind: events.TaskVMPowerOn, VM: vm, Deadline: time.Now().Add(time.Hour)})
		return id
	}
	state := func(seq uint64, id events.TaskID, state string) wire.Report {
		return wire.Report{Seq: seq, Time: time.Now(), Task: &wire.TaskState{ID: uuid.MustParse(string(id)), State: state}}
	}
	open, cancelled, running, lost := request("vm-1"), request("vm-2"), request("vm-3"), request("vm-4")
	d.do(commands.CancelTask{Device: dev.id, Task: cancelled})
	c.report(state(6, running, wire.StateAccepted), state(7, lost, wire.StateAccepted))
	c.receipt(7)
	c.leave()

	// The device has a task that is over here, and does not know the lost one.
	over := request("vm-5")
	d.do(commands.EndTask{Device: dev.id, Task: over, Reason: "test"})
	c = dev.link()
	c.hello(wire.Hello{First: 8, Next: 8, Open: []uuid.UUID{uuid.MustParse(string(running)), uuid.MustParse(string(over))}})
	cancels := c.down(func(p wire.Down) bool { return len(p.Cancels) > 0 }).Cancels
	expect(t, "cancels", cancels, []uuid.UUID{uuid.MustParse(string(cancelled)), uuid.MustParse(string(over))})
	tasks := c.down(func(p wire.Down) bool { return len(p.Tasks) > 0 }).Tasks
	var got []string
	for _, task := range tasks {
		got = append(got, task.ID.String())
	}
	expect(t, "tasks", got, []string{string(open)})
	eventually(t, "the lost task ends", func() bool {
		tasks := must(d.commands.Tasks(t.Context(), dev.id))(t)
		return tasks.Tasks[lost].Status == events.TaskStatusFailed && tasks.Tasks[running].Status == events.TaskStatusAccepted
	})
	check(t, d.gateway.PushCancel(t.Context(), dev.id, open))
	cancels = c.down(func(p wire.Down) bool { return len(p.Cancels) > 0 }).Cancels
	expect(t, "cancel", cancels, []uuid.UUID{uuid.MustParse(string(open))})
	c.leave()
	check(t, d.gateway.PushTasks(t.Context(), dev.id, []commands.Task{{ID: open}})) // nobody there: no error
	check(t, d.gateway.PushCancel(t.Context(), dev.id, open))
	check(t, d.gateway.Kick(t.Context(), dev.id, "x"))
	check(t, d.gateway.Refresh(t.Context(), dev.id))
}

// The second connection of a device takes over; presence hears of both in
// order.
func TestTakeover(t *testing.T) {
	d := newDoor(t)
	dev := d.device()
	first, _ := dev.connect(wireHello())
	second, _ := dev.connect(wireHello())
	first.waitClosed(patience)
	second.report(vm(1, "vm-1", "x"))
	second.receipt(1)
	check(t, second.conn.Close())
	eventually(t, "presence hears of the end", func() bool {
		calls := d.presence.of(dev.id)
		return len(calls) >= 4
	})
	calls := d.presence.of(dev.id)
	var cid [2]int
	for i, format := range []string{"connected %d", "disconnected %d", "connected %d", "disconnected %d"} {
		var got int
		if n, _ := fmt.Sscanf(calls[i], format, &got); n != 1 {
			t.Fatalf("presence heard %q", calls)
		}
		if i%2 == 0 {
			cid[i/2] = got
		} else if cid[i/2] != got {
			t.Errorf("presence heard %q", calls)
		}
	}
	if len(calls) != 4 || cid[0] == cid[1] {
		t.Errorf("presence heard %q", calls)
	}
}

// A gateway that starts beside live connections finds them.
func TestGatewayRestart(t *testing.T) {
	d := newDoor(t)
	dev := d.device()
	c, _ := dev.connect(wireHello())
	c.report(vm(1, "vm-1", "x"))
	c.receipt(1)
	d.stop()
	c.report(vm(2, "vm-2", "x")) // nobody listens
	c.ping()
	d.open()
	c.down(func(p wire.Down) bool { return p.Greet })
	c.hello(wire.Hello{First: 2, Next: 3})
	if w := c.down(func(p wire.Down) bool { return p.Welcome != nil }).Welcome; w.Next != 2 {
		t.Errorf("welcome expects %d, want 2", w.Next)
	}
	c.report(vm(2, "vm-2", "x"))
	c.receipt(2)
	check(t, d.gateway.Kick(t.Context(), dev.id, "test"))
	c.waitClosed(time.Second)
	expect(t, "log", dev.inventory(), []string{"1 VMObserved", "2 VMObserved"})
}

// One device that sends as fast as it can does not keep others waiting. It
// loses its session in the end, and is kept out for a while.
func TestFloodStarvesNobody(t *testing.T) {
	var skipped atomic.Int64 // what the clock is ahead
	d := newDoor(t, func(c *Config) {
		c.Workers = 1 // both in one line
		c.Now = func() time.Time { return time.Now().Add(time.Duration(skipped.Load())) }
	})
	bad, good := d.device(), d.device()
	flood, _ := bad.connect(wireHello())
	c, _ := good.connect(wireHello())
	payload := must(wire.EncodeUp(wire.Up{Version: 1, Epoch: 1, Reports: []wire.Report{vm(9, "vm-1", "x")}}))(t)
	packet := mqttPacket(0x30, append(mqttString(wire.UpTopic(string(bad.id))), payload...))
	many := make([]byte, 0, 200*len(packet))
	for range 200 {
		many = append(many, packet...)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for !flood.isClosed() {
			flood.write(many)
		}
	})
	go func() { // what the flooder is told is not read by anybody else
		for range flood.in {
		}
	}()
	eventually(t, "the flood is noticed", func() bool { return d.refusals("flood") > 0 })
	var worst time.Duration
	for seq := uint64(1); seq <= 50; seq++ {
		began := time.Now()
		c.report(vm(seq, fmt.Sprintf("vm-%d", seq), "x"))
		c.receipt(seq)
		worst = max(worst, time.Since(began))
	}
	t.Logf("slowest of 50 reports during the flood: %v", worst)
	if worst > 5*time.Second {
		t.Errorf("a report took %v during the flood", worst)
	}
	flood.waitClosed(patience)
	wg.Wait()
	expect(t, "entries of the flooder", len(bad.inventory()), 0)
	expect(t, "return code of the flooder's next connect", bad.dial(connectOptions{client: string(bad.id)}).code, byte(5))
	expect(t, "refusals of the flooder", d.refusals(reasonPenalty), 1)
	if n := strings.Count(d.logs.String(), "device kept out"); n != 1 {
		t.Errorf("%d lines of the log tell of the penalty, want 1", n)
	}
	if c.isClosed() {
		t.Error("the other device lost its session")
	}
	// What it had sent is still on the way, and would be charged to it.
	eventually(t, "the end of the flood", func() bool { return len(d.presence.of(bad.id)) == 2 })
	skipped.Store(int64(firstPenalty))
	again, w := bad.connect(wireHello())
	expect(t, "the next sequence of the flooder", w.Next, uint64(1))
	again.report(vm(1, "vm-1", "x"))
	again.receipt(1)
}

// What no working agent does costs a device its connection and a while.
func TestAbuseIsKeptOut(t *testing.T) {
	for name, abuse := range map[string]func(*client){
		"a packet larger than the broker takes": func(c *client) {
			c.publish(wire.UpTopic(string(c.dev.id)), make([]byte, 2<<20), 0, false)
		},
		"no MQTT": func(c *client) { c.write(bytes.Repeat([]byte{0xF7, 0xFF, 0xFF}, 100)) },
	} {
		t.Run(name, func(t *testing.T) {
			d := newDoor(t)
			dev := d.device()
			c, _ := dev.connect(wireHello())
			abuse(c)
			c.waitClosed(patience)
			eventually(t, "the device is kept out", func() bool { return d.gateway.penalties.left(dev.id, time.Now()) > 0 })
			expect(t, "return code", dev.dial(connectOptions{client: string(dev.id)}).code, byte(5))
		})
	}
}

// The end of a connection may be heard of late, when the device has another one
// already: that one did nothing wrong and stays. The next is refused.
func TestAbuseEndsNoOtherConnection(t *testing.T) {
	d := newDoor(t)
	dev := d.device()
	c, _ := dev.connect(wireHello())
	d.gateway.disconnected(must(json.Marshal(server.DisconnectEventMsg{
		Client: server.ClientInfo{ID: 1, MQTTClient: string(dev.id), ClientType: "mqtt"},
		Reason: server.MaxPayloadExceeded.String(),
	}))(t))
	expect(t, "return code of another connection", dev.dial(connectOptions{client: string(dev.id)}).code, byte(5))
	c.report(vm(1, "vm-1", "x"))
	c.receipt(1)
}

// A device whose Hello is lost sends it again each 4 seconds, for as long as it
// takes, and is never kept out for that.
func TestRepeatedHelloIsNoFlood(t *testing.T) {
	var skipped atomic.Int64 // what the clock is ahead
	start := time.Now()
	d := newDoor(t, func(c *Config) {
		c.Now = func() time.Time { return start.Add(time.Duration(skipped.Load())) }
	})
	c, _ := d.device().connect(wireHello())
	for range 1000 { // more than an hour
		skipped.Add(int64(4 * time.Second))
		c.alive(wireHello())
	}
	expect(t, "packets that were dropped", d.refusals("flood"), 0)
	expect(t, "penalties", counted(t, d.gateway.punished), 0.0)
}

// A Hello is dear: a flood of them is limited more than one of reports, and
// what comes after it still works.
func TestFloodOfHello(t *testing.T) {
	d := newDoor(t, func(c *Config) { c.Rate, c.Burst = 1, 200 })
	c, _ := d.device().connect(wireHello())
	for range 100 {
		c.hello(wireHello())
	}
	c.ping()
	eventually(t, "the flood is noticed", func() bool { return d.refusals("flood") > 0 })
	welcomes := 0
	for _, p := range c.drain() {
		if p.Welcome != nil {
			welcomes++
		}
	}
	if most := 200 / helloCost; welcomes >= most {
		t.Errorf("%d of 100 are welcomed, want less than %d", welcomes, most)
	}
	other, _ := d.device().connect(wireHello())
	other.report(vm(1, "vm-1", "x"))
	other.receipt(1)
}

// forgive lets a test go on with the same device.
func (p *penalties) forgive(id events.DeviceID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.devices.Remove(id)
}

func TestPenalties(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	p := newPenalties()
	const dev = events.DeviceID("6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f")
	for _, want := range []time.Duration{firstPenalty, 2 * firstPenalty, 4 * firstPenalty} {
		got, _, ok := p.add(dev, now)
		if !ok || got != want || p.left(dev, now) != want {
			t.Fatalf("kept out for %v, want %v", got, want)
		}
		if _, _, again := p.add(dev, now.Add(want-1)); again {
			t.Error("punished twice for the same")
		}
		if left := p.left(dev, now.Add(want)); left != 0 {
			t.Errorf("still kept out for %v", left)
		}
		now = now.Add(want)
	}
	for range 20 {
		wait, _, _ := p.add(dev, now)
		now = now.Add(wait)
	}
	if wait, _, _ := p.add(dev, now); wait != maxPenalty {
		t.Errorf("in the end kept out for %v, want %v", wait, maxPenalty)
	}
	now = now.Add(maxPenalty + forgiveAfter)
	if wait, _, _ := p.add(dev, now); wait != firstPenalty {
		t.Errorf("after a good hour kept out for %v, want %v", wait, firstPenalty)
	}
	for range 2 * maxPenalties {
		p.add(events.DeviceID(events.NewID()), now)
	}
	if n := p.devices.Len(); n != maxPenalties {
		t.Errorf("%d devices are remembered, want %d", n, maxPenalties)
	}
}

// A log that is full or silent is told to the device, and nothing is lost.
func TestLogRefuses(t *testing.T) {
	d := newDoor(t)
	dev := d.device()
	c, _ := dev.connect(wireHello())
	d.store.setRefuse(fmt.Errorf("append: %w", events.ErrNoSpace))
	c.report(vm(1, "vm-1", "x"))
	c.failure(wire.ErrorNoSpace)
	c.ping()
	for _, p := range c.drain() {
		if p.Receipt != nil {
			t.Errorf("receipt %+v", p.Receipt)
		}
	}
	d.store.setRefuse(nil)
	c.report(vm(1, "vm-1", "x"))
	c.receipt(1)
	d.store.setRefuse(errTest)
	c.report(vm(2, "vm-2", "x"))
	eventually(t, "counted", func() bool { return d.refusals("failed") > 0 })
	d.store.setRefuse(nil)
	c.report(vm(2, "vm-2", "x"))
	c.receipt(2)
}

func TestNewNamesTheField(t *testing.T) {
	b := must(NewBroker(BrokerConfig{Dir: "x"}))(t)
	store, err := commands.New(commands.Config{Store: eventstest.NewMemory(), Now: time.Now})
	check(t, err)
	for want, c := range map[string]Config{
		"Broker":       {Commands: store},
		"Commands":     {Broker: b},
		"ReceiptDelay": {Broker: b, Commands: store, ReceiptDelay: -1},
		"Rate":         {Broker: b, Commands: store, Rate: -1},
		"Burst":        {Broker: b, Commands: store, Burst: 1},
		"Settings":     {Broker: b, Commands: store, Settings: wire.Settings{Window: -1}},
	} {
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error that names %s", err, want)
		}
	}
	g := must(New(Config{Broker: b, Commands: store}))(t)
	if err := g.Run(t.Context()); err == nil {
		t.Error("ran on a broker that does not run")
	}
	check(t, g.Refresh(t.Context(), "x"))
	r := prometheus.NewRegistry()
	must(New(Config{Broker: b, Commands: store, Registerer: r}))(t)
	if _, err := New(Config{Broker: b, Commands: store, Registerer: r}); err == nil {
		t.Error("two gateways with the same metrics")
	}
}

// A Hello that cannot be answered is answered when it is repeated, and presence
// hears of one session.
func TestHelloIsRepeated(t *testing.T) {
	d := newDoor(t)
	dev := d.device()
	c, _ := dev.connect(wireHello())
	c.report(host(1, "esx"))
	c.receipt(1)
	c.leave()
	for _, kind := range []string{events.KindDevice, events.KindInventory} {
		c = dev.link()
		d.store.setRefuseKind(kind)
		c.hello(wireHello())
		c.failure(wire.ErrorNoSpace)
		d.store.setRefuseKind("")
		if w := c.alive(wire.Hello{First: 2}); w.Next != 2 {
			t.Errorf("welcome expects %d, want 2", w.Next)
		}
		c.alive(wire.Hello{First: 2})
		c.leave()
	}
	d.store.setRefuseKind(events.KindDevice)
	c = dev.dial(connectOptions{client: string(dev.id)})
	if c.code != 5 || d.refusals(reasonUnavailable) != 1 {
		t.Errorf("return code %d while the log is silent, want 5", c.code)
	}
	d.store.setRefuseKind("")
	calls := d.presence.of(dev.id)
	if len(calls) != 6 {
		t.Errorf("presence heard %q", calls)
	}
	for i, call := range calls {
		if want := []string{"connected", "disconnected"}[i%2]; !strings.HasPrefix(call, want) {
			t.Errorf("presence heard %q", calls)
		}
	}
}

// A connection that came to nothing after it was noted, refused or cut before
// the broker had its answer, must not take the session of a live one with it.
func TestConnectionThatCameToNothing(t *testing.T) {
	d := newDoor(t)
	dev := d.device()
	c, _ := dev.connect(wireHello())
	const refused = 1 << 40
	d.gateway.noteConn(dev.id, refused, "192.0.2.1") // as the callout does while it decides
	c.hello(wire.Hello{})                            // in that moment
	c.down(func(p wire.Down) bool { return p.Welcome != nil })
	d.gateway.dropConn(dev.id, refused)
	c.down(func(p wire.Down) bool { return p.Greet })
	c.alive(wire.Hello{})
	eventually(t, "the session is there", func() bool { return d.gateway.Sessions() == 1 })
	check(t, c.conn.Close())
	eventually(t, "presence hears of the end", func() bool {
		calls := d.presence.of(dev.id)
		return len(calls) == 6 && strings.HasPrefix(calls[5], "disconnected")
	})
	open := map[string]bool{}
	for _, call := range d.presence.of(dev.id) {
		word := strings.Fields(call)
		open[word[1]] = word[0] == "connected"
	}
	for conn, still := range open {
		if still {
			t.Errorf("presence was never told that %s ended: %q", conn, d.presence.of(dev.id))
		}
	}
}

// What a device does wrong must not fill the disk with lines about it.
func TestRefusedReportsDoNotFloodTheLog(t *testing.T) {
	d := newDoor(t)
	dev := d.device()
	c, _ := dev.connect(wireHello())
	reports := make([]wire.Report, wire.MaxReports)
	for i := range reports {
		reports[i] = wire.Report{Seq: uint64(i + 1)} // of no kind
	}
	c.report(reports...)
	c.receipt(wire.MaxReports)
	for range 50 {
		c.publish(wire.UpTopic(string(dev.id)), []byte("garbage"), 0, false)
	}
	eventually(t, "all were refused", func() bool {
		return d.refusals(wire.ErrorUnknown) == wire.MaxReports && d.refusals(wire.ErrorMalformed) == 50
	})
	lines := 0
	for line := range strings.Lines(d.logs.String()) {
		if strings.Contains(line, "level=INFO") && strings.Contains(line, "refused") {
			lines++
		}
	}
	if lines < 1 || lines > 5 {
		t.Errorf("%d lines about %d mistakes, want a few", lines, wire.MaxReports+50)
	}
}
