package telemetry

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"pallas/events"
)

// Day is a calendar day in UTC as YYYY-MM-DD. Days compare as strings do.
type Day string

// DayOf returns the day of an instant.
func DayOf(t time.Time) Day { return Day(t.UTC().Format(time.DateOnly)) }

// ParseDay checks that s is a day.
func ParseDay(s string) (Day, error) {
	t, err := time.Parse(time.DateOnly, s)
	if err != nil || t.Year() < 1970 {
		return "", fmt.Errorf("want a day such as 2026-11-23")
	}
	return DayOf(t), nil
}

// Add returns the day n days later.
func (d Day) Add(n int) Day { return DayOf(d.time().AddDate(0, 0, n)) }

// Until returns how many days later than d the other day is.
func (d Day) Until(other Day) int { return int(other.time().Sub(d.time()) / (24 * time.Hour)) }

func (d Day) time() time.Time {
	t, _ := time.Parse(time.DateOnly, string(d)) // a Day is one
	return t
}

// Bytes is what went over the wire, from the manager's point of view: IP and
// TCP headers and repeats that were sent are in it.
type Bytes struct{ Received, Sent uint64 }

// Plus returns the sum.
func (b Bytes) Plus(o Bytes) Bytes { return Bytes{b.Received + o.Received, b.Sent + o.Sent} }

// Total returns both directions together.
func (b Bytes) Total() uint64 { return b.Received + b.Sent }

// MaxDevices bounds the devices of one [Usage]; as JSON it has at most 320 KiB.
const MaxDevices = 4096

// maxBytes is more than a connection moves between two messages, and so little
// that sums of years fit into 63 bits.
const maxBytes = 1 << 48

// Usage is what some devices' connections cost since the last one that named
// them, all on one day.
type Usage struct {
	Day     Day           `json:"day"`
	Devices []DeviceBytes `json:"devices"`
}

// DeviceBytes is one device's part of a [Usage]. As JSON it is
// [device, received, sent].
type DeviceBytes struct {
	Device events.DeviceID
	Bytes
}

// MarshalJSON writes [device, received, sent].
func (d DeviceBytes) MarshalJSON() ([]byte, error) {
	return json.Marshal([3]any{d.Device, d.Received, d.Sent})
}

// UnmarshalJSON reads [device, received, sent].
func (d *DeviceBytes) UnmarshalJSON(b []byte) error {
	var parts []json.RawMessage
	if err := json.Unmarshal(b, &parts); err != nil {
		return err
	}
	if len(parts) != 3 {
		return fmt.Errorf("usage of a device has %d parts, want device, received, sent", len(parts))
	}
	var id string
	if err := errors.Join(json.Unmarshal(parts[0], &id), json.Unmarshal(parts[1], &d.Received), json.Unmarshal(parts[2], &d.Sent)); err != nil {
		return err
	}
	var err error
	d.Device, err = events.ParseDeviceID(id)
	return err
}

// Decode reads a Usage and checks it.
func Decode(data []byte) (Usage, error) {
	var u Usage
	if err := json.Unmarshal(data, &u); err != nil {
		return u, fmt.Errorf("decode usage: %w", err)
	}
	if _, err := ParseDay(string(u.Day)); err != nil {
		return u, fmt.Errorf("decode usage: day %q: %w", u.Day, err)
	}
	if len(u.Devices) > MaxDevices {
		return u, fmt.Errorf("decode usage: %d devices, want at most %d", len(u.Devices), MaxDevices)
	}
	for _, d := range u.Devices {
		if d.Received > maxBytes || d.Sent > maxBytes {
			return u, fmt.Errorf("decode usage: %s has %d and %d bytes, want at most %d", d.Device, d.Received, d.Sent, uint64(maxBytes))
		}
	}
	return u, nil
}
