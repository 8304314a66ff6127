package mqttgw

import (
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"pallas/commands"
	"pallas/events"
	"pallas/mqttgw/wire"
)

// What the door sees of a device that is not what it says it is leads to a
// quarantine. Deciding takes the log, which nobody at the door may wait for:
// what is suspected stands in a line of its own, and what there is no room for
// is left out. Whoever goes on misbehaving is seen again.
const (
	maxSuspicions = 1024
	// suspicionTries is how often a quarantine is asked for while the log does not
	// answer, suspicionPause the time between.
	suspicionTries = 5
	suspicionPause = time.Second
)

// suspicion is something to put a device into quarantine for, if it is so.
type suspicion struct {
	command commands.QuarantineDevice
	// keyHash is the key of the certificate that was shown. What was done with one
	// that is not the device's any more is not the device's fault.
	keyHash string
	source  string // the address that it came from
}

// suspect has somebody look after a suspicion. It never waits.
func (g *Gateway) suspect(s suspicion) {
	select {
	case g.suspicions <- s:
	default:
		g.broker.refuse("suspicion")
	}
}

// lookAfterSuspicions works until ctx is done.
func (g *Gateway) lookAfterSuspicions(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-g.suspicions:
			g.lookAfter(ctx, s)
		}
	}
}

func (g *Gateway) lookAfter(ctx context.Context, s suspicion) {
	id := s.command.Device
	for try := 1; ; try++ {
		changed, err := g.quarantine(ctx, s)
		switch {
		case ctx.Err() != nil:
			return
		case commands.KindOf(err) != "": // unknown or retired: it gets nothing anyway
			return
		case err == nil:
			if changed {
				g.log.Warn("device quarantined", "device", id, "cause", s.command.Cause, "reason", s.command.Reason, "address", s.source)
			}
			return
		case try == suspicionTries:
			g.log.Error("device not quarantined", "device", id, "cause", s.command.Cause, "err", err)
			return
		}
		t := time.NewTimer(suspicionPause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
		}
	}
}

// quarantine puts the device into quarantine, if the suspicion holds. Whoever
// follows the log closes its connections.
func (g *Gateway) quarantine(ctx context.Context, s suspicion) (changed bool, err error) {
	c := s.command
	device, err := g.commands.Device(ctx, c.Device)
	if err != nil {
		return false, err
	}
	if s.keyHash != "" && s.keyHash != device.KeyHash {
		return false, nil
	}
	if c.Other != "" {
		// An id that nobody has harms nobody: it may be a mistake.
		switch _, err := g.commands.Device(ctx, c.Other); {
		case commands.KindOf(err) == commands.KindNotFound:
			return false, nil
		case err != nil:
			return false, err
		}
	}
	res, err := g.commands.Do(ctx, c, commands.Meta{Actor: events.SystemActor("gateway"), Source: s.source, Time: g.now()})
	return res.Changed, err
}

// suspectClientID looks after a certificate of one device that came with the
// client id of another.
func (g *Gateway) suspectClientID(id events.DeviceID, other, keyHash, serial, source string) {
	o, err := events.ParseDeviceID(other)
	if err != nil || o == id {
		return
	}
	g.suspect(suspicion{keyHash: keyHash, source: source, command: commands.QuarantineDevice{
		Device: id, Cause: events.QuarantineClientID, Other: o, Serial: serial,
		Reason: "its certificate was used with the client id of another device",
	}})
}

// suspectKey looks after a certificate that a former key of the device has.
func (g *Gateway) suspectKey(d commands.Device, keyHash, serial, source string) {
	if !slices.Contains(d.FormerKeys, keyHash) {
		return
	}
	g.suspect(suspicion{source: source, command: commands.QuarantineDevice{
		Device: d.ID, Cause: events.QuarantineClone, KeyHash: keyHash, Serial: serial,
		Reason: "the key that the device had before is still in use",
	}})
}

// maxInstances is how many running programs of a device are remembered.
const maxInstances = 4

// instance notes which running program greeted, and says whether it is one that
// another has followed: then both are running, because a program that was
// started again has another name. It is the worker's, for the time that the
// device has a session; two programs of one device take it from each other and
// so never let it end.
func (s *session) instance(name []byte) (again bool) {
	if len(name) != wire.InstanceSize {
		return false // an older device
	}
	id := hex.EncodeToString(name)
	n := len(s.instances)
	if n > 0 && s.instances[n-1] == id {
		return false
	}
	again = slices.Contains(s.instances, id)
	if s.instances = append(s.instances, id); len(s.instances) > maxInstances {
		s.instances = s.instances[1:]
	}
	return again
}

// suspectTwins looks after two programs that take turns in being the device.
func (sh *shard) suspectTwins(s *session) {
	_, _, address := sh.state(s)
	sh.g.suspect(suspicion{source: address, command: commands.QuarantineDevice{
		Device: s.id, Cause: events.QuarantineClone, Instances: slices.Clone(s.instances),
		Reason: "two running agents have the device's key and take turns: " + strings.Join(s.instances, ", "),
	}})
}

// suspectFlood looks after a device that was punished again and again.
func (g *Gateway) suspectFlood(id events.DeviceID, why string) {
	g.suspect(suspicion{command: commands.QuarantineDevice{
		Device: id, Cause: events.QuarantineFlood, Reason: fmt.Sprintf("kept out %d times within an hour: %s", floodPenalties, why),
	}})
}
