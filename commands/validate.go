package commands

import (
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"pallas/events"
	"pallas/events/labels"
)

// Limits of what a command may say.
const (
	MaxName      = 253     // runes of a name
	MaxReason    = 1024    // bytes of a reason
	MaxText      = 4 << 10 // bytes of any text that a device reports
	MaxVMs       = 2000    // virtual machines of one host
	MaxItems     = 512     // disks, NICs, addresses, datastores, networks of one object
	MaxOpenTasks = 1000    // open tasks of one device
	MaxUses      = 100_000 // uses of a join token
	MaxFacts     = 4096    // facts in one report
	MaxCommandID = 255     // bytes of a command id
	MaxUsers     = 10_000  // users
	MaxGrants    = 32      // grants of one user
	MaxTokens    = 100     // API tokens of one user that have not expired

	MaxDeadline = 30 * 24 * time.Hour  // from a task's request to its deadline
	MaxExpiry   = 365 * 24 * time.Hour // from a join token's issue to its expiry
	// MaxTokenLife is from an API token's issue to its expiry.
	MaxTokenLife = 365 * 24 * time.Hour
)

// maxNumber bounds epochs and sequences, as the device protocol does.
const maxNumber = 1 << 53

// checkName accepts 1 to 253 printable characters without white space at the
// ends.
func checkName(field, s string) *Error {
	switch {
	case s == "":
		return invalid(field, "is empty: give 1 to %d printable characters", MaxName)
	case !utf8.ValidString(s):
		return invalid(field, "is not valid UTF-8")
	case utf8.RuneCountInString(s) > MaxName:
		return invalid(field, "has %d characters: shorten it to at most %d", utf8.RuneCountInString(s), MaxName)
	case strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) >= 0:
		return invalid(field, "contains a character that cannot be printed: remove it")
	case strings.TrimSpace(s) != s:
		return invalid(field, "begins or ends with white space: remove it")
	}
	return nil
}

// checkText accepts up to limit bytes of UTF-8 without control characters
// other than tab and newline.
func checkText(field, s string, limit int) *Error {
	switch {
	case len(s) > limit:
		return invalid(field, "has %d bytes: shorten it to at most %d", len(s), limit)
	case !utf8.ValidString(s):
		return invalid(field, "is not valid UTF-8")
	case strings.IndexFunc(s, func(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\t' }) >= 0:
		return invalid(field, "contains a control character: remove it")
	}
	return nil
}

// checkLabels accepts labels as Kubernetes does.
func checkLabels(m map[string]string) *Error {
	if err := labels.Check(m); err != nil {
		return invalid("labels", "%s", err)
	}
	return nil
}

var keyHash = regexp.MustCompile(`^[0-9a-f]{64}$`)

func checkKeyHash(field, s string) *Error {
	if !keyHash.MatchString(s) {
		return invalid(field, "%q: want a SHA-256 of 64 lower-case hex digits", clip(s))
	}
	return nil
}

// checkSubject accepts the aggregate of a well-formed device, token or user id, and
// those that there is one of.
func checkSubject(s events.Subject) error {
	id := s.Key()
	switch s.Kind() {
	case events.KindToken:
		return first(checkToken(events.TokenID(id)))
	case events.KindAccess:
		return nil
	case events.KindAuthority:
		if s == events.AuthoritySubject() {
			return nil
		}
	case events.KindUser:
		if id == string(events.Nobody) {
			return nil
		}
		return first(checkUser(events.UserID(id)))
	}
	return first(checkDevice(events.DeviceID(id)))
}

var apiTokenPattern = regexp.MustCompile(`^[0-9a-z]{16}$`)

func checkDevice(id events.DeviceID) *Error {
	if _, err := events.ParseDeviceID(string(id)); err != nil {
		return invalid("device", "%s", err)
	}
	return nil
}

func checkTask(id events.TaskID) *Error {
	if _, err := events.ParseUUID("task id", string(id)); err != nil {
		return invalid("task", "%s", err)
	}
	return nil
}

func checkToken(id events.TokenID) *Error {
	if _, err := events.ParseUUID("join token id", string(id)); err != nil {
		return invalid("token", "%s", err)
	}
	return nil
}

// checkWithin accepts an instant after now and at most limit away.
func checkWithin(field string, t, now time.Time, limit time.Duration) *Error {
	switch {
	case t.IsZero():
		return invalid(field, "is missing")
	case !t.After(now):
		return invalid(field, "%s is not in the future (now %s)", t.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	case t.Sub(now) > limit:
		return invalid(field, "%s is more than %d days away", t.UTC().Format(time.RFC3339), int(limit.Hours())/24)
	}
	return nil
}

// storable says whether an instant can be written down: RFC 3339 ends with the
// year 9999.
func storable(t time.Time) bool { return t.IsZero() || (t.Year() >= 1 && t.Year() <= 9999) }

// instant is t as the log keeps it: UTC, to the microsecond.
func instant(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }

func clip(s string) string {
	if len(s) > 64 {
		return strings.ToValidUTF8(s[:64], "") + "…"
	}
	return s
}

// first returns the first error of a list of checks.
func first(checks ...*Error) error {
	for _, e := range checks {
		if e != nil {
			return e
		}
	}
	return nil
}
