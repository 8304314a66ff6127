// Package inventory tells the manager what is on the host: everything once,
// then only what changed.
//
// A [Reporter] looks at the whole host whenever the driver says that something
// may have changed, after the agent's own tasks, and now and then because a
// host does not tell of every change. It compares what it sees with the
// baseline in the agent's store, which is what the manager will know, and puts
// the differences into the outbox in one transaction with the new baseline. So
// nothing is told twice and nothing is forgotten, whatever stops in between.
//
// A host that cannot be managed is told of too: unreachable, login denied, or a
// licence that forbids changes, each once when it begins and once when it ends.
package inventory
