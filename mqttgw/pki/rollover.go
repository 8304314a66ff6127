package pki

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// A CA is replaced in three steps, and between them devices get new anchors and
// certificates: [Prepare] makes the next CA, [Switch] lets it sign, [Retire]
// ends the former one. The files of the two CAs stay where they are until the
// end; which of them does what is in one small file, whose replacement is the
// step. So whatever a step dies in, it has happened or it has not.

// Phase is how far the replacement of a CA has come.
type Phase string

// The phases.
const (
	PhaseSteady   Phase = "steady"   // there is one CA
	PhasePrepared Phase = "prepared" // there is a next one, which devices get to know
	PhaseSwitched Phase = "switched" // the next one signs, both are trusted
	// phaseRetiring is steady but for the names of the files: those of the next
	// CA are on their way to ca.crt and ca.key.
	phaseRetiring Phase = "retiring"
)

const (
	rolloverFile = "rollover.json"
	nextCertFile = "next.crt"
	nextKeyFile  = "next.key"
)

// Errors of the steps.
var (
	// ErrPhase says that a step was asked for that is not the next one.
	ErrPhase = errors.New("not the next step")
	// ErrBusy says that another command is changing the directory.
	ErrBusy = errors.New("another command is changing the CA")
)

type rollover struct {
	Phase Phase     `json:"phase"`
	Since time.Time `json:"since"`
}

func readRollover(dir string) (rollover, error) {
	b, err := os.ReadFile(filepath.Join(dir, rolloverFile))
	if errors.Is(err, fs.ErrNotExist) {
		return rollover{Phase: PhaseSteady}, nil
	}
	if err != nil {
		return rollover{}, err
	}
	var r rollover
	if err := json.Unmarshal(b, &r); err != nil {
		return rollover{}, fmt.Errorf("%s is %w: %w", rolloverFile, ErrDamaged, err)
	}
	switch r.Phase {
	case PhasePrepared, PhaseSwitched, phaseRetiring:
		return r, nil
	case PhaseSteady:
	}
	return rollover{}, fmt.Errorf("%s is %w: phase %q", rolloverFile, ErrDamaged, clip(string(r.Phase)))
}

// Prepare makes the next CA of a directory, which is only trusted for now.
func Prepare(dir string, now time.Time) (*State, error) {
	return step(dir, "prepare the next CA", PhaseSteady, func() error {
		// What a step left that ended too early nobody has seen.
		for _, f := range []string{nextCertFile, nextKeyFile} {
			if err := os.Remove(filepath.Join(dir, f)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		// Another name than that of the one before, so that people can tell them
		// apart.
		name := "Pallas device CA of " + now.UTC().Format(time.DateTime)
		if _, err := createAs(dir, nextCertFile, nextKeyFile, now, name); err != nil {
			return err
		}
		return writeRollover(dir, rollover{PhasePrepared, now})
	})
}

// Switch lets the next CA sign the certificates of devices. The former one is
// trusted as before.
func Switch(dir string, now time.Time) (*State, error) {
	return step(dir, "switch to the next CA", PhasePrepared, func() error {
		return writeRollover(dir, rollover{PhaseSwitched, now})
	})
}

// Retire ends the former CA: its key is gone, and who trusts it alone, or has a
// certificate of it, stays outside.
func Retire(dir string, now time.Time) (*State, error) {
	return step(dir, "retire the former CA", PhaseSwitched, func() error {
		if err := writeRollover(dir, rollover{phaseRetiring, now}); err != nil {
			return err
		}
		return finish(dir)
	})
}

// step does one step under the lock. One that was left half-done is finished
// before.
func step(dir, doing string, from Phase, do func() error) (*State, error) {
	s, err := func() (*State, error) {
		unlock, err := lockDir(dir, syscall.LOCK_EX|syscall.LOCK_NB)
		if err != nil {
			return nil, err
		}
		defer unlock()
		r, err := readRollover(dir)
		if err != nil {
			return nil, err
		}
		if r.Phase == phaseRetiring {
			if err := finish(dir); err != nil {
				return nil, err
			}
			r.Phase = PhaseSteady
		}
		if r.Phase != from {
			return nil, fmt.Errorf("%w: the phase is %s, want %s", ErrPhase, r.Phase, from)
		}
		if err := do(); err != nil {
			return nil, err
		}
		return loadState(dir)
	}()
	if err != nil {
		return nil, fmt.Errorf("%s in %s: %w", doing, dir, err)
	}
	return s, nil
}

// finish moves the files of the next CA to their place.
func finish(dir string) error {
	for from, to := range map[string]string{nextKeyFile: KeyFile, nextCertFile: CertFile} {
		if err := os.Rename(filepath.Join(dir, from), filepath.Join(dir, to)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := syncDir(dir); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(dir, rolloverFile)); err != nil {
		return err
	}
	return syncDir(dir)
}

// writeRollover replaces the file whole.
func writeRollover(dir string, r rollover) error {
	r.Since = r.Since.UTC().Truncate(time.Second)
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "."+rolloverFile+"-*")
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, rolloverFile))
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
