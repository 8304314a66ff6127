package store

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/uuid"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"pallas/mqttgw/wire"
)

// ErrBusy says that another process uses the file.
var ErrBusy = errors.New("another agent uses this data folder")

// ErrWrite says that the disk did not take a change: it is full, read-only or
// in trouble. Nothing was changed; whoever wrote waits and tries again.
var ErrWrite = errors.New("the disk does not take it")

var (
	bucketMeta    = []byte("meta")
	bucketOutbox  = []byte("outbox")  // sequence, big endian → wire.Up with one report
	bucketVMs     = []byte("vms")     // id → wire.VM
	bucketJournal = []byte("journal") // task id → Task

	keyEpoch     = []byte("epoch")
	keyFirst     = []byte("first")
	keyNext      = []byte("next")
	keyClock     = []byte("clock")
	keyHost      = []byte("host")
	keyCondition = []byte("condition")
	keyComplete  = []byte("complete")
)

// Options of [Open].
type Options struct {
	Log *slog.Logger
	// NoSync leaves writing to the operating system: a power cut can then
	// damage the file. For simulations of many agents in one process.
	NoSync bool
}

// Store is the agent's file. Its methods are safe for concurrent use.
type Store struct {
	db      *bbolt.DB
	log     *slog.Logger
	changed chan struct{}

	mu    sync.Mutex // held over each write transaction
	state state
	saved state // what of it is on disk
}

type state struct {
	epoch, first, next uint64
	clock              int64 // Unix seconds
}

// Open opens the file at path, or makes it. A damaged file is moved aside, with
// a line in the log, and a new one made. The error wraps ErrBusy when another
// process has it open.
func Open(path string, opts Options) (*Store, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	err := examine(path)
	var damage *damageError
	if errors.As(err, &damage) {
		aside := fmt.Sprintf("%s.damaged-%d", path, time.Now().UnixNano())
		if err := os.Rename(path, aside); err != nil {
			return nil, fmt.Errorf("move damaged file aside: %w", err)
		}
		opts.Log.Error("agent state was damaged; starting a new one", "file", path, "moved_to", aside, "error", damage)
	} else if err != nil {
		return nil, err
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout: lockTimeout, NoSync: opts.NoSync, NoStatistics: true, FreelistType: bbolt.FreelistArrayType,
		// The free list stays synced. Without it bbolt rebuilds the list when
		// it opens a file, and meets damage there with a panic in a goroutine
		// of its own, which nobody can catch.
	})
	if err != nil {
		return nil, openError(path, err)
	}
	s := &Store{db: db, log: opts.Log, changed: make(chan struct{}, 1)}
	if err := s.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("load %s: %w", path, err), db.Close())
	}
	return s, nil
}

const lockTimeout = 2 * time.Second

// damageError says that the file cannot be used any more.
type damageError struct{ err error }

func (e *damageError) Error() string { return e.err.Error() }
func (e *damageError) Unwrap() error { return e.err }

// examine reads a whole file, read-only, and returns a damageError for one
// that cannot be used. A page beyond a cut-off file's end would otherwise stop
// the process later, on each start again.
func examine(path string) (err error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || (err == nil && info.Size() == 0) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open agent state: %w", err)
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = &damageError{fmt.Errorf("unreadable: %v", r)}
		}
	}()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: lockTimeout, NoStatistics: true})
	if err != nil {
		return openError(path, err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return db.View(func(tx *bbolt.Tx) error {
		if tx.Size() > info.Size() {
			return &damageError{fmt.Errorf("cut off at %d of %d bytes", info.Size(), tx.Size())}
		}
		var first error
		for e := range tx.Check() {
			if first == nil {
				first = &damageError{e}
			}
		}
		if first != nil {
			return first
		}
		return contents(tx)
	})
}

// contents checks that what the pages hold is what this package wrote.
func contents(tx *bbolt.Tx) error {
	meta, outbox, vms, journal := tx.Bucket(bucketMeta), tx.Bucket(bucketOutbox), tx.Bucket(bucketVMs), tx.Bucket(bucketJournal)
	if meta == nil && outbox == nil && vms == nil && journal == nil {
		return nil // made, but stopped before the first transaction
	}
	if meta == nil || outbox == nil || vms == nil || journal == nil {
		return &damageError{errors.New("a part is missing")}
	}
	st := readState(meta)
	if st.epoch == 0 || st.epoch >= 1<<53 || st.first == 0 || st.next < st.first {
		return &damageError{fmt.Errorf("numbering %+v makes no sense", st)}
	}
	want := st.first
	if err := outbox.ForEach(func(k, v []byte) error {
		u, err := wire.DecodeUp(v)
		if err != nil {
			return err
		}
		if len(k) != 8 || binary.BigEndian.Uint64(k) != want || len(u.Reports) != 1 || u.Reports[0].Seq != want {
			return fmt.Errorf("report %d is missing", want)
		}
		want++
		return nil
	}); err != nil {
		return &damageError{err}
	}
	if want != st.next {
		return &damageError{fmt.Errorf("reports end before %d, want %d", want, st.next)}
	}
	if _, err := readBaseline(tx); err != nil {
		return &damageError{err}
	}
	if err := journal.ForEach(func(_, v []byte) error { var t Task; return cbor.Unmarshal(v, &t) }); err != nil {
		return &damageError{err}
	}
	return nil
}

// openError tells damage from what an operator can put right.
func openError(path string, err error) error {
	var path2 *fs.PathError
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return fmt.Errorf("open agent state: %w", ErrBusy)
	case errors.As(err, &path2):
		return fmt.Errorf("open agent state: %w", err)
	}
	return &damageError{fmt.Errorf("open %s: %w", path, err)}
}

// load reads the numbering, or begins one. A file that is complete is not
// written to: the disk may be full.
func (s *Store) load() error {
	complete := false
	if err := s.db.View(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketMeta, bucketOutbox, bucketVMs, bucketJournal} {
			if tx.Bucket(name) == nil {
				return nil
			}
		}
		s.state = readState(tx.Bucket(bucketMeta))
		s.saved, complete = s.state, s.state.epoch != 0
		return nil
	}); err != nil || complete {
		return err
	}
	return s.db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketMeta, bucketOutbox, bucketVMs, bucketJournal} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		meta := tx.Bucket(bucketMeta)
		s.state = readState(meta)
		if s.state.epoch == 0 {
			s.state.epoch, s.state.first, s.state.next = newEpoch(), 1, 1
			if err := writeState(meta, s.state); err != nil {
				return err
			}
		}
		s.saved = s.state
		return nil
	})
}

// Close writes what was put off and closes the file.
func (s *Store) Close() error {
	err := s.Flush()
	if errors.Is(err, ErrWrite) {
		err = nil // it costs sending again
	}
	return errors.Join(err, s.db.Close())
}

// Changed is signalled after each transaction that added reports. It has one
// reader.
func (s *Store) Changed() <-chan struct{} { return s.changed }

// Flush writes receipts that were only noted. A crash before it costs nothing
// but sending their reports again.
func (s *Store) Flush() error {
	s.mu.Lock()
	dirty := s.state != s.saved
	s.mu.Unlock()
	if !dirty {
		return nil
	}
	return s.Update(func(*Tx) error { return nil })
}

// Tx is a transaction of [Store.Update].
type Tx struct {
	tx    *bbolt.Tx
	state state
}

// Update makes the changes of fn, all of them or, when fn or the disk fails,
// none.
func (s *Store) Update(fn func(*Tx) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := &Tx{state: s.state}
	ready := false // for the disk
	err := s.db.Update(func(tx *bbolt.Tx) error {
		t.tx = tx
		if err := fn(t); err != nil {
			return err
		}
		// Receipts noted since the last transaction ride along.
		c := tx.Bucket(bucketOutbox).Cursor()
		for k, _ := c.First(); k != nil && binary.BigEndian.Uint64(k) < t.state.first; k, _ = c.First() {
			if err := c.Delete(); err != nil {
				return err
			}
		}
		if err := writeState(tx.Bucket(bucketMeta), t.state); err != nil {
			return err
		}
		ready = true
		return nil
	})
	switch {
	case err != nil && ready: // bbolt keeps the disk's error as text only
		return fmt.Errorf("write agent state: %w: %w", ErrWrite, err)
	case err != nil:
		return fmt.Errorf("write agent state: %w", err)
	}
	grown := t.state.next != s.state.next || t.state.epoch != s.state.epoch
	s.state, s.saved = t.state, t.state
	if grown {
		select {
		case s.changed <- struct{}{}:
		default:
		}
	}
	return nil
}

// Clock returns the newest time the manager told, or zero.
func (s *Store) Clock() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state.clock == 0 {
		return time.Time{}
	}
	return time.Unix(s.state.clock, 0).UTC()
}

// SetClock notes what time the manager told. It reaches the disk with the next
// transaction, or at once when it is much newer than what is there and the disk
// takes it.
func (s *Store) SetClock(t time.Time) error {
	s.mu.Lock()
	s.state.clock = max(s.state.clock, t.Unix())
	urgent := s.state.clock-s.saved.clock > int64((6 * time.Hour).Seconds())
	s.mu.Unlock()
	if urgent {
		if err := s.Flush(); !errors.Is(err, ErrWrite) {
			return err
		}
	}
	return nil
}

func newEpoch() uint64 {
	var b [8]byte
	for {
		_, _ = rand.Read(b[:]) // never fails
		if e := binary.BigEndian.Uint64(b[:]) >> 11; e != 0 {
			return e
		}
	}
}

func readState(meta *bbolt.Bucket) state {
	return state{
		epoch: getUint(meta, keyEpoch), first: getUint(meta, keyFirst), next: getUint(meta, keyNext),
		clock: int64(getUint(meta, keyClock)),
	}
}

func writeState(meta *bbolt.Bucket, st state) error {
	return errors.Join(
		putUint(meta, keyEpoch, st.epoch), putUint(meta, keyFirst, st.first), putUint(meta, keyNext, st.next),
		putUint(meta, keyClock, uint64(st.clock)))
}

func getUint(b *bbolt.Bucket, key []byte) uint64 {
	if v := b.Get(key); len(v) == 8 {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

func putUint(b *bbolt.Bucket, key []byte, v uint64) error {
	return putIfNew(b, key, seqKey(v))
}

func seqKey(seq uint64) []byte { return binary.BigEndian.AppendUint64(nil, seq) }

var encMode = func() cbor.EncMode {
	eo := cbor.CoreDetEncOptions()
	eo.Time = cbor.TimeUnixMicro
	em, err := eo.EncMode()
	if err != nil {
		panic(err)
	}
	return em
}()

// put writes v's encoding.
func put(b *bbolt.Bucket, key []byte, v any) error {
	enc, err := encMode.Marshal(v)
	if err != nil {
		return err
	}
	return putIfNew(b, key, enc)
}

// putIfNew writes a value that is not there already, so that an unchanged page
// is not written again.
func putIfNew(b *bbolt.Bucket, key, value []byte) error {
	if bytes.Equal(b.Get(key), value) {
		return nil
	}
	return b.Put(key, value)
}

// taskKey returns the journal's key.
func taskKey(id uuid.UUID) []byte { return id[:] }
