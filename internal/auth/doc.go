// Package auth keeps the credentials of people, programs and join tokens, and
// checks them.
//
// Credentials live in a JetStream key-value bucket beside the event log, never
// in the log itself: the log cannot forget, and a secret or a person must be
// forgettable. What is stored is the SHA-256 of a random 256-bit secret, which
// needs no slow hash; comparison is in constant time, and an unknown token
// costs the same work as a wrong one.
package auth
