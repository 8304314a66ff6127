package esxi

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/vmware/govmomi/vim25/types"

	"pallas/mqttgw/wire"
)

// license reads what the host is licensed for.
func (d *Driver) license(ctx context.Context, s *session) (wire.License, error) {
	var all []types.LicenseManagerLicenseInfo
	if ref := s.content.LicenseManager; ref != nil {
		o, err := s.read(ctx, *ref, "licenses")
		// An account without Global.Licenses may manage machines all the same.
		if err != nil && !isFault[*types.NoPermission](err) {
			return wire.License{}, err
		}
		all = get[types.ArrayOfLicenseManagerLicenseInfo](o, "licenses").LicenseManagerLicenseInfo
	}
	out := wire.License{Writable: true}
	if len(all) > 0 {
		out = mapLicense(all[0])
	}
	d.judge(&out)
	return out, nil
}

// judge lets a refused write have the last word, until the licence changes.
func (d *Driver) judge(l *wire.License) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.refused.reason == "" {
		return
	}
	now := fmt.Sprintf("%q %q %d", l.Name, l.Edition, l.Expires)
	if d.refused.licence == "" {
		d.refused.licence = now
	}
	if d.refused.licence != now {
		d.refused = refused{}
		return
	}
	l.Writable, l.Reason = false, text("the host refused a change: "+d.refused.reason)
}

func mapLicense(i types.LicenseManagerLicenseInfo) wire.License {
	out := wire.License{Name: text(i.Name), Edition: text(i.EditionKey), Writable: true}
	features := map[string]bool{}
	for _, p := range i.Properties {
		switch v := p.Value.(type) {
		case time.Time:
			if p.Key == "expirationDate" {
				out.Expires = unix(v)
			}
		case types.KeyValue:
			if p.Key == "feature" {
				features[strings.ToLower(v.Value)] = true
			}
		}
	}
	// The free edition is known by its key; its name counts only if it also
	// lacks the features that every edition with a writable API lists.
	api := features["vsphere api"] || features["vstorage apis"] || features["vcenter agent for vmware host"]
	free := strings.HasPrefix(strings.ToLower(i.EditionKey), "esxbasic") ||
		(strings.Contains(strings.ToLower(i.Name), "hypervisor") && !api)
	if free {
		out.Writable = false
		out.Reason = text(fmt.Sprintf("the free licence (%s) lets the API read only; any paid or evaluation licence permits changes", i.Name))
	}
	return out
}
