package identity

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"pallas/mqttgw/wire"
)

const fileRetired = "retired.json"

// Retired is what a data folder keeps of a device that was retired: enough not
// to make a new one of it with the join string that it was made with.
type Retired struct {
	Device string `json:"device"`
	// Manager is the one that retired it, JoinToken the public id of the token
	// that it had enrolled with.
	Manager   string    `json:"manager"`
	JoinToken string    `json:"joinToken,omitempty"`
	At        time.Time `json:"at"`
}

// IsOf says whether the device had enrolled with the join string, or with
// another one of the same token.
func (r *Retired) IsOf(j wire.Join) bool { return r.JoinToken == tokenID(j) }

// RetiredError says that the device was retired and that nothing but a new join
// string makes a device of it again.
type RetiredError struct{ Retired }

func (e *RetiredError) Error() string {
	return fmt.Sprintf("device %s was retired by %s at %s and its identity is erased: a new join string makes a new device of this host",
		e.Device, e.Manager, e.At.UTC().Format(time.RFC3339))
}

// LoadRetired returns what the folder says of a retired device, nil when there
// is none or when another device has taken its place.
func LoadRetired(dir string) (*Retired, error) {
	b, err := readFile(dir, fileRetired)
	if err != nil || b == nil {
		return nil, err
	}
	var r Retired
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("%s is damaged: remove it", filepath.Join(dir, fileRetired))
	}
	id, err := Load(dir)
	if err != nil {
		return nil, err
	}
	if id.Device != "" && id.Device != r.Device {
		return nil, nil
	}
	return &r, nil
}

// Retire notes the retirement and removes the id, the key and the certificate.
// It can be repeated.
func Retire(dir string, r Retired) error {
	b, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return fmt.Errorf("note the retirement: %w", err)
	}
	if err := writeFile(dir, fileRetired, b); err != nil {
		return err
	}
	// The id goes last: until then the folder is known to be the retired device's.
	for _, name := range []string{fileEnrolment, fileKey, fileID} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("erase the identity: %w", err)
		}
	}
	return nil
}
