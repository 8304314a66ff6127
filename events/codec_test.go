package events_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"pallas/events"
)

var write = flag.Bool("write", false, "write golden files that are missing; existing ones are never changed")

// golden returns the contents of a golden file.
func golden(t *testing.T, name string, encoded []byte) []byte {
	t.Helper()
	path := filepath.Join("testdata", "golden", name)
	b, err := os.ReadFile(path)
	if *write && errors.Is(err, fs.ErrNotExist) {
		b, err = pretty(t, encoded), os.WriteFile(path, pretty(t, encoded), 0o600)
	}
	if err != nil {
		t.Fatalf("golden file: %v (go test ./events -write makes it)", err)
	}
	return b
}

func pretty(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := json.Indent(&out, b, "", "  "); err != nil {
		t.Fatal(err)
	}
	out.WriteByte('\n')
	return out.Bytes()
}

func compact(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := json.Compact(&out, b); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestTypes demands of every type of event what it must not be without.
func TestTypes(t *testing.T) {
	example := map[string]events.Event{}
	for _, e := range examples() {
		if example[e.Type()] != nil {
			t.Errorf("%s has two examples", e.Type())
		}
		example[e.Type()] = e
	}
	reference, err := os.ReadFile("../docs/reference/events.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, info := range events.Types() {
		t.Run(info.Name, func(t *testing.T) {
			if seen[info.Name] {
				t.Error("is in the codec table twice")
			}
			seen[info.Name] = true
			if got := reflect.TypeOf(info.Zero).Name(); got != info.Name || info.Zero.Type() != info.Name {
				t.Errorf("Go type %s is stored as %s", got, info.Zero.Type())
			}
			e := example[info.Name]
			if e == nil {
				t.Fatal("has no example")
			}
			unset(t, info.Name, reflect.ValueOf(e))
			version, data, err := events.EncodeEvent(e)
			if err != nil {
				t.Fatal(err)
			}
			if version != info.Version {
				t.Errorf("is written as version %d, the table says %d", version, info.Version)
			}
			file := golden(t, fmt.Sprintf("%s.v%d.json", info.Name, info.Version), data)
			if diff := cmp.Diff(string(file), string(pretty(t, data))); diff != "" {
				t.Errorf("encoding changed (-golden +now):\n%s", diff)
			}
			for v := 1; v <= info.Version; v++ {
				stored := golden(t, fmt.Sprintf("%s.v%d.json", info.Name, v), nil)
				decoded, err := events.DecodeEvent(info.Name, v, stored)
				if err != nil {
					t.Fatalf("golden of version %d: %v", v, err)
				}
				if v < info.Version {
					continue
				}
				if diff := cmp.Diff(e, decoded); diff != "" {
					t.Errorf("golden decodes to something else (-example +golden):\n%s", diff)
				}
				_, again, err := events.EncodeEvent(decoded)
				if err != nil || !bytes.Equal(again, compact(t, stored)) {
					t.Errorf("golden does not encode to its own bytes: %v\n%s", err, again)
				}
			}
			for v := 1; v <= info.Version; v++ {
				if _, err := os.Stat(fmt.Sprintf("../schema/events/%s.v%d.schema.json", info.Name, v)); err != nil {
					t.Errorf("has no schema: %v", err)
				}
			}
			if !bytes.Contains(reference, []byte("### "+info.Name+"\n")) {
				t.Error("has no section in docs/reference/events.md (go run ./schema/gen)")
			}
		})
	}
	for name := range example {
		if !seen[name] {
			t.Errorf("example of %s, which is not in the codec table", name)
		}
	}
	files, err := os.ReadDir("testdata/golden")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		name, _, _ := strings.Cut(f.Name(), ".")
		if !seen[name] && name != "decision" {
			t.Errorf("golden file %s is of no known type: types are never removed", f.Name())
		}
	}
}

// unset reports fields that the example leaves empty.
func unset(t *testing.T, path string, v reflect.Value) {
	t.Helper()
	if v.Type() == reflect.TypeFor[time.Time]() {
		if v.IsZero() {
			t.Errorf("%s: the example does not set it", path)
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			unset(t, path+"."+v.Type().Field(i).Name, v.Field(i))
		}
	case reflect.Pointer:
		if v.IsNil() {
			t.Errorf("%s: the example does not set it", path)
		} else if v.Elem().Kind() != reflect.Slice {
			unset(t, path, v.Elem())
		}
	case reflect.Slice:
		if v.Len() == 0 {
			t.Errorf("%s: the example does not set it", path)
		}
		for i := range v.Len() {
			unset(t, fmt.Sprintf("%s[%d]", path, i), v.Index(i))
		}
	default:
		if v.IsZero() {
			t.Errorf("%s: the example does not set it", path)
		}
	}
}

func TestDecisionGolden(t *testing.T) {
	d := exampleDecision()
	b, err := events.Encode(d)
	if err != nil {
		t.Fatal(err)
	}
	file := golden(t, "decision.json", b)
	if diff := cmp.Diff(string(file), string(pretty(t, b))); diff != "" {
		t.Errorf("encoding changed (-golden +now):\n%s", diff)
	}
	got, err := events.Decode(d.Subject, file)
	if err != nil {
		t.Fatal(err)
	}
	// The file is indented, and an Unknown keeps its bytes.
	u := got.Entries[1].Event.(events.Unknown)
	u.Data = compact(t, u.Data)
	got.Entries[1].Event = u
	if diff := cmp.Diff(d, got); diff != "" {
		t.Errorf("golden decodes to something else (-example +golden):\n%s", diff)
	}
}

func TestEncodeIsUTC(t *testing.T) {
	d := exampleDecision()
	want, err := events.Encode(d)
	if err != nil {
		t.Fatal(err)
	}
	zone := time.FixedZone("", 2*3600)
	d.Time = d.Time.In(zone)
	d.Entries[0].DeviceTime = ptr(d.Entries[0].DeviceTime.In(zone))
	if got, err := events.Encode(d); err != nil || !bytes.Equal(got, want) {
		t.Errorf("a decision in another time zone is written differently: %v\n%s", err, got)
	}
}

func TestUnknown(t *testing.T) {
	for _, c := range []struct {
		name    string
		version int
	}{{"VMDreamt", 1}, {"VMRemoved", 2}, {"VMRemoved", 1 << 40}, {"", 0}} {
		for _, data := range []string{`{"vm":"a","z":1e3,"html":"<&>","s":"\u00e4"}`, `null`, `7`, `[]`} {
			in := fmt.Sprintf(`{"id":"i","time":"2031-05-06T07:08:09Z","actor":"system:x","events":[{"type":%q,"version":%d,"data":%s}]}`,
				c.name, c.version, data)
			d, err := events.Decode("ev.x.y", []byte(in))
			if err != nil {
				t.Errorf("%s version %d: %v", c.name, c.version, err)
				continue
			}
			want := events.Unknown{Name: c.name, Version: c.version, Data: []byte(data)}
			if diff := cmp.Diff(events.Event(want), d.Entries[0].Event); diff != "" {
				t.Errorf("%s version %d:\n%s", c.name, c.version, diff)
			}
			if out, err := events.Encode(d); err != nil || string(out) != in {
				t.Errorf("%s version %d comes back changed: %v\n%s\n%s", c.name, c.version, err, in, out)
			}
		}
	}
}

func TestDamagedPayload(t *testing.T) {
	for _, e := range examples() {
		for _, data := range []string{``, `null`, `7`, `[]`, `"x"`, `{`, `{"vm":`, `{}{}`, `{"name":7,"vm":7,"task":7,"policy":7,"serial":7,"address":7,"labels":7,"reason":7,"host":7,"condition":7,"hash":7,"token":7,"device":7,"notes":7,"limit":7,"user":7,"how":7,"expires":7,"method":7,"count":"x","operation":7,"active":7,"anchors":7}`} {
			switch e.(type) {
			case events.JoinTokenRevoked, events.CertificateRotationRequested:
				if strings.HasPrefix(data, `{"n`) {
					continue // it has no field to be wrong
				}
			}
			if got, err := events.DecodeEvent(e.Type(), 1, json.RawMessage(data)); err == nil {
				t.Errorf("%s: payload %s decodes to %+v, want an error", e.Type(), data, got)
			} else if !strings.Contains(err.Error(), e.Type()) {
				t.Errorf("%s: the error does not name the type: %v", e.Type(), err)
			}
		}
		for _, version := range []int{0, -1} {
			if got, err := events.DecodeEvent(e.Type(), version, json.RawMessage(`{}`)); err == nil {
				t.Errorf("%s version %d decodes to %+v, want an error", e.Type(), version, got)
			}
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	const good = `{"id":"i","time":"2031-05-06T07:08:09Z","actor":"system:x","events":[{"type":"DeviceApproved","version":1,"data":{"policy":"auto"}}]}`
	if _, err := events.Decode("ev.x.y", []byte(good)); err != nil {
		t.Fatalf("the good one: %v", err)
	}
	if _, err := events.Decode("ev.x", []byte(good)); err == nil {
		t.Error("a bad subject is accepted")
	}
	for _, c := range [][2]string{
		{`"id":"i",`, ``},
		{`"time":"2031-05-06T07:08:09Z",`, ``},
		{`"2031-05-06T07:08:09Z"`, `"yesterday"`},
		{`"actor":"system:x",`, ``},
		{`[{"type":"DeviceApproved","version":1,"data":{"policy":"auto"}}]`, `[]`},
		{`[{"type":"DeviceApproved","version":1,"data":{"policy":"auto"}}]`, `null`},
		{`,"data":{"policy":"auto"}`, ``},
		{`{"policy":"auto"}`, `null`},
		{`"auto"`, `1`},
		{`"version":1`, `"version":0`},
		{`"version":1`, `"version":"1"`},
		{`}}]}`, `}}]`},
		{`}}]}`, `}}]}}`},
		{good, ``},
		{good, `null`},
		{good, `[]`},
	} {
		in := strings.Replace(good, c[0], c[1], 1)
		if in == good {
			t.Fatalf("%q is not in the good one", c[0])
		}
		if d, err := events.Decode("ev.x.y", []byte(in)); err == nil {
			t.Errorf("%s decodes to %+v, want an error", in, d)
		}
	}
}

func TestEncodeRefuses(t *testing.T) {
	for name, spoil := range map[string]func(*events.Decision){
		"no id":       func(d *events.Decision) { d.ID = "" },
		"no time":     func(d *events.Decision) { d.Time = time.Time{} },
		"no actor":    func(d *events.Decision) { d.Actor = "" },
		"no events":   func(d *events.Decision) { d.Entries = nil },
		"nil event":   func(d *events.Decision) { d.Entries[0].Event = nil },
		"bad subject": func(d *events.Decision) { d.Subject = "ev.device.>" },
		"broken bytes": func(d *events.Decision) {
			d.Entries[1].Event = events.Unknown{Name: "X", Version: 1, Data: []byte(`{`)}
		},
		"year 10000": func(d *events.Decision) { d.Time = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) },
	} {
		d := exampleDecision()
		spoil(&d)
		if b, err := events.Encode(d); err == nil {
			t.Errorf("%s: encodes to %s, want an error", name, b)
		}
	}
}

// TestEmptyListInPatch keeps the difference between "became empty" and
// "unchanged".
func TestEmptyListInPatch(t *testing.T) {
	vm := events.VM{ID: exampleVM, IPs: []string{"10.0.0.1"}, Disks: []events.Disk{{Key: 1}}, NICs: []events.NIC{{Key: 1}}}
	for name, p := range map[string]events.VMPatch{
		"nil":   {IPs: new([]string), Disks: new([]events.Disk), NICs: new([]events.NIC)},
		"empty": {IPs: &[]string{}, Disks: &[]events.Disk{}, NICs: &[]events.NIC{}},
	} {
		_, data, err := events.EncodeEvent(events.VMChanged{VM: vm.ID, Patch: p})
		if err != nil {
			t.Fatal(err)
		}
		e, err := events.DecodeEvent("VMChanged", 1, data)
		if err != nil {
			t.Fatal(err)
		}
		got := e.(events.VMChanged).Patch.Apply(vm)
		if diff := cmp.Diff(events.VM{ID: vm.ID}, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s lists, applied after a round trip (-want +got):\n%s", name, diff)
		}
	}
	if got := (events.VMPatch{}).Apply(vm); !cmp.Equal(got, vm) {
		t.Errorf("an empty patch changed %+v to %+v", vm, got)
	}
}

// TestRoundTrip writes and reads arbitrary decisions of every type.
func TestRoundTrip(t *testing.T) {
	types := events.Types()
	text := rapid.String()
	moment := rapid.Custom(func(t *rapid.T) time.Time {
		return time.UnixMicro(rapid.Int64Range(-1e15, 1e17).Draw(t, "micros")).UTC()
	})
	rapid.Check(t, func(t *rapid.T) {
		d := events.Decision{
			ID:      events.ID(rapid.StringN(1, 40, 80).Draw(t, "id")),
			Subject: events.TasksSubject(exampleDevice),
			Time:    moment.Draw(t, "time"),
			Actor:   events.UserActor(text.Draw(t, "actor")),
			Source:  text.Draw(t, "source"), Cause: text.Draw(t, "cause"), Traceparent: text.Draw(t, "traceparent"),
		}
		for range rapid.IntRange(1, 4).Draw(t, "events") {
			var e events.Entry
			if rapid.Bool().Draw(t, "unknown") {
				data, err := json.Marshal(rapid.MapOf(text, rapid.Float64()).Draw(t, "data"))
				if err != nil {
					t.Fatal(err)
				}
				e.Event = events.Unknown{Name: "X" + text.Draw(t, "name"), Version: rapid.IntRange(1, 9).Draw(t, "version"), Data: data}
			} else {
				info := types[rapid.IntRange(0, len(types)-1).Draw(t, "type")]
				v := reflect.New(reflect.TypeOf(info.Zero)).Elem()
				fill(t, v)
				e.Event = v.Interface().(events.Event)
			}
			if rapid.Bool().Draw(t, "reported") {
				e.DeviceTime = ptr(moment.Draw(t, "device time"))
				e.Report = &events.Report{Epoch: rapid.Uint64().Draw(t, "epoch"), Seq: rapid.Uint64().Draw(t, "seq")}
			}
			d.Entries = append(d.Entries, e)
		}
		b, err := events.Encode(d)
		if err != nil {
			t.Fatal(err)
		}
		got, err := events.Decode(d.Subject, b)
		if err != nil {
			t.Fatalf("%v\n%s", err, b)
		}
		if diff := cmp.Diff(d, got, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("(-written +read):\n%s\n%s", diff, b)
		}
		if again, err := events.Encode(got); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("written again: %v\n%s\n%s", err, b, again)
		}
	})
}

// fill sets the value to anything of its type.
func fill(t *rapid.T, v reflect.Value) {
	if v.Type() == reflect.TypeFor[time.Time]() {
		v.Set(reflect.ValueOf(time.UnixMicro(rapid.Int64Range(-1e15, 1e17).Draw(t, "time")).UTC()))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(rapid.String().Draw(t, "string"))
	case reflect.Bool:
		v.SetBool(rapid.Bool().Draw(t, "bool"))
	case reflect.Int, reflect.Int64:
		v.SetInt(rapid.Int64().Draw(t, "int"))
	case reflect.Int32:
		v.SetInt(int64(rapid.Int32().Draw(t, "int32")))
	case reflect.Float64:
		v.SetFloat(rapid.Float64().Draw(t, "float64"))
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i))
		}
	case reflect.Pointer:
		if rapid.Bool().Draw(t, "set") {
			v.Set(reflect.New(v.Type().Elem()))
			fill(t, v.Elem())
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), rapid.IntRange(0, 3).Draw(t, "len"), 3))
		for i := range v.Len() {
			fill(t, v.Index(i))
		}
	case reflect.Map:
		v.Set(reflect.ValueOf(rapid.MapOfN(rapid.String(), rapid.String(), 0, 3).Draw(t, "map")))
	default:
		t.Fatalf("no way to fill a %s", v.Type())
	}
}

func FuzzDecode(f *testing.F) {
	b, err := events.Encode(exampleDecision())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	for _, e := range examples() {
		b, err := events.Encode(events.Decision{
			ID: "i", Subject: "ev.x.y", Time: at("2031-05-06T07:08:09Z"), Actor: "system:x", Entries: []events.Entry{{Event: e}},
		})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"id":"i","time":"2031-05-06T07:08:09+25:00","actor":"a","events":[{"type":"VMRemoved","data":null}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := events.Decode("ev.x.y", b)
		if err != nil {
			return
		}
		once, err := events.Encode(d)
		if err != nil {
			t.Fatalf("decoded, does not encode: %v", err)
		}
		d2, err := events.Decode("ev.x.y", once)
		if err != nil {
			t.Fatalf("encoded, does not decode: %v\n%s", err, once)
		}
		if twice, err := events.Encode(d2); err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("encoding is not stable: %v\n%s\n%s", err, once, twice)
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	d := exampleDecision()
	d.Entries[1].Event = events.VMChanged{VM: exampleVM, Patch: events.VMPatch{Power: ptr(events.PowerOff)}}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := events.Encode(d); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	d := exampleDecision()
	d.Entries[1].Event = events.VMChanged{VM: exampleVM, Patch: events.VMPatch{Power: ptr(events.PowerOff)}}
	data, err := events.Encode(d)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := events.Decode(d.Subject, data); err != nil {
			b.Fatal(err)
		}
	}
}
