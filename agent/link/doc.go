// Package link is the agent's line to its manager: one MQTT 3.1.1 connection
// over mutual TLS 1.3, made anew for as long as it takes whenever it breaks.
//
// A [Link] sends what is in the outbox, a window at a time, and forgets a report
// only when the manager's receipt covers it; see package wire for the protocol.
// It hands on what comes down: tasks, cancels, the manager's clock and settings.
//
// It uses the packet codec of Eclipse Paho and not its client, which takes
// eight goroutines and its own message store per connection for delivery
// guarantees that receipts give here. A Link takes two goroutines while it is
// connected and one otherwise.
package link
