package wire

import "fmt"

func (u Up) validate() error {
	if u.Version < 1 || u.Version > Version {
		return fmt.Errorf("version %d, served are 1 to %d: %w", u.Version, Version, ErrVersion)
	}
	if len(u.Reports) > MaxReports {
		return fmt.Errorf("%d reports, at most %d: %w", len(u.Reports), MaxReports, ErrTooLarge)
	}
	if u.Epoch >= 1<<53 || (u.Hello != nil && u.Hello.Epoch >= 1<<53) {
		return fmt.Errorf("epoch beyond 2^53: %w", ErrMalformed)
	}
	if len(u.Reports) > 0 && u.Epoch == 0 {
		return fmt.Errorf("reports without an epoch: %w", ErrMalformed)
	}
	if h := u.Hello; h != nil {
		switch {
		case h.Epoch == 0 || h.First == 0:
			return fmt.Errorf("hello without epoch or first: %w", ErrMalformed)
		case h.Next < h.First || h.Next >= 1<<53:
			return fmt.Errorf("hello with next %d before first %d: %w", h.Next, h.First, ErrMalformed)
		case len(h.Inventory) != 0 && len(h.Inventory) != HashSize:
			return fmt.Errorf("inventory hash of %d bytes, want %d: %w", len(h.Inventory), HashSize, ErrMalformed)
		case len(h.Instance) != 0 && len(h.Instance) != InstanceSize:
			return fmt.Errorf("instance of %d bytes, want %d: %w", len(h.Instance), InstanceSize, ErrMalformed)
		case len(h.Agent) > MaxText || len(h.Open) > MaxItems:
			return fmt.Errorf("hello: %w", ErrTooLarge)
		case !tidy(&h.Time):
			return fmt.Errorf("hello: time beyond year 9999: %w", ErrMalformed)
		}
	}
	if u.Bye != nil && len(u.Bye.Reason) > MaxText {
		return fmt.Errorf("bye: %w", ErrTooLarge)
	}
	if r := u.Renewal; r != nil {
		switch {
		case len(r.CSR) == 0:
			return fmt.Errorf("renewal without a certificate request: %w", ErrMalformed)
		case len(r.CSR) > MaxCertificate:
			return fmt.Errorf("renewal: certificate request of %d bytes, at most %d: %w", len(r.CSR), MaxCertificate, ErrTooLarge)
		}
	}
	if len(u.Anchors) > MaxAnchors {
		return fmt.Errorf("%d anchors, at most %d: %w", len(u.Anchors), MaxAnchors, ErrTooLarge)
	}
	for _, a := range u.Anchors {
		if len(a) != AnchorSize {
			return fmt.Errorf("anchor of %d bytes, want %d: %w", len(a), AnchorSize, ErrMalformed)
		}
	}
	for i := range u.Reports {
		r := &u.Reports[i]
		if r.Seq == 0 || r.Seq >= 1<<53 || (i > 0 && r.Seq != u.Reports[i-1].Seq+1) {
			return fmt.Errorf("report %d has sequence %d, want consecutive from 1: %w", i, r.Seq, ErrMalformed)
		}
		if n := r.parts(); n > 1 {
			return fmt.Errorf("report %d has %d parts, want one: %w", r.Seq, n, ErrMalformed)
		}
		if !tidy(&r.Time) {
			return fmt.Errorf("report %d: time beyond year 9999: %w", r.Seq, ErrMalformed)
		}
		if err := r.limits(); err != nil {
			return fmt.Errorf("report %d: %w", r.Seq, err)
		}
	}
	return nil
}

func (d *Down) validate() error {
	if d.Version < 1 {
		return fmt.Errorf("version %d: %w", d.Version, ErrVersion)
	}
	if len(d.Tasks) > MaxTasks || len(d.Cancels) > MaxItems {
		return fmt.Errorf("%d tasks, %d cancels: %w", len(d.Tasks), len(d.Cancels), ErrTooLarge)
	}
	if d.Welcome != nil && !tidy(&d.Welcome.Time) {
		return fmt.Errorf("welcome: time beyond year 9999: %w", ErrMalformed)
	}
	if !d.Time.IsZero() && !tidy(&d.Time) {
		return fmt.Errorf("time beyond year 9999: %w", ErrMalformed)
	}
	for i := range d.Tasks {
		t := &d.Tasks[i]
		if len(t.Kind) > MaxText || len(t.VM) > MaxText {
			return fmt.Errorf("task %s: %w", t.ID, ErrTooLarge)
		}
		if !tidy(&t.Deadline) {
			return fmt.Errorf("task %s: deadline beyond year 9999: %w", t.ID, ErrMalformed)
		}
	}
	if c := d.Certificate; c != nil {
		if len(c.CAs) == 0 {
			return fmt.Errorf("certificate without a CA: %w", ErrMalformed)
		}
		if len(c.CAs) > MaxAnchors || len(c.Leaf) > MaxCertificate {
			return fmt.Errorf("certificate of %d bytes, %d CAs: %w", len(c.Leaf), len(c.CAs), ErrTooLarge)
		}
		for _, ca := range c.CAs {
			if len(ca) == 0 || len(ca) > MaxCertificate {
				return fmt.Errorf("CA of %d bytes, want 1 to %d: %w", len(ca), MaxCertificate, ErrTooLarge)
			}
		}
	}
	if d.Error != nil && (len(d.Error.Code) > MaxText || len(d.Error.Message) > MaxText) {
		return fmt.Errorf("error: %w", ErrTooLarge)
	}
	return nil
}

func (r *Report) parts() (n int) {
	for _, set := range []bool{
		r.Host != nil, r.Condition != nil, r.VM != nil, r.VMPatch != nil,
		r.VMGone != nil, r.Inventory != nil, r.Task != nil,
	} {
		if set {
			n++
		}
	}
	return n
}

// limits checks the sizes of texts and lists. What the values mean is for the
// receiver to judge.
func (r *Report) limits() error {
	var c check
	switch {
	case r.Host != nil:
		h := r.Host
		c.text(h.Name, h.Vendor, h.Model, h.Serial, h.UUID, h.Product, h.Version, h.Build, h.CPUModel,
			h.License.Name, h.License.Edition, h.License.Reason)
		c.list(len(h.Datastores), MaxItems)
		c.list(len(h.Networks), MaxItems)
		for _, d := range h.Datastores {
			c.text(d.ID, d.Name, d.Type)
		}
		for _, n := range h.Networks {
			c.text(n.ID, n.Name)
		}
		c.unix(h.BootTime, h.License.Expires)
	case r.Condition != nil:
		c.text(r.Condition.Condition, r.Condition.Message)
	case r.VM != nil:
		c.vm(*r.VM)
	case r.VMPatch != nil:
		c.vm(r.VMPatch.Apply(VM{ID: r.VMPatch.ID}))
	case r.VMGone != nil:
		c.text(r.VMGone.ID)
	case r.Inventory != nil:
		c.list(len(r.Inventory.VMs), MaxVMs)
		c.text(r.Inventory.VMs...)
		if len(r.Inventory.Hash) != HashSize {
			return fmt.Errorf("inventory hash of %d bytes, want %d: %w", len(r.Inventory.Hash), HashSize, ErrMalformed)
		}
	case r.Task != nil:
		c.text(r.Task.State, r.Task.Code, r.Task.Message)
	}
	if c.over {
		return fmt.Errorf("a text or a list is too long: %w", ErrTooLarge)
	}
	if c.undated {
		return fmt.Errorf("a time is before 1970 or beyond year 9999: %w", ErrMalformed)
	}
	return nil
}

type check struct{ over, undated bool }

func (c *check) text(ss ...string) {
	for _, s := range ss {
		c.over = c.over || len(s) > MaxText
	}
}

func (c *check) unix(ss ...int64) {
	for _, s := range ss {
		c.undated = c.undated || !validUnix(s)
	}
}

func (c *check) list(n, limit int) { c.over = c.over || n > limit }

func (c *check) vm(v VM) {
	c.text(v.ID, v.Name, v.Power, v.GuestID, v.GuestName, v.Hostname, v.Tools)
	c.list(len(v.IPs), MaxItems)
	c.text(v.IPs...)
	c.unix(v.BootTime)
	c.list(len(v.Disks), MaxItems)
	c.list(len(v.NICs), MaxItems)
	for _, d := range v.Disks {
		c.text(d.Label, d.Datastore, d.File)
	}
	for _, n := range v.NICs {
		c.text(n.Label, n.MAC, n.Network)
	}
}
