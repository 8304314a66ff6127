package commandhttp

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"pallas/commands"
	"pallas/events"
	"pallas/internal/auth"
	"pallas/internal/httpapi"
)

// CreateJoinToken says what a new join token permits.
type CreateJoinToken struct {
	Name        string            `json:"name,omitempty" maxLength:"253" example:"rollout Hesse" doc:"What it is for."`
	TTL         int               `json:"ttl,omitempty" minimum:"60" maximum:"31536000" default:"86400" example:"86400" doc:"Seconds until it ends."`
	MaxUses     int               `json:"maxUses,omitempty" minimum:"1" maximum:"100000" default:"1" example:"50" doc:"How many devices may register with it."`
	Approve     string            `json:"approve,omitempty" enum:"auto,manual" default:"manual" example:"manual" doc:"Whether a device that registers with it is approved at once, or waits for a person."`
	Labels      map[string]string `json:"labels,omitempty" maxProperties:"64" example:"{\"site\":\"fra\"}" doc:"Labels that its devices start with."`
	NamePattern string            `json:"namePattern,omitempty" maxLength:"128" example:"till-{n}" doc:"Makes the names of its devices: {host} stands for what the device calls itself, {id8} for the first 8 digits of its id, {n} for which use of the token it took, in as many digits as maxUses has. Absent, a device has the name of its host."`
	Device      string            `json:"device,omitempty" minLength:"36" maxLength:"36" example:"6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f" doc:"A device that is known already and has lost its key: it joins once with the new one, and keeps its name, labels and trust. A quarantine as a clone ends by it. Such a token has one use, and neither labels, name pattern nor approval."`
}

// CreatedJoinToken is a new join token with its secret.
type CreatedJoinToken struct {
	httpapi.JoinToken
	Token string `json:"token" example:"019e1b7a-5a40-7c35-9d3c-2f0a1b2c3d4e.mnbvcxz2lkjhgfdsapoiuytrewq5" doc:"The token with its secret. It is shown this once."`
	Join  string `json:"join" example:"pallas-join-1.pAF4G2h0dHBzOi8v" doc:"The join string for an agent: URL, CA fingerprint and token. It holds the secret and is shown this once."`
}

// JoinTokenCreated answers create-join-token.
type JoinTokenCreated struct {
	Written
	Location     string `header:"Location" example:"/api/v1/join-tokens/019e1b7a-5a40-7c35-9d3c-2f0a1b2c3d4e" doc:"The token without its secret."`
	CacheControl string `header:"Cache-Control" example:"no-store" doc:"Always no-store: the answer holds a secret."`
	Body         CreatedJoinToken
}

func (h *Handlers) registerJoinTokens(api huma.API) {
	huma.Register(api, huma.Operation{
		OperationID: "create-join-token", Method: http.MethodPost, Path: httpapi.Prefix + "/join-tokens", Tags: []string{"join-tokens"},
		Extensions:    httpapi.Needs(auth.ManageJoining),
		Summary:       "Make a join token",
		Description:   "The answer holds the secret, once. A repeat with the same Idempotency-Key makes no second token and cannot show the secret again: it answers 409 and names the token.",
		DefaultStatus: http.StatusCreated, Errors: []int{http.StatusConflict},
	}, h.createJoinToken)
	huma.Register(api, huma.Operation{
		OperationID: "revoke-join-token", Method: http.MethodDelete, Path: httpapi.Prefix + "/join-tokens/{token}", Tags: []string{"join-tokens"},
		Extensions:  httpapi.Needs(auth.ManageJoining),
		Summary:     "Revoke a join token",
		Description: "No device can register with it any more. Devices that have stay. Revoking a revoked token changes nothing.",
	}, h.revokeJoinToken)
}

func (h *Handlers) createJoinToken(ctx context.Context, in *struct {
	KeyHeader
	Body CreateJoinToken
},
) (*JoinTokenCreated, error) {
	r := httpapi.RequestOf(ctx)
	c := commands.IssueJoinToken{
		Token: events.TokenID(events.NewID()), Name: in.Body.Name, MaxUses: in.Body.MaxUses,
		Expires: r.Time.Add(time.Duration(in.Body.TTL) * time.Second), AutoApprove: in.Body.Approve == "auto", Labels: in.Body.Labels,
		NamePattern: in.Body.NamePattern,
	}
	bound, err := h.boundDevice(ctx, in.Body.Device)
	if err != nil {
		return nil, err
	}
	c.Device = bound.ID
	if in.IdempotencyKey != "" {
		c.Token = events.TokenID(events.DeriveID("join-token", string(r.Principal.Actor), in.IdempotencyKey))
		switch t, err := h.cfg.Commands.JoinToken(ctx, c.Token); {
		case commands.KindOf(err) == commands.KindNotFound:
		case err != nil:
			return nil, mapError(ctx, err)
		case t.Revision != 0:
			return nil, keyUsed(c.Token)
		}
	}
	// Try it before the secret exists, so that a refusal leaves nothing behind.
	if err := decide(ctx, c, commands.States{Device: bound}); err != nil {
		return nil, mapError(ctx, err)
	}
	// The secret comes first: a token in the log always has one. A secret
	// without a token, after a crash in between, opens nothing.
	secret, err := h.cfg.Tokens.CreateJoin(ctx, c.Token)
	switch {
	case errors.Is(err, auth.ErrExists):
		p := httpapi.NewProblem(httpapi.KindConflict, "a request with this Idempotency-Key is under way, or broke off before its token was issued: send another key",
			httpapi.FieldError{Field: "header.Idempotency-Key", Message: "was used before"})
		p.Code = "key_used"
		return nil, p
	case err != nil:
		return nil, mapError(ctx, fmt.Errorf("create join secret: %w", err))
	}
	token := string(c.Token) + "." + secret
	join, err := h.cfg.Join(token, c.Expires)
	if err != nil {
		return nil, mapError(ctx, errors.Join(fmt.Errorf("build join string: %w", err), h.forget(ctx, c.Token)))
	}
	res, err := h.do(ctx, in.IdempotencyKey, c)
	switch {
	case commands.KindOf(err) != "", errors.Is(err, events.ErrNoSpace): // nothing was written
		return nil, mapError(ctx, errors.Join(err, h.forget(ctx, c.Token)))
	case err != nil: // it may be in the log: the secret must stay
		return nil, mapError(ctx, err)
	case !res.Changed:
		return nil, keyUsed(c.Token)
	}
	if c.Device != "" {
		c.Labels = bound.Labels
	}
	return &JoinTokenCreated{
		Written:  Written{Position: res.Position},
		Location: httpapi.Prefix + "/join-tokens/" + string(c.Token), CacheControl: "no-store",
		Body: CreatedJoinToken{
			JoinToken: httpapi.JoinToken{
				ID: string(c.Token), Name: c.Name, MaxUses: c.MaxUses, Approve: httpapi.ApproveOf(c.AutoApprove), Labels: httpapi.LabelsOf(c.Labels), NamePattern: c.NamePattern,
				Device: string(c.Device), Expires: c.Expires, State: httpapi.JoinTokenState(false, 0, c.MaxUses, c.Expires, r.Time),
				CreatedBy: string(r.Principal.Actor), CreatedAt: r.Time, Revision: res.Position,
			},
			Token: token, Join: join,
		},
	}, nil
}

// boundDevice returns the device that a token is to be for; none for "".
func (h *Handlers) boundDevice(ctx context.Context, text string) (commands.Device, error) {
	if text == "" {
		return commands.Device{}, nil
	}
	const field = "body.device"
	id, err := events.ParseDeviceID(text)
	if err != nil {
		return commands.Device{}, httpapi.Invalid(field, err.Error())
	}
	d, err := h.device(ctx, id)
	if commands.KindOf(err) == commands.KindNotFound {
		return commands.Device{}, httpapi.Invalid(field, "there is no such device: a token without one makes new devices")
	}
	return d, mapError(ctx, err)
}

func keyUsed(id events.TokenID) error {
	p := httpapi.NewProblem(httpapi.KindConflict,
		fmt.Sprintf("this Idempotency-Key was used before, for join token %s, whose secret is shown once only: if it is lost, revoke that token and send another key", id),
		httpapi.FieldError{Field: "header.Idempotency-Key", Message: "was used before"})
	p.Code = "key_used"
	return p
}

// forget deletes the secret of a token that was not issued.
func (h *Handlers) forget(ctx context.Context, id events.TokenID) error {
	ctx, cancel := httpapi.Unconditional(ctx, writeTimeout)
	defer cancel()
	if err := h.cfg.Tokens.DeleteJoin(ctx, id); err != nil {
		return fmt.Errorf("forget join secret: %w", err)
	}
	return nil
}

func (h *Handlers) revokeJoinToken(ctx context.Context, in *struct {
	Token string `path:"token" example:"019e1b7a-5a40-7c35-9d3c-2f0a1b2c3d4e" doc:"Join token id."`
},
) (*Written, error) {
	s, err := events.ParseUUID("join token id", in.Token)
	if err != nil {
		return nil, httpapi.NewProblem(httpapi.KindNotFound, err.Error(), httpapi.FieldError{Field: "path.token", Message: err.Error()})
	}
	id := events.TokenID(s)
	res, err := h.do(ctx, "", commands.RevokeJoinToken{Token: id})
	if err != nil {
		return nil, mapError(ctx, err)
	}
	if err := h.forget(ctx, id); err != nil {
		return nil, mapError(ctx, err)
	}
	return &Written{Position: res.Position}, nil
}
