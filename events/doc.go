// Package events is the vocabulary of Pallas: what can have happened to a
// fleet, and how that is written down.
//
// Everything the device manager knows is a sequence of decisions in one
// append-only log. A [Decision] is the unit of appending: one or more events
// that became true together, because of one command, for one aggregate. It is
// stored as one message, so that it is atomic by nature.
//
// An [Event] is a sealed sum type. Each variant has a type name, a version and
// a JSON payload; its shape never changes after a release. A new meaning gets
// a new version and a pure upcast from the old one. A type that this build
// does not know decodes to [Unknown] with its bytes kept, so that an old
// binary reading a newer log loses nothing.
//
// Payloads carry no secret and no personal data beyond a user id: token and
// password hashes live in a purgeable store beside the log.
//
// The package imports the standard library and google/uuid only.
package events
