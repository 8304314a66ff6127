package wire

import (
	"bytes"
	"compress/flate"
	"fmt"
	"io"
	"sync"
)

const (
	// MaxInflation is how many times its own size a deflated packet may be once
	// inflated. Like any other it is then at most MaxPacket.
	MaxInflation = 32
	// deflateFrom is the size from which on deflating may pay, in bytes.
	deflateFrom = 512
)

// Deflated says whether a payload is a deflated packet: a byte string, where
// another has a map.
func Deflated(payload []byte) bool { return len(payload) > 0 && payload[0]>>5 == 2 }

// EncodeUpDeflated is EncodeUp for a manager with [Settings].Deflate: the
// packet comes deflated if that saves a quarter. These bytes are not the same
// with each version of the compressor.
func EncodeUpDeflated(u Up) ([]byte, error) {
	plain, err := EncodeUp(u)
	if err != nil || len(plain) < deflateFrom {
		return plain, err
	}
	var out bytes.Buffer
	w := deflaters.Get().(*flate.Writer)
	defer deflaters.Put(w)
	w.Reset(&out)
	if _, err := w.Write(plain); err != nil {
		return nil, fmt.Errorf("deflate packet: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("deflate packet: %w", err)
	}
	small, err := encode(out.Bytes())
	if err != nil {
		return nil, err
	}
	if len(small) > len(plain)/4*3 || len(plain) > MaxInflation*len(small) {
		return plain, nil
	}
	return small, nil
}

// inflate returns the packet in a deflated payload. The error wraps
// ErrMalformed or ErrTooLarge.
func inflate(payload []byte) ([]byte, error) {
	if len(payload) > MaxPacket {
		return nil, fmt.Errorf("%d bytes, at most %d: %w", len(payload), MaxPacket, ErrTooLarge)
	}
	var packed []byte
	if err := decMode.Unmarshal(payload, &packed); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	src, limit := bytes.NewReader(packed), min(MaxPacket, MaxInflation*len(payload))
	r := inflaters.Get().(io.Reader)
	defer inflaters.Put(r)
	if err := r.(flate.Resetter).Reset(src, nil); err != nil {
		return nil, fmt.Errorf("deflated packet: %w: %w", ErrMalformed, err)
	}
	var out bytes.Buffer
	_, err := out.ReadFrom(io.LimitReader(r, int64(limit)+1))
	switch {
	case out.Len() > limit:
		return nil, fmt.Errorf("deflated packet: %d bytes hold more than %d: %w", len(payload), limit, ErrTooLarge)
	case err != nil:
		return nil, fmt.Errorf("deflated packet: %w: %w", ErrMalformed, err)
	case src.Len() > 0:
		return nil, fmt.Errorf("deflated packet: %d bytes after its end: %w", src.Len(), ErrMalformed)
	}
	return out.Bytes(), nil
}

// A compressor takes 800 kB and its opposite 40: the pools keep them for a busy
// while, and no longer.
var (
	deflaters = sync.Pool{New: func() any {
		w, err := flate.NewWriter(io.Discard, flate.DefaultCompression)
		if err != nil {
			panic(err) // of a wrong level
		}
		return w
	}}
	inflaters = sync.Pool{New: func() any { return flate.NewReader(bytes.NewReader(nil)) }}
)
