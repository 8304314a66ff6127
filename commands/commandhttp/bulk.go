package commandhttp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"golang.org/x/sync/errgroup"

	"pallas/commands"
	"pallas/events"
	"pallas/events/labels"
	"pallas/internal/auth"
	"pallas/internal/httpapi"
)

// Bounds of a change of many devices.
const (
	maxTargets  = 10_000 // devices of one request
	maxRefusals = 100    // refusals that an answer lists
	bulkWorkers = 16     // devices under way at the same time

	// bulkTimeout bounds a whole change, which does not end with the client's
	// connection.
	bulkTimeout = time.Minute
)

// SelectFunc returns the devices, at most limit and sorted, that a selector
// picks within a scope and that are in one of the states of trust; none means
// any. It must know every device that is in the log when it is called.
type SelectFunc func(ctx context.Context, sel labels.Selector, scope labels.Scope, trust []string, limit int) ([]events.DeviceID, error)

// ChangeDevices says what to do with which devices.
type ChangeDevices struct {
	Action   string     `json:"action" enum:"approve,reject,quarantine,release,label,rotate-certificate,retire" example:"label" doc:"What to do with each device, as the operation for one does it."`
	Selector string     `json:"selector,omitempty" maxLength:"4096" example:"site=fra,role in (pos,kiosk)" doc:"Label selector that picks the devices, in the grammar of the lists. Required, unless all says that every device is meant."`
	All      bool       `json:"all,omitempty" example:"false" doc:"Every device is meant. Not together with selector."`
	Trust    []string   `json:"trust,omitempty" maxItems:"8" enum:"pending,approved,rejected,quarantined,retired" example:"[\"pending\"]" doc:"Only devices in one of these states."`
	Labels   LabelPatch `json:"labels,omitzero" doc:"For label: labels to set (string) or remove (null); others stay."`
	Reason   string     `json:"reason,omitempty" maxLength:"1024" example:"shops closed" doc:"Why, for the history of each device; not for approve, label and rotate-certificate."`
	DryRun   bool       `json:"dryRun,omitempty" example:"true" doc:"Change nothing, and answer what would happen."`
	Expect   *int       `json:"expect,omitempty" minimum:"0" maximum:"10000" example:"40" doc:"How many devices are meant, as a dry run counted them. When there are more or less by now, the request is refused with 412 and nothing is changed."`
}

// DevicesChanged is what came of a change of many devices.
type DevicesChanged struct {
	DryRun    bool      `json:"dryRun" example:"false" doc:"Whether this only tells what would happen."`
	Targets   int       `json:"targets" minimum:"0" example:"40" doc:"How many devices were picked: the sum of the next three."`
	Changed   int       `json:"changed" minimum:"0" example:"38" doc:"How many were changed, or would be."`
	Unchanged int       `json:"unchanged" minimum:"0" example:"1" doc:"How many are as they should be already."`
	Refused   int       `json:"refused" minimum:"0" example:"1" doc:"How many do not permit it."`
	Refusals  []Refusal `json:"refusals" doc:"The first 100 of those, by their ids."`
}

// Refusal says why one device was not changed.
type Refusal struct {
	Device  string `json:"device" format:"uuid" example:"6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f" doc:"Device id."`
	Name    string `json:"name" example:"shop-0042" doc:"Its name."`
	Code    string `json:"code,omitempty" example:"retired" doc:"Finer kind, as in problems."`
	Message string `json:"message" example:"the device was retired: it cannot be changed any more" doc:"Why, for people."`
}

// DevicesWritten answers change-devices.
type DevicesWritten struct {
	Written
	Body DevicesChanged
}

// bulkAction is something that can be done with many devices.
type bulkAction struct {
	permission auth.Permission
	labels     bool // takes labels, and needs them
	reason     bool // takes a reason
	command    func(events.DeviceID, ChangeDevices) commands.Command
}

// bulkActions lists what can be done with many devices.
var bulkActions = map[string]bulkAction{
	"approve": {permission: auth.ManageDevices, command: func(id events.DeviceID, _ ChangeDevices) commands.Command {
		return commands.ApproveDevice{Device: id}
	}},
	"reject": {permission: auth.ManageDevices, reason: true, command: func(id events.DeviceID, c ChangeDevices) commands.Command {
		return commands.RejectDevice{Device: id, Reason: c.Reason}
	}},
	"quarantine": {permission: auth.ManageDevices, reason: true, command: func(id events.DeviceID, c ChangeDevices) commands.Command {
		return commands.QuarantineDevice{Device: id, Cause: events.QuarantineOperator, Reason: c.Reason}
	}},
	"release": {permission: auth.ManageDevices, reason: true, command: func(id events.DeviceID, c ChangeDevices) commands.Command {
		return commands.ReleaseDevice{Device: id, Reason: c.Reason}
	}},
	"rotate-certificate": {permission: auth.ManageDevices, command: func(id events.DeviceID, _ ChangeDevices) commands.Command {
		return commands.RotateCertificate{Device: id}
	}},
	"retire": {permission: auth.RetireDevices, reason: true, command: func(id events.DeviceID, c ChangeDevices) commands.Command {
		return commands.RetireDevice{Device: id, Reason: c.Reason}
	}},
	"label": {permission: auth.ManageDevices, labels: true, command: func(id events.DeviceID, c ChangeDevices) commands.Command {
		return commands.UpdateDevice{Device: id, Labels: c.Labels.set, ClearLabels: c.Labels.clear}
	}},
}

func (h *Handlers) registerBulk(api huma.API) {
	huma.Register(api, huma.Operation{
		OperationID: "change-devices", Method: http.MethodPost, Path: httpapi.Prefix + "/devices/bulk", Tags: []string{"devices"},
		Summary: "Change many devices",
		Description: "Does one thing with each device that a selector picks, at most 10,000. Ask with dryRun first, then with the count of targets as expect. " +
			"Each device is changed or refused by itself: the answer counts both. Whatever ends the request before all are done leaves the others as they are; " +
			"a repeat picks anew, and with the same Idempotency-Key does nothing twice. The events of one request have the same cause: the key, or the request's id.",
		Errors:     []int{http.StatusPreconditionFailed},
		Extensions: httpapi.Needs(auth.ManageDevices),
	}, h.changeDevices)
}

func (h *Handlers) changeDevices(ctx context.Context, in *struct {
	KeyHeader
	Body ChangeDevices
},
) (*DevicesWritten, error) {
	action, sel, err := in.Body.check()
	if err != nil {
		return nil, err
	}
	// The edge has judged what the operation needs; an action may need more.
	scope, err := httpapi.Demand(ctx, action.permission)
	if err != nil {
		return nil, err
	}
	b := bulk{
		handlers: h, request: in.Body, action: action, selector: sel, scope: scope,
		key: cmp.Or(in.IdempotencyKey, httpapi.RequestOf(ctx).ID),
	}
	targets, err := h.cfg.Select(ctx, sel, scope, in.Body.Trust, maxTargets+1)
	switch want := in.Body.Expect; {
	case err != nil:
		return nil, mapError(ctx, err)
	case len(targets) > maxTargets:
		return nil, httpapi.Invalid("body.selector", fmt.Sprintf("picks more than %d devices: narrow it, and change the devices in several requests", maxTargets))
	case want != nil && *want != len(targets):
		const field = "body.expect"
		message := fmt.Sprintf("%d devices are meant now, not %d: look at them again", len(targets), *want)
		return nil, httpapi.NewProblem(httpapi.KindStale, field+": "+message, httpapi.FieldError{Field: field, Message: message})
	}
	if !in.Body.DryRun {
		var cancel context.CancelFunc
		ctx, cancel = httpapi.Unconditional(ctx, bulkTimeout)
		defer cancel()
	}
	if err := b.run(ctx, targets); err != nil {
		return nil, err
	}
	return &DevicesWritten{Written: Written{Position: b.position}, Body: b.count()}, nil
}

// check returns what is to be done, or says which field is wrong.
func (c ChangeDevices) check() (bulkAction, labels.Selector, error) {
	action := bulkActions[c.Action] // its enum has checked the word
	sel, err := labels.Parse(c.Selector)
	var syntax *labels.SyntaxError
	switch {
	case errors.As(err, &syntax):
		err = httpapi.Invalid("body.selector", fmt.Sprintf("position %d: %s", syntax.Position, syntax.Message))
	case err != nil:
		err = httpapi.Invalid("body.selector", err.Error())
	case sel.Empty() && !c.All:
		err = httpapi.Invalid("body.selector", "picks every device: give one that picks those that are meant, or say all")
	case !sel.Empty() && c.All:
		err = httpapi.Invalid("body.all", "not together with selector: give one of them")
	case action.labels && c.Labels.empty():
		err = httpapi.Invalid("body.labels", "is missing: give the labels to set or remove")
	case !action.labels && !c.Labels.empty():
		err = httpapi.Invalid("body.labels", "only for the action label")
	case !action.reason && c.Reason != "":
		err = httpapi.Invalid("body.reason", "the action "+c.Action+" takes none")
	default:
		if bad := labels.Check(c.Labels.added()); bad != nil {
			err = httpapi.Invalid("body.labels", bad.Error())
		}
	}
	return action, sel, err
}

// bulk is one change of many devices.
type bulk struct {
	handlers *Handlers
	request  ChangeDevices
	action   bulkAction
	selector labels.Selector
	scope    labels.Scope
	key      string

	mu       sync.Mutex
	results  []bulkResult // in the order of the targets
	position uint64
}

// bulkResult is what came of one device. The zero one is one that was not
// reached.
type bulkResult struct {
	done, changed bool
	refusal       *Refusal
}

// run goes through the targets. The first error that is no refusal ends it.
func (b *bulk) run(ctx context.Context, targets []events.DeviceID) error {
	b.results = make([]bulkResult, len(targets))
	g, ending := errgroup.WithContext(ctx)
	g.SetLimit(bulkWorkers)
	for i, id := range targets {
		g.Go(func() error {
			if ending.Err() != nil {
				return nil
			}
			// The end of the others is not the end of this one.
			r, position, err := b.one(ctx, id)
			b.mu.Lock()
			defer b.mu.Unlock()
			if err == nil {
				b.results[i], b.position = r, max(b.position, position)
			}
			return err
		})
	}
	err := g.Wait()
	if err == nil {
		return nil
	}
	var p *httpapi.Problem
	if err = mapError(ctx, err); !errors.As(err, &p) {
		return err
	}
	out := *p
	if n := b.count().Changed; n > 0 && !b.request.DryRun {
		out.Detail = fmt.Sprintf("%d of %d devices were changed, then: %s. Send the same request again for the others", n, len(targets), p.Title)
	}
	return &out
}

// one does it with one device, or tells what would come of it. The device is
// judged as the log has it then, whatever it was when it was picked.
func (b *bulk) one(ctx context.Context, id events.DeviceID) (bulkResult, uint64, error) {
	c := b.action.command(id, b.request)
	var r commands.Result
	var err error
	if b.request.DryRun {
		r, err = b.try(ctx, id, c)
	} else {
		r, err = b.handlers.doIf(ctx, b.scope, b.key, c, b.permits)
	}
	var e *commands.Error
	switch {
	// A label may be one too many for the device, or what is no label.
	case errors.As(err, &e) && (e.Kind != commands.KindInvalid || e.Field == "labels"):
		refusal := Refusal{Device: string(id), Code: e.Code, Message: e.Error()}
		d, err := b.handlers.cfg.Commands.DeviceWithin(ctx, b.scope, id)
		switch {
		case commands.KindOf(err) == commands.KindNotFound: // it left the caller's scope
			refusal.Code, refusal.Message = codeMoved, moved
		case err != nil:
			return bulkResult{}, 0, err
		}
		refusal.Name = d.Name
		return bulkResult{done: true, refusal: &refusal}, d.Revision, nil
	case err != nil:
		return bulkResult{}, 0, err
	}
	return bulkResult{done: true, changed: r.Changed}, r.Position, nil
}

// try tells what would come of a command.
func (b *bulk) try(ctx context.Context, id events.DeviceID, c commands.Command) (commands.Result, error) {
	d, err := b.handlers.cfg.Commands.DeviceWithin(ctx, b.scope, id)
	if err != nil {
		return commands.Result{}, err
	}
	s := commands.States{Device: d}
	if err := b.permits(s); err != nil {
		return commands.Result{}, err
	}
	out, err := commands.DecideWithin(b.scope, c, s, httpapi.RequestOf(ctx).Time)
	return commands.Result{Position: d.Revision, Changed: len(out.Entries) > 0}, err
}

// permits refuses a device that left the selection since it was picked.
func (b *bulk) permits(s commands.States) error {
	d := s.Device
	if b.selector.Match(d.Labels) && (len(b.request.Trust) == 0 || slices.Contains(b.request.Trust, string(d.Trust))) {
		return nil
	}
	return &commands.Error{Kind: commands.KindConflict, Code: codeMoved, Message: moved}
}

// What is said of a device that left the selection.
const (
	codeMoved = "moved"
	moved     = "the device was changed meanwhile and is not picked any more"
)

// count sums up.
func (b *bulk) count() DevicesChanged {
	out := DevicesChanged{DryRun: b.request.DryRun, Refusals: []Refusal{}}
	for _, r := range b.results {
		switch {
		case !r.done:
			continue
		case r.refusal != nil:
			out.Refused++
			if len(out.Refusals) < maxRefusals {
				out.Refusals = append(out.Refusals, *r.refusal)
			}
		case r.changed:
			out.Changed++
		default:
			out.Unchanged++
		}
		out.Targets++
	}
	return out
}
