package events

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/google/uuid"
)

// DeviceID is the permanent identity of a device: a random UUID (version 4)
// that the device makes itself on first boot, in canonical lower-case form.
type DeviceID string

// VMID names a virtual machine on its device. It is the hypervisor's own
// stable id (vSphere's instance UUID), opaque to everything but the driver,
// and unique on one device only.
type VMID string

// TaskID is a UUID. The same command id always leads to the same task id, so
// that a repeated request cannot make a second task.
type TaskID string

// TokenID is the public part of a join token: a UUID (version 7).
type TokenID string

// NoToken is an id that no join token has.
const NoToken = TokenID("00000000-0000-0000-0000-000000000000")

// UserID is a person's identity in the log: a UUID (version 7), and nothing that
// tells who it is.
type UserID string

// Nobody is whom failures to sign in are recorded for when there is no user of
// that login. Nobody is no user and never becomes one.
const Nobody = UserID("00000000-0000-0000-0000-000000000000")

// GrantID tells the grants of a user apart: a UUID (version 7).
type GrantID string

// APITokenID is the public part of an API token: 16 lower-case letters and
// digits.
type APITokenID string

// ID identifies a decision: a UUID. It is the message id that the log
// deduplicates by.
type ID string

// NewID returns a time-ordered id (UUID version 7) for something that the
// manager makes.
func NewID() string { return uuid.Must(uuid.NewV7()).String() }

// DeriveID returns the id (UUID version 5) that every caller with the same
// parts gets. It makes repeats recognisable without a table of past requests.
func DeriveID(parts ...string) string {
	return uuid.NewSHA1(namespace, []byte(strings.Join(parts, "\x00"))).String()
}

var namespace = uuid.MustParse("6f3e9c52-7b1d-4f0a-9c55-70616c6c6173")

// ParseDeviceID accepts the canonical text of a random UUID and nothing else:
// upper case, braces, other versions and the nil UUID are errors. The strict
// form matters because the id is also a subject token and a client id.
func ParseDeviceID(s string) (DeviceID, error) {
	u, err := uuid.Parse(s)
	if err != nil || u.String() != s {
		return "", fmt.Errorf("device id %q: want a lower-case UUID such as 6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f", clip(s))
	}
	if u.Version() != 4 || u.Variant() != uuid.RFC4122 {
		return "", fmt.Errorf("device id %q: want a random UUID (version 4)", s)
	}
	return DeviceID(s), nil
}

// ParseUUID accepts the canonical text of any UUID; what names the field in
// the error.
func ParseUUID(what, s string) (string, error) {
	u, err := uuid.Parse(s)
	if err != nil || u.String() != s {
		return "", fmt.Errorf("%s %q: want a lower-case UUID", what, clip(s))
	}
	return s, nil
}

var vmIDPattern = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// ParseVMID accepts 1 to 64 characters of letters, digits, dot, dash and
// underscore.
func ParseVMID(s string) (VMID, error) {
	if !vmIDPattern.MatchString(s) {
		return "", fmt.Errorf("vm id %q: want 1 to 64 letters, digits, '.', '_' or '-'", clip(s))
	}
	return VMID(s), nil
}

func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}
