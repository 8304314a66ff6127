package link

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"pallas/agent/identity"
	"pallas/agent/retry"
	"pallas/agent/store"
	"pallas/mqttgw/wire"
)

// Config of a [Link]. Zero durations mean the defaults. The functions are
// called from the link's own goroutine and must not block for long.
type Config struct {
	Device, Version string
	// Addr is the manager's device door, host:port.
	Addr string
	TLS  *tls.Config
	// Keeper, if not nil, has the certificate and the CAs in place of TLS, and
	// renews them over the session.
	Keeper *identity.Keeper
	// Shared is the manager's HTTPS port, host:port, which takes MQTT from
	// those who ask for it by ALPN. It is used when Addr cannot be reached, and
	// Addr is looked at again from time to time. "" means that there is none.
	Shared string
	// DialContext makes the TCP connection. nil means that of [Dialer]; another
	// one should take [Control].
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)
	Store       *store.Store
	Log         *slog.Logger

	// Clock hears the manager's clock, Welcome its settings.
	Clock   func(time.Time)
	Welcome func(wire.Welcome)
	// Tasks and Cancel take work; after an error the manager sends it again.
	Tasks  func([]wire.Task) error
	Cancel func([]uuid.UUID) error
	// Resync is asked for a complete inventory in the outbox. The manager has
	// not been sent the reports from unsent on.
	Resync func(unsent uint64)

	BackoffBase time.Duration // 1 s
	BackoffCap  time.Duration // 60 s
	Linger      time.Duration // a report waits this long for others; 20 ms
	Patience    time.Duration // for a Welcome, and for the answer to a ping; 30 s
	KeepAlive   time.Duration // until the manager says otherwise; 60 s
	// Change is within which time a new certificate is taken into use, by another
	// connection: at random, so that many devices do not do it at once; 1 min.
	Change time.Duration
}

// Link is the line to the manager.
type Link struct {
	c         Config
	in, out   atomic.Uint64
	resent    atomic.Uint64
	receipts  atomic.Uint64
	once      uint64 // reports of this epoch below it went out at least once
	sessions  atomic.Uint64
	welcomed  atomic.Bool
	instance  []byte // names this process in each Hello
	keepAlive time.Duration
	path      path
	ways      []way                // Addr, and Shared if there is one
	avoid     time.Time            // until when Shared comes first
	avoidFor  time.Duration        // the last time; 0 when Addr let this device through
	alerts    int                  // that ended handshakes, since one did not
	told      map[string]time.Time // when which fault was last a warning
	version   int                  // of the Keeper's credentials in ways
}

// New checks the configuration.
func New(c Config) (*Link, error) {
	if c.Device == "" || c.Addr == "" || c.TLS == nil || c.Store == nil || c.Log == nil ||
		c.Clock == nil || c.Welcome == nil || c.Tasks == nil || c.Cancel == nil || c.Resync == nil {
		return nil, errors.New("link: Device, Addr, TLS, Store, Log and the five functions are needed")
	}
	if c.DialContext == nil {
		c.DialContext = Dialer().DialContext
	}
	for d, def := range map[*time.Duration]time.Duration{
		&c.BackoffBase: time.Second, &c.BackoffCap: time.Minute, &c.Linger: 20 * time.Millisecond,
		&c.Patience: 30 * time.Second, &c.KeepAlive: time.Minute, &c.Change: time.Minute,
	} {
		if *d <= 0 {
			*d = def
		}
	}
	l := &Link{
		c: c, instance: newInstance(), keepAlive: c.KeepAlive, ways: []way{{c.Addr, c.TLS}}, told: map[string]time.Time{},
		path: path{timeout: dialTimeout, quiet: map[netip.Prefix]*quiet{}},
	}
	if c.Shared != "" && c.Shared != c.Addr {
		host, _, err := net.SplitHostPort(c.Shared)
		if err != nil {
			return nil, fmt.Errorf("link: Shared is %q, want host:port", c.Shared)
		}
		config := c.TLS.Clone()
		config.ServerName = host
		l.ways = append(l.ways, way{c.Shared, config})
	}
	return l, nil
}

func newInstance() []byte {
	b := make([]byte, wire.InstanceSize)
	_, _ = rand.Read(b) // never fails
	return b
}

// way is where a manager may be reached.
type way struct {
	addr string
	tls  *tls.Config
}

// Stats of a link since it was made.
type Stats struct {
	// In and Out are bytes at the socket: TLS, without TCP/IP.
	In, Out uint64
	// Sessions is how many were welcomed, Connected whether one is now.
	Sessions  uint64
	Connected bool
	// Pending is how many reports have no receipt yet.
	Pending int
	// Epoch, First and Next are the numbers of the reports: the next one to be
	// made is Next, those below First are receipted.
	Epoch, First, Next uint64
	// Resent is how many reports went out more than once, each time counted.
	Resent uint64
	// Receipts is how many were heard, also those that said nothing new.
	Receipts uint64
}

// Stats returns the counters.
func (l *Link) Stats() Stats {
	epoch, first, next := l.c.Store.Numbers()
	return Stats{
		In: l.in.Load(), Out: l.out.Load(), Sessions: l.sessions.Load(), Connected: l.welcomed.Load(), Pending: int(next - first),
		Epoch: epoch, First: first, Next: next, Resent: l.resent.Load(), Receipts: l.receipts.Load(),
	}
}

// ErrRetired says that the manager has retired this device for good.
var ErrRetired = errors.New("the manager has retired this device")

// Run keeps the line up until ctx is done, and then says goodbye and returns
// nil. Any other return is ErrRetired, or a fault of the store that does not
// pass.
func (l *Link) Run(ctx context.Context) error {
	again := retry.Backoff{Base: l.c.BackoffBase, Cap: l.c.BackoffCap}
	for {
		l.recover(ctx, nil)
		before, began := l.sessions.Load(), time.Now()
		_, receipted, _ := l.c.Store.Numbers()
		err := l.session(ctx)
		l.welcomed.Store(false)
		if stopping(ctx) {
			return nil
		}
		if errors.Is(err, ErrRetired) {
			return err
		}
		var fatal *storeError
		if errors.As(err, &fatal) && !errors.Is(err, store.ErrWrite) {
			return err
		}
		// A session that breaks at once is no reason to hurry back.
		// One that got reports through is.
		_, first, _ := l.c.Store.Numbers()
		if l.sessions.Load() > before && (first > receipted || time.Since(began) >= min(steady, l.c.BackoffCap)) {
			again.Reset()
		}
		if l.recover(ctx, err) || errors.Is(err, errChange) {
			again.Reset()
			_ = retry.Pause(ctx, retry.Floor)
			continue
		}
		pause := again.Next()
		if errors.Is(err, errOwnPort) {
			l.c.Log.Info("the manager's own port can be reached; going there", "addr", l.c.Addr)
		} else {
			l.c.Log.Log(ctx, l.level(err), "connection to the manager lost", "error", err, "retry_in", pause.Round(time.Millisecond))
		}
		_ = retry.Pause(ctx, pause)
		if stopping(ctx) {
			return nil
		}
	}
}

// steady is how long a session lasts that was a good one.
const steady = 10 * time.Second

func stopping(ctx context.Context) bool { return ctx.Err() != nil }

// storeError marks faults of the store, after which the agent cannot go on.
type storeError struct{ err error }

func (e *storeError) Error() string { return e.err.Error() }
func (e *storeError) Unwrap() error { return e.err }

func stored(err error) error {
	if err == nil {
		return nil
	}
	return &storeError{err}
}

const (
	tellAgain = time.Hour
	maxTold   = 64 // faults that are remembered
)

// level is a warning once an hour for each fault; between, it is for debugging.
func (l *Link) level(err error) slog.Level {
	key, now := err.Error(), time.Now()
	if op := (*net.OpError)(nil); errors.As(err, &op) && op.Err != nil {
		key = op.Op + ": " + op.Err.Error() // without the port, which is another each time
	}
	if last, ok := l.told[key]; ok && now.Sub(last) < tellAgain {
		return slog.LevelDebug
	}
	if len(l.told) >= maxTold {
		clear(l.told)
	}
	l.told[key] = now
	return slog.LevelWarn
}
