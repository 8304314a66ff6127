package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

// Connect returns a client of the manager at server, an https URL without a
// path. caFile is a PEM file of the CA to trust, "" for the system's; token is
// sent with each request. Nothing is sent yet.
func Connect(server, caFile, token string) (*ClientWithResponses, error) {
	ca, err := readCA(caFile)
	if err != nil {
		return nil, err
	}
	return ConnectPEM(server, ca, token)
}

// ConnectPEM is [Connect] with the CA's PEM itself; none stands for the
// system's CAs. Options come after the connection's own.
func ConnectPEM(server string, ca []byte, token string, options ...ClientOption) (*ClientWithResponses, error) {
	u, err := url.Parse(server)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || strings.Trim(u.Path, "/") != "" {
		return nil, fmt.Errorf("server %q: want https://host[:port]", server)
	}
	cfg, err := trust(ca)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: cfg, ForceAttemptHTTP2: true,
		TLSHandshakeTimeout: 10 * time.Second, IdleConnTimeout: time.Minute,
	}
	return NewClientWithResponses(strings.TrimSuffix(server, "/"), append([]ClientOption{
		WithHTTPClient(&http.Client{Transport: transport}),
		WithRequestEditorFn(func(_ context.Context, r *http.Request) error {
			r.Header.Set("Authorization", "Bearer "+token)
			return nil
		}),
	}, options...)...)
}

// TLS trusts the CA in a PEM file, or the system's if caFile is "".
func TLS(caFile string) (*tls.Config, error) {
	ca, err := readCA(caFile)
	if err != nil {
		return nil, err
	}
	return trust(ca)
}

// readCA returns the contents of a CA file, nil for "".
func readCA(path string) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("CA file: %w", err)
	}
	if _, err := trust(b); err != nil {
		return nil, fmt.Errorf("CA file %s: %w", path, err)
	}
	return b, nil
}

func trust(ca []byte) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS13}
	if ca == nil {
		return cfg, nil
	}
	cfg.RootCAs = x509.NewCertPool()
	if !cfg.RootCAs.AppendCertsFromPEM(ca) {
		return nil, errors.New("holds no PEM certificate")
	}
	return cfg, nil
}
