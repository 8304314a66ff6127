package commands

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"pallas/events"
)

func TestUpdateDevice(t *testing.T) {
	zeil := events.Site{Name: "Frankfurt, Zeil 106", Latitude: new(50.1147), Longitude: new(8.6821)}
	described := with(approved, onDevice(events.DeviceDescribed{Notes: "behind the counter", Site: &zeil}))
	many := func(n int) map[string]*string {
		m := map[string]*string{}
		for i := range n {
			m[fmt.Sprintf("k%d", i)] = new("v")
		}
		return m
	}
	full := map[string]string{"site": "fra"}
	for k := range many(63) {
		full[k] = "v"
	}
	set := func(v float64) Change[float64] { return Change[float64]{Set: true, Value: &v} }
	var none Change[float64]
	forget := Change[float64]{Set: true}
	site := func(p SitePatch) UpdateDevice { return UpdateDevice{Device: dev, Site: &p} }
	play(t, []scene{
		{name: "rename", given: approved, when: UpdateDevice{Device: dev, Name: new("shop 2")}, then: emit(events.DeviceRenamed{Name: "shop 2"})},
		{name: "rename as it is", given: approved, when: UpdateDevice{Device: dev, Name: new("shop-1")}},
		{name: "rename to nothing", given: approved, when: UpdateDevice{Device: dev, Name: new("")}, refused: KindInvalid, field: "name", says: "is empty"},

		{
			name: "set labels", given: approved, when: UpdateDevice{Device: dev, Labels: map[string]*string{"example.com/role": new("pos"), "empty": new("")}},
			then: emit(events.DeviceLabelled{Labels: map[string]string{"site": "fra", "example.com/role": "pos", "empty": ""}}),
		},
		{name: "set labels as they are", given: approved, when: UpdateDevice{Device: dev, Labels: map[string]*string{"site": new("fra"), "other": nil}}},
		{name: "remove a label", given: approved, when: UpdateDevice{Device: dev, Labels: map[string]*string{"site": nil}}, then: emit(events.DeviceLabelled{})},
		{name: "remove all labels", given: approved, when: UpdateDevice{Device: dev, ClearLabels: true}, then: emit(events.DeviceLabelled{})},
		{
			name: "replace all labels", given: approved, when: UpdateDevice{Device: dev, ClearLabels: true, Labels: map[string]*string{"role": new("pos")}},
			then: emit(events.DeviceLabelled{Labels: map[string]string{"role": "pos"}}),
		},
		{name: "a 64th label", given: approved, when: UpdateDevice{Device: dev, Labels: many(63)}, then: emit(events.DeviceLabelled{Labels: full})},
		{name: "a 65th label", given: approved, when: UpdateDevice{Device: dev, Labels: many(64)}, refused: KindInvalid, field: "labels", says: "at most 64"},
		{name: "a bad label", given: approved, when: UpdateDevice{Device: dev, Labels: map[string]*string{"-a": new("")}}, refused: KindInvalid, field: "labels", says: `key "-a"`},

		{name: "note", given: approved, when: UpdateDevice{Device: dev, Notes: new("a\n\tb")}, then: emit(events.DeviceDescribed{Notes: "a\n\tb"})},
		{name: "note as it is", given: described, when: UpdateDevice{Device: dev, Notes: new("behind the counter")}},
		{name: "notes keep the site", given: described, when: UpdateDevice{Device: dev, Notes: new("")}, then: emit(events.DeviceDescribed{Site: &zeil})},
		{name: "notes of 4096 bytes", given: approved, when: UpdateDevice{Device: dev, Notes: new(strings.Repeat("n", 4096))}, then: emit(events.DeviceDescribed{Notes: strings.Repeat("n", 4096)})},
		{name: "notes of 4097 bytes", given: approved, when: UpdateDevice{Device: dev, Notes: new(strings.Repeat("n", 4097))}, refused: KindInvalid, field: "notes", says: "at most 4096"},
		{name: "notes with a control character", given: approved, when: UpdateDevice{Device: dev, Notes: new("\x1b[2J")}, refused: KindInvalid, field: "notes", says: "control character"},

		{name: "a site without coordinates", given: approved, when: site(SitePatch{Name: new("Frankfurt")}), then: emit(events.DeviceDescribed{Site: &events.Site{Name: "Frankfurt"}})},
		{
			name: "a site with coordinates", given: approved, when: site(SitePatch{Name: new("null island"), Latitude: set(0), Longitude: set(0)}),
			then: emit(events.DeviceDescribed{Site: &events.Site{Name: "null island", Latitude: new(0.0), Longitude: new(0.0)}}),
		},
		{
			name: "another name of the site", given: described, when: site(SitePatch{Name: new("Zeil")}),
			then: emit(events.DeviceDescribed{Notes: "behind the counter", Site: &events.Site{Name: "Zeil", Latitude: zeil.Latitude, Longitude: zeil.Longitude}}),
		},
		{name: "the site as it is", given: described, when: site(SitePatch{Name: &zeil.Name, Latitude: set(*zeil.Latitude)})},
		{name: "nothing about the site", given: described, when: site(SitePatch{})},
		{
			name: "coordinates forgotten", given: described, when: site(SitePatch{Latitude: forget, Longitude: forget}),
			then: emit(events.DeviceDescribed{Notes: "behind the counter", Site: &events.Site{Name: zeil.Name}}),
		},
		{name: "the site forgotten", given: described, when: site(SitePatch{Clear: true}), then: emit(events.DeviceDescribed{Notes: "behind the counter"})},
		{name: "no site forgotten", given: approved, when: site(SitePatch{Clear: true})},
		{name: "the poles", given: approved, when: site(SitePatch{Name: new("s"), Latitude: set(-90), Longitude: set(180)}), then: emit(events.DeviceDescribed{Site: &events.Site{Name: "s", Latitude: new(-90.0), Longitude: new(180.0)}})},
		{name: "a site without a name", given: approved, when: site(SitePatch{Latitude: set(1), Longitude: set(1)}), refused: KindInvalid, field: "site.name", says: "is missing"},
		{name: "a site with a bad name", given: approved, when: site(SitePatch{Name: new(" x")}), refused: KindInvalid, field: "site.name", says: "white space"},
		{name: "no longitude", given: approved, when: site(SitePatch{Name: new("s"), Latitude: set(1)}), refused: KindInvalid, field: "site.longitude", says: "both coordinates"},
		{name: "no latitude", given: approved, when: site(SitePatch{Name: new("s"), Longitude: set(1)}), refused: KindInvalid, field: "site.latitude", says: "both coordinates"},
		{name: "one coordinate forgotten", given: described, when: site(SitePatch{Latitude: forget, Longitude: none}), refused: KindInvalid, field: "site.latitude", says: "both coordinates"},
		{name: "beyond the pole", given: approved, when: site(SitePatch{Name: new("s"), Latitude: set(90.1), Longitude: set(1)}), refused: KindInvalid, field: "site.latitude", says: "-90 to 90"},
		{name: "beyond the date line", given: approved, when: site(SitePatch{Name: new("s"), Latitude: set(1), Longitude: set(-180.1)}), refused: KindInvalid, field: "site.longitude", says: "-180 to 180"},
		{name: "no number", given: approved, when: site(SitePatch{Name: new("s"), Latitude: set(math.NaN()), Longitude: set(1)}), refused: KindInvalid, field: "site.latitude", says: "NaN"},

		{
			name: "all at once is one decision", given: approved,
			when: UpdateDevice{Device: dev, Name: new("till"), Labels: map[string]*string{"role": new("pos")}, Notes: new("n"), Site: &SitePatch{Name: new("s")}, IfRevision: 2},
			then: emit(events.DeviceRenamed{Name: "till"}, events.DeviceLabelled{Labels: map[string]string{"site": "fra", "role": "pos"}}, events.DeviceDescribed{Notes: "n", Site: &events.Site{Name: "s"}}),
		},
		{
			name: "one bad field and nothing happens", given: approved, when: UpdateDevice{Device: dev, Name: new("till"), Notes: new("\x00")},
			refused: KindInvalid, field: "notes", says: "control",
		},
		{name: "update a retired device", given: retired, when: UpdateDevice{Device: dev, Notes: new("x")}, refused: KindConflict, code: CodeRetired, says: "was retired"},
		{name: "update an unknown device", when: UpdateDevice{Device: dev, Name: new("x")}, refused: KindNotFound, says: "is not known"},
		{name: "update at another revision", given: approved, when: UpdateDevice{Device: dev, Name: new("x"), IfRevision: 9}, refused: KindStale, field: "If-Match", says: "at revision 2"},
	})
}

// A state that was handed out does not change with the site that it was made
// of, nor with later patches.
func TestSitesShareNothing(t *testing.T) {
	e := events.DeviceDescribed{Site: &events.Site{Name: "a", Latitude: new(1.0), Longitude: new(2.0)}}
	d := with(approved, onDevice(e)).states().Device
	got := d.copy()
	*e.Site.Latitude, e.Site.Name = 9, "b"
	out, err := Decide(UpdateDevice{Device: dev, Site: &SitePatch{Name: new("c"), Latitude: Change[float64]{Set: true, Value: new(3.0)}}}, States{Device: d}, t0)
	if err != nil || len(out.Entries) != 1 {
		t.Fatalf("%+v, %v", out, err)
	}
	for _, s := range []*events.Site{d.Site, got.Site} {
		if s.Name != "a" || *s.Latitude != 1 || *s.Longitude != 2 {
			t.Errorf("site %+v", s)
		}
	}
}
