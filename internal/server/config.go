package server

import (
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"time"

	"pallas/commands/accesshttp"
	"pallas/internal/config"
	"pallas/internal/httpapi"
)

// Config is the configuration of the device manager, as the file of pallasd
// holds it.
type Config struct {
	// DataDir holds everything: the CA, the event log, the credentials and the
	// read model.
	DataDir string `yaml:"data_dir"`

	HTTP      HTTPConfig      `yaml:"http"`
	OIDC      OIDCConfig      `yaml:"oidc"`
	MQTT      MQTTConfig      `yaml:"mqtt"`
	Events    EventsConfig    `yaml:"events"`
	Devices   DevicesConfig   `yaml:"devices"`
	Memory    MemoryConfig    `yaml:"memory"`
	Telemetry TelemetryConfig `yaml:"telemetry"`
	Log       LogConfig       `yaml:"log"`
	Debug     DebugConfig     `yaml:"debug"`
}

// HTTPConfig is for the API.
type HTTPConfig struct {
	// Listen is host:port; port 0 takes a free one.
	Listen string `yaml:"listen"`
	// URL is how devices and people reach the API. Its host name is in the
	// server certificate. Empty means https:// and the listening address.
	URL string `yaml:"url"`
	// MQTT has the port take MQTT as well, from clients that ask for it by the
	// ALPN name "mqtt". Agents come here when they cannot reach MQTT's own port.
	MQTT bool `yaml:"mqtt"`
	// Rate is how many requests a second a user may send to the API, with a
	// burst of twice as many; 0 means as many as the manager can answer.
	Rate float64 `yaml:"rate"`
	// SessionIdle is how long a person's session may be unused, SessionLife how
	// long it lasts in all.
	SessionIdle config.Duration `yaml:"session_idle"`
	SessionLife config.Duration `yaml:"session_life"`
}

// MQTTConfig is for the device door.
type MQTTConfig struct {
	// Listen is host:port; port 0 takes a free one.
	Listen string `yaml:"listen"`
	// Address is the host:port that devices are told to connect to. Empty
	// means the host of http.url and the listening port.
	Address string `yaml:"address"`
}

// EventsConfig is for the event log.
type EventsConfig struct {
	// Sync is how often the log is forced to disk; 0 means before each answer.
	// A receipt to a device waits for it, so a power cut loses no receipted
	// report. An answer to an HTTP client does not wait unless it is 0.
	Sync config.Duration `yaml:"sync"`
	// MaxBytes bounds the log; 0 means MinFree alone does. A full log refuses
	// writes, it never drops events.
	MaxBytes int64 `yaml:"max_bytes"`
	// MinFree is how many bytes must be free on the disk of DataDir: with less
	// the manager refuses writes and is not ready.
	MinFree int64 `yaml:"min_free"`
}

// DevicesConfig is for the sessions of devices.
type DevicesConfig struct {
	// Grace is how long a device may be gone before it counts as lost.
	Grace config.Duration `yaml:"grace"`
	// KeepAlive is the interval in which an idle device shows that it lives.
	KeepAlive config.Duration `yaml:"keep_alive"`
	// Window is how many reports a device may send ahead of receipts.
	Window int `yaml:"window"`
	// Reconcile is how often an agent compares everything with its host.
	Reconcile config.Duration `yaml:"reconcile"`
	// CertificateLife is how long a device certificate is valid.
	CertificateLife config.Duration `yaml:"certificate_life"`
	// CertificateGrace is how long after the end of its certificate a device that
	// was away gets another one for its key alone; 0 means never.
	CertificateGrace config.Duration `yaml:"certificate_grace"`
}

// startGrace is how long the devices that were connected have to come back to a
// manager that starts. After a power cut an idle one learns that its connection
// is gone by its next ping, waits for the answer, and tries again with pauses;
// and all of them come at once.
func (d DevicesConfig) startGrace() time.Duration {
	return time.Duration(d.KeepAlive) + 2*time.Minute
}

// LogConfig is for the manager's own log on standard error.
type LogConfig struct {
	Level  string `yaml:"level"`  // debug, info, warn or error
	Format string `yaml:"format"` // text or json
}

// Defaults returns the configuration that an empty file means.
func Defaults() Config {
	return Config{
		HTTP: HTTPConfig{
			Listen: ":8443", MQTT: true, Rate: httpapi.DefaultRate,
			SessionIdle: config.Duration(accesshttp.DefaultSessionIdle), SessionLife: config.Duration(accesshttp.DefaultSessionLife),
		},
		OIDC:   defaultOIDC(),
		MQTT:   MQTTConfig{Listen: ":8883"},
		Events: EventsConfig{Sync: config.Duration(time.Second), MinFree: 256 << 20},
		Devices: DevicesConfig{
			Grace:           config.Duration(time.Minute),
			KeepAlive:       config.Duration(4 * time.Minute),
			Window:          1024,
			Reconcile:       config.Duration(10 * time.Minute),
			CertificateLife: config.Duration(90 * 24 * time.Hour),

			CertificateGrace: config.Duration(30 * 24 * time.Hour),
		},
		Telemetry: TelemetryConfig{Interval: config.Duration(5 * time.Minute), Days: 400, MaxBytes: 1 << 30},
		Log:       LogConfig{Level: "info", Format: "text"},
	}
}

// Validate reports the first setting that cannot be, by its key.
func (c Config) Validate() error {
	if c.DataDir == "" {
		return fmt.Errorf("data_dir: is missing; name a directory that only pallasd can read")
	}
	for _, l := range []struct{ key, value string }{{"http.listen", c.HTTP.Listen}, {"mqtt.listen", c.MQTT.Listen}} {
		if _, _, err := net.SplitHostPort(l.value); err != nil {
			return fmt.Errorf("%s: %q is not host:port", l.key, l.value)
		}
	}
	if c.HTTP.URL != "" {
		u, err := url.Parse(c.HTTP.URL)
		if err != nil || u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
			return fmt.Errorf("http.url: %q is not of the form https://host[:port]", c.HTTP.URL)
		}
	}
	if c.MQTT.Address != "" {
		if _, _, err := net.SplitHostPort(c.MQTT.Address); err != nil {
			return fmt.Errorf("mqtt.address: %q is not host:port", c.MQTT.Address)
		}
	}
	for _, r := range []struct {
		key        string
		value      config.Duration
		least, max time.Duration
	}{
		{"events.sync", c.Events.Sync, 0, time.Minute},
		{"http.session_idle", c.HTTP.SessionIdle, time.Minute, 30 * 24 * time.Hour},
		{"http.session_life", c.HTTP.SessionLife, time.Minute, 365 * 24 * time.Hour},
		{"devices.grace", c.Devices.Grace, 0, 24 * time.Hour},
		{"devices.keep_alive", c.Devices.KeepAlive, time.Second, time.Hour},
		{"devices.reconcile", c.Devices.Reconcile, time.Second, 24 * time.Hour},
		{"devices.certificate_life", c.Devices.CertificateLife, time.Hour, 825 * 24 * time.Hour},
		{"devices.certificate_grace", c.Devices.CertificateGrace, 0, 3660 * 24 * time.Hour},
	} {
		if d := time.Duration(r.value); d < r.least || d > r.max {
			return fmt.Errorf("%s: %v is out of range, want %v to %v", r.key, d, r.least, r.max)
		}
	}
	switch {
	case c.HTTP.Rate < 0 || c.HTTP.Rate > 1e6 || (c.HTTP.Rate > 0 && c.HTTP.Rate < 0.5):
		return fmt.Errorf("http.rate: %g is out of range, want 0.5 to 1000000, or 0 for no limit", c.HTTP.Rate)
	case c.Events.MaxBytes < 0:
		return fmt.Errorf("events.max_bytes: %d is negative", c.Events.MaxBytes)
	case c.Events.MinFree < 16<<20:
		return fmt.Errorf("events.min_free: %d is too little, want at least %d (16 MiB): what is under way needs it", c.Events.MinFree, 16<<20)
	case c.Devices.Window < 1 || c.Devices.Window > 1<<16:
		return fmt.Errorf("devices.window: %d is out of range, want 1 to 65536", c.Devices.Window)
	}
	if err := c.OIDC.validate(); err != nil {
		return err
	}
	if err := c.Memory.validate(); err != nil {
		return err
	}
	if err := c.Debug.validate(); err != nil {
		return err
	}
	if err := c.Telemetry.validate(); err != nil {
		return err
	}
	if _, err := c.Log.level(); err != nil {
		return err
	}
	if c.Log.Format != "text" && c.Log.Format != "json" {
		return fmt.Errorf("log.format: %q is not text or json", c.Log.Format)
	}
	return nil
}

func (c LogConfig) level() (l slog.Level, err error) {
	if err := l.UnmarshalText([]byte(c.Level)); err != nil {
		return 0, fmt.Errorf("log.level: %q is not debug, info, warn or error", c.Level)
	}
	return l, nil
}
