package identity

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"pallas/agent/retry"
	"pallas/mqttgw/wire"
)

// Lapsed says whether the certificate has ended, by the manager's clock as far
// as it is known. A device whose clock is dead finds out by the door.
func (k *Keeper) Lapsed() bool { return !k.c.Now().Before(k.Expires()) }

// Recover asks the manager over HTTPS for a certificate, because the door does
// not take the one that the device has, and says whether it got one. The key is
// the proof; if that is not enough, the join string may be. It asks when the
// time for it has come, and does nothing otherwise.
func (k *Keeper) Recover(ctx context.Context) bool {
	k.mu.Lock()
	id, cas, wait := k.id, k.cas, time.Until(k.recoverAt)
	k.mu.Unlock()
	if wait > 0 {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, recoverTimeout)
	defer cancel()
	config := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: cas, Time: k.c.Now}
	e, after, err := k.renewOnce(ctx, id, config)
	var refused *RefusedError
	if errors.As(err, &refused) && k.c.Join != nil {
		k.c.Log.Warn("the manager does not renew this device's certificate; trying the join string", "reason", refused.Reason)
		e, err = k.join(ctx, id)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if err == nil {
		// What the manager says of the time counts before what it issued is
		// judged.
		if !e.Time.IsZero() {
			k.c.Clock(e.Time)
		}
		_, _, err = k.take(e)
	}
	switch {
	case err == nil:
		k.recover.Reset()
		k.recoverAt = time.Time{}
		k.c.Log.Info("certificate renewed", "expires", k.cert.Leaf.NotAfter)
		return true
	case ctx.Err() != nil && errors.Is(context.Cause(ctx), context.Canceled):
		return false
	case errors.As(err, &refused):
		k.c.Log.Error("this device's certificate is not good any more, and the manager does not renew it: put a new join string into join_file and restart the agent",
			"reason", refused.Reason, "status", refused.Status, "expired", k.cert.Leaf.NotAfter)
		k.recoverAt = time.Now().Add(retry.Around(toldPause))
	default:
		pause := max(k.recover.Next(), after)
		k.c.Log.Warn("cannot renew the certificate yet", "error", err, "retry_in", pause.Round(time.Millisecond))
		k.recoverAt = time.Now().Add(pause)
	}
	return false
}

// renewOnce asks once.
func (k *Keeper) renewOnce(ctx context.Context, id Identity, config *tls.Config) (Enrolment, time.Duration, error) {
	e := *id.Enrolment
	u, err := url.Parse(e.Manager)
	if err != nil || u.Hostname() == "" {
		return e, 0, fmt.Errorf("renew: %q is no URL of a manager", e.Manager)
	}
	config.ServerName = u.Hostname()
	csr, err := id.request()
	if err != nil {
		return e, 0, fmt.Errorf("renew: %w", err)
	}
	body, err := json.Marshal(wire.RenewRequest{
		Device: id.Device, CSR: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})),
	})
	if err != nil {
		return e, 0, fmt.Errorf("renew: %w", err)
	}
	r, after, err := post(ctx, httpsClient(config, k.c.DialContext), strings.TrimRight(e.Manager, "/")+wire.RenewPath, body)
	if err != nil {
		return e, after, err
	}
	e.Certificate, e.CA, e.MQTT, e.Time = r.Certificate, r.CA, r.MQTT, r.Time.UTC()
	return e, 0, nil
}

// join enrols with the join string, as a last resort.
func (k *Keeper) join(ctx context.Context, id Identity) (Enrolment, error) {
	name := ""
	if k.c.Name != nil {
		name = k.c.Name(ctx)
	}
	id, err := Enrol(ctx, id, EnrolConfig{
		Dir: k.c.Dir, Join: *k.c.Join, Name: name, Version: k.c.Version, DialContext: k.c.DialContext,
		Now: k.c.Now, Log: k.c.Log, Backoff: retry.Backoff{Base: k.c.Recover, Cap: recoverTimeout},
	})
	if err != nil {
		return Enrolment{}, err
	}
	return *id.Enrolment, nil
}
