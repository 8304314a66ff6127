package projections

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// The bounds of a selector. They keep one query's work and its number of
// bound parameters small.
const (
	maxSelectorLength       = 4096
	maxSelectorRequirements = 32
	maxSelectorValues       = 256
)

// Selector picks devices by their labels, in the grammar of Kubernetes' label
// selectors: requirements joined by commas, all of which must hold.
//
//	key              has the label
//	!key             has it not
//	key=v  key==v    has it with the value
//	key!=v           has it not, or with another value
//	key in (v, w)    has it with one of the values
//	key notin (v, w) has it not, or with none of the values
//
// The zero Selector picks everything.
type Selector struct {
	requirements []requirement
}

type operator string

const (
	opExists    operator = "exists"
	opNotExists operator = "!"
	opEqual     operator = "="
	opNotEqual  operator = "!="
	opIn        operator = "in"
	opNotIn     operator = "notin"
)

type requirement struct {
	key    string
	op     operator
	values []string // sorted, without repeats; one for = and !=
}

// SelectorError says what is wrong with a selector and where.
type SelectorError struct {
	// Position counts characters from 1.
	Position int
	// Message says what is wanted there.
	Message string
}

func (e *SelectorError) Error() string {
	return fmt.Sprintf("selector: position %d: %s", e.Position, e.Message)
}

// ParseSelector returns the selector that s spells, or a [SelectorError]. An
// empty s is the zero Selector.
func ParseSelector(s string) (Selector, error) {
	p := selectorParser{input: []rune(s)}
	if len(s) > maxSelectorLength {
		return Selector{}, &SelectorError{maxSelectorLength + 1, fmt.Sprintf("too long: want at most %d bytes", maxSelectorLength)}
	}
	p.space()
	if p.end() {
		return Selector{}, nil
	}
	var sel Selector
	for {
		start := p.pos
		r, err := p.requirement()
		if err != nil {
			return Selector{}, err
		}
		if len(sel.requirements) == maxSelectorRequirements {
			return Selector{}, p.errorAt(start, "too many requirements: want at most %d", maxSelectorRequirements)
		}
		sel.requirements = append(sel.requirements, r)
		p.space()
		if p.end() {
			return sel, nil
		}
		if !p.accept(',') {
			return Selector{}, p.errorf("want ',' or the end, not %s", p.next())
		}
	}
}

// Empty says whether the selector picks everything.
func (s Selector) Empty() bool { return len(s.requirements) == 0 }

// String returns the selector in its canonical spelling.
func (s Selector) String() string {
	parts := make([]string, len(s.requirements))
	for i, r := range s.requirements {
		parts[i] = r.String()
	}
	return strings.Join(parts, ",")
}

func (r requirement) String() string {
	switch r.op {
	case opExists:
		return r.key
	case opNotExists:
		return "!" + r.key
	case opEqual, opNotEqual:
		return r.key + string(r.op) + r.values[0]
	case opIn, opNotIn:
		return r.key + " " + string(r.op) + " (" + strings.Join(r.values, ",") + ")"
	}
	return ""
}

// where adds the conditions that the device, named by an SQL expression, must
// meet. Keys and values only ever become bound parameters.
func (s Selector) where(q *query, device string) {
	for _, r := range s.requirements {
		r.where(q, device)
	}
}

func (r requirement) where(q *query, device string) {
	// The plus sign keeps the planner from making a join of EXISTS, which it
	// might then begin with, and sort after.
	not := "+"
	if r.op == opNotExists || r.op == opNotEqual || r.op == opNotIn {
		not = "NOT "
	}
	cond := not + "EXISTS (SELECT 1 FROM device_labels s WHERE s.device = " + device + " AND s.key = ?"
	args := []any{r.key}
	switch len(r.values) {
	case 0:
	case 1:
		cond += " AND s.value = ?"
	default:
		cond += " AND s.value IN (?" + strings.Repeat(",?", len(r.values)-1) + ")"
	}
	for _, v := range r.values {
		args = append(args, v)
	}
	q.and(cond+")", args...)
}

// Label keys and values as Kubernetes defines them: a name of up to 63
// characters, for keys with an optional DNS subdomain before a slash.
var (
	labelNamePattern   = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)
	labelPrefixPattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`)
)

func validLabelKey(key string) bool {
	prefix, name, found := strings.Cut(key, "/")
	if !found {
		return labelNamePattern.MatchString(key)
	}
	return len(prefix) <= 253 && labelPrefixPattern.MatchString(prefix) && labelNamePattern.MatchString(name)
}

type selectorParser struct {
	input  []rune
	pos    int // of the next rune, from 0
	values int
}

func (p *selectorParser) end() bool { return p.pos == len(p.input) }

func (p *selectorParser) space() {
	for !p.end() && (p.input[p.pos] == ' ' || p.input[p.pos] == '\t') {
		p.pos++
	}
}

// accept takes r if it is next.
func (p *selectorParser) accept(r rune) bool {
	if p.end() || p.input[p.pos] != r {
		return false
	}
	p.pos++
	return true
}

// next names what is next, for messages.
func (p *selectorParser) next() string {
	if p.end() {
		return "the end"
	}
	return fmt.Sprintf("%q", p.input[p.pos])
}

func (p *selectorParser) errorf(format string, args ...any) error {
	return p.errorAt(p.pos, format, args...)
}

func (p *selectorParser) errorAt(pos int, format string, args ...any) error {
	return &SelectorError{Position: pos + 1, Message: fmt.Sprintf(format, args...)}
}

// word takes the longest run of characters that keys and values are made of.
func (p *selectorParser) word() string {
	start := p.pos
	for !p.end() && isWord(p.input[p.pos]) {
		p.pos++
	}
	return string(p.input[start:p.pos])
}

func isWord(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' ||
		r == '.' || r == '_' || r == '-' || r == '/'
}

func (p *selectorParser) requirement() (requirement, error) {
	p.space()
	negated := p.accept('!')
	p.space()
	key, err := p.key()
	if err != nil {
		return requirement{}, err
	}
	r := requirement{key: key, op: opExists}
	if negated {
		r.op = opNotExists
		return r, nil
	}
	p.space()
	start := p.pos
	switch {
	case p.accept('!'):
		if !p.accept('=') {
			return requirement{}, p.errorf("want '=' after '!', not %s", p.next())
		}
		r.op = opNotEqual
		r.values, err = p.one("!=")
	case p.accept('='):
		after := "="
		if p.accept('=') {
			after = "=="
		}
		r.op = opEqual
		r.values, err = p.one(after)
	default:
		switch w := p.word(); w {
		case "":
		case string(opIn), string(opNotIn):
			r.op = operator(w)
			r.values, err = p.list(w)
		default:
			err = p.errorAt(start, "want '=', '!=', 'in', 'notin' or ',' after the key, not %q", w)
		}
	}
	return r, err
}

func (p *selectorParser) key() (string, error) {
	start := p.pos
	key := p.word()
	switch {
	case key == "":
		return "", p.errorf("want a label key, not %s", p.next())
	case !validLabelKey(key):
		return "", p.errorAt(start, "%q is not a label key: want up to 63 letters, digits, '.', '_' or '-', with a letter or digit at both ends", key)
	}
	return key, nil
}

// value takes one value; after names what came before it.
func (p *selectorParser) value(after string) (string, error) {
	p.space()
	start := p.pos
	v := p.word()
	switch {
	case v == "":
		return "", p.errorf("want a value after '%s'", after)
	case !labelNamePattern.MatchString(v):
		return "", p.errorAt(start, "%q is not a label value: want up to 63 letters, digits, '.', '_' or '-', with a letter or digit at both ends", v)
	}
	if p.values++; p.values > maxSelectorValues {
		return "", p.errorAt(start, "too many values: want at most %d", maxSelectorValues)
	}
	return v, nil
}

func (p *selectorParser) one(after string) ([]string, error) {
	v, err := p.value(after)
	if err != nil {
		return nil, err
	}
	return []string{v}, nil
}

func (p *selectorParser) list(op string) ([]string, error) {
	p.space()
	if !p.accept('(') {
		return nil, p.errorf("want '(' after '%s', not %s", op, p.next())
	}
	var values []string
	for after := "("; ; after = "," {
		v, err := p.value(after)
		if err != nil {
			return nil, err
		}
		values = append(values, v)
		p.space()
		if p.accept(')') {
			break
		}
		if !p.accept(',') {
			return nil, p.errorf("want ',' or ')' after a value, not %s", p.next())
		}
	}
	slices.Sort(values)
	return slices.Compact(values), nil
}
