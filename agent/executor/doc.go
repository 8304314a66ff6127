// Package executor does the manager's tasks: each once, each to an end.
//
// A task is written to the journal, in one transaction with the report that
// accepts it, before anything else happens. Before the host is asked, the
// journal says so; after a crash a task that had begun is therefore never
// begun again. What it came to is then read from the host where its state
// tells (power on, power off, suspend), and is "interrupted" otherwise. A task
// that comes again is answered from the journal.
//
// Tasks of one virtual machine run in the order they came; those of different
// machines run side by side, a few at a time. Between tasks there is no
// goroutine.
package executor
