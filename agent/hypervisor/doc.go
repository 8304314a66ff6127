// Package hypervisor is the agent's view of its host: the small [Driver]
// interface, the errors that drivers translate their host's faults to, and
// nothing else. esxi implements it on the vSphere API, fake in memory;
// hypervisortest is the conformance suite of both.
//
// Inventory is in the words of mqttgw/wire, so that what a driver observes is
// what is sent. Only a driver knows its host's API types.
package hypervisor
