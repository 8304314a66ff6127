package server

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"text/template"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"pallas/commands"
	"pallas/commands/accesshttp"
	"pallas/events/jsstore"
	"pallas/internal/auth"
	"pallas/mqttgw"
	"pallas/mqttgw/pki"
)

// ConfigFile is the name of the configuration in a data directory.
const ConfigFile = "pallasd.yaml"

//go:embed pallasd.yaml.tmpl
var configTemplate string

// ErrInitialised says that a directory already holds a device manager.
var ErrInitialised = errors.New("already holds a device manager")

// FirstAdmin says how the first administrator gets in.
type FirstAdmin struct {
	// Login is what the administrator signs in with; "" means DefaultAdmin.
	Login string
	// Token asks for an API token as well, for programs.
	Token bool
}

// DefaultAdmin is the first administrator's login.
const DefaultAdmin = "admin"

// tokenLife is how long the first administrator's API token is good for.
const tokenLife = commands.MaxTokenLife - time.Minute

// First is how the first administrator gets in. It is shown once.
type First struct {
	Login string
	// Link is the one-time link to set a password with, until Expires.
	Link    string
	Expires time.Time
	// Token is the API token, "" if none was asked for.
	Token string
}

// Init makes a data directory: the CA, a commented configuration, the event log,
// and in it the first administrator, who has no password yet. It changes nothing
// in a directory that is in use: ErrInitialised.
func Init(ctx context.Context, cfg Config, log *slog.Logger, admin FirstAdmin) (First, error) {
	if err := cfg.Validate(); err != nil {
		return First{}, err
	}
	admin.Login = cmp.Or(admin.Login, DefaultAdmin)
	if _, err := auth.FoldLogin(admin.Login); err != nil {
		return First{}, fmt.Errorf("login of the administrator: %w", err)
	}
	// The configuration must mean the same wherever it is read from.
	dir, err := filepath.Abs(cfg.DataDir)
	if err != nil {
		return First{}, fmt.Errorf("data directory: %w", err)
	}
	cfg.DataDir = dir
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return First{}, fmt.Errorf("data directory: %w", err)
	}
	unlock, err := lock(cfg.DataDir)
	if err != nil {
		return First{}, err
	}
	defer unlock()
	path := filepath.Join(cfg.DataDir, ConfigFile)
	for _, p := range []string{path, pkiDir(cfg), brokerDir(cfg)} {
		if _, err := os.Lstat(p); err == nil {
			return First{}, fmt.Errorf("%s: %w", cfg.DataDir, ErrInitialised)
		}
	}
	text, err := renderConfig(cfg)
	if err != nil {
		return First{}, err
	}
	if _, err := pki.Create(pkiDir(cfg), time.Now(), "Pallas device CA"); err != nil {
		return First{}, fmt.Errorf("make the CA: %w", err)
	}
	var first First
	if err := withStore(ctx, cfg, log, false, func(js jetstream.JetStream, a admins) error {
		if _, err := auth.Open(ctx, js, 1, nil); err != nil {
			return err
		}
		first, err = a.create(ctx, admin)
		return err
	}); err != nil {
		return First{}, err
	}
	// The configuration comes last: with it the directory is complete.
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return First{}, fmt.Errorf("write the configuration: %w", err)
	}
	return first, nil
}

// withStore opens the log and the store of people of a manager that does not
// run, for as long as f takes. Only Init makes a log: one that is gone must not
// be taken for an empty one.
func withStore(ctx context.Context, cfg Config, log *slog.Logger, mustExist bool, f func(jetstream.JetStream, admins) error) error {
	b, err := mqttgw.NewBroker(mqttgw.BrokerConfig{Dir: brokerDir(cfg), Sync: 0, Log: log})
	if err != nil {
		return fmt.Errorf("open the store: %w", err)
	}
	if err := b.Start(ctx); err != nil {
		return fmt.Errorf("open the store: %w", err)
	}
	defer b.Shutdown()
	nc, err := b.Conn("local")
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return fmt.Errorf("open the store: %w", err)
	}
	store, err := jsstore.Open(ctx, jsstore.Config{Conn: nc, MaxBytes: cfg.Events.MaxBytes, MustExist: mustExist, Log: log})
	if err != nil {
		return err
	}
	people, err := auth.OpenPeople(ctx, js, 1, nil, nil)
	if err != nil {
		return err
	}
	dispatcher, err := commands.New(commands.Config{Store: store, Log: log})
	if err != nil {
		return err
	}
	url := strings.TrimSuffix(cfg.HTTP.URL, "/")
	if url == "" {
		hostport, err := reachable(cfg.HTTP.Listen, "")
		if err != nil {
			return err
		}
		url = "https://" + hostport
	}
	access, err := accesshttp.New(accesshttp.Config{Commands: dispatcher, People: people, URL: url, Log: log})
	if err != nil {
		return err
	}
	return f(js, admins{dispatcher, people, access})
}

func renderConfig(cfg Config) ([]byte, error) {
	t, err := template.New(ConfigFile).Parse(configTemplate)
	if err != nil {
		return nil, fmt.Errorf("configuration template: %w", err)
	}
	var b strings.Builder
	if err := t.Execute(&b, cfg); err != nil {
		return nil, fmt.Errorf("configuration template: %w", err)
	}
	return []byte(b.String()), nil
}

func pkiDir(cfg Config) string    { return filepath.Join(cfg.DataDir, "pki") }
func brokerDir(cfg Config) string { return filepath.Join(cfg.DataDir, "nats") }

// CAFile is the path of the CA certificate that the API's and the door's
// certificates chain to.
func CAFile(cfg Config) string { return filepath.Join(pkiDir(cfg), "ca.crt") }
