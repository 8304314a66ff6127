package jsstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	streamName     = "EVENTS"
	streamSubjects = "ev.>"
	// dedupWindow is how long the server remembers a decision's id.
	dedupWindow = 10 * time.Minute
)

// streamConfig is the configuration of a log that only grows.
func streamConfig(replicas int, maxBytes int64) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:              streamName,
		Description:       "Pallas event log: append-only, the only truth",
		Subjects:          []string{streamSubjects},
		Storage:           jetstream.FileStorage,
		Compression:       jetstream.S2Compression,
		Retention:         jetstream.LimitsPolicy,
		Discard:           jetstream.DiscardNew,
		MaxBytes:          unlimited(maxBytes),
		MaxMsgs:           -1,
		MaxMsgsPerSubject: -1,
		MaxMsgSize:        -1,
		Replicas:          max(replicas, 1),
		Duplicates:        dedupWindow,
		DenyDelete:        true,
		DenyPurge:         true,
		AllowDirect:       true,
	}
}

func unlimited(n int64) int64 {
	if n <= 0 {
		return -1
	}
	return n
}

// WeakenedError says that the stream in the server no longer protects the log.
type WeakenedError struct {
	// Settings has a sentence for each setting that is wrong: what it is, and
	// what it has to be.
	Settings []string
}

// Error names every wrong setting.
func (e *WeakenedError) Error() string {
	return "stream " + streamName + " does not protect the event log: " + strings.Join(e.Settings, "; ")
}

func openStream(ctx context.Context, js jetstream.JetStream, want jetstream.StreamConfig, mustExist bool) (jetstream.Stream, error) {
	stream, err := js.Stream(ctx, streamName)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		if mustExist {
			return nil, ErrMissing
		}
		stream, err = js.CreateStream(ctx, want)
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			// Another manager was faster, with other limits.
			stream, err = js.Stream(ctx, streamName)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", streamName, translate(err))
	}
	info := stream.CachedInfo()
	if wrong := weaknesses(info.Config, info.State); len(wrong) > 0 {
		return nil, &WeakenedError{Settings: wrong}
	}
	if info.Config.MaxBytes == want.MaxBytes && info.Config.Replicas == want.Replicas {
		return stream, nil
	}
	have := info.Config
	have.MaxBytes, have.Replicas = want.MaxBytes, want.Replicas
	if stream, err = js.UpdateStream(ctx, have); err != nil {
		return nil, fmt.Errorf("set stream %s to %d bytes and %d replicas: %w", streamName, want.MaxBytes, want.Replicas, translate(err))
	}
	return stream, nil
}

// weaknesses compares what protects the log, and names each difference. Limits
// that an operator may choose (size, replicas, compression, placement) are not
// among them.
func weaknesses(c jetstream.StreamConfig, s jetstream.StreamState) []string {
	var wrong []string
	check := func(ok bool, format string, args ...any) {
		if !ok {
			wrong = append(wrong, fmt.Sprintf(format, args...))
		}
	}
	check(slices.Equal(c.Subjects, []string{streamSubjects}), "subjects are %q, want %q", c.Subjects, streamSubjects)
	check(c.Retention == jetstream.LimitsPolicy, "retention is %q, want %q", c.Retention, jetstream.LimitsPolicy)
	check(c.Discard == jetstream.DiscardNew, "discard is %q, want %q (a full log must refuse, not forget)", c.Discard, jetstream.DiscardNew)
	check(c.Storage == jetstream.FileStorage, "storage is %q, want %q", c.Storage, jetstream.FileStorage)
	check(c.MaxAge == 0, "max_age is %s, want none", c.MaxAge)
	check(c.MaxMsgs <= 0, "max_msgs is %d, want none", c.MaxMsgs)
	check(c.MaxMsgsPerSubject <= 0, "max_msgs_per_subject is %d, want none", c.MaxMsgsPerSubject)
	check(c.MaxMsgSize <= 0, "max_msg_size is %d, want none", c.MaxMsgSize)
	check(c.DenyDelete, "deny_delete is off")
	check(c.DenyPurge, "deny_purge is off")
	check(!c.AllowRollup, "allow_rollup_hdrs is on")
	check(!c.AllowMsgTTL, "allow_msg_ttl is on")
	check(!c.AllowMsgCounter, "allow_msg_counter is on")
	check(c.AllowDirect, "allow_direct is off")
	check(!c.NoAck, "no_ack is on")
	check(!c.Sealed, "sealed is on")
	check(c.PersistMode == jetstream.DefaultPersistMode, "persist_mode is %q, want %q", c.PersistMode, jetstream.DefaultPersistMode)
	check(c.Duplicates >= dedupWindow, "duplicate_window is %s, want %s or more", c.Duplicates, dedupWindow)
	check(c.Mirror == nil, "mirror is set")
	check(len(c.Sources) == 0, "sources are set")
	check(c.SubjectTransform == nil, "subject_transform is set")
	check(s.FirstSeq <= 1, "the first record is at position %d, those before it are gone", s.FirstSeq)
	check(s.NumDeleted == 0, "%d records are missing between the first and the last", s.NumDeleted)
	return wrong
}
