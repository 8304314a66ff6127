// Package mqttgw is the device door: an embedded message broker with an MQTT
// listener on mutual TLS, and the gateway between devices and the write side.
//
// [Broker] runs nats-server in this process. It has four accounts that cannot
// see each other: AUTH, where connections are judged; DEVICES, where devices
// live; APP, which holds the event log; SYS, the broker's own. No NATS port
// listens. The MQTT listener refuses every connection until a [Gateway] answers
// for it.
//
// [Gateway] decides who may connect (client certificate → device → permissions
// for that device's three topics and nothing else), turns reports into commands
// in the order of their numbers, answers with receipts for what the log holds,
// and pushes tasks. Package wire describes the protocol.
//
// What it promises:
//
//   - A receipt never covers a report that is not in the log.
//   - A device can publish and subscribe only under its own id, whatever it sends.
//   - What a device sends wrongly is answered, counted and forgotten; it reaches
//     neither the log nor another device.
//   - A session is soft: all of it can be lost and is made again from the log
//     and the device's next Hello.
package mqttgw
