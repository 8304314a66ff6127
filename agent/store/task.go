package store

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/uuid"
	"go.etcd.io/bbolt"

	"pallas/mqttgw/wire"
)

// What the journal keeps of ended tasks, see [Store.Prune].
const (
	JournalAge   = 7 * 24 * time.Hour
	JournalCount = 1000
)

// Task is a task in the journal.
type Task struct {
	ID       uuid.UUID `cbor:"1,keyasint"`
	Kind     string    `cbor:"2,keyasint"`
	VM       string    `cbor:"3,keyasint,omitempty"`
	Deadline time.Time `cbor:"4,keyasint"`
	// State is one of the wire.State… values other than progress.
	State string `cbor:"5,keyasint"`
	// Began says that the host may have been asked to do it.
	Began   bool      `cbor:"6,keyasint,omitempty"`
	Code    string    `cbor:"7,keyasint,omitempty"`
	Message string    `cbor:"8,keyasint,omitempty"`
	Added   time.Time `cbor:"9,keyasint"`
	End     time.Time `cbor:"10,keyasint"`
	// Seq is the newest report of its state; 0 when a receipt in an earlier
	// epoch covered that.
	Seq uint64 `cbor:"11,keyasint,omitempty"`
	// Order is set by PutTask: tasks added later have a higher one.
	Order uint64 `cbor:"12,keyasint"`
}

// Ended says whether the task reached one of its ends.
func (t Task) Ended() bool { return t.State != wire.StateAccepted }

// Task returns a task of the journal, ok false when it is not there.
func (t *Tx) Task(id uuid.UUID) (task Task, ok bool, err error) {
	return readTask(t.tx, id)
}

// PutTask writes a task to the journal.
func (t *Tx) PutTask(task Task) error {
	b := t.tx.Bucket(bucketJournal)
	if task.Order == 0 {
		n, err := b.NextSequence()
		if err != nil {
			return err
		}
		task.Order = n
	}
	return put(b, taskKey(task.ID), task)
}

// ReportTask reports a task's state at the time now and writes the task to the
// journal with the report's sequence.
func (t *Tx) ReportTask(task Task, now time.Time) error {
	seq, err := t.Report(wire.Report{Time: now, Task: &wire.TaskState{
		ID: task.ID, State: task.State, Code: task.Code, Message: task.Message,
	}})
	if err != nil {
		return err
	}
	task.Seq = seq
	return t.PutTask(task)
}

// Task returns a task of the journal, ok false when it is not there.
func (s *Store) Task(id uuid.UUID) (task Task, ok bool, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
		task, ok, err = readTask(tx, id)
		return err
	})
	if err != nil {
		return Task{}, false, fmt.Errorf("read journal: %w", err)
	}
	return task, ok, nil
}

// OpenTasks returns the tasks that have not ended, oldest first.
func (s *Store) OpenTasks() ([]Task, error) {
	var out []Task
	err := s.db.View(func(tx *bbolt.Tx) error {
		return eachTask(tx, func(task Task) error {
			if !task.Ended() {
				out = append(out, task)
			}
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	slices.SortFunc(out, func(a, b Task) int { return cmp.Compare(a.Order, b.Order) })
	return out, nil
}

// Prune removes tasks from the journal that ended more than JournalAge ago, or
// that are not among the newest JournalCount ended ones. It never removes a
// task that could come again: one whose outcome has no receipt, or whose
// deadline is not over.
func (s *Store) Prune(now time.Time) error {
	var ended []Task
	if err := s.db.View(func(tx *bbolt.Tx) error {
		return eachTask(tx, func(task Task) error {
			if task.Ended() {
				ended = append(ended, task)
			}
			return nil
		})
	}); err != nil {
		return fmt.Errorf("read journal: %w", err)
	}
	_, first, _ := s.Numbers()
	slices.SortFunc(ended, func(a, b Task) int { return b.End.Compare(a.End) })
	var remove []Task
	for i, task := range ended {
		if old := i >= JournalCount || now.Sub(task.End) > JournalAge; old && task.Seq < first && task.Deadline.Before(now) {
			remove = append(remove, task)
		}
	}
	if len(remove) == 0 {
		return nil
	}
	return s.Update(func(t *Tx) error {
		for _, task := range remove {
			if err := t.tx.Bucket(bucketJournal).Delete(taskKey(task.ID)); err != nil {
				return err
			}
		}
		return nil
	})
}

func readTask(tx *bbolt.Tx, id uuid.UUID) (Task, bool, error) {
	v := tx.Bucket(bucketJournal).Get(taskKey(id))
	if v == nil {
		return Task{}, false, nil
	}
	var task Task
	if err := cbor.Unmarshal(v, &task); err != nil {
		return Task{}, false, fmt.Errorf("task %s: %w", id, err)
	}
	return task, true, nil
}

func eachTask(tx *bbolt.Tx, fn func(Task) error) error {
	return tx.Bucket(bucketJournal).ForEach(func(_, v []byte) error {
		var task Task
		if err := cbor.Unmarshal(v, &task); err != nil {
			return fmt.Errorf("journal: %w", err)
		}
		return fn(task)
	})
}
