package projections

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"pallas/events"
)

// JoinToken is a join token as of the read model's position. Its secret is
// not in the read model.
type JoinToken struct {
	ID   events.TokenID
	Name string
	// MaxUses is how many devices may register with it, Used how many did.
	MaxUses, Used int
	Expires       time.Time
	AutoApprove   bool
	Labels        map[string]string
	NamePattern   string
	// Device is the one that it is for, "" for a token that makes new devices.
	Device    events.DeviceID
	CreatedAt time.Time
	CreatedBy events.Actor
	RevokedAt time.Time // zero unless revoked
	RevokedBy events.Actor
	// Revision is that of the aggregate ev.token.<id>.
	Revision uint64
	// CreatedPosition orders tokens.
	CreatedPosition uint64
}

// Usable says whether a device could register with the token at the instant.
func (t JoinToken) Usable(at time.Time) bool {
	return t.RevokedAt.IsZero() && t.Used < t.MaxUses && at.Before(t.Expires)
}

// TokenUse is one device that registered with a token.
type TokenUse struct {
	Device events.DeviceID
	// DeviceName is the device's name now, "" when the device is not known.
	DeviceName string
	At         time.Time
	// Position orders uses.
	Position uint64
}

// JoinTokenFilter selects join tokens whose devices are in a scope, newest
// first, all when nothing else is set.
type JoinTokenFilter struct {
	// Scope must hold the labels that devices get; the zero Scope holds none.
	Scope Scope
	// UsableAt leaves out tokens that no device could register with at that
	// instant: revoked, expired or used up. Zero leaves out none.
	UsableAt time.Time
	Window
}

// TokenUseFilter selects the uses of one token by devices of a scope, oldest
// first.
type TokenUseFilter struct {
	// Scope holds the devices that may be seen; the zero Scope none.
	Scope Scope
	Token events.TokenID
	Window
}

func (w *writer) joinTokenIssued(at now, id events.TokenID, e events.JoinTokenIssued) error {
	labels, err := labelText(e.Labels)
	if err != nil {
		return err
	}
	return w.exec(`
		INSERT INTO join_tokens (id, name, max_uses, expires, auto_approve, labels, name_pattern, device,
			created_position, created_at, created_by, revision)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET revision = excluded.revision`,
		string(id), e.Name, e.MaxUses, micros(e.Expires), e.AutoApprove, labels, e.NamePattern, string(e.Device),
		at.position, at.at, at.actor, at.position)
}

// updateToken sets columns of a join token and, with them, its revision.
func (w *writer) updateToken(at now, id events.TokenID, columns string, args ...any) error {
	return w.exec("UPDATE join_tokens SET "+columns+"revision = ? WHERE id = ?", append(args, at.position, string(id))...)
}

func (w *writer) joinTokenUsed(at now, id events.TokenID, e events.JoinTokenUsed) error {
	if err := w.exec(`INSERT INTO join_token_uses (token, device, position, at) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING`,
		string(id), string(e.Device), at.position, at.at); err != nil {
		return err
	}
	return w.updateToken(at, id, "used = used + 1, ")
}

func (w *writer) joinTokenRevoked(at now, id events.TokenID) error {
	return w.updateToken(at, id, "revoked_at = ?, revoked_by = ?, ", at.at, at.actor)
}

const joinTokenColumns = `
	SELECT t.id, t.name, t.max_uses, t.used, t.expires, t.auto_approve, t.labels, t.name_pattern, t.device,
		t.created_position, t.created_at, t.created_by, t.revoked_at, t.revoked_by, t.revision`

func scanJoinToken(rows *sql.Rows) (JoinToken, error) {
	var t JoinToken
	err := rows.Scan(&t.ID, &t.Name, &t.MaxUses, &t.Used, instant{&t.Expires}, &t.AutoApprove, listed{&t.Labels}, &t.NamePattern, &t.Device,
		&t.CreatedPosition, instant{&t.CreatedAt}, &t.CreatedBy, instant{&t.RevokedAt}, &t.RevokedBy, &t.Revision)
	return t, err
}

func (f JoinTokenFilter) query() (query, error) {
	q := query{
		from: joinTokenColumns + " FROM join_tokens t INDEXED BY join_tokens_by_creation",
		tail: "ORDER BY t.created_position DESC, t.id DESC",
	}
	q.within(f.Scope, ofToken)
	if !f.UsableAt.IsZero() {
		q.and("t.revoked_at IS NULL AND t.used < t.max_uses AND t.expires > ?", f.UsableAt.UnixMicro())
	}
	if f.Cursor != "" {
		var position int64
		var id string
		if err := decodeCursor(f.Cursor, "join-token", &position, &id); err != nil {
			return query{}, err
		}
		q.and("(t.created_position, t.id) < (?, ?)", position, id)
	}
	return q, nil
}

// JoinTokens returns a page of the tokens that the filter selects, newest
// first.
func (d *DB) JoinTokens(ctx context.Context, f JoinTokenFilter) (Page[JoinToken], error) {
	limit, err := f.limit()
	if err != nil {
		return Page[JoinToken]{}, fmt.Errorf("list join tokens: %w", err)
	}
	q, err := f.query()
	if err != nil {
		return Page[JoinToken]{}, fmt.Errorf("list join tokens: %w", err)
	}
	p, err := page(ctx, d, q, limit, scanJoinToken, func(t JoinToken) string {
		return encodeCursor("join-token", t.CreatedPosition, t.ID)
	})
	if err != nil {
		return Page[JoinToken]{}, fmt.Errorf("list join tokens: %w", err)
	}
	return p, nil
}

// JoinToken returns one token whose devices are in the scope, or ErrNotFound.
func (d *DB) JoinToken(ctx context.Context, scope Scope, id events.TokenID) (JoinToken, error) {
	q := query{from: joinTokenColumns + " FROM join_tokens t"}
	q.and("t.id = ?", string(id))
	q.within(scope, ofToken)
	t, err := one(ctx, d, q, scanJoinToken)
	if err != nil {
		return JoinToken{}, fmt.Errorf("join token %q: %w", id, err)
	}
	return t, nil
}

func (f TokenUseFilter) query() (query, error) {
	q := query{
		from: `SELECT u.device, coalesce(d.name, ''), u.at, u.position
			FROM join_token_uses u INDEXED BY join_token_uses_by_position LEFT JOIN devices d ON d.id = u.device`,
		tail: "ORDER BY u.position, u.device",
	}
	q.and("u.token = ?", string(f.Token))
	if !f.Scope.Everything() {
		q.and("d.id IS NOT NULL") // one that did not register has no labels
	}
	q.within(f.Scope, ofDevice("u.device"))
	if f.Cursor != "" {
		var position int64
		var device string
		if err := decodeCursor(f.Cursor, "token-use", &position, &device); err != nil {
			return query{}, err
		}
		q.and("(u.position, u.device) > (?, ?)", position, device)
	}
	return q, nil
}

// TokenUses returns a page of the devices that registered with a token, oldest
// first. An unknown token has none.
func (d *DB) TokenUses(ctx context.Context, f TokenUseFilter) (Page[TokenUse], error) {
	limit, err := f.limit()
	if err != nil {
		return Page[TokenUse]{}, fmt.Errorf("list token uses: %w", err)
	}
	q, err := f.query()
	if err != nil {
		return Page[TokenUse]{}, fmt.Errorf("list token uses: %w", err)
	}
	p, err := page(ctx, d, q, limit, func(rows *sql.Rows) (TokenUse, error) {
		var u TokenUse
		err := rows.Scan(&u.Device, &u.DeviceName, instant{&u.At}, &u.Position)
		return u, err
	}, func(u TokenUse) string {
		return encodeCursor("token-use", u.Position, u.Device)
	})
	if err != nil {
		return Page[TokenUse]{}, fmt.Errorf("list token uses: %w", err)
	}
	return p, nil
}
