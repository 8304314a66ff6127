package identity

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"pallas/agent/retry"
	"pallas/mqttgw/wire"
)

// RefusedError says that the manager will not take the device in, and that
// asking again the same way is no use.
type RefusedError struct {
	// Status is the HTTP status, 0 when the manager was not even asked.
	Status int
	// Code is the manager's word for the reason, such as "retired"; may be empty.
	Code string
	// Reason is the manager's.
	Reason string
}

func (e *RefusedError) Error() string {
	if e.Status == 0 {
		return "this device cannot enrol: " + e.Reason
	}
	return fmt.Sprintf("the manager refused to enrol this device: %s (HTTP %d)", e.Reason, e.Status)
}

// EnrolConfig is what [Enrol] needs.
type EnrolConfig struct {
	Dir  string
	Join wire.Join
	// Name is the host's name and Version the agent's.
	Name, Version string
	DialContext   func(ctx context.Context, network, addr string) (net.Conn, error)
	// Now is the clock that certificates are judged by.
	Now func() time.Time
	Log *slog.Logger
	// Backoff between attempts.
	Backoff retry.Backoff
}

const (
	enrolTimeout  = 30 * time.Second
	enrolAnswer   = 64 << 10 // bytes of an answer that are read
	maxRetryAfter = time.Hour
	// patience is how many times longer the pauses are while a person has to
	// decide.
	patience = 10
)

// undecided are the codes of refusals that last until a person decides: another
// key has the device's id, or the device is kept out.
var undecided = []string{"clone", "quarantined", "rejected"}

// Enrol asks the manager of a join string for a certificate and writes the
// answer to the data folder. It tries again, with growing pauses, while the
// manager cannot be reached or is busy, and with longer ones while a person has
// to decide about the device there; any other refusal is a *RefusedError. An
// expired join string is not even tried.
func Enrol(ctx context.Context, id Identity, c EnrolConfig) (Identity, error) {
	csr, err := id.request()
	if err != nil {
		return Identity{}, fmt.Errorf("enrol: %w", err)
	}
	body, err := json.Marshal(wire.EnrollRequest{
		Token: c.Join.Token, Device: id.Device, Name: c.Name, Agent: c.Version,
		CSR: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})),
	})
	if err != nil {
		return Identity{}, fmt.Errorf("enrol: %w", err)
	}
	config := c.Join.TLS()
	config.Time = c.Now
	client := httpsClient(config, c.DialContext)
	patient := retry.Backoff{Base: patience * c.Backoff.Base, Cap: patience * c.Backoff.Cap}
	for {
		if !c.Join.Expires.IsZero() && c.Now().After(c.Join.Expires) {
			return Identity{}, &RefusedError{Reason: "the join string expired at " + c.Join.Expires.Format(time.RFC3339) + ", make a new one"}
		}
		e, after, err := enrolOnce(ctx, client, c.Join, body)
		if err == nil {
			if err = checkPin(e.CA, c.Join.CA); err == nil {
				err = e.check(id.Device, id.Key)
			}
			if err != nil {
				return Identity{}, fmt.Errorf("enrol: answer of %s: %w", c.Join.URL, err)
			}
			if err := e.write(c.Dir); err != nil {
				return Identity{}, err
			}
			id.Enrolment = &e
			return id, nil
		}
		var refused *RefusedError
		var pause time.Duration
		switch {
		case !errors.As(err, &refused):
			pause = max(c.Backoff.Next(), after)
			c.Log.Warn("cannot enrol yet", "manager", c.Join.URL, "error", err, "retry_in", pause.Round(time.Millisecond))
		case slices.Contains(undecided, refused.Code):
			pause = patient.Next()
			c.Log.Warn("cannot enrol until a person has decided about this device at the manager",
				"manager", c.Join.URL, "error", err, "retry_in", pause.Round(time.Millisecond))
		default:
			return Identity{}, err
		}
		if err := retry.Pause(ctx, pause); err != nil {
			return Identity{}, err
		}
	}
}

// httpsClient makes each request over a connection of its own.
func httpsClient(config *tls.Config, dial func(ctx context.Context, network, addr string) (net.Conn, error)) *http.Client {
	return &http.Client{
		Timeout:       enrolTimeout,
		Transport:     &http.Transport{TLSClientConfig: config, DialContext: dial, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// enrolOnce asks once. after is how long the manager wants to be left alone.
func enrolOnce(ctx context.Context, client *http.Client, join wire.Join, body []byte) (e Enrolment, after time.Duration, err error) {
	r, after, err := post(ctx, client, strings.TrimRight(join.URL, "/")+wire.EnrollPath, body)
	if err != nil {
		return Enrolment{}, after, err
	}
	return Enrolment{Manager: join.URL, JoinToken: tokenID(join), Certificate: r.Certificate, CA: r.CA, MQTT: r.MQTT, Time: r.Time.UTC()}, 0, nil
}

// post sends a request for a certificate. after is how long the manager wants to
// be left alone.
func post(ctx context.Context, client *http.Client, url string, body []byte) (r wire.EnrollResponse, after time.Duration, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return r, 0, fmt.Errorf("ask %s: %w", url, err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return r, 0, err // names the method and the URL, which holds no secret
	}
	defer func() { _ = resp.Body.Close() }() // all that counts was read
	answer, err := io.ReadAll(io.LimitReader(resp.Body, enrolAnswer))
	if err != nil {
		return r, 0, fmt.Errorf("read answer of %s: %w", url, err)
	}
	switch {
	case resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusCreated:
		if err := json.Unmarshal(answer, &r); err != nil {
			return r, 0, fmt.Errorf("read answer of %s: %w", url, err)
		}
		return r, 0, nil
	case resp.StatusCode >= 500, resp.StatusCode == http.StatusTooManyRequests, resp.StatusCode == http.StatusRequestTimeout:
		if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s > 0 {
			after = min(time.Duration(s)*time.Second, maxRetryAfter)
		}
		return r, after, fmt.Errorf("%s answered %s", url, resp.Status)
	default:
		reason, code := problem(answer, resp.StatusCode)
		return r, 0, &RefusedError{Status: resp.StatusCode, Code: code, Reason: reason}
	}
}

// problem returns what an RFC 9457 body says to people, and its code.
func problem(body []byte, status int) (text, code string) {
	var p struct {
		Title  string `json:"title"`
		Detail string `json:"detail"`
		Code   string `json:"code"`
		Errors []struct {
			Message  string `json:"message"`
			Location string `json:"location"`
		} `json:"errors"`
	}
	if json.Unmarshal(body, &p) != nil || p.Title+p.Detail == "" {
		return http.StatusText(status), p.Code
	}
	text = p.Detail
	if text == "" {
		text = p.Title
	}
	for _, e := range p.Errors {
		text += "; " + strings.TrimSpace(e.Location+" "+e.Message)
	}
	if len(text) > 500 {
		text = text[:500]
	}
	return text, p.Code
}
