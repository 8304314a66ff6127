// Package servertest runs device managers for tests: in this process, or as a
// process of its own that can be killed. Every part is the real one; only the
// hypervisors may be simulated.
package servertest
