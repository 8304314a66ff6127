package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"pallas/events"
	"pallas/internal/client"
	"pallas/internal/server"
)

// checkTimeout bounds one step of the check.
const checkTimeout = 30 * time.Second

// check does the main job against the running demo, a line per step.
func (d *demo) check(ctx context.Context, w io.Writer) error {
	c := &checker{d: d}
	for _, step := range []struct {
		name string
		run  func(context.Context) (string, error)
	}{
		{"every host registers, is approved and connects", c.connect},
		{"each reports its host and its virtual machines", c.inventory},
		{"power on: 202, a task, and its end", c.powerOn},
		{"the new state is what the device reported", c.reported},
		{"the same key again gives the same task", c.repeat},
		{"power on a running one is refused, with its state", c.refuse},
		{"suspend, on, reset, shut down the guest, on, off", c.verbs},
		{"a change behind the manager's back shows up", c.behind},
		{"the log says who, what and why", c.history},
		{"a wrong token gets nothing", c.deny},
	} {
		start := time.Now()
		stepCtx, cancel := context.WithTimeout(ctx, checkTimeout)
		detail, err := step.run(stepCtx)
		cancel()
		took := time.Since(start).Round(time.Millisecond)
		if err != nil {
			fmt.Fprintf(w, "FAIL  %-50s %8v  %v\n", step.name, took, err)
			return fmt.Errorf("check: %s: %w", step.name, err)
		}
		fmt.Fprintf(w, "ok    %-50s %8v  %s\n", step.name, took, detail)
	}
	return nil
}

// checker carries what one step found to the next.
type checker struct {
	d    *demo
	vm   client.VM
	key  string
	task client.Task
}

func (c *checker) connect(ctx context.Context) (string, error) {
	err := poll(ctx, func() error {
		devices, err := c.devices(ctx)
		if err != nil {
			return err
		}
		if len(devices) != len(c.d.hosts) {
			return fmt.Errorf("%d of %d devices have registered", len(devices), len(c.d.hosts))
		}
		for _, d := range devices {
			if d.Trust != "approved" || d.Connection != "connected" {
				return fmt.Errorf("%s is %s and %s", d.Name, d.Trust, d.Connection)
			}
		}
		return nil
	})
	return fmt.Sprintf("%d devices", len(c.d.hosts)), err
}

func (c *checker) inventory(ctx context.Context) (string, error) {
	vms, stores := 0, 0
	err := poll(ctx, func() error {
		vms, stores = 0, 0
		devices, err := c.devices(ctx)
		if err != nil {
			return err
		}
		for _, d := range devices {
			h := d.Host
			switch {
			case h == nil || d.Condition != "ok":
				return fmt.Errorf("%s: no host yet, condition %s", d.Name, d.Condition)
			case h.CpuCores == 0 || h.MemoryMiB == 0 || h.Version == "" || h.Build == "" || h.Uuid == nil || !h.License.Writable:
				return fmt.Errorf("%s: host facts are missing: %+v", d.Name, *h)
			}
			// Lists leave out what is long; the device itself has it.
			full, err := c.d.api.GetDeviceWithResponse(ctx, d.Id.String(), nil)
			if err := failed(full, err, full != nil && full.JSON200 != nil); err != nil {
				return err
			}
			if h = full.JSON200.Host; h.Datastores == nil || len(*h.Datastores) == 0 || h.Networks == nil || len(*h.Networks) == 0 {
				return fmt.Errorf("%s: datastores or networks are missing", d.Name)
			}
			stores += len(*h.Datastores)
		}
		for _, host := range c.d.hosts {
			names, err := host.VMs(ctx)
			if err != nil {
				return err
			}
			vms += len(names)
		}
		r, err := c.d.api.ListVmsWithResponse(ctx, &client.ListVmsParams{Limit: new(int64(1000))})
		if err := failed(r, err, r != nil && r.JSON200 != nil); err != nil {
			return err
		}
		if len(r.JSON200.Items) != vms {
			return fmt.Errorf("%d of %d virtual machines are reported", len(r.JSON200.Items), vms)
		}
		return nil
	})
	return fmt.Sprintf("%d virtual machines, %d datastores", vms, stores), err
}

// powerOn takes the first virtual machine that is off.
func (c *checker) powerOn(ctx context.Context) (string, error) {
	r, err := c.d.api.ListVmsWithResponse(ctx, &client.ListVmsParams{Power: &[]client.ListVmsParamsPower{"off"}})
	if err := failed(r, err, r != nil && r.JSON200 != nil); err != nil {
		return "", err
	}
	if len(r.JSON200.Items) == 0 {
		return "", errors.New("no virtual machine is off")
	}
	c.vm, c.key = r.JSON200.Items[0], events.NewID()
	if c.task, err = c.power(ctx, client.SetVMPowerActionOn, c.key); err != nil {
		return "", err
	}
	if c.task, err = c.end(ctx, c.task); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s/%s: %s", c.vm.DeviceName, c.vm.Name, c.task.Status), wantStatus(c.task, "succeeded")
}

func (c *checker) reported(ctx context.Context) (string, error) {
	return c.vm.Name + " is on", c.becomes(ctx, "on")
}

func (c *checker) repeat(ctx context.Context) (string, error) {
	again, err := c.power(ctx, client.SetVMPowerActionOn, c.key)
	if err == nil && again.Id != c.task.Id {
		err = fmt.Errorf("got task %s, want %s", again.Id, c.task.Id)
	}
	return "task " + c.task.Id.String(), err
}

func (c *checker) refuse(ctx context.Context) (string, error) {
	r, err := c.d.api.SetVmPowerWithResponse(ctx, c.vm.Device.String(), c.vm.Id, nil, client.SetVMPower{Action: client.SetVMPowerActionOn})
	if err != nil {
		return "", err
	}
	if r.StatusCode() != http.StatusConflict || r.ApplicationproblemJSON409 == nil {
		return "", fmt.Errorf("got %s, want 409: %s", r.Status(), r.Body)
	}
	return *r.ApplicationproblemJSON409.Detail, nil
}

func (c *checker) verbs(ctx context.Context) (string, error) {
	for _, v := range []struct {
		action client.SetVMPowerAction
		power  client.VMPower
	}{{"suspend", "suspended"}, {"on", "on"}, {"reset", "on"}, {"shutdown", "off"}, {"on", "on"}, {"off", "off"}} {
		if v.action == "shutdown" {
			if err := c.toolsRun(ctx); err != nil {
				return "", err
			}
		}
		t, err := c.power(ctx, v.action, events.NewID())
		if err == nil {
			t, err = c.end(ctx, t)
		}
		if err == nil {
			err = wantStatus(t, "succeeded")
		}
		if err == nil {
			err = c.becomes(ctx, v.power)
		}
		if err != nil {
			return "", fmt.Errorf("%s: %w", v.action, err)
		}
	}
	return "6 tasks succeeded", nil
}

// behind powers the machine on at the host, as somebody with the Host Client
// would, and renames it.
func (c *checker) behind(ctx context.Context) (string, error) {
	for _, h := range c.d.hosts {
		if h.Name() != c.vm.DeviceName {
			continue
		}
		if err := h.Power(ctx, c.vm.Name, true); err != nil {
			return "", err
		}
		return c.vm.Name + " is on", c.becomes(ctx, "on")
	}
	return "", fmt.Errorf("no host is called %s", c.vm.DeviceName)
}

// history follows the device's events from the registration to the task.
func (c *checker) history(ctx context.Context) (string, error) {
	r, err := c.d.api.ListEventsWithResponse(ctx, &client.ListEventsParams{Device: &c.vm.Device, Limit: new(int64(1000))})
	if err := failed(r, err, r != nil && r.JSON200 != nil); err != nil {
		return "", err
	}
	want := []string{"DeviceRegistered", "DeviceApproved", "CertificateIssued", "DeviceConnected", "HostObserved", "VMObserved", "TaskRequested", "TaskAccepted", "TaskSucceeded"}
	var seen []string
	for _, e := range r.JSON200.Items {
		if len(seen) < len(want) && slices.Contains(want, e.Type) && !slices.Contains(seen, e.Type) {
			seen = append(seen, e.Type)
		}
		switch e.Type {
		case "TaskRequested":
			if !strings.HasPrefix(e.Actor, "user:") || e.Address == nil || *e.Address == "" {
				return "", fmt.Errorf("task requested by %s from %v", e.Actor, e.Address)
			}
		case "TaskSucceeded":
			if e.Actor != "device:"+c.vm.Device.String() || e.Report == nil {
				return "", fmt.Errorf("task succeeded by %s, report %v", e.Actor, e.Report)
			}
		}
	}
	slices.Sort(seen)
	slices.Sort(want)
	if !slices.Equal(seen, want) {
		return "", fmt.Errorf("the log has %v, want %v", seen, want)
	}
	return fmt.Sprintf("%d events of %s", len(r.JSON200.Items), c.vm.DeviceName), c.live(ctx)
}

// live reads the first event of the live stream, from the beginning of the
// log, and the same history as NDJSON.
func (c *checker) live(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, err := c.d.api.StreamEvents(ctx, &client.StreamEventsParams{LastEventID: new("0")})
	if err != nil {
		return err
	}
	defer r.Body.Close() //nolint:errcheck // read only
	for s := bufio.NewScanner(r.Body); s.Scan(); {
		data, ok := strings.CutPrefix(s.Text(), "data: ")
		if !ok {
			continue
		}
		var e client.Event
		if err := json.Unmarshal([]byte(data), &e); err != nil || e.Position != 1 {
			return fmt.Errorf("the live stream begins with %q", data)
		}
		return nil
	}
	return fmt.Errorf("the live stream sent nothing: %s", r.Status)
}

func (c *checker) deny(ctx context.Context) (string, error) {
	wrong := c.d.token[:len(c.d.token)-1] + "!"
	api, err := client.Connect(c.d.manager.URL(), server.CAFile(c.d.cfg), wrong)
	if err != nil {
		return "", err
	}
	r, err := api.ListDevicesWithResponse(ctx, nil)
	if err == nil && r.StatusCode() != http.StatusUnauthorized {
		err = fmt.Errorf("got %s, want 401", r.Status())
	}
	return "401", err
}

func (c *checker) devices(ctx context.Context) ([]client.Device, error) {
	r, err := c.d.api.ListDevicesWithResponse(ctx, &client.ListDevicesParams{Selector: new("demo=true"), Limit: new(int64(1000))})
	if err := failed(r, err, r != nil && r.JSON200 != nil); err != nil {
		return nil, err
	}
	return r.JSON200.Items, nil
}

func (c *checker) power(ctx context.Context, action client.SetVMPowerAction, key string) (client.Task, error) {
	r, err := c.d.api.SetVmPowerWithResponse(ctx, c.vm.Device.String(), c.vm.Id, &client.SetVmPowerParams{IdempotencyKey: &key}, client.SetVMPower{Action: action})
	if err := failed(r, err, r != nil && r.JSON202 != nil); err != nil {
		return client.Task{}, err
	}
	if l := r.HTTPResponse.Header.Get("Location"); !strings.HasSuffix(l, "/tasks/"+r.JSON202.Id.String()) {
		return client.Task{}, fmt.Errorf("the location of task %s is %q", r.JSON202.Id, l)
	}
	return *r.JSON202, nil
}

func (c *checker) end(ctx context.Context, t client.Task) (client.Task, error) {
	err := poll(ctx, func() error {
		r, err := c.d.api.GetTaskWithResponse(ctx, t.Id.String(), &client.GetTaskParams{PallasPosition: &t.Revision})
		if err := failed(r, err, r != nil && r.JSON200 != nil); err != nil {
			return err
		}
		if t = *r.JSON200; t.EndedAt == nil {
			return fmt.Errorf("task is %s", t.Status)
		}
		return nil
	})
	return t, err
}

func (c *checker) becomes(ctx context.Context, power client.VMPower) error {
	return poll(ctx, func() error {
		vm, err := c.machine(ctx)
		if err == nil && vm.Power != power {
			err = fmt.Errorf("%s is %s, want %s", vm.Name, vm.Power, power)
		}
		return err
	})
}

func (c *checker) toolsRun(ctx context.Context) error {
	return poll(ctx, func() error {
		vm, err := c.machine(ctx)
		if err == nil && vm.Tools != "running" {
			err = fmt.Errorf("the guest tools of %s are %s", vm.Name, vm.Tools)
		}
		return err
	})
}

func (c *checker) machine(ctx context.Context) (client.VM, error) {
	r, err := c.d.api.GetVmWithResponse(ctx, c.vm.Device.String(), c.vm.Id, nil)
	if err := failed(r, err, r != nil && r.JSON200 != nil); err != nil {
		return client.VM{}, err
	}
	return *r.JSON200, nil
}

func wantStatus(t client.Task, want client.TaskStatus) error {
	if t.Status == want {
		return nil
	}
	message := ""
	if t.Message != nil {
		message = *t.Message
	}
	return fmt.Errorf("task %s is %s, want %s: %s", t.Id, t.Status, want, message)
}

// failed says what went wrong with a request whose answer is r.
func failed(r interface{ Status() string }, err error, ok bool) error {
	switch {
	case err != nil:
		return err
	case !ok:
		return errors.New(r.Status())
	}
	return nil
}

// poll repeats f until it returns nil, or its last error when ctx ends.
func poll(ctx context.Context, f func() error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		err := f()
		switch {
		case err == nil:
			return nil
		case ctx.Err() == nil || last == nil:
			last = err // what it was before the time was up says more
		}
		select {
		case <-ctx.Done():
			return last
		case <-tick.C:
		}
	}
}
