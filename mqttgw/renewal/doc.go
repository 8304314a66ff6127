// Package renewal gives devices that are known another certificate for the key
// that they registered with: over a session, in time or because an operator or a
// change of the CA wants it, or without one, when the certificate before is not
// good any more and the key is all that the device can show.
//
// Nothing is written before everything has been checked, and a certificate is
// handed out only after the log has it.
package renewal
