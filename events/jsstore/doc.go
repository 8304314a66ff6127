// Package jsstore keeps the event log in NATS JetStream: one stream, one
// message for each decision, one subject for each aggregate.
//
// The stream is configured here, as code, so that nothing in it can be deleted,
// purged, overwritten or aged out; [Open] refuses a stream on which somebody
// weakened that. An append carries the aggregate's expected revision
// (Nats-Expected-Last-Subject-Sequence) and the decision's id (Nats-Msg-Id),
// and JetStream checks both.
//
// # Durability
//
// Append returns when the server has written the decision to its file. That
// survives a kill of the process at once, and a loss of power after the
// server's sync interval; with the interval set to "always" it survives both at
// once, at a tenth of the speed.
//
// # Staleness
//
// On a single server every read sees every append that was answered before it.
// On a replicated stream a read may be answered by a replica that is a moment
// behind; an append decided on such a read is refused with
// [events.ErrConflict], never accepted wrongly.
//
// The package imports nats.go; the server itself only in its tests.
package jsstore
