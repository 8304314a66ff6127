package mqttgw

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"

	"pallas/commands"
	"pallas/events"
	"pallas/mqttgw/pki"
	"pallas/mqttgw/wire"
)

// The broker asks here about every connection that is not one of this
// process's own, before it takes over a session or reads another packet. The
// answer is a signed user with an account, permissions and an end.

const (
	calloutSubject = "$SYS.REQ.USER.AUTH"
	calloutWorkers = 4
	// calloutQueue is how many connects may wait for an answer.
	calloutQueue = 16384
)

// Reasons for turning a connection away. A device learns none of them: it sees
// "not authorized" and tries again later.
const (
	reasonRequest     = "bad_request"
	reasonTransport   = "not_mqtt_over_tls"
	reasonCertificate = "certificate_missing"
	reasonExpired     = "certificate_expired"
	reasonName        = "certificate_name"
	reasonClientID    = "client_id"
	reasonUnknown     = "unknown_device"
	reasonKey         = "unknown_key"
	reasonRetired     = "retired"
	reasonRejected    = "rejected"
	reasonQuarantined = "quarantined"
	reasonPenalty     = "penalty"
	reasonUnavailable = "unavailable"
)

// refusedError is a decision against a connection.
type refusedError struct {
	reason string
	err    error // detail for the log, may be nil
}

func (e *refusedError) Error() string {
	if e.err == nil {
		return e.reason
	}
	return fmt.Sprintf("%s: %v", e.reason, e.err)
}

func (e *refusedError) Unwrap() error { return e.err }

func refuse(reason string, format string, args ...any) error {
	return &refusedError{reason, fmt.Errorf(format, args...)}
}

// answerCallouts serves requests until the channel is closed, and returns when
// all are answered.
func (g *Gateway) answerCallouts(ctx context.Context, requests <-chan *nats.Msg) {
	var wg sync.WaitGroup
	for range calloutWorkers {
		wg.Go(func() {
			for m := range requests {
				g.answerCallout(ctx, m)
			}
		})
	}
	wg.Wait()
}

func (g *Gateway) answerCallout(ctx context.Context, m *nats.Msg) {
	req, err := jwt.DecodeAuthorizationRequestClaims(string(m.Data))
	if err != nil {
		g.broker.refuse(reasonRequest)
		g.log.Warn("unreadable authorization request", "err", err)
		return
	}
	now := g.now()
	if req.Expires != 0 && time.Now().Unix() > req.Expires { // by the broker's clock
		// Nobody waits for the answer any more.
		g.broker.refuse("late")
		return
	}
	defer g.broker.answered(req.ClientInformation.ID)
	req.ClientInformation.Host = g.broker.address(req.ClientInformation.ID, req.ClientInformation.Host)
	resp := jwt.NewAuthorizationResponseClaims(req.UserNkey)
	resp.Audience = req.Server.ID
	user, err := g.authorize(ctx, req, now)
	if err == nil {
		resp.Jwt, err = user.Encode(g.broker.issuer)
	}
	if err != nil {
		var r *refusedError
		if !errors.As(err, &r) {
			r = &refusedError{reasonUnavailable, err}
		}
		g.broker.refuse(r.reason)
		level := slog.LevelInfo
		if r.reason == reasonPenalty { // the log has the penalty
			level = slog.LevelDebug
		}
		g.log.Log(ctx, level, "device refused", "reason", r.reason, "detail", r.err,
			"client", clip(req.ClientInformation.MQTT), "address", req.ClientInformation.Host)
		resp.Error = r.reason
	}
	token, err := resp.Encode(g.broker.issuer)
	if err != nil {
		g.log.Error("sign authorization", "err", err)
		return
	}
	if err := m.Respond([]byte(token)); err != nil && ctx.Err() == nil {
		g.log.Warn("answer authorization request", "err", err)
	}
}

// authorize decides about one connection. The error is a *refusedError, or
// says that nobody could decide.
func (g *Gateway) authorize(ctx context.Context, req *jwt.AuthorizationRequestClaims, now time.Time) (*jwt.UserClaims, error) {
	id, cert, err := identify(req, now)
	if err != nil {
		if cert != nil {
			g.suspectClientID(id, req.ClientInformation.MQTT, pki.KeyHash(cert.PublicKey), pki.SerialHex(cert), req.ClientInformation.Host)
		}
		return nil, err
	}
	if wait := g.penalties.left(id, now); wait > 0 {
		return nil, refuse(reasonPenalty, "device is kept out for another %v", wait.Round(time.Second))
	}
	// The connection is noted before the device is looked up: whoever retires
	// the device in between finds the connection and closes it.
	conn := req.ClientInformation.ID
	g.noteConn(id, conn, req.ClientInformation.Host)
	device, err := g.mayConnect(ctx, id, cert, req.ClientInformation.Host)
	if err != nil {
		g.dropConn(id, conn)
		return nil, err
	}
	if seen, ok := g.broker.seen(conn); ok {
		g.broker.meter.adopt(seen, conn, id)
	}
	user := jwt.NewUserClaims(req.UserNkey)
	user.Audience = accountDevices
	user.Name = string(id)
	user.Expires = cert.NotAfter.Unix()
	user.AllowedConnectionTypes.Add(jwt.ConnectionTypeMqtt)
	user.Pub.Allow.Add(wire.Subject(wire.UpTopic(string(id))))
	if device.Trust == commands.TrustApproved { // one that waits may say hello, and what else it says there is dropped
		user.Pub.Allow.Add(wire.Subject(wire.TelemetryTopic(string(id))))
	}
	user.Sub.Allow.Add(wire.Subject(wire.DownTopic(string(id))))
	return user, nil
}

// identify returns the device that the request's certificate and client id
// agree on. When they do not, it returns the certificate and its device with the
// error.
func identify(req *jwt.AuthorizationRequestClaims, now time.Time) (events.DeviceID, *x509.Certificate, error) {
	if req.ClientInformation.Type != "mqtt" || req.TLS == nil {
		return "", nil, refuse(reasonTransport, "connection of type %q", clip(req.ClientInformation.Type))
	}
	// Certificates that did not verify are in another field.
	chains := req.TLS.VerifiedChains
	if len(chains) == 0 || len(chains[0]) == 0 {
		return "", nil, refuse(reasonCertificate, "no verified certificate")
	}
	block, _ := pem.Decode([]byte(chains[0][0]))
	if block == nil {
		return "", nil, refuse(reasonCertificate, "certificate is not PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return "", nil, refuse(reasonCertificate, "parse certificate: %w", err)
	}
	// The handshake checked this; a resumed session may be older.
	if now.After(cert.NotAfter) {
		return "", nil, refuse(reasonExpired, "certificate expired at %v", cert.NotAfter)
	}
	id, err := events.ParseDeviceID(cert.Subject.CommonName)
	if err != nil {
		return "", nil, refuse(reasonName, "%w", err)
	}
	if req.ClientInformation.MQTT != string(id) {
		return id, cert, refuse(reasonClientID, "client id %q with the certificate of %s", clip(req.ClientInformation.MQTT), id)
	}
	return id, cert, nil
}

// mayConnect looks the device up in the log.
func (g *Gateway) mayConnect(ctx context.Context, id events.DeviceID, cert *x509.Certificate, source string) (commands.Device, error) {
	ctx, cancel := context.WithTimeout(ctx, authTimeout/3)
	defer cancel()
	device, err := g.commands.Device(ctx, id)
	var ce *commands.Error
	switch {
	case errors.As(err, &ce) && ce.Kind == commands.KindNotFound:
		return device, refuse(reasonUnknown, "%w", err)
	case err != nil:
		return device, fmt.Errorf("look up device %s: %w", id, err)
	}
	if reason := notAdmitted(device.Trust); reason != "" {
		return device, refuse(reason, "device %s is %s", id, device.Trust)
	}
	// Every certificate for the device's key is the device's, also one whose
	// issue is not in the log because the answer to the device came first.
	if key := pki.KeyHash(cert.PublicKey); key == "" || key != device.KeyHash {
		g.suspectKey(device, key, pki.SerialHex(cert), source)
		return device, refuse(reasonKey, "certificate %s is for key %s, not the device's", pki.SerialHex(cert), key)
	}
	return device, nil
}

// notAdmitted is why a device of this trust may have no session, "" when it
// may.
func notAdmitted(t commands.Trust) string {
	switch t {
	case commands.TrustPending, commands.TrustApproved:
		return ""
	case commands.TrustRejected:
		return reasonRejected
	case commands.TrustQuarantined:
		return reasonQuarantined
	case commands.TrustRetired:
	}
	return reasonRetired
}

// clip bounds text that a stranger chose.
func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}
