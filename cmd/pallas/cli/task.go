package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"pallas/internal/client"
)

func (a *app) tasks() *noun[client.Task] {
	return &noun[client.Task]{
		plural: "tasks", aliases: []string{"task"}, argument: "TASK",
		name:   func(t client.Task) string { return t.Id.String() },
		about:  func(t client.Task) string { return fmt.Sprintf("%s %s, %s", t.Kind, vmOf(t), t.Status) },
		id:     func(t client.Task) string { return t.Id.String() },
		kinds:  []string{"tasks"},
		window: pageSize,
		columns: []column[client.Task]{
			{head: "ID", value: func(t client.Task, _ time.Time) string { return t.Id.String() }},
			{head: "KIND", value: func(t client.Task, _ time.Time) string { return string(t.Kind) }},
			{head: "DEVICE", value: func(t client.Task, _ time.Time) string {
				if t.DeviceName == nil {
					return short(t.Device.String()) // the answer to a write
				}
				return *t.DeviceName
			}},
			{head: "VM", value: func(t client.Task, _ time.Time) string { return dash(vmOf(t)) }},
			{head: "STATUS", status: true, value: func(t client.Task, _ time.Time) string { return string(t.Status) }},
			{head: "DONE", value: func(t client.Task, _ time.Time) string { return strconv.FormatInt(t.Percent, 10) + "%" }},
			{head: "AGE", value: func(t client.Task, now time.Time) string { return age(t.RequestedAt, now) }},
			{head: "MESSAGE", value: func(t client.Task, _ time.Time) string { return dash(str(t.Message)) }},
			{head: "BY", wide: true, value: func(t client.Task, _ time.Time) string { return dash(str(t.RequestedBy)) }},
			{head: "CODE", wide: true, value: func(t client.Task, _ time.Time) string { return dash(str(t.Code)) }},
			{head: "DEADLINE", wide: true, value: func(t client.Task, _ time.Time) string { return stamp(t.Deadline) }},
		},
		filter: func(cmd *cobra.Command) lister[client.Task] {
			var (
				device, vm, kind string
				status           []string
				open             bool
			)
			f := cmd.Flags()
			f.StringVar(&device, "device", "", "only those of this device")
			f.StringVar(&vm, "vm", "", "only those of the virtual machine DEVICE/VM")
			f.StringVar(&kind, "kind", "", "only those of this kind: vm.power-on, vm.power-off, vm.reset, vm.suspend, vm.shutdown")
			f.BoolVar(&open, "open", false, "only those that have not ended; --open=false for those that have")
			choice(cmd, &status, "status", "only those in one of these states", "requested", "accepted", "succeeded", "failed", "rejected", "cancelled", "expired")
			_ = cmd.RegisterFlagCompletionFunc("device", complete(a, a.devices())) // the flags exist
			_ = cmd.RegisterFlagCompletionFunc("vm", complete(a, a.vms()))
			return func(ctx context.Context, s *session, p page) ([]client.Task, *string, error) {
				q := &client.ListTasksParams{
					Cursor: p.cursor, Limit: p.limit, Kind: one[client.ListTasksParamsKind](kind), Status: some[client.ListTasksParamsStatus](status),
				}
				if f.Changed("open") {
					q.Open = &open
				}
				var err error
				if q.Device, err = s.deviceID(ctx, &device); err != nil {
					return nil, nil, err
				}
				if vm != "" {
					v, err := s.findVM(ctx, vm)
					if err != nil {
						return nil, nil, err
					}
					q.Device, q.Vm = &v.Device, &v.Id
				}
				return s.listTasks(ctx, q)
			}
		},
		find: func(ctx context.Context, s *session, arg string) (client.Task, error) { return s.task(ctx, arg) },
		suggest: func(ctx context.Context, s *session, _ string) ([]client.Task, error) {
			items, _, err := s.listTasks(ctx, &client.ListTasksParams{Limit: new(int64(suggestions))})
			return items, err
		},
		describe: a.describeTask,
	}
}

func vmOf(t client.Task) string { return first(str(t.VmName), str(t.Vm)) }

func (s *session) listTasks(ctx context.Context, p *client.ListTasksParams) ([]client.Task, *string, error) {
	r, err := ask(ctx, s, func(ctx context.Context) (*client.ListTasksResponse, error) {
		return s.api.ListTasksWithResponse(ctx, p)
	})
	if err != nil {
		return nil, nil, err
	}
	return r.JSON200.Items, r.JSON200.Next, nil
}

func (s *session) task(ctx context.Context, id string) (client.Task, error) {
	r, err := ask(ctx, s, func(ctx context.Context) (*client.GetTaskResponse, error) {
		return s.api.GetTaskWithResponse(ctx, id, nil)
	})
	if err != nil {
		return client.Task{}, err
	}
	return *r.JSON200, nil
}

// describeTask shows a task and the events that made it what it is.
func (a *app) describeTask(ctx context.Context, s *session, t client.Task, r *report) error {
	if err := r.block("Task "+t.Id.String(),
		"Kind", string(t.Kind), "Device", t.Device.String(), "Virtual machine", vmOf(t), "Status", string(t.Status),
		"Code", str(t.Code), "Message", str(t.Message), "Done", strconv.FormatInt(t.Percent, 10)+"%",
		"Requested", by(t.RequestedAt, t.RequestedBy, r.now), "Deadline", when(&t.Deadline, r.now), "Accepted", when(t.AcceptedAt, r.now),
		"Ended", when(t.EndedAt, r.now), "Cancel requested", map[bool]string{true: "yes"}[t.CancelRequested]); err != nil {
		return err
	}
	if l := t.Late; l != nil {
		if err := r.block("Reported late, after the end", "At", when(&l.At, r.now), "Status", string(l.Status), "Code", str(l.Code), "Message", str(l.Message)); err != nil {
			return err
		}
	}
	happened, err := all(ctx, s, func(ctx context.Context, s *session, p page) ([]client.Event, *string, error) {
		return s.listEvents(ctx, &client.ListEventsParams{Device: &t.Device, Since: t.RequestedAt, Until: after(t.EndedAt, t.Late), Type: &taskEvents, Cursor: p.cursor, Limit: p.limit})
	}, 0)
	if err != nil {
		return err
	}
	happened = slices.DeleteFunc(happened, func(e client.Event) bool { return e.Data["task"] != t.Id.String() })
	return list(r, "Events", a.events().columns, happened)
}

// after is the first instant at which nothing of a task can be in the log.
func after(ended *time.Time, late *client.LateReport) *time.Time {
	switch {
	case late != nil:
		return new(late.At.Add(time.Second))
	case ended != nil:
		return new(ended.Add(time.Second))
	}
	return nil
}

var taskEvents = []string{
	"TaskRequested", "TaskAccepted", "TaskProgressed", "TaskSucceeded", "TaskFailed", "TaskRejected",
	"TaskCancelRequested", "TaskCancelled", "TaskExpired", "TaskReportedLate",
}

func (a *app) taskCommand() *cobra.Command {
	cmd := group("task", "Wait for tasks, or cancel them")
	cmd.Aliases = []string{"tasks"}
	var w waiting
	cancel := &cobra.Command{
		Use: "cancel TASK", Short: "Ask for a task not to happen", Args: cobra.ExactArgs(1), ValidArgsFunction: firstOnly(complete(a, a.tasks())),
		Long: "Ask for a task not to happen. A task that its device has begun goes on.\n\nWith --wait, exit code 0 says that the task was cancelled.",
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.open()
			if err != nil {
				return err
			}
			r, err := ask(cmd.Context(), s, func(ctx context.Context) (*client.CancelTaskResponse, error) {
				return s.api.CancelTaskWithResponse(ctx, args[0])
			})
			if err != nil {
				return err
			}
			w.want = client.TaskStatusCancelled
			return a.finish(cmd.Context(), s, []client.Task{*r.JSON202}, w)
		},
	}
	w.flags(cancel)
	only := waiting{on: true}
	wait := &cobra.Command{
		Use: "wait TASK…", Short: "Wait until tasks have ended", Args: cobra.MinimumNArgs(1), ValidArgsFunction: complete(a, a.tasks()),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.open()
			if err != nil {
				return err
			}
			tasks, err := findAll(cmd.Context(), s, a.tasks(), args)
			if err != nil {
				return err
			}
			return a.finish(cmd.Context(), s, tasks, only)
		},
	}
	wait.Flags().DurationVar(&only.limit, "wait-timeout", 0, "how long to wait; 0 is until they end")
	cmd.AddCommand(cancel, wait)
	return cmd
}

// waiting says whether and how a command waits for its tasks.
type waiting struct {
	on    bool
	limit time.Duration
	want  client.TaskStatus // "" is succeeded
}

func (w *waiting) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&w.on, "wait", false, "wait until the task has ended; the exit code tells how")
	cmd.Flags().DurationVar(&w.limit, "wait-timeout", 0, "how long to wait; 0 is until it ends")
}

// finish waits for tasks if that is wanted, shows them, and makes how they
// ended the exit code.
func (a *app) finish(ctx context.Context, s *session, tasks []client.Task, w waiting) error {
	var waited error
	if w.on {
		if w.limit < 0 {
			return usagef("--wait-timeout %v: want 0 or more", w.limit)
		}
		waited = a.await(ctx, s, tasks, w.limit)
	}
	if a.output != "" {
		if err := printAll(a, a.tasks(), tasks); err != nil {
			return err
		}
	} else {
		for _, t := range tasks {
			a.say("task %s %s %s: %s", t.Id, t.Kind, vmOf(t), state(t))
		}
	}
	if waited != nil || !w.on {
		return waited
	}
	want := client.TaskStatus(first(string(w.want), string(client.TaskStatusSucceeded)))
	for _, t := range tasks {
		if t.Status != want {
			e := &Error{Code: exitTask, Title: "the task ended otherwise than " + string(want), Detail: fmt.Sprintf("%s %s: %s", t.Kind, vmOf(t), state(t))}
			e.Hint = "pallas describe task " + t.Id.String()
			return e
		}
	}
	return nil
}

// state is a task's status with its reason.
func state(t client.Task) string {
	s := string(t.Status)
	if t.CancelRequested && !ended(t) {
		s += ", to be cancelled"
	}
	if c := str(t.Code); c != "" {
		s += " (" + c + ")"
	}
	if m := str(t.Message); m != "" {
		s += ": " + m
	}
	return s
}

func ended(t client.Task) bool {
	return t.Status != client.TaskStatusRequested && t.Status != client.TaskStatusAccepted
}

var errEnded = errors.New("every task has ended")

// await follows the tasks by their events until all have ended, and keeps them
// up to date in place.
func (a *app) await(ctx context.Context, s *session, tasks []client.Task, limit time.Duration) error {
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, &Error{Code: exitUnreachable, Title: "not waited to the end", Detail: "--wait-timeout is over; the task goes on"})
		defer cancel()
	}
	bars := a.progress(tasks)
	defer bars.stop()
	from, open := int64(0), map[string]int{}
	for i, t := range tasks {
		if !ended(t) {
			open[t.Id.String()] = i
		}
		if i == 0 || t.Revision < from {
			from = t.Revision
		}
	}
	if len(open) == 0 {
		return nil
	}
	// The stream begins where the oldest task was read, so nothing is missed.
	err := s.follow(ctx, client.StreamEventsParams{Type: &taskEvents, After: new(strconv.FormatInt(from, 10))}, a.lost, func(e client.Event) error {
		id, _ := e.Data["task"].(string)
		i, ok := open[id]
		if !ok {
			return nil
		}
		s.position.Seen(e.Position)
		t, err := s.task(ctx, id)
		if err != nil {
			return err
		}
		tasks[i] = t
		bars.set(i, t)
		if ended(t) {
			delete(open, id)
		}
		if len(open) == 0 {
			return errEnded
		}
		return nil
	})
	switch {
	case errors.Is(err, errEnded):
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return err
}

// bars show tasks on a terminal. The zero value shows nothing.
type bars struct {
	all  *mpb.Progress
	bars []*mpb.Bar
}

func (a *app) progress(tasks []client.Task) *bars {
	b := &bars{}
	if !terminal(a.err) {
		return b
	}
	b.all = mpb.New(mpb.WithOutput(a.err), mpb.WithWidth(40))
	for i, t := range tasks {
		name := clean(strings.TrimSpace(string(t.Kind) + " " + vmOf(t)))
		b.bars = append(b.bars, b.all.AddBar(100,
			mpb.PrependDecorators(decor.Name(name, decor.WCSyncSpaceR)),
			mpb.AppendDecorators(decor.Percentage(decor.WCSyncSpace), decor.Elapsed(decor.ET_STYLE_GO, decor.WCSyncSpace)),
		))
		b.set(i, t)
	}
	return b
}

func (b *bars) set(i int, t client.Task) {
	if b.all == nil {
		return
	}
	if t.Status == client.TaskStatusSucceeded {
		b.bars[i].SetCurrent(100)
		return
	}
	b.bars[i].SetCurrent(min(t.Percent, 99))
	if ended(t) {
		b.bars[i].Abort(false)
	}
}

func (b *bars) stop() {
	if b.all == nil {
		return
	}
	for _, bar := range b.bars {
		bar.Abort(false) // does nothing to a complete one
	}
	b.all.Wait()
}
