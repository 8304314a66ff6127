// Package fake is a hypervisor host in memory: a [Host] is both the world and
// the driver of it. It keeps the driver contract of package hypervisor (the
// conformance suite says so) and has controls for what a test or a simulation
// wants to happen behind the driver's back: changes, faults, a lost network, a
// wrong password, a licence that forbids writing.
//
// It starts no goroutine and holds nothing but its inventory, so that one
// process can run thousands.
package fake
