package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
)

// secret prints as [redacted]; only the configuration file and the connection
// get its text.
type secret string

func (secret) String() string   { return "[redacted]" }
func (secret) GoString() string { return "[redacted]" }

// configFile is the operator's own configuration.
type configFile struct {
	Current  string    `yaml:"current"`
	Contexts []profile `yaml:"contexts"`
}

// profile is a context: one manager and the operator's token for it.
type profile struct {
	Name   string `yaml:"name"`
	Server string `yaml:"server"`
	CA     string `yaml:"ca,omitempty"` // PEM
	Token  secret `yaml:"token,omitempty"`
	// TokenID is the id of a token that login made, and logout revokes.
	TokenID string `yaml:"token_id,omitempty"`
}

func configPath() (string, error) {
	if path := os.Getenv("PALLAS_CONFIG"); path != "" {
		return path, nil
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", fmt.Errorf("find the configuration file: %w; set PALLAS_CONFIG", err)
	}
	return filepath.Join(dir, "pallas", "config.yaml"), nil
}

// loadConfig reads the configuration; without a file it is empty.
func loadConfig() (configFile, error) {
	var c configFile
	path, err := configPath()
	if err != nil {
		return c, err
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return c, fmt.Errorf("read the configuration: %w", err)
	}
	if err := yaml.UnmarshalWithOptions(b, &c, yaml.DisallowUnknownField()); err != nil {
		// The library's own text quotes the file, token and all.
		return c, fmt.Errorf("read the configuration: %s is not a configuration of this program; mend it or remove it and log in again", path)
	}
	return c, nil
}

// save replaces the file at once, readable for its owner alone.
func (c configFile) save() error {
	path, err := configPath()
	if err != nil {
		return err
	}
	b, err := yaml.Marshal(c)
	if err != nil {
		return fmt.Errorf("encode the configuration: %w", err)
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	f, err := os.CreateTemp(dir, ".config-*") // 0600
	if err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write the configuration: %w", errors.Join(err, os.Remove(f.Name())))
	}
	return nil
}

func (c configFile) find(name string) (profile, bool) {
	i := c.index(name)
	if i < 0 {
		return profile{}, false
	}
	return c.Contexts[i], true
}

func (c configFile) index(name string) int {
	return slices.IndexFunc(c.Contexts, func(p profile) bool { return p.Name == name })
}

// put adds a context or replaces the one of its name, and makes it current.
func (c *configFile) put(p profile) {
	c.Current = p.Name
	if i := c.index(p.Name); i >= 0 {
		c.Contexts[i] = p
		return
	}
	c.Contexts = append(c.Contexts, p)
}

func sameServer(a, b string) bool {
	return strings.EqualFold(strings.TrimSuffix(a, "/"), strings.TrimSuffix(b, "/"))
}
