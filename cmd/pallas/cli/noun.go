package cli

import (
	"context"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// noun is a kind of thing of the API: how it is listed, found and shown.
type noun[T any] struct {
	plural   string
	aliases  []string
	argument string // how one is named on the command line
	columns  []column[T]
	// name is what -o name prints and what find takes.
	name func(T) string
	// about describes it in a completion.
	about func(T) string
	// id is permanent; for watching.
	id func(T) string
	// kinds are the subjects whose events can change a list of it.
	kinds []string
	// window bounds what is watched to the newest ones; 0 is all.
	window int
	// filter adds the flags that pick some and returns the list that obeys them.
	filter func(*cobra.Command) lister[T]
	// find returns what an argument names, in full.
	find     func(ctx context.Context, s *session, arg string) (T, error)
	describe func(ctx context.Context, s *session, item T, r *report) error
	// suggest lists what begins with or contains a text, for completions.
	suggest func(ctx context.Context, s *session, text string) ([]T, error)
}

// lister fetches one page of a list. next is nil after the last one.
type lister[T any] func(ctx context.Context, s *session, p page) (items []T, next *string, err error)

type page struct {
	cursor *string
	limit  *int64
}

// pageSize is the largest page that the API answers.
const pageSize = 1000

// pages fetches a list page after page, up to limit items; 0 is all. A page
// may be empty while others follow.
func pages[T any](ctx context.Context, s *session, fetch lister[T], limit int) iter.Seq2[[]T, error] {
	return func(yield func([]T, error) bool) {
		left, p := limit, page{}
		for {
			size := int64(pageSize)
			if limit > 0 {
				size = int64(min(left, pageSize))
			}
			p.limit = &size
			items, next, err := fetch(ctx, s, p)
			if err != nil {
				yield(nil, err)
				return
			}
			left -= len(items)
			if !yield(items, nil) || next == nil || *next == "" || limit > 0 && left <= 0 {
				return
			}
			p.cursor = next
		}
	}
}

// all fetches a list whole.
func all[T any](ctx context.Context, s *session, fetch lister[T], limit int) ([]T, error) {
	var out []T
	for items, err := range pages(ctx, s, fetch, limit) {
		if err != nil {
			return nil, err
		}
		out = append(out, items...)
	}
	return out, nil
}

func getCommand[T any](a *app, n *noun[T]) *cobra.Command {
	cmd := &cobra.Command{
		Use:               n.plural + " [" + n.argument + "…]",
		Aliases:           n.aliases,
		Short:             "List " + n.plural + ", or show those that are named",
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: complete(a, n),
	}
	var limit int
	cmd.Flags().IntVar(&limit, "limit", 0, "how many to show at most; 0 is all")
	fetch := n.filter(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if limit < 0 {
			return usagef("--limit %d: want 0 or more", limit)
		}
		s, err := a.open()
		if err != nil {
			return err
		}
		if len(args) > 0 {
			if err := noFilters(cmd, n); err != nil {
				return err
			}
			items, err := findAll(cmd.Context(), s, n, args)
			if err != nil {
				return err
			}
			return printAll(a, n, items)
		}
		p := newPrinter(a, n)
		for items, err := range pages(cmd.Context(), s, fetch, limit) {
			if err != nil {
				return err
			}
			for _, item := range items {
				if err := p.add(item); err != nil {
					return err
				}
			}
			if err := p.flush(); err != nil {
				return err
			}
		}
		return p.end(a)
	}
	return cmd
}

// noFilters refuses flags that would be ignored beside names.
func noFilters[T any](cmd *cobra.Command, n *noun[T]) error {
	probe := &cobra.Command{}
	n.filter(probe)
	var err error
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if probe.Flags().Lookup(f.Name) != nil || f.Name == "limit" {
			err = usagef("--%s picks from the list; it does not go with names", f.Name)
		}
	})
	return err
}

func findAll[T any](ctx context.Context, s *session, n *noun[T], args []string) ([]T, error) {
	items := make([]T, 0, len(args))
	for _, arg := range args {
		item, err := n.find(ctx, s, arg)
		if err != nil {
			return nil, err
		}
		items = append(items, item)
	}
	return items, nil
}

func describeCommand[T any](a *app, n *noun[T]) *cobra.Command {
	return &cobra.Command{
		Use:               n.plural + " " + n.argument + "…",
		Aliases:           n.aliases,
		Short:             "Tell everything about " + n.plural,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: complete(a, n),
		RunE: func(cmd *cobra.Command, args []string) error {
			if a.output != "" {
				return usagef("describe is for people; get has -o %s", a.output)
			}
			s, err := a.open()
			if err != nil {
				return err
			}
			r := &report{w: a.out, color: a.color(), now: a.now}
			for _, arg := range args {
				item, err := n.find(cmd.Context(), s, arg)
				if err != nil {
					return err
				}
				if err := n.describe(cmd.Context(), s, item, r); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// completeTimeout bounds what a person waits for after the tabulator key.
const completeTimeout = 2 * time.Second

// complete suggests names of things that exist now.
func complete[T any](a *app, n *noun[T]) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, text string) ([]cobra.Completion, cobra.ShellCompDirective) {
		a.timeout = completeTimeout
		s, err := a.open()
		if err != nil || n.suggest == nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completeTimeout)
		defer cancel()
		items, err := n.suggest(ctx, s, text)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		out := make([]cobra.Completion, 0, len(items))
		for _, item := range items {
			out = append(out, cobra.CompletionWithDesc(clean(n.name(item)), clean(n.about(item))))
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

// suggestions bounds a completion.
const suggestions = 100

func (a *app) completeContexts(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	cfg, err := loadConfig()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []cobra.Completion
	for _, p := range cfg.Contexts {
		out = append(out, cobra.CompletionWithDesc(clean(p.Name), clean(p.Server)))
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// choice adds a flag that takes one or several of a few words.
func choice(cmd *cobra.Command, to *[]string, name, help string, words ...string) {
	cmd.Flags().StringSliceVar(to, name, nil, fmt.Sprintf("%s: %s", help, strings.Join(words, ", ")))
	_ = cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)) // the flag exists
}

// some is a list parameter of the API, absent when it is empty.
func some[E ~string](words []string) *[]E {
	if len(words) == 0 {
		return nil
	}
	out := make([]E, len(words))
	for i, w := range words {
		out[i] = E(w)
	}
	return &out
}

// one is a parameter of the API, absent when it is empty.
func one[E ~string](word string) *E {
	if word == "" {
		return nil
	}
	return new(E(word))
}
