package cli

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"

	"pallas/internal/client"
)

// Exit codes, the table of docs/reference/cli.md.
const (
	exitOK          = 0
	exitError       = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitRefused     = 4
	exitDenied      = 5
	exitUnreachable = 6
	exitTask        = 7
	exitInterrupted = 130
)

// exitCodes is what they mean.
var exitCodes = []struct {
	code    int
	meaning string
}{
	{exitOK, "Done. Also the end of a watch by Ctrl-C."},
	{exitError, "Something else went wrong, such as a defect of the manager or an unwritable file."},
	{exitUsage, "Wrong arguments: unknown or missing ones, an ambiguous name, or a value that the manager finds invalid (400, 422)."},
	{exitNotFound, "What the arguments name does not exist (404)."},
	{exitRefused, "Refused: the state does not permit it, also that of one of many devices, somebody changed it meanwhile, or the token may not do it (403, 409, 412)."},
	{exitDenied, "Not logged in, or the token is not valid (401)."},
	{exitUnreachable, "The manager cannot be reached or trusted, did not answer in time, or cannot answer now (408, 429, 502, 503, 504)."},
	{exitTask, "A task that was waited for ended otherwise than succeeded."},
	{exitInterrupted, "Interrupted by Ctrl-C or SIGTERM. Tasks that were asked for go on."},
}

// Error is what went wrong, in the words and with the exit code that the
// person at the terminal gets.
type Error struct {
	Code          int
	Title, Detail string
	Fields        []client.FieldError
	Request       string // id, to find it in the manager's log
	Hint          string // what to do, where it is known
}

func (e *Error) Error() string {
	if e.Detail == "" {
		return e.Title
	}
	return e.Title + ": " + e.Detail
}

func (e *Error) write(w io.Writer) {
	fmt.Fprintln(w, clean("error: "+e.Error()))
	for _, f := range e.Fields {
		fmt.Fprintln(w, clean(fmt.Sprintf("  %s: %s", f.Field, f.Message)))
	}
	if e.Request != "" {
		fmt.Fprintln(w, clean("  request id: "+e.Request))
	}
	if e.Hint != "" {
		fmt.Fprintln(w, clean("hint: "+e.Hint))
	}
}

func usagef(format string, args ...any) *Error {
	return &Error{Code: exitUsage, Title: "usage", Detail: fmt.Sprintf(format, args...)}
}

func notFound(what, name string) *Error {
	return &Error{Code: exitNotFound, Title: "There is no such thing", Detail: fmt.Sprintf("there is no %s %q", what, name)}
}

// asError gives every error its exit code.
func asError(err error) *Error {
	var e *Error
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, context.Canceled):
		return &Error{Code: exitInterrupted, Title: "interrupted"}
	default:
		return &Error{Code: exitError, Title: "failed", Detail: err.Error()}
	}
}

const hintLogin = "log in with: pallas login --server URL --ca-file FILE"

// problem is the manager's own answer that something is wrong.
func problem(status int, body []byte) *Error {
	var p client.Problem
	if err := json.Unmarshal(body, &p); err != nil || p.Title == "" {
		p = client.Problem{Title: "The manager answered", Detail: new(fmt.Sprintf("%d %s", status, http.StatusText(status)))}
	}
	e := &Error{Code: exitError, Title: p.Title, Detail: str(p.Detail)}
	if p.Errors != nil {
		e.Fields = *p.Errors
	}
	if len(e.Fields) == 1 && e.Detail == e.Fields[0].Field+": "+e.Fields[0].Message {
		e.Fields = nil // said already
	}
	switch status {
	case http.StatusBadRequest, http.StatusUnprocessableEntity:
		e.Code = exitUsage
	case http.StatusUnauthorized:
		e.Code, e.Hint = exitDenied, hintLogin
	case http.StatusNotFound:
		e.Code = exitNotFound
	case http.StatusForbidden, http.StatusConflict, http.StatusPreconditionFailed:
		e.Code = exitRefused
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		e.Code = exitUnreachable
	}
	if status >= http.StatusInternalServerError {
		e.Request = str(p.RequestId)
	}
	return e
}

// unanswered is a request that got no answer, or none that can be read.
func unanswered(server string, err error) error {
	var (
		sent      *url.Error
		authority x509.UnknownAuthorityError
		name      x509.HostnameError
		invalid   x509.CertificateInvalidError
		lookup    *net.DNSError
		timeout   net.Error
	)
	if errors.Is(err, context.Canceled) {
		return err
	}
	e := &Error{Code: exitUnreachable, Title: "cannot reach " + server, Detail: err.Error()}
	if errors.As(err, &sent) {
		e.Detail = sent.Err.Error()
	}
	switch {
	case errors.As(err, &authority):
		e.Title, e.Hint = "cannot trust "+server, "give the CA of the manager with --ca-file; pallasd init wrote it to ca.crt in its data directory"
	case errors.As(err, &name):
		e.Title, e.Hint = "cannot trust "+server, "use the name that the manager's certificate is for, the url of its configuration"
	case errors.As(err, &invalid):
		e.Title, e.Hint = "cannot trust "+server, "check the clocks of both machines"
	case errors.Is(err, syscall.ECONNREFUSED):
		e.Hint = "check that pallasd runs and that the port is right"
	case errors.As(err, &lookup):
		e.Hint = "check the name in --server"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		e.Detail = "no answer in time"
		e.Hint = "whether a change was made is not known; look before you repeat it, or wait longer with --timeout"
	case sent == nil: // an answer came, but it is not the API's
		e.Code, e.Title = exitError, "cannot read the answer of "+server
	}
	return e
}

func str(p *string) string {
	if p == nil {
		return ""
	}
	return strings.TrimSpace(*p)
}
