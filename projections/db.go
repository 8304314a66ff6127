package projections

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/mattn/go-sqlite3"
	"github.com/prometheus/client_golang/prometheus"

	"pallas/events"
)

// Errors of the projection itself that callers branch on.
var (
	// ErrStopped says that the projection met an event that it can neither
	// decode nor apply, and stands still before it.
	ErrStopped = errors.New("projection stopped")
	// ErrBehind says that the projection had not reached a position in time.
	ErrBehind = errors.New("read model is behind")
	// errDamaged says that the file is not a usable database.
	errDamaged = errors.New("read model file is damaged")
	// errOtherSchema says that the file was written by another schemaVersion.
	errOtherSchema = errors.New("read model file has another schema version")
)

// Config is what a DB needs.
type Config struct {
	// Path of the SQLite file. Its folder must exist and be writable: SQLite
	// keeps two more files beside it.
	Path string
	// Log is where rebuilds and faults are told. Required.
	Log *slog.Logger
	// Registerer takes the metrics; nil for none.
	Registerer prometheus.Registerer
}

// DB is the read model: one SQLite file that follows the event log.
type DB struct {
	path string
	log  *slog.Logger
	met  *metrics

	running atomic.Bool

	// swap guards the handles. Queries hold it for reading while they run;
	// exchanging the file holds it for writing.
	swap   sync.RWMutex
	w      *writer
	r      *sql.DB
	closed bool

	mu       sync.Mutex
	position uint64
	decision events.ID // at position
	last     uint64    // newest known position of the log
	target   uint64    // the log's end when Run began
	reached  bool      // target was reached
	err      error     // why the projection stands still
	changed  chan struct{}
}

// Status is how the projection is doing.
type Status struct {
	// Position is that of the newest decision in the read model.
	Position uint64
	// Last is the newest known position of the log, not older than a second
	// while Run is running. Lag is how many decisions lie between the two.
	Last, Lag uint64
	// Ready says that Run has brought the read model to where the log ended
	// when it began. Until then answers may be from long ago, or incomplete
	// when the read model is being built anew.
	Ready bool
	// Err is why the projection stands still, nil when it does not. It wraps
	// ErrStopped.
	Err error
}

// Open opens the read model, creating it when there is none. A file that is
// damaged is set aside as <path>.damaged, one of another schema version is
// deleted; a new one takes its place, which Run fills from the log. A file
// that is somebody else's database is an error.
func Open(ctx context.Context, cfg Config) (*DB, error) {
	switch {
	case cfg.Path == "":
		return nil, errors.New("open read model: Path is empty")
	case cfg.Log == nil:
		return nil, errors.New("open read model: Log is missing")
	}
	path, err := filepath.Abs(cfg.Path)
	if err != nil {
		return nil, fmt.Errorf("open read model: %w", err)
	}
	d := &DB{path: path, log: cfg.Log, changed: make(chan struct{})}
	if d.met, err = newMetrics(cfg.Registerer, d); err != nil {
		return nil, fmt.Errorf("open read model: %w", err)
	}
	if err := d.open(ctx); err != nil {
		return nil, fmt.Errorf("open read model %s: %w", path, err)
	}
	return d, nil
}

// open takes the file as it is, or starts a new one if it cannot be used. The
// caller holds swap, or nobody else has d yet.
func (d *DB) open(ctx context.Context) error {
	if err := removeFiles(d.path + rebuildSuffix); err != nil {
		return err
	}
	err := d.attach(ctx)
	switch {
	case errors.Is(err, errDamaged):
		d.log.Warn("read model file is damaged, building it anew", "path", d.path, "error", err)
		d.met.rebuilds.WithLabelValues("damaged").Inc()
		err = setAside(d.path)
	case errors.Is(err, errOtherSchema):
		d.log.Warn("read model has another schema version, building it anew", "path", d.path, "error", err)
		d.met.rebuilds.WithLabelValues("schema").Inc()
		err = removeFiles(d.path)
	default:
		return err
	}
	if err != nil {
		return err
	}
	return d.attach(ctx)
}

// attach opens both handles on the file at d.path.
func (d *DB) attach(ctx context.Context) error {
	w, err := openWriter(ctx, d.path)
	if err != nil {
		return err
	}
	r, err := openReaders(ctx, d.path)
	if err != nil {
		return errors.Join(err, w.close())
	}
	d.w, d.r = w, r
	d.mu.Lock()
	d.position, d.decision = w.position, w.decision
	d.mu.Unlock()
	return nil
}

// restart gives up the rows and begins with an empty file, because of reason.
// Queries wait meanwhile.
func (d *DB) restart(ctx context.Context, reason string, discard func(path string) error) error {
	d.met.rebuilds.WithLabelValues(reason).Inc()
	d.swap.Lock()
	defer d.swap.Unlock()
	// What closing a damaged file complains about does not matter any more.
	if err := errors.Join(d.r.Close(), d.w.close()); err != nil {
		d.log.Warn("closing the old read model file", "error", err)
	}
	d.r, d.w = nil, nil
	err := discard(d.path)
	if err == nil {
		err = d.open(ctx)
	}
	if err != nil {
		return fmt.Errorf("start read model anew: %w", err)
	}
	return nil
}

// reattach opens the file again after a restart that failed half-way, for
// instance on a full disk.
func (d *DB) reattach(ctx context.Context) error {
	d.swap.Lock()
	defer d.swap.Unlock()
	if d.w != nil {
		return nil
	}
	return d.open(ctx)
}

// Close closes the file. Run must have returned.
func (d *DB) Close() error {
	d.swap.Lock()
	defer d.swap.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	d.met.unregister()
	if d.r == nil {
		return nil
	}
	// Readers first: the last handle to close folds the write-ahead log into
	// the file, and only the writer may.
	return errors.Join(d.r.Close(), d.w.close())
}

// Position returns that of the newest decision in the read model, 0 for none.
func (d *DB) Position() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.position
}

// Status returns how the projection is doing.
func (d *DB) Status() Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := Status{Position: d.position, Last: max(d.last, d.position), Ready: d.reached, Err: d.err}
	s.Lag = s.Last - s.Position
	return s
}

// Wait returns when the read model includes the position. When ctx ends first
// it returns an error that wraps ErrBehind and ctx's; when the projection
// stands still before the position, one that wraps ErrStopped.
func (d *DB) Wait(ctx context.Context, position uint64) error {
	for {
		d.mu.Lock()
		at, err, changed := d.position, d.err, d.changed
		d.mu.Unlock()
		switch {
		case at >= position:
			return nil
		case err != nil:
			return fmt.Errorf("wait for position %d: %w", position, err)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for position %d: %w at %d: %w", position, ErrBehind, at, ctx.Err())
		}
	}
}

// WaitReady returns when Run has brought the read model to where the log ended
// at its start, or when the projection stands still, so that there is nothing
// more to wait for. When ctx ends first it returns an error that wraps
// ErrBehind and ctx's. A model that is being filled from nothing would answer
// with a part of the fleet.
func (d *DB) WaitReady(ctx context.Context) error {
	for {
		d.mu.Lock()
		at, target, done, changed := d.position, d.target, d.reached || d.err != nil, d.changed
		d.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for the read model: %w at %d of %d: %w", ErrBehind, at, target, ctx.Err())
		}
	}
}

// update changes what mu guards and wakes everybody in Wait.
func (d *DB) update(change func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change()
	close(d.changed)
	d.changed = make(chan struct{})
}

// read calls f with the read-only pool.
func (d *DB) read(f func(*sql.DB) error) error {
	d.swap.RLock()
	defer d.swap.RUnlock()
	switch {
	case d.closed:
		return ErrClosed
	case d.r == nil:
		return ErrRestarting
	}
	return f(d.r)
}

// snapshot calls f with a transaction, in which every query sees the same
// position.
func (d *DB) snapshot(ctx context.Context, f func(*sql.Tx) error) error {
	return d.read(func(db *sql.DB) error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		return errors.Join(f(tx), tx.Rollback())
	})
}

// dsn is the SQLite URI of a file with the driver's parameters.
func dsn(path string, params url.Values) string {
	u := url.URL{Scheme: "file", Path: filepath.ToSlash(path), RawQuery: params.Encode()}
	return u.String()
}

const busyTimeout = "5000" // milliseconds

// openReaders opens the pool for queries: SQLite itself refuses to write
// through it.
func openReaders(ctx context.Context, path string) (*sql.DB, error) {
	db := openEngine(dsn(path, url.Values{
		"mode":          {"ro"},
		"_query_only":   {"1"},
		"_busy_timeout": {busyTimeout},
		"_cache_size":   {"-8192"}, // KiB
	}))
	n := max(4, runtime.GOMAXPROCS(0))
	db.SetMaxOpenConns(n)
	db.SetMaxIdleConns(n)
	if err := db.PingContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open for reading: %w", err), db.Close())
	}
	return db, nil
}

// writer is the one handle that changes the file.
type writer struct {
	db    *sql.DB
	conn  *sql.Conn
	stmts map[string]*sql.Stmt
	// retired are the devices that are, nil when not known: no virtual machine
	// of theirs is taken in, and asking SQLite each time would double the cost
	// of one.
	retired map[events.DeviceID]bool

	position uint64
	decision events.ID
}

// openWriter opens the file for writing, with its tables and its checkpoint.
func openWriter(ctx context.Context, path string) (w *writer, err error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		// A write-ahead log without its file would be played into the new one.
		if err := removeFiles(path); err != nil {
			return nil, err
		}
	}
	db := openEngine(dsn(path, url.Values{
		"_busy_timeout": {busyTimeout},
		"_cache_size":   {"-65536"}, // KiB
		"_foreign_keys": {"0"},
	}))
	db.SetMaxOpenConns(1)
	w = &writer{db: db, stmts: map[string]*sql.Stmt{}}
	defer func() {
		if err != nil {
			err = errors.Join(classify(err), w.close())
		}
	}()
	if w.conn, err = db.Conn(ctx); err != nil {
		return w, err
	}
	if err = w.check(ctx); err != nil {
		return w, err
	}
	for _, pragma := range []string{
		"PRAGMA journal_mode = WAL",
		// In WAL mode NORMAL keeps the file whole through a power cut; what it
		// may lose of the end is applied again from the log.
		"PRAGMA synchronous = NORMAL",
		"PRAGMA wal_autocheckpoint = 4000",
		"PRAGMA journal_size_limit = 67108864",
		"PRAGMA temp_store = MEMORY",
	} {
		if _, err = w.conn.ExecContext(ctx, pragma); err != nil {
			return w, fmt.Errorf("%s: %w", pragma, err)
		}
	}
	if err = w.create(ctx); err != nil {
		return w, err
	}
	err = w.conn.QueryRowContext(ctx, "SELECT position, decision FROM meta").Scan(&w.position, &w.decision)
	return w, err
}

// check says whether the file is ours and whole. An empty file passes.
func (w *writer) check(ctx context.Context) error {
	var app, version, tables int
	for _, q := range []struct {
		text string
		dst  *int
	}{
		{"PRAGMA application_id", &app},
		{"PRAGMA user_version", &version},
		{"SELECT count(*) FROM sqlite_schema", &tables},
	} {
		if err := w.conn.QueryRowContext(ctx, q.text).Scan(q.dst); err != nil {
			return fmt.Errorf("%s: %w", q.text, err)
		}
	}
	switch {
	case tables == 0 && app == 0 && version == 0:
		return nil
	case app != applicationID:
		return errors.New("it is a SQLite database of something else: give another path")
	case version != schemaVersion:
		return fmt.Errorf("%w: %d, want %d", errOtherSchema, version, schemaVersion)
	}
	// Table by table: of a virtual one SQLite would read every text again.
	names, err := collect(ctx, w.conn, "SELECT name FROM sqlite_schema WHERE type = 'table' AND rootpage > 0", nil,
		func(rows *sql.Rows) (name string, err error) { return name, rows.Scan(&name) })
	if err != nil {
		return fmt.Errorf("list tables: %w", err)
	}
	for _, name := range names {
		var result string
		if err := w.conn.QueryRowContext(ctx, "PRAGMA quick_check("+name+")").Scan(&result); err != nil {
			return fmt.Errorf("quick_check: %w", err)
		}
		if result != "ok" {
			return fmt.Errorf("%w: %s", errDamaged, result)
		}
	}
	return nil
}

// create makes the tables in a file that has none.
func (w *writer) create(ctx context.Context) error {
	var version int
	if err := w.conn.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return err
	}
	if version != 0 {
		return nil
	}
	tx, err := w.conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	text := schemaDDL + fmt.Sprintf("PRAGMA application_id = %d; PRAGMA user_version = %d;", applicationID, schemaVersion)
	if _, err := tx.ExecContext(ctx, text); err != nil {
		return errors.Join(fmt.Errorf("create tables: %w", err), tx.Rollback())
	}
	return tx.Commit()
}

func (w *writer) close() error {
	var errs []error
	for _, s := range w.stmts {
		errs = append(errs, s.Close())
	}
	if w.conn != nil {
		errs = append(errs, w.conn.Close())
	}
	return errors.Join(append(errs, w.db.Close())...)
}

// maxStatements bounds the statements that are kept prepared: the constant
// ones of Apply and the commonest shapes of VM patches.
const maxStatements = 256

// exec runs a statement that changes rows, and keeps it prepared. It takes no
// context: the driver would pay a goroutine for each statement, and a batch is
// short.
func (w *writer) exec(text string, args ...any) error {
	ctx := context.Background()
	s, ok := w.stmts[text]
	if !ok {
		if len(w.stmts) >= maxStatements {
			_, err := w.conn.ExecContext(ctx, text, args...)
			return err
		}
		var err error
		if s, err = w.conn.PrepareContext(ctx, text); err != nil {
			return err
		}
		w.stmts[text] = s
	}
	_, err := s.ExecContext(ctx, args...)
	return err
}

// classify adds errDamaged to errors by which SQLite says that a file is no
// whole database.
func classify(err error) error {
	var e sqlite3.Error
	if errors.As(err, &e) && (e.Code == sqlite3.ErrCorrupt || e.Code == sqlite3.ErrNotADB) && !errors.Is(err, errDamaged) {
		return fmt.Errorf("%w: %w", errDamaged, err)
	}
	return err
}

// transient says whether trying again later may help: the disk is full or
// does not answer, or somebody else holds the file.
func transient(err error) bool {
	var e sqlite3.Error
	if !errors.As(err, &e) {
		return false
	}
	switch e.Code {
	case sqlite3.ErrFull, sqlite3.ErrIoErr, sqlite3.ErrBusy, sqlite3.ErrLocked, sqlite3.ErrNomem,
		sqlite3.ErrCantOpen, sqlite3.ErrReadonly, sqlite3.ErrPerm, sqlite3.ErrProtocol:
		return true
	default:
		return false
	}
}

// removeFiles deletes a database with the files SQLite keeps beside it. The
// database goes first: without it the others are worth nothing, while it
// without them may be torn.
func removeFiles(path string) error {
	for _, suffix := range []string{"", "-wal", "-shm", "-journal"} {
		if err := os.Remove(path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// setAside keeps the damaged file, for whoever wants to know why, and removes
// what lies beside it.
func setAside(path string) error {
	if err := os.Rename(path, path+".damaged"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return removeFiles(path)
}
