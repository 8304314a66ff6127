// Package commands is the write side: it decides what may happen and appends
// that to the event log. Nothing else in Pallas appends.
//
// A [Command] asks one aggregate to change. [Decide] is a pure function from
// the folded states and a command to events, or to an [Error] that names the
// field or says what the state is. Each state (Device, Inventory, Tasks,
// JoinToken, Access, User) is the fold of its aggregate's records by its Evolve method. Time
// is data: only the dispatcher has a clock, and reads it once per command.
//
//	command ─► Dispatcher ─► Decide(command, states, now) ─► Store.Append(expected revision)
//	               ▲                                             │
//	               └──────── Evolve(state, record) ◄─────────────┘
//
// The [Dispatcher] keeps folded states in a bounded cache. The cache is never
// an authority: an append names the revision it was decided on, and an answer
// that writes nothing (a refusal, or "already so") is given only after the log
// confirmed the state it rests on. Several managers may therefore decide on
// one log.
//
// A repeat changes nothing: task and token ids are derived from the request,
// device reports are numbered, and a decision's id is derived from the command
// id, so that the log recognises it.
//
// The package imports the standard library, events, and what the dispatcher
// needs for its cache and metrics; no SQL, no HTTP, no NATS.
package commands
