// Package esxi is the hypervisor driver for a standalone VMware ESXi host: it
// speaks the vSphere API through govmomi and is the only package that knows
// its types.
//
// It uses govmomi's generated types and methods over a SOAP client of its own
// (soap.go), keeps one session, and logs in again when the host has dropped it.
// It reads named properties only, in pages, so that a host with many virtual
// machines costs the agent little memory. The host's faults become
// [hypervisor.Error] in one place (fault.go), with the host's own message.
//
// A virtual machine's id is its instance UUID, or its managed object id when
// it has none or when another machine of the host, a copy, has the same.
//
// Whether the licence permits writing is what the licence says of itself until
// the host refuses a write with RestrictedVersion or another licence fault;
// then that counts, until the licence changes or a write succeeds.
package esxi
