package commands

import (
	"context"
	"encoding/json"
	"log/slog"

	"pallas/events"
)

// Snapshots keeps folded states outside the log, so that an aggregate with a
// long history loads quickly. They are disposable: losing one costs a replay.
type Snapshots interface {
	// Load returns the newest snapshot of the aggregate and the revision it was
	// taken at; nil and 0 when there is none.
	Load(ctx context.Context, s events.Subject) (data []byte, revision uint64, err error)
	// Save replaces the aggregate's snapshot.
	Save(ctx context.Context, s events.Subject, data []byte, revision uint64) error
}

// snapshotEvery is how many decisions apart the snapshots of an aggregate are.
const snapshotEvery = 256

// snapshotVersion names the shape of the states. Change it whenever a state's
// fields or the meaning of its fold change: snapshots of another version are
// ignored.
const snapshotVersion = 4

type snapshot struct {
	Version int `json:"version"`
	// Decision is the one at the snapshot's revision. It ties the snapshot to
	// its log: after a power cut, or a restore from a backup, the log may go on
	// with other decisions at the same positions.
	Decision events.ID       `json:"decision"`
	Recent   []answer        `json:"recent,omitempty"`
	State    json.RawMessage `json:"state"`
}

// restore returns the entry of the aggregate's snapshot, or nil when there is
// none that can be read. Whether the log holds its decision is still to be seen.
func (d *Dispatcher) restore(ctx context.Context, s events.Subject) *entry {
	if d.snapshots == nil {
		return nil
	}
	data, revision, err := d.snapshots.Load(ctx, s)
	if err != nil {
		d.log.LogAttrs(ctx, slog.LevelWarn, "snapshot not read", slog.String("subject", string(s)), slog.Any("error", err))
		return nil
	}
	var snap snapshot
	if data == nil || json.Unmarshal(data, &snap) != nil || snap.Version != snapshotVersion {
		return nil
	}
	state, err := newFolded(s)
	if err != nil || json.Unmarshal(snap.State, state) != nil {
		return nil
	}
	return &entry{state: state, revision: revision, decision: snap.Decision, recent: snap.Recent}
}

// keep saves a snapshot of the entry, which nobody changes meanwhile.
func (d *Dispatcher) keep(ctx context.Context, s events.Subject, e *entry) {
	if d.snapshots == nil {
		return
	}
	state, err := json.Marshal(e.state)
	if err == nil {
		var data []byte
		if data, err = json.Marshal(snapshot{Version: snapshotVersion, Decision: e.decision, Recent: e.recent, State: state}); err == nil {
			err = d.snapshots.Save(ctx, s, data, e.revision)
		}
	}
	if err != nil {
		d.log.LogAttrs(ctx, slog.LevelWarn, "snapshot not saved", slog.String("subject", string(s)), slog.Any("error", err))
	}
}
