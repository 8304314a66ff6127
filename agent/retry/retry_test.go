package retry_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"pallas/agent/retry"
)

func TestBackoffGrowsToItsCap(t *testing.T) {
	for range 200 {
		b := retry.Backoff{Base: time.Second, Cap: 10 * time.Second}
		for i, limit := range []int{1, 2, 4, 8, 10, 10, 10} {
			if d := b.Next(); d < retry.Floor || d > time.Duration(limit)*time.Second {
				t.Fatalf("pause %d is %v, want at most %d s", i, d, limit)
			}
		}
		b.Reset()
		if d := b.Next(); d > time.Second {
			t.Fatalf("pause %v after a reset, want at most 1 s", d)
		}
	}
	for _, b := range []retry.Backoff{{}, {Base: time.Millisecond, Cap: time.Millisecond}, {Base: time.Hour, Cap: time.Second}} {
		for range 100 {
			if d := b.Next(); d <= 0 || d > time.Second {
				t.Fatalf("%+v: pause %v", b, d)
			}
		}
	}
}

func TestPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		if err := retry.Pause(t.Context(), time.Minute); err != nil || time.Since(began) != time.Minute {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := retry.Pause(ctx, time.Minute); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, want the context's error", err)
		}
		if err := retry.Pause(ctx, 0); err == nil {
			t.Error("no pause in a context that is done: no error")
		}
	})
}
