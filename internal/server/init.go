package server

import (
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

	"pallas/events/jsstore"
	"pallas/internal/auth"
	"pallas/mqttgw"
	"pallas/mqttgw/pki"
)

// ConfigFile is the name of the configuration in a data directory.
const ConfigFile = "pallasd.yaml"

// AdminUser is the user that the first token stands for.
const AdminUser = "admin"

//go:embed pallasd.yaml.tmpl
var configTemplate string

// ErrInitialised says that a directory already holds a device manager.
var ErrInitialised = errors.New("already holds a device manager")

// Init makes a data directory: the CA, a commented configuration, the empty
// event log, and the token of the first administrator, which it returns and stores as a hash. It
// changes nothing in a directory that is in use: ErrInitialised.
func Init(ctx context.Context, cfg Config, log *slog.Logger) (token string, err error) {
	if err := cfg.Validate(); err != nil {
		return "", err
	}
	// The configuration must mean the same wherever it is read from.
	if cfg.DataDir, err = filepath.Abs(cfg.DataDir); err != nil {
		return "", fmt.Errorf("data directory: %w", err)
	}
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return "", fmt.Errorf("data directory: %w", err)
	}
	unlock, err := lock(cfg.DataDir)
	if err != nil {
		return "", err
	}
	defer unlock()
	path := filepath.Join(cfg.DataDir, ConfigFile)
	for _, p := range []string{path, pkiDir(cfg), brokerDir(cfg)} {
		if _, err := os.Lstat(p); err == nil {
			return "", fmt.Errorf("%s: %w", cfg.DataDir, ErrInitialised)
		}
	}
	text, err := renderConfig(cfg)
	if err != nil {
		return "", err
	}
	if _, err := pki.Create(pkiDir(cfg), time.Now(), "Pallas device CA"); err != nil {
		return "", fmt.Errorf("make the CA: %w", err)
	}
	if token, err = firstRecords(ctx, cfg, log); err != nil {
		return "", err
	}
	// The configuration comes last: with it the directory is complete.
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return "", fmt.Errorf("write the configuration: %w", err)
	}
	return token, nil
}

// firstRecords makes the log and the first credential. Later starts make no log:
// one that is gone must not be taken for an empty one.
func firstRecords(ctx context.Context, cfg Config, log *slog.Logger) (string, error) {
	b, err := mqttgw.NewBroker(mqttgw.BrokerConfig{Dir: brokerDir(cfg), Sync: 0, Log: log})
	if err != nil {
		return "", fmt.Errorf("open the store: %w", err)
	}
	if err := b.Start(ctx); err != nil {
		return "", fmt.Errorf("open the store: %w", err)
	}
	defer b.Shutdown()
	nc, err := b.Conn("init")
	if err != nil {
		return "", err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return "", fmt.Errorf("open the store: %w", err)
	}
	if _, err := jsstore.Open(ctx, jsstore.Config{Conn: nc, MaxBytes: cfg.Events.MaxBytes, Log: log}); err != nil {
		return "", err
	}
	creds, err := auth.Open(ctx, js, 1, nil)
	if err != nil {
		return "", err
	}
	return creds.CreateToken(ctx, AdminUser)
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
