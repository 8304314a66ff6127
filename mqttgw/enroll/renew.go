package enroll

import (
	"context"
	"encoding/pem"
	"errors"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"pallas/commands"
	"pallas/events"
	"pallas/internal/httpapi"
	"pallas/mqttgw/pki"
	"pallas/mqttgw/renewal"
	"pallas/mqttgw/wire"
)

// registerRenew adds the operation for devices whose certificate is not good any
// more. It has the limits of enrolment, and takes from the same budgets.
func registerRenew(api huma.API, s *service) {
	huma.Register(api, huma.Operation{
		OperationID: "renew-certificate",
		Method:      http.MethodPost,
		Path:        wire.RenewPath,
		Summary:     "Renew the certificate of a device that cannot connect",
		Description: "For agents: gives a device that is known another certificate when the one that it has is not good any more, because it ended while the device was away, or its CA was replaced. " +
			"The key that the device registered with is the proof. A device whose certificate ended longer ago than devices.certificate_grace needs a new join token. " +
			"A device with a good certificate renews it over its session instead.",
		Tags:     []string{"devices"},
		Security: []map[string][]string{}, // public: the signature of the request is the proof
		Errors:   []int{http.StatusForbidden, http.StatusTooManyRequests},
	}, s.renew)
}

type renewInput struct {
	Body wire.RenewRequest
}

func (s *service) renew(ctx context.Context, in *renewInput) (*output, error) {
	now := s.cfg.Now().UTC()
	source := httpapi.RequestOf(ctx).Source
	if wait := s.limits.wait(source, now); wait > 0 {
		s.cfg.Log.WarnContext(ctx, "renewal refused", "reason", "too many requests", "source", source)
		return nil, tooMany(wait)
	}
	// A certificate that is in the log should reach the device.
	ctx, cancel := httpapi.Unconditional(ctx, 30*time.Second)
	defer cancel()
	resp, refused := s.decideRenew(ctx, in.Body, now)
	if refused != nil {
		if refused.outcome == "error" {
			s.limits.served(source, now)
		} else {
			s.limits.failed(source, now)
		}
		s.cfg.Log.WarnContext(ctx, "renewal refused", "reason", refused.reason, "source", source, "device", clip(in.Body.Device))
		return nil, refused.answer
	}
	s.limits.served(source, now)
	s.cfg.Log.InfoContext(ctx, "certificate renewed by its key", "device", resp.Device, "source", source)
	return &output{Body: resp}, nil
}

func (s *service) decideRenew(ctx context.Context, req wire.RenewRequest, now time.Time) (wire.EnrollResponse, *refusal) {
	none := wire.EnrollResponse{}
	device, err := events.ParseDeviceID(req.Device)
	if err != nil {
		return none, invalid("body.device", err)
	}
	csr, err := pki.ParseCSR([]byte(req.CSR))
	if err != nil {
		return none, invalid("body.csr", err)
	}
	if s.cfg.Renewals == nil {
		return none, notRenewed("renewals are off")
	}
	request := httpapi.RequestOf(ctx)
	cert, err := s.cfg.Renewals.Renew(ctx, renewal.Request{
		Device: device, CSR: csr, Lapsed: true, Source: request.Source, Traceparent: request.Traceparent,
	})
	var e *commands.Error
	switch isError := errors.As(err, &e); {
	case err == nil:
	case errors.Is(err, pki.ErrCSR):
		return none, invalid("body.csr", err)
	case isError && (e.Kind == commands.KindNotFound || e.Code == commands.CodeKey):
		// Who has not proved the key does not learn which devices there are.
		return none, notRenewed(err.Error())
	default:
		return none, failed(ctx, err)
	}
	known, err := s.cfg.Commands.Device(ctx, device)
	if err != nil {
		return none, failed(ctx, err)
	}
	return wire.EnrollResponse{
		Device:      string(device),
		Certificate: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})),
		CA:          string(s.cfg.CA.CertificatePEM()), MQTT: s.cfg.MQTT(),
		Approved: known.Trust == commands.TrustApproved, Time: now.Truncate(time.Microsecond),
	}, nil
}

// notRenewed is the one answer to everybody who has not proved to be a device
// that is known.
func notRenewed(reason string) *refusal {
	p := httpapi.NewProblem(httpapi.KindDenied, "this is not the key of a device that is known here: the device needs a join token to enrol")
	p.Code = commands.CodeKey
	return &refusal{"denied", reason, p}
}

func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}
