package projections

import (
	"database/sql"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"pallas/events"
	"pallas/events/labels"
)

// build returns the query of a filter when each of its conditions is met by so
// many rows: more or less than are sorted.
func build(t *testing.T, filter any, rows int) query {
	t.Helper()
	var q query
	var err error
	switch f := filter.(type) {
	case interface{ query(sizer) (query, error) }:
		q, err = f.query(func(start) (int, error) { return rows, nil })
	case interface{ query() query }:
		q = f.query()
	case interface{ query() (query, error) }:
		q, err = f.query()
	default:
		t.Fatalf("%T is no filter of a list", filter)
	}
	if err != nil {
		t.Fatal(err)
	}
	return q
}

const (
	fewRows  = 1
	manyRows = 1_000_000
)

// TestQueryPlans looks at how SQLite runs each list where much matches: in the
// order of an index, without sorting, from where the page before ended, and
// with every inner look-up by key.
func TestQueryPlans(t *testing.T) {
	d := openDB(t, filepath.Join(t.TempDir(), "read.db"))
	deviceCursor := Window{Cursor: encodeCursor("device-name", "n", "i")}
	vmCursor := Window{Cursor: encodeCursor("vm-name", "n", "d", "i")}
	taskCursor := Window{Cursor: encodeCursor("task", 7, "i")}
	scope := func(s ...string) Scope {
		sels := make([]Selector, len(s))
		for i := range s {
			sels[i] = mustSelector(t, s[i])
		}
		return labels.Union(sels...)
	}
	one, two := scope("a=b"), scope("a=b,c", "d!=e").Intersect(scope("f=g"))
	for name, tc := range map[string]struct {
		filter any
		first  string // what drives the query
	}{
		"devices":            {DeviceFilter{Scope: everything}, "SCAN d USING INDEX devices_by_name"},
		"devices, next":      {DeviceFilter{Scope: everything, Window: deviceCursor}, "SEARCH d USING INDEX devices_by_name ((name_key,id)>(?,?))"},
		"devices by id":      {DeviceFilter{Scope: everything, Sort: SortID}, "SCAN d USING INDEX sqlite_autoindex_devices_1"},
		"devices by id, two": {DeviceFilter{Scope: everything, Sort: SortID, Trust: []Trust{TrustApproved}, Connection: []Connection{ConnectionLost}}, "SCAN d USING INDEX sqlite_autoindex_devices_1"},
		"devices by id, next": {
			DeviceFilter{Scope: everything, Sort: SortID, Window: Window{Cursor: encodeCursor("device-id", "i")}},
			"SEARCH d USING INDEX sqlite_autoindex_devices_1 (id>?)",
		},
		"trust":        {DeviceFilter{Scope: everything, Trust: []Trust{TrustPending}}, "SEARCH d USING INDEX devices_by_trust (trust=?)"},
		"trust, next":  {DeviceFilter{Scope: everything, Trust: []Trust{TrustPending}, Window: deviceCursor}, "SEARCH d USING INDEX devices_by_trust (trust=? AND (name_key,id)>(?,?))"},
		"trusts":       {DeviceFilter{Scope: everything, Trust: []Trust{TrustPending, TrustApproved}}, "SCAN d USING INDEX devices_by_name"},
		"trusts, next": {DeviceFilter{Scope: everything, Trust: []Trust{TrustPending, TrustApproved}, Window: deviceCursor}, "SEARCH d USING INDEX devices_by_name ((name_key,id)>(?,?))"},
		"connection":   {DeviceFilter{Scope: everything, Trust: []Trust{TrustApproved}, Connection: []Connection{ConnectionLost}}, "SEARCH d USING INDEX devices_by_connection (connection=?)"},
		"condition":    {DeviceFilter{Scope: everything, Condition: []events.Condition{events.ConditionDenied}, Connection: []Connection{ConnectionLost}}, "SEARCH d USING INDEX devices_by_condition (condition=?)"},
		"version":      {DeviceFilter{Scope: everything, Version: "8.0.2", Trust: []Trust{TrustApproved}}, "SEARCH d USING INDEX devices_by_version (version=?)"},
		"expiry":       {DeviceFilter{Scope: everything, CertificateExpiresBefore: at(1)}, "SCAN d USING INDEX devices_by_name"},
		"expiry, next": {DeviceFilter{Scope: everything, CertificateExpiresBefore: at(1), Window: deviceCursor}, "SEARCH d USING INDEX devices_by_name ((name_key,id)>(?,?))"},
		"expiry, more": {DeviceFilter{Scope: everything, CertificateExpiresBefore: at(1), Trust: []Trust{TrustApproved}}, "SEARCH d USING INDEX devices_by_trust (trust=?)"},
		"text":         {DeviceFilter{Scope: everything, Text: "x"}, "SCAN d USING INDEX devices_by_name"},
		"label":        {DeviceFilter{Scope: everything, Selector: mustSelector(t, "a=b")}, "SEARCH l USING COVERING INDEX device_labels_by_value (key=? AND value=?)"},
		"label, next": {
			DeviceFilter{Scope: everything, Selector: mustSelector(t, "a=b,c"), Window: deviceCursor},
			"SEARCH l USING COVERING INDEX device_labels_by_value (key=? AND value=? AND (name_key,device)>(?,?))",
		},
		"label and more": {
			DeviceFilter{Scope: everything, Selector: mustSelector(t, "c!=d,a=b,!x,e in (f,g)"), Trust: []Trust{TrustApproved}, Text: "q"},
			"SEARCH l USING COVERING INDEX device_labels_by_value (key=? AND value=?)",
		},
		"labels":               {DeviceFilter{Scope: everything, Selector: mustSelector(t, "a in (b,c),!d,e notin (f,g),h")}, "SCAN d USING INDEX devices_by_name"},
		"labels by id":         {DeviceFilter{Scope: everything, Selector: mustSelector(t, "a=b,c"), Sort: SortID}, "SCAN d USING INDEX sqlite_autoindex_devices_1"},
		"vms":                  {VMFilter{Scope: everything}, "SCAN v USING INDEX vms_by_name"},
		"vms, next":            {VMFilter{Scope: everything, Window: vmCursor}, "SEARCH v USING INDEX vms_by_name ((name_key,device,id)>(?,?,?))"},
		"vms by id":            {VMFilter{Scope: everything, Sort: SortID}, "SCAN v USING INDEX sqlite_autoindex_vms_1"},
		"vms of one by id":     {VMFilter{Scope: everything, Device: deviceA, Sort: SortID}, "SEARCH v USING INDEX sqlite_autoindex_vms_1 (device=?)"},
		"vms of one":           {VMFilter{Scope: everything, Device: deviceA, Power: []events.PowerState{events.PowerOn}}, "SEARCH v USING INDEX vms_by_device (device=?)"},
		"vms of one, next":     {VMFilter{Scope: everything, Device: deviceA, Window: vmCursor}, "SEARCH v USING INDEX vms_by_device (device=?"},
		"power":                {VMFilter{Scope: everything, Power: []events.PowerState{events.PowerOn}, Tools: []events.ToolsState{events.ToolsRunning}}, "SEARCH v USING INDEX vms_by_power (power=?)"},
		"power, next":          {VMFilter{Scope: everything, Power: []events.PowerState{events.PowerOn}, Window: vmCursor}, "SEARCH v USING INDEX vms_by_power (power=? AND (name_key,device,id)>(?,?,?))"},
		"vms by label":         {VMFilter{Scope: everything, Selector: mustSelector(t, "a=b,c!=d,e in (f,g)")}, "SCAN v USING INDEX vms_by_name"},
		"vms by text":          {VMFilter{Scope: everything, Text: "x"}, "SCAN v USING INDEX vms_by_name"},
		"tasks":                {TaskFilter{Scope: everything}, "SCAN t USING INDEX tasks_by_request"},
		"tasks, next":          {TaskFilter{Scope: everything, Window: taskCursor}, "SEARCH t USING INDEX tasks_by_request ((requested_position,id)<(?,?))"},
		"tasks of one":         {TaskFilter{Scope: everything, Device: deviceA, Open: true}, "SEARCH t USING INDEX tasks_by_device (device=?)"},
		"tasks of one, next":   {TaskFilter{Scope: everything, Device: deviceA, Window: taskCursor}, "SEARCH t USING INDEX tasks_by_device (device=? AND (requested_position,id)<(?,?))"},
		"tasks of a vm":        {TaskFilter{Scope: everything, Device: deviceA, VM: vm1}, "SEARCH t USING INDEX tasks_by_vm (device=? AND vm=?)"},
		"open tasks":           {TaskFilter{Scope: everything, Open: true, Kind: events.TaskVMReset}, "SCAN t USING INDEX tasks_open"},
		"open tasks, next":     {TaskFilter{Scope: everything, Open: true, Window: taskCursor}, "SEARCH t USING INDEX tasks_open ((requested_position,id)<(?,?))"},
		"tasks by status":      {TaskFilter{Scope: everything, Status: []events.TaskStatus{events.TaskStatusFailed}}, "SEARCH t USING INDEX tasks_by_status (status=?)"},
		"tasks by open status": {TaskFilter{Scope: everything, Status: []events.TaskStatus{events.TaskStatusRequested, events.TaskStatusAccepted}}, "SCAN t USING INDEX tasks_open"},
		"tasks by statuses":    {TaskFilter{Scope: everything, Status: []events.TaskStatus{events.TaskStatusFailed, events.TaskStatusExpired}}, "SCAN t USING INDEX tasks_by_request"},
		"tokens":               {JoinTokenFilter{Scope: everything, UsableAt: at(1)}, "SCAN t USING INDEX join_tokens_by_creation"},
		"tokens, next":         {JoinTokenFilter{Scope: everything, Window: Window{Cursor: encodeCursor("join-token", 1, "i")}}, "SEARCH t USING INDEX join_tokens_by_creation ((created_position,id)<(?,?))"},
		"uses":                 {TokenUseFilter{Scope: everything, Token: token1, Window: Window{Cursor: encodeCursor("token-use", 1, "i")}}, "SEARCH u USING INDEX join_token_uses_by_position (token=? AND (position,device)>(?,?))"},

		"selection":          {Selection{Scope: scope("d=e", "f"), Selector: mustSelector(t, "a=b,!c")}, "SCAN d USING COVERING INDEX sqlite_autoindex_devices_1"},
		"selection by trust": {Selection{Scope: everything, Selector: mustSelector(t, "a=b"), Trust: []Trust{TrustPending}}, "SCAN d USING INDEX sqlite_autoindex_devices_1"},

		"devices of a scope":         {DeviceFilter{Scope: one}, "SEARCH l USING COVERING INDEX device_labels_by_value (key=? AND value=?)"},
		"devices of a scope, next":   {DeviceFilter{Scope: two, Window: deviceCursor}, "SEARCH l USING COVERING INDEX device_labels_by_value (key=? AND value=? AND (name_key,device)>(?,?))"},
		"devices of a scope, lost":   {DeviceFilter{Scope: one, Connection: []Connection{ConnectionLost}}, "SEARCH l USING COVERING INDEX device_labels_by_value (key=? AND value=?)"},
		"devices of a scope, by id":  {DeviceFilter{Scope: one, Sort: SortID}, "SCAN d USING INDEX sqlite_autoindex_devices_1"},
		"devices of two":             {DeviceFilter{Scope: scope("a=b", "c=d")}, "SCAN d USING INDEX devices_by_name"},
		"devices of nothing":         {DeviceFilter{}, "SCAN d USING INDEX devices_by_name"},
		"vms of a scope":             {VMFilter{Scope: two}, "SCAN v USING INDEX vms_by_name"},
		"vms of one, of a scope":     {VMFilter{Scope: one, Device: deviceA}, "SEARCH v USING INDEX vms_by_device (device=?)"},
		"tasks of a scope":           {TaskFilter{Scope: one}, "SCAN t USING INDEX tasks_by_request"},
		"tasks of a scope, next":     {TaskFilter{Scope: two, Window: taskCursor}, "SEARCH t USING INDEX tasks_by_request ((requested_position,id)<(?,?))"},
		"open tasks of a scope":      {TaskFilter{Scope: one, Open: true}, "SCAN t USING INDEX tasks_open"},
		"tasks of one, of a scope":   {TaskFilter{Scope: one, Device: deviceA}, "SEARCH t USING INDEX tasks_by_device (device=?)"},
		"tokens of a scope":          {JoinTokenFilter{Scope: two}, "SCAN t USING INDEX join_tokens_by_creation"},
		"uses by devices of a scope": {TokenUseFilter{Scope: one, Token: token1}, "SEARCH u USING INDEX join_token_uses_by_position (token=?)"},
	} {
		t.Run(name, func(t *testing.T) {
			q := build(t, tc.filter, manyRows)
			plan := explain(t, d, q)
			if !strings.HasPrefix(plan[0], tc.first) {
				t.Errorf("plan begins %q, want %q", plan[0], tc.first)
			}
			inner := regexp.MustCompile(`^(SEARCH d USING INDEX sqlite_autoindex_devices_1 \(id=\?\)|` +
				`SEARCH s USING PRIMARY KEY \(device=\? AND key=\?\)|SCAN s VIRTUAL TABLE INDEX 1:|` +
				`SEARCH v USING COVERING INDEX vms_by_device \(device=\?\)|CORRELATED SCALAR SUBQUERY)`)
			for _, line := range plan {
				if strings.Contains(line, "TEMP B-TREE") {
					t.Errorf("sorts: %s", line)
				}
			}
			for _, line := range plan[1:] {
				if !inner.MatchString(line) {
					t.Errorf("looks at more than it needs: %s", line)
				}
			}
			if t.Failed() {
				t.Log(q.sql(), "\n", strings.Join(plan, "\n"))
			}
		})
	}
}

// TestSortedPlans looks at the lists where little matches: they begin with what
// is rare, and sort no more than the keys of that and then one page.
func TestSortedPlans(t *testing.T) {
	d := openDB(t, filepath.Join(t.TempDir(), "read.db"))
	const byLabel = "SEARCH l USING COVERING INDEX device_labels_by_value "
	for name, tc := range map[string]struct {
		filter any
		first  string // what drives the inner query
	}{
		"label in":         {DeviceFilter{Scope: everything, Selector: mustSelector(t, "a in (b,c)")}, byLabel + "(key=? AND value=?)"},
		"label exists":     {DeviceFilter{Scope: everything, Selector: mustSelector(t, "a,!b,c!=d")}, byLabel + "(key=?)"},
		"label in, next":   {DeviceFilter{Scope: everything, Selector: mustSelector(t, "a in (b,c)"), Window: Window{Cursor: encodeCursor("device-name", "n", "i")}}, byLabel + "(key=? AND value=?)"},
		"label by id":      {DeviceFilter{Scope: everything, Selector: mustSelector(t, "a=b"), Sort: SortID}, byLabel + "(key=? AND value=?)"},
		"connections":      {DeviceFilter{Scope: everything, Connection: []Connection{ConnectionLost, ConnectionNever}}, "SEARCH d USING COVERING INDEX devices_by_connection (connection=?)"},
		"conditions":       {DeviceFilter{Scope: everything, Condition: []events.Condition{"", events.ConditionDenied}}, "SEARCH d USING COVERING INDEX devices_by_condition (condition=?)"},
		"trusts":           {DeviceFilter{Scope: everything, Trust: []Trust{TrustPending, TrustRetired}}, "SEARCH d USING COVERING INDEX devices_by_trust (trust=?)"},
		"expiry":           {DeviceFilter{Scope: everything, CertificateExpiresBefore: at(1)}, "SEARCH d USING COVERING INDEX devices_by_certificate (cert_not_after<?)"},
		"expiry by id":     {DeviceFilter{Scope: everything, CertificateExpiresBefore: at(1), Sort: SortID}, "SEARCH d USING COVERING INDEX devices_by_certificate (cert_not_after<?)"},
		"text":             {DeviceFilter{Scope: everything, Text: "till"}, "SCAN x VIRTUAL TABLE INDEX 2:"},
		"text by id":       {DeviceFilter{Scope: everything, Text: "till", Sort: SortID}, "SCAN x VIRTUAL TABLE INDEX 2:"},
		"vms by label":     {VMFilter{Scope: everything, Selector: mustSelector(t, "a=b,c!=d")}, byLabel + "(key=? AND value=?)"},
		"vms by label, id": {VMFilter{Scope: everything, Selector: mustSelector(t, "a=b"), Sort: SortID}, byLabel + "(key=? AND value=?)"},
		"vms by powers":    {VMFilter{Scope: everything, Power: []events.PowerState{events.PowerSuspended, events.PowerUnknown}}, "SEARCH v USING COVERING INDEX vms_by_power (power=?)"},
		"vms by text":      {VMFilter{Scope: everything, Text: "till", Tools: []events.ToolsState{events.ToolsRunning}, Sort: SortID}, "SCAN x VIRTUAL TABLE INDEX 2:"},
		"scope":            {DeviceFilter{Scope: labels.Union(mustSelector(t, "a=b"), mustSelector(t, "a=c"))}, byLabel + "(key=? AND value=?)"},
		"vms of a scope":   {VMFilter{Scope: labels.Union(mustSelector(t, "a=b,c!=d"))}, byLabel + "(key=? AND value=?)"},
		"tasks of a scope": {TaskFilter{Scope: labels.Union(mustSelector(t, "a=b,c!=d"))}, byLabel + "(key=? AND value=?)"},
		"failed tasks":     {TaskFilter{Scope: labels.Union(mustSelector(t, "a=b")), Status: []events.TaskStatus{events.TaskStatusFailed}}, byLabel + "(key=? AND value=?)"},
		"vms by text only": {VMFilter{Scope: everything, Text: "till"}, "SCAN x VIRTUAL TABLE INDEX 2:"},
	} {
		t.Run(name, func(t *testing.T) {
			q := build(t, tc.filter, fewRows)
			plan := explain(t, d, q)
			var inner []string
			for i, line := range plan {
				if strings.HasPrefix(line, "LIST SUBQUERY") && i == 1 {
					inner = plan[2:]
				}
			}
			if len(inner) == 0 || !strings.HasPrefix(inner[0], tc.first) {
				t.Errorf("does not begin with %q", tc.first)
			}
			if !regexp.MustCompile(`^SEARCH [dvt] USING INTEGER PRIMARY KEY \(rowid=\?\)`).MatchString(plan[0]) {
				t.Errorf("fetches by %q", plan[0])
			}
			for _, line := range inner {
				if line != inner[0] && strings.HasPrefix(line, "SCAN") {
					t.Errorf("looks at more than it needs: %s", line)
				}
			}
			if t.Failed() {
				t.Log(q.sql(), "\n", strings.Join(plan, "\n"))
			}
		})
	}
}

// TestSizePlans looks at how the rows of each start are counted.
func TestSizePlans(t *testing.T) {
	d := openDB(t, filepath.Join(t.TempDir(), "read.db"))
	starts := append(DeviceFilter{
		Scope: everything,
		Trust: []Trust{TrustPending}, Connection: []Connection{ConnectionLost, ConnectionNever}, Condition: []events.Condition{""}, Version: "8",
		Selector: mustSelector(t, "a=b,c in (d,e),f"), Text: "till",
	}.starts(), VMFilter{Scope: everything, Power: []events.PowerState{events.PowerOn}, Selector: mustSelector(t, "a=b"), Text: "till"}.starts()...)
	starts = append(starts, scopeStarts(mustSelector(t, "a=b,c"))...)
	if len(starts) != 15 {
		t.Errorf("%d starts", len(starts))
	}
	for _, s := range starts {
		plan := explain(t, d, query{from: s.sizeText(), args: append(slices.Clone(s.args), s.max)})
		if !strings.Contains(plan[1], "USING COVERING INDEX") && !strings.Contains(plan[1], "VIRTUAL TABLE INDEX 2:") {
			t.Errorf("%s\n%s", s.sizeText(), strings.Join(plan, "\n"))
		}
	}
}

// explain returns the plan of a query, a line for each step.
func explain(t *testing.T, d *DB, q query) []string {
	t.Helper()
	var plan []string
	err := d.read(func(db *sql.DB) (err error) {
		plan, err = collect(t.Context(), db, "EXPLAIN QUERY PLAN "+q.sql(), q.args, func(rows *sql.Rows) (string, error) {
			var id, parent, unused int
			var detail string
			return detail, rows.Scan(&id, &parent, &unused, &detail)
		})
		return err
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, q.sql())
	}
	return plan
}

// TestOtherPlans covers the queries that are no lists.
func TestOtherPlans(t *testing.T) {
	d := openDB(t, filepath.Join(t.TempDir(), "read.db"))
	for text, want := range map[string]string{
		deviceColumns + " FROM devices d WHERE d.id = 'x'": "SEARCH d USING INDEX sqlite_autoindex_devices_1 (id=?)",
		taskColumns + taskFrom + " WHERE t.id = 'x'":       "SEARCH t USING INDEX sqlite_autoindex_tasks_1 (id=?)",
		deviceStates: "SCAN device_counts",
		strings.NewReplacer("?1", "1", "?2", "2", "?3", "3").Replace(expiryQuery):                                  "SEARCH devices USING COVERING INDEX devices_by_certificate (cert_not_after<?)",
		"SELECT id FROM devices WHERE connection = 'connected' ORDER BY id":                                        "SEARCH devices USING COVERING INDEX devices_by_connection (connection=?)",
		"UPDATE device_labels SET name_key = 'x' WHERE device = 'd'":                                               "SEARCH device_labels USING PRIMARY KEY (device=?)",
		"DELETE FROM vms WHERE device = 'd'":                                                                       "SEARCH vms USING",
		deviceColumns + " FROM devices d WHERE d.id >= 'x' AND d.id < 'y'":                                         "SEARCH d USING INDEX sqlite_autoindex_devices_1 (id>? AND id<?)",
		deviceColumns + " FROM devices d WHERE d.name_key = 'x' ORDER BY d.id":                                     "SEARCH d USING INDEX devices_by_name (name_key=?)",
		vmColumns + " FROM vms v LEFT JOIN devices d ON d.id = v.device WHERE v.device = 'd' AND v.name_key = 'x'": "SEARCH v USING INDEX vms_by_device (device=? AND name_key=?)",
	} {
		if plan := explain(t, d, query{from: text}); !strings.HasPrefix(plan[0], want) {
			t.Errorf("%s\n got %s\nwant %s", text, strings.Join(plan, "\n     "), want)
		}
	}
}
