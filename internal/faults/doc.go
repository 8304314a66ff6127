// Package faults breaks a running system on purpose. Its tests start device
// managers and agents as processes, do to them and to their disk what the world
// does, and prove afterwards, from the log and from books that the hosts and
// the clients kept for themselves, that every promise was held.
//
// [Disk] is a file system with faults. It needs /dev/fuse and the right to
// mount; without them the tests leave out what a disk can do, and say so.
package faults
