package queryhttp

import (
	"context"
	"errors"
	"maps"

	lru "github.com/hashicorp/golang-lru/v2"

	"pallas/events"
	"pallas/events/labels"
	"pallas/internal/auth"
	"pallas/internal/httpapi"
	"pallas/projections"
)

// isAccess says that a kind of aggregate is about people and what they may do.
func isAccess(kind string) bool { return kind == events.KindAccess || kind == events.KindUser }

// sight is which events a caller may see: those of devices and join tokens by
// the labels that these have now, those of users by a permission of its own, and
// those of anything else with a right to everything.
type sight struct {
	all     bool // hides nothing
	fleet   labels.Scope
	joining labels.Scope
	access  bool
}

func sightOf(ctx context.Context) sight {
	r := httpapi.RequestOf(ctx)
	s := sight{
		fleet: r.Scope, joining: r.Principal.Rights.Scope(auth.ManageJoining),
		access: !r.Principal.Rights.Scope(auth.ReadAccess).Nothing(),
	}
	s.all = s.fleet.Everything() && s.joining.Everything() && s.access
	return s
}

// verdict is what a sight says of an aggregate before its labels are known.
type verdict int

const (
	hidden verdict = iota
	seen
	byLabels // as the scope holds them
)

// of judges a kind of aggregate, and returns the scope that must hold the labels
// when they decide.
func (s *sight) of(kind string) (verdict, labels.Scope) {
	scope := labels.Scope{}
	switch {
	case s.all:
		return seen, scope
	case kind == events.KindDevice, kind == events.KindInventory, kind == events.KindTasks:
		scope = s.fleet
	case kind == events.KindToken:
		scope = s.joining
	case isAccess(kind) && s.access, !isAccess(kind) && s.fleet.Everything():
		return seen, scope
	}
	switch {
	case scope.Everything():
		return seen, scope
	case scope.Nothing():
		return hidden, scope
	}
	return byLabels, scope
}

// owner is the aggregate whose labels decide about a subject: the device of its
// inventory and tasks.
func owner(s events.Subject) events.Subject {
	if d := s.Device(); d != "" {
		return events.DeviceSubject(d)
	}
	return s
}

// eye judges records by the labels of the read model, for one answer. What it
// has judged once stays judged so.
type eye struct {
	sight
	db     *projections.DB
	judged map[events.Subject]bool
}

func (h *Handlers) eyeOf(ctx context.Context) *eye {
	return &eye{sight: sightOf(ctx), db: h.cfg.DB, judged: map[events.Subject]bool{}}
}

// sees says whether the caller may see the events of a record.
func (e *eye) sees(ctx context.Context, r events.Record) (bool, error) {
	v, scope := e.of(r.Subject.Kind())
	if v != byLabels {
		return v == seen, nil
	}
	s := owner(r.Subject)
	ok, known := e.judged[s]
	if known {
		return ok, nil
	}
	switch m, err := e.db.LabelsOf(ctx, s); {
	case err == nil:
		ok = scope.Match(m)
	case !errors.Is(err, projections.ErrNotFound):
		return false, err
	}
	e.judged[s] = ok
	return ok, nil
}

// settle waits until the read model has all labels up to a position, if labels
// decide.
func (h *Handlers) settle(ctx context.Context, s sight, position uint64) error {
	if s.fleet.Everything() && (s.joining.Everything() || s.joining.Nothing()) {
		return nil
	}
	_, err := h.wait(ctx, Reading{At: position})
	return err
}

// register knows the labels of devices and join tokens as of the newest record
// that a tail has handed out: those that the tail brought itself, and the others
// by the read model, which must have what was before the tail. It is for one
// goroutine.
type register struct {
	db    *projections.DB
	begin uint64 // the position that the tail began after
	// news are of records that the read model may not have yet; sweep is how
	// many there are when those are dropped that it has, least how many at least.
	news         map[events.Subject]news
	sweep, least int
	looked       *lru.Cache[events.Subject, map[string]string] // nil for what has none
}

type news struct {
	labels   map[string]string
	position uint64
}

// registerSize is how many labels a tail remembers.
const registerSize = 16 << 10

func newRegister(db *projections.DB, begin uint64, size int) *register {
	looked, err := lru.New[events.Subject, map[string]string](size)
	if err != nil {
		panic(err) // a negative size
	}
	return &register{db: db, begin: begin, news: map[events.Subject]news{}, sweep: size, least: size, looked: looked}
}

// note takes labels from the record that comes next.
func (g *register) note(r events.Record) {
	for _, en := range r.Entries {
		var m map[string]string
		switch e := en.Event.(type) {
		case events.DeviceRegistered:
			m = e.Labels
		case events.DeviceLabelled:
			m = e.Labels
		case events.JoinTokenIssued:
			m = e.Labels
		default:
			continue
		}
		if m == nil {
			m = map[string]string{}
		}
		g.looked.Remove(r.Subject)
		g.news[r.Subject] = news{m, r.Position}
	}
	if len(g.news) < g.sweep {
		return
	}
	have := g.db.Position()
	maps.DeleteFunc(g.news, func(_ events.Subject, n news) bool { return n.position <= have })
	g.sweep = max(g.least, 2*len(g.news))
}

// labels returns the labels of an aggregate's owner, nil when it has none.
func (g *register) labels(ctx context.Context, s events.Subject) (map[string]string, error) {
	s = owner(s)
	if n, ok := g.news[s]; ok {
		return n.labels, nil
	}
	if m, ok := g.looked.Get(s); ok {
		return m, nil
	}
	wait, cancel := context.WithTimeout(ctx, waitTimeout)
	defer cancel()
	if err := g.db.Wait(wait, g.begin); err != nil {
		return nil, err
	}
	m, err := g.db.LabelsOf(ctx, s)
	switch {
	case errors.Is(err, projections.ErrNotFound):
		m = nil
	case err != nil:
		return nil, err
	case m == nil:
		m = map[string]string{}
	}
	g.looked.Add(s, m)
	return m, nil
}
