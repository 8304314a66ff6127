package projections

import (
	"context"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Errors of queries that callers branch on.
var (
	// ErrNotFound says that the read model has no such row.
	ErrNotFound = errors.New("not found")
	// ErrBadCursor says that a cursor is not one that the same list gave out.
	ErrBadCursor = errors.New("cursor is not valid for this list: start again without one")
	// ErrClosed says that the database was closed.
	ErrClosed = errors.New("read model is closed")
	// ErrRestarting says that the file was given up and another one could not
	// be made yet. It passes by itself when the reason, which is logged, does.
	ErrRestarting = errors.New("read model has no file at the moment")
)

// FieldError says which field of a filter is out of its range.
type FieldError struct {
	Field   string
	Message string
}

func (e *FieldError) Error() string { return e.Field + ": " + e.Message }

// The sizes of a page.
const (
	DefaultLimit = 100
	MaxLimit     = 1000
)

// maxText bounds a filter's search text, in bytes.
const maxText = 256

// Sort is the order of a list.
type Sort string

// The orders of a list. Names are compared in lower case, and the id decides
// between equal ones.
const (
	SortName Sort = "name" // the default
	SortID   Sort = "id"
)

// Page is one piece of a list.
type Page[T any] struct {
	Items []T
	// Next is the cursor of the next page, or "" when this is the last one.
	Next string
	// Position is one that the items include: they may be newer, never older.
	Position uint64
}

// Window says which piece of a list is wanted.
type Window struct {
	// Cursor is the Next of the page before, or "" for the first page.
	Cursor string
	// Limit is how many items to return: 1 to MaxLimit, 0 for DefaultLimit.
	Limit int
}

func (w Window) limit() (int, error) {
	switch {
	case w.Limit == 0:
		return DefaultLimit, nil
	case w.Limit < 0 || w.Limit > MaxLimit:
		return 0, &FieldError{"limit", fmt.Sprintf("want 1 to %d", MaxLimit)}
	}
	return w.Limit, nil
}

// encodeCursor makes the cursor that continues the list after the key.
func encodeCursor(list string, key ...any) string {
	b, err := json.Marshal(append([]any{list}, key...))
	if err != nil {
		panic(err) // strings and integers always encode
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// decodeCursor fills key, pointers to strings and integers, from a cursor of
// the list.
func decodeCursor(cursor, list string, key ...any) error {
	b, err := base64.RawURLEncoding.Strict().DecodeString(cursor)
	if err != nil || strings.ContainsAny(cursor, "\r\n") { // the decoder skips line ends
		return ErrBadCursor
	}
	var parts []json.RawMessage
	if json.Unmarshal(b, &parts) != nil || len(parts) != len(key)+1 {
		return ErrBadCursor
	}
	var name string
	for i, dst := range append([]any{&name}, key...) {
		if string(parts[i]) == "null" || json.Unmarshal(parts[i], dst) != nil {
			return ErrBadCursor
		}
	}
	if name != list {
		return ErrBadCursor
	}
	return nil
}

// query collects one SELECT: its text before WHERE, conditions with their
// parameters, and the rest.
type query struct {
	// outer, if any, fetches the rows whose keys the query selects, in the same
	// order.
	outer string
	from  string
	conds []string
	args  []any
	tail  string
}

func (q *query) and(cond string, args ...any) {
	q.conds = append(q.conds, cond)
	q.args = append(q.args, args...)
}

// in adds a condition on a column for a set of allowed values; none allows
// all.
func in[T ~string](q *query, column string, values []T) {
	switch len(values) {
	case 0:
		return
	case 1:
		q.and(column+" = ?", string(values[0]))
		return
	}
	args := make([]any, len(values))
	for i, v := range values {
		args[i] = string(v)
	}
	// The plus sign keeps the planner from walking an index once per value,
	// which would need a sort after it.
	q.and("+"+column+" IN (?"+strings.Repeat(",?", len(values)-1)+")", args...)
}

func (q *query) sql() string {
	s := q.from
	if len(q.conds) > 0 {
		s += " WHERE " + strings.Join(q.conds, " AND ")
	}
	s += " " + q.tail
	if q.outer != "" {
		order, _, _ := strings.Cut(q.tail, " LIMIT ")
		s = q.outer + " (" + s + ") " + order
	}
	return s
}

// queryer is a pool or a transaction.
type queryer interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// collect runs a query and scans each of its rows.
func collect[T any](ctx context.Context, db queryer, text string, args []any, scan func(*sql.Rows) (T, error)) (items []T, err error) {
	rows, err := db.QueryContext(ctx, text, args...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		item, err := scan(rows)
		if err != nil {
			return nil, err
		}
		items = append(items, item)
	}
	return items, rows.Err()
}

// page runs a list query for one row more than the limit, which tells whether
// there is a next page.
func page[T any](ctx context.Context, d *DB, q query, limit int, scan func(*sql.Rows) (T, error), cursor func(T) string) (Page[T], error) {
	q.tail += " LIMIT ?"
	q.args = append(q.args, limit+1)
	p := Page[T]{Position: d.Position()}
	err := d.read(func(db *sql.DB) (err error) {
		p.Items, err = collect(ctx, db, q.sql(), q.args, scan)
		return err
	})
	if err != nil {
		return Page[T]{}, err
	}
	if len(p.Items) > limit {
		p.Items = p.Items[:limit:limit]
		p.Next = cursor(p.Items[limit-1])
	}
	return p, nil
}

// one runs a query for at most one row, ErrNotFound for none.
func one[T any](ctx context.Context, d *DB, q query, scan func(*sql.Rows) (T, error)) (T, error) {
	var items []T
	err := d.read(func(db *sql.DB) (err error) {
		items, err = collect(ctx, db, q.sql(), q.args, scan)
		return err
	})
	var zero T
	switch {
	case err != nil:
		return zero, err
	case len(items) == 0:
		return zero, ErrNotFound
	}
	return items[0], nil
}

// fold is the form that names are sorted and searched in.
func fold(s string) string { return strings.ToLower(s) }

// checkText bounds what a person searches for.
func checkText(q string) error {
	if len(q) > maxText {
		return &FieldError{"q", fmt.Sprintf("want at most %d bytes", maxText)}
	}
	return nil
}

// micros is the stored form of an instant: NULL for the zero time.
func micros(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UnixMicro()
}

// instant scans the stored form of an instant.
type instant struct{ dst *time.Time }

// Scan implements [sql.Scanner].
func (s instant) Scan(src any) error {
	switch v := src.(type) {
	case nil:
		*s.dst = time.Time{}
	case int64:
		*s.dst = time.UnixMicro(v).UTC()
	default:
		return fmt.Errorf("instant: %T in an integer column", src)
	}
	return nil
}

// list is the stored form of a list: JSON text, "null" when it is empty.
func list[T any](items []T) (string, error) {
	if len(items) == 0 {
		return "null", nil
	}
	b, err := json.Marshal(items)
	return string(b), err
}

// labelText is the stored form of labels: a JSON object with sorted keys.
func labelText(labels map[string]string) (string, error) {
	if len(labels) == 0 {
		return "null", nil
	}
	b, err := json.Marshal(labels)
	return string(b), err
}

// listed scans the stored form of a list or a map.
type listed struct{ dst any }

// Scan implements [sql.Scanner].
func (s listed) Scan(src any) error {
	switch v := src.(type) {
	case string:
		return json.Unmarshal([]byte(v), s.dst)
	case []byte:
		return json.Unmarshal(v, s.dst)
	default:
		return fmt.Errorf("list: %T in a text column", src)
	}
}
