package projections

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"strings"

	"github.com/mattn/go-sqlite3"
)

// Substrings are found by a full-text index whose words are the trigrams of a
// row's text: every run of three bytes. A row that holds the text searched for
// holds all of its trigrams; instr says whether it holds them in their order.
// See docs/adr/0009-substrings-by-trigrams.md.

// engine is SQLite with the function that the schema's triggers call.
var engine = &sqlite3.SQLiteDriver{ConnectHook: func(c *sqlite3.SQLiteConn) error {
	return c.RegisterFunc("trigrams", trigrams, true)
}}

// connector opens connections to one file.
type connector string

func (c connector) Connect(context.Context) (driver.Conn, error) { return engine.Open(string(c)) }
func (c connector) Driver() driver.Driver                        { return engine }

func openEngine(dsn string) *sql.DB { return sql.OpenDB(connector(dsn)) }

// trigrams spells the trigrams of a text as words for the index, in their
// order. The top bit makes each byte a letter to the index, and keeps it from
// changing case itself. What that confuses is told apart by instr.
func trigrams(text string) string {
	n := len(text) - 2
	if n <= 0 {
		return ""
	}
	b := make([]byte, 0, 4*n)
	for i := range n {
		b = append(b, letter(text[i]), letter(text[i+1]), letter(text[i+2]), ' ')
	}
	return string(b)
}

func letter(b byte) byte {
	if 'A' <= b && b <= 'Z' {
		b += 'a' - 'A'
	}
	return b | 0x80
}

// maxTrigrams is how many words of a text are tried for being rare.
const maxTrigrams = 12

// textStarts returns the ways to begin with rows that may hold the text, one
// for each of its trigrams; none for a text of less than three bytes.
func textStarts(s start, table, text string) []start {
	var out []start
	seen := map[string]bool{}
	for _, word := range strings.Fields(trigrams(text)) {
		if seen[word] || len(out) == maxTrigrams {
			continue
		}
		seen[word] = true
		s.from, s.cond, s.args = table+" x", "x.grams MATCH ?", []any{word}
		s.word = word
		out = append(out, s)
	}
	return out
}
