package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"pallas/internal/client"
)

// session is a connection to one manager. It reads its own writes.
type session struct {
	api      *client.ClientWithResponses
	position *client.Position
	server   string
	timeout  time.Duration // of one answer
	now      time.Time
}

// open connects to the manager that flags, environment and configuration
// name, in this order. Nothing is sent yet.
func (a *app) open() (*session, error) {
	t, err := a.target()
	if err != nil {
		return nil, err
	}
	return a.connect(t)
}

// connect is open with everything given.
func (a *app) connect(t profile) (*session, error) {
	s := &session{position: new(client.Position), server: t.Server, timeout: a.timeout, now: a.now}
	var ca []byte
	if t.CA != "" {
		ca = []byte(t.CA)
	}
	var err error
	if s.api, err = client.ConnectPEM(t.Server, ca, string(t.Token), new(client.Retry).Option, s.position.Option); err != nil {
		return nil, usagef("%v", err)
	}
	return s, nil
}

// target puts together where to connect. A server that is named goes without
// the token and CA of a context that is for another server.
func (a *app) target() (profile, error) {
	cfg, err := loadConfig()
	if err != nil {
		return profile{}, err
	}
	var t profile
	server := first(a.server, os.Getenv("PALLAS_SERVER"))
	switch p, ok := cfg.find(first(a.context, cfg.Current)); {
	case ok && (server == "" || sameServer(server, p.Server)):
		t = p
	case a.context != "" && !ok:
		return profile{}, &Error{Code: exitNotFound, Title: "There is no such thing", Detail: fmt.Sprintf("there is no context %q", a.context), Hint: "see: pallas context list"}
	case a.context != "":
		return profile{}, usagef("--context %s is for %s, not for %s", a.context, p.Server, server)
	case server == "":
		return profile{}, &Error{Code: exitDenied, Title: "not logged in", Detail: "no context is in use", Hint: hintLogin}
	default:
		t.Server = server
	}
	if path := first(a.caFile, os.Getenv("PALLAS_CA_FILE")); path != "" {
		b, err := os.ReadFile(path)
		if err != nil {
			return profile{}, usagef("CA file: %v", err)
		}
		t.CA = string(b)
	}
	token, err := a.givenToken()
	if err != nil {
		return profile{}, err
	}
	if token != "" {
		t.Token = token
	}
	if t.Token == "" {
		return profile{}, &Error{Code: exitDenied, Title: "not logged in", Detail: "there is no token for " + t.Server, Hint: hintLogin}
	}
	return t, nil
}

// givenToken is the token of flags and environment, "" if there is none.
func (a *app) givenToken() (secret, error) {
	if a.tokenFile == "" && os.Getenv("PALLAS_TOKEN") != "" {
		return secret(strings.TrimSpace(os.Getenv("PALLAS_TOKEN"))), nil
	}
	path := first(a.tokenFile, os.Getenv("PALLAS_TOKEN_FILE"))
	if path == "" {
		return "", nil
	}
	f, err := os.Open(path)
	if err != nil {
		return "", usagef("token file: %v", err)
	}
	defer f.Close() //nolint:errcheck // read only
	t, err := readToken(f)
	if err != nil {
		return "", usagef("token file %s: %v", path, err)
	}
	return t, nil
}

// readToken reads a token that stands alone in a stream.
func readToken(r io.Reader) (secret, error) {
	b, err := io.ReadAll(io.LimitReader(r, 4096))
	if err != nil {
		return "", err
	}
	t := strings.TrimSpace(string(b))
	if t == "" || strings.ContainsFunc(t, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf("want one token and nothing else")
	}
	return secret(t), nil
}

// answer is what the generated client returns of every operation.
type answer interface {
	StatusCode() int
	ContentType() string
	GetBody() []byte
}

// ask sends one request and waits for its answer, which is a success.
func ask[R answer](ctx context.Context, s *session, send func(context.Context) (R, error)) (R, error) {
	within, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	r, err := send(within)
	if err != nil {
		return r, unanswered(s.server, err)
	}
	switch status := r.StatusCode(); {
	case status >= 300:
		return r, problem(status, r.GetBody())
	case len(r.GetBody()) > 0 && !strings.Contains(r.ContentType(), "json"):
		return r, &Error{Code: exitError, Title: "cannot read the answer of " + s.server, Detail: "it is no device manager", Hint: "check the URL in --server"}
	}
	return r, nil
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}
