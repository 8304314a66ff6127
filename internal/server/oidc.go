package server

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"

	"pallas/commands"
	"pallas/commands/accesshttp"
	"pallas/events"
	"pallas/events/labels"
	"pallas/internal/auth"
)

// OIDCConfig is for people who come by an OpenID Connect provider.
type OIDCConfig struct {
	// Issuer is the provider's URL, to the letter as it writes it itself. Empty
	// means that nobody comes so.
	Issuer   string `yaml:"issuer"`
	ClientID string `yaml:"client_id"`
	// ClientSecretFile holds the secret that the provider knows the manager by;
	// empty for a client without one.
	ClientSecretFile string   `yaml:"client_secret_file"`
	Scopes           []string `yaml:"scopes"`
	// LoginClaim names a new user; EmailClaim does when it is absent.
	LoginClaim string `yaml:"login_claim"`
	NameClaim  string `yaml:"name_claim"`
	EmailClaim string `yaml:"email_claim"`
	// Grants are the roles that claims give.
	Grants []OIDCGrant `yaml:"grants"`
}

// OIDCGrant gives a role to everybody whose claim has a value.
type OIDCGrant struct {
	Claim    string `yaml:"claim"`
	Value    string `yaml:"value"`
	Role     string `yaml:"role"`
	Selector string `yaml:"selector"`
}

func defaultOIDC() OIDCConfig {
	return OIDCConfig{Scopes: []string{"openid", "profile", "email"}, LoginClaim: "preferred_username", NameClaim: "name", EmailClaim: "email"}
}

// maxSecret bounds the file of the client's secret, in bytes.
const maxSecret = 4096

func (c OIDCConfig) validate() error {
	if c.Issuer == "" {
		if c.ClientID != "" || c.ClientSecretFile != "" || len(c.Grants) > 0 {
			return errors.New("oidc.issuer: is missing; without the provider's URL the rest of oidc means nothing")
		}
		return nil
	}
	u, err := url.Parse(c.Issuer)
	if err != nil || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil || u.Scheme != "https" && (u.Scheme != "http" || !loopback(u.Hostname())) {
		return fmt.Errorf("oidc.issuer: %q is not of the form https://host[/path]", c.Issuer)
	}
	if c.ClientID == "" {
		return errors.New("oidc.client_id: is missing; the provider gives one to each program that it signs people in for")
	}
	if !slices.Contains(c.Scopes, "openid") || slices.ContainsFunc(c.Scopes, func(s string) bool { return s == "" || strings.ContainsAny(s, " \"\\") }) {
		return fmt.Errorf("oidc.scopes: %q: want openid, and words without white space", c.Scopes)
	}
	for _, claim := range []struct{ key, value string }{{"login", c.LoginClaim}, {"name", c.NameClaim}, {"email", c.EmailClaim}} {
		if claim.value == "" {
			return fmt.Errorf("oidc.%s_claim: is empty; leave it out for the default", claim.key)
		}
	}
	if n := len(c.Grants); n < 1 || n > commands.MaxGrants {
		return fmt.Errorf("oidc.grants: has %d entries, want 1 to %d: who gets no role cannot sign in", n, commands.MaxGrants)
	}
	_, err = c.grants()
	return err
}

// loopback says whether a host is this machine.
func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (c OIDCConfig) grants() ([]accesshttp.ClaimGrant, error) {
	out := make([]accesshttp.ClaimGrant, len(c.Grants))
	for i, g := range c.Grants {
		key := fmt.Sprintf("oidc.grants[%d].", i)
		sel, err := labels.Parse(g.Selector)
		switch {
		case g.Claim == "":
			return nil, fmt.Errorf("%sclaim: is missing; name the claim that gives the role, such as groups", key)
		case g.Value == "":
			return nil, fmt.Errorf("%svalue: is missing; name the value of the claim %s that gives the role", key, g.Claim)
		case !slices.Contains(auth.Roles(), auth.Role(g.Role)):
			return nil, fmt.Errorf("%srole: %q is no role; there are viewer, operator and admin", key, g.Role)
		case err != nil:
			return nil, fmt.Errorf("%sselector: %w", key, err)
		}
		out[i] = accesshttp.ClaimGrant{Claim: g.Claim, Value: g.Value, Role: events.Role(g.Role), Selector: sel}
	}
	return out, nil
}

// provider returns what the door for people needs; nil without a provider. The
// provider is not asked anything: it may be down.
func (c OIDCConfig) provider() (*accesshttp.OIDC, error) {
	if c.Issuer == "" {
		return nil, nil //nolint:nilnil // there is none, and that is fine
	}
	grants, err := c.grants()
	if err != nil {
		return nil, err
	}
	secret, err := readSecret(c.ClientSecretFile)
	if err != nil {
		return nil, fmt.Errorf("oidc.client_secret_file: %w", err)
	}
	return &accesshttp.OIDC{
		Issuer: c.Issuer, ClientID: c.ClientID, ClientSecret: secret, Scopes: c.Scopes,
		LoginClaim: c.LoginClaim, NameClaim: c.NameClaim, EmailClaim: c.EmailClaim, Grants: grants,
	}, nil
}

// readSecret returns the text of a file without white space around it; "" where
// no file is named.
func readSecret(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // read only
	b, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	secret := strings.TrimSpace(string(b))
	switch {
	case err != nil:
		return "", err
	case len(b) > maxSecret:
		return "", fmt.Errorf("%s is larger than %d bytes: it must hold the secret and nothing else", path, maxSecret)
	case secret == "":
		return "", fmt.Errorf("%s is empty: it must hold the secret", path)
	}
	return secret, nil
}
