package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
)

// The output formats.
const (
	formatTable  = "table"
	formatWide   = "wide"
	formatJSON   = "json"
	formatYAML   = "yaml"
	formatNDJSON = "ndjson"
	formatName   = "name"
)

var formats = []string{formatTable, formatWide, formatJSON, formatYAML, formatNDJSON, formatName}

// column is one column of a table. A status is coloured by its word.
type column[T any] struct {
	head   string
	value  func(item T, now time.Time) string
	wide   bool // only with -o wide
	status bool
}

// printer prints items of a noun in one of the formats, as they come.
type printer[T any] struct {
	w       io.Writer
	noun    *noun[T]
	format  string
	now     time.Time
	columns []column[T]
	table   *table
	n       int
}

func newPrinter[T any](a *app, n *noun[T]) *printer[T] {
	p := &printer[T]{w: a.out, noun: n, format: first(a.output, formatTable), now: a.now}
	p.table = &table{w: a.out, color: a.color()}
	for _, c := range n.columns {
		if !c.wide || p.format == formatWide {
			p.columns = append(p.columns, c)
			p.table.heads = append(p.table.heads, c.head)
		}
	}
	return p
}

// add prints an item, now or with flush.
func (p *printer[T]) add(item T) error {
	p.n++
	switch p.format {
	case formatName:
		_, err := fmt.Fprintln(p.w, clean(p.noun.name(item)))
		return err
	case formatJSON:
		sep := ",\n"
		if p.n == 1 {
			sep = "[\n"
		}
		b, err := encode(item, "  ")
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(p.w, "%s  %s", sep, b)
		return err
	case formatNDJSON:
		b, err := encode(item, "")
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(p.w, "%s\n", b)
		return err
	case formatYAML:
		b, err := encodeYAML([]T{item})
		if err != nil {
			return err
		}
		_, err = p.w.Write(b)
		return err
	default:
		p.table.add(p.row(item)...)
		return nil
	}
}

func (p *printer[T]) row(item T) []cell {
	row := make([]cell, len(p.columns))
	for i, c := range p.columns {
		row[i] = cell{c.value(item, p.now), c.status}
	}
	return row
}

// flush prints the rows that wait for others to be aligned with.
func (p *printer[T]) flush() error { return p.table.flush() }

// end completes the output.
func (p *printer[T]) end(a *app) error {
	switch {
	case p.format == formatJSON && p.n == 0, p.format == formatYAML && p.n == 0:
		fmt.Fprintln(p.w, "[]")
	case p.format == formatJSON:
		fmt.Fprintln(p.w, "\n]")
	case p.n == 0 && (p.format == formatTable || p.format == formatWide):
		a.note("no %s", p.noun.plural)
	}
	return p.flush()
}

// printAll prints what is at hand.
func printAll[T any](a *app, n *noun[T], items []T) error {
	p := newPrinter(a, n)
	for _, item := range items {
		if err := p.add(item); err != nil {
			return err
		}
	}
	return p.end(a)
}

// encode writes JSON in which every character that could harm a terminal is
// escaped.
func encode(v any, indent string) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if indent != "" {
		enc.SetIndent("  ", indent)
	}
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	var out bytes.Buffer
	for _, r := range strings.TrimSuffix(b.String(), "\n") {
		if r != '\n' && hostile(r) { // JSON itself has escaped those below 0x20
			fmt.Fprintf(&out, `\u%04x`, r)
			continue
		}
		out.WriteRune(r)
	}
	return out.Bytes(), nil
}

var escapes = regexp.MustCompile(`\\(?:u[0-9a-f]{4}|.)`)

// encodeYAML writes YAML without the characters that could harm a terminal:
// a block of YAML cannot escape them.
func encodeYAML(v any) ([]byte, error) {
	b, err := encode(v, "")
	if err != nil {
		return nil, err
	}
	b = escapes.ReplaceAllFunc(b, func(esc []byte) []byte {
		switch esc[1] {
		case 'u', 'b', 'f', 'r':
			return nil
		case 't': // the encoder leaves it bare, where it means nothing
			return []byte(" ")
		default:
			return esc
		}
	})
	if b, err = yaml.JSONToYAML(b); err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return b, nil
}

// cell is one field of a table.
type cell struct {
	text   string
	status bool
}

// table aligns rows. text/tabwriter would count colours as width and could not
// align what a watch adds later.
type table struct {
	w      io.Writer
	color  bool
	heads  []string // none: no head line
	indent string

	widths []int
	rows   [][]cell
	headed bool
}

func (t *table) add(row ...cell) {
	for i := range row {
		row[i].text = clean(row[i].text)
	}
	t.rows = append(t.rows, row)
}

func (t *table) flush() error {
	if len(t.rows) == 0 {
		return nil
	}
	if !t.headed && len(t.heads) > 0 {
		head := make([]cell, len(t.heads))
		for i, h := range t.heads {
			head[i].text = h
		}
		t.rows = append([][]cell{head}, t.rows...)
	}
	t.headed = true
	for _, row := range t.rows {
		for i, c := range row {
			if i == len(t.widths) {
				t.widths = append(t.widths, 0)
			}
			t.widths[i] = max(t.widths[i], utf8.RuneCountInString(c.text))
		}
	}
	var b strings.Builder
	for _, row := range t.rows {
		b.WriteString(t.indent)
		for i, c := range row {
			text := c.text
			if code := palette[text]; t.color && c.status && code != "" {
				text = "\x1b[" + code + "m" + text + "\x1b[0m"
			}
			b.WriteString(text)
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", t.widths[i]-utf8.RuneCountInString(c.text)+3))
			}
		}
		b.WriteByte('\n')
	}
	t.rows = nil
	_, err := io.WriteString(t.w, b.String())
	return err
}

// palette has the colours of status words: green is well, yellow waits or is
// restricted, red is wrong. The word says it too.
var palette = map[string]string{
	"connected": "32", "approved": "32", "ok": "32", "on": "32", "running": "32", "succeeded": "32", "active": "32",
	"pending": "33", "quarantined": "31", "readOnly": "33", "suspended": "33", "requested": "33", "accepted": "33", "cancelled": "33", "unknown": "33",
	"lost": "31", "denied": "31", "unreachable": "31", "failed": "31", "rejected": "31", "expired": "31",
}

// report is what describe prints: blocks of fields and tables.
type report struct {
	w     io.Writer
	color bool
	now   time.Time
	begun bool
}

// block prints named values; empty ones are left out, and so is a block of
// nothing else.
func (r *report) block(title string, fields ...string) error {
	t := &table{w: r.w, color: r.color, indent: "  "}
	for i := 0; i+1 < len(fields); i += 2 {
		if fields[i+1] != "" {
			t.add(cell{text: fields[i]}, cell{fields[i+1], true})
		}
	}
	return r.section(title, t)
}

func (r *report) section(title string, t *table) error {
	if len(t.rows) == 0 {
		return nil
	}
	if r.begun {
		fmt.Fprintln(r.w)
	}
	r.begun = true
	fmt.Fprintln(r.w, clean(title))
	return t.flush()
}

// list prints items as a table under a title, if there are any.
func list[T any](r *report, title string, columns []column[T], items []T) error {
	t := &table{w: r.w, color: r.color, indent: "  "}
	for _, c := range columns {
		if !c.wide {
			t.heads = append(t.heads, c.head)
		}
	}
	for _, item := range items {
		var row []cell
		for _, c := range columns {
			if !c.wide {
				row = append(row, cell{c.value(item, r.now), c.status})
			}
		}
		t.add(row...)
	}
	return r.section(title, t)
}
