package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"pallas/agent/identity"
	"pallas/agent/link"
	"pallas/mqttgw/wire"
)

// errLinesFailed ends doctor when a line failed.
var errLinesFailed = errors.New("checks failed")

const (
	minFree      = 64 << 20 // bytes in the data folder
	maxClock     = time.Minute
	checkTimeout = 15 * time.Second
	// silence is how long a device door must not refuse a certificate, to be
	// taken for content with it: in TLS 1.3 its refusal comes after the
	// handshake.
	silence = 500 * time.Millisecond
)

// examination prints lines and counts what fails.
type examination struct {
	out           io.Writer
	total, failed int
}

func (e *examination) line(ok bool, name, format string, args ...any) {
	e.total++
	mark := "ok  "
	if !ok {
		e.failed++
		mark = "FAIL"
	}
	fmt.Fprintf(e.out, "%s  %-18s %s\n", mark, name, fmt.Sprintf(format, args...))
}

// skip tells of what cannot be checked yet. It is no failure.
func (e *examination) skip(name, why string) {
	fmt.Fprintf(e.out, "-     %-18s %s\n", name, why)
}

func doctor(cmd *cobra.Command, path string) error {
	s, err := load(path, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	defer func() { _ = s.driver.Close() }()
	e := &examination{out: cmd.OutOrStdout()}
	ctx := cmd.Context()
	e.dataDir(s.DataDir)
	id, known := e.identity(s.DataDir)
	for _, c := range s.driver.Check(ctx) {
		e.line(c.OK, c.Name, "%s", c.Detail)
	}
	e.manager(ctx, s, id, known, time.Now())
	if e.failed > 0 {
		fmt.Fprintf(e.out, "\n%d of %d checks failed\n", e.failed, e.total)
		return errLinesFailed
	}
	fmt.Fprintf(e.out, "\nall %d checks passed\n", e.total)
	return nil
}

// dataDir leaves nothing behind: made by doctor, the folder could belong to
// the wrong user.
func (e *examination) dataDir(dir string) {
	const name = "data folder"
	parent := dir
	for !exists(parent) && parent != filepath.Dir(parent) {
		parent = filepath.Dir(parent)
	}
	if parent != dir {
		if err := unix.Access(parent, unix.W_OK|unix.X_OK); err != nil {
			e.line(false, name, "%s is not there and cannot be made in %s (%v); make it for the agent's user", dir, parent, err)
			return
		}
	} else {
		f, err := os.CreateTemp(dir, ".doctor-*")
		if err != nil {
			var pe *fs.PathError
			if errors.As(err, &pe) {
				err = pe.Err
			}
			e.line(false, name, "%s cannot be written to (%v); give it to the agent's user", dir, err)
			return
		}
		_ = f.Close()
		_ = os.Remove(f.Name())
	}
	var st unix.Statfs_t
	if err := unix.Statfs(parent, &st); err != nil {
		e.line(false, name, "%s: %v", dir, err)
		return
	}
	free := st.Bavail * uint64(st.Bsize)
	switch {
	case free < minFree:
		e.line(false, name, "%s has %d MiB free, %d MiB are needed", dir, free>>20, minFree>>20)
	case parent != dir:
		e.line(true, name, "%s will be made at the first start, %d MiB free", dir, free>>20)
	default:
		e.line(true, name, "%s is writable, %d MiB free", dir, free>>20)
	}
}

func (e *examination) identity(dir string) (id identity.Identity, ok bool) {
	id, err := identity.Load(dir)
	switch {
	case err != nil:
		e.line(false, "device id", "%v", err)
		return id, false
	case id.Device == "":
		e.skip("device id", "made at the first start")
	default:
		e.line(true, "device id", "%s", id.Device)
	}
	return id, true
}

// manager checks the way to the device manager.
func (e *examination) manager(ctx context.Context, s *settings, id identity.Identity, known bool, now time.Time) {
	if !known {
		e.skip("manager", "not checked: the identity in the data folder is damaged")
		return
	}
	var base string
	var config *tls.Config
	switch {
	case id.Enrolment != nil:
		_, cas, err := id.Certificate()
		if err != nil {
			e.line(false, "enrolment", "%v", err)
			return
		}
		base, config = id.Enrolment.Manager, &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: cas}
		e.line(true, "enrolment", "enrolled with %s", base)
	case s.join == "":
		e.line(false, "join string", "missing, and the device is not enrolled: make one on the manager and put it into join_file")
		return
	default:
		j, err := wire.ParseJoin(s.join)
		if err != nil {
			e.line(false, "join string", "%v", err)
			return
		}
		if !j.Expires.IsZero() && now.After(j.Expires) {
			e.line(false, "join string", "expired at %s: make a new one on the manager", j.Expires.Format(time.RFC3339))
		} else {
			e.line(true, "join string", "for %s, until %s", j.URL, j.Expires.Format(time.RFC3339))
		}
		base, config = j.URL, j.TLS()
	}
	e.https(ctx, base, config)
	if id.Enrolment == nil {
		e.skip(mqttPort, "its address is told at enrolment")
		e.skip(httpsPort, "tried with the certificate that enrolment gives")
		e.skip("certificate", "given at enrolment")
		return
	}
	e.mqtt(ctx, id, s.Link == linkNarrow)
	e.certificate(id.Enrolment.Expires(), now)
}

// https checks the manager's HTTPS port and compares clocks by its answer.
func (e *examination) https(ctx context.Context, base string, config *tls.Config) {
	transport := &http.Transport{TLSClientConfig: config, Proxy: nil, DisableKeepAlives: true}
	client := &http.Client{
		Timeout: checkTimeout, Transport: transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/livez", nil)
	if err != nil {
		e.line(false, "manager https", "%v", err)
		return
	}
	before := time.Now()
	res, err := client.Do(req)
	if err != nil {
		e.line(false, "manager https", "%v; check DNS, the firewall (outbound), and this machine's clock if it says expired or not yet valid", err)
		return
	}
	_ = res.Body.Close()
	here := before.Add(time.Since(before) / 2)
	e.line(res.StatusCode < 500, "manager https", "%s answers %s, its certificate chains to the pinned CA", base, res.Status)

	there, err := http.ParseTime(res.Header.Get("Date"))
	if err != nil {
		e.skip("clock", "the manager does not tell the time")
		return
	}
	if diff := there.Sub(here).Round(time.Second); diff.Abs() > maxClock {
		e.line(false, "clock", "%v away from the manager's; set up NTP", diff.Abs())
	} else {
		e.line(true, "clock", "within %v of the manager's", diff.Abs()+time.Second)
	}
}

// The two ways to the device door.
const (
	mqttPort  = "manager mqtt"
	httpsPort = "manager mqtt on the https port"
)

// mqtt checks the device door on both of its ports. One of them is enough: the
// agent takes the one that it can reach.
func (e *examination) mqtt(ctx context.Context, id identity.Identity, narrow bool) {
	cert, cas, err := id.Certificate()
	if err != nil {
		e.line(false, mqttPort, "%v", err)
		return
	}
	reached, own := doorAt(ctx, id.Enrolment.MQTT, cert, cas, narrow)
	sharedReached, shared := doorAt(ctx, id.Enrolment.HTTPS(), cert, cas, narrow)
	for _, w := range []struct {
		name, addr     string
		reached, other bool
		err, otherErr  error
	}{
		{mqttPort, id.Enrolment.MQTT, reached, sharedReached, own, shared},
		{httpsPort, id.Enrolment.HTTPS(), sharedReached, reached, shared, own},
	} {
		switch {
		case w.err == nil:
			e.line(true, w.name, "%s accepts this device's certificate", w.addr)
		case w.reached:
			e.line(false, w.name, "%s refuses this device's certificate: %v", w.addr, w.err)
		case w.other && w.otherErr == nil:
			e.skip(w.name, fmt.Sprintf("%s: %v; not needed, the other port is enough", w.addr, w.err))
		default:
			e.line(false, w.name, "%s: %v; check DNS and the firewall (outbound)", w.addr, w.err)
		}
	}
}

// doorAt checks a port by a TLS handshake with the device's certificate. It does
// not connect as the device: that would take the line from an agent that runs.
// reached says that a manager answered.
func doorAt(ctx context.Context, addr string, cert tls.Certificate, cas *x509.CertPool, narrow bool) (reached bool, err error) {
	config, err := link.TLSConfig(addr, cert, cas, time.Now, narrow)
	if err != nil {
		return false, err
	}
	asked := false
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		asked = true
		return &cert, nil
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return false, err
	}
	defer func() { _ = conn.Close() }()
	if !asked {
		return false, errors.New("no device door: it asks for no certificate")
	}
	_ = conn.SetReadDeadline(time.Now().Add(silence))
	_, err = conn.Read(make([]byte, 1))
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		return true, nil
	}
	if err == nil {
		err = errors.New("it spoke first, as no MQTT server does")
	}
	return true, err
}

func (e *examination) certificate(expires, now time.Time) {
	left := expires.Sub(now)
	day := expires.Format(time.DateOnly)
	if left <= 0 {
		e.line(false, "certificate", "expired on %s: the agent renews it by its key if the manager agrees; if not, put a new join string into join_file and restart the agent", day)
		return
	}
	e.line(true, "certificate", "%d days left, until %s", int(left.Hours()/24), day)
}
