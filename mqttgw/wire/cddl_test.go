package wire_test

import (
	"fmt"
	"math"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"pgregory.net/rapid"

	"pallas/mqttgw/wire"
)

const cddlFile = "../../schema/device.cddl"

// Every key of every Go struct is in the CDDL under the same name, required
// where Go always writes it and optional where it may leave it out, and the
// CDDL has no key beyond those.
func TestCDDLNamesEveryField(t *testing.T) {
	text, err := os.ReadFile(cddlFile)
	if err != nil {
		t.Fatal(err)
	}
	for rule, v := range map[string]any{
		"up": wire.Up{}, "hello": wire.Hello{}, "bye": wire.Bye{}, "report": wire.Report{}, "host": wire.Host{},
		"license": wire.License{}, "datastore": wire.Datastore{}, "network": wire.Network{}, "condition": wire.Condition{},
		"vm": wire.VM{}, "vm-patch": wire.VMPatch{}, "vm-gone": wire.VMGone{}, "disk": wire.Disk{}, "nic": wire.NIC{},
		"inventory": wire.Inventory{}, "task-state": wire.TaskState{}, "down": wire.Down{}, "welcome": wire.Welcome{},
		"settings": wire.Settings{}, "receipt": wire.Receipt{}, "resend": wire.Resend{}, "task": wire.Task{},
		"error": wire.Error{}, "renewal": wire.Renewal{}, "certificate": wire.Certificate{}, "join": wire.Join{},
	} {
		lines := ruleLines(t, string(text), rule)
		if rule == "report" {
			for name, l := range ruleLines(t, string(text), "part") {
				l.optional = true
				lines[name] = l
			}
		}
		for f := range reflect.TypeOf(v).Fields() {
			key, options, _ := strings.Cut(f.Tag.Get("cbor"), ",")
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if name == "-" {
				name = strings.ToLower(f.Name)
			}
			l, ok := lines[key]
			if !ok {
				t.Errorf("%s: no key %s (%s)", rule, key, name)
				continue
			}
			if l.name != name {
				t.Errorf("%s: key %s is called %q, want %q", rule, key, l.name, name)
			}
			if want := strings.Contains(options, "omit"); l.optional != want {
				t.Errorf("%s: key %s (%s) is optional: %v, want %v", rule, key, name, l.optional, want)
			}
			delete(lines, key)
		}
		for key, l := range lines {
			t.Errorf("%s: key %s (%s) is in no Go struct", rule, key, l.name)
		}
	}
}

type cddlLine struct {
	name     string
	optional bool
}

var cddlField = regexp.MustCompile(`^\s*(\?|//)?\s*(\d+): .*?; (\w+)`)

func ruleLines(t *testing.T, text, rule string) map[string]cddlLine {
	t.Helper()
	m := regexp.MustCompile(`(?ms)^` + rule + ` = [{(]\n(.*?)^[})]`).FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("no rule %s", rule)
	}
	out := map[string]cddlLine{}
	for line := range strings.SplitSeq(m[1], "\n") {
		if f := cddlField.FindStringSubmatch(line); f != nil {
			if _, twice := out[f[2]]; twice {
				t.Errorf("%s: key %s twice", rule, f[2])
			}
			out[f[2]] = cddlLine{name: f[3], optional: f[1] == "?"}
		}
	}
	return out
}

// The constants of limits.go are those of the CDDL.
func TestCDDLLimits(t *testing.T) {
	b, err := os.ReadFile(cddlFile)
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for _, want := range []string{
		fmt.Sprintf("at most %d bytes for one packet", wire.MaxPacket),
		fmt.Sprintf("at most %d bytes and at most %d times as large", wire.MaxPacket, wire.MaxInflation),
		fmt.Sprintf("[0*%d report]", wire.MaxReports),
		fmt.Sprintf("[0*%d task]", wire.MaxTasks),
		fmt.Sprintf("[0*%d disk]", wire.MaxItems),
		fmt.Sprintf("? 1: [0*%d text],     ; vms", wire.MaxVMs),
		fmt.Sprintf("tstr .size (0..%d)", wire.MaxText),
		fmt.Sprintf("hash = bstr .size %d", wire.HashSize),
		fmt.Sprintf("instance = bstr .size %d", wire.InstanceSize),
		fmt.Sprintf("anchor = bstr .size %d", wire.AnchorSize),
		fmt.Sprintf("der = bstr .size (1..%d)", wire.MaxCertificate),
		fmt.Sprintf("? 7: [0*%d anchor]", wire.MaxAnchors),
		fmt.Sprintf("2: [0*%d der]", wire.MaxAnchors),
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the CDDL does not say %q", want)
		}
	}
}

func TestGoldensMatchCDDL(t *testing.T) {
	s := loadCDDL(t)
	for _, g := range goldens() {
		if err := s.match(g.rule(), g.payload(t)); err != nil {
			t.Errorf("%s: %v", g.name, err)
		}
	}
	for name, p := range futures(t) {
		if err := s.match(p.rule, p.payload); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	join, err := cbor.Marshal(map[int]any{1: "https://a", 2: make([]byte, 32), 3: "t", 4: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.match("join", join); err != nil {
		t.Errorf("join: %v", err)
	}
}

// Whatever packet can be encoded is one that the CDDL describes.
func TestPacketsMatchCDDL(t *testing.T) {
	s := loadCDDL(t)
	rapid.Check(t, func(t *rapid.T) {
		b, err := wire.EncodeUp(genUp().Draw(t, "up"))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.match("up", b); err != nil {
			t.Fatal(err)
		}
		if b, err = wire.EncodeDown(genDown().Draw(t, "down")); err != nil {
			t.Fatal(err)
		}
		if err := s.match("down", b); err != nil {
			t.Fatal(err)
		}
	})
}

// The checker can fail: each of these breaks one line of the CDDL.
func TestCDDLRefuses(t *testing.T) {
	s := loadCDDL(t)
	type m = map[any]any
	id := make([]byte, 16)
	ok := m{1: 1, 3: 1, 4: []any{m{1: 1, 2: 1.5, 7: m{1: "vm-1"}}}}
	if err := s.match("up", mustCBOR(t, ok)); err != nil {
		t.Fatalf("the good one: %v", err)
	}
	for name, tc := range map[string]struct {
		rule string
		v    any
	}{
		"not a map":              {"up", []any{}},
		"no version":             {"up", m{}},
		"version 0":              {"up", m{1: 0}},
		"version as text":        {"up", m{1: "1"}},
		"hello without next":     {"up", m{1: 1, 2: m{1: "1", 2: 1, 3: 1, 5: 1}}},
		"short instance":         {"up", m{1: 1, 2: m{1: "1", 2: 1, 3: 1, 5: 1, 7: 1, 8: id[:7]}}},
		"short hash":             {"up", m{1: 1, 2: m{1: "1", 2: 1, 3: 1, 4: id[:15], 5: 1, 7: 1}}},
		"two parts":              {"up", m{1: 1, 3: 1, 4: []any{m{1: 1, 2: 1, 7: m{1: "vm-1"}, 4: m{1: "ok"}}}}},
		"broken part":            {"up", m{1: 1, 3: 1, 4: []any{m{1: 1, 2: 1, 7: m{1: 5}}}}},
		"report without time":    {"up", m{1: 1, 3: 1, 4: []any{m{1: 1, 7: m{1: "vm-1"}}}}},
		"a text key":             {"up", m{1: 1, "x": 1}},
		"a negative key":         {"up", m{1: 1, -1: 1}},
		"sequence beyond 2^53":   {"down", m{1: 1, 3: m{1: 1, 2: uint64(1) << 53}}},
		"text too long":          {"up", m{1: 1, 5: m{1: strings.Repeat("x", wire.MaxText+1)}}},
		"too many tasks":         {"down", m{1: 1, 4: make([]m, wire.MaxTasks+1)}},
		"task without deadline":  {"down", m{1: 1, 4: []m{{1: id, 2: "vm.reset"}}}},
		"boot before 1970":       {"up", m{1: 1, 3: 1, 4: []any{m{1: 1, 2: 1, 6: m{1: "vm-1", 13: -1}}}}},
		"an integer for a truth": {"down", m{1: 1, 7: 1}},
		"short anchor":           {"up", m{1: 1, 7: []any{id[:7]}}},
		"renewal without a CSR":  {"up", m{1: 1, 6: m{}}},
		"certificate, no CAs":    {"down", m{1: 1, 11: m{1: id}}},
	} {
		if err := s.match(tc.rule, mustCBOR(t, tc.v)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func mustCBOR(t testing.TB, v any) []byte {
	t.Helper()
	b, err := cbor.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// What follows reads the part of CDDL (RFC 8610) that the schema uses: rules,
// choices, literals, ranges, .size, maps, arrays, named groups and group
// choices, occurrences.

type cddl map[string]cddlNode

type cddlNode interface {
	// match says why v is not of the type.
	match(s cddl, v any) error
}

type (
	cddlName   string
	cddlValue  struct{ v any } // int64 or string
	cddlRange  struct{ from, to cddlNode }
	cddlChoice []cddlNode
	cddlSize   struct {
		of     cddlNode
		lo, hi int64
	}
	cddlMap   struct{ group cddlGroup }
	cddlArray struct{ group cddlGroup }
	// cddlGroup is alternatives of sequences of entries.
	cddlGroup [][]cddlEntry
	cddlEntry struct {
		min, max int
		key      cddlNode // nil in an array, or when of is a group
		of       cddlNode
	}
)

func loadCDDL(t *testing.T) cddl {
	t.Helper()
	b, err := os.ReadFile(cddlFile)
	if err != nil {
		t.Fatal(err)
	}
	text := regexp.MustCompile(`(?m);.*$`).ReplaceAllString(string(b), "")
	p := &cddlParser{tokens: regexp.MustCompile(`"[^"]*"|\.size|\.\.|=>|//|-?\d+|[A-Za-z][-\w]*|[\[\]{}()=/:,?*]`).FindAllString(text, -1)}
	s := cddl{}
	defer func() {
		if r := recover(); r != nil {
			t.Fatalf("parse the CDDL near %q: %v", strings.Join(p.tokens[:min(len(p.tokens), 12)], " "), r)
		}
	}()
	for len(p.tokens) > 0 {
		name := p.next()
		p.want("=")
		if _, twice := s[name]; twice {
			t.Fatalf("rule %s twice", name)
		}
		if p.peek() == "(" {
			p.next()
			s[name] = p.group(")")
			continue
		}
		s[name] = p.choice()
	}
	return s
}

func (s cddl) match(rule string, payload []byte) error {
	var v any
	if err := cbor.Unmarshal(payload, &v); err != nil {
		return err
	}
	return cddlName(rule).match(s, v)
}

type cddlParser struct{ tokens []string }

func (p *cddlParser) peek() string {
	if len(p.tokens) == 0 {
		return ""
	}
	return p.tokens[0]
}
func (p *cddlParser) next() string { t := p.tokens[0]; p.tokens = p.tokens[1:]; return t }
func (p *cddlParser) accept(t string) bool {
	if p.peek() == t {
		p.next()
		return true
	}
	return false
}

func (p *cddlParser) want(t string) {
	if !p.accept(t) {
		panic(fmt.Sprintf("want %q", t))
	}
}

func (p *cddlParser) choice() cddlNode {
	c := cddlChoice{p.ranged()}
	for p.accept("/") {
		c = append(c, p.ranged())
	}
	if len(c) == 1 {
		return c[0]
	}
	return c
}

func (p *cddlParser) ranged() cddlNode {
	n := p.simple()
	switch {
	case p.accept(".."):
		return cddlRange{n, p.simple()}
	case p.accept(".size"):
		if p.accept("(") {
			lo := p.simple().(cddlValue).v.(int64)
			p.want("..")
			hi := p.simple().(cddlValue).v.(int64)
			p.want(")")
			return cddlSize{n, lo, hi}
		}
		size := p.simple().(cddlValue).v.(int64)
		return cddlSize{n, size, size}
	}
	return n
}

func (p *cddlParser) simple() cddlNode {
	t := p.next()
	switch {
	case t == "{":
		return cddlMap{p.group("}")}
	case t == "[":
		return cddlArray{p.group("]")}
	case t[0] == '"':
		return cddlValue{t[1 : len(t)-1]}
	}
	if n, err := strconv.ParseInt(t, 10, 64); err == nil {
		return cddlValue{n}
	}
	return cddlName(t)
}

func (p *cddlParser) group(end string) cddlGroup {
	g := cddlGroup{nil}
	for !p.accept(end) {
		if p.accept("//") {
			g = append(g, nil)
			continue
		}
		g[len(g)-1] = append(g[len(g)-1], p.entry())
		p.accept(",")
	}
	return g
}

func (p *cddlParser) entry() cddlEntry {
	e := cddlEntry{min: 1, max: 1}
	switch {
	case p.accept("?"):
		e.min = 0
	case p.accept("*"):
		e.min, e.max = 0, math.MaxInt
	case len(p.tokens) > 2 && p.tokens[1] == "*":
		e.min, _ = strconv.Atoi(p.next())
		p.next()
		e.max, _ = strconv.Atoi(p.next())
	}
	n := p.choice()
	if p.accept(":") || p.accept("=>") {
		e.key = n
		n = p.choice()
	}
	e.of = n
	return e
}

func (n cddlName) match(s cddl, v any) error {
	if rule, ok := s[string(n)]; ok {
		if err := rule.match(s, v); err != nil {
			return fmt.Errorf("%s: %w", string(n), err)
		}
		return nil
	}
	var ok bool
	switch n {
	case "any":
		ok = true
	case "int":
		_, ok = integer(v)
	case "tstr":
		_, ok = v.(string)
	case "bstr":
		_, ok = v.([]byte)
	case "bool":
		_, ok = v.(bool)
	case "float":
		_, ok = v.(float64)
	case "null":
		ok = v == nil
	default:
		return fmt.Errorf("no rule %q", string(n))
	}
	if !ok {
		return fmt.Errorf("%T %.40v is not %s", v, v, string(n))
	}
	return nil
}

func integer(v any) (int64, bool) {
	switch v := v.(type) {
	case uint64:
		return int64(min(v, math.MaxInt64)), true
	case int64:
		return v, true
	}
	return 0, false
}

func (n cddlValue) match(_ cddl, v any) error {
	if i, ok := integer(v); ok {
		v = i
	}
	if v != n.v {
		return fmt.Errorf("%.40v is not %v", v, n.v)
	}
	return nil
}

func (n cddlRange) match(s cddl, v any) error {
	i, ok := integer(v)
	if lo, hi := s.literal(n.from), s.literal(n.to); !ok || i < lo || i > hi {
		return fmt.Errorf("%T %.40v is not within %d..%d", v, v, lo, hi)
	}
	return nil
}

func (s cddl) literal(n cddlNode) int64 {
	if name, ok := n.(cddlName); ok {
		n = s[string(name)]
	}
	return n.(cddlValue).v.(int64)
}

func (n cddlChoice) match(s cddl, v any) error {
	var err error
	for _, c := range n {
		if err = c.match(s, v); err == nil {
			return nil
		}
	}
	return err
}

func (n cddlSize) match(s cddl, v any) error {
	if err := n.of.match(s, v); err != nil {
		return err
	}
	if size := int64(reflect.ValueOf(v).Len()); size < n.lo || size > n.hi {
		return fmt.Errorf("size %d is not within %d..%d", size, n.lo, n.hi)
	}
	return nil
}

func (n cddlGroup) match(cddl, any) error { return fmt.Errorf("a group is no type") }

func (n cddlArray) match(s cddl, v any) error {
	list, ok := v.([]any)
	if !ok {
		return fmt.Errorf("%T is not an array", v)
	}
	e := n.group[0][0] // the schema has lists of one type only
	if len(list) < e.min || len(list) > e.max {
		return fmt.Errorf("%d elements are not within %d..%d", len(list), e.min, e.max)
	}
	for i, item := range list {
		if err := e.of.match(s, item); err != nil {
			return fmt.Errorf("[%d]: %w", i, err)
		}
	}
	return nil
}

func (n cddlMap) match(s cddl, v any) error {
	m, ok := v.(map[any]any)
	if !ok {
		return fmt.Errorf("%T is not a map", v)
	}
	rest := map[any]any{}
	for k, x := range m {
		if i, ok := integer(k); ok {
			k = i
		}
		rest[k] = x
	}
	if err := n.group.consume(s, rest); err != nil {
		return err
	}
	for k := range rest {
		return fmt.Errorf("key %v is not described", k)
	}
	return nil
}

// consume removes from rest what one alternative of the group takes.
func (n cddlGroup) consume(s cddl, rest map[any]any) error {
	var err error
	for _, alternative := range n {
		taken := map[any]any{}
		if err = consumeEntries(s, alternative, rest, taken); err == nil {
			return nil
		}
		for k, v := range taken {
			rest[k] = v
		}
	}
	return err
}

func consumeEntries(s cddl, entries []cddlEntry, rest, taken map[any]any) error {
	for _, e := range entries {
		if e.key == nil {
			group := s[string(e.of.(cddlName))].(cddlGroup)
			if err := group.consume(s, rest); err != nil && e.min > 0 {
				return err
			}
			continue
		}
		n := 0
		for k, v := range rest {
			if e.key.match(s, k) != nil {
				continue
			}
			if err := e.of.match(s, v); err != nil {
				return fmt.Errorf("key %v: %w", k, err)
			}
			taken[k] = v
			delete(rest, k)
			n++
		}
		if n < e.min || n > e.max {
			return fmt.Errorf("%d keys like %v, want %d to %d", n, e.key, e.min, e.max)
		}
	}
	return nil
}
