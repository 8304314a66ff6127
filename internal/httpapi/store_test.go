package httpapi_test

import (
	"context"
	"errors"
	"iter"

	"pallas/events"
)

// undecodable is a log whose follower meets a decision it cannot decode: one
// that renames a device to "poison".
type undecodable struct{ events.Store }

func (s undecodable) Follow(ctx context.Context, f events.Filter) iter.Seq2[events.Record, error] {
	return func(yield func(events.Record, error) bool) {
		for r, err := range s.Store.Follow(ctx, f) {
			if err == nil {
				if e, ok := r.Entries[0].Event.(events.DeviceRenamed); ok && e.Name == "poison" {
					yield(events.Record{}, errors.New("decode DeviceRenamed version 1: poison"))
					return
				}
			}
			if !yield(r, err) {
				return
			}
		}
	}
}
