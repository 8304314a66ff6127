package projections

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"pallas/events"
)

// now is the decision being applied.
type now struct {
	position int64
	at       int64 // the manager's clock when it decided, in microseconds
	actor    string
	source   string
	cause    string
}

// recordError says which record of a batch could not be applied.
type recordError struct {
	index int
	err   error
}

func (e *recordError) Error() string { return e.err.Error() }
func (e *recordError) Unwrap() error { return e.err }

// apply writes the records and the checkpoint in one transaction. On an error
// nothing is written; a [recordError] says that one of the records is at fault
// and not the disk.
func (w *writer) apply(recs []events.Record) (err error) {
	if w.retired == nil {
		w.retired = map[events.DeviceID]bool{}
		if err := w.loadRetired("SELECT id FROM devices WHERE trust = 'retired'"); err != nil {
			w.retired = nil
			return classify(err)
		}
	}
	if err := w.exec("BEGIN IMMEDIATE"); err != nil {
		return fmt.Errorf("begin: %w", classify(err))
	}
	defer func() {
		if err != nil {
			w.retired = nil
			// SQLite may have rolled back by itself, as on a full disk; then
			// this fails, and does no harm.
			_, _ = w.conn.ExecContext(context.Background(), "ROLLBACK")
		}
	}()
	for i := range recs {
		if err := w.record(&recs[i]); err != nil {
			err = fmt.Errorf("apply decision %s of %s: %w", recs[i].ID, recs[i].Subject, classify(err))
			if errors.Is(err, errDamaged) || transient(err) {
				return err
			}
			return &recordError{i, err}
		}
	}
	if err := w.indexText(); err != nil {
		return classify(err)
	}
	newest := &recs[len(recs)-1]
	if err := w.exec("UPDATE meta SET position = ?, decision = ?", int64(newest.Position), string(newest.ID)); err != nil {
		return fmt.Errorf("write checkpoint: %w", classify(err))
	}
	if err := w.exec("COMMIT"); err != nil {
		return fmt.Errorf("commit: %w", classify(err))
	}
	return nil
}

// loadRetired adds the ids that a query yields to the retired devices.
func (w *writer) loadRetired(text string, args ...any) error {
	ids, err := collect(context.Background(), w.conn, text, args,
		func(rows *sql.Rows) (id events.DeviceID, err error) { return id, rows.Scan(&id) })
	if err != nil {
		return fmt.Errorf("list retired devices: %w", err)
	}
	for _, id := range ids {
		w.retired[id] = true
	}
	return nil
}

// record applies one decision.
func (w *writer) record(rec *events.Record) error {
	at := now{
		position: int64(rec.Position), at: rec.Time.UnixMicro(),
		actor: string(rec.Actor), source: rec.Source, cause: rec.Cause,
	}
	for i := range rec.Entries {
		if err := w.event(at, rec.Subject, rec.Entries[i].Event); err != nil {
			return fmt.Errorf("%s: %w", rec.Entries[i].Event.Type(), err)
		}
	}
	return nil
}

// errSubject says that an event is in an aggregate that it does not belong to.
var errSubject = errors.New("does not belong to this kind of aggregate")

// event applies one event: one case per type.
func (w *writer) event(at now, s events.Subject, e events.Event) error {
	kind, device := s.Kind(), s.Device()
	token := events.TokenID(s.Key())
	var want string
	var err error
	switch e := e.(type) {
	case events.DeviceRegistered:
		want, err = events.KindDevice, w.deviceRegistered(at, device, e)
	case events.DeviceApproved:
		want, err = events.KindDevice, w.deviceApproved(at, device, e)
	case events.CertificateIssued:
		want, err = events.KindDevice, w.certificateIssued(at, device, e)
	case events.CertificateRotationRequested:
		want, err = events.KindDevice, w.rotationRequested(at, device)
	case events.DeviceAnchorsChanged:
		want, err = events.KindDevice, w.anchorsChanged(at, device, e)
	case events.DeviceConnected:
		want, err = events.KindDevice, w.deviceConnected(at, device, e)
	case events.DeviceLost:
		want, err = events.KindDevice, w.deviceLost(at, device, e)
	case events.DeviceLabelled:
		want, err = events.KindDevice, w.deviceLabelled(at, device, e)
	case events.DeviceRenamed:
		want, err = events.KindDevice, w.deviceRenamed(at, device, e)
	case events.DeviceDescribed:
		want, err = events.KindDevice, w.deviceDescribed(at, device, e)
	case events.DeviceRetired:
		want, err = events.KindDevice, w.deviceRetired(at, device, e)
	case events.DeviceRejected:
		want, err = events.KindDevice, w.deviceRejected(at, device, e)
	case events.DeviceQuarantined:
		want, err = events.KindDevice, w.deviceQuarantined(at, device, e)
	case events.DeviceReleased:
		want, err = events.KindDevice, w.deviceReleased(at, device, e)
	case events.DeviceKeyClaimed:
		want, err = events.KindDevice, w.deviceKeyClaimed(at, device, e)
	case events.DeviceRekeyed:
		want, err = events.KindDevice, w.deviceRekeyed(at, device, e)

	case events.HostObserved:
		want, err = events.KindInventory, w.hostObserved(at, device, e)
	case events.HostConditionChanged:
		want, err = events.KindInventory, w.hostConditionChanged(at, device, e)
	case events.VMObserved:
		want, err = events.KindInventory, w.vmObserved(at, device, e)
	case events.VMChanged:
		want, err = events.KindInventory, w.vmChanged(at, device, e)
	case events.VMRemoved:
		want, err = events.KindInventory, w.vmRemoved(device, e)
	case events.InventorySynced:
		want, err = events.KindInventory, w.inventorySynced(at, device, e)

	case events.TaskRequested:
		want, err = events.KindTasks, w.taskRequested(at, device, e)
	case events.TaskAccepted:
		want, err = events.KindTasks, w.taskAccepted(at, device, e)
	case events.TaskProgressed:
		want, err = events.KindTasks, w.taskProgressed(at, device, e)
	case events.TaskSucceeded:
		want, err = events.KindTasks, w.taskSucceeded(at, device, e)
	case events.TaskFailed:
		want, err = events.KindTasks, w.taskEnded(at, device, e.Task, events.TaskStatusFailed, e.Code, e.Message)
	case events.TaskRejected:
		want, err = events.KindTasks, w.taskEnded(at, device, e.Task, events.TaskStatusRejected, e.Code, e.Message)
	case events.TaskCancelled:
		want, err = events.KindTasks, w.taskEnded(at, device, e.Task, events.TaskStatusCancelled, "", e.Message)
	case events.TaskExpired:
		want, err = events.KindTasks, w.taskEnded(at, device, e.Task, events.TaskStatusExpired, "", e.Message)
	case events.TaskCancelRequested:
		want, err = events.KindTasks, w.taskCancelRequested(at, device, e)
	case events.TaskReportedLate:
		want, err = events.KindTasks, w.taskReportedLate(at, device, e)

	case events.JoinTokenIssued:
		want, err = events.KindToken, w.joinTokenIssued(at, token, e)
	case events.JoinTokenUsed:
		want, err = events.KindToken, w.joinTokenUsed(at, token, e)
	case events.JoinTokenRevoked:
		want, err = events.KindToken, w.joinTokenRevoked(at, token)
	case events.JoinRefused:
		want, err = events.KindToken, w.updateToken(at, token, "")

	// Who may do what is decided on, and read, on the write side; the read model
	// has no names of people and needs no table for this.
	case events.UserCreated, events.RoleGranted, events.RoleRevoked, events.UserDisabled, events.UserEnabled, events.UserDeleted:
		want = events.KindAccess
	case events.PasswordChanged, events.PasswordResetIssued, events.APITokenIssued, events.APITokenRevoked, events.APITokenUsed,
		events.SignedIn, events.SignInFailed, events.SessionEnded, events.AccessDenied:
		want = events.KindUser
	case events.AuthorityPrepared, events.AuthoritySwitched, events.AuthorityRetired, events.AuthorityAdopted:
		want = events.KindAuthority // no table: who wants to know asks the CA's files

	case events.Unknown:
		// An aggregate's revision counts every decision, also those that this
		// build does not understand.
		return w.unknown(at, s)
	default:
		return errors.New("this build has the type, and no rule to apply it")
	}
	if err == nil && kind != want {
		err = fmt.Errorf("%w: %s, want %s", errSubject, kind, want)
	}
	return err
}

func (w *writer) unknown(at now, s events.Subject) error {
	switch s.Kind() {
	case events.KindDevice:
		return w.updateDevice(at, s.Device(), "")
	case events.KindToken:
		return w.updateToken(at, events.TokenID(s.Key()), "")
	default:
		return nil
	}
}
