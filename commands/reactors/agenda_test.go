package reactors

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// Whatever is asked for, every key runs at the earliest time asked since its
// last run, never twice at once.
func TestAgenda(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		type ask struct{ key, delay, at int } // seconds
		asks := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) ask {
			return ask{rapid.IntRange(0, 3).Draw(rt, "key"), rapid.IntRange(0, 20).Draw(rt, "delay"), rapid.IntRange(0, 30).Draw(rt, "at")}
		}), 1, 25).Draw(rt, "asks")
		slices.SortStableFunc(asks, func(a, b ask) int { return a.at - b.at })

		// The model: at each whole second, first the asks, then what is due.
		want, due := map[int][]int{}, map[int]int{}
		for now := 0; now <= 60; now++ {
			for _, a := range asks {
				if a.at != now {
					continue
				}
				if d, ok := due[a.key]; !ok || now+a.delay < d {
					due[a.key] = now + a.delay
				}
			}
			for k, d := range due {
				if d == now {
					want[k] = append(want[k], now)
					delete(due, k)
				}
			}
		}

		got := map[int][]int{}
		synctest.Test(t, func(*testing.T) {
			start := time.Now()
			a := newAgenda[int](time.Now, nil)
			ctx, cancel := context.WithCancel(context.Background())
			var mu sync.Mutex
			var wg sync.WaitGroup
			wg.Go(func() {
				a.run(ctx, 2, func(_ context.Context, k int) (time.Time, error) {
					mu.Lock()
					defer mu.Unlock()
					got[k] = append(got[k], int(time.Since(start).Seconds()))
					return time.Time{}, nil
				})
			})
			for _, q := range asks {
				<-time.After(time.Until(start.Add(time.Duration(q.at)*time.Second - 500*time.Millisecond)))
				a.at(q.key, start.Add(time.Duration(q.at+q.delay)*time.Second))
			}
			<-time.After(time.Minute)
			cancel()
			wg.Wait()
			if len(a.items) != 0 || len(a.heap) != 0 {
				rt.Errorf("%d items, %d in the heap are left", len(a.items), len(a.heap))
			}
		})
		for k := range 4 {
			if !slices.Equal(got[k], want[k]) {
				rt.Fatalf("key %d ran at %v, want %v", k, got[k], want[k])
			}
		}
	})
}

// A key that is asked for while it runs runs once more.
func TestAgendaAsksDuringARun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgenda[string](time.Now, nil)
		ctx, cancel := context.WithCancel(t.Context())
		running, runs := 0, 0
		var mu sync.Mutex
		var wg sync.WaitGroup
		wg.Go(func() {
			a.run(ctx, 4, func(context.Context, string) (time.Time, error) {
				mu.Lock()
				running++
				runs++
				if running > 1 {
					t.Error("it runs twice at once")
				}
				n := runs
				mu.Unlock()
				if n == 1 {
					for range 3 {
						a.at("k", time.Now())
					}
				}
				<-time.After(time.Second)
				mu.Lock()
				running--
				mu.Unlock()
				return time.Time{}, nil
			})
		})
		a.at("k", time.Now())
		<-time.After(time.Minute)
		cancel()
		wg.Wait()
		if runs != 2 {
			t.Errorf("%d runs, want 2", runs)
		}
	})
}
