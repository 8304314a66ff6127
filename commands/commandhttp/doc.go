// Package commandhttp is the write side's HTTP door: the operations that
// change something.
//
// Each operation turns a request into one command for the dispatcher and
// answers from the dispatcher's own state, so that an answer is right however
// far behind the read model is. Every answer carries the position of the
// decision in Pallas-Position; a read that sends it along sees the change.
//
// It may not import projections.
package commandhttp
