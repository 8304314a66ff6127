package jsstore

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pallas/events"
)

// TestTranslate goes through the server's own table of errors.
func TestTranslate(t *testing.T) {
	api := func(id server.ErrorIdentifier) error {
		e, ok := server.ApiErrors[id]
		if !ok {
			t.Fatalf("the server has no error %d", id)
		}
		return fmt.Errorf("nats: %w", &jetstream.APIError{Code: e.Code, ErrorCode: jetstream.ErrorCode(e.ErrCode), Description: e.Description})
	}
	kinds := []error{events.ErrConflict, events.ErrNoSpace, events.ErrUnavailable}
	for _, c := range []struct {
		name string
		err  error
		want error
	}{
		{"wrong last sequence", api(server.JSStreamWrongLastSequenceErrF), events.ErrConflict},
		{"wrong last sequence, replicated", api(server.JSStreamWrongLastSequenceConstantErr), events.ErrConflict},
		{"store failed", api(server.JSStreamStoreFailedF), events.ErrNoSpace},
		{"account full", api(server.JSAccountResourcesExceededErr), events.ErrNoSpace},
		{"server full", api(server.JSInsufficientResourcesErr), events.ErrNoSpace},
		{"storage full", api(server.JSStorageResourcesExceededErr), events.ErrNoSpace},
		{"same id on its way", api(server.JSStreamDuplicateMessageConflict), events.ErrUnavailable},
		{"no leader", api(server.JSClusterNotAvailErr), events.ErrUnavailable},
		{"not the leader", api(server.JSClusterNotLeaderErr), events.ErrUnavailable},
		{"off", api(server.JSNotEnabledErr), events.ErrUnavailable},
		{"stream offline", api(server.JSStreamOfflineErr), events.ErrUnavailable},
		{"too large for the stream", api(server.JSStreamMessageExceedsMaximumErr), nil},
		{"too large for the server", nats.ErrMaxPayload, nil},
		{"no responders", nats.ErrNoResponders, events.ErrUnavailable},
		{"no stream", jetstream.ErrNoStreamResponse, events.ErrUnavailable},
		{"time-out", nats.ErrTimeout, events.ErrUnavailable},
		{"deadline", context.DeadlineExceeded, events.ErrUnavailable},
		{"cancelled on the way", context.Canceled, events.ErrUnavailable},
		{"closed", nats.ErrConnectionClosed, events.ErrUnavailable},
	} {
		got := translate(c.err)
		if !errors.Is(got, c.err) {
			t.Errorf("%s: %v hides the cause %v", c.name, got, c.err)
		}
		for _, kind := range kinds {
			if errors.Is(got, kind) != (kind == c.want) { //nolint:errorlint // the sentinel itself
				t.Errorf("%s: %v; want %v", c.name, got, c.want)
			}
		}
	}
	if err := translate(nil); err != nil {
		t.Errorf("no error: %v", err)
	}
}
