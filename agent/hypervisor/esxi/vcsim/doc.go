// Package vcsim runs simulated standalone ESXi hosts: govmomi's simulator in
// ESX mode behind a real HTTPS listener on loopback. The demo and the tests
// use it; the agent never does.
//
// Hosts differ from each other as real ones do (hardware, build, datastores,
// virtual machines) and a host of the same name and seed is always the same:
// serial number, certificate, instance UUIDs and MAC addresses come from them.
//
// What the simulator answers and a real ESXi does not is corrected here:
// CloneVM is refused, guest operations need running guest tools, reading needs
// a session, faults carry the host's own wording, and a virtual machine's
// guest tools start and stop with it.
//
// Changes behind the manager's back ([Host.Power], [Host.AddVM], …) go through
// a client session of their own, so that watchers see them as they would see
// another administrator's. Its calls are exempt from what a test injects
// ([Host.Fault], [Host.SetDelay], a read-only licence, an unreachable host).
package vcsim
