package telemetry

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pallas/events"
)

const device = events.DeviceID("6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f")

func TestUsageForm(t *testing.T) {
	u := Usage{Day: "2026-11-23", Devices: []DeviceBytes{{device, Bytes{1 << 48, 7}}, {device, Bytes{}}}}
	b, err := json.Marshal(u)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"day":"2026-11-23","devices":[["6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f",281474976710656,7],["6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f",0,0]]}`
	if string(b) != want {
		t.Errorf("usage is %s, want %s", b, want)
	}
	got, err := Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(u, got); d != "" {
		t.Errorf("round trip (-want +got):\n%s", d)
	}
}

func TestBadUsage(t *testing.T) {
	for _, s := range []string{
		``, `{}`, `{"day":"2026-02-30"}`, `{"day":"0001-01-01"}`, `{"day":"2026-11-23","devices":[[]]}`,
		`{"day":"2026-11-23","devices":[["x",1,2]]}`, `{"day":"2026-11-23","devices":[["6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f",-1,2]]}`,
		`{"day":"2026-11-23","devices":[["6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f",1]]}`,
		`{"day":"2026-11-23","devices":[["6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f",1,281474976710657]]}`,
	} {
		if u, err := Decode([]byte(s)); err == nil {
			t.Errorf("%s is taken as %+v", s, u)
		}
	}
}

func TestDay(t *testing.T) {
	eve := time.Date(2027, 1, 1, 0, 30, 0, 0, time.FixedZone("", 3600))
	d := DayOf(eve)
	if d != "2026-12-31" || d.Add(1) != "2027-01-01" || d.Add(-365) != "2025-12-31" || d.Until("2027-01-02") != 2 || d.Until(d) != 0 {
		t.Errorf("day of %v is %s, the next %s", eve, d, d.Add(1))
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"day":"2026-11-23","devices":[["6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f",1,2]]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		u, err := Decode(data)
		if err != nil {
			return
		}
		b, err := json.Marshal(u)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Decode(b)
		if err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		if d := cmp.Diff(u, again); d != "" {
			t.Error(d)
		}
	})
}
