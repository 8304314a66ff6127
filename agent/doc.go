// Package agent is the edge program: it manages one hypervisor host for a
// manager in the cloud, and makes every connection itself.
//
// An [Agent] puts together what the packages below it do: identity says who it
// is, store keeps what must survive, inventory tells what is on the host,
// executor does tasks, and link talks to the manager. It needs a
// hypervisor.Driver and a folder, and listens on no port.
//
// Of Pallas it imports mqttgw/wire alone. It builds without cgo, takes about
// six goroutines, and its memory grows with the number of virtual machines
// only.
package agent
