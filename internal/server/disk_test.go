package server_test

import (
	"context"
	"math"
	"net/http"
	"strings"
	"testing"
	"time"

	"pallas/internal/client"
	"pallas/internal/server"
	"pallas/internal/servertest"
)

// TestNoRoom starts a manager on a disk with less room than it wants: writes
// are refused as what they are, at once, and nothing else suffers. After a
// start with room they work.
func TestNoRoom(t *testing.T) {
	m := servertest.New(t, func(c *server.Config) { c.Events.MinFree = math.MaxInt64 })
	m.Run()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	status := func(r interface{ StatusCode() int }, err error) int {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return r.StatusCode()
	}
	key := "again"
	create := func() int {
		r, err := m.API.CreateJoinTokenWithResponse(ctx, &client.CreateJoinTokenParams{IdempotencyKey: &key}, client.CreateJoinToken{})
		return status(r, err)
	}
	if got := create(); got != http.StatusInsufficientStorage {
		t.Errorf("write: %d, want 507", got)
	}
	if got := status(m.API.ListDevicesWithResponse(ctx, nil)); got != http.StatusOK {
		t.Errorf("read: %d, want 200", got)
	}
	m.Stop()
	m.Config.Events.MinFree = server.Defaults().Events.MinFree
	m.Run()
	if got := create(); got != http.StatusCreated {
		t.Errorf("the same write with room: %d, want 201", got)
	}
}

// TestMaxBytesBeyondDisk names the setting that cannot be kept.
func TestMaxBytesBeyondDisk(t *testing.T) {
	m := servertest.New(t)
	m.Config.Events.MaxBytes = 1 << 60
	s, err := server.New(m.Config, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "events.max_bytes") {
		t.Errorf("run with a log larger than the disk: %v, want an error that names events.max_bytes", err)
	}
}
