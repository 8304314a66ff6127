package pki

import (
	"bytes"
	"crypto/tls"
	"encoding/pem"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// ticketFile returns the keys that the file holds, newest first.
func ticketFile(t *testing.T, path string) []ticketKey {
	t.Helper()
	keys, err := readTickets(path)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func TestTicketKeysRotateAndEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tickets.key")
	start := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	for _, step := range []struct {
		name string
		now  time.Time
		keys int
		make bool // a new key
	}{
		{"the first start", start, 1, true},
		{"a day less a second later", start.Add(24*time.Hour - time.Second), 1, false},
		{"a day later", start.Add(24 * time.Hour), 2, true},
		{"two days later", start.Add(48 * time.Hour), 3, true},
		{"three days later the first has ended", start.Add(72 * time.Hour), 3, true},
		{"set back by ten years: keys from the future make no tickets", start.AddDate(-10, 0, 0), 4, true},
		{"and end within their life from then on", start.AddDate(-10, 0, 3), 1, true},
		{"set forward by ten years: all have ended", start, 1, true},
	} {
		var newest ticketKey
		if _, err := os.Stat(path); err == nil {
			newest = ticketFile(t, path)[0]
		}
		// A process of its own each time: what counts is in the file.
		LoadTicketKeys(path, slog.New(slog.DiscardHandler)).Apply(&tls.Config{}, step.now)
		keys := ticketFile(t, path)
		if len(keys) != step.keys {
			t.Errorf("%s: %d keys, want %d", step.name, len(keys), step.keys)
		}
		if made := keys[0].key != newest.key; made != step.make {
			t.Errorf("%s: a new key %v, want %v", step.name, made, step.make)
		}
		for _, k := range keys {
			if k.created.After(step.now) {
				t.Errorf("%s: a key of %v is kept", step.name, k.created)
			}
		}
	}
}

func TestTicketKeysAreBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tickets.key")
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	keys := LoadTicketKeys(path, slog.New(slog.DiscardHandler))
	for range 3 * maxTickets { // a clock that is set back again and again
		now = now.Add(-time.Minute)
		keys.Apply(&tls.Config{}, now)
	}
	if n := len(ticketFile(t, path)); n != maxTickets {
		t.Errorf("%d keys, want %d", n, maxTickets)
	}
}

func TestTicketKeysAreDisposable(t *testing.T) {
	good := pem.EncodeToMemory(&pem.Block{Type: ticketBlock, Headers: map[string]string{ticketCreated: "2026-01-01T00:00:00Z"}, Bytes: bytes.Repeat([]byte{7}, 32)})
	for name, c := range map[string]struct {
		content []byte
		mode    os.FileMode
	}{
		"empty":              {nil, 0o600},
		"not PEM":            {[]byte("garbage"), 0o600},
		"garbage at the end": {append(bytes.Clone(good), "garbage"...), 0o600},
		"a short key":        {pem.EncodeToMemory(&pem.Block{Type: ticketBlock, Bytes: []byte{1}}), 0o600},
		"no time":            {pem.EncodeToMemory(&pem.Block{Type: ticketBlock, Bytes: make([]byte, 32)}), 0o600},
		"too many":           {bytes.Repeat(good, maxTickets+1), 0o600},
		"others can read it": {good, 0o644},
	} {
		path := filepath.Join(t.TempDir(), "tickets.key")
		if err := os.WriteFile(path, c.content, c.mode); err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		LoadTicketKeys(path, slog.New(slog.NewTextHandler(&log, nil))).Apply(&tls.Config{}, time.Date(2026, 1, 1, 1, 0, 0, 0, time.UTC))
		keys := ticketFile(t, path) // and only the manager can read it
		if len(keys) != 1 || keys[0].key == [32]byte(bytes.Repeat([]byte{7}, 32)) {
			t.Errorf("%s: %d keys, want a new one", name, len(keys))
		}
		if name != "empty" && !strings.Contains(log.String(), "making new ones") {
			t.Errorf("%s: nothing in the log: %q", name, log.String())
		}
	}
}

func TestTicketKeysWithoutADiskStayInMemory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "gone")
	var log bytes.Buffer
	keys := LoadTicketKeys(filepath.Join(dir, "tickets.key"), slog.New(slog.NewTextHandler(&log, nil)))
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	for range 3 {
		keys.Apply(&tls.Config{}, now)
	}
	if n := strings.Count(log.String(), "cannot keep"); n != 1 {
		t.Errorf("%d lines in the log, want 1: %s", n, log.String())
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	first := keys.keys[0].key
	keys.Apply(&tls.Config{}, now.Add(ticketRetry))
	if got := ticketFile(t, filepath.Join(dir, "tickets.key")); len(got) != 1 || got[0].key != first {
		t.Errorf("the file has %d keys, want the one in use", len(got))
	}
}
