package projections

import (
	"bufio"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Dump writes the whole contents as text, at one position: a line with the
// schema version, then a line for each row of each table, by the table's name
// and its primary key, with the columns in their order and the values as JSON.
// Equal contents give equal bytes. Indexes are no contents, also that of text.
func (d *DB) Dump(ctx context.Context, w io.Writer) error {
	out := bufio.NewWriterSize(w, 1<<16)
	err := d.snapshot(ctx, func(tx *sql.Tx) error {
		var version int
		if err := tx.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(out, "schema %d\n", version); err != nil {
			return err
		}
		tables, err := collect(ctx, tx, `SELECT name FROM sqlite_schema
			WHERE type = 'table' AND name NOT LIKE 'sqlite\_%' ESCAPE '\' AND name NOT LIKE '%\_text%' ESCAPE '\' ORDER BY name`, nil,
			func(rows *sql.Rows) (name string, err error) { return name, rows.Scan(&name) })
		if err != nil {
			return err
		}
		for _, t := range tables {
			if err := dumpTable(ctx, tx, t, out); err != nil {
				return fmt.Errorf("table %s: %w", t, err)
			}
		}
		return nil
	})
	if err == nil {
		err = out.Flush()
	}
	if err != nil {
		return fmt.Errorf("dump read model: %w", err)
	}
	return nil
}

// Hash returns the hex SHA-256 of what Dump writes.
func (d *DB) Hash(ctx context.Context) (string, error) {
	h := sha256.New()
	if err := d.Dump(ctx, h); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func dumpTable(ctx context.Context, tx *sql.Tx, table string, out io.Writer) (err error) {
	key, err := collect(ctx, tx, `SELECT name FROM pragma_table_info(?) WHERE pk > 0 ORDER BY pk`, []any{table},
		func(rows *sql.Rows) (name string, err error) { return name, rows.Scan(&name) })
	if err != nil {
		return err
	}
	if len(key) == 0 {
		return errors.New("has no primary key to order by")
	}
	rows, err := tx.QueryContext(ctx, "SELECT * FROM "+table+" ORDER BY "+strings.Join(key, ", "))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	columns, err := rows.Columns()
	if err != nil {
		return err
	}
	values, dst := make([]any, len(columns)), make([]any, len(columns))
	for i := range values {
		dst[i] = &values[i]
	}
	for rows.Next() {
		if err := rows.Scan(dst...); err != nil {
			return err
		}
		if _, err := io.WriteString(out, table); err != nil {
			return err
		}
		for i, name := range columns {
			text, err := json.Marshal(values[i])
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintf(out, " %s=%s", name, text); err != nil {
				return err
			}
		}
		if _, err := io.WriteString(out, "\n"); err != nil {
			return err
		}
	}
	return rows.Err()
}
