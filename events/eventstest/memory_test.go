package eventstest_test

import (
	"testing"

	"pallas/events"
	"pallas/events/eventstest"
)

func TestMemory(t *testing.T) {
	eventstest.TestStore(t, func(*testing.T) events.Store { return eventstest.NewMemory() })
}
