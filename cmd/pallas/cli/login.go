package cli

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

func (a *app) loginCommand() *cobra.Command {
	var token string
	cmd := &cobra.Command{
		Use:   "login --server URL [--ca-file FILE] [--token-file FILE]",
		Short: "Check a token with the manager and keep it in a context",
		Long: "Check a token with the manager, keep server, CA and token in a context of the configuration file, and use it from now on.\n\n" +
			"Without --token-file, --token, PALLAS_TOKEN or PALLAS_TOKEN_FILE the token is asked for. --context names the context; it is the server's host otherwise.\n" +
			"The file is that of PALLAS_CONFIG, or pallas/config.yaml in the user's configuration directory; only its owner can read it.",
		RunE: func(cmd *cobra.Command, _ []string) error { return a.login(cmd.Context(), token) },
	}
	cmd.Flags().StringVar(&token, "token", "", "the API token; - reads it from standard input")
	return cmd
}

func (a *app) login(ctx context.Context, token string) error {
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
	if p.Token, err = a.loginToken(token); err != nil {
		return err
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
	a.say("logged in to %s (version %s) as %s; context %s is in use", p.Server, st.Version, who.Name, p.Name)
	return nil
}

func (a *app) loginToken(flag string) (secret, error) {
	switch {
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
		return "", usagef("a token is needed: --token-file FILE, or --token - to read it from standard input")
	}
	fmt.Fprint(a.err, "token: ")
	b, err := term.ReadPassword(int(f.Fd()))
	fmt.Fprintln(a.err)
	if err != nil {
		return "", fmt.Errorf("read the token: %w", err)
	}
	return secret(b), nil
}

func (a *app) logoutCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "logout",
		Short: "Forget the token of a context",
		Long:  "Forget the token of the current context, or of --context. Server and CA stay for the next login. The token itself stays valid.",
		RunE: func(*cobra.Command, []string) error {
			return a.changeConfig(a.context, func(cfg *configFile, i int) string {
				cfg.Contexts[i].Token = ""
				return "logged out of " + cfg.Contexts[i].Server
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
