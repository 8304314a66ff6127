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

// Bucket is the key-value bucket of the credentials.
const Bucket = "CREDENTIALS"

// ErrDenied says that a credential is unknown, wrong, revoked or expired. It
// does not say which.
var ErrDenied = errors.New("credential refused")

// ErrExists says that a credential with this id was made before.
var ErrExists = errors.New("credential exists already")

// Credentials is the store of hashed secrets.
type Credentials struct {
	kv   jetstream.KeyValue
	room func() error
	now  func() time.Time
}

type record struct {
	Hash []byte `json:"hash"`
	// User is whom an API token stands for.
	User    string    `json:"user,omitempty"`
	Created time.Time `json:"created"`
}

// User is who an API token authenticates.
type User struct {
	ID    string
	Actor events.Actor
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

// Authenticate returns whom an API token stands for, or ErrDenied.
func (c *Credentials) Authenticate(ctx context.Context, token string) (User, error) {
	r, err := c.check(ctx, apiKey(idOf(token)), token)
	if err != nil {
		return User{}, err
	}
	return User{ID: r.User, Actor: events.UserActor(r.User)}, nil
}

// CreateToken makes an API token for a user. The token is returned once and
// stored as a hash.
func (c *Credentials) CreateToken(ctx context.Context, user string) (string, error) {
	id, token := newToken()
	return token, c.put(ctx, apiKey(id), token, user)
}

// HasTokens says whether any API token exists.
func (c *Credentials) HasTokens(ctx context.Context) (bool, error) {
	l, err := c.kv.ListKeysFiltered(ctx, "api.>")
	if err != nil {
		return false, fmt.Errorf("list credentials: %w", err)
	}
	defer l.Stop() //nolint:errcheck // nothing to do about it
	for range l.Keys() {
		return true, nil
	}
	return false, nil
}

// CreateJoin makes the secret of a join token. Making it again for the same id
// is ErrExists: the secret is shown once.
func (c *Credentials) CreateJoin(ctx context.Context, id events.TokenID) (secret string, err error) {
	secret = enc.EncodeToString(random(secretBytes))
	return secret, c.put(ctx, joinKey(id), secret, "")
}

// VerifyJoin checks the secret of a join token, or returns ErrDenied. Whether
// the token may be used is the log's to say, not ours.
func (c *Credentials) VerifyJoin(ctx context.Context, id events.TokenID, secret string) error {
	_, err := c.check(ctx, joinKey(id), secret)
	return err
}

// DeleteJoin forgets the secret of a join token. An unknown id is no error.
func (c *Credentials) DeleteJoin(ctx context.Context, id events.TokenID) error {
	if err := c.kv.Purge(ctx, joinKey(id)); err != nil {
		return fmt.Errorf("purge join secret: %w", err)
	}
	return nil
}

func apiKey(id string) string          { return "api." + id }
func joinKey(id events.TokenID) string { return "join." + string(id) }

func (c *Credentials) put(ctx context.Context, key, secret, user string) error {
	if err := c.room(); err != nil {
		return fmt.Errorf("store credential: %w: %w", events.ErrNoSpace, err)
	}
	b, err := json.Marshal(record{Hash: hash(secret), User: user, Created: c.now().UTC().Truncate(time.Second)})
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
func (c *Credentials) check(ctx context.Context, key, secret string) (record, error) {
	r := record{Hash: make([]byte, len(hash("")))}
	e, err := c.kv.Get(ctx, key)
	known := err == nil
	switch {
	case known:
		if err := json.Unmarshal(e.Value(), &r); err != nil {
			return record{}, fmt.Errorf("decode credential: %w", err)
		}
	case errors.Is(err, jetstream.ErrKeyNotFound), errors.Is(err, jetstream.ErrInvalidKey):
	default:
		return record{}, fmt.Errorf("read credential: %w", err)
	}
	if subtle.ConstantTimeCompare(r.Hash, hash(secret)) != 1 || !known {
		return record{}, ErrDenied
	}
	return r, nil
}
