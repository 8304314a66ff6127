package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"pallas/agent/identity"
)

// A manager that retires a device tells it so. The device then erases what makes
// it this device, and ends: started again with the join string that it had, it
// stays away, and a new one makes a new device.

// fileStore is the outbox and the journal.
const fileStore = "agent.db"

// forgetTimeout is how long a host may take to forget the device's id.
const forgetTimeout = 30 * time.Second

// retire erases the device, and returns the *identity.RetiredError that ends
// Run.
func (a *Agent) retire(ctx context.Context, id identity.Identity, log *slog.Logger) error {
	r := identity.Retired{Device: id.Device, At: a.clock.Now().UTC()}
	if e := id.Enrolment; e != nil {
		r.Manager, r.JoinToken = e.Manager, e.JoinToken
	}
	log.Warn("the manager has retired this device; erasing its identity and what it had to report", "manager", r.Manager)
	if err := a.erase(ctx, r, log); err != nil {
		return err
	}
	return &identity.RetiredError{Retired: r}
}

// erase removes everything but the note. It can be repeated.
func (a *Agent) erase(ctx context.Context, r identity.Retired, log *slog.Logger) error {
	if err := identity.Retire(a.c.Dir, r); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(a.c.Dir, fileStore+"*"))
	if err != nil {
		return fmt.Errorf("erase the outbox: %w", err)
	}
	for _, f := range files {
		err = errors.Join(err, os.Remove(f))
	}
	if err != nil {
		return fmt.Errorf("erase the outbox: %w", err)
	}
	// A host that cannot be reached keeps the id; this folder does not take it
	// back.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), forgetTimeout)
	defer cancel()
	kept, err := identity.Find(ctx, a.c.Driver)
	if err == nil && kept == r.Device {
		err = a.c.Driver.SaveID(ctx, "")
	}
	if err != nil {
		log.Warn("the host keeps the id of the retired device; a new agent would be refused with it", "error", err)
	}
	return nil
}

// retired says whether the folder is that of a device that was retired. It is an
// error unless a new join string makes a new device of it.
func (a *Agent) retired(ctx context.Context) (*identity.Retired, error) {
	r, err := identity.LoadRetired(a.c.Dir)
	if r == nil || err != nil {
		return nil, err
	}
	if err := a.erase(ctx, *r, a.c.Log); err != nil { // it may have been interrupted
		return nil, err
	}
	if a.join == nil || r.IsOf(*a.join) {
		return nil, &identity.RetiredError{Retired: *r}
	}
	return r, nil
}
