package main

import (
	"context"
	"log/slog"
	"maps"
	"sync"
)

// tally is a log handler for many agents with the same troubles: it counts
// warnings and errors by their text, and passes on the first of each.
type tally struct {
	slog.Handler
	*counts
}

type counts struct {
	mu sync.Mutex
	by map[string]int
}

func newTally(h slog.Handler) tally { return tally{h, &counts{by: map[string]int{}}} }

// Handle implements slog.Handler.
func (t tally) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelWarn {
		t.mu.Lock()
		t.by[r.Message]++
		first := t.by[r.Message] == 1
		t.mu.Unlock()
		if !first && !t.Enabled(ctx, slog.LevelInfo) {
			return nil
		}
	}
	return t.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (t tally) WithAttrs(attrs []slog.Attr) slog.Handler {
	return tally{t.Handler.WithAttrs(attrs), t.counts}
}

// WithGroup implements slog.Handler.
func (t tally) WithGroup(name string) slog.Handler {
	return tally{t.Handler.WithGroup(name), t.counts}
}

// all returns what was counted.
func (c *counts) all() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.by)
}
