package httpapi

import "time"

// JoinToken lets devices register. Its secret is shown once, by the answer
// that creates it.
type JoinToken struct {
	ID          string            `json:"id" format:"uuid" example:"019e1b7a-5a40-7c35-9d3c-2f0a1b2c3d4e" doc:"Public part of the token."`
	Name        string            `json:"name,omitempty" example:"rollout Hesse" doc:"What it is for."`
	MaxUses     int               `json:"maxUses" minimum:"1" example:"50" doc:"How many devices may register with it."`
	Uses        int               `json:"uses" minimum:"0" example:"12" doc:"How many have."`
	Approve     string            `json:"approve" enum:"auto,manual" example:"manual" doc:"Whether a device that registers with it is approved at once or waits for a person."`
	Labels      map[string]string `json:"labels" example:"{\"site\":\"fra\"}" doc:"Labels that its devices start with. Those of the device for a token with one."`
	NamePattern string            `json:"namePattern,omitempty" example:"till-{n}" doc:"Makes the names of its devices. Absent, they have the names of their hosts."`
	Device      string            `json:"device,omitempty" example:"6f1c2e8a-0d5b-4c67-9c3e-1a2b3c4d5e6f" doc:"The one device that it is for, which may come back with a new key; absent for a token that makes new devices."`
	Expires     time.Time         `json:"expires" example:"2026-11-24T09:30:00Z" doc:"When it ends."`
	State       string            `json:"state" enum:"active,used,expired,revoked" example:"active" doc:"Whether a device can register with it now, and if not, why."`
	CreatedBy   string            `json:"createdBy,omitempty" example:"user:admin" doc:"Who made it."`
	CreatedAt   time.Time         `json:"createdAt,omitzero" example:"2026-11-23T09:30:00Z" doc:"When it was made."`
	RevokedBy   string            `json:"revokedBy,omitempty" example:"user:admin" doc:"Who revoked it."`
	RevokedAt   time.Time         `json:"revokedAt,omitzero" example:"2026-11-23T10:00:00Z" doc:"When it was revoked; absent before."`
	Revision    uint64            `json:"revision" example:"1843" doc:"Position of its last event."`
}

// JoinTokenState returns the state of a token at an instant.
func JoinTokenState(revoked bool, uses, maxUses int, expires, now time.Time) string {
	switch {
	case revoked:
		return "revoked"
	case uses >= maxUses:
		return "used"
	case !now.Before(expires):
		return "expired"
	default:
		return "active"
	}
}

// ApproveOf returns the word for a token's approval policy.
func ApproveOf(auto bool) string {
	if auto {
		return "auto"
	}
	return "manual"
}
