package renewal

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pallas/commands"
	"pallas/events"
	"pallas/mqttgw/pki"
)

// Authority signs the certificates of devices.
type Authority interface {
	// IssueDevice is as [pki.CA.IssueDevice].
	IssueDevice(csr *x509.CertificateRequest, device string, now time.Time, life time.Duration) (certPEM []byte, cert *x509.Certificate, err error)
	// Issuer returns the [pki.AnchorID] of the CA that issued a certificate.
	Issuer(cert *x509.Certificate) string
}

// Config says what renewal works with.
type Config struct {
	Commands  *commands.Dispatcher
	Authority Authority
	// Life of a device's certificate; 0 means pki.DeviceLife.
	Life time.Duration
	// Grace is how long after the end of its newest certificate a device may
	// have another one for its key alone; 0 means never.
	Grace time.Duration
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Registerer takes the counters; may be nil.
	Registerer prometheus.Registerer
}

// Service renews certificates. It is safe for concurrent use.
type Service struct {
	cfg     Config
	issued  *prometheus.CounterVec
	refused *prometheus.CounterVec
}

// New checks the configuration.
func New(cfg Config) (*Service, error) {
	switch {
	case cfg.Commands == nil || cfg.Authority == nil:
		return nil, errors.New("renewal: Commands and Authority are needed")
	case cfg.Life < 0 || cfg.Grace < 0:
		return nil, fmt.Errorf("renewal: Life %v, Grace %v: want 0 or more", cfg.Life, cfg.Grace)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Service{
		cfg: cfg,
		issued: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pallas_certificates_issued_total", Help: "Certificates of devices that were issued, by reason.",
		}, []string{"reason"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pallas_certificate_renewals_refused_total", Help: "Renewals that were refused, by reason.",
		}, []string{"reason"}),
	}
	if r := cfg.Registerer; r != nil {
		for _, c := range []prometheus.Collector{s.issued, s.refused} {
			if err := r.Register(c); err != nil {
				return nil, fmt.Errorf("renewal: register metrics: %w", err)
			}
		}
	}
	return s, nil
}

// Request is what a device asks for.
type Request struct {
	Device events.DeviceID
	CSR    *x509.CertificateRequest
	// Lapsed says that the request came without a session.
	Lapsed bool
	// Source is the address that it came from, Traceparent its trace.
	Source, Traceparent string
}

// Renew checks a request and returns the certificate, once the log has it. A
// refusal is a *[commands.Error] or wraps [pki.ErrCSR]; nothing was written.
func (s *Service) Renew(ctx context.Context, r Request) (*x509.Certificate, error) {
	cert, reason, err := s.renew(ctx, r)
	if err != nil {
		s.refused.WithLabelValues(refusal(err)).Inc()
		return nil, err
	}
	s.Issued(reason)
	return cert, nil
}

// Issued counts a certificate. Those of enrolment are issued elsewhere.
func (s *Service) Issued(reason events.CertificateReason) {
	s.issued.WithLabelValues(string(reason)).Inc()
}

func (s *Service) renew(ctx context.Context, r Request) (*x509.Certificate, events.CertificateReason, error) {
	now := s.cfg.Now().UTC()
	// Before the device is looked up: a stranger's request costs the same
	// whether there is such a device or not.
	if err := pki.VerifyCSR(r.CSR, string(r.Device)); err != nil {
		return nil, "", err
	}
	device, err := s.cfg.Commands.Device(ctx, r.Device)
	if err != nil {
		return nil, "", err
	}
	// Here, and not only in the decision, so that a wrong key costs no more than
	// an unknown device.
	if pki.KeyHash(r.CSR.PublicKey) != device.KeyHash {
		return nil, "", &commands.Error{Kind: commands.KindDenied, Code: commands.CodeKey, Message: fmt.Sprintf("device %s is registered with another key", r.Device)}
	}
	_, cert, err := s.cfg.Authority.IssueDevice(r.CSR, string(r.Device), now, s.cfg.Life)
	if err != nil {
		return nil, "", err
	}
	renew := commands.RenewCertificate{
		Device: r.Device, Lapsed: r.Lapsed, Grace: s.cfg.Grace,
		Certificate: events.CertificateIssued{
			Serial: pki.SerialHex(cert), KeyHash: pki.KeyHash(cert.PublicKey), NotBefore: cert.NotBefore, NotAfter: cert.NotAfter,
			Issuer: s.cfg.Authority.Issuer(cert),
		},
	}
	// The serial makes each certificate its own request: one that was lost on
	// the way to the device is in the log beside the one that replaced it.
	_, err = s.cfg.Commands.Do(ctx, renew, commands.Meta{
		CommandID: events.DeriveID("renew certificate", string(r.Device), renew.Certificate.Serial),
		Actor:     events.DeviceActor(r.Device), Source: r.Source, Traceparent: r.Traceparent, Time: now,
	})
	if err != nil {
		return nil, "", err
	}
	reason := events.CertificateRenew
	switch {
	case r.Lapsed:
		reason = events.CertificateLapsed
	case !device.RotationAt.IsZero():
		reason = events.CertificateRotate
	}
	return cert, reason, nil
}

// refusal is the word of a refusal for the counter.
func refusal(err error) string {
	var e *commands.Error
	switch {
	case errors.Is(err, pki.ErrCSR):
		return "request"
	case !errors.As(err, &e):
		return "error"
	case e.Code != "":
		return e.Code
	}
	return string(e.Kind)
}
