package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"pallas/agent/executor"
	"pallas/agent/hypervisor"
	"pallas/agent/identity"
	"pallas/agent/inventory"
	"pallas/agent/link"
	"pallas/agent/retry"
	"pallas/agent/store"
	"pallas/mqttgw/wire"
)

// Config of an [Agent]. The fields after Narrow are for tests and simulations;
// zero means the default.
type Config struct {
	// Dir is the data folder, made if it is not there. One agent uses it.
	Dir string
	// Join is a join string. It is needed until the device is enrolled, and again
	// when the manager does not renew its certificate any more. One with another token than the
	// device enrolled with has it enrol again, keeping its id and key: for a
	// manager whose addresses have changed, or for another manager.
	Join string
	// Driver talks to the host. Its owner closes it, after Run.
	Driver hypervisor.Driver
	// Version is the agent's, for people.
	Version string
	Log     *slog.Logger
	// DialContext makes TCP connections to the manager; nil means a net.Dialer.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)
	// Narrow saves bytes at the price of a key exchange without post-quantum
	// protection; see link.TLSConfig.
	Narrow bool

	NoSync      bool          // let the operating system write when it likes
	BackoffBase time.Duration // pauses between attempts to connect and to enrol: 1 s
	BackoffCap  time.Duration // … to 60 s
	Debounce    time.Duration // between a change on the host and the look at it: 200 ms
	Reconcile   time.Duration // between looks without a change, until the manager says: 10 min
	Settle      time.Duration // see executor.Config: 20 s
	Change      time.Duration // see link.Config: 1 min
	FindID      time.Duration // how long a first start asks an unreachable host for a former id: 1 min
}

// Agent manages one host.
type Agent struct {
	c      Config
	join   *wire.Join
	clock  *clock
	device atomic.Pointer[string]
	link   atomic.Pointer[link.Link]
}

// New checks the configuration. It does not touch the folder or the host.
func New(c Config) (*Agent, error) {
	switch {
	case c.Dir == "":
		return nil, errors.New("agent: Dir is needed")
	case c.Driver == nil:
		return nil, errors.New("agent: Driver is needed")
	case c.Log == nil:
		return nil, errors.New("agent: Log is needed")
	}
	if c.Version == "" {
		c.Version = "dev"
	}
	if c.DialContext == nil {
		c.DialContext = link.Dialer().DialContext
	}
	for d, def := range map[*time.Duration]time.Duration{
		&c.BackoffBase: time.Second, &c.BackoffCap: time.Minute, &c.FindID: time.Minute,
	} {
		if *d <= 0 {
			*d = def
		}
	}
	a := &Agent{c: c, clock: newClock(built())}
	if c.Join != "" {
		j, err := wire.ParseJoin(c.Join)
		if err != nil {
			return nil, fmt.Errorf("agent: Join: %w", err)
		}
		a.join = &j
	}
	return a, nil
}

// Device returns the device's permanent id, or "" before Run has found or made
// it.
func (a *Agent) Device() string {
	if s := a.device.Load(); s != nil {
		return *s
	}
	return ""
}

// Stats returns the counters of the line to the manager, zero before there is
// one.
func (a *Agent) Stats() link.Stats {
	if l := a.link.Load(); l != nil {
		return l.Stats()
	}
	return link.Stats{}
}

// Run enrols the device if it is not yet, and then works until ctx is done; it
// returns nil then. It goes on through everything that can pass: a manager or a
// host that cannot be reached, a refused connection. It returns an error for
// what cannot: a *identity.RefusedError when the manager does not take the
// device in, a *identity.RetiredError when the manager has retired it, a data
// folder that cannot be used, store.ErrBusy.
func (a *Agent) Run(ctx context.Context) error {
	err := a.run(ctx)
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	return err
}

func (a *Agent) run(ctx context.Context) error {
	gone, err := a.retired(ctx)
	if err != nil {
		return err
	}
	id, err := identity.Ensure(ctx, a.c.Dir, func(ctx context.Context) string {
		former := a.findID(ctx)
		if gone != nil && former == gone.Device {
			return ""
		}
		return former
	})
	if err != nil {
		return fmt.Errorf("prepare identity: %w", err)
	}
	device := id.Device // id is assigned again below, while others read this
	a.device.Store(&device)
	log := a.c.Log.With("device", device)
	id, err = a.serve(ctx, id, log)
	if errors.Is(err, link.ErrRetired) {
		return a.retire(ctx, id, log)
	}
	return err
}

// serve enrols and works. It returns the identity that it worked with.
func (a *Agent) serve(ctx context.Context, id identity.Identity, log *slog.Logger) (_ identity.Identity, err error) {
	st, err := store.Open(filepath.Join(a.c.Dir, fileStore), store.Options{Log: log, NoSync: a.c.NoSync})
	if err != nil {
		return id, err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	a.clock.past(st.Clock())
	if id, err = a.enrol(ctx, id, st, log); err != nil {
		return id, err
	}
	return id, a.work(ctx, id, st, log)
}

// findID asks the host for the id of a former agent, patiently: a new id for a
// host that had one makes a second device of it.
func (a *Agent) findID(ctx context.Context) string {
	began := time.Now()
	again := retry.Backoff{Base: a.c.BackoffBase, Cap: 10 * time.Second}
	for {
		id, err := identity.Find(ctx, a.c.Driver)
		if err == nil {
			if id != "" {
				a.c.Log.Info("found this device's former id on the host", "device", id)
			}
			return id
		}
		if ctx.Err() != nil {
			return ""
		}
		if time.Since(began) > a.c.FindID {
			a.c.Log.Warn("host does not tell whether it had a device id; making a new one", "error", err)
			return ""
		}
		if retry.Pause(ctx, again.Next()) != nil {
			return ""
		}
	}
}

// enrol returns id with an enrolment that is good now.
func (a *Agent) enrol(ctx context.Context, id identity.Identity, st *store.Store, log *slog.Logger) (identity.Identity, error) {
	if id.Enrolment != nil {
		a.clock.past(id.Enrolment.Time)
		// One that has expired is renewed by its key, if the manager agrees, once
		// the agent is at work; only a new join string comes before that.
		if good := a.clock.Now().Before(id.Enrolment.Expires()); a.join == nil || id.Enrolment.IsOf(*a.join) {
			return id, nil
		} else if good {
			return a.move(ctx, id, st, log)
		}
		log.Warn("the device's certificate has expired; enrolling again", "expired", id.Enrolment.Expires())
	}
	if a.join == nil {
		return id, errors.New("this device is not enrolled: it needs a join string of its manager")
	}
	return a.ask(ctx, id, st, log)
}

// moveTimeout is how long a new join string is tried at a start.
const moveTimeout = time.Minute

// move enrols again with a new join string. When that cannot be, the enrolment
// that there is goes on: a mistake in it must not cost the device its manager.
func (a *Agent) move(ctx context.Context, id identity.Identity, st *store.Store, log *slog.Logger) (identity.Identity, error) {
	log.Info("a new join string was given; enrolling again", "manager", a.join.URL, "was", id.Enrolment.Manager)
	limited, cancel := context.WithTimeout(ctx, moveTimeout)
	defer cancel()
	moved, err := a.ask(limited, id, st, log)
	if err != nil && ctx.Err() == nil {
		log.Error("cannot enrol with the new join string; going on with the enrolment that there is", "error", err)
		return id, nil
	}
	return moved, err
}

// ask enrols with the join string.
func (a *Agent) ask(ctx context.Context, id identity.Identity, st *store.Store, log *slog.Logger) (identity.Identity, error) {
	id, err := identity.Enrol(ctx, id, identity.EnrolConfig{
		Dir: a.c.Dir, Join: *a.join, Name: a.hostName(ctx, id.Device), Version: a.c.Version,
		DialContext: a.c.DialContext, Now: a.clock.Now, Log: log,
		Backoff: retry.Backoff{Base: a.c.BackoffBase, Cap: a.c.BackoffCap},
	})
	if err != nil {
		return id, err
	}
	if !id.Enrolment.Time.IsZero() {
		a.clock.set(id.Enrolment.Time)
		if err := st.SetClock(id.Enrolment.Time); err != nil {
			return id, err
		}
	}
	log.Info("device enrolled", "manager", id.Enrolment.Manager, "certificate_expires", id.Enrolment.Expires())
	return id, nil
}

// hostName returns the host's name, or one made of the id while the host does
// not tell.
func (a *Agent) hostName(ctx context.Context, device string) string {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	if snap, err := a.c.Driver.Observe(ctx); err == nil && snap.Host.Name != "" {
		return snap.Host.Name
	}
	return "host-" + device[:8]
}

// work runs the parts until ctx is done or one of them cannot go on.
func (a *Agent) work(ctx context.Context, id identity.Identity, st *store.Store, log *slog.Logger) error {
	device := id.Device
	cert, cas, err := id.Certificate()
	if err != nil {
		return err
	}
	tlsConfig, err := link.TLSConfig(id.Enrolment.MQTT, cert, cas, a.clock.Now, a.c.Narrow)
	if err != nil {
		return err
	}
	reporter, err := inventory.New(inventory.Config{
		Driver: a.c.Driver, Store: st, Now: a.clock.Now, Log: log, Debounce: a.c.Debounce, Reconcile: a.c.Reconcile,
		Observed: a.keepID(id.Device, log),
	})
	if err != nil {
		return err
	}
	tasks, err := executor.New(executor.Config{
		Driver: a.c.Driver, Store: st, Now: a.clock.Now, Log: log, Settle: a.c.Settle, ReadOnly: reporter.ReadOnly,
		Refresh: func(ctx context.Context) {
			if _, err := reporter.Refresh(ctx); err != nil && ctx.Err() == nil {
				log.Warn("cannot look at the host after a task", "error", err)
			}
		},
	})
	if err != nil {
		return err
	}
	keeper, err := identity.NewKeeper(id, identity.KeeperConfig{
		Dir: a.c.Dir, Now: a.clock.Now, Log: log, DialContext: a.c.DialContext, Join: a.join, Version: a.c.Version,
		Name: func(ctx context.Context) string { return a.hostName(ctx, device) },
		Clock: func(t time.Time) {
			a.clock.set(t)
			if err := st.SetClock(t); err != nil {
				log.Warn("cannot keep the manager's time", "error", err)
			}
		},
		Recover: a.c.BackoffBase,
	})
	if err != nil {
		return err
	}
	line, err := link.New(link.Config{
		Keeper: keeper, Change: a.c.Change, Device: device, Version: a.c.Version, Addr: id.Enrolment.MQTT, Shared: id.Enrolment.HTTPS(),
		TLS: tlsConfig, DialContext: a.c.DialContext, Store: st, Log: log, BackoffBase: a.c.BackoffBase, BackoffCap: a.c.BackoffCap,
		Tasks: tasks.Submit, Cancel: tasks.Cancel, Resync: reporter.Resync,
		Clock: a.clock.set,
		Welcome: func(w wire.Welcome) {
			reporter.SetReconcile(time.Duration(w.Settings.Reconcile) * time.Second)
		},
	})
	if err != nil {
		return err
	}
	a.link.Store(line)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return reporter.Run(ctx) })
	group.Go(func() error { return tasks.Run(ctx) })
	group.Go(func() error { return line.Run(ctx) })
	return group.Wait()
}

// keepEvery is the pause after an attempt to keep the id on the host that went
// wrong.
const keepEvery = 10 * time.Minute

// keepID returns what puts the id on the host, once, when it can be reached.
func (a *Agent) keepID(device string, log *slog.Logger) func(context.Context) {
	var mu sync.Mutex
	var done bool
	var next time.Time
	return func(ctx context.Context) {
		mu.Lock()
		defer mu.Unlock()
		if done || time.Now().Before(next) {
			return
		}
		limited, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		err := identity.Keep(limited, a.c.Driver, device, log)
		done = err == nil || hypervisor.CodeOf(err) == wire.CodeReadOnly
		if err == nil || ctx.Err() != nil {
			return
		}
		if next.IsZero() {
			log.Warn("the device id is not kept on the host; a rebuilt agent would be another device", "error", err)
		}
		next = time.Now().Add(keepEvery)
	}
}
