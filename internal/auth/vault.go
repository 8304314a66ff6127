package auth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"pallas/events"
)

// vault is a key-value bucket whose values can be destroyed. A bucket as the
// client library makes them refuses to delete messages and only forgets where
// they are, so that the bytes stay on the disk; here a value that is replaced or
// erased is overwritten with random bytes.
type vault struct {
	kv     jetstream.KeyValue
	stream jetstream.Stream
	prefix string // of the subjects
	room   func() error
}

// The stored revisions of one key: the present one, and the one before until it
// is overwritten.
const vaultHistory = 2

func openVault(ctx context.Context, js jetstream.JetStream, bucket string, replicas int, room func() error) (*vault, error) {
	name := "KV_" + bucket
	// One that is there is left as it is: a nearly full disk refuses changes.
	stream, err := js.Stream(ctx, name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		stream, err = js.CreateStream(ctx, jetstream.StreamConfig{
			Name: name, Subjects: []string{"$KV." + bucket + ".>"}, Description: "people, and hashed secrets; each value can be destroyed",
			MaxMsgsPerSubject: vaultHistory, Storage: jetstream.FileStorage, Replicas: max(replicas, 1), Discard: jetstream.DiscardNew,
			AllowRollup: true, AllowDirect: true, MaxMsgs: -1, MaxBytes: -1, MaxMsgSize: 64 << 10, MaxConsumers: -1,
		})
	}
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", bucket, err)
	}
	kv, err := js.KeyValue(ctx, bucket)
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", bucket, err)
	}
	if room == nil {
		room = func() error { return nil }
	}
	return &vault{kv: kv, stream: stream, prefix: "$KV." + bucket + ".", room: room}, nil
}

// errMissing says that a key has no value, errChanged that it has another one
// than the caller read.
var (
	errMissing = errors.New("no such key")
	errChanged = errors.New("value changed meanwhile")
)

// get decodes the value of a key and returns its revision.
func (v *vault) get(ctx context.Context, key string, to any) (uint64, error) {
	e, err := v.kv.Get(ctx, key)
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound), errors.Is(err, jetstream.ErrInvalidKey):
		return 0, errMissing
	case err != nil:
		return 0, fmt.Errorf("read %s: %w", kindOf(key), stored(err))
	}
	if err := json.Unmarshal(e.Value(), to); err != nil {
		return 0, fmt.Errorf("decode %s: %w", kindOf(key), err)
	}
	return e.Revision(), nil
}

// create stores the value of a key that has none, or answers ErrExists.
func (v *vault) create(ctx context.Context, key string, value any) error {
	err := v.store(ctx, key, value, 0)
	if errors.Is(err, errChanged) {
		err = ErrExists
	}
	return err
}

// replace stores a value in place of the one of a revision, and destroys that.
func (v *vault) replace(ctx context.Context, key string, value any, revision uint64) error {
	if err := v.store(ctx, key, value, revision); err != nil {
		return err
	}
	if err := v.stream.SecureDeleteMsg(ctx, revision); err != nil && !errors.Is(err, jetstream.ErrMsgDeleteUnsuccessful) {
		return fmt.Errorf("destroy the old %s: %w", kindOf(key), stored(err))
	}
	return nil
}

// put stores a value whatever was there.
func (v *vault) put(ctx context.Context, key string, value any) error {
	b, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("encode %s: %w", kindOf(key), err)
	}
	if err := v.room(); err != nil {
		return fmt.Errorf("store %s: %w: %w", kindOf(key), events.ErrNoSpace, err)
	}
	if _, err := v.kv.Put(ctx, key, b); err != nil {
		return fmt.Errorf("store %s: %w", kindOf(key), stored(err))
	}
	return nil
}

func (v *vault) store(ctx context.Context, key string, value any, revision uint64) error {
	if err := v.room(); err != nil {
		return fmt.Errorf("store %s: %w: %w", kindOf(key), events.ErrNoSpace, err)
	}
	b, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("encode %s: %w", kindOf(key), err)
	}
	if _, err := v.kv.Update(ctx, key, b, revision); err != nil {
		return fmt.Errorf("store %s: %w", kindOf(key), stored(err))
	}
	return nil
}

// take destroys the value of a revision. Of several callers one succeeds; the
// others get errChanged.
func (v *vault) take(ctx context.Context, key string, revision uint64) error {
	switch err := v.stream.SecureDeleteMsg(ctx, revision); {
	case errors.Is(err, jetstream.ErrMsgDeleteUnsuccessful):
		return errChanged
	case err != nil:
		return fmt.Errorf("destroy %s: %w", kindOf(key), stored(err))
	}
	return nil
}

// erase destroys all values of a key, the oldest first. One without a value is
// no error.
func (v *vault) erase(ctx context.Context, key string) error {
	for range vaultHistory + 6 { // others may write meanwhile
		m, err := v.stream.GetMsg(ctx, 1, jetstream.WithGetMsgSubject(v.prefix+key))
		switch {
		case errors.Is(err, jetstream.ErrMsgNotFound):
			return nil
		case err != nil:
			return fmt.Errorf("destroy %s: %w", kindOf(key), stored(err))
		}
		if err := v.take(ctx, key, m.Sequence); err != nil && !errors.Is(err, errChanged) {
			return err
		}
	}
	return fmt.Errorf("destroy %s: it is written again and again: %w", kindOf(key), events.ErrUnavailable)
}

// keys lists the keys that a pattern such as "session.*.*" matches, sorted.
func (v *vault) keys(ctx context.Context, pattern string) ([]string, error) {
	l, err := v.kv.ListKeysFiltered(ctx, pattern)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", kindOf(pattern), stored(err))
	}
	defer l.Stop() //nolint:errcheck // nothing to do about it
	var out []string
	for k := range l.Keys() {
		out = append(out, k)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("list %s: %w", kindOf(pattern), err)
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// kindOf names what a key holds, without the key: that is nobody's business.
func kindOf(key string) string {
	kind, _, _ := strings.Cut(key, ".")
	return kind
}

// codes of the store for a revision that is not the last.
const (
	codeWrongSequence         = 10071
	codeWrongSequenceConstant = 10164
)

// stored translates an error of the store.
func stored(err error) error {
	var api *jetstream.APIError
	switch {
	case errors.Is(err, jetstream.ErrKeyExists):
		return errChanged
	case errors.As(err, &api) && (api.ErrorCode == codeWrongSequence || api.ErrorCode == codeWrongSequenceConstant):
		return errChanged
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, jetstream.ErrNoStreamResponse):
		return fmt.Errorf("%w: %w", events.ErrUnavailable, err)
	}
	return err
}

// second is t as records keep it.
func second(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }
