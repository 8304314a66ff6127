package pki

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	// ticketRotation is how long a key makes tickets, ticketLife how long it
	// opens those that it made. A device that was away for longer makes a whole
	// handshake. Whoever gets hold of a key can read what was said under it, so
	// neither is long.
	ticketRotation = 24 * time.Hour
	ticketLife     = 3 * ticketRotation
	// maxTickets bounds the keys whatever the clock does.
	maxTickets = 8
	// ticketRetry is how long after a failed write the next one is tried.
	ticketRetry = time.Minute

	ticketBlock   = "TLS SESSION TICKET KEY"
	ticketCreated = "Created"
)

// TicketKeys are the keys of TLS session tickets, kept in a file so that the
// sessions outlive the process. They are safe for concurrent use.
//
// What a ticket is worth is for crypto/tls and the door to say: at each
// resumption they look at the certificate's dates, at the CA and at the device
// again.
type TicketKeys struct {
	path string
	log  *slog.Logger

	mu      sync.Mutex
	keys    []ticketKey // newest first
	changed bool        // not in the file yet
	retry   time.Time
	applied map[*tls.Config]bool
}

type ticketKey struct {
	created time.Time
	key     [32]byte
}

// LoadTicketKeys reads the file, which [TicketKeys.Apply] writes. A file that is
// missing, damaged or readable by others counts as empty: the keys are
// disposable, all that is lost is the short handshake of some devices.
func LoadTicketKeys(path string, log *slog.Logger) *TicketKeys {
	t := &TicketKeys{path: path, log: log, applied: make(map[*tls.Config]bool)}
	keys, err := readTickets(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warn("cannot use the TLS ticket keys, making new ones", "path", path, "err", err)
	}
	t.keys = keys
	return t
}

// Apply gives the config the keys that hold now, and makes a new one when it is
// time. It is to be called before each handshake, and cheap.
//
// A key from the future is one of a clock that was set back: it makes no
// tickets any more, and its life begins now.
func (t *TicketKeys) Apply(c *tls.Config, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.keys) == 0 || t.keys[0].created.After(now) || now.Sub(t.keys[0].created) >= ticketRotation {
		t.rotate(now)
	}
	if t.changed && !now.Before(t.retry) {
		if err := writeTickets(t.path, t.keys); err != nil {
			t.retry = now.Add(ticketRetry)
			t.log.Warn("cannot keep the TLS ticket keys: after a restart devices make whole handshakes", "path", t.path, "err", err)
		} else {
			t.changed, t.retry = false, time.Time{}
		}
	}
	if !t.applied[c] {
		keys := make([][32]byte, len(t.keys))
		for i, k := range t.keys {
			keys[i] = k.key
		}
		c.SetSessionTicketKeys(keys)
		t.applied[c] = true
	}
}

func (t *TicketKeys) rotate(now time.Time) {
	fresh := ticketKey{created: now.UTC().Truncate(time.Second)}
	_, _ = rand.Read(fresh.key[:]) // never fails
	keys := []ticketKey{fresh}
	for _, k := range t.keys {
		if k.created.After(now) {
			k.created = fresh.created
		}
		if now.Sub(k.created) < ticketLife && len(keys) < maxTickets {
			keys = append(keys, k)
		}
	}
	t.keys, t.changed, t.retry = keys, true, time.Time{}
	clear(t.applied)
}

func readTickets(path string) ([]ticketKey, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if m := info.Mode().Perm(); m&0o077 != 0 {
		return nil, fmt.Errorf("%s has mode %04o, want 0600: %w", filepath.Base(path), m, ErrExposed)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var keys []ticketKey
	for len(bytes.TrimSpace(b)) > 0 {
		p, rest := pem.Decode(b)
		if p == nil || p.Type != ticketBlock || len(p.Bytes) != len(ticketKey{}.key) || len(keys) == maxTickets {
			return nil, fmt.Errorf("%s is %w: want up to %d PEM blocks %q of 32 bytes", filepath.Base(path), ErrDamaged, maxTickets, ticketBlock)
		}
		created, err := time.Parse(time.RFC3339, p.Headers[ticketCreated])
		if err != nil {
			return nil, fmt.Errorf("%s is %w: a key without the time of its making", filepath.Base(path), ErrDamaged)
		}
		keys = append(keys, ticketKey{created, [32]byte(p.Bytes)})
		b = rest
	}
	return keys, nil
}

// writeTickets replaces the file whole.
func writeTickets(path string, keys []ticketKey) (err error) {
	var b bytes.Buffer
	for _, k := range keys {
		block := &pem.Block{Type: ticketBlock, Headers: map[string]string{ticketCreated: k.created.Format(time.RFC3339)}, Bytes: k.key[:]}
		if err := pem.Encode(&b, block); err != nil {
			return err
		}
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // with mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(b.Bytes())
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
