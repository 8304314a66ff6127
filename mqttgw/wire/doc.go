// Package wire is the device protocol: the topics, the messages, their
// encoding and their limits. The device manager and the agent share it, and
// nothing else.
//
// Transport is MQTT 3.1.1 over mutual TLS, QoS 0, clean session, one
// subscription per device. A device publishes [Up] packets on d/<id>/u and
// receives [Down] packets on d/<id>/d. Payloads are deterministic CBOR (RFC
// 8949 §4.2.1) with integer keys, deflated where the manager permits it and
// that pays; schema/device.cddl describes them for other implementations.
//
// Delivery is by receipts, not by QoS: MQTT's PUBACK says that a broker has a
// message, not that the fact is in the log. A device numbers its reports
// (epoch, sequence), keeps them until a [Receipt] covers them, and sends them
// again after each reconnect. A task is pushed until a report says that the
// device has it.
//
//	device                                   manager
//	  │ CONNECT, SUBSCRIBE d/<id>/d             │
//	  │ Up{Hello}  ───────────────────────────► │
//	  │ ◄─────────────────────── Down{Welcome, Tasks…}
//	  │ Up{Reports 17,18,19} ─────────────────► │ append to the log
//	  │ ◄────────────────────────── Down{Receipt 19}
//	  │ ◄────────────────────────── Down{Tasks}
//	  │ Up{Reports: TaskReport accepted} ─────► │
//
// A manager drops what a device sends beyond a rate, and what it cannot take at
// the moment; a Hello that is not welcomed is to be repeated like a report.
//
// Unknown keys are ignored, so that either side may be newer. A report of an
// unknown kind is answered with an [Error] and counts as received.
package wire
