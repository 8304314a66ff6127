package cli

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"pallas/internal/client"
)

func (a *app) joinTokens() *noun[client.JoinToken] {
	return &noun[client.JoinToken]{
		plural: "join-tokens", aliases: []string{"join-token", "jt"}, argument: "ID",
		name:  func(t client.JoinToken) string { return t.Id.String() },
		about: func(t client.JoinToken) string { return string(t.State) + " " + str(t.Name) },
		id:    func(t client.JoinToken) string { return t.Id.String() },
		kinds: []string{"token"},
		columns: []column[client.JoinToken]{
			{head: "ID", value: func(t client.JoinToken, _ time.Time) string { return t.Id.String() }},
			{head: "NAME", value: func(t client.JoinToken, _ time.Time) string { return dash(str(t.Name)) }},
			{head: "STATE", status: true, value: func(t client.JoinToken, _ time.Time) string { return string(t.State) }},
			{head: "USES", value: func(t client.JoinToken, _ time.Time) string { return fmt.Sprintf("%d/%d", t.Uses, t.MaxUses) }},
			{head: "APPROVE", value: func(t client.JoinToken, _ time.Time) string { return string(t.Approve) }},
			{head: "EXPIRES", value: func(t client.JoinToken, _ time.Time) string { return stamp(t.Expires) }},
			{head: "LABELS", value: func(t client.JoinToken, _ time.Time) string { return dash(pairs(t.Labels)) }},
			{head: "NAMES", wide: true, value: func(t client.JoinToken, _ time.Time) string { return dash(str(t.NamePattern)) }},
			{head: "BY", wide: true, value: func(t client.JoinToken, _ time.Time) string { return dash(str(t.CreatedBy)) }},
			{head: "AGE", wide: true, value: func(t client.JoinToken, now time.Time) string { return age(t.CreatedAt, now) }},
		},
		filter: func(cmd *cobra.Command) lister[client.JoinToken] {
			var active bool
			cmd.Flags().BoolVar(&active, "active", false, "only those that devices can register with; --active=false for the others")
			return func(ctx context.Context, s *session, p page) ([]client.JoinToken, *string, error) {
				q := &client.ListJoinTokensParams{Cursor: p.cursor, Limit: p.limit}
				if cmd.Flags().Changed("active") {
					q.Active = &active
				}
				return s.listJoinTokens(ctx, q)
			}
		},
		find: func(ctx context.Context, s *session, arg string) (client.JoinToken, error) {
			return s.findJoinToken(ctx, arg)
		},
		suggest: func(ctx context.Context, s *session, _ string) ([]client.JoinToken, error) {
			items, _, err := s.listJoinTokens(ctx, &client.ListJoinTokensParams{Limit: new(int64(suggestions))})
			return items, err
		},
		describe: func(_ context.Context, _ *session, t client.JoinToken, r *report) error {
			return r.block("Join token "+t.Id.String(),
				"Name", str(t.Name), "State", string(t.State), "Uses", fmt.Sprintf("%d of %d", t.Uses, t.MaxUses), "Approve", string(t.Approve),
				"Labels", pairs(t.Labels), "Names", str(t.NamePattern), "For device", str(t.Device), "Created", by(t.CreatedAt, t.CreatedBy, r.now), "Expires", when(&t.Expires, r.now), "Revoked", by(t.RevokedAt, t.RevokedBy, r.now),
				"Revision", strconv.FormatInt(t.Revision, 10))
		},
	}
}

func (s *session) listJoinTokens(ctx context.Context, p *client.ListJoinTokensParams) ([]client.JoinToken, *string, error) {
	r, err := ask(ctx, s, func(ctx context.Context) (*client.ListJoinTokensResponse, error) {
		return s.api.ListJoinTokensWithResponse(ctx, p)
	})
	if err != nil {
		return nil, nil, err
	}
	return r.JSON200.Items, r.JSON200.Next, nil
}

// findJoinToken returns the join token of an id, an exact name, or a prefix of
// an id.
func (s *session) findJoinToken(ctx context.Context, arg string) (client.JoinToken, error) {
	if id, err := uuid.Parse(arg); err == nil {
		r, err := ask(ctx, s, func(ctx context.Context) (*client.GetJoinTokenResponse, error) {
			return s.api.GetJoinTokenWithResponse(ctx, id.String(), nil)
		})
		if err != nil {
			return client.JoinToken{}, err
		}
		return *r.JSON200, nil
	}
	items, err := all(ctx, s, func(ctx context.Context, s *session, p page) ([]client.JoinToken, *string, error) {
		return s.listJoinTokens(ctx, &client.ListJoinTokensParams{Cursor: p.cursor, Limit: p.limit})
	}, 0)
	if err != nil {
		return client.JoinToken{}, err
	}
	return pick("join token", arg, items, func(t client.JoinToken) (string, string) { return t.Id.String(), str(t.Name) })
}

func (a *app) joinTokenCommand() *cobra.Command {
	cmd := group("join-token", "Let devices in: issue join tokens, list and revoke them")
	cmd.Aliases = []string{"join-tokens", "jt"}
	list := getCommand(a, a.joinTokens())
	list.Use, list.Aliases, list.Short = "list [ID…]", []string{"ls"}, "List join tokens"
	revoke := &cobra.Command{
		Use: "revoke ID…", Short: "End join tokens; devices that have registered stay", Args: cobra.MinimumNArgs(1), ValidArgsFunction: complete(a, a.joinTokens()),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.open()
			if err != nil {
				return err
			}
			tokens, err := findAll(cmd.Context(), s, a.joinTokens(), args)
			if err != nil {
				return err
			}
			for _, t := range tokens {
				if _, err := ask(cmd.Context(), s, func(ctx context.Context) (*client.RevokeJoinTokenResponse, error) {
					return s.api.RevokeJoinTokenWithResponse(ctx, t.Id.String())
				}); err != nil {
					return err
				}
				a.say("join token %s revoked", t.Id)
			}
			return nil
		},
	}
	cmd.AddCommand(a.createJoinToken(), list, revoke)
	return cmd
}

func (a *app) createJoinToken() *cobra.Command {
	var (
		name, approve, ttl, key, pattern, device string
		uses                                     int64
		labelled                                 []string
	)
	cmd := &cobra.Command{
		Use: "create", Short: "Issue a join token and print its join string",
		Long: "Issue a join token. The join string is alone on standard output; it holds a secret and is shown this once.",
	}
	f := cmd.Flags()
	f.StringVar(&name, "name", "", "what it is for")
	f.Int64Var(&uses, "max-uses", 1, "how many devices may register with it")
	f.StringVar(&ttl, "ttl", "24h", "how long it is good for, such as 90m or 7d")
	f.StringVar(&approve, "approve", "manual", "auto approves a device when it registers, manual lets it wait for pallas approve")
	f.StringArrayVar(&labelled, "label", nil, "key=value that its devices start with; may be repeated")
	f.StringVar(&pattern, "name-pattern", "", "names its devices, such as till-{n}: {host} is what a device calls itself, {id8} the beginning of its id, {n} which use of the token it took")
	f.StringVar(&device, "device", "", "a device that lost its key: it joins once with the new one, and keeps its name, labels and trust")
	f.StringVar(&key, "idempotency-key", "", "a word of yours: the same command with the same key happens once")
	_ = cmd.RegisterFlagCompletionFunc("approve", cobra.FixedCompletions([]string{"auto", "manual"}, cobra.ShellCompDirectiveNoFileComp)) // the flag exists
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		set, err := labels(labelled, false)
		if err != nil {
			return err
		}
		plain := make(map[string]string, len(set))
		for k, v := range set {
			plain[k] = *v
		}
		life, err := duration(ttl)
		if err != nil {
			return usagef("--ttl %q: want a duration such as 90m or 7d", ttl)
		}
		s, err := a.open()
		if err != nil {
			return err
		}
		if device != "" {
			d, err := s.findDevice(cmd.Context(), device)
			if err != nil {
				return err
			}
			device = d.Id.String()
		}
		r, err := ask(cmd.Context(), s, func(ctx context.Context) (*client.CreateJoinTokenResponse, error) {
			return s.api.CreateJoinTokenWithResponse(ctx, &client.CreateJoinTokenParams{IdempotencyKey: one[string](key)}, client.CreateJoinToken{
				Name: one[string](name), MaxUses: &uses, Ttl: new(int64(life.Seconds())), Approve: new(client.CreateJoinTokenApprove(approve)), Labels: &plain, NamePattern: one[string](pattern), Device: one[string](device),
			})
		})
		if err != nil {
			return err
		}
		t := r.JSON201
		if a.output != "" {
			return printAll(a, created, []client.CreatedJoinToken{*t})
		}
		a.note("join token %s: %d uses until %s, approval %s. Give the join string to the agents; it is shown this once.", t.Id, t.MaxUses, stamp(t.Expires), t.Approve)
		a.say("%s", t.Join)
		return nil
	}
	return cmd
}

// created shows a new join token with its secret.
var created = &noun[client.CreatedJoinToken]{
	plural: "join-tokens",
	name:   func(t client.CreatedJoinToken) string { return t.Id.String() },
	columns: []column[client.CreatedJoinToken]{
		{head: "ID", value: func(t client.CreatedJoinToken, _ time.Time) string { return t.Id.String() }},
		{head: "EXPIRES", value: func(t client.CreatedJoinToken, _ time.Time) string { return stamp(t.Expires) }},
		{head: "JOIN", value: func(t client.CreatedJoinToken, _ time.Time) string { return t.Join }},
	},
}
