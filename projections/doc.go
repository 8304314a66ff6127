// Package projections is the read side: it folds the event log into one SQLite
// file and answers questions from it. It never appends.
//
// The file is disposable. [DB.Run] follows the log and applies each decision
// in the order of positions; rows and the position they stand for are
// committed in one transaction, so that the file always is the state of the
// fleet at exactly one position, whenever the process dies. Building it again
// from the log gives the same rows, byte for byte ([DB.Hash]): nothing in a
// table comes from a wall clock, a random number or the moment of building. A
// new schema version, a damaged file or another log than the file was built
// from make it start again from the beginning of the log, by itself.
//
// An event that cannot be decoded or applied stops the projection loudly and
// is never skipped: Run returns [ErrStopped], [DB.Status] shows it, and reads
// go on at the last good position. Types that this build does not know
// ([events.Unknown]) are no fault: their decision moves the position on.
//
// One handle writes. Queries use a pool of read-only connections. A reader
// that must see its own write passes the write's position to [DB.Wait] first.
//
// Times are stored as microseconds since 1970 UTC, zero times as NULL, lists
// as JSON text.
//
// The package imports events, database/sql with go-sqlite3, and Prometheus'
// client; it may not import commands, HTTP or NATS.
package projections
