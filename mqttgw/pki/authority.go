package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Authority is the CA of a directory, also while another one takes its place.
// What it is now is its [State]; [Authority.Reload] notices what [Prepare],
// [Switch] and [Retire] have done, in whatever process. It is safe for
// concurrent use.
type Authority struct {
	dir   string
	state atomic.Pointer[State]

	mu   sync.Mutex
	seen string // what the files looked like when they were read
}

// Open reads the CAs of a directory. It waits for a command that is changing
// them.
func Open(dir string) (*Authority, error) {
	a := &Authority{dir: dir}
	unlock, err := lockDir(dir, syscall.LOCK_SH)
	if err != nil {
		return nil, fmt.Errorf("load certificate authority from %s: %w", dir, err)
	}
	defer unlock()
	if _, err := a.Reload(); err != nil {
		return nil, err
	}
	return a, nil
}

// Reload reads the directory again if its files are others than before, and says
// whether the state is another one. After an error the state is what it was.
func (a *Authority) Reload() (changed bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	looks := look(a.dir)
	if looks == a.seen {
		return false, nil
	}
	s, err := loadState(a.dir)
	if err != nil {
		return false, fmt.Errorf("load certificate authority from %s: %w", a.dir, err)
	}
	// A command may be in the middle of its work: what was read then is right,
	// but not the last word.
	if look(a.dir) == looks {
		a.seen = looks
	}
	if old := a.state.Load(); old != nil && old.same(s) {
		return false, nil
	}
	a.state.Store(s)
	return true, nil
}

// look tells whether files were replaced without reading them.
func look(dir string) string {
	var b strings.Builder
	for _, name := range []string{rolloverFile, CertFile, KeyFile, nextCertFile, nextKeyFile} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			b.WriteString("-;")
			continue
		}
		var inode uint64
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			inode = st.Ino
		}
		fmt.Fprintf(&b, "%d %d %d;", inode, info.Size(), info.ModTime().UnixNano())
	}
	return b.String()
}

// State returns what the CAs are now.
func (a *Authority) State() *State { return a.state.Load() }

// IssueDevice is that of the active CA.
func (a *Authority) IssueDevice(csr *x509.CertificateRequest, device string, now time.Time, life time.Duration) (certPEM []byte, cert *x509.Certificate, err error) {
	return a.State().active.IssueDevice(csr, device, now, life)
}

// CertificatePEM returns what devices are to trust: one CA, or two.
func (a *Authority) CertificatePEM() []byte { return a.State().CertificatePEM() }

// Issuer returns the [AnchorID] of the CA that issued a certificate, "" for an
// unknown one.
func (a *Authority) Issuer(cert *x509.Certificate) string {
	for _, ca := range a.State().Anchors() {
		if cert.CheckSignatureFrom(ca) == nil {
			return AnchorID(ca)
		}
	}
	return ""
}

// Pool returns the CAs that may have issued a device's certificate. The same
// pool stands for the same CAs.
func (a *Authority) Pool() *x509.CertPool { return a.State().pool }

// State is what the CAs of a directory are at one time. It does not change.
type State struct {
	Phase Phase
	// Since is when the phase began, zero for PhaseSteady.
	Since time.Time

	active *CA
	// other is the next CA while one is prepared, and the former one after the
	// switch.
	other *CA
	// cross certifies the former CA's key by the active CA: with it, who trusts
	// only the new one verifies what the former one signed.
	cross *x509.Certificate
	pool  *x509.CertPool
}

// Active is the CA that signs the certificates of devices.
func (s *State) Active() *CA { return s.active }

// Other is the next CA in PhasePrepared, the former one in PhaseSwitched, and
// nil in PhaseSteady.
func (s *State) Other() *CA { return s.other }

// Anchors returns the CAs that devices are to trust, the active one first.
func (s *State) Anchors() []*x509.Certificate {
	list := []*x509.Certificate{s.active.cert}
	if s.other != nil {
		list = append(list, s.other.cert)
	}
	return list
}

// CertificatePEM returns the Anchors in PEM.
func (s *State) CertificatePEM() (b []byte) {
	for _, c := range s.Anchors() {
		b = append(b, encodePEM(certBlock, c.Raw)...)
	}
	return b
}

// IssueServer is that of [CA.IssueServer], by the CA that all devices trust.
// That is the former one until it is retired: a device may have been away since
// before the next one was made. Who has joined since, and trusts only the new
// one, finds the way by the cross certificate.
//
// The usual way round, a certificate for the new CA from the former one, is not
// open: the first CAs of this program permit no CA below them.
func (s *State) IssueServer(hosts []string, now time.Time, life time.Duration) (tls.Certificate, error) {
	if s.Phase != PhaseSwitched || !now.Before(s.other.cert.NotAfter) {
		return s.active.IssueServer(hosts, now, life)
	}
	cert, err := s.other.IssueServer(hosts, now, life)
	if err != nil {
		return tls.Certificate{}, err
	}
	cert.Certificate = append(cert.Certificate, s.cross.Raw, s.active.cert.Raw)
	return cert, nil
}

func (s *State) same(o *State) bool {
	equal := func(a, b *CA) bool { return a == b || (a != nil && b != nil && a.cert.Equal(b.cert)) }
	return s.Phase == o.Phase && equal(s.active, o.active) && equal(s.other, o.other)
}

// loadState reads the files. It may run while a command moves them: each state
// of the files in between has one meaning.
func loadState(dir string) (*State, error) {
	r, err := readRollover(dir)
	if err != nil {
		return nil, err
	}
	s := &State{Phase: r.Phase, Since: r.Since}
	switch r.Phase {
	case PhaseSteady:
		s.active, err = load(dir)
	case PhasePrepared:
		if s.active, err = load(dir); err == nil {
			s.other, err = loadAs(dir, nextCertFile, nextKeyFile)
		}
	case PhaseSwitched:
		if s.active, err = loadAs(dir, nextCertFile, nextKeyFile); err == nil {
			s.other, err = load(dir)
		}
		if err == nil {
			s.cross, err = s.active.certify(s.other)
		}
	case phaseRetiring:
		s.Phase, s.Since = PhaseSteady, time.Time{}
		s.active, err = loadAs(dir, either(dir, nextCertFile, CertFile), either(dir, nextKeyFile, KeyFile))
	}
	if err != nil {
		return nil, err
	}
	s.pool = x509.NewCertPool()
	for _, c := range s.Anchors() {
		s.pool.AddCert(c)
	}
	return s, nil
}

// either returns the first name if there is such a file.
func either(dir, first, second string) string {
	if _, err := os.Lstat(filepath.Join(dir, first)); errors.Is(err, fs.ErrNotExist) {
		return second
	}
	return first
}

// certify signs a certificate for another CA's key under the other CA's name.
func (c *CA) certify(other *CA) (*x509.Certificate, error) {
	template := &x509.Certificate{
		RawSubject: other.cert.RawSubject, SubjectKeyId: other.cert.SubjectKeyId,
		NotBefore: other.cert.NotBefore, NotAfter: other.cert.NotAfter,
		KeyUsage: x509.KeyUsageCertSign, IsCA: true, MaxPathLenZero: true, ExtKeyUsage: other.cert.ExtKeyUsage,
	}
	// It is judged by the verifier's clock, not at an instant of ours.
	cert, err := c.sign(template, other.cert.PublicKey, c.cert.NotBefore)
	if err != nil {
		return nil, fmt.Errorf("certify the former CA: %w", err)
	}
	return cert, nil
}

// lockDir keeps other commands away from the directory until the returned
// function is called, or this process ends.
func lockDir(dir string, how int) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(f.Fd()), how)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	switch {
	case err == nil:
		return func() { _ = f.Close() }, nil
	case errors.Is(err, syscall.EWOULDBLOCK):
		err = ErrBusy
	}
	return nil, errors.Join(err, f.Close())
}
