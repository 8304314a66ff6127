package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/token"
)

// Error says what is wrong with a file, in one line.
type Error struct {
	Path    string
	Line    int // 0 when it concerns the whole file
	Message string
}

func (e *Error) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("%s: %s", e.Path, e.Message)
	}
	return fmt.Sprintf("%s:%d: %s", e.Path, e.Line, e.Message)
}

// Load decodes the YAML file into v, which holds the defaults. An unknown key,
// a duplicate key or a value of the wrong type is an [*Error].
func Load(path string, v any) error {
	f, err := os.Open(path)
	if err != nil {
		return &Error{Path: path, Message: reason(err)}
	}
	defer f.Close() //nolint:errcheck // read only
	return Decode(path, f, v)
}

// Decode is Load from a reader; path is for messages.
func Decode(path string, r io.Reader, v any) error {
	err := yaml.NewDecoder(r, yaml.Strict()).Decode(v)
	if err == nil || errors.Is(err, io.EOF) {
		return nil
	}
	var ye yaml.Error
	if !errors.As(err, &ye) {
		return &Error{Path: path, Message: reason(err)}
	}
	e := &Error{Path: path, Message: ye.GetMessage()}
	t := ye.GetToken()
	if t != nil && t.Position != nil {
		e.Line = t.Position.Line
	}
	var te *yaml.TypeError
	if errors.As(err, &te) && t != nil {
		e.Message = fmt.Sprintf("%s%q is not of the type that is wanted, %s", key(t), t.Value, te.DstType)
	}
	return e
}

// key returns "name: " of the key whose value the token is, if it is one.
func key(t *token.Token) string {
	if c := t.Prev; c != nil && c.Type == token.MappingValueType && c.Prev != nil {
		return c.Prev.Value + ": "
	}
	return ""
}

func reason(err error) string {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err.Error()
	}
	return err.Error()
}

// Duration is a time.Duration written as "90s", "10m" or "24h".
type Duration time.Duration

// UnmarshalYAML reads the text form.
func (d *Duration) UnmarshalYAML(b []byte) error {
	var s string
	if err := yaml.Unmarshal(b, &s); err != nil {
		return err
	}
	v, err := time.ParseDuration(s)
	if err != nil || v < 0 {
		return fmt.Errorf("%q is not a duration: write for example 90s, 10m or 24h", s)
	}
	*d = Duration(v)
	return nil
}

// MarshalYAML writes the text form.
func (d Duration) MarshalYAML() ([]byte, error) { return []byte(d.String()), nil }

// String returns the text form.
func (d Duration) String() string { return time.Duration(d).String() }
