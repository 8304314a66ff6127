package wire

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"

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

// EncodeUp and EncodeDown return a packet's payload. It is deterministic: the
// same packet has the same bytes.
func EncodeUp(u Up) ([]byte, error)     { return encode(&u) }
func EncodeDown(d Down) ([]byte, error) { return encode(&d) }

// DecodeUp returns the packet of a payload, within the limits. The error wraps
// ErrMalformed, ErrTooLarge or ErrVersion. Unknown keys are ignored.
func DecodeUp(b []byte) (Up, error) {
	var u Up
	if err := decode(b, &u); err != nil {
		return Up{}, err
	}
	return u, u.validate()
}

// DecodeDown is DecodeUp for the other direction.
func DecodeDown(b []byte) (Down, error) {
	var d Down
	if err := decode(b, &d); err != nil {
		return Down{}, err
	}
	return d, d.validate()
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
	if err := decMode.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return nil
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
