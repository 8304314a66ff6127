package mqttgw

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
)

// serverLog receives nats-server's log lines. The server calls Fatalf and goes
// on: what is done about it is for Start.
//
// What a device did wrong inside MQTT or TLS is known to nobody but the server,
// which only logs it. These lines are recognised here, logged as what they are
// (anybody can cause them: no error of this program) and counted by reason.
type serverLog struct {
	log     *slog.Logger
	fatal   atomic.Pointer[string]
	refused func(reason string)
	fault   *storeFault
	origins *origins
}

// Noticef is the broker's talk about itself, which is detail to an operator.
func (l *serverLog) Noticef(format string, v ...any) { l.log.Debug("broker", "text", text(format, v)) }

func (l *serverLog) Debugf(format string, v ...any) {
	l.log.Debug("broker", "text", l.origins.inLine(text(format, v)))
}

func (l *serverLog) Tracef(format string, v ...any) { l.log.Debug("broker", "text", text(format, v)) }
func (l *serverLog) Warnf(format string, v ...any)  { l.line(slog.LevelWarn, format, v) }
func (l *serverLog) Errorf(format string, v ...any) { l.line(slog.LevelError, format, v) }

// Fatalf keeps the first fatal error.
func (l *serverLog) Fatalf(format string, v ...any) {
	s := text(format, v)
	l.fatal.CompareAndSwap(nil, &s)
}

func (l *serverLog) line(level slog.Level, format string, v []any) {
	s := l.origins.inLine(text(format, v))
	l.fault.line(s)
	switch reason := refusal(s, v); {
	case reason == reasonClosed, reason == reasonBusy:
		l.refused(reason)
		l.log.Debug("device refused", "reason", reason, "text", s)
	case reason != "":
		l.refused(reason)
		l.log.Info("device refused", "reason", reason, "text", s)
	case strings.Contains(s, mqttLine), strings.HasPrefix(s, calloutLine):
		l.log.Info("device connection", "text", s)
	default:
		l.log.Log(context.Background(), level, "broker", "text", s)
	}
}

func text(format string, v []any) string { return fmt.Sprintf(format, v...) }

// Parts of the lines of the pinned nats-server. Tests provoke each of them, so
// that another version with other words is noticed.
const (
	mqttLine    = " - mid:" // "<address> - mid:<number> - …"
	calloutLine = "Auth callout service returned an error"
)

var refusals = []struct{ part, reason string }{
	{"Publish Violation", "publish_denied"},
	{"Subscription Violation", "subscribe_denied"},
	{"maximum payload exceeded", "payload"},
	{"client didn't provide a certificate", "certificate_missing"},
	{"handshake error", "handshake"},
}

// Reasons of connections that came while no gateway ran, or among too many.
const (
	reasonClosed = "closed"
	reasonBusy   = "busy"
)

// refusal names what the line says a device did wrong, or "".
func refusal(line string, args []any) string {
	if !strings.Contains(line, mqttLine) {
		return ""
	}
	for _, a := range args {
		err, ok := a.(error)
		if !ok {
			continue
		}
		var verify *tls.CertificateVerificationError
		var invalid x509.CertificateInvalidError
		var unknown x509.UnknownAuthorityError
		switch {
		case errors.Is(err, errClosedDoor):
			return reasonClosed
		case errors.Is(err, errBusy):
			return reasonBusy
		case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
			return "certificate_expired"
		case errors.As(err, &unknown):
			return "certificate_authority"
		case errors.As(err, &verify):
			return "certificate_invalid"
		}
	}
	for _, r := range refusals {
		if strings.Contains(line, r.part) {
			return r.reason
		}
	}
	return ""
}
