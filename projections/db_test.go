package projections

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pallas/events"
)

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	foreign := filepath.Join(dir, "foreign.db")
	sqlExec(t, foreign, "CREATE TABLE customers (id INTEGER PRIMARY KEY)")
	before := read(t, foreign)
	for name, tc := range map[string]struct {
		cfg  Config
		want string
	}{
		"no path":       {Config{Log: testLog(t)}, "Path is empty"},
		"no log":        {Config{Path: filepath.Join(dir, "x.db")}, "Log is missing"},
		"no folder":     {Config{Path: filepath.Join(dir, "none", "x.db"), Log: testLog(t)}, "unable to open"},
		"a folder":      {Config{Path: dir, Log: testLog(t)}, "unable to open"},
		"foreign table": {Config{Path: foreign, Log: testLog(t)}, "database of something else"},
	} {
		d, err := Open(t.Context(), tc.cfg)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
		if d != nil {
			t.Errorf("%s: a DB beside the error", name)
		}
	}
	if !bytes.Equal(before, read(t, foreign)) {
		t.Error("somebody else's database was changed")
	}
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// sqlExec changes a database file behind the read model's back.
func sqlExec(t testing.TB, path, text string) {
	t.Helper()
	db, err := sql.Open("sqlite3", dsn(path, nil))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), text); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestOddPath opens a file whose name means something in a URI.
func TestOddPath(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a?b=c#d %41&mode=memory.db")
	l := newLog(t)
	l.register(deviceA, "a")
	d := openDB(t, path)
	run(t, d, l)
	wait(t, d, 1)
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}

// TestReadersCannotWrite tries to change the file through the queries' pool.
func TestReadersCannotWrite(t *testing.T) {
	d := openDB(t, filepath.Join(t.TempDir(), "read.db"))
	for _, text := range []string{
		"DELETE FROM meta", "UPDATE meta SET position = 9", "CREATE TABLE x (y)", "PRAGMA user_version = 9",
		"PRAGMA query_only = 0; DELETE FROM meta",
	} {
		err := d.read(func(db *sql.DB) error {
			_, err := db.ExecContext(t.Context(), text)
			return err
		})
		if err == nil {
			t.Errorf("%s: done", text)
		}
	}
	if got := dump(t, d); !strings.Contains(got, "meta id=1 position=0") {
		t.Errorf("contents changed:\n%s", got)
	}
}

// TestUnusableFile gives Open files that it must build anew, each from a
// read model that had been complete.
func TestUnusableFile(t *testing.T) {
	l := fleet(t, 30)
	last, _ := l.Last(t.Context())
	want := rebuilt(t, l)
	for name, tc := range map[string]struct {
		spoil  func(path string)
		reason string
	}{
		"no database":  {func(path string) { write(t, path, bytes.Repeat([]byte("nonsense"), 4096)) }, "damaged"},
		"empty header": {func(path string) { write(t, path, make([]byte, 8192)) }, "damaged"},
		"cut off": {func(path string) {
			b := read(t, path)
			write(t, path, b[:len(b)/2])
		}, "damaged"},
		"pages overwritten": {func(path string) {
			b := read(t, path)
			for i := 4096 * 2; i < len(b); i += 4096 {
				copy(b[i:], "garbage garbage garbage")
			}
			write(t, path, b)
		}, "damaged"},
		"older schema": {func(path string) { sqlExec(t, path, "PRAGMA user_version = 0x7ffffffe; DROP TABLE tasks") }, "schema"},
		"newer schema": {func(path string) { sqlExec(t, path, "PRAGMA user_version = 77") }, "schema"},
		"left-over write-ahead log": {func(path string) {
			write(t, path+"-wal", bytes.Repeat([]byte{1, 2, 3}, 9999))
		}, ""},
		"left-over rebuild":          {func(path string) { write(t, path+rebuildSuffix, []byte("half")) }, ""},
		"write-ahead log of nothing": {func(path string) { check(t, os.Rename(path, path+"-wal")) }, ""},
		"emptied":                    {func(path string) { write(t, path, nil) }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "read.db")
			if _, err := Rebuild(t.Context(), path, l); err != nil {
				t.Fatal(err)
			}
			tc.spoil(path)
			reg := prometheus.NewRegistry()
			d, err := Open(t.Context(), Config{Path: path, Log: testLog(t), Registerer: reg})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { check(t, d.Close()) }()
			r := run(t, d, l)
			wait(t, d, last)
			if got := dump(t, d); got != want {
				t.Error("contents differ from those of a new file")
			}
			for _, reason := range []string{"damaged", "schema"} {
				want := 0.0
				if reason == tc.reason {
					want = 1
				}
				if got := metric(t, reg, "pallas_projection_rebuilds_total", reason); got != want {
					t.Errorf("rebuilds because of %s: %v, want %v", reason, got, want)
				}
			}
			if _, err := os.Stat(path + ".damaged"); (err == nil) != (tc.reason == "damaged") {
				t.Errorf("damaged file set aside: %v", err)
			}
			check(t, r.stop())
		})
	}
}

func write(t testing.TB, path string, b []byte) {
	t.Helper()
	check(t, os.WriteFile(path, b, 0o600))
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

// TestSchemaVersion fails when the tables, or what Apply writes for a fixed
// log, change without another schemaVersion. After raising it, take the new
// sums from the message.
func TestSchemaVersion(t *testing.T) {
	const (
		version  = 105
		tables   = "149053ed9b6dd2c2"
		contents = "5dc991e435738f07"
	)
	sum := func(s string) string {
		h := sha256.Sum256([]byte(s))
		return hex.EncodeToString(h[:8])
	}
	gotContents := sum(rebuilt(t, everyEvent(t)))
	if got := sum(schemaDDL); schemaVersion != version || got != tables || gotContents != contents {
		t.Errorf("schemaVersion %d, tables %s, contents %s; want %d, %s, %s: raise schemaVersion with any change",
			schemaVersion, got, gotContents, version, tables, contents)
	}
}

// everyEvent is a log that holds each type of event.
func everyEvent(t testing.TB) *eventLog {
	l := newLog(t)
	l.token(token1, events.JoinTokenIssued{Token: token1, Name: "n", MaxUses: 2, Expires: at(99), AutoApprove: true, Labels: map[string]string{"b": "1", "a": "2"}, NamePattern: "till-{n}"})
	l.token(token1, events.JoinTokenUsed{Device: deviceA})
	l.token(token1, events.JoinTokenRevoked{})
	l.token(token1, events.JoinRefused{Failures: 3, Limit: "all"})
	user := events.UserID(fleetID(1))
	l.add(events.UserActor("ada"), events.AccessSubject(), events.UserCreated{User: user}, events.RoleGranted{User: user, Role: events.RoleAdmin}, events.RoleRevoked{User: user},
		events.UserDisabled{User: user}, events.UserEnabled{User: user}, events.UserDeleted{User: user})
	l.add(events.UserActor("ada"), events.UserSubject(user), events.PasswordChanged{How: events.PasswordOwn}, events.PasswordResetIssued{Expires: at(9)},
		events.APITokenIssued{Role: events.RoleViewer, Expires: at(9)}, events.APITokenUsed{}, events.APITokenRevoked{}, events.SignedIn{}, events.SignInFailed{},
		events.SessionEnded{}, events.AccessDenied{})
	l.register(deviceA, "Ä1", "z=1", "a=2")
	l.register(deviceB, "b")
	l.device(deviceA, events.DeviceApproved{Policy: "auto"}, events.CertificateIssued{Serial: "1", KeyHash: "k", NotBefore: at(0), NotAfter: at(99)})
	l.device(deviceA, events.DeviceConnected{Address: "192.0.2.1", AgentVersion: "2", Protocol: 1})
	l.device(deviceA, events.DeviceAnchorsChanged{Anchors: []string{"0011223344556677", "8899aabbccddeeff"}}, events.CertificateRotationRequested{})
	l.device(deviceB, events.CertificateRotationRequested{}, events.CertificateIssued{
		Serial: "2", KeyHash: "k", NotBefore: at(0), NotAfter: at(98), Issuer: "8899aabbccddeeff", Reason: events.CertificateRotate,
	})
	l.add("system:ca", events.AuthoritySubject(), events.AuthorityAdopted{Active: "a"}, events.AuthorityPrepared{Active: "a", Next: "b"})
	l.add("system:ca", events.AuthoritySubject(), events.AuthoritySwitched{Active: "b", Former: "a"}, events.AuthorityRetired{Active: "b", Former: "a"})
	l.device(deviceA, events.DeviceLabelled{Labels: map[string]string{"y": "2"}}, events.DeviceRenamed{Name: "Ö"})
	l.device(deviceA, events.DeviceDescribed{Notes: "n", Site: &events.Site{Name: "s", Latitude: new(50.25), Longitude: new(-8.0)}})
	l.device(deviceB, events.DeviceLost{Reason: "x", Since: at(1)})
	l.device(deviceB, events.DeviceRejected{Reason: "x"})
	l.device(deviceB, events.DeviceQuarantined{Cause: events.QuarantineClone, Reason: "x", KeyHash: "k2"}, events.DeviceKeyClaimed{KeyHash: "k2", JoinToken: token2, Name: "c", AgentVersion: "2"})
	l.register(deviceC, "c")
	l.device(deviceC, events.DeviceQuarantined{Cause: events.QuarantineOperator, Reason: "x"}, events.DeviceKeyClaimed{KeyHash: "k2", JoinToken: token2, Name: "c", AgentVersion: "2"})
	l.device(deviceB, events.DeviceRekeyed{KeyHash: "k2", Policy: "manual", JoinToken: token2}, events.DeviceReleased{Reason: "z"})
	l.device(deviceB, events.DeviceRetired{Reason: "y"}, unknown())
	l.inventory(
		deviceA, events.HostObserved{Host: fullHost()}, events.HostConditionChanged{Condition: events.ConditionDenied, Message: "m"},
		events.VMObserved{VM: fullVM(vm1)}, events.VMObserved{VM: fullVM(vm2)}, events.VMChanged{VM: vm1, Patch: events.VMPatch{CPUs: new(2)}},
		events.VMRemoved{VM: vm2}, events.InventorySynced{Hash: "h", VMs: 1},
	)
	for i, e := range []func(events.TaskID) events.Event{
		func(id events.TaskID) events.Event { return events.TaskAccepted{Task: id} },
		func(id events.TaskID) events.Event { return events.TaskProgressed{Task: id, Percent: 5, Message: "m"} },
		func(id events.TaskID) events.Event { return events.TaskSucceeded{Task: id, Message: "m"} },
		func(id events.TaskID) events.Event { return events.TaskFailed{Task: id, Code: "c", Message: "m"} },
		func(id events.TaskID) events.Event { return events.TaskRejected{Task: id, Code: "c", Message: "m"} },
		func(id events.TaskID) events.Event { return events.TaskCancelRequested{Task: id} },
		func(id events.TaskID) events.Event { return events.TaskCancelled{Task: id, Message: "m"} },
		func(id events.TaskID) events.Event { return events.TaskExpired{Task: id, Message: "m"} },
		func(id events.TaskID) events.Event {
			return events.TaskReportedLate{Task: id, Status: events.TaskStatusFailed, Code: "c", Message: "m"}
		},
	} {
		id := events.TaskID(fleetID(i))
		l.tasks(deviceA, events.TaskRequested{Task: id, Kind: events.TaskVMReset, VM: vm1, Deadline: at(99)}, e(id))
	}
	return l
}

// TestEveryEvent makes sure that the fixed log above and Apply know each type
// of the codec table.
func TestEveryEvent(t *testing.T) {
	missing := map[string]bool{}
	for _, info := range events.Types() {
		missing[info.Name] = true
	}
	for rec, err := range everyEvent(t).Read(t.Context(), events.Filter{}) {
		check(t, err)
		for _, e := range rec.Entries {
			delete(missing, e.Event.Type())
		}
	}
	if len(missing) > 0 {
		t.Errorf("no example of %v", missing)
	}
}

func TestClosed(t *testing.T) {
	d, err := Open(t.Context(), Config{Path: filepath.Join(t.TempDir(), "read.db"), Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	check(t, d.Close())
	check(t, d.Close())
	_, err = d.Devices(t.Context(), DeviceFilter{Scope: everything})
	is(t, err, ErrClosed)
	_, err = d.Counts(t.Context(), everything)
	is(t, err, ErrClosed)
}

// TestMetrics registers, reads and takes back the metrics, twice.
func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	l := newLog(t)
	l.register(deviceA, "a")
	l.register(deviceB, "b")
	path := filepath.Join(t.TempDir(), "read.db")
	for range 2 {
		d, err := Open(t.Context(), Config{Path: path, Log: testLog(t), Registerer: reg})
		if err != nil {
			t.Fatal(err)
		}
		_, err = Open(t.Context(), Config{Path: path, Log: testLog(t), Registerer: reg})
		if !errors.As(err, new(prometheus.AlreadyRegisteredError)) {
			t.Errorf("opened with metrics that are registered already: %v", err)
		}
		r := run(t, d, l)
		wait(t, d, 2)
		for name, want := range map[string]float64{
			"pallas_projection_position": 2, "pallas_projection_lag": 0, "pallas_projection_stopped": 0, "pallas_projection_apply_errors_total": 0,
		} {
			if got := metric(t, reg, name, ""); got != want {
				t.Errorf("%s is %v, want %v", name, got, want)
			}
		}
		check(t, r.stop())
		check(t, d.Close())
		if got, err := reg.Gather(); err != nil || len(got) != 0 {
			t.Errorf("%d metrics of a closed read model, %v", len(got), err)
		}
	}
}

// metric returns the value of a gauge or counter, 0 when there is none with
// the label value.
func metric(t testing.TB, reg prometheus.Gatherer, name, label string) float64 {
	t.Helper()
	families, err := reg.Gather()
	check(t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && (label == "" || m.GetLabel()[0].GetValue() == label) {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

func TestRebuildKeepsTheOldFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "read.db")
	l := newLog(t)
	l.register(deviceA, "a")
	if p, err := Rebuild(t.Context(), path, l); err != nil || p != 1 {
		t.Fatal(p, err)
	}
	before := read(t, path)
	l.device(deviceA, undecodable())
	_, err := Rebuild(t.Context(), path, l)
	is(t, err, ErrStopped)
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	cancel()
	_, err = Rebuild(ctx, path, l)
	is(t, err, context.Canceled)
	if errors.Is(err, ErrStopped) {
		t.Errorf("an interrupted rebuild says %v", err)
	}
	if !bytes.Equal(before, read(t, path)) {
		t.Error("the old file was changed")
	}
	if files, err := os.ReadDir(filepath.Dir(path)); err != nil || len(files) != 1 {
		t.Errorf("files left behind: %v, %v", files, err)
	}
}
