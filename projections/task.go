package projections

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"time"

	"pallas/events"
)

// Task is a task as of the read model's position.
type Task struct {
	ID     events.TaskID
	Device events.DeviceID
	// DeviceName is the device's name now.
	DeviceName string
	Kind       events.TaskKind
	VM         events.VMID
	// VMName is the virtual machine's name when the task was requested, "" if
	// it was not known.
	VMName  string
	Status  events.TaskStatus
	Percent int
	// Message and Code are the newest word of the device, or of the manager
	// when it ended the task.
	Message, Code string

	RequestedAt time.Time
	RequestedBy events.Actor
	// Source is the address the request came from.
	Source string
	// Cause is the id of the command that requested it.
	Cause      string
	Deadline   time.Time
	AcceptedAt time.Time // zero until the device took it
	EndedAt    time.Time // zero while open

	CancelRequestedAt time.Time // zero unless somebody asked for it
	CancelRequestedBy events.Actor

	// Late is what the device said after the task had ended here, nil if it
	// said nothing.
	Late *LateReport

	// RequestedPosition orders tasks; ChangedPosition and ChangedAt are those
	// of the newest decision on this task.
	RequestedPosition uint64
	ChangedPosition   uint64
	ChangedAt         time.Time
}

// LateReport is a device's word on a task that had already ended.
type LateReport struct {
	At      time.Time
	Status  events.TaskStatus
	Code    string
	Message string
}

// TaskFilter selects tasks of the devices of a scope, newest first, all when
// nothing else is set. A set with several values means any of them.
type TaskFilter struct {
	// Scope holds the devices that may be seen; the zero Scope none.
	Scope  Scope
	Device events.DeviceID
	// VM needs Device: its id means nothing without.
	VM     events.VMID
	Status []events.TaskStatus
	Kind   events.TaskKind
	// Open leaves out tasks that have ended.
	Open bool
	Window
}

func (w *writer) taskRequested(at now, device events.DeviceID, e events.TaskRequested) error {
	return w.exec(`
		INSERT INTO tasks (id, device, kind, vm, vm_name, status, requested_position, requested_at, requested_by,
			source, cause, deadline, changed_position, changed_at)
		VALUES (?1, ?2, ?3, ?4, coalesce((SELECT name FROM vms WHERE device = ?2 AND id = ?4), ''),
			'requested', ?5, ?6, ?7, ?8, ?9, ?10, ?5, ?6)
		ON CONFLICT (id, device) DO NOTHING`,
		string(e.Task), string(device), string(e.Kind), string(e.VM),
		at.position, at.at, at.actor, at.source, at.cause, micros(e.Deadline))
}

func (w *writer) taskAccepted(at now, device events.DeviceID, e events.TaskAccepted) error {
	return w.exec(`
		UPDATE tasks SET status = 'accepted', accepted_at = ?, changed_position = ?, changed_at = ?
		WHERE id = ? AND device = ? AND ended_at IS NULL`,
		at.at, at.position, at.at, string(e.Task), string(device))
}

func (w *writer) taskProgressed(at now, device events.DeviceID, e events.TaskProgressed) error {
	return w.exec(`
		UPDATE tasks SET percent = ?, message = ?, changed_position = ?, changed_at = ?
		WHERE id = ? AND device = ? AND ended_at IS NULL`,
		e.Percent, e.Message, at.position, at.at, string(e.Task), string(device))
}

func (w *writer) taskSucceeded(at now, device events.DeviceID, e events.TaskSucceeded) error {
	return w.exec(`
		UPDATE tasks SET status = 'succeeded', percent = 100, message = ?, code = '', ended_at = ?,
			changed_position = ?, changed_at = ?
		WHERE id = ? AND device = ? AND ended_at IS NULL`,
		e.Message, at.at, at.position, at.at, string(e.Task), string(device))
}

// taskEnded ends a task in any way but success; how far it had come stays.
func (w *writer) taskEnded(at now, device events.DeviceID, task events.TaskID, status events.TaskStatus, code, message string) error {
	return w.exec(`
		UPDATE tasks SET status = ?, message = ?, code = ?, ended_at = ?, changed_position = ?, changed_at = ?
		WHERE id = ? AND device = ? AND ended_at IS NULL`,
		string(status), message, code, at.at, at.position, at.at, string(task), string(device))
}

func (w *writer) taskCancelRequested(at now, device events.DeviceID, e events.TaskCancelRequested) error {
	return w.exec(`
		UPDATE tasks SET cancel_requested_at = ?, cancel_requested_by = ?, changed_position = ?, changed_at = ?
		WHERE id = ? AND device = ?`,
		at.at, at.actor, at.position, at.at, string(e.Task), string(device))
}

func (w *writer) taskReportedLate(at now, device events.DeviceID, e events.TaskReportedLate) error {
	return w.exec(`
		UPDATE tasks SET late_at = ?, late_status = ?, late_code = ?, late_message = ?, changed_position = ?, changed_at = ?
		WHERE id = ? AND device = ?`,
		at.at, string(e.Status), e.Code, e.Message, at.position, at.at, string(e.Task), string(device))
}

const taskColumns = `
	SELECT t.id, t.device, coalesce(d.name, ''), t.kind, t.vm, t.vm_name, t.status, t.percent, t.message, t.code,
		t.requested_at, t.requested_by, t.source, t.cause, t.deadline, t.accepted_at, t.ended_at,
		t.cancel_requested_at, t.cancel_requested_by, t.late_at, t.late_status, t.late_code, t.late_message,
		t.requested_position, t.changed_position, t.changed_at`

const taskFrom = " FROM tasks t LEFT JOIN devices d ON d.id = t.device"

func scanTask(rows *sql.Rows) (Task, error) {
	var t Task
	var late LateReport
	err := rows.Scan(&t.ID, &t.Device, &t.DeviceName, &t.Kind, &t.VM, &t.VMName, &t.Status, &t.Percent, &t.Message, &t.Code,
		instant{&t.RequestedAt}, &t.RequestedBy, &t.Source, &t.Cause, instant{&t.Deadline}, instant{&t.AcceptedAt}, instant{&t.EndedAt},
		instant{&t.CancelRequestedAt}, &t.CancelRequestedBy, instant{&late.At}, &late.Status, &late.Code, &late.Message,
		&t.RequestedPosition, &t.ChangedPosition, instant{&t.ChangedAt})
	if !late.At.IsZero() {
		t.Late = &late
	}
	return t, err
}

// scopeStarts are ways to begin with the tasks of a few devices.
func scopeStarts(common Selector) []start {
	starts := selectorStarts(common, start{max: maxFetched, weight: 1})
	for i := range starts { // tasks are counted, not devices
		starts[i].from += " CROSS JOIN tasks t INDEXED BY tasks_by_device ON t.device = l.device"
	}
	return starts
}

// query builds the list's SELECT; see [DeviceFilter.query] for the named
// index.
func (f TaskFilter) query(size sizer) (query, error) {
	if f.VM != "" && f.Device == "" {
		return query{}, &FieldError{"vm", "want a device with it"}
	}
	open := f.Open || len(f.Status) > 0 && !slices.ContainsFunc(f.Status, events.TaskStatus.Ended)
	index := "tasks_by_request"
	switch {
	case f.VM != "":
		index = "tasks_by_vm"
	case f.Device != "":
		index = "tasks_by_device"
	case open:
		index = "tasks_open"
	case len(f.Status) == 1:
		index = "tasks_by_status"
	}
	q := query{
		from: taskColumns + " FROM tasks t INDEXED BY " + index + " LEFT JOIN devices d ON d.id = t.device",
		tail: "ORDER BY t.requested_position DESC, t.id DESC",
	}
	sel, rest := f.Scope.Common()
	if index == "tasks_by_request" || index == "tasks_by_status" {
		switch from, err := choose(scopeStarts(sel), size); {
		case err != nil:
			return query{}, err
		case from != nil:
			sel = sel.Without(from.requirement)
			q.and(from.cond, from.args...)
			q.outer = taskColumns + taskFrom + " WHERE t.rowid IN"
			q.from = "SELECT t.rowid FROM " + from.from
		}
	}
	q.selects(sel, ofDevice("t.device"))
	q.within(rest, ofDevice("t.device"))
	if open {
		q.and("t.ended_at IS NULL")
	}
	if f.Device != "" {
		q.and("t.device = ?", string(f.Device))
	}
	if f.VM != "" {
		q.and("t.vm = ?", string(f.VM))
	}
	in(&q, "t.status", f.Status)
	if f.Kind != "" {
		q.and("t.kind = ?", string(f.Kind))
	}
	if f.Cursor != "" {
		var position int64
		var id string
		if err := decodeCursor(f.Cursor, "task", &position, &id); err != nil {
			return query{}, err
		}
		q.and("(t.requested_position, t.id) < (?, ?)", position, id)
	}
	return q, nil
}

// Tasks returns a page of the tasks that the filter selects, newest first.
func (d *DB) Tasks(ctx context.Context, f TaskFilter) (Page[Task], error) {
	limit, err := f.limit()
	if err != nil {
		return Page[Task]{}, fmt.Errorf("list tasks: %w", err)
	}
	q, err := f.query(d.sizer(ctx))
	if err != nil {
		return Page[Task]{}, fmt.Errorf("list tasks: %w", err)
	}
	p, err := page(ctx, d, q, limit, scanTask, func(t Task) string {
		return encodeCursor("task", t.RequestedPosition, t.ID)
	})
	if err != nil {
		return Page[Task]{}, fmt.Errorf("list tasks: %w", err)
	}
	return p, nil
}

// Task returns one task of a device of the scope, or ErrNotFound. Should two
// devices have a task of the same id, it is the one that was requested first.
func (d *DB) Task(ctx context.Context, scope Scope, id events.TaskID) (Task, error) {
	q := query{from: taskColumns + taskFrom, tail: "ORDER BY t.requested_position, t.device LIMIT 1"}
	q.and("t.id = ?", string(id))
	q.within(scope, ofDevice("t.device"))
	t, err := one(ctx, d, q, scanTask)
	if err != nil {
		return Task{}, fmt.Errorf("task %q: %w", id, err)
	}
	return t, nil
}

// OpenTasks returns every task that has not ended, oldest first, and the
// position that the answer stands for exactly.
func (d *DB) OpenTasks(ctx context.Context) (tasks []Task, position uint64, err error) {
	err = d.snapshot(ctx, func(tx *sql.Tx) (err error) {
		if err := tx.QueryRowContext(ctx, "SELECT position FROM meta").Scan(&position); err != nil {
			return err
		}
		tasks, err = collect(ctx, tx, taskColumns+` FROM tasks t INDEXED BY tasks_open LEFT JOIN devices d ON d.id = t.device
			WHERE t.ended_at IS NULL ORDER BY t.requested_position, t.id`, nil, scanTask)
		return err
	})
	if err != nil {
		return nil, 0, fmt.Errorf("list open tasks: %w", err)
	}
	return tasks, position, nil
}
