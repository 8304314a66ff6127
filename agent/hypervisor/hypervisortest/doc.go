// Package hypervisortest is the conformance suite of [hypervisor.Driver]: what
// the agent relies on, tried on a host that a [Fixture] describes and can
// change behind the driver's back.
package hypervisortest
