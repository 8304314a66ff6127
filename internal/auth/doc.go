// Package auth keeps the credentials of people, programs and join tokens, and
// checks them; and it says who may do what ([Rules]).
//
// Credentials live in JetStream key-value buckets beside the event log, never in
// the log itself: the log cannot forget, and a secret or a person must be
// forgettable. What is known of a person can be destroyed, bytes on the disk
// included ([People.Forget]); the log has only the id.
//
// Comparisons are in constant time by construction. Of tokens, sessions, links
// and join secrets, which are random and of 256 bits, the SHA-256 is stored,
// which needs no slow hash; the hash of what was sent is compared with the
// stored one, or with one that nothing has, by crypto/subtle. So an unknown one
// costs the same work as a wrong one, and the time of neither tells how much of
// it was right. Passwords are hashed with argon2id ([Passwords]), an unknown
// login's against the hash of no password.
package auth
