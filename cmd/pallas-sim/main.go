// Command pallas-sim puts load on a device manager: many real agents, each with
// its own identity, certificate and connection, on hosts that exist in memory
// only. Everything but the hosts is what runs in the field.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"pallas/internal/version"
	"pallas/mqttgw/wire"
)

// Exit codes, also in docs/reference/pallas-sim.md.
const (
	exitFailed = 1 // the books do not balance, or agents ended by themselves
	exitUsage  = 2 // wrong arguments, or the machine is too small for them
)

// maxProcesses is far more than a machine has use for.
const maxProcesses = 1000

// joinEnv is read when neither --join nor --join-file is given.
const joinEnv = "PALLAS_JOIN"

type options struct {
	devices, vms, first int
	changeRate, churn   float64
	ramp                float64
	join, joinFile      string
	duration            time.Duration
	connectTimeout      time.Duration
	drain               time.Duration
	seed                uint64
	data, heap          string
	narrow, json        bool
	verbose, stream     bool
	processes           int
	metricsToken        string
	part                bool // of a fleet of several processes

	joinString string // of whichever source
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	cmd := command()
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintln(stderr, "pallas-sim:", err)
	if errors.As(err, new(usageError)) {
		return exitUsage
	}
	return exitFailed
}

// usageError marks what the person who started the program can mend.
type usageError struct{ error }

func command() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "pallas-sim",
		Short: "Run many real agents on simulated hosts against a device manager",
		Long: `Run many real agents on simulated hosts against a device manager.

It needs a join string with as many uses as devices, approved at once: from
--join-file, from PALLAS_JOIN, or from --join, which other users of this machine
can read. Progress goes to standard error; standard output gets one JSON object.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unexpected argument %q; see pallas-sim --help", args[0])}
			}
			return nil
		},
		Version:       version.String(),
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.run(cmd.Context(), cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	f := cmd.Flags()
	f.SortFlags = false
	f.IntVar(&o.devices, "devices", 100, "how many devices")
	f.IntVar(&o.vms, "vms", 5, "virtual machines on each host")
	f.Float64Var(&o.changeRate, "change-rate", 0, "changes per second on all hosts together")
	f.Float64Var(&o.churn, "churn", 0, "connections that are cut per second, of all devices together")
	f.Float64Var(&o.ramp, "ramp", 100, "agents that are started per second")
	f.DurationVar(&o.duration, "duration", 30*time.Second, "how long changes and cuts go on when all are connected; 0: until a signal")
	f.DurationVar(&o.connectTimeout, "connect-timeout", 5*time.Minute, "how long after the last start all may take to connect")
	f.DurationVar(&o.drain, "drain", time.Minute, "how long the last receipts may take")
	f.StringVar(&o.joinFile, "join-file", "", "file with the join string")
	f.StringVar(&o.join, "join", "", "the join string itself")
	f.StringVar(&o.data, "data", "", "directory of the agents' data, kept and opened again (default: a temporary one, removed at the end)")
	f.IntVar(&o.processes, "processes", 0, "processes to run the fleet in; 0: as many as the limits of one ask for")
	f.IntVar(&o.first, "first", 0, "number of the first device, to run a fleet on several machines")
	f.Uint64Var(&o.seed, "seed", 1, "the same seed makes the same changes and cuts in the same order")
	f.BoolVar(&o.narrow, "narrow", false, "agents use the short TLS handshake for narrow links")
	f.StringVar(&o.heap, "heap-profile", "", "file for a heap profile of this program, written when all are connected")
	f.StringVar(&o.metricsToken, "metrics-token-file", "", "file with an API token: compare with what the manager counts")
	f.BoolVar(&o.stream, "stream", false, "print a line of JSON for each change of state and each task that a host begins; the last holds the result")
	f.BoolVar(&o.json, "json", false, "print nothing but the JSON object, on one line")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "log what the agents do")
	f.BoolVar(&o.part, "part", false, "is one of several processes")
	if err := f.MarkHidden("part"); err != nil {
		panic(err) // the flag is above
	}
	return cmd
}

func (o *options) run(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer) error {
	if err := o.check(); err != nil {
		return usageError{err}
	}
	if o.data == "" {
		dir, err := os.MkdirTemp("", "pallas-sim-")
		if err != nil {
			return fmt.Errorf("temporary directory: %w", err)
		}
		defer os.RemoveAll(dir) //nolint:errcheck // a temporary directory
		o.data = dir
	} else if err := os.MkdirAll(o.data, 0o700); err != nil {
		return usageError{fmt.Errorf("--data: %w", err)}
	}
	if err := o.credentials(); err != nil {
		return usageError{err}
	}
	here := measure(o.data)
	if o.part {
		o.processes = 1
	} else if o.processes == 0 {
		o.processes = here.processes(o.devices)
	}
	problems := here.carry(o.devices, o.vms, o.processes, distant(o.joinString))
	var w *watch
	if o.metricsToken != "" {
		join, err := wire.ParseJoin(o.joinString)
		if err != nil {
			return usageError{errors.New("--metrics-token-file: needs a join string, which says where the manager is")}
		}
		if w, err = newWatch(ctx, join, o.metricsToken); err != nil {
			return usageError{fmt.Errorf("--metrics-token-file: %w", err)}
		}
		problems = append(problems, w.before.carry(o.devices)...)
	}
	if len(problems) > 0 && !o.part { // a part was counted with the whole
		return usageError{fmt.Errorf("%d devices are too many:\n  %s", o.devices, strings.Join(problems, "\n  "))}
	}
	var out *stream
	if o.stream || o.part {
		out = newStream(stdout)
	}
	var res result
	var err error
	if o.processes > 1 {
		res, err = o.split(ctx, out, w, stderr)
	} else {
		res, err = o.single(ctx, out, w, stdin, stderr)
	}
	if err != nil {
		return err
	}
	if !o.part {
		res.Receipts.By = nil
	}
	if out != nil {
		out.line(line{At: monotonic(), Result: &res})
		err = out.failure()
	} else {
		enc := json.NewEncoder(stdout)
		if !o.json {
			enc.SetIndent("", "  ")
		}
		err = enc.Encode(res)
	}
	if err != nil {
		return fmt.Errorf("print the result: %w", err)
	}
	if len(res.Problems) > 0 {
		return errors.New(strings.Join(res.Problems, "; "))
	}
	return nil
}

// single runs the fleet, or a part of one, in this process.
func (o *options) single(ctx context.Context, out *stream, w *watch, stdin io.Reader, stderr io.Writer) (result, error) {
	level := slog.LevelWarn
	switch {
	case o.verbose:
		level = slog.LevelInfo
	case o.json:
		level = slog.LevelError
	}
	f := newFleet(o, stderr, slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	f.stream = out
	switch {
	case o.part:
		f.progress = io.Discard
		f.hold = orders(stdin, func() {
			fmt.Fprintln(stderr, "pallas-sim: the process that started this one is gone")
			os.Exit(exitFailed)
		})
	case w != nil:
		f.hold = func(ctx context.Context, f *fleet, at phase) {
			if at == drained {
				m, problems := w.compare(ctx, func() state { f.look(); return f.now })
				f.res.Manager, f.res.Problems = &m, problems
			}
		}
	}
	return f.run(ctx)
}

// check reports the first flag that cannot be.
func (o *options) check() error {
	for _, r := range []struct {
		flag       string
		value      float64
		least, max float64
	}{
		{"devices", float64(o.devices), 1, 1e6},
		{"vms", float64(o.vms), 0, wire.MaxVMs},
		{"processes", float64(o.processes), 0, float64(min(o.devices, maxProcesses))},
		{"first", float64(o.first), 0, maxNumber},
		{"change-rate", o.changeRate, 0, 1e6},
		{"churn", o.churn, 0, 1e5},
		{"ramp", o.ramp, 0.1, 1e5},
		{"duration", o.duration.Seconds(), 0, 1e7},
		{"connect-timeout", o.connectTimeout.Seconds(), 1, 1e6},
		{"drain", o.drain.Seconds(), 1, 1e6},
	} {
		if !(r.value >= r.least && r.value <= r.max) { // so that NaN is out too
			return fmt.Errorf("--%s: %v is out of range, want %v to %v", r.flag, r.value, r.least, r.max)
		}
	}
	if o.first+o.devices > maxNumber {
		return fmt.Errorf("--first and --devices: %d is more than the %d loopback addresses that devices call from", o.first+o.devices, maxNumber)
	}
	if o.join != "" && o.joinFile != "" {
		return errors.New("--join and --join-file: give one of them")
	}
	return nil
}

// credentials finds the join string, or enrolled devices that need none.
func (o *options) credentials() error {
	from := "--join"
	switch o.joinString = o.join; {
	case o.joinFile != "":
		from = "--join-file"
		b, err := os.ReadFile(o.joinFile)
		if err != nil {
			return fmt.Errorf("--join-file: %w", err)
		}
		o.joinString = string(b)
	case o.join == "" && os.Getenv(joinEnv) != "":
		from, o.joinString = joinEnv, os.Getenv(joinEnv)
	case o.join == "":
		for i := range o.devices {
			dir := filepath.Join(o.data, fmt.Sprintf("sim-%05d", o.first+i))
			if !enrolled(dir) {
				return fmt.Errorf("a join string is missing: give --join-file FILE (pallas create jointoken makes one), or --data with %d enrolled devices", o.devices)
			}
		}
		return nil
	}
	o.joinString = strings.TrimSpace(o.joinString)
	if _, err := wire.ParseJoin(o.joinString); err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	return nil
}
