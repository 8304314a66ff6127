package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"pallas/internal/client"
)

var apiTokens = &noun[client.APIToken]{
	plural: "tokens",
	name:   func(t client.APIToken) string { return t.Id },
	columns: []column[client.APIToken]{
		{head: "ID", value: func(t client.APIToken, _ time.Time) string { return t.Id }},
		{head: "NAME", value: func(t client.APIToken, _ time.Time) string { return dash(str(t.Name)) }},
		{head: "STATE", status: true, value: func(t client.APIToken, _ time.Time) string { return string(t.State) }},
		{head: "PERMITS", value: func(t client.APIToken, _ time.Time) string { return permits(t) }},
		{head: "EXPIRES", value: func(t client.APIToken, _ time.Time) string { return stamp(t.Expires) }},
		{head: "USED", value: func(t client.APIToken, now time.Time) string { return age(t.UsedAt, now) }},
		{head: "FROM", value: func(t client.APIToken, _ time.Time) string { return dash(str(t.UsedFrom)) }},
		{head: "AGE", wide: true, value: func(t client.APIToken, now time.Time) string { return age(t.IssuedAt, now) }},
	},
}

// permits writes what a token is bounded to.
func permits(t client.APIToken) string {
	what := "all"
	if t.Role != nil {
		what = string(*t.Role)
	}
	if s := str(t.Selector); s != "" {
		what += "[" + s + "]"
	}
	return what
}

func (a *app) tokenCommand() *cobra.Command {
	var of string
	cmd := group("token", "Make, see and revoke API tokens, for programs")
	cmd.Aliases = []string{"tokens"}
	user := func(c *cobra.Command) *cobra.Command {
		c.Flags().StringVar(&of, "user", "", "login or id of a user, for administrators; one's own otherwise")
		return c
	}
	// owner is the id of the user that --user names, "" for oneself.
	owner := func(ctx context.Context, s *session) (string, error) {
		if of == "" {
			return "", nil
		}
		u, err := s.findUser(ctx, of)
		return u.Id.String(), err
	}
	var name, ttl string
	create := user(&cobra.Command{
		Use: "create [ROLE[SELECTOR]]", Short: "Make an API token and print it", Args: cobra.MaximumNArgs(1),
		Long: "Make an API token and print it, alone on standard output; it is shown this once.\n\n" +
			"Without a role it permits all that its owner may do. It never permits more than that, also when its owner loses something.",
		RunE: func(cmd *cobra.Command, args []string) error {
			body := client.CreateAPIToken{Name: one[string](name)}
			if ttl != "" {
				life, err := duration(ttl)
				if err != nil {
					return usagef("--ttl %q: want a duration such as 12h or 90d", ttl)
				}
				body.Ttl = new(int64(life.Seconds()))
			}
			if len(args) == 1 {
				w, err := wish(args[0])
				if err != nil {
					return err
				}
				body.Role, body.Selector = one[string](w.Role), w.Selector
			}
			s, err := a.open()
			if err != nil {
				return err
			}
			id, err := owner(cmd.Context(), s)
			if err != nil {
				return err
			}
			var t client.CreatedAPIToken
			if id == "" {
				r, err := ask(cmd.Context(), s, func(ctx context.Context) (*client.CreateTokenResponse, error) {
					return s.api.CreateTokenWithResponse(ctx, body)
				})
				if err != nil {
					return err
				}
				t = *r.JSON201
			} else {
				r, err := ask(cmd.Context(), s, func(ctx context.Context) (*client.CreateUserTokenResponse, error) {
					return s.api.CreateUserTokenWithResponse(ctx, id, body)
				})
				if err != nil {
					return err
				}
				t = *r.JSON201
			}
			if a.output != "" {
				return printAll(a, createdToken, []client.CreatedAPIToken{t})
			}
			a.note("token %s is good until %s; it is shown this once:", t.Id, stamp(t.Expires))
			a.say("%s", t.Token)
			return nil
		},
	})
	create.Flags().StringVar(&name, "name", "", "what it is for")
	create.Flags().StringVar(&ttl, "ttl", "", "how long it is good for, such as 12h or 90d, at most a year; 90d, or as long as the own token lasts, otherwise")
	list := user(&cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List API tokens, without their secrets",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.open()
			if err != nil {
				return err
			}
			id, err := owner(cmd.Context(), s)
			if err != nil {
				return err
			}
			if id == "" {
				r, err := ask(cmd.Context(), s, func(ctx context.Context) (*client.ListTokensResponse, error) {
					return s.api.ListTokensWithResponse(ctx)
				})
				if err != nil {
					return err
				}
				return printAll(a, apiTokens, r.JSON200.Items)
			}
			r, err := ask(cmd.Context(), s, func(ctx context.Context) (*client.ListUserTokensResponse, error) {
				return s.api.ListUserTokensWithResponse(ctx, id)
			})
			if err != nil {
				return err
			}
			return printAll(a, apiTokens, r.JSON200.Items)
		},
	})
	revoke := user(&cobra.Command{
		Use: "revoke ID…", Short: "End API tokens at once", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.open()
			if err != nil {
				return err
			}
			id, err := owner(cmd.Context(), s)
			if err != nil {
				return err
			}
			for _, t := range args {
				if err := s.revokeToken(cmd.Context(), id, t); err != nil {
					return err
				}
				a.say("token %s revoked", t)
			}
			return nil
		},
	})
	cmd.AddCommand(create, list, revoke)
	return cmd
}

// revokeToken ends a token of a user, "" for one's own.
func (s *session) revokeToken(ctx context.Context, user, token string) error {
	var err error
	if user == "" {
		_, err = ask(ctx, s, func(ctx context.Context) (*client.RevokeTokenResponse, error) {
			return s.api.RevokeTokenWithResponse(ctx, token)
		})
	} else {
		_, err = ask(ctx, s, func(ctx context.Context) (*client.RevokeUserTokenResponse, error) {
			return s.api.RevokeUserTokenWithResponse(ctx, user, token)
		})
	}
	if err != nil {
		return fmt.Errorf("token %s: %w", token, err)
	}
	return nil
}

// createdToken shows a new API token with its secret.
var createdToken = &noun[client.CreatedAPIToken]{
	plural: "tokens",
	name:   func(t client.CreatedAPIToken) string { return t.Id },
	columns: []column[client.CreatedAPIToken]{
		{head: "ID", value: func(t client.CreatedAPIToken, _ time.Time) string { return t.Id }},
		{head: "EXPIRES", value: func(t client.CreatedAPIToken, _ time.Time) string { return stamp(t.Expires) }},
		{head: "TOKEN", value: func(t client.CreatedAPIToken, _ time.Time) string { return t.Token }},
	},
}
