package events

// CertificateReason is why a device got a certificate.
type CertificateReason string

// The reasons.
const (
	CertificateEnrol  CertificateReason = "enrol"  // by a join token
	CertificateRenew  CertificateReason = "renew"  // the device asked in time, over its session
	CertificateRotate CertificateReason = "rotate" // an operator wanted it
	CertificateLapsed CertificateReason = "lapsed" // the one before was not good any more; the device's key proved it
)

// CertificateRotationRequested says that the device is to get another
// certificate before its time. The next CertificateIssued answers it.
type CertificateRotationRequested struct{}

// DeviceAnchorsChanged says which CAs the device accepts the manager by, as the
// device itself says.
type DeviceAnchorsChanged struct {
	// Anchors name the CAs as CertificateIssued does, sorted.
	Anchors []string `json:"anchors"`
}

func (CertificateRotationRequested) Type() string { return "CertificateRotationRequested" }
func (DeviceAnchorsChanged) Type() string         { return "DeviceAnchorsChanged" }

func (CertificateRotationRequested) sealed() {}
func (DeviceAnchorsChanged) sealed()         {}
