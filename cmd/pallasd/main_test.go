package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// pallasd runs the program's own code until it ends by itself.
func pallasd(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var out, errs bytes.Buffer
	code = run(ctx, args, &out, &errs)
	if ctx.Err() != nil {
		t.Fatalf("pallasd %s did not end", strings.Join(args, " "))
	}
	return code, out.String(), errs.String()
}

// initialise makes a data directory and returns it with its configuration.
func initialise(t *testing.T, args ...string) (dir, config string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "data")
	code, stdout, stderr := pallasd(t, append([]string{"init", "--data", dir, "--listen", "127.0.0.1:0", "--mqtt-listen", "127.0.0.1:0"}, args...)...)
	if code != 0 {
		t.Fatalf("init: exit code %d\n%s", code, stderr)
	}
	if !strings.Contains(stdout, "/setup#plr_") || strings.Contains(stdout, "pls_") {
		t.Fatalf("init printed no link, or a token:\n%s", stdout)
	}
	return dir, filepath.Join(dir, "pallasd.yaml")
}

// watch collects what a running pallasd logs, and says when it is ready.
type watch struct {
	mu    sync.Mutex
	buf   bytes.Buffer
	ready chan struct{}
	once  sync.Once
}

func (w *watch) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf.Write(b)
	if bytes.Contains(w.buf.Bytes(), []byte("device manager is ready")) {
		w.once.Do(func() { close(w.ready) })
	}
	return len(b), nil
}

func (w *watch) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}

// serving runs pallasd until the test ends or stop is called.
func serving(t *testing.T, config string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	log := &watch{ready: make(chan struct{})}
	done := make(chan int, 1)
	go func() { done <- run(ctx, []string{"serve", "--config", config}, &bytes.Buffer{}, log) }()
	select {
	case <-log.ready:
	case code := <-done:
		t.Fatalf("pallasd ended with %d:\n%s", code, log)
	case <-time.After(30 * time.Second):
		t.Fatalf("pallasd is not ready:\n%s", log)
	}
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if code := <-done; code != 0 {
				t.Errorf("pallasd ended with %d:\n%s", code, log)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

func TestInitAndServe(t *testing.T) {
	dir, config := initialise(t)
	for path, want := range map[string]os.FileMode{
		dir: 0o700, config: 0o600, filepath.Join(dir, "pki", "ca.key"): 0o600, filepath.Join(dir, "pki", "ca.crt"): 0o644,
	} {
		info, err := os.Stat(path)
		if err != nil {
			t.Error(err)
		} else if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %v, want %v", path, got, want)
		}
	}
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "plr_") {
		t.Error("the configuration holds the link")
	}
	// A second init must not touch what the first made.
	before := listing(t, dir)
	if code, _, stderr := pallasd(t, "init", "--data", dir); code != 1 || !oneLine(stderr, "already holds a device manager") {
		t.Errorf("second init: exit code %d\n%s", code, stderr)
	}
	if after := listing(t, dir); after != before {
		t.Errorf("the second init changed\n%sto\n%s", before, after)
	}
	stop := serving(t, config)
	// One directory, one process.
	if code, _, stderr := pallasd(t, "serve", "--config", config); code != 1 || !oneLine(stderr, "is in use by another pallasd") {
		t.Errorf("second serve: exit code %d\n%s", code, stderr)
	}
	stop()
	serving(t, config) // and again on the same directory
}

// TestFirstAdmin gives the first administrator another login and a token, and
// makes links while the manager does not run and while it does.
func TestFirstAdmin(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	_, config := initialise(t, "--admin", "Root@example.com", "--token-file", file)
	b, err := os.ReadFile(file)
	if err != nil || !strings.HasPrefix(string(b), "pls_") || !strings.HasSuffix(string(b), "\n") {
		t.Errorf("token file: %d bytes, %v", len(b), err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("token file: %v, %v", info.Mode(), err)
	}
	// A file that is there is not written over, and nothing is made.
	other := filepath.Join(t.TempDir(), "other")
	if code, _, stderr := pallasd(t, "init", "--data", other, "--token-file", file); code != 2 || !oneLine(stderr, "--token-file") {
		t.Errorf("a token file that is there: exit code %d\n%s", code, stderr)
	}
	if _, err := os.Stat(other); err == nil {
		t.Error("the directory was made all the same")
	}
	if code, _, stderr := pallasd(t, "init", "--data", other, "--admin", "a b"); code != 1 || !oneLine(stderr, "white space") {
		t.Errorf("a bad login: exit code %d\n%s", code, stderr)
	}
	link := regexp.MustCompile(`https://\S+/setup#plr_\S+`)
	reset := func(login string) string {
		t.Helper()
		code, stdout, stderr := pallasd(t, "reset-password", "--config", config, login)
		if code != 0 {
			t.Fatalf("reset-password: exit code %d\n%s", code, stderr)
		}
		return link.FindString(stdout)
	}
	first := reset("root@EXAMPLE.com")
	stop := serving(t, config)
	second := reset("root@example.com")
	if first == "" || second == "" || first == second {
		t.Errorf("links %q and %q", first, second)
	}
	if code, _, stderr := pallasd(t, "reset-password", "--config", config, "nobody"); code != 1 || !oneLine(stderr, "administrators are: Root@example.com") {
		t.Errorf("an unknown login: exit code %d\n%s", code, stderr)
	}
	stop()
	for _, args := range [][]string{{"--config", config}, {"x"}, {"--config", config, "a", "b"}} {
		if code, _, stderr := pallasd(t, append([]string{"reset-password"}, args...)...); code != 2 {
			t.Errorf("reset-password %v: exit code %d\n%s", args, code, stderr)
		}
	}
}

// TestRelativeDirectory makes a data directory where the program was started,
// and serves it from elsewhere.
func TestRelativeDirectory(t *testing.T) {
	t.Chdir(t.TempDir())
	if code, _, stderr := pallasd(t, "init", "--data", "data", "--listen", "127.0.0.1:0", "--mqtt-listen", "127.0.0.1:0"); code != 0 {
		t.Fatalf("init: exit code %d\n%s", code, stderr)
	}
	config, err := filepath.Abs("data/pallasd.yaml")
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(t.TempDir())
	serving(t, config)()
	// A configuration that says it so means where the program is started.
	t.Chdir(filepath.Dir(filepath.Dir(config)))
	b, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	b = bytes.ReplaceAll(b, []byte(filepath.Dir(config)), []byte("data"))
	if err := os.WriteFile(config, b, 0o600); err != nil {
		t.Fatal(err)
	}
	serving(t, config)()
}

func TestRefusals(t *testing.T) {
	_, config := initialise(t)
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	for name, c := range map[string]struct {
		change [2]string
		code   int
		want   string
	}{
		"unknown key":         {[2]string{"  grace: 1m0s", "  grace: 1m0s\n  graze: 2m"}, exitUsage, `unknown field "graze"`},
		"not a duration":      {[2]string{"grace: 1m0s", "grace: soon"}, exitUsage, `"soon" is not a duration`},
		"out of range":        {[2]string{"window: 1024", "window: 0"}, exitUsage, "devices.window: 0 is out of range"},
		"wrong type":          {[2]string{"window: 1024", "window: many"}, exitUsage, "window"},
		"log level":           {[2]string{"level: info", "level: loud"}, exitUsage, `log.level: "loud" is not`},
		"url":                 {[2]string{`url: ""`, `url: "http://pallas.example.com"`}, exitUsage, "http.url"},
		"rate":                {[2]string{`rate: 100`, `rate: -1`}, exitUsage, "http.rate"},
		"listen":              {[2]string{`listen: "127.0.0.1:0"`, `listen: "nowhere"`}, exitUsage, "http.listen"},
		"HTTP port in use":    {[2]string{`listen: "127.0.0.1:0"`, `listen: "` + busy.Addr().String() + `"`}, exitFailed, "address already in use"},
		"MQTT port in use":    {[2]string{"mqtt:\n", "mqtt:\n  # busy\n"}, exitFailed, "address already in use"},
		"not a data dir":      {[2]string{"data_dir: ", "data_dir: /proc/pallas #"}, exitFailed, "data directory"},
		"data_dir is missing": {[2]string{"data_dir: ", "data_dir: \"\" #"}, exitUsage, "data_dir: is missing"},
	} {
		t.Run(name, func(t *testing.T) {
			changed := strings.Replace(string(text), c.change[0], c.change[1], 1)
			if name == "MQTT port in use" {
				changed = regexp.MustCompile(`(?s)(# busy.*?listen: )"[^"]*"`).ReplaceAllString(changed, `${1}"`+busy.Addr().String()+`"`)
			}
			if changed == string(text) {
				t.Fatal("the test changes nothing")
			}
			path := filepath.Join(t.TempDir(), "pallasd.yaml")
			if err := os.WriteFile(path, []byte(changed), 0o600); err != nil {
				t.Fatal(err)
			}
			code, _, stderr := pallasd(t, "serve", "--config", path)
			if code != c.code || !oneLine(stderr, c.want) {
				t.Errorf("exit code %d, want %d and one line with %q:\n%s", code, c.code, c.want, stderr)
			}
		})
	}
	for name, c := range map[string]struct {
		args []string
		code int
		want string
	}{
		"no such file":     {[]string{"serve", "--config", "no/such.yaml"}, exitUsage, "no/such.yaml: no such file or directory"},
		"no config":        {[]string{"serve"}, exitUsage, "--config FILE is missing"},
		"unknown flag":     {[]string{"serve", "--bogus"}, exitUsage, "--bogus"},
		"extra argument":   {[]string{"serve", "now"}, exitUsage, `unexpected argument "now"`},
		"unknown command":  {[]string{"dance"}, exitUsage, `"dance"`},
		"init without dir": {[]string{"init"}, exitUsage, "data_dir: is missing"},
		"init unwritable":  {[]string{"init", "--data", "/proc/pallas"}, exitFailed, "data directory"},
	} {
		t.Run(name, func(t *testing.T) {
			code, _, stderr := pallasd(t, c.args...)
			if code != c.code || !oneLine(stderr, c.want) {
				t.Errorf("exit code %d, want %d and one line with %q:\n%s", code, c.code, c.want, stderr)
			}
		})
	}
}

// TestDamage starts on directories that something has gone wrong with.
func TestDamage(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(t *testing.T, dir string)
		want   string // "" when it must start all the same
	}{
		"the CA's key is cut off": {func(t *testing.T, dir string) { truncate(t, filepath.Join(dir, "pki", "ca.key"), 40) }, "ca.key"},
		"the CA is gone":          {func(t *testing.T, dir string) { remove(t, filepath.Join(dir, "pki", "ca.crt")) }, "ca.crt"},
		"the read model is noise": {func(t *testing.T, dir string) {
			overwrite(t, filepath.Join(dir, "readmodel.db"))
		}, ""},
		"the read model is gone":            {func(t *testing.T, dir string) { remove(t, filepath.Join(dir, "readmodel.db")) }, ""},
		"the log's description is not JSON": {func(t *testing.T, dir string) { overwrite(t, find(t, dir, "EVENTS/meta.inf")) }, "EVENTS"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, config := initialise(t)
			stop := serving(t, config)
			stop()
			c.damage(t, dir)
			if c.want == "" {
				serving(t, config)
				return
			}
			before := listing(t, filepath.Join(dir, "pki"))
			code, _, stderr := pallasd(t, "serve", "--config", config)
			if last := lastLine(stderr); code != exitFailed || !strings.Contains(last, c.want) || strings.Contains(stderr, "goroutine") {
				t.Errorf("exit code %d, want %d and a line with %q:\n%s", code, exitFailed, c.want, stderr)
			}
			if after := listing(t, filepath.Join(dir, "pki")); after != before {
				t.Errorf("starting changed\n%sto\n%s", before, after)
			}
		})
	}
}

func oneLine(s, want string) bool {
	return strings.HasPrefix(s, "pallasd: ") && strings.Count(s, "\n") == 1 && strings.Contains(s, want)
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

// listing names every file with its size.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		b.WriteString(path + " " + string(rune('0'+len(data)%10)) + "\n")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func find(t *testing.T, dir, suffix string) (path string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		if strings.HasSuffix(p, suffix) {
			path = p
		}
		return err
	})
	if err != nil || path == "" {
		t.Fatalf("no %s in %s: %v", suffix, dir, err)
	}
	return path
}

func truncate(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func overwrite(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, bytes.Repeat([]byte("noise "), 2000), 0o600); err != nil {
		t.Fatal(err)
	}
}
