// Package enroll lets devices in: it exchanges a join token and a certificate
// request for a certificate, over HTTPS.
//
// A device that is refused learns nothing about tokens: an unknown, expired,
// revoked or used-up one gets the same answer after the same work. A repeat by
// the same device with the same key and token gets another certificate and
// takes no other use, so that a lost answer does no harm. The same device id
// with another key is a clone and is refused.
//
// Nothing is written before everything has been checked, and a certificate is
// handed out only after the log has it.
package enroll
