package esxi

import (
	"context"
	"time"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"
)

// watched are properties that change when something is to be told. They are
// small: a watch only signals. config.changeVersion stands for a machine's
// whole configuration.
var watched = []types.PropertySpec{
	{Type: "HostSystem", PathSet: []string{"name", "runtime.inMaintenanceMode", "runtime.bootTime", "vm", "datastore", "network"}},
	{Type: "VirtualMachine", PathSet: []string{
		"name", "config.changeVersion", "runtime.powerState", "guest.toolsRunningStatus", "guest.hostName", "guest.net",
	}},
	{Type: "Datastore", PathSet: []string{"name", "summary.accessible", "summary.capacity", "summary.freeSpace"}},
	{Type: "Network", PathSet: []string{"name"}},
}

// maxUpdates bounds one answer, for the sake of the agent's memory.
const maxUpdates = 32

// Watch implements [hypervisor.Driver].
func (d *Driver) Watch(ctx context.Context, changed func()) error {
	for {
		told := false
		err := d.with(ctx, "watch host", func(s *session) error {
			return d.watch(ctx, s, func() { told = true; changed() })
		})
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // to be stopped is no error
		case told && isFault[*types.NotAuthenticated](err):
			continue // dropped again, after it worked
		}
		return err
	}
}

func (d *Driver) watch(ctx context.Context, s *session, changed func()) error {
	created, err := methods.CreatePropertyCollector(ctx, s, &types.CreatePropertyCollector{This: s.content.PropertyCollector})
	if err != nil {
		return err
	}
	pc := created.Returnval
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		// On a lost host it is gone with the session.
		_, _ = methods.DestroyPropertyCollector(ctx, s, &types.DestroyPropertyCollector{This: pc})
	}()
	_, err = methods.CreateFilter(ctx, s, &types.CreateFilter{This: pc, Spec: types.PropertyFilterSpec{
		ObjectSet: []types.ObjectSpec{{Obj: hostRef, SelectSet: traverse("vm", "datastore", "network")}},
		PropSet:   watched,
	}})
	if err != nil {
		return err
	}
	wait := int32(max(d.cfg.KeepAlive/time.Second, 1))
	version, restarts := "", 0
	for {
		res, err := methods.WaitForUpdatesEx(ctx, s, &types.WaitForUpdatesEx{
			This: pc, Version: version, Options: &types.WaitOptions{MaxWaitSeconds: &wait, MaxObjectUpdates: maxUpdates},
		})
		if isFault[*types.InvalidCollectorVersion](err) && restarts == 0 {
			// The host has forgotten what it told: start from the beginning.
			version, restarts = "", 1
			continue
		}
		if err != nil {
			return err
		}
		if res.Returnval == nil {
			continue // nothing happened
		}
		version, restarts = res.Returnval.Version, 0
		if t := res.Returnval.Truncated; t == nil || !*t {
			changed()
		}
	}
}
