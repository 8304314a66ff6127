package main

import (
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"pallas/agent/hypervisor/esxi"
	"pallas/internal/config"
	"pallas/mqttgw/wire"
)

// Link profiles.
const (
	linkNormal = "normal"
	linkNarrow = "narrow"
)

// settings is the configuration file. sample.yaml explains each key.
type settings struct {
	DataDir  string      `yaml:"data_dir"`
	Join     string      `yaml:"join"`
	JoinFile string      `yaml:"join_file"`
	Host     host        `yaml:"host"`
	Log      logSettings `yaml:"log"`
	Link     string      `yaml:"link"`

	join   string // the join string, "" if none is given
	driver *esxi.Driver
	log    *slog.Logger
}

type host struct {
	URL          string      `yaml:"url"`
	Username     string      `yaml:"username"`
	Password     esxi.Secret `yaml:"password"`
	PasswordFile string      `yaml:"password_file"`
	Thumbprint   string      `yaml:"thumbprint"`
	CAFile       string      `yaml:"ca_file"`
	Insecure     bool        `yaml:"insecure"`
}

type logSettings struct {
	Level  slog.Level `yaml:"level"`
	Format string     `yaml:"format"`
}

//go:embed sample.yaml
var sample []byte

func writeSample(cmd *cobra.Command, path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return usageError{fmt.Errorf("%s is there already; remove it or name another file", path)}
	}
	if err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	_, err = f.Write(sample)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	fmt.Fprintf(cmd.OutOrStdout(), "wrote %s; fill it in, then:\n  pallas-agent doctor --config %[1]s\n  pallas-agent run --config %[1]s\n", path)
	return nil
}

// load reads the configuration and what it points to. What it complains of is
// a [*config.Error].
func load(path string, stderr io.Writer) (*settings, error) {
	s := &settings{Link: linkNormal, Log: logSettings{Format: "text"}}
	if err := config.Load(path, s); err != nil {
		return nil, err
	}
	if err := s.complete(path, stderr); err != nil {
		var ce *config.Error
		if errors.As(err, &ce) {
			return nil, err
		}
		return nil, &config.Error{Path: path, Message: err.Error()}
	}
	return s, nil
}

func (s *settings) complete(path string, stderr io.Writer) error {
	switch s.Log.Format {
	case "text":
		s.log = slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: s.Log.Level}))
	case "json":
		s.log = slog.New(slog.NewJSONHandler(stderr, &slog.HandlerOptions{Level: s.Log.Level}))
	default:
		return fmt.Errorf("log.format: %q is none of text, json", s.Log.Format)
	}
	switch {
	case s.DataDir == "":
		return errors.New("data_dir: missing: the folder where the agent keeps its identity and what is not delivered yet")
	case s.Link != linkNormal && s.Link != linkNarrow:
		return fmt.Errorf("link: %q is none of %s, %s", s.Link, linkNormal, linkNarrow)
	case s.Join != "" && s.JoinFile != "":
		return errors.New("join, join_file: set one of them")
	case s.Host.Password != "" && s.Host.PasswordFile != "":
		return errors.New("host.password, host.password_file: set one of them")
	case s.Host.Password == "" && s.Host.PasswordFile == "":
		return errors.New("host.password_file: missing: a file with the password of host.username and nothing else")
	}
	if s.Join != "" || s.Host.Password != "" {
		if err := private(path); err != nil {
			return fmt.Errorf("the file holds a secret: %w", err)
		}
		if s.Host.Password != "" {
			s.log.Warn("the password is in the configuration file; host.password_file keeps it apart", "file", path)
		}
	}
	password := s.Host.Password
	if s.Host.PasswordFile != "" {
		text, err := secretFile(path, s.Host.PasswordFile)
		if err != nil {
			return fmt.Errorf("host.password_file: %w", err)
		}
		if text == "" {
			return fmt.Errorf("host.password_file: %s is empty", s.Host.PasswordFile)
		}
		password = esxi.Secret(text)
	}
	s.join = s.Join
	if s.JoinFile != "" {
		text, err := secretFile(path, s.JoinFile)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			// It may be removed once the device is enrolled.
		case err != nil:
			return fmt.Errorf("join_file: %w", err)
		}
		s.join = text
	}
	if s.join != "" {
		if _, err := wire.ParseJoin(s.join); err != nil {
			return fmt.Errorf("join: %w", err)
		}
	}
	var ca string
	if s.Host.CAFile != "" {
		ca = beside(path, s.Host.CAFile)
	}
	var err error
	s.driver, err = esxi.New(esxi.Config{
		URL: s.Host.URL, Username: s.Host.Username, Password: password,
		Thumbprint: s.Host.Thumbprint, CAFile: ca, Insecure: s.Host.Insecure, Log: s.log,
	})
	if err != nil {
		return fmt.Errorf("host.%w", err)
	}
	return nil
}

// private demands that a file is its owner's alone.
func private(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("%s may be read by others (mode %04o): chmod 600 %[1]s", path, mode)
	}
	return nil
}

// secretFile reads a file that holds one secret. A path that is not absolute
// is looked for among the credentials that systemd passes (LoadCredential=),
// then beside the configuration.
func secretFile(configPath, path string) (string, error) {
	full := beside(configPath, path)
	credential := false
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); dir != "" && !filepath.IsAbs(path) {
		if c := filepath.Join(dir, path); exists(c) {
			full, credential = c, true // guarded by systemd
		}
	}
	if !credential {
		if err := private(full); err != nil {
			return "", err
		}
	}
	b, err := os.ReadFile(full)
	return strings.TrimRight(string(b), "\r\n"), err
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func beside(configPath, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(filepath.Dir(configPath), path)
}
