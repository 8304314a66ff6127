package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sys/unix"

	"pallas/commands"
	"pallas/commands/accesshttp"
	"pallas/events"
	"pallas/internal/auth"
)

// localSocket is the socket in the data directory by which programs of this
// machine reach a manager that runs. Whoever may open it may read and write the
// whole directory, so it asks for no credential.
const localSocket = "local.sock"

// localActor causes what is done by the manager's own machine.
var localActor = events.SystemActor("local")

// admins makes administrators, and lets them in again.
type admins struct {
	commands *commands.Dispatcher
	people   *auth.People
	access   *accesshttp.Handlers
}

// create makes the first administrator.
func (a admins) create(ctx context.Context, admin FirstAdmin) (First, error) {
	person := auth.Person{ID: events.UserID(events.NewID()), Login: admin.Login}
	if err := a.people.Add(ctx, person); err != nil {
		return First{}, fmt.Errorf("make the administrator: %w", err)
	}
	meta := commands.Meta{Actor: localActor}
	if _, err := a.commands.Do(ctx, commands.CreateUser{User: person.ID, Grants: []commands.NewGrant{
		{Grant: events.GrantID(events.NewID()), Role: events.RoleAdmin},
	}}, meta); err != nil {
		return First{}, fmt.Errorf("make the administrator: %w", err)
	}
	link, _, err := a.access.Link(ctx, person.ID, meta)
	if err != nil {
		return First{}, fmt.Errorf("make the administrator's link: %w", err)
	}
	first := First{Login: admin.Login, Link: link.Link, Expires: link.Expires}
	if !admin.Token {
		return first, nil
	}
	id, token := auth.NewAPIToken()
	expires := time.Now().Add(tokenLife)
	if err := a.people.AddToken(ctx, person.ID, "first token", token, expires); err != nil {
		return First{}, fmt.Errorf("make the administrator's token: %w", err)
	}
	if _, err := a.commands.Do(ctx, commands.IssueAPIToken{User: person.ID, Token: id, Role: events.RoleAdmin, Expires: expires}, meta); err != nil {
		return First{}, fmt.Errorf("make the administrator's token: %w", err)
	}
	first.Token = token
	return first, nil
}

// reset makes a one-time link for a user. In a manager without any users it makes
// the first administrator.
func (a admins) reset(ctx context.Context, login string) (First, error) {
	person, err := a.people.ByLogin(ctx, login)
	switch {
	case errors.Is(err, auth.ErrUnknown):
		access, err := a.commands.Access(ctx)
		if err != nil {
			return First{}, err
		}
		if len(access.Users) == 0 {
			return a.create(ctx, FirstAdmin{Login: login})
		}
		return First{}, a.unknown(ctx, login, access)
	case err != nil:
		return First{}, err
	}
	link, _, err := a.access.Link(ctx, person.ID, commands.Meta{Actor: localActor})
	return First{Login: person.Login, Link: link.Link, Expires: link.Expires}, err
}

// unknown says that nobody has a login, and who the administrators are: who asks
// is on the manager's own machine.
func (a admins) unknown(ctx context.Context, login string, access commands.Access) error {
	var logins []string
	for _, id := range slices.Sorted(maps.Keys(access.Users)) {
		if p, err := a.people.Person(ctx, id); err == nil && access.Users[id].Admin() {
			logins = append(logins, p.Login)
		}
	}
	return fmt.Errorf("no user has the login %q; administrators are: %s", login, strings.Join(logins, ", "))
}

// ResetPassword makes a one-time link with which a user sets a password, on the
// manager's own machine and whether or not the manager runs. In a manager without
// any users it makes the first administrator.
func ResetPassword(ctx context.Context, cfg Config, log *slog.Logger, login string) (First, error) {
	unlock, err := lock(cfg.DataDir)
	if errors.Is(err, ErrInUse) {
		return askLocal(ctx, cfg.DataDir, login)
	}
	if err != nil {
		return First{}, err
	}
	defer unlock()
	var first First
	err = withStore(ctx, cfg, log, true, func(_ jetstream.JetStream, a admins) error {
		var err error
		first, err = a.reset(ctx, login)
		return err
	})
	return first, err
}

// localPath names the socket by the directory's descriptor: the path of a socket
// may have 107 bytes, and that of a directory many more.
func localPath(dir string) (path string, done func(), err error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, fmt.Errorf("open %s: %w", dir, err)
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", fd, localSocket), func() { _ = unix.Close(fd) }, nil
}

// listenLocal listens for programs of this machine. The caller holds the lock of
// the data directory: a socket that is there is of a manager that is gone.
func listenLocal(ctx context.Context, dir string) (net.Listener, error) {
	if err := os.Remove(filepath.Join(dir, localSocket)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("local socket: %w", err)
	}
	path, done, err := localPath(dir)
	if err != nil {
		return nil, err
	}
	defer done()
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("local socket: %w", err)
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false) // the path ends with the descriptor
	}
	if err := os.Chmod(filepath.Join(dir, localSocket), 0o600); err != nil {
		return nil, fmt.Errorf("local socket: %w", errors.Join(err, l.Close()))
	}
	return l, nil
}

type localAnswer struct {
	First First  `json:"first"`
	Error string `json:"error,omitempty"`
}

// serveLocal answers programs of this machine until ctx ends.
func serveLocal(ctx context.Context, l net.Listener, a admins) error {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /reset-password", func(w http.ResponseWriter, r *http.Request) {
		login, err := io.ReadAll(io.LimitReader(r.Body, auth.MaxLogin+1))
		var out localAnswer
		if err == nil {
			out.First, err = a.reset(r.Context(), string(login))
		}
		if err != nil {
			out.Error = err.Error()
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(out) // the client is gone: nothing to do about it
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	defer context.AfterFunc(ctx, func() { _ = srv.Close() })()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the local socket: %w", err)
	}
	return nil
}

// askLocal has the manager that runs make a link.
func askLocal(ctx context.Context, dir, login string) (First, error) {
	path, done, err := localPath(dir)
	if err != nil {
		return First{}, err
	}
	defer done()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://local/reset-password", bytes.NewReader([]byte(login)))
	if err != nil {
		return First{}, fmt.Errorf("ask the manager: %w", err)
	}
	resp, err := (&http.Client{Transport: transport, Timeout: 30 * time.Second}).Do(req)
	if err != nil {
		return First{}, fmt.Errorf("ask the manager that runs: %w", err)
	}
	defer resp.Body.Close() //nolint:errcheck // read
	var out localAnswer
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
		return First{}, fmt.Errorf("ask the manager that runs: %w", err)
	}
	if out.Error != "" {
		return First{}, errors.New(out.Error)
	}
	return out.First, nil
}
