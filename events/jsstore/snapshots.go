package jsstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pallas/events"
)

const (
	snapshotBucket = "SNAPSHOTS"
	revisionBytes  = 8
)

// Snapshots keeps folded states of aggregates in a key-value bucket beside the
// log: the value is the revision (8 bytes, big endian), then the caller's data.
// It is disposable: a lost bucket costs replays, nothing else.
type Snapshots struct{ kv jetstream.KeyValue }

// OpenSnapshots makes the bucket, or opens the one that is there.
func OpenSnapshots(ctx context.Context, conn *nats.Conn, replicas int) (*Snapshots, error) {
	js, err := jetstream.New(conn)
	if err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	// One that is there is left as it is: a nearly full disk refuses changes.
	kv, err := js.KeyValue(ctx, snapshotBucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		kv, err = js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{
			Bucket: snapshotBucket, Description: "folded states; disposable", History: 1,
			Storage: jetstream.FileStorage, Replicas: max(replicas, 1), Compression: true,
		})
	}
	if err != nil {
		return nil, fmt.Errorf("open snapshots: %w", translate(err))
	}
	return &Snapshots{kv: kv}, nil
}

// Load returns the newest snapshot of an aggregate and its revision, or nil and
// 0 when there is none.
func (s *Snapshots) Load(ctx context.Context, subject events.Subject) ([]byte, uint64, error) {
	e, err := s.kv.Get(ctx, string(subject))
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound):
		return nil, 0, nil
	case err != nil:
		return nil, 0, fmt.Errorf("load snapshot of %s: %w", subject, translate(err))
	case len(e.Value()) < revisionBytes:
		return nil, 0, fmt.Errorf("load snapshot of %s: %d bytes, want a revision", subject, len(e.Value()))
	}
	return e.Value()[revisionBytes:], binary.BigEndian.Uint64(e.Value()), nil
}

// Save replaces the snapshot of an aggregate.
func (s *Snapshots) Save(ctx context.Context, subject events.Subject, data []byte, revision uint64) error {
	if _, err := s.kv.Put(ctx, string(subject), append(binary.BigEndian.AppendUint64(nil, revision), data...)); err != nil {
		return fmt.Errorf("save snapshot of %s: %w", subject, translate(err))
	}
	return nil
}
