package wire

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/fxamacker/cbor/v2"
)

// Errors of decoding. A caller answers each with the [Error] code of the same
// meaning.
var (
	ErrMalformed = errors.New("malformed packet")
	ErrTooLarge  = errors.New("packet beyond a limit")
	ErrVersion   = errors.New("protocol version not served")
)

// HashSize is the length of an inventory hash in bytes.
const HashSize = 16

var encMode, decMode = func() (cbor.EncMode, cbor.DecMode) {
	eo := cbor.CoreDetEncOptions()
	eo.Time = cbor.TimeUnixMicro
	eo.TimeTag = cbor.EncTagNone
	eo.NilContainers = cbor.NilContainerAsEmpty
	em, err := eo.EncMode()
	if err != nil {
		panic(err)
	}
	dm, err := cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden,
		MaxArrayElements: 4096, MaxMapPairs: 64, MaxNestedLevels: 8, TagsMd: cbor.TagsForbidden,
		UTF8: cbor.UTF8RejectInvalid,
	}.DecMode()
	if err != nil {
		panic(err)
	}
	return em, dm
}()

// EncodeUp returns a packet's payload. It is deterministic: the same packet has
// the same bytes. Of the limits it enforces the packet's size alone.
func EncodeUp(u Up) ([]byte, error) { return encode(&u) }

// EncodeDown is EncodeUp for the other direction.
func EncodeDown(d Down) ([]byte, error) { return encode(&d) }

// DecodeUp returns the packet of a payload, deflated or not, within the limits.
// The error wraps ErrMalformed, ErrTooLarge or ErrVersion. Unknown keys are
// ignored.
func DecodeUp(b []byte) (Up, error) {
	var u Up
	if Deflated(b) {
		var err error
		if b, err = inflate(b); err != nil {
			return Up{}, err
		}
	}
	if err := decode(b, &u); err != nil {
		return Up{}, err
	}
	if err := u.validate(); err != nil {
		return Up{}, err
	}
	return u, nil
}

// DecodeDown is DecodeUp for the other direction, in which nothing is deflated.
func DecodeDown(b []byte) (Down, error) {
	var d Down
	if err := decode(b, &d); err != nil {
		return Down{}, err
	}
	if err := d.validate(); err != nil {
		return Down{}, err
	}
	return d, nil
}

func encode(v any) ([]byte, error) {
	b, err := encMode.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode packet: %w", err)
	}
	if len(b) > MaxPacket {
		return nil, fmt.Errorf("encode packet of %d bytes: %w", len(b), ErrTooLarge)
	}
	return b, nil
}

func decode(b []byte, v any) error {
	if len(b) > MaxPacket {
		return fmt.Errorf("%d bytes, at most %d: %w", len(b), MaxPacket, ErrTooLarge)
	}
	err := decMode.Unmarshal(b, v)
	if err == nil {
		return nil
	}
	// A later version may have changed a field's type; then the version is
	// what to complain about.
	var head struct {
		Version int `cbor:"1,keyasint"`
	}
	if decMode.Unmarshal(b, &head) == nil && head.Version > Version {
		return fmt.Errorf("version %d, served are 1 to %d: %w", head.Version, Version, ErrVersion)
	}
	return fmt.Errorf("%w: %w", ErrMalformed, err)
}

// tidy puts a decoded time into UTC and drops what the floating-point number
// on the wire invents below a microsecond. It says whether the year is one
// that every other format can write: a device may claim any number of seconds.
func tidy(t *time.Time) bool {
	*t = t.UTC().Round(time.Microsecond)
	return t.Year() >= 1 && t.Year() <= 9999
}

// validUnix is the same judgement on Unix seconds; 0 means unknown or never.
func validUnix(s int64) bool { return s >= 0 && s <= maxUnix }

const maxUnix = 253402300799 // 9999-12-31T23:59:59Z

// Clip returns s fit for a text field: valid UTF-8 and at most MaxText bytes.
// A packet with a text beyond that is refused as a whole, however often it is
// sent, so whatever comes from a host goes through here first.
func Clip(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= MaxText {
		return s
	}
	const mark = "…"
	end := MaxText - len(mark)
	for !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + mark
}

// HashInventory returns the hash of a complete inventory: the first 16 bytes
// of the SHA-256 of the deterministic CBOR of [host, [vm…]], the virtual
// machines sorted by id. Both sides compute it; equal hashes mean that a
// session may skip the complete inventory.
func HashInventory(host Host, vms []VM) []byte {
	vms = slices.SortedFunc(slices.Values(vms), func(a, b VM) int { return strings.Compare(a.ID, b.ID) })
	b, err := encMode.Marshal([]any{&host, vms})
	if err != nil {
		panic(err) // plain data: cannot fail
	}
	sum := sha256.Sum256(b)
	return bytes.Clone(sum[:HashSize])
}
