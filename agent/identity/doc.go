// Package identity is who the agent is: a permanent random id, a key that never
// leaves the data folder, and the certificate that a manager gave for them in
// exchange for a join token.
//
// The id is kept on the host's own storage too ([Find], [Keep]), so that an
// agent whose machine was rebuilt is the same device again.
//
// Files in the data folder, each written to a new file and renamed: device.id,
// device.key (PKCS #8, mode 0600) and enrolment.json.
package identity
