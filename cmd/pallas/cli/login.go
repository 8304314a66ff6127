package cli

import (
	"context"
	"net/url"
	"os"
	"time"

	"github.com/spf13/cobra"
)

func (a *app) loginCommand() *cobra.Command {
	var token string
	var with passwordLogin
	cmd := &cobra.Command{
		Use:   "login --server URL [--ca-file FILE] [--user LOGIN | --token-file FILE]",
		Short: "Sign in with password or token and keep a token in a context",
		Long: "Sign in, keep server, CA and an API token in a context of the configuration file, and use it from now on.\n\n" +
			"Login and password are asked for and exchanged for an API token, which pallas logout revokes; the password is not kept. --token-file, --token, PALLAS_TOKEN or PALLAS_TOKEN_FILE give a token that is there already. --context names the context; it is the server's host otherwise.\n" +
			"The file is that of PALLAS_CONFIG, or pallas/config.yaml in the user's configuration directory; only its owner can read it.",
		RunE: func(cmd *cobra.Command, _ []string) error { return a.login(cmd.Context(), token, with) },
	}
	f := cmd.Flags()
	f.StringVar(&token, "token", "", "the API token; - reads it from standard input")
	f.StringVar(&with.login, "user", "", "login of the user")
	f.StringVar(&with.file, "password-file", "", "file that holds the password; - is standard input")
	f.StringVar(&with.ttl, "ttl", "90d", "how long the token is good for that a password is exchanged for")
	return cmd
}

// passwordLogin is what a person signs in with.
type passwordLogin struct{ login, file, ttl string }

func (a *app) login(ctx context.Context, token string, with passwordLogin) error {
	cfg, err := loadConfig()
	if err != nil {
		return err
	}
	p := profile{Name: a.context, Server: first(a.server, os.Getenv("PALLAS_SERVER"))}
	old, known := cfg.find(a.context)
	if p.Server == "" && known { // a new token for a context that is there
		p.Server, p.CA = old.Server, old.CA
	}
	u, err := url.Parse(p.Server)
	if err != nil || u.Host == "" {
		return usagef("--server %q: want https://host[:port]", p.Server)
	}
	if p.Name == "" {
		p.Name = u.Host
	}
	if path := first(a.caFile, os.Getenv("PALLAS_CA_FILE")); path != "" {
		b, err := os.ReadFile(path)
		if err != nil {
			return usagef("CA file: %v", err)
		}
		p.CA = string(b)
	}
	if p.Token, err = a.loginToken(token, with); err != nil {
		return err
	}
	if p.Token == "" {
		if err := a.exchange(ctx, &p, with); err != nil {
			return err
		}
	}
	s, err := a.connect(p)
	if err != nil {
		return err
	}
	who, err := s.whoami(ctx)
	if err != nil {
		return err
	}
	st, err := s.status(ctx)
	if err != nil {
		return err
	}
	cfg.put(p)
	if err := cfg.save(); err != nil {
		return err
	}
	a.say("logged in to %s (version %s) as %s; context %s is in use", p.Server, st.Version, who.Login, p.Name)
	return nil
}

// exchange gets a token for login and password.
func (a *app) exchange(ctx context.Context, p *profile, with passwordLogin) error {
	life, err := duration(with.ttl)
	if err != nil {
		return usagef("--ttl %q: want a duration such as 12h or 90d", with.ttl)
	}
	if with.login == "" {
		if with.login, err = a.prompt("login"); err != nil {
			return err
		}
	}
	password, err := a.readPassword(with.file, "password")
	if err != nil {
		return err
	}
	s, err := a.connect(*p)
	if err != nil {
		return err
	}
	t, err := s.signIn(ctx, with.login, password, life)
	if err != nil {
		if e := asError(err); e.Code == exitDenied {
			e.Title, e.Hint = "cannot sign in", "an administrator makes a link for a new password with: pallas user reset-password LOGIN"
			return e
		}
		return err
	}
	p.Token, p.TokenID = secret(t.Token), t.Id
	return nil
}

// loginToken is the token that was given, "" when a person is to sign in with a
// password.
func (a *app) loginToken(flag string, with passwordLogin) (secret, error) {
	switch {
	case with.login != "" || with.file != "":
		if flag != "" || a.tokenFile != "" {
			return "", usagef("want a token or a password, not both")
		}
		return "", nil
	case flag == "":
	case a.tokenFile != "":
		return "", usagef("want --token or --token-file, not both")
	case flag == "-":
		t, err := readToken(a.in)
		if err != nil {
			return "", usagef("--token -: %v", err)
		}
		return t, nil
	default:
		a.note("warning: a token on the command line shows in process lists and the shell's history; use --token-file, or --token - to read it from standard input")
		return secret(flag), nil
	}
	if t, err := a.givenToken(); t != "" || err != nil {
		return t, err
	}
	f, ok := a.in.(*os.File)
	if !ok || !terminal(f) {
		return "", usagef("a token is needed, --token-file FILE or --token - to read it from standard input; or a password, --user LOGIN --password-file FILE")
	}
	return "", nil
}

func (a *app) logoutCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "logout",
		Short: "Forget the token of a context",
		Long:  "Forget the token of the current context, or of --context. Server and CA stay for the next login. A token that login got for a password is revoked; one that was given stays valid.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.changeConfig(a.context, func(cfg *configFile, i int) string {
				p := &cfg.Contexts[i]
				if p.Token != "" && p.TokenID != "" {
					if s, err := a.connect(*p); err != nil {
						a.note("warning: the token is not revoked: %v", err)
					} else if err := s.revokeToken(cmd.Context(), "", p.TokenID); err != nil {
						a.note("warning: the token is not revoked: %v", err)
					}
				}
				p.Token, p.TokenID = "", ""
				return "logged out of " + p.Server
			})
		},
	}
}

// changeConfig changes one context, the current one for "", and says so.
func (a *app) changeConfig(name string, change func(*configFile, int) string) error {
	cfg, err := loadConfig()
	if err != nil {
		return err
	}
	i := cfg.index(first(name, cfg.Current))
	if i < 0 {
		return notFound("context", first(name, cfg.Current))
	}
	done := change(&cfg, i)
	if err := cfg.save(); err != nil {
		return err
	}
	a.say("%s", done)
	return nil
}

func (a *app) contextCommand() *cobra.Command {
	cmd := group("context", "Choose between managers")
	cmd.Aliases = []string{"contexts", "ctx"}
	list := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the contexts",
		RunE: func(*cobra.Command, []string) error {
			cfg, err := loadConfig()
			if err != nil {
				return err
			}
			return printAll(a, contexts, views(cfg, cfg.Contexts...))
		},
	}
	show := &cobra.Command{
		Use: "show [NAME]", Short: "Show a context, without its token", Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeContexts,
		RunE: func(_ *cobra.Command, args []string) error {
			cfg, err := loadConfig()
			if err != nil {
				return err
			}
			name := first(append(args, a.context, cfg.Current)...)
			p, ok := cfg.find(name)
			if !ok {
				return notFound("context", name)
			}
			return printAll(a, contexts, views(cfg, p))
		},
	}
	use := &cobra.Command{
		Use: "use NAME", Short: "Use a context from now on", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeContexts,
		RunE: func(_ *cobra.Command, args []string) error {
			return a.changeConfig(args[0], func(cfg *configFile, _ int) string {
				cfg.Current = args[0]
				return "context " + args[0] + " is in use"
			})
		},
	}
	remove := &cobra.Command{
		Use: "delete NAME", Aliases: []string{"rm"}, Short: "Forget a context", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeContexts,
		RunE: func(_ *cobra.Command, args []string) error {
			return a.changeConfig(args[0], func(cfg *configFile, i int) string {
				cfg.Contexts = append(cfg.Contexts[:i], cfg.Contexts[i+1:]...)
				if cfg.Current == args[0] {
					cfg.Current = ""
				}
				return "context " + args[0] + " is forgotten"
			})
		},
	}
	cmd.AddCommand(list, show, use, remove)
	return cmd
}

// contextView is a context as it may be shown.
type contextView struct {
	Name    string `json:"name"`
	Server  string `json:"server"`
	Token   string `json:"token,omitempty"`
	CA      string `json:"ca,omitempty"`
	Current bool   `json:"current"`
}

var contexts = &noun[contextView]{
	plural: "contexts",
	name:   func(c contextView) string { return c.Name },
	columns: []column[contextView]{
		{head: "CURRENT", value: func(c contextView, _ time.Time) string { return yesNo(c.Current) }},
		{head: "NAME", value: func(c contextView, _ time.Time) string { return c.Name }},
		{head: "SERVER", value: func(c contextView, _ time.Time) string { return c.Server }},
		{head: "TOKEN", value: func(c contextView, _ time.Time) string { return c.Token }},
	},
}

func views(cfg configFile, list ...profile) []contextView {
	out := make([]contextView, 0, len(list))
	for _, p := range list {
		v := contextView{Name: p.Name, Server: p.Server, CA: p.CA, Current: p.Name == cfg.Current}
		if p.Token != "" {
			v.Token = p.Token.String()
		}
		out = append(out, v)
	}
	return out
}
