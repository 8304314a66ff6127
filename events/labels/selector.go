package labels

import (
	"fmt"
	"slices"
	"strings"
)

// The bounds of a selector. They keep one query's work and its number of
// bound parameters small.
const (
	maxLength       = 4096
	maxRequirements = 32
	maxValues       = 256
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
	requirements []Requirement
}

// Operator is what a requirement demands of a label.
type Operator string

// The operators.
const (
	Exists    Operator = "exists"
	NotExists Operator = "!"
	Equal     Operator = "="
	NotEqual  Operator = "!="
	In        Operator = "in"
	NotIn     Operator = "notin"
)

// Requirement is one condition on labels.
type Requirement struct {
	Key string
	Op  Operator
	// Values are sorted and without repeats: one for Equal and NotEqual, none
	// for Exists and NotExists.
	Values []string
}

// SyntaxError says what is wrong with a selector and where.
type SyntaxError struct {
	// Position counts characters from 1.
	Position int
	// Message says what is wanted there.
	Message string
}

func (e *SyntaxError) Error() string {
	return fmt.Sprintf("selector: position %d: %s", e.Position, e.Message)
}

// Parse returns the selector that s spells, or a [SyntaxError]. An
// empty s is the zero Selector.
func Parse(s string) (Selector, error) {
	p := parser{input: []rune(s)}
	if len(s) > maxLength {
		return Selector{}, &SyntaxError{maxLength + 1, fmt.Sprintf("too long: want at most %d bytes", maxLength)}
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
		if len(sel.requirements) == maxRequirements {
			return Selector{}, p.errorAt(start, "too many requirements: want at most %d", maxRequirements)
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

func (r Requirement) String() string {
	switch r.Op {
	case Exists:
		return r.Key
	case NotExists:
		return "!" + r.Key
	case Equal, NotEqual:
		return r.Key + string(r.Op) + r.Values[0]
	case In, NotIn:
		return r.Key + " " + string(r.Op) + " (" + strings.Join(r.Values, ",") + ")"
	}
	return ""
}

type parser struct {
	input  []rune
	pos    int // of the next rune, from 0
	values int
}

func (p *parser) end() bool { return p.pos == len(p.input) }

func (p *parser) space() {
	for !p.end() && (p.input[p.pos] == ' ' || p.input[p.pos] == '\t') {
		p.pos++
	}
}

// accept takes r if it is next.
func (p *parser) accept(r rune) bool {
	if p.end() || p.input[p.pos] != r {
		return false
	}
	p.pos++
	return true
}

// next names what is next, for messages.
func (p *parser) next() string {
	if p.end() {
		return "the end"
	}
	return fmt.Sprintf("%q", p.input[p.pos])
}

func (p *parser) errorf(format string, args ...any) error {
	return p.errorAt(p.pos, format, args...)
}

func (p *parser) errorAt(pos int, format string, args ...any) error {
	return &SyntaxError{Position: pos + 1, Message: fmt.Sprintf(format, args...)}
}

// word takes the longest run of characters that keys and values are made of.
func (p *parser) word() string {
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

func (p *parser) requirement() (Requirement, error) {
	p.space()
	negated := p.accept('!')
	p.space()
	key, err := p.key()
	if err != nil {
		return Requirement{}, err
	}
	r := Requirement{Key: key, Op: Exists}
	if negated {
		r.Op = NotExists
		return r, nil
	}
	p.space()
	start := p.pos
	switch {
	case p.accept('!'):
		if !p.accept('=') {
			return Requirement{}, p.errorf("want '=' after '!', not %s", p.next())
		}
		r.Op = NotEqual
		r.Values, err = p.one("!=")
	case p.accept('='):
		after := "="
		if p.accept('=') {
			after = "=="
		}
		r.Op = Equal
		r.Values, err = p.one(after)
	default:
		switch w := p.word(); w {
		case "":
		case string(In), string(NotIn):
			r.Op = Operator(w)
			r.Values, err = p.list(w)
		default:
			err = p.errorAt(start, "want '=', '!=', 'in', 'notin' or ',' after the key, not %q", w)
		}
	}
	return r, err
}

func (p *parser) key() (string, error) {
	start := p.pos
	key := p.word()
	switch {
	case key == "":
		return "", p.errorf("want a label key, not %s", p.next())
	case !validKey(key):
		return "", p.errorAt(start, "%q is not a label key: want up to 63 letters, digits, '.', '_' or '-', with a letter or digit at both ends", key)
	}
	return key, nil
}

// value takes one value; after names what came before it.
func (p *parser) value(after string) (string, error) {
	p.space()
	start := p.pos
	v := p.word()
	switch {
	case v == "":
		return "", p.errorf("want a value after '%s'", after)
	case !namePattern.MatchString(v):
		return "", p.errorAt(start, "%q is not a label value: want up to 63 letters, digits, '.', '_' or '-', with a letter or digit at both ends", v)
	}
	if p.values++; p.values > maxValues {
		return "", p.errorAt(start, "too many values: want at most %d", maxValues)
	}
	return v, nil
}

func (p *parser) one(after string) ([]string, error) {
	v, err := p.value(after)
	if err != nil {
		return nil, err
	}
	return []string{v}, nil
}

func (p *parser) list(op string) ([]string, error) {
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
