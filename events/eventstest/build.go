package eventstest

import (
	"sync/atomic"
	"time"

	"pallas/events"
)

// Epoch is the time of the first decision that [Decide] makes; each further one
// is a second later.
var Epoch = time.Date(2031, 5, 6, 7, 8, 9, 123456000, time.UTC)

var decided atomic.Int64

// Decide builds a decision of the events with an id of its own, by the actor
// "system:test".
func Decide(s events.Subject, es ...events.Event) events.Decision {
	n := decided.Add(1) - 1
	d := events.Decision{
		ID: events.ID(events.NewID()), Subject: s, Time: Epoch.Add(time.Duration(n) * time.Second),
		Actor: events.SystemActor("test"),
	}
	for _, e := range es {
		d.Entries = append(d.Entries, events.Entry{Event: e})
	}
	return d
}
