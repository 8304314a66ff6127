package enroll

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/prometheus/client_golang/prometheus"

	"pallas/commands"
	"pallas/events"
	"pallas/internal/auth"
	"pallas/internal/httpapi"
	"pallas/mqttgw/pki"
	"pallas/mqttgw/renewal"
	"pallas/mqttgw/wire"
)

// TokenVerifier checks the secret half of a join token.
type TokenVerifier interface {
	// VerifyJoin returns nil when the secret is that of the token, and an error
	// that wraps auth.ErrDenied when it is not or there is no such token, both
	// after the same work. Any other error says that it cannot tell.
	VerifyJoin(ctx context.Context, id events.TokenID, secret string) error
}

// Authority signs the certificates of devices.
type Authority interface {
	renewal.Authority
	// CertificatePEM returns what devices are to trust.
	CertificatePEM() []byte
}

// Config says what enrolment works with. All but Life, Now, Limits and
// Registerer are needed to serve; none is to describe the operation.
type Config struct {
	Commands *commands.Dispatcher
	CA       Authority
	Tokens   TokenVerifier
	// MQTT returns the host:port under which devices reach the device door.
	MQTT func() string
	// Life of a device's certificate; 0 means pki.DeviceLife.
	Life time.Duration
	// Now is the clock; nil means time.Now.
	Now    func() time.Time
	Limits Limits
	// Renewals gives devices certificates that have none that is good any more;
	// nil means that nobody does.
	Renewals *renewal.Service
	Log      *slog.Logger
	// Registerer takes the counter; may be nil.
	Registerer prometheus.Registerer
}

// Register adds the operation to an API. It panics if the registerer already
// has its counter.
func Register(api huma.API, cfg Config) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &service{
		cfg: cfg, limits: newLimiter(cfg.Limits), alarms: newAlarms(cfg.Limits.Sources),
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pallas_enrolments_total", Help: "Requests for enrolment by what came of them.",
		}, []string{"outcome"}),
	}
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(s.total)
	}
	huma.Register(api, huma.Operation{
		OperationID: "enroll-device",
		Method:      http.MethodPost,
		Path:        wire.EnrollPath,
		Summary:     "Enrol a device",
		Description: "For agents: exchanges a join token and a certificate request for a certificate. " +
			"The same device with the same key and token may ask again and gets another certificate without taking another use of the token. " +
			"A known device with another key is put into quarantine, and answered 409 with the code clone until a person has decided which key is the device's; then it may ask again.",
		Tags:     []string{"devices"},
		Security: []map[string][]string{}, // public: the token is in the body
		Errors:   []int{http.StatusUnauthorized, http.StatusForbidden, http.StatusConflict, http.StatusTooManyRequests},
	}, s.enroll)
	registerRenew(api, s)
}

type input struct {
	Body wire.EnrollRequest
}

type output struct {
	Body wire.EnrollResponse
}

type service struct {
	cfg    Config
	limits *limiter
	alarms *alarms
	total  *prometheus.CounterVec
}

// refusal is an answer that is not a certificate.
type refusal struct {
	outcome string // for the counter
	reason  string // for the log, never for the device
	answer  error
}

func (s *service) enroll(ctx context.Context, in *input) (*output, error) {
	now := s.cfg.Now().UTC()
	source := httpapi.RequestOf(ctx).Source
	if wait := s.limits.wait(source, now); wait > 0 {
		s.total.WithLabelValues("limited").Inc()
		s.cfg.Log.WarnContext(ctx, "enrolment refused", "reason", "too many requests", "source", source)
		return nil, tooMany(wait)
	}
	// A device that hangs up must not leave a use taken and no device.
	ctx, cancel := httpapi.Unconditional(ctx, 30*time.Second)
	defer cancel()
	resp, device, refused := s.decide(ctx, in.Body, now)
	if refused != nil {
		if refused.outcome == "error" { // ours, not the device's
			s.limits.served(source, now)
		} else {
			s.limits.failed(source, now)
			s.raise(ctx, tokenOf(in.Body.Token).id, refused, now)
		}
		s.total.WithLabelValues(refused.outcome).Inc()
		s.cfg.Log.WarnContext(ctx, "enrolment refused", "reason", refused.reason, "source", source,
			"device", device, "token", tokenOf(in.Body.Token).id)
		return nil, refused.answer
	}
	s.limits.served(source, now)
	s.total.WithLabelValues("enrolled").Inc()
	if s.cfg.Renewals != nil {
		s.cfg.Renewals.Issued(events.CertificateEnrol)
	}
	s.cfg.Log.InfoContext(ctx, "device enrolled", "device", device, "token", tokenOf(in.Body.Token).id, "source", source)
	return &output{Body: resp}, nil
}

// raise writes down that attempts are limited for a while because too many named
// a token that does not open. Failing to is no reason to answer otherwise.
func (s *service) raise(ctx context.Context, token events.TokenID, r *refusal, now time.Time) {
	request := httpapi.RequestOf(ctx)
	if r.outcome == "denied" {
		s.alarms.failed(request.Source)
	}
	ofSource, ofAll := s.limits.exhausted(request.Source, now)
	c := commands.RefuseJoins{Token: token, Limit: "all"}
	if ofSource {
		c.Limit = "source"
	}
	if !ofSource && !ofAll {
		return
	}
	if c.Failures = s.alarms.due(request.Source, ofSource, now); c.Failures == 0 {
		return
	}
	// Whoever guesses chooses the ids that he names: they must not become
	// aggregates.
	_, err := s.cfg.Commands.JoinToken(ctx, c.Token)
	if commands.KindOf(err) == commands.KindNotFound {
		c.Token, err = events.NoToken, nil
	}
	if err == nil {
		_, err = s.cfg.Commands.Do(ctx, c, commands.Meta{
			Actor: events.SystemActor("enrolment"), Source: request.Source, Traceparent: request.Traceparent, Time: now,
		})
	}
	if err != nil {
		s.cfg.Log.ErrorContext(ctx, "refused enrolments not written down", "source", request.Source, "failures", c.Failures, "error", err)
	}
}

// decide checks everything, writes, and returns the answer. The device is ""
// when the request names none.
func (s *service) decide(ctx context.Context, req wire.EnrollRequest, now time.Time) (wire.EnrollResponse, events.DeviceID, *refusal) {
	none := wire.EnrollResponse{}
	device, err := events.ParseDeviceID(req.Device)
	if err != nil {
		return none, "", invalid("body.device", err)
	}
	csr, err := pki.ParseCSR([]byte(req.CSR))
	if err != nil {
		return none, device, invalid("body.csr", err)
	}
	known, err := s.cfg.Commands.Device(ctx, device)
	if err != nil && commands.KindOf(err) != commands.KindNotFound {
		return none, device, failed(ctx, err)
	}
	token, refused := s.token(ctx, tokenOf(req.Token), known, device, now)
	if refused != nil {
		return none, device, refused
	}
	certPEM, cert, err := s.cfg.CA.IssueDevice(csr, string(device), now, s.cfg.Life)
	switch {
	case errors.Is(err, pki.ErrCSR):
		return none, device, invalid("body.csr", err)
	case err != nil:
		return none, device, failed(ctx, err)
	}

	register := commands.RegisterDevice{
		Device: device, Name: token.DeviceName(device, req.Name, token.MaxUses), Token: token.ID, AutoApprove: token.AutoApprove, Labels: token.Labels,
		KeyHash: pki.KeyHash(cert.PublicKey), AgentVersion: req.Agent,
		Certificate: events.CertificateIssued{
			Serial: pki.SerialHex(cert), KeyHash: pki.KeyHash(cert.PublicKey),
			NotBefore: cert.NotBefore, NotAfter: cert.NotAfter,
			Issuer: s.cfg.CA.Issuer(cert), Reason: events.CertificateEnrol,
		},
	}
	if token.Device != "" { // and so of this device
		register.Rekey = token.Issued
	}
	request := httpapi.RequestOf(ctx)
	meta := commands.Meta{
		Actor: events.TokenActor(token.ID), Source: request.Source, Traceparent: request.Traceparent, Time: now,
	}
	// Decided on a copy first: a request that cannot succeed takes no use.
	if _, err := commands.Decide(register, commands.States{Device: known}, now); err != nil {
		return none, device, s.refused(ctx, err, register, meta)
	}

	meta.CommandID = events.DeriveID("use join token", string(token.ID), string(device))
	if _, err := s.cfg.Commands.Do(ctx, commands.UseJoinToken{Token: token.ID, Device: device}, meta); err != nil {
		if commands.KindOf(err) == commands.KindDenied {
			return none, device, denied(err.Error()) // somebody took the last use meanwhile
		}
		return none, device, failed(ctx, err)
	}
	if known.Revision == 0 && token.NamePattern != "" {
		if token, err = s.cfg.Commands.JoinToken(ctx, token.ID); err != nil {
			return none, device, failed(ctx, err)
		}
		n := token.UseOf(device)
		if n == 0 { // hundreds came in between; the next request takes a new use
			return none, device, failed(ctx, fmt.Errorf("join token %s: the use of device %s is not among the newest", token.ID, device))
		}
		register.Name = token.DeviceName(device, req.Name, n)
	}
	// The serial makes each certificate its own request: one that was lost on
	// the way to the device is in the log beside the one that replaced it.
	meta.CommandID = events.DeriveID("register device", string(token.ID), string(device), register.Certificate.Serial)
	if _, err := s.cfg.Commands.Do(ctx, register, meta); err != nil {
		return none, device, s.refused(ctx, err, register, meta)
	}
	if known, err = s.cfg.Commands.Device(ctx, device); err != nil {
		return none, device, failed(ctx, err)
	}
	return wire.EnrollResponse{
		Device: string(device), Certificate: string(certPEM), CA: string(s.cfg.CA.CertificatePEM()),
		MQTT: s.cfg.MQTT(), Approved: known.Trust == commands.TrustApproved, Time: now.Truncate(time.Microsecond),
	}, device, nil
}

// refused is the answer to a registration that was refused. One with another key
// than the device's puts the device into quarantine first, for a person to
// decide which of the two it is.
func (s *service) refused(ctx context.Context, err error, c commands.RegisterDevice, m commands.Meta) *refusal {
	var e *commands.Error
	if errors.As(err, &e) && e.Code == commands.CodeClone {
		m.CommandID = ""
		claim := commands.ClaimKey{Device: c.Device, KeyHash: c.KeyHash, Token: c.Token, Name: c.Name, AgentVersion: c.AgentVersion}
		if _, err := s.cfg.Commands.Do(ctx, claim, m); err != nil && commands.KindOf(err) == "" {
			return failed(ctx, err)
		}
	}
	return failed(ctx, err)
}

// token returns the token if the device may register with it. Both the secret
// and the token's state are always looked at, so that no refusal is quicker
// than another.
func (s *service) token(ctx context.Context, t joinToken, known commands.Device, device events.DeviceID, now time.Time) (commands.JoinToken, *refusal) {
	secretErr := s.cfg.Tokens.VerifyJoin(ctx, t.id, t.secret)
	state, stateErr := s.cfg.Commands.JoinToken(ctx, t.id)
	if stateErr == nil {
		_, stateErr = commands.Decide(commands.UseJoinToken{Token: t.id, Device: device}, commands.States{Token: state, Device: known}, now)
	}
	switch {
	case secretErr != nil && !errors.Is(secretErr, auth.ErrDenied):
		return commands.JoinToken{}, failed(ctx, secretErr)
	case stateErr != nil && commands.KindOf(stateErr) == "":
		return commands.JoinToken{}, failed(ctx, stateErr)
	case t.malformed:
		return commands.JoinToken{}, denied("the token has not the form <id>.<secret>")
	case secretErr != nil:
		return commands.JoinToken{}, denied("the secret is not that of the token, or there is no such token")
	case stateErr != nil:
		return commands.JoinToken{}, denied(stateErr.Error())
	}
	return state, nil
}

type joinToken struct {
	id        events.TokenID
	secret    string
	malformed bool
}

// tokenOf splits "<id>.<secret>". A malformed one becomes an id that no token
// has, so that it is treated like any other.
func tokenOf(s string) joinToken {
	id, secret, ok := strings.Cut(s, ".")
	if _, err := events.ParseUUID("join token", id); !ok || err != nil {
		return joinToken{id: events.NoToken, secret: s, malformed: true}
	}
	return joinToken{id: events.TokenID(id), secret: secret}
}

// denied is the one answer to every token that does not open.
func denied(reason string) *refusal {
	p := httpapi.NewProblem(httpapi.KindUnauthorized, "the join token is not valid here, or not any more: ask for a new join string")
	return &refusal{"denied", reason, huma.ErrorWithHeaders(p, http.Header{"WWW-Authenticate": {`Join realm="pallas"`}})}
}

func invalid(field string, err error) *refusal {
	return &refusal{"invalid", err.Error(), httpapi.Invalid(field, err.Error())}
}

// fields names the request's fields as commands call them.
var fields = map[string]string{"name": "body.name", "agentVersion": "body.agent", "device": "body.device"}

// failed is the answer to an error of a part below.
func failed(ctx context.Context, err error) *refusal {
	var e *commands.Error
	if !errors.As(err, &e) {
		return &refusal{"error", err.Error(), httpapi.MapError(ctx, err)}
	}
	outcome, p := "refused", httpapi.NewProblem(httpapi.KindConflict, e.Message)
	switch e.Kind {
	case commands.KindInvalid:
		field, ok := fields[e.Field]
		if !ok { // something that we put together ourselves
			return &refusal{"error", err.Error(), httpapi.MapError(ctx, err)}
		}
		outcome, p = "invalid", httpapi.Invalid(field, e.Message)
	case commands.KindDenied:
		p = httpapi.NewProblem(httpapi.KindDenied, e.Message)
	case commands.KindConflict, commands.KindNotFound, commands.KindStale:
	}
	if e.Code == commands.CodeClone {
		outcome = "clone"
	}
	p.Code = e.Code
	return &refusal{outcome, err.Error(), p}
}
