package projections

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"strings"

	"github.com/mattn/go-sqlite3"
)

// Substrings are found by a full-text index whose words are the trigrams of a
// row's text: every run of three bytes. A row that holds the text searched for
// holds all of its trigrams; instr says whether it holds them in their order.
// An id is one word, which is found by its beginning.
//
// The index may say too much, never too little: it keeps what a row said
// before, and rows that are gone. So nothing is ever deleted from it, and a
// transaction adds its rows all at once in the order of their numbers, which
// is what FTS4 is quick at. See docs/adr/0009-substrings-by-trigrams.md.

// engine is SQLite with the function that writes the index.
var engine = &sqlite3.SQLiteDriver{ConnectHook: func(c *sqlite3.SQLiteConn) error {
	return c.RegisterFunc("text_words", textWords, true)
}}

// connector opens connections to one file.
type connector string

func (c connector) Connect(context.Context) (driver.Conn, error) { return engine.Open(string(c)) }
func (c connector) Driver() driver.Driver                        { return engine }

func openEngine(dsn string) *sql.DB { return sql.OpenDB(connector(dsn)) }

// indexText adds the texts to the index that the transaction wrote.
func (w *writer) indexText() error {
	for _, text := range []string{
		`INSERT INTO device_text (docid, words)
			SELECT d.rowid, text_words(d.id, d.name_key || char(10) || d.host_key)
			FROM device_text_due t CROSS JOIN devices d ON d.rowid = t.docid`,
		`DELETE FROM device_text_due`,
		`INSERT INTO vm_text (docid, words)
			SELECT v.rowid, text_words(v.id, v.name_key || char(10) || v.guest_name || char(10) || v.hostname || char(10) || v.ips)
			FROM vm_text_due t CROSS JOIN vms v ON v.rowid = t.docid`,
		`DELETE FROM vm_text_due`,
	} {
		if err := w.exec(text); err != nil {
			return fmt.Errorf("index text: %w", err)
		}
	}
	return nil
}

// textWords spells an id and a text as words for the index.
func textWords(id, text string) string {
	b := make([]byte, 0, len(id)+4*len(text)+2)
	b = append(appendIDWord(b, id), ' ')
	return string(appendTrigrams(b, text))
}

// appendIDWord appends an id as a word. The letter tells it from a trigram.
func appendIDWord(b []byte, id string) []byte {
	b = append(b, 'i')
	for i := range len(id) {
		b = append(b, letter(id[i]))
	}
	return b
}

// appendTrigrams appends the trigrams of a text as words, in their order,
// without those that reach over the edge of a field or of an item of a list.
func appendTrigrams(b []byte, text string) []byte {
	run := 0 // bytes since an edge
	for i := range len(text) {
		switch text[i] {
		case '\n', '"', '[', ']':
			run = 0
			continue
		}
		if run++; run >= 3 {
			b = append(b, letter(text[i-2]), letter(text[i-1]), letter(text[i]), ' ')
		}
	}
	return b
}

// letter makes each byte a letter to the index by its top bit, which also keeps
// the index from changing case. What that confuses is told apart by instr.
func letter(b byte) byte {
	if 'A' <= b && b <= 'Z' {
		b += 'a' - 'A'
	}
	return b | 0x80
}

// maxTrigrams is how many words of a text are tried for being rare.
const maxTrigrams = 12

// textStarts returns the ways to begin with rows that may hold the text, one
// for each of its trigrams; none for a text without any.
func textStarts(s start, table, text string) []start {
	if len(text) >= minPrefix {
		s.orID = " OR " + string(appendIDWord(nil, text)) + "*"
	}
	var out []start
	seen := map[string]bool{}
	for word := range strings.FieldsSeq(string(appendTrigrams(nil, text))) {
		if seen[word] || len(out) == maxTrigrams {
			continue
		}
		seen[word] = true
		s.from, s.cond, s.word = table+" x", "x.words MATCH ?", word
		s.args = []any{s.match(word)}
		out = append(out, s)
	}
	return out
}

// match asks the index for rows with all of the words, or with the id.
func (s *start) match(words ...string) string {
	return "(" + strings.Join(words, " ") + ")" + s.orID
}

// textIn is the condition that the text is a part of one of the fields, or the
// beginning of the id.
func (q *query) textIn(text, id string, fields ...string) {
	var conds []string
	var args []any
	for _, f := range fields {
		conds, args = append(conds, "instr("+f+", ?)"), append(args, text)
	}
	if len(text) >= minPrefix {
		conds, args = append(conds, "instr("+id+", ?) = 1"), append(args, text)
	}
	q.and("("+strings.Join(conds, " OR ")+")", args...)
}
