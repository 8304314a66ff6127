package cli

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"pallas/internal/client"
)

// signIn exchanges login and password for an API token, so that no password is
// kept. The session in between ends at once.
func (s *session) signIn(ctx context.Context, login string, password secret, life time.Duration) (client.CreatedAPIToken, error) {
	begun, err := ask(ctx, s, func(ctx context.Context) (*client.CreateSessionResponse, error) {
		return s.api.CreateSessionWithResponse(ctx, client.SignIn{Login: login, Password: string(password)})
	})
	if err != nil {
		return client.CreatedAPIToken{}, err
	}
	var cookie string
	for _, c := range begun.HTTPResponse.Cookies() {
		cookie = c.Name + "=" + c.Value
	}
	asSession := func(_ context.Context, r *http.Request) error { //nolint:unparam // the client's own type
		r.Header.Del("Authorization")
		r.Header.Set("Cookie", cookie)
		return nil
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	made, err := ask(ctx, s, func(ctx context.Context) (*client.CreateTokenResponse, error) {
		return s.api.CreateTokenWithResponse(ctx, client.CreateAPIToken{Name: new("pallas login on " + host), Ttl: new(int64(life.Seconds()))}, asSession)
	})
	if err != nil {
		return client.CreatedAPIToken{}, err
	}
	if _, err := ask(ctx, s, func(ctx context.Context) (*client.EndSessionResponse, error) {
		return s.api.EndSessionWithResponse(ctx, asSession)
	}); err != nil {
		return client.CreatedAPIToken{}, err
	}
	return *made.JSON201, nil
}

// prompt asks a person for a line.
func (a *app) prompt(what string) (string, error) {
	fmt.Fprint(a.err, what+": ")
	line, err := bufio.NewReader(a.in).ReadString('\n')
	if err != nil && err != io.EOF {
		return "", fmt.Errorf("read the %s: %w", what, err)
	}
	return strings.TrimSpace(line), nil
}

// readPassword takes a password from a file, "-" for standard input, or asks a
// person for it.
func (a *app) readPassword(file, what string) (secret, error) {
	switch f, ok := a.in.(*os.File); {
	case file == "" && ok && terminal(f):
		fmt.Fprint(a.err, what+": ")
		b, err := term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(a.err)
		if err != nil {
			return "", fmt.Errorf("read the %s: %w", what, err)
		}
		return secret(b), nil
	case file == "":
		return "", usagef("a %s is needed, and there is no terminal to ask at: give it in a file", what)
	}
	text, err := a.readFile(file)
	if err != nil {
		return "", usagef("%s: %v", what, err)
	}
	return secret(strings.TrimRight(text, "\r\n")), nil
}

// readFile reads a small file, "-" for standard input.
func (a *app) readFile(path string) (string, error) {
	r := a.in
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return "", err
		}
		defer f.Close() //nolint:errcheck // read only
		r = f
	}
	b, err := io.ReadAll(io.LimitReader(r, 4096))
	return string(b), err
}

func (a *app) setPasswordCommand() *cobra.Command {
	var linkFile, passwordFile string
	cmd := &cobra.Command{
		Use:   "set-password --link-file FILE [--password-file FILE]",
		Short: "Set a password with a one-time link",
		Long: "Set a password with a one-time link, as pallasd init, pallasd reset-password and pallas user reset-password print one.\n\n" +
			"The manager is that of the link unless --server names another one. The password is asked for unless it is in a file. - is standard input.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if linkFile == "" {
				return usagef("--link-file is missing; - reads the link from standard input")
			}
			if linkFile == "-" && passwordFile == "-" {
				return usagef("--link-file and --password-file cannot both be standard input")
			}
			text, err := a.readFile(linkFile)
			if err != nil {
				return usagef("--link-file: %v", err)
			}
			link := strings.TrimSpace(text)
			base, _, ok := strings.Cut(link, "/setup#")
			if !ok {
				return usagef("--link-file: want a link of the form https://host/setup#plr_…")
			}
			p, err := a.place(first(a.server, os.Getenv("PALLAS_SERVER"), base))
			if err != nil {
				return err
			}
			password, err := a.newPassword(passwordFile)
			if err != nil {
				return err
			}
			s, err := a.connect(p)
			if err != nil {
				return err
			}
			r, err := ask(cmd.Context(), s, func(ctx context.Context) (*client.SetPasswordResponse, error) {
				return s.api.SetPasswordWithResponse(ctx, client.SetPassword{Link: link, Password: string(password)})
			})
			if err != nil {
				return linkHint(err)
			}
			a.say("the password of %s is set; log in with: pallas login --server %s --user %s", r.JSON200.Login, p.Server, r.JSON200.Login)
			return nil
		},
	}
	cmd.Flags().StringVar(&linkFile, "link-file", "", "file that holds the link; - is standard input")
	cmd.Flags().StringVar(&passwordFile, "password-file", "", "file that holds the new password; - is standard input")
	return cmd
}

// linkHint says where links come from, which logging in does not help with.
func linkHint(err error) error {
	if e := asError(err); e.Code == exitDenied {
		e.Hint = "an administrator makes another one with: pallas user reset-password LOGIN"
		return e
	}
	return err
}

// newPassword reads a new password, from a person twice.
func (a *app) newPassword(file string) (secret, error) {
	password, err := a.readPassword(file, "new password")
	if err != nil || file != "" {
		return password, err
	}
	again, err := a.readPassword("", "the same again")
	if err == nil && again != password {
		err = usagef("the two passwords are not the same")
	}
	return password, err
}

// place is a manager without a credential for it, with the CA of flags,
// environment or a context of the same server.
func (a *app) place(server string) (profile, error) {
	cfg, err := loadConfig()
	if err != nil {
		return profile{}, err
	}
	p := profile{Server: server}
	for _, c := range cfg.Contexts {
		if sameServer(c.Server, server) {
			p.CA = c.CA
		}
	}
	if path := first(a.caFile, os.Getenv("PALLAS_CA_FILE")); path != "" {
		b, err := os.ReadFile(path)
		if err != nil {
			return profile{}, usagef("CA file: %v", err)
		}
		p.CA = string(b)
	}
	return p, nil
}

func (a *app) passwordCommand() *cobra.Command {
	var oldFile, newFile string
	cmd := &cobra.Command{
		Use:   "password [--old-file FILE --new-file FILE]",
		Short: "Change one's own password",
		Long:  "Change one's own password. All sessions end; API tokens stay. Both passwords are asked for unless they are in files; - is standard input.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.open()
			if err != nil {
				return err
			}
			old, err := a.readPassword(oldFile, "present password")
			if err != nil {
				return err
			}
			password, err := a.newPassword(newFile)
			if err != nil {
				return err
			}
			if _, err := ask(cmd.Context(), s, func(ctx context.Context) (*client.ChangePasswordResponse, error) {
				return s.api.ChangePasswordWithResponse(ctx, client.ChangePassword{Old: string(old), New: string(password)})
			}); err != nil {
				return err
			}
			a.say("the password is changed; all sessions have ended")
			return nil
		},
	}
	cmd.Flags().StringVar(&oldFile, "old-file", "", "file that holds the present password")
	cmd.Flags().StringVar(&newFile, "new-file", "", "file that holds the new password")
	return cmd
}

var sessions = &noun[client.Session]{
	plural: "sessions",
	name:   func(s client.Session) string { return s.Id },
	columns: []column[client.Session]{
		{head: "ID", value: func(s client.Session, _ time.Time) string { return s.Id }},
		{head: "CURRENT", value: func(s client.Session, _ time.Time) string { return yesNo(s.Current) }},
		{head: "METHOD", value: func(s client.Session, _ time.Time) string { return string(s.Method) }},
		{head: "FROM", value: func(s client.Session, _ time.Time) string { return dash(first(str(s.UsedFrom), str(s.Source))) }},
		{head: "USED", value: func(s client.Session, now time.Time) string { return age(s.UsedAt, now) }},
		{head: "BEGUN", value: func(s client.Session, _ time.Time) string { return stamp(s.CreatedAt) }},
		{head: "EXPIRES", value: func(s client.Session, _ time.Time) string { return stamp(s.Expires) }},
	},
}

func (a *app) sessionCommand() *cobra.Command {
	cmd := group("session", "See and end the sessions of browsers")
	cmd.Aliases = []string{"sessions"}
	var of string
	list := &cobra.Command{
		Use: "list [--user LOGIN]", Aliases: []string{"ls"}, Short: "List one's own sessions, or those of a user",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.open()
			if err != nil {
				return err
			}
			if of == "" {
				r, err := ask(cmd.Context(), s, func(ctx context.Context) (*client.ListSessionsResponse, error) {
					return s.api.ListSessionsWithResponse(ctx)
				})
				if err != nil {
					return err
				}
				return printAll(a, sessions, r.JSON200.Items)
			}
			u, err := s.findUser(cmd.Context(), of)
			if err != nil {
				return err
			}
			r, err := ask(cmd.Context(), s, func(ctx context.Context) (*client.ListUserSessionsResponse, error) {
				return s.api.ListUserSessionsWithResponse(ctx, u.Id.String())
			})
			if err != nil {
				return err
			}
			return printAll(a, sessions, r.JSON200.Items)
		},
	}
	list.Flags().StringVar(&of, "user", "", "login or id of a user")
	end := &cobra.Command{
		Use: "end ID… | --user LOGIN", Short: "End sessions of one's own, or all of a user", Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if (of == "") == (len(args) == 0) {
				return usagef("want ids of sessions, or --user LOGIN for all of a user")
			}
			s, err := a.open()
			if err != nil {
				return err
			}
			if of != "" {
				u, err := s.findUser(cmd.Context(), of)
				if err != nil {
					return err
				}
				if _, err := ask(cmd.Context(), s, func(ctx context.Context) (*client.EndUserSessionsResponse, error) {
					return s.api.EndUserSessionsWithResponse(ctx, u.Id.String())
				}); err != nil {
					return err
				}
				a.say("all sessions of %s have ended", u.Login)
				return nil
			}
			for _, id := range args {
				if _, err := ask(cmd.Context(), s, func(ctx context.Context) (*client.EndOwnSessionResponse, error) {
					return s.api.EndOwnSessionWithResponse(ctx, id)
				}); err != nil {
					return err
				}
				a.say("session %s has ended", id)
			}
			return nil
		},
	}
	end.Flags().StringVar(&of, "user", "", "login or id of a user")
	cmd.AddCommand(list, end)
	return cmd
}
