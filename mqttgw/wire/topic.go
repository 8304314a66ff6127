package wire

import "strings"

// UpTopic is where a device publishes its packets. Topics are short because
// MQTT 3.1.1 repeats them in every packet.
func UpTopic(device string) string { return "d/" + device + "/u" }

// DownTopic is a device's one subscription.
func DownTopic(device string) string { return "d/" + device + "/d" }

// TelemetryTopic is where a device publishes what is not kept as events.
func TelemetryTopic(device string) string { return "d/" + device + "/t" }

// Subject returns the NATS subject of a topic, as the MQTT gateway of
// nats-server maps it: a slash becomes a dot.
func Subject(topic string) string { return strings.ReplaceAll(topic, "/", ".") }

// UpSubjects is the NATS subject filter of every device's UpTopic.
const UpSubjects = "d.*.u"

// DeviceOfSubject returns the device of a subject of the form d.<id>.<suffix>,
// or "".
func DeviceOfSubject(subject string) string {
	p := strings.Split(subject, ".")
	if len(p) != 3 || p[0] != "d" {
		return ""
	}
	return p[1]
}
