package reactors

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"pallas/commands"
	"pallas/events"
	"pallas/events/eventstest"
	"pallas/events/labels"
)

// house is a manager's write side and its reactors, on a log in memory and in
// the time of a synctest bubble.
type house struct {
	t        *testing.T
	store    *eventstest.Memory
	before   atomic.Value // of func(events.Decision): comes before an append
	commands *commands.Dispatcher
	presence *Presence
	tasks    *tasks
	door     *door
	model    ReadModel
	logs     *lines
	start    time.Time
	stop     func()
}

// inHouse runs a test with a fresh house in a bubble.
func inHouse(t *testing.T, f func(h *house)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		store := eventstest.NewMemory()
		h := &house{t: t, store: store, door: &door{}, model: replayed{store}, logs: &lines{}, start: time.Now()}
		h.restart()
		defer func() {
			if h.stop != nil {
				h.stop()
			}
		}()
		f(h)
	})
}

// restart ends the manager, if it runs, and starts another one on the log.
func (h *house) restart() {
	h.t.Helper()
	if h.stop != nil {
		h.stop()
	}
	var err error
	if h.commands, err = commands.New(commands.Config{Store: hooked{h.store, h}}); err != nil {
		h.t.Fatal(err)
	}
	log := slog.New(h.logs)
	h.presence = NewPresence(PresenceConfig{Commands: h.commands, Log: log})
	r, err := New(Config{Store: h.store, Commands: h.commands, Door: h.door, ReadModel: h.model, Presence: h.presence, Log: log})
	if err != nil {
		h.t.Fatal(err)
	}
	h.tasks = r.tasks
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	h.stop = func() {
		cancel()
		if err := <-done; err != nil {
			h.t.Errorf("Run: %v", err)
		}
	}
	synctest.Wait()
}

// hooked is the house's log; something may come before an append.
type hooked struct {
	*eventstest.Memory
	house *house
}

func (s hooked) Append(ctx context.Context, expected uint64, d events.Decision) (events.Appended, error) {
	if f, ok := s.house.before.Load().(func(events.Decision)); ok {
		f(d)
	}
	return s.Memory.Append(ctx, expected, d)
}

// pass lets time pass.
func (h *house) pass(d time.Duration) {
	t := time.NewTimer(d)
	<-t.C
	synctest.Wait()
}

var operator = commands.Meta{Actor: events.UserActor("ann"), Scope: new(labels.Everything())}

func (h *house) do(c commands.Command) {
	h.t.Helper()
	if _, err := h.commands.Do(context.Background(), c, operator); err != nil {
		h.t.Fatalf("%T: %v", c, err)
	}
	synctest.Wait()
}

const (
	web = events.VMID("vm-web")
	key = "a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1"
)

// device makes an approved device with a virtual machine that is off.
func (h *house) device() events.DeviceID {
	h.t.Helper()
	id := h.pending()
	h.do(commands.ApproveDevice{Device: id})
	h.do(commands.ReportInventory{Device: id, Epoch: 1, Facts: []commands.InventoryFact{
		{Seq: 1, Event: events.HostObserved{Host: events.Host{License: events.License{Writable: true}}}},
		{Seq: 2, Event: events.VMObserved{VM: events.VM{ID: web, Name: "web", Power: events.PowerOff, Tools: events.ToolsUnknown}}},
	}})
	h.door.take() // the greeting after the approval
	return id
}

func (h *house) pending() events.DeviceID {
	h.t.Helper()
	id := events.DeviceID(uuid.NewString())
	h.do(commands.RegisterDevice{
		Device: id, Name: "shop", Token: events.TokenID(events.NewID()), KeyHash: key,
		Certificate: events.CertificateIssued{Serial: "01", KeyHash: key, NotBefore: h.start, NotAfter: h.start.AddDate(1, 0, 0)},
	})
	return id
}

// request asks the device for a task with an hour's deadline.
func (h *house) request(id events.DeviceID) events.TaskID {
	h.t.Helper()
	task := events.TaskID(events.NewID())
	h.do(commands.RequestTask{Device: id, Task: task, Kind: events.TaskVMPowerOn, VM: web, Deadline: time.Now().Add(time.Hour)})
	return task
}

func (h *house) accepts(id events.DeviceID, task events.TaskID) {
	h.t.Helper()
	h.do(commands.ReportTasks{Device: id, Epoch: 1, Facts: []commands.TaskFact{{Seq: 3, Task: task, Status: events.TaskStatusAccepted}}})
}

func session(conn uint64) commands.Session {
	return commands.Session{Conn: conn, Address: "192.0.2.7", AgentVersion: "1.0", Protocol: 1, At: time.Now()}
}

func (h *house) connect(id events.DeviceID, conn uint64) {
	h.presence.Connected(id, session(conn))
	synctest.Wait()
}

func (h *house) disconnect(id events.DeviceID, conn uint64) {
	h.presence.Disconnected(id, session(conn), "keep-alive ran out")
	synctest.Wait()
}

// happened lists the records that hold an event of one of the types.
func (h *house) happened(id events.DeviceID, types ...string) (out []events.Record) {
	h.t.Helper()
	for r, err := range h.store.Read(context.Background(), events.Filter{}) {
		if err != nil {
			h.t.Fatal(err)
		}
		if r.Subject.Device() == id && slices.ContainsFunc(r.Entries, func(en events.Entry) bool { return slices.Contains(types, en.Event.Type()) }) {
			out = append(out, r)
		}
	}
	return out
}

// presenceIs checks the presence events of a device, in their order.
func (h *house) presenceIs(id events.DeviceID, want ...string) []events.Record {
	h.t.Helper()
	got := h.happened(id, "DeviceConnected", "DeviceLost")
	var types []string
	for _, r := range got {
		types = append(types, r.Entries[0].Event.Type())
		if r.Actor != "system:presence" {
			h.t.Errorf("%s by %s", r.Entries[0].Event.Type(), r.Actor)
		}
	}
	if !slices.Equal(types, want) {
		h.t.Fatalf("presence events %v, want %v", types, want)
	}
	return got
}

// ended checks that a task has ended by one event, and returns it.
func (h *house) ended(id events.DeviceID) (events.Record, bool) {
	h.t.Helper()
	got := h.happened(id, "TaskSucceeded", "TaskFailed", "TaskRejected", "TaskCancelled", "TaskExpired")
	if len(got) > 1 {
		h.t.Fatalf("%d ends: %v", len(got), got)
	}
	if len(got) == 0 {
		return events.Record{}, false
	}
	return got[0], true
}

// door notes what it is asked for. It has no devices: what they do, the tests
// do.
type door struct {
	mu     sync.Mutex
	calls  []call
	err    error
	during func() // the next push of tasks, if set
}

type call struct {
	What   string
	Device events.DeviceID
	Tasks  []events.TaskID
	At     time.Time
}

func (d *door) note(c call) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	c.At = time.Now()
	d.calls = append(d.calls, c)
	return d.err
}

func (d *door) PushTasks(_ context.Context, id events.DeviceID, tasks []commands.Task) error {
	c := call{What: "tasks", Device: id}
	for _, t := range tasks {
		c.Tasks = append(c.Tasks, t.ID)
	}
	err := d.note(c)
	d.mu.Lock()
	during := d.during
	d.during = nil
	d.mu.Unlock()
	if during != nil {
		during()
	}
	return err
}

func (d *door) PushCancel(_ context.Context, id events.DeviceID, task events.TaskID) error {
	return d.note(call{What: "cancel", Device: id, Tasks: []events.TaskID{task}})
}

func (d *door) Kick(_ context.Context, id events.DeviceID, _ string) error {
	return d.note(call{What: "kick", Device: id})
}

func (d *door) Retire(_ context.Context, id events.DeviceID) error {
	return d.note(call{What: "retire", Device: id})
}

func (d *door) Refresh(_ context.Context, id events.DeviceID) error {
	return d.note(call{What: "refresh", Device: id})
}

func (d *door) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err = err
}

// take returns the calls since the last take.
func (d *door) take() []call {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.calls
	d.calls = nil
	return c
}

// times lists when calls of a kind came, in seconds since a time.
func times(calls []call, what string, since time.Time) (out []int) {
	for _, c := range calls {
		if c.What == what {
			out = append(out, int(c.At.Sub(since).Seconds()))
		}
	}
	return out
}

// replayed is a read model that is always up to date.
type replayed struct{ store events.Store }

func (r replayed) OpenTasks(ctx context.Context) (out []OpenTask, position uint64, err error) {
	queues := map[events.DeviceID]commands.Tasks{}
	for rec, err := range r.store.Read(ctx, events.Filter{Subjects: []string{"ev.tasks.*"}}) {
		if err != nil {
			return nil, 0, err
		}
		id := rec.Subject.Device()
		queues[id] = queues[id].Evolve(rec)
	}
	for id, q := range queues {
		for _, t := range q.Open() {
			out = append(out, OpenTask{Device: id, Task: t})
		}
	}
	position, err = r.store.Last(ctx)
	return out, position, err
}

func (r replayed) ConnectedDevices(ctx context.Context) (out []events.DeviceID, err error) {
	devices := map[events.DeviceID]commands.Device{}
	for rec, err := range r.store.Read(ctx, events.Filter{Subjects: []string{"ev.device.*"}}) {
		if err != nil {
			return nil, err
		}
		id := rec.Subject.Device()
		devices[id] = devices[id].Evolve(rec)
	}
	for id, d := range devices {
		if d.Connected {
			out = append(out, id)
		}
	}
	return out, nil
}

// behind is a read model that has read nothing yet.
type behind struct{}

func (behind) OpenTasks(context.Context) ([]OpenTask, uint64, error)       { return nil, 0, nil }
func (behind) ConnectedDevices(context.Context) ([]events.DeviceID, error) { return nil, nil }

// broken is a read model that cannot be read.
type broken struct{ tasks, devices error }

func (b broken) OpenTasks(context.Context) ([]OpenTask, uint64, error) { return nil, 0, b.tasks }

func (b broken) ConnectedDevices(context.Context) ([]events.DeviceID, error) { return nil, b.devices }

// lines is a slog.Handler that counts messages.
type lines struct {
	mu sync.Mutex
	n  map[string]int
}

func (l *lines) Enabled(context.Context, slog.Level) bool { return true }
func (l *lines) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *lines) WithGroup(string) slog.Handler            { return l }
func (l *lines) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.n == nil {
		l.n = map[string]int{}
	}
	l.n[r.Message]++
	return nil
}

func (l *lines) count(message string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.n[message]
}

var errTest = errors.New("test: no answer")

func TestNewRefuses(t *testing.T) {
	store := eventstest.NewMemory()
	d, err := commands.New(commands.Config{Store: store})
	if err != nil {
		t.Fatal(err)
	}
	good := Config{Store: store, Commands: d, Door: &door{}, ReadModel: behind{}, Presence: NewPresence(PresenceConfig{Commands: d})}
	if _, err := New(good); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]func(*Config){
		"Store":                func(c *Config) { c.Store = nil },
		"Commands":             func(c *Config) { c.Commands = nil },
		"Door":                 func(c *Config) { c.Door = nil },
		"ReadModel":            func(c *Config) { c.ReadModel = nil },
		"Presence":             func(c *Config) { c.Presence = nil },
		"Presence of nobody":   func(c *Config) { c.Presence = NewPresence(PresenceConfig{}) },
		"Presence in the past": func(c *Config) { c.Presence = NewPresence(PresenceConfig{Commands: d, Grace: -1}) },
		"Resend":               func(c *Config) { c.Resend = -1 },
	} {
		c := good
		f(&c)
		if _, err := New(c); err == nil {
			t.Errorf("%s: New did not fail", name)
		}
	}
}

func TestRunNeedsAReadModel(t *testing.T) {
	for _, b := range []broken{{tasks: errTest}, {devices: errTest}} {
		store := eventstest.NewMemory()
		d, err := commands.New(commands.Config{Store: store})
		if err != nil {
			t.Fatal(err)
		}
		r, err := New(Config{Store: store, Commands: d, Door: &door{}, ReadModel: b, Presence: NewPresence(PresenceConfig{Commands: d})})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Run(t.Context()); !errors.Is(err, errTest) {
			t.Errorf("%+v: Run returned %v", b, err)
		}
	}
}

// stumbling is a log whose Follow breaks off now and then.
type stumbling struct {
	*eventstest.Memory
	mu    sync.Mutex
	steps int
}

func TestFollowGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &stumbling{Memory: eventstest.NewMemory(), steps: 3}
		d, err := commands.New(commands.Config{Store: s})
		if err != nil {
			t.Fatal(err)
		}
		logs, dr := &lines{}, &door{}
		r, err := New(Config{Store: s, Commands: d, Door: dr, ReadModel: behind{}, Presence: NewPresence(PresenceConfig{Commands: d}), Log: slog.New(logs)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		h := &house{t: t, store: s.Memory, commands: d, door: dr, start: time.Now()}
		for range 5 {
			h.pending() // each breaks off
		}
		id := h.pending()
		h.do(commands.ApproveDevice{Device: id})
		h.pass(10 * time.Minute)
		calls := dr.take()
		if len(calls) != 1 || calls[0].What != "refresh" || calls[0].Device != id {
			t.Errorf("calls at the door %v, want one greeting of %s", calls, id)
		}
		if n := logs.count("reactors cannot follow the event log"); n == 0 {
			t.Error("nobody said that the log could not be followed")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func (s *stumbling) Follow(ctx context.Context, f events.Filter) iter.Seq2[events.Record, error] {
	return func(yield func(events.Record, error) bool) {
		n := 0
		for r, err := range s.Memory.Follow(ctx, f) {
			s.mu.Lock()
			fall := s.steps > 0 && n == 1
			if fall {
				s.steps--
			}
			s.mu.Unlock()
			if fall {
				yield(events.Record{}, fmt.Errorf("follow: %w", errTest))
				return
			}
			n++
			if !yield(r, err) {
				return
			}
		}
	}
}
