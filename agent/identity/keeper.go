package identity

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"sync"
	"time"

	"pallas/agent/retry"
	"pallas/mqttgw/wire"
)

// A certificate is renewed when two thirds of its life have passed, or up to a
// twelfth later: all devices of a site may have joined in the same minute.
const jitter = 12

// KeeperConfig is what a [Keeper] needs.
type KeeperConfig struct {
	Dir string
	// Now is the manager's clock, as far as it is known; Clock hears what the
	// manager says of it.
	Now   func() time.Time
	Clock func(time.Time)
	Log   *slog.Logger
	// DialContext makes TCP connections to the manager.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)
	// Join, if not nil, is another way in when the manager does not renew a
	// certificate that is not good any more; Name and Version are for it.
	Join    *wire.Join
	Name    func(ctx context.Context) string
	Version string
	// Repeat is how long an answer may take before a request is sent again; it
	// doubles. Recover is the first pause between requests without a session.
	// 0 means 30 s each.
	Repeat, Recover time.Duration
}

const (
	defaultRepeat = 30 * time.Second
	maxRepeat     = time.Hour
	// maxWait is how soon the clock is looked at again: it may be set.
	maxWait = time.Minute
	// recoverTimeout bounds one request without a session, enrolTimeout included.
	recoverTimeout = time.Minute
	// toldPause is the pause after the manager said that it needs a person.
	toldPause = time.Hour
)

// Keeper holds the device's enrolment while the agent runs, and replaces it, in
// the data folder too, by what the manager issues. It is safe for concurrent use.
type Keeper struct {
	c KeeperConfig

	mu      sync.Mutex
	id      Identity
	cert    tls.Certificate
	cas     *x509.CertPool
	anchors [][]byte
	version int
	due     time.Time // when to ask for a certificate, by the manager's clock
	csr     []byte    // of the request that is under way
	next    time.Time // no request before, by the monotonic clock
	repeat  time.Duration
	refused retry.Backoff // after a refusal
	// recoverAt is when the next request without a session may go out.
	recoverAt time.Time
	recover   retry.Backoff
}

// NewKeeper takes an identity with an enrolment.
func NewKeeper(id Identity, c KeeperConfig) (*Keeper, error) {
	if c.Dir == "" || c.Now == nil || c.Clock == nil || c.Log == nil {
		return nil, errors.New("identity: Dir, Now, Clock and Log are needed")
	}
	if c.Repeat <= 0 {
		c.Repeat = defaultRepeat
	}
	if c.Recover <= 0 {
		c.Recover = defaultRepeat
	}
	k := &Keeper{
		c: c, repeat: c.Repeat,
		refused: retry.Backoff{Base: 10 * c.Repeat, Cap: 6 * maxRepeat}, recover: retry.Backoff{Base: c.Recover, Cap: maxRepeat},
	}
	return k, k.use(id)
}

// use takes over an identity. The mutex is held, or nobody else has k yet.
func (k *Keeper) use(id Identity) error {
	cert, cas, err := id.Certificate()
	if err != nil {
		return err
	}
	list, err := parseCAs(id.Enrolment.CA)
	if err != nil {
		return err
	}
	if k.cert.Leaf == nil || !k.cert.Leaf.Equal(cert.Leaf) {
		life := cert.Leaf.NotAfter.Sub(cert.Leaf.NotBefore)
		k.due = cert.Leaf.NotBefore.Add(life*2/3 + time.Duration(mathrand.Float64()*float64(life/jitter)))
		k.csr, k.next, k.repeat = nil, time.Time{}, k.c.Repeat
		k.refused.Reset()
	}
	k.id, k.cert, k.cas, k.anchors = id, cert, cas, nil
	for _, ca := range list {
		k.anchors = append(k.anchors, wire.AnchorID(ca))
	}
	k.version++
	return nil
}

// Credentials returns what the next connection is made with, and a number that
// another one has when something is new.
func (k *Keeper) Credentials() (version int, cert tls.Certificate, cas *x509.CertPool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.version, k.cert, k.cas
}

// Anchors name the CAs that the device accepts the manager by, for the manager.
func (k *Keeper) Anchors() [][]byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.anchors) > wire.MaxAnchors {
		return k.anchors[:wire.MaxAnchors]
	}
	return k.anchors
}

// Expires is when the certificate ends, by the manager's clock.
func (k *Keeper) Expires() time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.cert.Leaf.NotAfter
}

// Wait returns how long there is nothing to ask the manager for, at most a
// minute: then ask again, clocks may have been set.
func (k *Keeper) Wait() time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	wait := k.due.Sub(k.c.Now())
	if k.csr != nil {
		wait = 0
	}
	return min(max(wait, time.Until(k.next), 0), maxWait)
}

// Ask is told that the manager wants the device to renew its certificate now.
func (k *Keeper) Ask() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.csr == nil {
		k.due, k.next = time.Time{}, time.Time{}
	}
}

// Connected is told of a new session: an answer to what was asked in the one
// before does not come any more.
func (k *Keeper) Connected() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.csr != nil {
		k.next, k.repeat = time.Time{}, k.c.Repeat
	}
}

// Request returns the certificate request to send: the one that is under way, or
// a new one.
func (k *Keeper) Request() ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.next = time.Now().Add(k.repeat)
	k.repeat = min(2*k.repeat, maxRepeat)
	if k.csr == nil {
		csr, err := k.id.request()
		if err != nil {
			return nil, err
		}
		k.csr = csr
	}
	return k.csr, nil
}

// Refused is told that the request came to nothing. Another one is made after a
// while.
func (k *Keeper) Refused() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.csr, k.repeat = nil, k.c.Repeat
	k.next = time.Now().Add(k.refused.Next())
}

// request makes a certificate request, in DER.
func (id Identity) request() ([]byte, error) {
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: id.Device}}, id.Key)
	if err != nil {
		return nil, fmt.Errorf("make certificate request: %w", err)
	}
	return csr, nil
}

// Take keeps what the manager issued, and returns when it is safe on the disk.
// renewed says that there is another certificate, left how long the one before
// is still good. After an error everything is as it was.
func (k *Keeper) Take(c wire.Certificate) (renewed bool, left time.Duration, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	e := *k.id.Enrolment
	e.CA = ""
	for _, ca := range c.CAs {
		e.CA += string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca}))
	}
	if len(c.Leaf) > 0 {
		e.Certificate = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Leaf}))
		e.Time = k.c.Now()
	}
	return k.take(e)
}

// take checks, writes and uses an enrolment.
func (k *Keeper) take(e Enrolment) (renewed bool, left time.Duration, err error) {
	old := k.id.Enrolment
	left = old.leaf.NotAfter.Sub(k.c.Now())
	if e.Certificate == old.Certificate && e.CA == old.CA {
		return false, left, nil
	}
	if err := e.check(k.id.Device, k.id.Key); err != nil {
		return false, left, fmt.Errorf("certificate from the manager: %w", err)
	}
	if renewed = e.Certificate != old.Certificate; renewed {
		if err := e.fresh(k.c.Now()); err != nil {
			return false, left, fmt.Errorf("certificate from the manager: %w", err)
		}
	}
	if err := e.write(k.c.Dir); err != nil {
		return false, left, err
	}
	id := k.id
	id.Enrolment = &e
	return renewed, left, k.use(id)
}

// fresh says whether the certificate is good now and of one of the CAs.
func (e *Enrolment) fresh(now time.Time) error {
	if !now.Before(e.leaf.NotAfter) {
		return fmt.Errorf("it ended at %s", e.leaf.NotAfter.Format(time.RFC3339))
	}
	cas, err := parseCAs(e.CA)
	if err != nil {
		return err
	}
	for _, ca := range cas {
		if e.leaf.CheckSignatureFrom(ca) == nil {
			return nil
		}
	}
	return errors.New("none of the CAs that came with it signed it")
}

func (e *Enrolment) write(dir string) error {
	b, err := json.MarshalIndent(e, "", "\t")
	if err != nil {
		return fmt.Errorf("write identity: %w", err)
	}
	return writeFile(dir, fileEnrolment, b)
}

// parseCAs reads one CA or more.
func parseCAs(text string) (list []*x509.Certificate, err error) {
	rest := []byte(text)
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		ca, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("CA certificate: %w", err)
		}
		if !ca.IsCA {
			return nil, errors.New("CA certificate: it is not that of a CA")
		}
		list = append(list, ca)
	}
	if len(list) == 0 {
		return nil, errors.New("no CA certificate")
	}
	return list, nil
}
