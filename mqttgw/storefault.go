package mqttgw

import (
	"errors"
	"fmt"
	"strings"
	"sync"
)

// ErrStore says that the broker cannot write its streams any more. It takes no
// write from then on, and answers none either, until it is started again.
var ErrStore = errors.New("the store cannot be written")

// storeFault keeps the first write error of any stream. The server tells of it
// in its log alone, at once: its health check hears of a failed sync only with
// the next write.
type storeFault struct {
	once sync.Once
	done chan struct{} // closed when err is set
	err  error
}

// storeFaults are parts of the lines of the pinned nats-server; a test provokes
// them.
var storeFaults = []string{"ritical write error", "failed to store a msg on stream", "disabling JetStream", "will be DISABLED"}

func (f *storeFault) line(s string) {
	for _, part := range storeFaults {
		if strings.Contains(s, part) {
			f.once.Do(func() {
				f.err = fmt.Errorf("%w: %s", ErrStore, s)
				close(f.done)
			})
			return
		}
	}
}

// Failed is closed when a stream could not be written; Err says why. What was
// appended shortly before may not be on the disk. The way on is to end the
// process: a start reads what the disk holds.
func (b *Broker) Failed() <-chan struct{} { return b.fault.done }

// Err is nil until Failed is closed.
func (b *Broker) Err() error {
	select {
	case <-b.fault.done:
		return b.fault.err
	default:
		return nil
	}
}
