package commands

import (
	"maps"
	"math"

	"pallas/events"
)

// MaxNotes is how many bytes the notes on a device may have.
const MaxNotes = 4 << 10

// UpdateDevice changes what people may change of a device. What it does not
// name stays; what it does is one decision, so that it happens whole or not at
// all.
type UpdateDevice struct {
	Device events.DeviceID
	Name   *string
	// Labels are set, or removed where the value is nil. With ClearLabels no
	// others stay.
	Labels      map[string]*string
	ClearLabels bool
	// Notes replace the notes; "" removes them.
	Notes *string
	Site  *SitePatch
	// IfRevision refuses the command unless the device is at this revision; 0
	// means any.
	IfRevision uint64
}

// SitePatch changes where a device stands. What it does not name stays.
type SitePatch struct {
	// Clear forgets the site first. A patch that says nothing else leaves none.
	Clear               bool
	Name                *string
	Latitude, Longitude Change[float64]
}

// Change is what a patch says of a field that need not have a value: nothing
// unless it is set, and then the value, or nil for none.
type Change[T any] struct {
	Set   bool
	Value *T
}

func (c Change[T]) apply(old *T) *T {
	if c.Set {
		return c.Value
	}
	return old
}

// Subject returns the device's aggregate.
func (c UpdateDevice) Subject() events.Subject { return events.DeviceSubject(c.Device) }

func (UpdateDevice) sealed() {}

// labels returns the labels after the command.
func (c UpdateDevice) labels(old map[string]string) map[string]string {
	out := map[string]string{}
	if !c.ClearLabels {
		maps.Copy(out, old)
	}
	for k, v := range c.Labels {
		if v == nil {
			delete(out, k)
		} else {
			out[k] = *v
		}
	}
	return out
}

// apply returns the site after the patch, nil for none. It shares nothing with
// the old one.
func (p SitePatch) apply(old *events.Site) *events.Site {
	site := copySite(old)
	if p.Clear {
		site = nil
	}
	if p.Name == nil && !p.Latitude.Set && !p.Longitude.Set {
		return site
	}
	if site == nil {
		site = &events.Site{}
	}
	if p.Name != nil {
		site.Name = *p.Name
	}
	site.Latitude, site.Longitude = p.Latitude.apply(site.Latitude), p.Longitude.apply(site.Longitude)
	return copySite(site)
}

func (d Device) update(c UpdateDevice) ([]events.Event, error) {
	name, labels, notes, site := d.Name, c.labels(d.Labels), d.Notes, d.Site
	var checks []*Error
	if c.Name != nil {
		name = *c.Name
		checks = append(checks, checkName("name", name))
	}
	if c.Labels != nil || c.ClearLabels {
		checks = append(checks, checkLabels(labels))
	}
	if c.Notes != nil {
		notes = *c.Notes
		checks = append(checks, checkText("notes", notes, MaxNotes))
	}
	if c.Site != nil {
		site = c.Site.apply(d.Site)
		checks = append(checks, checkSite(site))
	}
	if err := first(append(checks, d.ready(c.Device, c.IfRevision))...); err != nil {
		return nil, err
	}
	if d.Trust == TrustRetired {
		return nil, d.isRetired()
	}
	var out []events.Event
	if name != d.Name {
		out = append(out, events.DeviceRenamed{Name: name})
	}
	if !maps.Equal(labels, d.Labels) {
		out = append(out, events.DeviceLabelled{Labels: copyLabels(labels)})
	}
	if notes != d.Notes || !sameSite(site, d.Site) {
		out = append(out, events.DeviceDescribed{Notes: notes, Site: copySite(site)})
	}
	return out, nil
}

func checkSite(s *events.Site) *Error {
	switch {
	case s == nil:
		return nil
	case s.Name == "":
		return invalid("site.name", "is missing: a site has a name; null as the site forgets it")
	case s.Latitude == nil && s.Longitude != nil:
		return invalid("site.latitude", "is missing: give both coordinates or none")
	case s.Latitude != nil && s.Longitude == nil:
		return invalid("site.longitude", "is missing: give both coordinates or none")
	}
	if err := checkName("site.name", s.Name); err != nil || s.Latitude == nil {
		return err
	}
	if err := checkDegrees("site.latitude", *s.Latitude, 90); err != nil {
		return err
	}
	return checkDegrees("site.longitude", *s.Longitude, 180)
}

func checkDegrees(field string, v, limit float64) *Error {
	if math.IsNaN(v) || math.Abs(v) > limit {
		return invalid(field, "%v: want degrees from %v to %v", v, -limit, limit)
	}
	return nil
}

func sameSite(a, b *events.Site) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Name == b.Name && sameNumber(a.Latitude, b.Latitude) && sameNumber(a.Longitude, b.Longitude)
}

func sameNumber(a, b *float64) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}

// copySite copies a site; none is nil.
func copySite(s *events.Site) *events.Site {
	if s == nil {
		return nil
	}
	c := events.Site{Name: s.Name}
	if s.Latitude != nil {
		c.Latitude = new(*s.Latitude)
	}
	if s.Longitude != nil {
		c.Longitude = new(*s.Longitude)
	}
	return &c
}
