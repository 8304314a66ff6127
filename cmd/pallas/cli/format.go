package cli

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// clean makes text from elsewhere harmless to a terminal and keeps it on its
// line: white space becomes a space, other control characters and those that
// turn the direction of text around go.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			return ' '
		case hostile(r):
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
}

// hostile says whether a character can change how others are shown.
func hostile(r rune) bool {
	return unicode.IsControl(r) || r >= '\u202A' && r <= '\u202E' || r >= '\u2066' && r <= '\u2069' || r == '\u2028' || r == '\u2029'
}

// age says how long ago something was, in one unit: 90s, 15m, 30h, 12d.
func age(t *time.Time, now time.Time) string {
	if t == nil || t.IsZero() {
		return "-"
	}
	return span(now.Sub(*t))
}

func span(d time.Duration) string {
	switch d = max(d, 0); {
	case d < 2*time.Minute:
		return strconv.Itoa(int(d.Seconds())) + "s"
	case d < 2*time.Hour:
		return strconv.Itoa(int(d.Minutes())) + "m"
	case d < 48*time.Hour:
		return strconv.Itoa(int(d.Hours())) + "h"
	default:
		return strconv.Itoa(int(d.Hours()/24)) + "d"
	}
}

// when is an instant with its distance, for people: "… (3m ago)".
func when(t *time.Time, now time.Time) string {
	switch {
	case t == nil || t.IsZero():
		return ""
	case t.After(now):
		return stamp(*t) + " (in " + span(t.Sub(now)) + ")"
	default:
		return stamp(*t) + " (" + span(now.Sub(*t)) + " ago)"
	}
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05Z") }

// until says how far away an end is, in one unit, or that it was.
func until(t, now time.Time) string {
	if !t.After(now) {
		return "expired"
	}
	return "in " + span(t.Sub(now))
}

// size writes MiB in the unit that fits.
func size(mib int64) string {
	for _, u := range []struct {
		mib  int64
		name string
	}{{1 << 20, "TiB"}, {1 << 10, "GiB"}} {
		if mib >= u.mib {
			return strconv.FormatFloat(float64(mib)/float64(u.mib), 'f', 1, 64) + " " + u.name
		}
	}
	return strconv.FormatInt(mib, 10) + " MiB"
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// short is the beginning of a UUID; commands take it instead of the whole.
func short(id string) string { return id[:min(8, len(id))] }

// pairs writes a map as a=b,c=d.
func pairs(m map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+"="+m[k])
	}
	return strings.Join(out, ",")
}

// instant reads a point in time: RFC 3339, a date, or how long it is away from
// now, such as 90s, 10m, 24h, 7d. sign is -1 when durations count backwards.
func instant(flag, s string, now time.Time, sign int) (*time.Time, error) {
	if s == "" {
		return nil, nil
	}
	for _, layout := range []string{time.RFC3339Nano, time.DateOnly} {
		if t, err := time.Parse(layout, s); err == nil {
			return new(t.UTC()), nil
		}
	}
	d, err := duration(s)
	if err != nil {
		return nil, usagef("--%s %q: want an instant such as 2026-11-23T09:30:00Z, or a duration such as 10m, 24h or 7d", flag, s)
	}
	return new(now.Add(time.Duration(sign) * d).UTC()), nil
}

// duration is time.ParseDuration with days, and without negative ones.
func duration(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16) // 65535 days do not overflow
		if err != nil {
			return 0, fmt.Errorf("duration %q: want a whole number of days", s)
		}
		return time.Duration(n) * 24 * time.Hour, nil
	}
	d, err := time.ParseDuration(s)
	if err == nil && d < 0 {
		err = fmt.Errorf("duration %q: want one that is not negative", s)
	}
	return d, err
}

// labels reads k=v arguments. With remove, "k-" is a label to take away, which
// is nil in the result.
func labels(args []string, remove bool) (map[string]*string, error) {
	out := map[string]*string{}
	for _, arg := range args {
		k, v, set := strings.Cut(arg, "=")
		switch gone, cut := strings.CutSuffix(arg, "-"); {
		case set && k != "":
			out[k] = &v
		case !set && cut && remove && gone != "":
			out[gone] = nil
		default:
			want := "key=value"
			if remove {
				want += " to set a label, or key- to remove it"
			}
			return nil, usagef("label %q: want %s", arg, want)
		}
	}
	return out, nil
}
