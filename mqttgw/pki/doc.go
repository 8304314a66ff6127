// Package pki is the certificate authority of the device manager: it makes and
// loads the CA, signs certificates for devices, and keeps the manager's own
// server certificate fresh.
//
// The CA signs two kinds of leaf and nothing else: a device certificate (client
// authentication only, common name = device id, no other name) and a server
// certificate (server authentication only). A device can therefore never pose
// as the manager, nor the manager's certificate as a device. What a request
// asks for besides its key and its common name is ignored.
//
// Everything is ECDSA P-256: small on a narrow link, and available in every TLS
// library. The package imports the standard library only and reads no clock:
// instants come from the caller.
package pki
