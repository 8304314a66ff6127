// Package accesshttp is the door for people and programs: who they are, what
// they may do, and how they get in.
//
// It authenticates requests by API token or session ([Handlers.Authenticate]),
// signs people in, and has the operations on users, grants, API tokens, sessions
// and passwords, those that read included: what a user may do is in the log, who
// it is only in the store that can forget ([auth.People]), and the read model
// has neither.
//
// Guessing is limited by login, source and in all, never by login alone, so that
// nobody can lock out somebody else. A refusal never tells whether there is such
// a login.
//
// It may not import projections.
package accesshttp
