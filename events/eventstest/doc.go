// Package eventstest helps to test what stands on the event log: an event log
// in memory, the conformance suite that every [events.Store] passes, and
// builders of decisions.
package eventstest
