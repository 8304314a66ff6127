// Package telemetry holds the vocabulary of measurements: numbers about devices
// that are no events, because nothing is decided by them and a few may be lost.
// They have a stream of their own, with limits of age and size. Imports events.
package telemetry
