package jsstore

import (
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pallas/events"
)

// Error codes of the server that nats.go has no name for (nats-server,
// server/errors.json).
const (
	codeAccountResourcesExceeded jetstream.ErrorCode = 10002
	codeInsufficientResources    jetstream.ErrorCode = 10023
	codeStorageResourcesExceeded jetstream.ErrorCode = 10047
	// codeStoreFailed is what a stream with DiscardNew answers at its byte
	// limit. It stands for the limits on messages and message sizes too, which
	// this stream does not have.
	codeStoreFailed jetstream.ErrorCode = 10077
)

// errNotFound says that no message matches a request.
var errNotFound = errors.New("no such record")

// translate turns what nats.go and the server say into the errors of
// [events.Store]. The original stays in the chain.
func translate(err error) error {
	var api *jetstream.APIError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, nats.ErrMaxPayload), errors.Is(err, nats.ErrBadSubject), errors.Is(err, nats.ErrHeadersNotSupported):
		return err // refused on this side: nothing was sent
	case !errors.As(err, &api):
		// A time-out, a context that ended, nobody who listens, a connection
		// that is gone: whether the request was carried out is not known.
		return fmt.Errorf("%w: %w", events.ErrUnavailable, err)
	}
	switch api.ErrorCode { //nolint:exhaustive // the others say nothing that a caller could act on
	case jetstream.JSErrCodeStreamWrongLastSequence, jetstream.JSErrCodeStreamWrongLastSequenceConstant:
		return fmt.Errorf("%w: %w", events.ErrConflict, err)
	case codeStoreFailed, codeAccountResourcesExceeded, codeInsufficientResources, codeStorageResourcesExceeded:
		return fmt.Errorf("%w: %w", events.ErrNoSpace, err)
	case jetstream.JSErrCodeStreamMessageExceedsMaximum, jetstream.JSErrCodeBadRequest, jetstream.JSErrCodeStreamNameInUse:
		return err
	}
	if api.Code == 503 || api.Code == 500 || api.ErrorCode == codeDuplicateInProcess {
		return fmt.Errorf("%w: %w", events.ErrUnavailable, err)
	}
	return err
}

// codeDuplicateInProcess is answered by a replicated stream to the second of
// two appends of one id while the first is on its way to the replicas.
const codeDuplicateInProcess jetstream.ErrorCode = 10158
