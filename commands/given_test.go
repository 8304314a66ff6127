package commands

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"pallas/events"
)

// The cast of the tests.
const (
	dev   = events.DeviceID("6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f")
	dev2  = events.DeviceID("7a1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f")
	tok   = events.TokenID("01890a5d-ac96-774b-bcce-b302099a8057")
	task1 = events.TaskID("aaaaaaaa-0000-5000-8000-000000000001")
	task2 = events.TaskID("aaaaaaaa-0000-5000-8000-000000000002")
	task3 = events.TaskID("aaaaaaaa-0000-5000-8000-000000000003")
	web   = events.VMID("vm-web")
	db    = events.VMID("vm-db")
)

var (
	key1 = strings.Repeat("a1", 32)
	key2 = strings.Repeat("b2", 32)
	t0   = time.Date(2031, 1, 2, 3, 4, 5, 678901000, time.UTC)
)

// history is the events of each aggregate of one device and one token, as
// decisions in their order, one minute apart and ending at t0.
type history []events.Decision

func happened(s events.Subject, es ...events.Event) events.Decision {
	d := events.Decision{Subject: s}
	for _, e := range es {
		d.Entries = append(d.Entries, events.Entry{Event: e})
	}
	return d
}

// reportedAt is happened with the place of a device's report.
func reportedAt(s events.Subject, epoch, seq uint64, es ...events.Event) events.Decision {
	d := happened(s, es...)
	for i := range d.Entries {
		d.Entries[i].Report = &events.Report{Epoch: epoch, Seq: seq}
	}
	return d
}

func (h history) states() States {
	var s States
	for i, d := range h {
		if d.Time.IsZero() {
			d.Time = t0.Add(-time.Duration(len(h)-i) * time.Minute)
		}
		r := events.Record{Decision: d, Position: uint64(i + 1)}
		switch d.Subject.Kind() {
		case events.KindDevice:
			s.Device.fold(r)
		case events.KindInventory:
			s.Inventory.fold(r)
		case events.KindTasks:
			s.Tasks.fold(r)
		case events.KindToken:
			s.Token.fold(r)
		case events.KindAccess:
			s.Access.fold(r)
		case events.KindUser:
			s.User.fold(r)
		case events.KindAuthority:
			s.Authority.fold(r)
		}
	}
	return s
}

func with(parts ...history) (out history) {
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

func onDevice(es ...events.Event) history { return history{happened(events.DeviceSubject(dev), es...)} }

func onInventory(es ...events.Event) history {
	return history{happened(events.InventorySubject(dev), es...)}
}

func onToken(es ...events.Event) history { return history{happened(events.TokenSubject(tok), es...)} }

// onTasks makes a decision of each event.
func onTasks(es ...events.Event) (out history) {
	for _, e := range es {
		out = append(out, happened(events.TasksSubject(dev), e))
	}
	return out
}

var (
	registered = events.DeviceRegistered{Device: dev, Name: "shop-1", JoinToken: tok, KeyHash: key1, AgentVersion: "1.0", Labels: map[string]string{"site": "fra"}}
	pending    = onDevice(registered)
	approved   = with(pending, onDevice(events.DeviceApproved{Policy: "manual"}))
	retired    = with(approved, onDevice(events.DeviceRetired{}))
)

func host(writable bool, reason string) events.HostObserved {
	return events.HostObserved{Host: events.Host{Name: "esx-1", Product: "VMware ESXi", License: events.License{Writable: writable, Reason: reason}}}
}

func vmOf(id events.VMID, p events.PowerState) events.VM {
	return events.VM{ID: id, Name: "the " + string(id), Power: p, CPUs: 2, MemoryMiB: 2048, Tools: events.ToolsRunning}
}

func seen(vms ...events.VM) history {
	es := []events.Event{host(true, "")}
	for _, v := range vms {
		es = append(es, events.VMObserved{VM: v})
	}
	return onInventory(es...)
}

// scene is one row: given a history, when a command comes, then these events
// follow, or this refusal.
type scene struct {
	name  string
	given history
	when  Command
	then  []events.Event
	// refused is the kind of the refusal; field and code are its own; says is a
	// part of its text.
	refused     Kind
	field, code string
	says        string
	// of reports
	cursor  uint64
	resync  bool
	invalid []string // parts of the messages, in order
}

func play(t *testing.T, scenes []scene) {
	t.Helper()
	for _, s := range scenes {
		t.Run(s.name, func(t *testing.T) {
			states := s.given.states()
			before := s.given.states()
			out, err := Decide(s.when, states, t0)
			if diff := cmp.Diff(before, states); diff != "" {
				t.Errorf("the decision changed its input:\n%s", diff)
			}
			var e *Error
			switch {
			case s.refused != "":
				if !errors.As(err, &e) {
					t.Fatalf("got error %v, want a refusal of kind %q", err, s.refused)
				}
				if e.Kind != s.refused || e.Field != s.field || e.Code != s.code || !strings.Contains(e.Error(), s.says) {
					t.Errorf("refused with %+v\nwant kind %q, field %q, code %q, saying %q", *e, s.refused, s.field, s.code, s.says)
				}
				return
			case err != nil:
				t.Fatalf("refused: %v", err)
			}
			var got []events.Event
			for _, en := range out.Entries {
				got = append(got, en.Event)
			}
			if diff := cmp.Diff(s.then, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("events (-want +got):\n%s", diff)
			}
			if out.Cursor != s.cursor || out.Resync != s.resync {
				t.Errorf("cursor %d, resync %t; want %d, %t", out.Cursor, out.Resync, s.cursor, s.resync)
			}
			if len(out.Invalid) != len(s.invalid) {
				t.Fatalf("invalid %v, want %q", out.Invalid, s.invalid)
			}
			for i, part := range s.invalid {
				if !strings.Contains(out.Invalid[i].Message, part) {
					t.Errorf("invalid %q, want it to say %q", out.Invalid[i].Message, part)
				}
			}
		})
	}
}

// emit lists events.
func emit(es ...events.Event) []events.Event { return es }

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
