package events

import (
	"fmt"
	"strings"
)

// Subject names an aggregate: the stretch of the log that one decision may
// depend on. It has the form "ev.<kind>.<id>".
//
// Subjects are bounded by devices, tokens and users, never by tasks or
// messages: the log keeps an index entry in memory for each.
type Subject string

// The kinds of aggregate.
const (
	KindDevice    = "device"    // identity, trust, presence
	KindInventory = "inventory" // what the host reports of itself and its VMs
	KindTasks     = "tasks"     // the device's task queue
	KindToken     = "token"     // join tokens
	KindAccess    = "access"    // which users there are and what each may do
	KindUser      = "user"      // what a user does to get in: passwords, tokens, sessions
	KindAuthority = "authority" // the CA of the devices
)

// Kinds lists every kind of aggregate, in the order of their declaration.
func Kinds() []string {
	return []string{KindDevice, KindInventory, KindTasks, KindToken, KindAccess, KindUser, KindAuthority}
}

// DeviceSubject is the aggregate of a device's identity, trust and presence.
func DeviceSubject(id DeviceID) Subject { return Subject("ev.device." + id) }

// InventorySubject is the aggregate of what a device's host reports.
func InventorySubject(id DeviceID) Subject { return Subject("ev.inventory." + id) }

// TasksSubject is the aggregate of a device's task queue.
func TasksSubject(id DeviceID) Subject { return Subject("ev.tasks." + id) }

// TokenSubject is the aggregate of one join token.
func TokenSubject(id TokenID) Subject { return Subject("ev.token." + id) }

// AccessSubject is the one aggregate of who may do what. It is one, so that no
// two decisions at the same time can leave the manager without an administrator.
func AccessSubject() Subject { return Subject("ev.access." + Nobody) }

// UserSubject is the aggregate of how one user gets in.
func UserSubject(id UserID) Subject { return Subject("ev.user." + id) }

// AuthoritySubject is the aggregate of the CA that signs the certificates of
// devices. There is one.
func AuthoritySubject() Subject { return "ev.authority." + authorityKey }

const authorityKey = "devices"

// Kind returns the middle part of the subject, such as "device".
func (s Subject) Kind() string { k, _, _ := s.parts(); return k }

// Key returns the last part of the subject, such as the device id.
func (s Subject) Key() string { _, k, _ := s.parts(); return k }

// Device returns the device the subject belongs to, or "" when it belongs to
// none.
func (s Subject) Device() DeviceID {
	switch k, id, _ := s.parts(); k {
	case KindDevice, KindInventory, KindTasks:
		return DeviceID(id)
	default:
		return ""
	}
}

// Validate reports a subject that does not have the form "ev.<kind>.<id>" with
// an id free of wildcards, dots and white space. An unknown kind is valid: a
// newer manager may have written it.
func (s Subject) Validate() error {
	if _, _, ok := s.parts(); !ok {
		return fmt.Errorf("subject %q: want ev.<kind>.<id>", clip(string(s)))
	}
	return nil
}

func (s Subject) parts() (kind, id string, ok bool) {
	rest, found := strings.CutPrefix(string(s), "ev.")
	if !found {
		return "", "", false
	}
	kind, id, found = strings.Cut(rest, ".")
	if !found || kind == "" || id == "" || strings.ContainsAny(kind+id, ".*> \t\r\n\x00") {
		return "", "", false
	}
	return kind, id, true
}
