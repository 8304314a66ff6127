package cli

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"pallas/internal/client"
)

// change says what happened to a thing that is watched.
type change[T any] struct {
	Change string `json:"change"` // "" in the first list, then new, changed or gone
	Item   T      `json:"item"`
}

// watchEvery is how often the list is read again at most.
const watchEvery = 300 * time.Millisecond

func watchCommand[T any](a *app, n *noun[T]) *cobra.Command {
	cmd := &cobra.Command{
		Use: n.plural, Aliases: n.aliases, Short: "Show " + n.plural + ", then each change as it happens",
		Long: "Show " + n.plural + ", then each change as it happens. The column CHANGE says new, changed, or gone: removed, or no longer among what the flags pick.\n\n" +
			"With -o json or ndjson each line is an object with change and item. Ctrl-C is the normal end: exit code 0.",
	}
	if n.window > 0 {
		cmd.Long += fmt.Sprintf("\n\nOnly the newest %d are watched.", n.window)
	}
	fetch := n.filter(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := a.open()
		if err != nil {
			return err
		}
		return untilStopped(cmd.Context(), watch(cmd.Context(), a, s, n, fetch))
	}
	return cmd
}

// watch reads the list again when an event may have changed it, and prints the
// differences.
func watch[T any](ctx context.Context, a *app, s *session, n *noun[T], fetch lister[T]) error {
	st, err := s.status(ctx)
	if err != nil {
		return err
	}
	s.position.Seen(st.Log.Position) // the list shows at least this, the stream what comes after
	w := &watcher[T]{noun: n, out: newWatchPrinter(a, watched(n)), seen: map[string]seen[T]{}}
	items, err := all(ctx, s, fetch, n.window)
	if err != nil {
		return err
	}
	if err := w.show(ctx, s, items, true); err != nil {
		return err
	}

	var newest atomic.Int64
	dirty := make(chan struct{}, 1)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return s.follow(ctx, client.StreamEventsParams{After: new(strconv.FormatInt(st.Log.Position, 10))}, a.lost, func(e client.Event) error {
			if kind, _ := subject(e); !slices.Contains(n.kinds, kind) {
				return nil
			}
			newest.Store(e.Position)
			select {
			case dirty <- struct{}{}:
			default:
			}
			return nil
		})
	})
	g.Go(func() error {
		pace := time.NewTicker(watchEvery)
		defer pace.Stop()
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-dirty:
			}
			s.position.Seen(newest.Load())
			items, err := all(ctx, s, fetch, n.window)
			switch {
			case err == nil:
				if err := w.show(ctx, s, items, false); err != nil {
					return err
				}
			case ctx.Err() != nil || !transient(err):
				return err
			default:
				a.lost(err)
				select {
				case dirty <- struct{}{}: // again
				default:
				}
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-pace.C:
			}
		}
	})
	return g.Wait()
}

type seen[T any] struct {
	item T
	text []byte
}

type watcher[T any] struct {
	noun *noun[T]
	out  *printer[change[T]]
	seen map[string]seen[T]
}

// show prints what is different from the list before.
func (w *watcher[T]) show(ctx context.Context, s *session, items []T, begin bool) error {
	now := make(map[string]seen[T], len(items))
	for _, item := range items {
		text, err := encode(item, "")
		if err != nil {
			return err
		}
		id := w.noun.id(item)
		before, known := w.seen[id]
		now[id] = seen[T]{item, text}
		word := ""
		switch {
		case begin:
		case !known:
			word = "new"
		case bytes.Equal(before.text, text):
			continue
		default:
			word = "changed"
		}
		if err := w.out.add(change[T]{word, item}); err != nil {
			return err
		}
	}
	for id, last := range w.seen {
		if _, still := now[id]; still {
			continue
		}
		item, err := w.noun.find(ctx, s, id) // it may only have left what the flags pick
		if err != nil {
			item = last.item
		}
		if err := w.out.add(change[T]{"gone", item}); err != nil {
			return err
		}
	}
	w.seen = now
	return w.out.flush()
}

// watched is a noun with a column for the change.
func watched[T any](n *noun[T]) *noun[change[T]] {
	out := &noun[change[T]]{plural: n.plural, name: func(c change[T]) string { return n.name(c.Item) }}
	for _, c := range n.columns {
		out.columns = append(out.columns, column[change[T]]{
			head: c.head, wide: c.wide, status: c.status,
			value: func(item change[T], now time.Time) string { return c.value(item.Item, now) },
		})
	}
	out.columns = append(out.columns, column[change[T]]{head: "CHANGE", value: func(c change[T], _ time.Time) string { return dash(c.Change) }})
	return out
}

// newWatchPrinter prints without an end: JSON becomes one object per line.
func newWatchPrinter[T any](a *app, n *noun[T]) *printer[T] {
	p := newPrinter(a, n)
	if p.format == formatJSON {
		p.format = formatNDJSON
	}
	return p
}
