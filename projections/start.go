package projections

import (
	"context"
	"database/sql"
	"strings"

	"pallas/events/labels"
)

// start is a way to begin with some rows of a list: by an index that holds
// those that meet one of the filter's conditions.
type start struct {
	// from is the table with its index, cond with args the condition.
	from string
	cond string
	args []any
	// key and id are the list's order in from's columns, when the index yields
	// it.
	key, id string
	// join leads from there to the list's rows, "" when from has them.
	join string
	// requirement is which one of the selector's it is, else -1.
	requirement int
	// word is the trigram, when that is what it is about, and orID what else
	// to ask the index for.
	word, orID string
	// max is how many rows of from are few enough to be sorted, and weight how
	// many rows of the list each of them stands for.
	max, weight int
}

// ordered says whether rows come in the list's order.
func (s *start) ordered() bool { return s.key != "" }

// sizer counts the rows of a start, up to one more than its max.
type sizer func(start) (int, error)

func (d *DB) sizer(ctx context.Context) sizer {
	return func(s start) (n int, err error) {
		err = d.read(func(db *sql.DB) error {
			return db.QueryRowContext(ctx, s.sizeText(), append(s.args[:len(s.args):len(s.args)], s.max+1)...).Scan(&n)
		})
		return n, err
	}
}

func (s *start) sizeText() string {
	return "SELECT count(*) FROM (SELECT 1 FROM " + s.from + " WHERE " + s.cond + " LIMIT ?)"
}

// choose returns the start that leaves the least to look at, and nil when a
// walk through the whole list is as good: few rows that are then sorted, or
// many that come in order. SQLite's planner cannot choose: it knows no values.
func choose(starts []start, size sizer) (best *start, err error) {
	if len(starts) == 1 && starts[0].ordered() {
		return &starts[0], nil
	}
	const none = int(^uint(0) >> 1)
	least := none
	var words []string
	for i := range starts {
		s := &starts[i]
		n, err := size(*s)
		if err != nil {
			return nil, err
		}
		few := n <= s.max
		if few && s.word != "" {
			words = append(words, s.word)
		}
		switch n *= s.weight; {
		case !few && !s.ordered():
			continue
		case !few:
			n = none - 1
		}
		if n < least {
			best, least = s, n
		}
		if least == 0 {
			break
		}
	}
	if best != nil && best.word != "" {
		best.args = []any{best.match(words...)}
	}
	return best, nil
}

// column adds a start for a set of allowed values of an indexed column of the
// list's table, none for an empty set.
func column[T ~string](starts []start, table, index, column, key, id string, values []T) []start {
	if len(values) == 0 {
		return starts
	}
	s := start{from: table + " INDEXED BY " + index, cond: column + " = ?", key: key, id: id, requirement: -1, max: maxSorted, weight: 1}
	if len(values) > 1 {
		s.cond, s.key = column+" IN (?"+strings.Repeat(",?", len(values)-1)+")", ""
	}
	for _, v := range values {
		s.args = append(s.args, string(v))
	}
	return append(starts, s)
}

// selectorStarts returns a start for each of the selector's requirements that devices
// meet by having a label.
func selectorStarts(s Selector, with start) (starts []start) {
	for i, r := range s.Requirements() {
		if r.Op != labels.Exists && r.Op != labels.Equal && r.Op != labels.In {
			continue
		}
		t := with
		t.requirement = i
		t.from, t.cond, t.args = "device_labels l INDEXED BY device_labels_by_value", "l.key = ?", []any{r.Key}
		switch len(r.Values) {
		case 0:
			t.key = ""
		case 1:
			t.cond += " AND l.value = ?"
		default:
			t.key = ""
			t.cond += " AND l.value IN (?" + strings.Repeat(",?", len(r.Values)-1) + ")"
		}
		for _, v := range r.Values {
			t.args = append(t.args, v)
		}
		starts = append(starts, t)
	}
	return starts
}

// How many rows are sorted at most for one page. The walk that is the other way
// looks at the fewer rows the more of them match: with n of N rows at about
// page*N/n, so that both cost the same at the root of page*N.
const (
	maxSorted   = 10_000 // from an index that holds all that the order needs
	maxFetched  = 4_000  // when each has to be fetched
	vmsOfDevice = 5      // about
)
