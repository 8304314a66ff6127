package projections

import (
	"strings"

	"pallas/events/labels"
)

// Selector picks devices by their labels.
type Selector = labels.Selector

// Scope holds the devices that somebody may see.
type Scope = labels.Scope

// labelled is where SQL finds the labels of something, as rows of s with a key
// and a value.
type labelled string

// ofDevice is where the labels of a device are that an SQL expression names.
func ofDevice(id string) labelled { return labelled("device_labels s WHERE s.device = " + id) }

// ofToken is where the labels are that the devices of a join token get.
const ofToken labelled = "json_each(t.labels) s WHERE 1"

// selects adds the conditions that labels must meet. Keys and values only ever
// become bound parameters.
func (q *query) selects(s Selector, of labelled) {
	for _, r := range s.Requirements() {
		cond, args := requires(r, of)
		q.and(cond, args...)
	}
}

// within adds the condition that the scope holds something with the labels.
func (q *query) within(s Scope, of labelled) {
	switch {
	case s.Nothing():
		q.and("?", 0) // a constant would make SQLite refuse the named index
		return
	case s.Everything():
		return
	}
	for _, layer := range s.Layers() {
		var either []string
		var args []any
		for _, sel := range layer {
			var all []string
			for _, r := range sel.Requirements() {
				cond, a := requires(r, of)
				all, args = append(all, cond), append(args, a...)
			}
			either = append(either, strings.Join(all, " AND "))
		}
		q.and("("+strings.Join(either, " OR ")+")", args...)
	}
}

func requires(r labels.Requirement, of labelled) (cond string, args []any) {
	// The plus sign keeps the planner from making a join of EXISTS, which it
	// might then begin with, and sort after.
	not := "+"
	if r.Op == labels.NotExists || r.Op == labels.NotEqual || r.Op == labels.NotIn {
		not = "NOT "
	}
	cond, args = not+"EXISTS (SELECT 1 FROM "+string(of)+" AND s.key = ?", []any{r.Key}
	switch len(r.Values) {
	case 0:
	case 1:
		cond += " AND s.value = ?"
	default:
		cond += " AND s.value IN (?" + strings.Repeat(",?", len(r.Values)-1) + ")"
	}
	for _, v := range r.Values {
		args = append(args, v)
	}
	return cond + ")", args
}
