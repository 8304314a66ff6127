package faults_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"pallas/internal/client"
	"pallas/internal/config"
	"pallas/internal/faults"
	"pallas/internal/server"
	"pallas/internal/servertest"
)

const (
	fleets    = 2
	perFleet  = 3
	syncEvery = 250 * time.Millisecond
	recovery  = 90 * time.Second // after a fault, until all is well
	logBlocks = "manager/nats/jetstream/APP/streams/EVENTS/msgs/*.blk"
)

// act is one fault and how long it lasts.
type act struct {
	kind string
	hold time.Duration
	rand uint64 // for what the fault itself chooses
}

// kinds are the faults, and whether they need a [faults.Disk].
var kinds = map[string]bool{
	"manager killed": false, "manager frozen": false, "manager with little memory": false,
	"agents killed": false, "agents frozen": false, "links cut": false, "names unresolved": false,
	"read model deleted": false, "read model damaged": false, "read model damaged before a start": false,
	"log torn at its end": false,
	"agents' disk full":   true, "disk full": true, "disk full at once": true, "disk read-only": true, "disk bad for writing": true,
	"disk bad for reading": true, "disk bad for syncing": true, "disk slow": true, "power cut": true,
	"power cut in a record": true,
}

// plan follows from its arguments alone: rounds of all faults, each round in
// another order.
func plan(seed uint64, rounds int, disk bool) (acts []act) {
	r := rand.New(rand.NewPCG(seed, 0))
	var names []string
	for name, needs := range kinds {
		if disk || !needs {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for range rounds {
		r.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
		for _, name := range names {
			acts = append(acts, act{kind: name, hold: 300*time.Millisecond + time.Duration(r.IntN(1700))*time.Millisecond, rand: r.Uint64()})
		}
	}
	return acts
}

// weather is a system and what is done to it.
type weather struct {
	t       *testing.T
	m       *servertest.Manager // its configuration and API; it runs as a process
	back    string              // the folder behind the disk
	disk    *faults.Disk        // nil without FUSE
	small   *faults.Disk        // of the agents of fleet 0
	manager *process
	fleets  []*process
	dirs    []string // of the fleets
	link    *servertest.Proxy
	books   *clients
	cuts    []cut
}

// cut is what a power cut, or a torn log, may have taken: answers to clients
// that were given from safe to at.
type cut struct{ safe, at time.Time }

// TestWeather does to a manager and to agents what the world does, one fault
// after the other, and checks every promise at the end.
func TestWeather(t *testing.T) {
	seed := *weatherSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano()) >> 10 & 0xffff
	}
	repeat := fmt.Sprintf("go test ./internal/faults -run '^TestWeather$' -count=1 -faults.for=%v -faults.seed=%d", *weatherFor, seed)
	t.Logf("to repeat the plan: %s", repeat)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("failed; the same plan again: %s", repeat)
		}
	})
	w := newWeather(t)
	t.Logf("disk with faults: %v", w.disk != nil)

	ctx, cancel := context.WithCancel(t.Context())
	var load sync.WaitGroup
	for i := range fleets * perFleet {
		load.Go(func() { w.books.work(ctx, i) })
	}
	end := time.Now().Add(*weatherFor)
	done := map[string]int{}
	for _, a := range plan(seed, 1+int(*weatherFor/time.Second), w.disk != nil) {
		if time.Now().After(end) || t.Failed() {
			break
		}
		began := time.Now()
		w.do(a)
		over := time.Now()
		w.wellAgain(a.kind)
		t.Logf("%-34s %5.1f s, well again after %5.1f s", a.kind, over.Sub(began).Seconds(), time.Since(over).Seconds())
		done[a.kind]++
	}
	cancel()
	load.Wait()
	if t.Failed() {
		return
	}
	w.calm()
	w.check(done)
}

func newWeather(t *testing.T) *weather {
	t.Helper()
	w := newManager(t)
	join := w.m.Join(fleets * perFleet)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for i := range fleets {
		f := fleetFile{Dir: t.TempDir(), Data: t.TempDir(), Join: join, First: i * perFleet, Devices: perFleet}
		if i == 0 && w.disk != nil {
			w.small, f.Data = mount(t, f.Data)
		}
		path := filepath.Join(f.Dir, "fleet")
		if err := writeJSON(path, f); err != nil {
			t.Fatal(err)
		}
		w.dirs = append(w.dirs, f.Dir)
		w.fleets = append(w.fleets, keepRunning(t, fmt.Sprint("fleet ", i), filepath.Join(f.Dir, "log"), []string{fleetEnv + "=" + path}, exe))
	}
	w.books = &clients{w: w, keys: map[string]string{}}
	w.wellAgain("the first connects")
	return w
}

// newManager is a weather without devices.
func newManager(t *testing.T) *weather {
	t.Helper()
	w := &weather{t: t, back: t.TempDir()}
	w.m = servertest.New(t, func(c *server.Config) {
		c.DataDir = filepath.Join(w.back, "manager")
		c.Events.Sync = config.Duration(syncEvery)
		c.Events.MinFree = 16 << 20
		c.Devices.Grace = config.Duration(5 * time.Minute)
		c.Log.Level = "info"
	})
	w.link = servertest.NewProxy(t, w.m.Config.MQTT.Listen)
	w.m.Config.MQTT.Address = w.link.Addr()
	w.m.Config.HTTP.MQTT = false // so that there is one way, and it can be cut
	at := w.back
	if err := faults.Available(t.TempDir()); err != nil {
		t.Logf("without faults of the disk: %v", err)
	} else {
		w.disk, at = mount(t, w.back)
		if err := w.disk.Synced(); err != nil {
			t.Fatal(err)
		}
	}
	cfg := w.m.Config
	cfg.DataDir = filepath.Join(at, "manager")
	text, err := yaml.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "pallasd.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	w.manager = keepRunning(t, "manager", filepath.Join(t.TempDir(), "manager.log"), nil, program("pallasd"), "serve", "--config", file)
	w.wellAgain("the start")
	return w
}

// do lets one fault happen, for as long as it lasts.
func (w *weather) do(a act) {
	r := rand.New(rand.NewPCG(a.rand, 0))
	disk := func(f faults.Fault) {
		w.disk.Set(f)
		pause(w.t.Context(), a.hold)
		w.disk.Set(faults.Good)
	}
	model := filepath.Join(w.back, "manager", "readmodel.db")
	switch a.kind {
	case "manager killed":
		w.manager.kill(nil)
	case "manager frozen":
		w.manager.signal(syscall.SIGSTOP)
		pause(w.t.Context(), a.hold)
		w.manager.signal(syscall.SIGCONT)
	case "manager with little memory":
		w.manager.kill(func() { w.manager.env = []string{"GOMEMLIMIT=24MiB"} })
		pause(w.t.Context(), a.hold)
		w.manager.kill(func() { w.manager.env = nil })
	case "agents killed":
		w.fleets[r.IntN(fleets)].kill(nil)
	case "agents frozen":
		f := w.fleets[r.IntN(fleets)]
		f.signal(syscall.SIGSTOP)
		pause(w.t.Context(), a.hold)
		f.signal(syscall.SIGCONT)
	case "agents' disk full":
		w.small.Set(faults.Full)
		pause(w.t.Context(), a.hold)
		w.small.Set(faults.Good)
	case "links cut":
		w.link.Cut()
		pause(w.t.Context(), a.hold)
		w.link.Restore()
	case "names unresolved":
		w.tell(control{Dark: true})
		w.link.Cut() // so that there is something to resolve
		w.link.Restore()
		pause(w.t.Context(), a.hold)
		w.tell(control{})
	case "read model deleted":
		for _, suffix := range []string{"", "-wal", "-shm"} {
			_ = os.Remove(model + suffix)
		}
		pause(w.t.Context(), a.hold)
		w.manager.kill(nil) // a file without a name works as before, until a restart
	case "read model damaged":
		w.damage(r, model)
		pause(w.t.Context(), a.hold)
	case "read model damaged before a start":
		w.manager.kill(func() { w.damage(r, model) })
	case "log torn at its end":
		w.manager.kill(func() { w.tear(r) })
	case "disk full":
		w.full(a.hold)
	case "disk full at once":
		disk(faults.Filling)
	case "disk read-only":
		disk(faults.ReadOnly)
	case "disk bad for writing":
		disk(faults.BadWrite)
	case "disk bad for reading":
		disk(faults.BadRead)
	case "disk bad for syncing":
		disk(faults.BadSync)
	case "disk slow":
		disk(faults.Slow)
	case "power cut":
		w.cutPower(func(int64) int64 { return 0 })
	case "power cut in a record":
		w.cutPower(r.Int64N)
	default:
		w.t.Errorf("no such fault: %s", a.kind)
	}
}

// cutPower takes from the log what was not safe, but for what keep says.
func (w *weather) cutPower(keep func(n int64) int64) {
	w.manager.kill(func() {
		safe, lost, err := w.disk.PowerCut(logBlocks, keep)
		if err != nil {
			w.t.Error(err)
		}
		w.cuts = append(w.cuts, cut{safe, time.Now()})
		w.t.Logf("power cut: %d bytes of the log lost", lost)
	})
}

// damage overwrites bytes in the middle of a file.
func (w *weather) damage(r *rand.Rand, path string) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return // it was deleted before
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return
	}
	junk := make([]byte, 512)
	for i := range junk {
		junk[i] = byte(r.Uint32())
	}
	for range 4 {
		if _, err := f.WriteAt(junk, r.Int64N(max(1, info.Size()-int64(len(junk))))); err != nil {
			w.t.Error(err)
		}
	}
}

// tear puts half a record at the log's end, as a power cut in the middle of a
// write leaves one. It takes nothing away.
func (w *weather) tear(r *rand.Rand) {
	blocks, err := filepath.Glob(filepath.Join(w.back, logBlocks))
	if err != nil || len(blocks) == 0 {
		w.t.Errorf("blocks of the log: %v, %v", blocks, err)
		return
	}
	slices.SortFunc(blocks, func(a, b string) int { return len(a)*1000 - len(b)*1000 + strings.Compare(a, b) })
	f, err := os.OpenFile(blocks[len(blocks)-1], os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		w.t.Error(err)
		return
	}
	defer f.Close()
	junk := make([]byte, 1+r.IntN(200))
	for i := range junk {
		junk[i] = byte(r.Uint32())
	}
	if _, err := f.Write(junk); err != nil {
		w.t.Error(err)
	}
}

// full fills the disk, as everybody can see, and expects what is promised of
// it: writes are refused, reads and devices live.
func (w *weather) full(hold time.Duration) {
	w.disk.Set(faults.Full)
	defer w.disk.Set(faults.Good)
	ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Second)
	defer cancel()
	if status, err := w.write(ctx); err != nil || status != http.StatusInsufficientStorage {
		w.t.Errorf("write to a full disk: %d, %v, want 507", status, err)
	}
	l, err := w.m.API.ListDevicesWithResponse(ctx, nil)
	if err != nil || l.StatusCode() != http.StatusOK {
		w.t.Errorf("read with a full disk: %v, %v, want 200", l, err)
	}
	pause(w.t.Context(), hold)
	if n := w.online(); n != fleets*perFleet {
		w.t.Errorf("%d of %d devices are connected while the disk is full", n, fleets*perFleet)
	}
}

func (w *weather) tell(c control) {
	for _, dir := range w.dirs {
		if err := writeJSON(filepath.Join(dir, "control"), c); err != nil {
			w.t.Error(err)
		}
	}
}

// status returns what a fleet said last, an error when that was another process.
func (w *weather) status(i int) (s status, err error) {
	if err := readJSON(filepath.Join(w.dirs[i], "status"), &s); err != nil {
		return s, err
	}
	if s.Pid != w.fleets[i].pid() {
		return s, fmt.Errorf("fleet %d is starting", i)
	}
	return s, nil
}

func (w *weather) online() (n int) {
	for i := range w.fleets {
		if s, err := w.status(i); err == nil {
			n += s.Online
		}
	}
	return n
}

// wellAgain waits until the manager is ready and all devices are connected.
func (w *weather) wellAgain(after string) {
	w.t.Helper()
	deadline := time.Now().Add(recovery)
	for {
		err := w.well()
		if err == nil {
			return
		}
		if w.t.Context().Err() != nil || time.Now().After(deadline) {
			w.t.Fatalf("%v after %s: %v\nthe manager's log ends with:\n%s\n%s", recovery, after, err, w.manager.tail(40), strings.Join(w.manager.surprises(), "\n"))
		}
		pause(w.t.Context(), 50*time.Millisecond)
	}
}

func (w *weather) well() error {
	if err := w.ready(); err != nil {
		return err
	}
	for i := range w.fleets {
		s, err := w.status(i)
		if err != nil {
			return err
		}
		if s.Online != perFleet {
			return fmt.Errorf("%d of %d devices of fleet %d are connected; its log ends with:\n%s", s.Online, perFleet, i, w.fleets[i].tail(10))
		}
	}
	return nil
}

func (w *weather) ready() error {
	ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+w.m.Config.HTTP.Listen+"/readyz", nil)
	if err != nil {
		return err
	}
	r, err := (&http.Client{Transport: &http.Transport{TLSClientConfig: w.m.TLS(), DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK {
		return fmt.Errorf("readyz: %s", r.Status)
	}
	if status, err := w.write(ctx); err != nil || status != http.StatusCreated {
		return fmt.Errorf("write: %d, %w", status, err)
	}
	return nil
}

// calm ends the changes, waits until everything is told and done, and stops all.
func (w *weather) calm() {
	w.t.Helper()
	w.tell(control{Quiet: true})
	last := errors.New("nothing was looked at")
	deadline := time.Now().Add(2 * recovery)
	for last != nil {
		if time.Now().After(deadline) {
			w.t.Fatalf("not calm %v after the last fault: %v\nthe manager's log ends with:\n%s", 2*recovery, last, w.manager.tail(40))
		}
		pause(w.t.Context(), 200*time.Millisecond)
		last = w.settled()
	}
	for _, f := range w.fleets {
		if err := f.quit(); err != nil {
			w.t.Errorf("%v\n%s", err, f.tail(5))
		}
		if s := f.surprises(); len(s) > 0 {
			w.t.Errorf("%s ended by itself %d times: %v\n%s", f.name, len(s), s, f.tail(20))
		}
	}
	if err := w.manager.quit(); err != nil {
		w.t.Errorf("%v\n%s", err, w.manager.tail(20))
	}
}

func (w *weather) settled() error {
	for i := range w.fleets {
		s, err := w.status(i)
		if err != nil {
			return err
		}
		if s.Pending > 0 {
			return fmt.Errorf("fleet %d has %d reports without a receipt", i, s.Pending)
		}
		for k, device := range s.Devices {
			newest := changeName(i*perFleet+k, s.Made[k]-1)
			if r, err := w.m.API.GetVmWithResponse(w.t.Context(), device, newest, nil); err != nil || r.JSON200 == nil {
				return fmt.Errorf("machine %s is not known yet: %w", newest, err)
			}
		}
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Second)
	defer cancel()
	r, err := w.m.API.ListTasksWithResponse(ctx, &client.ListTasksParams{Open: new(true)})
	if err != nil {
		return err
	}
	if r.JSON200 == nil {
		return fmt.Errorf("list tasks: %s", r.Status())
	}
	if n := len(r.JSON200.Items); n > 0 {
		return fmt.Errorf("%d tasks are open: %+v", n, r.JSON200.Items[0])
	}
	return nil
}

// clients are people who switch machines on, and keep book of the answers.
type clients struct {
	w    *weather
	mu   sync.Mutex
	keys map[string]string // idempotency key → task
	said []promise
}

// promise is a task that a client was promised.
type promise struct {
	task string
	at   time.Time // of the answer
}

// work switches on machines of one device, the newest each time.
func (c *clients) work(ctx context.Context, device int) {
	for n := 0; ctx.Err() == nil; n++ {
		s, err := c.w.status(device / perFleet)
		if i := device % perFleet; err == nil && s.Made[i] > 0 {
			c.powerOn(ctx, s.Devices[i], changeName(device, s.Made[i]-1))
		}
		pause(ctx, 400*time.Millisecond)
	}
}

// powerOn asks until it is answered, and then once more: a careful client that
// lost the first answer.
func (c *clients) powerOn(ctx context.Context, device, vm string) {
	key := "on-" + vm
	patience, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for answers := 0; answers < 2 && patience.Err() == nil; pause(patience, 100*time.Millisecond) {
		r, err := c.w.m.API.SetVmPowerWithResponse(patience, device, vm, &client.SetVmPowerParams{IdempotencyKey: &key},
			client.SetVmPowerJSONRequestBody{Action: client.SetVMPowerActionOn})
		if err != nil || r.JSON202 == nil {
			continue // down, not reported yet, or on already
		}
		answers++
		c.mu.Lock()
		task := r.JSON202.Id.String()
		if before, ok := c.keys[key]; ok && before != task && len(c.w.cuts) == 0 {
			c.w.t.Errorf("key %s made task %s and task %s", key, before, task)
		}
		c.keys[key] = task
		c.said = append(c.said, promise{task, time.Now()})
		c.mu.Unlock()
	}
}

// pause spaces out what happens; nothing depends on its length.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
