package labels

import (
	"slices"
	"strings"
)

// Scope says which devices somebody may see or touch: those that, in each of
// its layers, one selector picks. A layer is what one source of rights allows,
// such as the grants of a user, or those of a token within the user's. The zero
// Scope holds nothing.
type Scope struct {
	layers [][]Selector
}

// Everything returns the scope that holds every device.
func Everything() Scope { return Union(Selector{}) }

// Union returns the scope of the devices that one of the selectors picks, and
// the zero Scope for none.
func Union(selectors ...Selector) Scope {
	if len(selectors) == 0 {
		return Scope{}
	}
	if slices.ContainsFunc(selectors, Selector.Empty) {
		selectors = []Selector{{}}
	}
	return Scope{layers: [][]Selector{slices.Clone(selectors)}}
}

// Intersect returns the scope of the devices that both hold.
func (s Scope) Intersect(o Scope) Scope {
	switch {
	case s.Nothing() || o.Nothing():
		return Scope{}
	case s.Everything():
		return o
	case o.Everything():
		return s
	}
	return Scope{layers: slices.Concat(s.layers, o.layers)}
}

// Nothing says whether the scope holds no device whatever its labels.
func (s Scope) Nothing() bool { return len(s.layers) == 0 }

// Everything says whether the scope holds each device whatever its labels.
func (s Scope) Everything() bool {
	return len(s.layers) == 1 && len(s.layers[0]) == 1 && s.layers[0][0].Empty()
}

// Match says whether the scope holds a device with these labels.
func (s Scope) Match(m map[string]string) bool {
	for _, layer := range s.layers {
		if !slices.ContainsFunc(layer, func(sel Selector) bool { return sel.Match(m) }) {
			return false
		}
	}
	return !s.Nothing()
}

// Common splits the scope into a selector, which picks all of its devices, and
// what a device that it picks must be in besides. A layer of one selector is in
// the first part, and so is one whose selectors name values of the same label.
func (s Scope) Common() (common Selector, rest Scope) {
	if s.Nothing() {
		return common, s
	}
	rest = Everything()
	for _, layer := range s.layers {
		if one, ok := single(layer); ok {
			common = common.And(one)
		} else {
			rest = rest.Intersect(Scope{layers: [][]Selector{layer}})
		}
	}
	return common, rest
}

// single returns the selector that picks what any of the selectors picks, if it
// is easily found.
func single(layer []Selector) (Selector, bool) {
	if len(layer) == 1 {
		return layer[0], true
	}
	either := Requirement{Op: In}
	for i, s := range layer {
		if len(s.requirements) != 1 {
			return Selector{}, false
		}
		r := s.requirements[0]
		if r.Op != Equal && r.Op != In || i > 0 && r.Key != either.Key {
			return Selector{}, false
		}
		either.Key, either.Values = r.Key, append(either.Values, r.Values...)
	}
	slices.Sort(either.Values)
	either.Values = slices.Compact(either.Values)
	return Selector{requirements: []Requirement{either}}, true
}

// Layers returns the selectors of each layer: a device is in the scope when one
// selector of every layer picks it. There is no layer in a scope that holds
// nothing.
func (s Scope) Layers() [][]Selector { return s.layers }

// String spells the scope for people: "everything", "nothing", or the layers.
func (s Scope) String() string {
	switch {
	case s.Nothing():
		return "nothing"
	case s.Everything():
		return "everything"
	}
	layers := make([]string, len(s.layers))
	for i, layer := range s.layers {
		texts := make([]string, len(layer))
		for j, sel := range layer {
			texts[j] = sel.String()
		}
		layers[i] = strings.Join(texts, " or ")
	}
	return strings.Join(layers, "; within ")
}

// Match says whether the selector picks labels.
func (s Selector) Match(m map[string]string) bool {
	for _, r := range s.requirements {
		value, has := m[r.Key]
		ok := has
		switch r.Op {
		case Exists:
		case NotExists:
			ok = !has
		case Equal, In:
			ok = has && slices.Contains(r.Values, value)
		case NotEqual, NotIn:
			ok = !has || !slices.Contains(r.Values, value)
		}
		if !ok {
			return false
		}
	}
	return true
}

// Requirements returns the conditions, all of which must hold.
func (s Selector) Requirements() []Requirement { return s.requirements }

// Without returns the selector without its requirement i; a negative i takes
// nothing away.
func (s Selector) Without(i int) Selector {
	if i < 0 {
		return s
	}
	return Selector{requirements: slices.Delete(slices.Clone(s.requirements), i, i+1)}
}

// And returns the selector that picks what both pick.
func (s Selector) And(o Selector) Selector {
	return Selector{requirements: slices.Concat(s.requirements, o.requirements)}
}

// Within says whether the selector certainly picks nothing that o does not
// pick: each requirement of o follows from one of its own. It may be false for
// selectors where that takes more than one requirement to see.
func (s Selector) Within(o Selector) bool {
	for _, want := range o.requirements {
		if !slices.ContainsFunc(s.requirements, func(have Requirement) bool { return have.implies(want) }) {
			return false
		}
	}
	return true
}

// implies says whether labels that meet r always meet o.
func (r Requirement) implies(o Requirement) bool {
	if r.Key != o.Key {
		return false
	}
	has := r.Op == Exists || r.Op == Equal || r.Op == In
	within := func() bool { // every value that r permits is one of o's
		return (r.Op == Equal || r.Op == In) && !slices.ContainsFunc(r.Values, func(v string) bool { return !slices.Contains(o.Values, v) })
	}
	switch o.Op {
	case Exists:
		return has
	case NotExists:
		return r.Op == NotExists
	case Equal, In:
		return within()
	case NotEqual, NotIn:
		switch r.Op {
		case NotExists:
			return true
		case Equal, In:
			return !slices.ContainsFunc(r.Values, func(v string) bool { return slices.Contains(o.Values, v) })
		case NotEqual, NotIn:
			return !slices.ContainsFunc(o.Values, func(v string) bool { return !slices.Contains(r.Values, v) })
		case Exists:
		}
	}
	return false
}
