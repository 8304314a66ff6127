package events

import "time"

// AuthorityPrepared says that the manager's next CA was made. Devices are told
// to accept it beside the active one. The CAs are named by the SHA-256 of their
// certificates (DER), in lower-case hex.
type AuthorityPrepared struct {
	Active string `json:"active"`
	Next   string `json:"next"`
	// NotAfter is when the next one ends.
	NotAfter time.Time `json:"notAfter"`
	// Since is when it was made, if that is known.
	Since time.Time `json:"since,omitzero"`
}

// AuthoritySwitched says that the next CA signs the certificates of devices from
// now on. The former one is trusted as before.
type AuthoritySwitched struct {
	Active string    `json:"active"`
	Former string    `json:"former"`
	Since  time.Time `json:"since,omitzero"`
}

// AuthorityRetired says that the former CA is trusted no more: its key is gone.
type AuthorityRetired struct {
	Active string `json:"active"`
	Former string `json:"former"`
}

// AuthorityAdopted says that the manager found another CA than its log knows of,
// as after a directory was put together by hand.
type AuthorityAdopted struct {
	Active string `json:"active"`
}

func (AuthorityPrepared) Type() string { return "AuthorityPrepared" }
func (AuthoritySwitched) Type() string { return "AuthoritySwitched" }
func (AuthorityRetired) Type() string  { return "AuthorityRetired" }
func (AuthorityAdopted) Type() string  { return "AuthorityAdopted" }

func (AuthorityPrepared) sealed() {}
func (AuthoritySwitched) sealed() {}
func (AuthorityRetired) sealed()  {}
func (AuthorityAdopted) sealed()  {}
