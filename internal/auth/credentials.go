package auth

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"pallas/events"
)

// Bucket is the key-value bucket of the secrets of join tokens.
const Bucket = "CREDENTIALS"

// ErrDenied says that a credential is unknown, wrong, revoked or expired. It
// does not say which.
var ErrDenied = errors.New("credential refused")

// ErrExists says that a credential with this id was made before.
var ErrExists = errors.New("credential exists already")

// Credentials is the store of the hashed secrets of join tokens.
type Credentials struct {
	kv   jetstream.KeyValue
	room func() error
	now  func() time.Time
}

type record struct {
	Hash    []byte    `json:"hash"`
	Created time.Time `json:"created"`
}

// Open binds to the bucket, and makes it when it does not exist. room is asked
// before a credential is stored, and says with an error that there is no room:
// [events.ErrNoSpace]; nil means that there always is.
func Open(ctx context.Context, js jetstream.JetStream, replicas int, room func() error) (*Credentials, error) {
	// One that is there is left as it is: a nearly full disk refuses changes.
	kv, err := js.KeyValue(ctx, Bucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		kv, err = js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{
			Bucket: Bucket, History: 1, Storage: jetstream.FileStorage, Replicas: max(replicas, 1),
			Description: "hashed secrets; purgeable",
		})
	}
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", Bucket, err)
	}
	if room == nil {
		room = func() error { return nil }
	}
	return &Credentials{kv: kv, room: room, now: time.Now}, nil
}

// CreateJoin makes the secret of a join token. Making it again for the same id
// is ErrExists: the secret is shown once.
func (c *Credentials) CreateJoin(ctx context.Context, id events.TokenID) (secret string, err error) {
	secret = enc.EncodeToString(random(secretBytes))
	return secret, c.put(ctx, joinKey(id), secret)
}

// VerifyJoin checks the secret of a join token, or returns ErrDenied. Whether
// the token may be used is the log's to say, not ours.
func (c *Credentials) VerifyJoin(ctx context.Context, id events.TokenID, secret string) error {
	return c.check(ctx, joinKey(id), secret)
}

// DeleteJoin forgets the secret of a join token. An unknown id is no error.
func (c *Credentials) DeleteJoin(ctx context.Context, id events.TokenID) error {
	if err := c.kv.Purge(ctx, joinKey(id)); err != nil {
		return fmt.Errorf("purge join secret: %w", err)
	}
	return nil
}

func joinKey(id events.TokenID) string { return "join." + string(id) }

func (c *Credentials) put(ctx context.Context, key, secret string) error {
	if err := c.room(); err != nil {
		return fmt.Errorf("store credential: %w: %w", events.ErrNoSpace, err)
	}
	b, err := json.Marshal(record{Hash: hash(secret), Created: c.now().UTC().Truncate(time.Second)})
	if err != nil {
		return fmt.Errorf("encode credential: %w", err)
	}
	_, err = c.kv.Create(ctx, key, b)
	if errors.Is(err, jetstream.ErrKeyExists) {
		err = ErrExists
	}
	if err != nil {
		return fmt.Errorf("store credential: %w", err)
	}
	return nil
}

// check compares in constant time. For a key that does not exist it does the
// same work against a hash that nothing has.
func (c *Credentials) check(ctx context.Context, key, secret string) error {
	r := record{Hash: make([]byte, len(hash("")))}
	e, err := c.kv.Get(ctx, key)
	known := err == nil
	switch {
	case known:
		if err := json.Unmarshal(e.Value(), &r); err != nil {
			return fmt.Errorf("decode credential: %w", err)
		}
	case errors.Is(err, jetstream.ErrKeyNotFound), errors.Is(err, jetstream.ErrInvalidKey):
	default:
		return fmt.Errorf("read credential: %w", err)
	}
	if !same(r.Hash, secret) || !known {
		return ErrDenied
	}
	return nil
}

// same says whether a hash is of a secret. It compares in constant time.
func same(h []byte, secret string) bool { return subtle.ConstantTimeCompare(h, hash(secret)) == 1 }
