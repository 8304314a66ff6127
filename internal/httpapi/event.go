package httpapi

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"pallas/events"
)

// Event is one event of the log with the attribute names of CloudEvents 1.0
// (JSON format, structured mode). Attributes beyond that standard are
// extensions.
type Event struct {
	SpecVersion string       `json:"specversion" enum:"1.0" example:"1.0" doc:"CloudEvents version."`
	ID          string       `json:"id" example:"b0f1a2c3-1111-5222-8333-444455556666.1" doc:"Unique id: the decision's id, a dot, and the event's number in the decision from 1."`
	Source      string       `json:"source" enum:"pallas" example:"pallas" doc:"Always \"pallas\"."`
	Type        string       `json:"type" example:"TaskSucceeded" doc:"What happened."`
	Subject     string       `json:"subject" example:"ev.tasks.6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f" doc:"Aggregate it happened to."`
	Time        time.Time    `json:"time" example:"2026-11-23T09:30:02Z" doc:"The manager's clock when it was decided."`
	DataType    string       `json:"datacontenttype" enum:"application/json" example:"application/json" doc:"Media type of data."`
	Position    uint64       `json:"position" example:"1840" doc:"Place of the decision in the log. Events of one decision share it."`
	Cursor      string       `json:"cursor" example:"1840.1" doc:"Place of this event for after= and Last-Event-ID: position, a dot, number in the decision."`
	Version     int          `json:"dataversion" minimum:"1" example:"1" doc:"Version of the event type's payload."`
	Actor       string       `json:"actor" example:"device:6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f" doc:"Who caused it: user:, token:, device: or system: and an id."`
	Address     string       `json:"address,omitempty" example:"203.0.113.7" doc:"Address the request came from, without a port."`
	Cause       string       `json:"cause,omitempty" example:"c0a8f3de-5f0e-5b1c-8d6f-2b3c4d5e6f70" doc:"Command or task that led to it."`
	DeviceTime  *time.Time   `json:"devicetime,omitempty" example:"2026-11-23T09:30:01.5Z" doc:"When the device says it happened. A claim: order by cursor, never by it."`
	Report      *EventReport `json:"report,omitempty" doc:"The device's report that led to it."`
	Traceparent string       `json:"traceparent,omitempty" example:"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01" doc:"W3C trace context of the request."`
	Data        Payload      `json:"data" doc:"Payload; schema/events/<type>.v<dataversion>.schema.json describes it."`
}

// Payload is an event's payload as the log holds it.
type Payload json.RawMessage

// MarshalJSON returns the payload itself.
func (p Payload) MarshalJSON() ([]byte, error) { return json.RawMessage(p).MarshalJSON() }

// UnmarshalJSON keeps the payload as it is.
func (p *Payload) UnmarshalJSON(b []byte) error { return (*json.RawMessage)(p).UnmarshalJSON(b) }

// Schema describes a payload: some object.
func (Payload) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{
		Type: huma.TypeObject, AdditionalProperties: true,
		Examples: []any{map[string]any{"task": "c0a8f3de-5f0e-5b1c-8d6f-2b3c4d5e6f70"}},
	}
}

// EventReport is the place of a device's report in the device's numbering.
type EventReport struct {
	Epoch uint64 `json:"epoch" example:"7251" doc:"One life of the device's outbox."`
	Seq   uint64 `json:"seq" example:"118" doc:"Number in the epoch, from 1 without a gap."`
}

// EventOf returns the representation of entry i (from 0) of a record.
func EventOf(r events.Record, i int) (Event, error) {
	e := r.Entries[i]
	version, data, err := events.EncodeEvent(e.Event)
	if err != nil {
		return Event{}, fmt.Errorf("represent event at position %d: %w", r.Position, err)
	}
	n := strconv.Itoa(i + 1)
	out := Event{
		SpecVersion: "1.0", ID: string(r.ID) + "." + n, Source: "pallas", Type: e.Event.Type(), Subject: string(r.Subject),
		Time: r.Time.UTC(), DataType: "application/json", Position: r.Position,
		Cursor: strconv.FormatUint(r.Position, 10) + "." + n, Version: version, Actor: string(r.Actor), Address: r.Source,
		Cause: r.Cause, DeviceTime: e.DeviceTime, Traceparent: r.Traceparent, Data: Payload(data),
	}
	if e.Report != nil {
		out.Report = &EventReport{Epoch: e.Report.Epoch, Seq: e.Report.Seq}
	}
	return out, nil
}
