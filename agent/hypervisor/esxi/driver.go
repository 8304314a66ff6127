package esxi

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"pallas/agent/hypervisor"
	"pallas/mqttgw/wire"
)

// Defaults of [Config].
const (
	DefaultCallTimeout     = 30 * time.Second
	DefaultKeepAlive       = 60 * time.Second
	DefaultShutdownTimeout = 5 * time.Minute
	DefaultLoginPause      = time.Minute
)

// maxLoginPause bounds how far the pause after refused logins grows. ESXi
// unlocks an account 15 minutes after its last failed login.
const maxLoginPause = 16 * time.Minute

// Secret is a password. It prints as [redacted].
type Secret string

// Format implements [fmt.Formatter], for every verb.
func (Secret) Format(s fmt.State, _ rune) { _, _ = s.Write([]byte("[redacted]")) }

// LogValue implements [slog.LogValuer].
func (Secret) LogValue() slog.Value { return slog.StringValue("[redacted]") }

// MarshalText implements [encoding.TextMarshaler].
func (Secret) MarshalText() ([]byte, error) { return []byte("[redacted]"), nil }

// Config says which host, and how to know that it is the right one. Exactly one
// of Thumbprint, CAFile and Insecure is set.
type Config struct {
	// URL is the host: "esx.example.net", "10.0.0.2:443" or
	// "https://10.0.0.2/sdk". Always https.
	URL      string
	Username string
	Password Secret

	// Thumbprint is the SHA-256 (or SHA-1) of the host's certificate in hex,
	// with or without colons.
	Thumbprint string
	// CAFile holds the PEM certificates that the host's may chain to.
	CAFile string
	// Insecure accepts any certificate.
	Insecure bool

	// CallTimeout bounds one call to the host.
	CallTimeout time.Duration
	// KeepAlive is how long one wait for changes may take. Each is a sign of
	// life to the host, whose sessions end after 30 minutes without one.
	KeepAlive time.Duration
	// ShutdownTimeout is how long a guest may take to shut down.
	ShutdownTimeout time.Duration
	// LoginPause is how long the driver does not try again after the host
	// refused the login; it doubles with each refusal, up to 16 minutes. ESXi
	// locks an account after five refusals. Negative means no pause.
	LoginPause time.Duration

	// DialContext connects to the host; nil means net.Dialer.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)
	// Log must be set.
	Log *slog.Logger
}

// Driver drives one ESXi host.
type Driver struct {
	cfg       Config
	url       *url.URL // https://host[:port]/sdk, no credentials
	trust     trust
	transport *http.Transport
	log       *slog.Logger

	// gate is held while session is replaced. It is a channel so that waiting
	// for it ends with a context.
	gate    chan struct{}
	session *session
	refusal refusal
	closed  bool

	mu      sync.Mutex
	refused refused
}

var _ hypervisor.Driver = (*Driver)(nil)

// New returns a driver. It does not connect.
func New(cfg Config) (*Driver, error) {
	u, err := parseURL(cfg.URL)
	if err != nil {
		return nil, err
	}
	if cfg.Username == "" {
		return nil, errors.New("username: required, such as root")
	}
	if cfg.Log == nil {
		return nil, errors.New("log: required")
	}
	t, err := newTrust(cfg)
	if err != nil {
		return nil, err
	}
	setDefault(&cfg.CallTimeout, DefaultCallTimeout)
	setDefault(&cfg.KeepAlive, DefaultKeepAlive)
	setDefault(&cfg.ShutdownTimeout, DefaultShutdownTimeout)
	setDefault(&cfg.LoginPause, DefaultLoginPause)
	if cfg.DialContext == nil {
		cfg.DialContext = (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext
	}
	d := &Driver{cfg: cfg, url: u, trust: t, log: cfg.Log, gate: make(chan struct{}, 1)}
	d.transport = &http.Transport{
		// No proxy: the host is on the same machine.
		DialContext:         cfg.DialContext,
		TLSClientConfig:     t.config(u.Hostname()),
		TLSHandshakeTimeout: 10 * time.Second,
		MaxIdleConnsPerHost: 2,
		IdleConnTimeout:     90 * time.Second,
		TLSNextProto:        map[string]func(string, *tls.Conn) http.RoundTripper{}, // hostd speaks HTTP/1.1
	}
	return d, nil
}

func setDefault(d *time.Duration, v time.Duration) {
	if *d == 0 {
		*d = v
	}
}

func parseURL(s string) (*url.URL, error) {
	bad := func(why string) error {
		return fmt.Errorf("url: %s: want the ESXi host's name or https://host[:port]", why)
	}
	if s == "" {
		return nil, bad("missing")
	}
	if !strings.Contains(s, "://") {
		s = "https://" + s
	}
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return nil, bad("not a URL") // err shows the URL, which may hold a password
	case u.User != nil:
		return nil, bad("holds credentials, which have fields of their own")
	case u.Scheme != "https":
		return nil, bad("scheme " + u.Scheme + " is not served by ESXi")
	case u.Hostname() == "":
		return nil, bad("no host")
	case strings.Trim(u.Path, "/") != "" && strings.Trim(u.Path, "/") != "sdk" || u.RawQuery != "" || u.Fragment != "":
		return nil, bad("path " + u.Path + " is not the API's")
	}
	return &url.URL{Scheme: "https", Host: u.Host, Path: "/sdk"}, nil
}

// address returns host:port.
func (d *Driver) address() string {
	if d.url.Port() != "" {
		return d.url.Host
	}
	return net.JoinHostPort(d.url.Hostname(), "443")
}

// Close logs out. A call under way ends with an error.
func (d *Driver) Close() error {
	d.gate <- struct{}{}
	s := d.session
	d.session, d.closed = nil, true
	<-d.gate
	var err error
	if s != nil {
		ctx, cancel := context.WithTimeout(context.Background(), d.cfg.CallTimeout)
		defer cancel()
		err = s.logout(ctx)
	}
	d.transport.CloseIdleConnections()
	if err != nil {
		return d.translate(context.Background(), "log out", err)
	}
	return nil
}

// refused is a write that the licence forbade.
type refused struct {
	reason  string
	licence string // identifies the licence at that time
}

// remember keeps or clears what a write said of the licence.
func (d *Driver) remember(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var e *hypervisor.Error
	switch {
	case err == nil:
		d.refused = refused{}
	case errors.As(err, &e) && e.Code == wire.CodeReadOnly:
		d.refused = refused{reason: e.Message}
	}
}
