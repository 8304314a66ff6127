package projections

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"pallas/events"
)

// rebuildSuffix names the file that Rebuild fills before it takes the place of
// the old one.
const rebuildSuffix = ".rebuild"

// Rebuild builds the read model at path anew from the whole log, up to where
// it ends when called, into a file beside it, and puts that in the old one's
// place only when it is complete. It returns the position reached. Nobody may
// have the read model open. On an error, which wraps [ErrStopped] when an
// event is the reason, the old file is left as it was.
func Rebuild(ctx context.Context, path string, store events.Store) (position uint64, err error) {
	side := path + rebuildSuffix
	if position, err = fill(ctx, side, store); err != nil {
		return 0, errors.Join(fmt.Errorf("rebuild read model %s: %w", path, err), removeFiles(side))
	}
	// What lies beside the old file belongs to it and must not meet the new
	// one. A crash before the rename leaves no file, and Open makes another.
	if err := removeFiles(path); err != nil {
		return 0, fmt.Errorf("rebuild read model %s: %w", path, err)
	}
	if err := os.Rename(side, path); err != nil {
		return 0, fmt.Errorf("rebuild read model %s: %w", path, err)
	}
	return position, nil
}

// fill makes a complete and closed file at path.
func fill(ctx context.Context, path string, store events.Store) (position uint64, err error) {
	if err := removeFiles(path); err != nil {
		return 0, err
	}
	w, err := openWriter(ctx, path)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, w.close()) }()

	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	ch := make(chan item, batchSize)
	wg.Go(func() { readLog(ctx, store.Read(ctx, events.Filter{}), ch) })

	b := batcher{ch: ch, next: 1, busy: true}
	for {
		recs, end := b.batch()
		if len(recs) > 0 {
			if err := w.apply(recs); err != nil {
				var bad *recordError
				if errors.As(err, &bad) {
					err = fmt.Errorf("%w at position %d: %w", ErrStopped, recs[bad.index].Position, err)
				}
				return position, err
			}
			position = recs[len(recs)-1].Position
		}
		switch {
		case end == nil:
		case errors.Is(end, errEnded) && ctx.Err() == nil:
			return position, nil
		default:
			return position, readError(ctx, position, end)
		}
	}
}
