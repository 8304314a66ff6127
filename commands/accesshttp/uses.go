package accesshttp

import (
	"context"
	"log/slog"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"pallas/commands"
	"pallas/events"
	"pallas/internal/auth"
	"pallas/internal/httpapi"
)

// use is one use of an API token or a session.
type use struct {
	user    events.UserID
	token   events.APITokenID
	session string
	source  string
	at      time.Time
	// foreign says that the token was not used from this network lately.
	foreign bool
}

func (u use) key() string { return string(u.token) + "/" + string(u.user) + "/" + u.session }

// uses notes when tokens and sessions were used, and writes it down beside the
// requests, not in them.
type uses struct {
	queue chan use
	// seen is the last use of a session, written is when a use was last handed
	// over to be written down, and told the networks of tokens that are on their
	// way to the log.
	seen, written *lru.Cache[string, time.Time]
	told          *lru.Cache[string, time.Time]
}

func newUses() *uses {
	u := &uses{queue: make(chan use, 256)}
	for _, c := range []**lru.Cache[string, time.Time]{&u.seen, &u.written, &u.told} {
		*c, _ = lru.New[string, time.Time](remembered) // the size is positive
	}
	return u
}

// note hands a use over, at most one a minute, and drops it when too many wait.
func (u *uses) note(n use) {
	key := n.key()
	if n.foreign {
		network := key + "/" + httpapi.SourceNetwork(n.source).String()
		if last, ok := u.told.Get(network); ok && n.at.Sub(last).Abs() < auth.UseInterval {
			n.foreign = false
		} else {
			u.told.Add(network, n.at)
		}
	}
	if last, ok := u.written.Get(key); ok && n.at.Sub(last).Abs() < auth.UseInterval && !n.foreign {
		return
	}
	u.written.Add(key, n.at)
	select {
	case u.queue <- n:
	default:
		u.written.Remove(key)
	}
}

// sweepEvery is how often what has ended is destroyed.
const sweepEvery = 10 * time.Minute

// Run writes down when tokens and sessions were used, and destroys what has
// ended, until ctx ends.
func (h *Handlers) Run(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	h.sweep(ctx)
	for {
		select {
		case n := <-h.uses.queue:
			h.write(ctx, n)
		case <-tick.C:
			h.sweep(ctx)
		case <-ctx.Done():
			return nil
		}
	}
}

func (h *Handlers) write(ctx context.Context, n use) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	var err error
	seen := auth.Use{At: n.at.UTC().Truncate(time.Second), Source: n.source}
	if n.token == "" {
		err = h.cfg.People.NoteSessionUse(ctx, n.user, n.session, seen)
	} else {
		err = h.cfg.People.NoteTokenUse(ctx, n.token, seen)
		if n.foreign && err == nil {
			_, err = h.cfg.Commands.Do(ctx, commands.UseAPIToken{User: n.user, Token: n.token, Network: httpapi.SourceNetwork(n.source)},
				commands.Meta{Actor: events.UserActor(string(n.user)), Source: n.source})
		}
	}
	if err != nil && ctx.Err() == nil {
		h.cfg.Log.WarnContext(ctx, "use of a credential not written down", slog.String("user", string(n.user)), slog.Any("error", err))
	}
}

// Denied records that a caller was refused an operation.
func (h *Handlers) Denied(ctx context.Context, p httpapi.Principal, operation string, need auth.Permission) {
	ctx, cancel := httpapi.Unconditional(ctx, writeTimeout)
	defer cancel()
	if _, err := h.do(ctx, commands.DenyAccess{User: p.User, Operation: operation, Permission: string(need)}); err != nil {
		h.cfg.Log.WarnContext(ctx, "refusal not recorded", slog.String("user", string(p.User)), slog.Any("error", err))
	}
}

// sweep destroys what has ended: sessions, tokens and links, and what is kept of
// people whom the log does not know, because their making or their deletion
// broke off.
func (h *Handlers) sweep(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, sweepEvery)
	defer cancel()
	access, err := h.cfg.Commands.Access(ctx)
	if err == nil {
		err = h.cfg.People.Sweep(ctx, h.cfg.SessionIdle, func(id events.UserID) bool { _, ok := access.Users[id]; return ok })
	}
	if err != nil && ctx.Err() == nil {
		h.cfg.Log.WarnContext(ctx, "ended credentials not destroyed", slog.Any("error", err))
	}
}
