package store

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"go.etcd.io/bbolt"

	"pallas/mqttgw/wire"
)

// ErrBeyondLimits says that a report would be refused by every manager.
var ErrBeyondLimits = errors.New("report beyond the limits of the protocol")

// Report puts r into the outbox and returns its sequence. r.Seq is set here;
// the rest, the time too, is the caller's. The error wraps ErrBeyondLimits for
// a report that no manager would take; the transaction may go on without it.
func (t *Tx) Report(r wire.Report) (uint64, error) {
	r.Seq = t.state.next
	b, err := wire.EncodeUp(wire.Up{Version: wire.Version, Epoch: t.state.epoch, Reports: []wire.Report{r}})
	if err == nil {
		_, err = wire.DecodeUp(b)
	}
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrBeyondLimits, err)
	}
	if err := t.tx.Bucket(bucketOutbox).Put(seqKey(r.Seq), b); err != nil {
		return 0, err
	}
	t.state.next++
	return r.Seq, nil
}

// Epoch is that of the reports of this transaction.
func (t *Tx) Epoch() uint64 { return t.state.epoch }

// First is the sequence of the oldest report without a receipt.
func (t *Tx) First() uint64 { return t.state.first }

// Next is the sequence of the next report to be made.
func (t *Tx) Next() uint64 { return t.state.next }

// Summary is the outbox, the inventory and the journal as a Hello tells them.
type Summary struct {
	Epoch, First, Next uint64
	Inventory          []byte
	Open               []uuid.UUID
}

// Summary reads all parts as of one moment.
func (s *Store) Summary() (Summary, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sum := Summary{Epoch: s.state.epoch, First: s.state.first, Next: s.state.next}
	err := s.db.View(func(tx *bbolt.Tx) error {
		base, err := readBaseline(tx)
		if err != nil {
			return err
		}
		sum.Inventory = base.Hash()
		return eachTask(tx, func(task Task) error {
			if !task.Ended() && len(sum.Open) < wire.MaxItems {
				sum.Open = append(sum.Open, task.ID)
			}
			return nil
		})
	})
	if err != nil {
		return Summary{}, fmt.Errorf("read agent state: %w", err)
	}
	return sum, nil
}

// Numbers returns the epoch, the sequence of the oldest report without a
// receipt, and that of the next report to be made.
func (s *Store) Numbers() (epoch, first, next uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state.epoch, s.state.first, s.state.next
}

// Len is the number of reports without a receipt.
func (s *Store) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return int(s.state.next - s.state.first)
}

// Reports returns reports from a sequence on, at most count, that fit one
// packet together.
func (s *Store) Reports(from uint64, count int) ([]wire.Report, error) {
	var out []wire.Report
	size := packetOverhead
	err := s.db.View(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bucketOutbox).Cursor()
		for k, v := c.Seek(seqKey(from)); k != nil && len(out) < min(count, wire.MaxReports); k, v = c.Next() {
			// Each entry is a packet of its own, so the sum is above what they
			// need together.
			if size += len(v); size > wire.MaxPacket && len(out) > 0 {
				return nil
			}
			u, err := wire.DecodeUp(v)
			if err != nil {
				return fmt.Errorf("report %d: %w", binary.BigEndian.Uint64(k), err)
			}
			out = append(out, u.Reports...)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read outbox: %w", err)
	}
	return out, nil
}

// packetOverhead is more than what a packet adds to its reports.
const packetOverhead = 64

// Receipt forgets the reports up to seq and says whether that was news. A
// receipt of another epoch, or for what was never made, is none. The disk
// hears of it later: a report kept too long is only sent again.
func (s *Store) Receipt(epoch, seq uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if epoch != s.state.epoch || seq < s.state.first || seq >= s.state.next {
		return false
	}
	s.state.first = seq + 1
	return true
}

// Refuse empties a report that the manager will not take, so that the numbers
// stay without a gap, and returns what it was. ok is false when there is no
// such report any more.
func (s *Store) Refuse(seq uint64) (was wire.Report, ok bool, err error) {
	err = s.Update(func(t *Tx) error {
		was, ok = wire.Report{}, false
		if seq < t.state.first {
			return nil
		}
		b := t.tx.Bucket(bucketOutbox)
		v := b.Get(seqKey(seq))
		if v == nil {
			return nil
		}
		u, err := wire.DecodeUp(v)
		if err != nil {
			return err
		}
		if was = u.Reports[0]; !was.Known() {
			return nil
		}
		ok = true
		empty, err := wire.EncodeUp(wire.Up{
			Version: wire.Version, Epoch: t.state.epoch,
			Reports: []wire.Report{{Seq: seq, Time: was.Time}},
		})
		if err != nil {
			return err
		}
		return b.Put(seqKey(seq), empty)
	})
	return was, ok, err
}

// NewEpoch starts the numbering again, for when this file and the manager do
// not fit together any more: one of them was set back to an older copy. What
// the outbox says of tasks and conditions goes on under new numbers; the
// inventory is dropped, so that a complete one follows.
func (s *Store) NewEpoch() error {
	return s.Update(func(t *Tx) error {
		var keep []wire.Report
		outbox := t.tx.Bucket(bucketOutbox)
		if err := outbox.ForEach(func(_, v []byte) error {
			u, err := wire.DecodeUp(v)
			if err != nil {
				return err
			}
			if r := u.Reports[0]; r.Seq >= t.state.first && (r.Task != nil || r.Condition != nil) {
				keep = append(keep, r)
			}
			return nil
		}); err != nil {
			return err
		}
		for _, name := range [][]byte{bucketOutbox, bucketVMs} {
			if err := t.tx.DeleteBucket(name); err != nil {
				return err
			}
			if _, err := t.tx.CreateBucket(name); err != nil {
				return err
			}
		}
		meta := t.tx.Bucket(bucketMeta)
		for _, key := range [][]byte{keyHost, keyComplete} {
			if err := meta.Delete(key); err != nil {
				return err
			}
		}
		t.state.epoch, t.state.first, t.state.next = newEpoch(), 1, 1
		moved := make(map[uint64]uint64, len(keep))
		for _, r := range keep {
			seq, err := t.Report(r)
			if err != nil {
				return err
			}
			moved[r.Seq] = seq
		}
		var tasks []Task
		if err := eachTask(t.tx, func(task Task) error { tasks = append(tasks, task); return nil }); err != nil {
			return err
		}
		for _, task := range tasks {
			task.Seq = moved[task.Seq] // 0 for what was receipted
			if err := t.PutTask(task); err != nil {
				return err
			}
		}
		return nil
	})
}
