package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"pallas/internal/client"
)

func (a *app) users() *noun[client.User] {
	return &noun[client.User]{
		plural: "users", aliases: []string{"user"}, argument: "LOGIN",
		name:  func(u client.User) string { return u.Login },
		about: func(u client.User) string { return str(u.Name) },
		id:    func(u client.User) string { return u.Id.String() },
		columns: []column[client.User]{
			{head: "LOGIN", value: func(u client.User, _ time.Time) string { return u.Login }},
			{head: "NAME", value: func(u client.User, _ time.Time) string { return dash(str(u.Name)) }},
			{head: "STATE", status: true, value: func(u client.User, _ time.Time) string { return string(u.State) }},
			{head: "GRANTS", value: func(u client.User, _ time.Time) string { return dash(grants(u.Grants)) }},
			{head: "PASSWORD", value: func(u client.User, _ time.Time) string { return yesNo(u.Password) }},
			{head: "E-MAIL", wide: true, value: func(u client.User, _ time.Time) string { return dash(str(u.Email)) }},
			{head: "ID", wide: true, value: func(u client.User, _ time.Time) string { return u.Id.String() }},
			{head: "AGE", wide: true, value: func(u client.User, now time.Time) string { return age(u.CreatedAt, now) }},
		},
		filter: func(*cobra.Command) lister[client.User] {
			return func(ctx context.Context, s *session, p page) ([]client.User, *string, error) {
				return s.listUsers(ctx, &client.ListUsersParams{Cursor: p.cursor, Limit: p.limit})
			}
		},
		find: func(ctx context.Context, s *session, arg string) (client.User, error) { return s.findUser(ctx, arg) },
		suggest: func(ctx context.Context, s *session, _ string) ([]client.User, error) {
			items, _, err := s.listUsers(ctx, &client.ListUsersParams{Limit: new(int64(suggestions))})
			return items, err
		},
		describe: func(_ context.Context, _ *session, u client.User, r *report) error {
			if err := r.block("User "+u.Login,
				"Id", u.Id.String(), "Name", str(u.Name), "E-mail", str(u.Email), "State", string(u.State), "Reason", str(u.Reason),
				"Disabled", when(u.DisabledAt, r.now), "Password", yesNo(u.Password), "Created", when(u.CreatedAt, r.now), "Revision", strconv.FormatInt(u.Revision, 10)); err != nil {
				return err
			}
			return list(r, "Grants", []column[client.Grant]{
				{head: "ID", value: func(g client.Grant, _ time.Time) string { return g.Id.String() }},
				{head: "ROLE", value: func(g client.Grant, _ time.Time) string { return string(g.Role) }},
				{head: "FOR", value: func(g client.Grant, _ time.Time) string { return first(str(g.Selector), "everything") }},
				{head: "SINCE", value: func(g client.Grant, now time.Time) string { return by(g.At, g.By, now) }},
			}, u.Grants)
		},
	}
}

// grants writes the roles of a user in short.
func grants(list []client.Grant) string {
	out := make([]string, len(list))
	for i, g := range list {
		out[i] = string(g.Role)
		if s := str(g.Selector); s != "" {
			out[i] += "[" + s + "]"
		}
	}
	return strings.Join(out, " ")
}

func (s *session) listUsers(ctx context.Context, p *client.ListUsersParams) ([]client.User, *string, error) {
	r, err := ask(ctx, s, func(ctx context.Context) (*client.ListUsersResponse, error) {
		return s.api.ListUsersWithResponse(ctx, p)
	})
	if err != nil {
		return nil, nil, err
	}
	return r.JSON200.Items, r.JSON200.Next, nil
}

// findUser returns the user of an id or a login.
func (s *session) findUser(ctx context.Context, arg string) (client.User, error) {
	if id, err := uuid.Parse(arg); err == nil {
		r, err := ask(ctx, s, func(ctx context.Context) (*client.GetUserResponse, error) {
			return s.api.GetUserWithResponse(ctx, id.String(), nil)
		})
		if err != nil {
			return client.User{}, err
		}
		return *r.JSON200, nil
	}
	items, _, err := s.listUsers(ctx, &client.ListUsersParams{Login: &arg})
	if err == nil && len(items) == 0 {
		err = notFound("user", arg)
	}
	if err != nil {
		return client.User{}, err
	}
	return items[0], nil
}

// wish reads ROLE or ROLE[SELECTOR], as lists show grants.
func wish(s string) (client.GrantWish, error) {
	role, rest, scoped := strings.Cut(s, "[")
	w := client.GrantWish{Role: role}
	if !scoped {
		return w, nil
	}
	selector, ok := strings.CutSuffix(rest, "]")
	if !ok || selector == "" {
		return w, usagef("%q: want ROLE, or ROLE[SELECTOR] such as operator[site=fra]", s)
	}
	w.Selector = &selector
	return w, nil
}

func (a *app) userCommand() *cobra.Command {
	cmd := group("user", "Make, change and end users, and what they may do")
	cmd.Aliases = []string{"users"}
	list := getCommand(a, a.users())
	list.Use, list.Aliases, list.Short = "get [LOGIN…]", []string{"list", "ls"}, "List users, or show those that are named"
	each := func(use, short string, act func(context.Context, *session, client.User) (string, error)) *cobra.Command {
		return &cobra.Command{
			Use: use, Short: short, Args: cobra.MinimumNArgs(1), ValidArgsFunction: complete(a, a.users()),
			RunE: func(cmd *cobra.Command, args []string) error {
				s, err := a.open()
				if err != nil {
					return err
				}
				found, err := findAll(cmd.Context(), s, a.users(), args)
				if err != nil {
					return err
				}
				for _, u := range found {
					done, err := act(cmd.Context(), s, u)
					if err != nil {
						return err
					}
					a.say("%s", done)
				}
				return nil
			},
		}
	}
	var reason string
	disable := each("disable LOGIN…", "Take everything from users until they are enabled; their sessions end", func(ctx context.Context, s *session, u client.User) (string, error) {
		_, err := ask(ctx, s, func(ctx context.Context) (*client.DisableUserResponse, error) {
			return s.api.DisableUserWithResponse(ctx, u.Id.String(), nil, client.DisableUser{Reason: one[string](reason)})
		})
		return u.Login + " is disabled", err
	})
	disable.Flags().StringVar(&reason, "reason", "", "why, for the history, which forgets nothing: no names")
	enable := each("enable LOGIN…", "Let disabled users in again", func(ctx context.Context, s *session, u client.User) (string, error) {
		_, err := ask(ctx, s, func(ctx context.Context) (*client.EnableUserResponse, error) {
			return s.api.EnableUserWithResponse(ctx, u.Id.String(), nil)
		})
		return u.Login + " is enabled", err
	})
	var yes bool
	remove := each("delete LOGIN… --yes", "End users for good and destroy what is kept of them", func(ctx context.Context, s *session, u client.User) (string, error) {
		if !yes {
			return "", usagef("deleting %s cannot be undone: add --yes, or disable the user instead", u.Login)
		}
		_, err := ask(ctx, s, func(ctx context.Context) (*client.DeleteUserResponse, error) {
			return s.api.DeleteUserWithResponse(ctx, u.Id.String(), nil)
		})
		return u.Login + " is deleted; the log keeps the id " + u.Id.String(), err
	})
	remove.Aliases = []string{"rm"}
	remove.Flags().BoolVar(&yes, "yes", false, "do it")
	reset := each("reset-password LOGIN", "Make a one-time link with which a user sets a password", func(ctx context.Context, s *session, u client.User) (string, error) {
		return a.link(ctx, s, u)
	})
	reset.Args = cobra.ExactArgs(1)
	grant := &cobra.Command{
		Use: "grant LOGIN ROLE[SELECTOR]…", Short: "Give a user roles, such as viewer or operator[site=fra]", Args: cobra.MinimumNArgs(2), ValidArgsFunction: complete(a, a.users()),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.changeGrants(cmd.Context(), args, func(ctx context.Context, s *session, u client.User, w client.GrantWish) error {
				_, err := ask(ctx, s, func(ctx context.Context) (*client.GrantRoleResponse, error) {
					return s.api.GrantRoleWithResponse(ctx, u.Id.String(), nil, w)
				})
				return err
			})
		},
	}
	revoke := &cobra.Command{
		Use: "revoke LOGIN ROLE[SELECTOR]…", Short: "Take roles from a user, as they are listed", Args: cobra.MinimumNArgs(2), ValidArgsFunction: complete(a, a.users()),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.changeGrants(cmd.Context(), args, func(ctx context.Context, s *session, u client.User, w client.GrantWish) error {
				for _, g := range u.Grants {
					if string(g.Role) != w.Role || str(g.Selector) != str(w.Selector) {
						continue
					}
					_, err := ask(ctx, s, func(ctx context.Context) (*client.RevokeRoleResponse, error) {
						return s.api.RevokeRoleWithResponse(ctx, u.Id.String(), g.Id.String(), nil)
					})
					return err
				}
				return &Error{Code: exitNotFound, Title: "There is no such thing", Detail: fmt.Sprintf("%s has the grants: %s", u.Login, dash(grants(u.Grants)))}
			})
		},
	}
	cmd.AddCommand(a.createUser(), list, a.updateUser(), disable, enable, remove, reset, grant, revoke)
	return cmd
}

// changeGrants does something with each grant of the arguments LOGIN GRANT….
func (a *app) changeGrants(ctx context.Context, args []string, change func(context.Context, *session, client.User, client.GrantWish) error) error {
	var wishes []client.GrantWish
	for _, arg := range args[1:] {
		w, err := wish(arg)
		if err != nil {
			return err
		}
		wishes = append(wishes, w)
	}
	s, err := a.open()
	if err != nil {
		return err
	}
	u, err := s.findUser(ctx, args[0])
	if err != nil {
		return err
	}
	for _, w := range wishes {
		if err := change(ctx, s, u, w); err != nil {
			return err
		}
	}
	if u, err = s.findUser(ctx, u.Id.String()); err != nil {
		return err
	}
	a.say("%s has: %s", u.Login, dash(grants(u.Grants)))
	return nil
}

// link makes a one-time link and says until when it is good.
func (a *app) link(ctx context.Context, s *session, u client.User) (string, error) {
	r, err := ask(ctx, s, func(ctx context.Context) (*client.ResetUserPasswordResponse, error) {
		return s.api.ResetUserPasswordWithResponse(ctx, u.Id.String())
	})
	if err != nil {
		return "", err
	}
	a.note("a one-time link for %s alone, good until %s; it is shown this once:", u.Login, stamp(r.JSON200.Expires))
	return r.JSON200.Link, nil
}

func (a *app) createUser() *cobra.Command {
	var name, email string
	var roles []string
	cmd := &cobra.Command{
		Use: "create LOGIN --role ROLE[SELECTOR]…", Short: "Make a user and print the one-time link to set a password", Args: cobra.ExactArgs(1),
		Long: "Make a user and print the one-time link with which the user sets a password. The link is alone on standard output.\n\n" +
			"A role is viewer, operator or admin, for everything, or for the devices of a label selector: operator[site=fra].",
	}
	f := cmd.Flags()
	f.StringVar(&name, "name", "", "name, for people")
	f.StringVar(&email, "email", "", "e-mail address")
	f.StringArrayVar(&roles, "role", nil, "ROLE or ROLE[SELECTOR]; may be repeated")
	_ = cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions([]string{"viewer", "operator", "admin"}, cobra.ShellCompDirectiveNoFileComp)) // the flag exists
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		wishes := []client.GrantWish{}
		for _, r := range roles {
			w, err := wish(r)
			if err != nil {
				return err
			}
			wishes = append(wishes, w)
		}
		s, err := a.open()
		if err != nil {
			return err
		}
		r, err := ask(cmd.Context(), s, func(ctx context.Context) (*client.CreateUserResponse, error) {
			return s.api.CreateUserWithResponse(ctx, client.CreateUser{Login: args[0], Name: one[string](name), Email: one[string](email), Grants: &wishes})
		})
		if err != nil {
			return err
		}
		if a.output != "" {
			return printAll(a, a.users(), []client.User{*r.JSON201})
		}
		a.note("user %s may: %s", r.JSON201.Login, dash(grants(r.JSON201.Grants)))
		link, err := a.link(cmd.Context(), s, *r.JSON201)
		if err != nil {
			return err
		}
		a.say("%s", link)
		return nil
	}
	return cmd
}

func (a *app) updateUser() *cobra.Command {
	var login, name, email string
	cmd := &cobra.Command{
		Use: "update LOGIN [--login NEW] [--name NAME] [--email ADDRESS]", Short: "Change login, name or e-mail address of a user", Args: cobra.ExactArgs(1), ValidArgsFunction: complete(a, a.users()),
	}
	f := cmd.Flags()
	f.StringVar(&login, "login", "", "new login")
	f.StringVar(&name, "name", "", "new name; \"\" for none")
	f.StringVar(&email, "email", "", "new e-mail address; \"\" for none")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var body client.UpdateUser
		for flag, to := range map[string]**string{"login": &body.Login, "name": &body.Name, "email": &body.Email} {
			if cmd.Flags().Changed(flag) {
				*to = new(map[string]string{"login": login, "name": name, "email": email}[flag])
			}
		}
		s, err := a.open()
		if err != nil {
			return err
		}
		u, err := s.findUser(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		r, err := ask(cmd.Context(), s, func(ctx context.Context) (*client.UpdateUserResponse, error) {
			return s.api.UpdateUserWithResponse(ctx, u.Id.String(), nil, body)
		})
		if err != nil {
			return err
		}
		return printAll(a, a.users(), []client.User{*r.JSON200})
	}
	return cmd
}

func (a *app) roleCommand() *cobra.Command {
	roles := &noun[client.Role]{
		plural: "roles",
		name:   func(r client.Role) string { return string(r.Role) },
	}
	type row struct {
		Role, Permission, Scope, Doc string
	}
	table := &noun[row]{
		plural: "roles",
		name:   func(r row) string { return r.Role },
		columns: []column[row]{
			{head: "ROLE", value: func(r row, _ time.Time) string { return r.Role }},
			{head: "PERMISSION", value: func(r row, _ time.Time) string { return r.Permission }},
			{head: "SELECTOR", value: func(r row, _ time.Time) string { return r.Scope }},
			{head: "MAY", value: func(r row, _ time.Time) string { return r.Doc }},
		},
	}
	cmd := group("role", "See what each role permits")
	cmd.Aliases = []string{"roles"}
	cmd.AddCommand(&cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the roles and what each permits; each has the permissions of those before it",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.open()
			if err != nil {
				return err
			}
			r, err := ask(cmd.Context(), s, func(ctx context.Context) (*client.ListRolesResponse, error) { return s.api.ListRolesWithResponse(ctx) })
			if err != nil {
				return err
			}
			if a.output != "" && a.output != formatTable && a.output != formatWide {
				return printAll(a, roles, r.JSON200.Items)
			}
			var rows []row
			for _, role := range r.JSON200.Items {
				for _, p := range role.Permissions {
					scope := "no"
					if p.Scoped {
						scope = "yes"
					}
					rows = append(rows, row{string(role.Role), p.Permission, scope, p.Doc})
				}
			}
			return printAll(a, table, rows)
		},
	})
	return cmd
}
