package projections

import (
	"strings"

	"pallas/events/labels"
)

// Selector picks devices by their labels.
type Selector = labels.Selector

// selects adds the conditions that the device, named by an SQL expression, must
// meet. Keys and values only ever become bound parameters.
func (q *query) selects(s Selector, device string) {
	for _, r := range s.Requirements() {
		cond, args := requires(r, device)
		q.and(cond, args...)
	}
}

// within adds the condition that the device is in the scope.
func (q *query) within(s labels.Scope, device string) {
	switch {
	case s.Nothing():
		q.and("0")
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
				cond, a := requires(r, device)
				all, args = append(all, cond), append(args, a...)
			}
			either = append(either, strings.Join(all, " AND "))
		}
		q.and("("+strings.Join(either, " OR ")+")", args...)
	}
}

func requires(r labels.Requirement, device string) (cond string, args []any) {
	// The plus sign keeps the planner from making a join of EXISTS, which it
	// might then begin with, and sort after.
	not := "+"
	if r.Op == labels.NotExists || r.Op == labels.NotEqual || r.Op == labels.NotIn {
		not = "NOT "
	}
	cond, args = not+"EXISTS (SELECT 1 FROM device_labels s WHERE s.device = "+device+" AND s.key = ?", []any{r.Key}
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
