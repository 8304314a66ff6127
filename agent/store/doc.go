// Package store is what the agent keeps on disk, in one bbolt file:
//
//   - the outbox: numbered reports that the manager has not receipted yet,
//   - the baseline: the inventory as the manager will know it once it has
//     every report of the outbox, so that only differences are reported,
//   - the journal: every task and how it ended, so that none runs twice,
//   - the newest time the manager told, below which the clock cannot be right.
//
// What belongs together is written in one transaction ([Store.Update]): a
// report and the baseline it leads to, a task's outcome and the report of it.
// So a crash at any moment leaves neither a gap nor a contradiction.
//
// Reports are numbered 1, 2, 3 … within an epoch, a random number made with
// the file. When the file is lost or damaged, a new epoch tells the manager
// that numbering starts again, and a complete inventory follows.
package store
