package esxi

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"pallas/agent/hypervisor"
	"pallas/mqttgw/wire"
)

// faultOf returns the host's fault in err and its message, or nil.
func faultOf(err error) (types.BaseMethodFault, string) {
	var te *taskError
	if errors.As(err, &te) {
		return te.fault.Fault, te.fault.LocalizedMessage
	}
	var fe interface {
		error
		Fault() types.BaseMethodFault
	}
	if !errors.As(err, &fe) {
		return nil, ""
	}
	message := ""
	if soap.IsSoapFault(fe) {
		message = soap.ToSoapFault(fe).String
	}
	return fe.Fault(), message
}

// taskError is the end of a host's task that failed.
type taskError struct{ fault *types.LocalizedMethodFault }

func (e *taskError) Error() string { return e.fault.LocalizedMessage }

// isFault says whether err is, or is caused by, a fault of this type.
func isFault[T types.BaseMethodFault](err error) bool {
	f, _ := faultOf(err)
	for f != nil {
		if _, ok := f.(T); ok {
			return true
		}
		f = cause(f)
	}
	return false
}

func cause(f types.BaseMethodFault) types.BaseMethodFault {
	if m := f.GetMethodFault(); m != nil && m.FaultCause != nil {
		return m.FaultCause.Fault
	}
	return nil
}

// code returns the code of a fault, or that of the first of its causes that
// has one.
func code(f types.BaseMethodFault) string {
	for ; f != nil; f = cause(f) {
		switch f.(type) {
		case *types.RestrictedVersion, *types.LicenseExpired, *types.InvalidLicense, *types.LicenseRestricted,
			*types.LicenseServerUnavailable, *types.NoLicenseServerConfigured, types.BaseNotEnoughLicenses:
			return wire.CodeReadOnly
		case *types.InvalidLogin, *types.NotAuthenticated, *types.NoPermission, *types.NoPermissionOnHost,
			*types.RestrictedByAdministrator:
			return wire.CodeDenied
		case *types.ToolsUnavailable, types.BaseGuestOperationsFault:
			return wire.CodeTools
		case types.BaseInvalidState, *types.TaskInProgress:
			return wire.CodeInvalidState
		case *types.ManagedObjectNotFound:
			return wire.CodeNotFound
		case *types.NotSupported, *types.NotImplemented, *types.MethodNotFound, *types.MethodDisabled:
			return wire.CodeUnsupported
		}
	}
	return wire.CodeHost
}

// translate turns what a call returned into a [hypervisor.Error].
func (d *Driver) translate(ctx context.Context, doing string, err error) error {
	if err == nil {
		return nil
	}
	var he *hypervisor.Error
	if errors.As(err, &he) {
		return err
	}
	if f, message := faultOf(err); f != nil || message != "" {
		e := &hypervisor.Error{Code: wire.CodeHost, Message: message, Err: &faultError{doing: doing, name: faultName(f), err: err}}
		if f != nil {
			e.Code = code(f)
		}
		if e.Message == "" {
			e.Message = "the host answered " + faultName(f)
		}
		switch f := f.(type) {
		case *types.InvalidLogin:
			e.Message = fmt.Sprintf("%s. Check username and password of %s.", strings.TrimRight(message, "."), d.cfg.Username)
		case *types.NoPermission:
			e.Message = strings.TrimSpace(fmt.Sprintf("%s The account %s needs the privilege %s.", message, d.cfg.Username, f.PrivilegeId))
		}
		return e
	}
	if ctx.Err() != nil {
		return &hypervisor.Error{Code: wire.CodeUnreachable, Message: "gave up: " + doing, Err: context.Cause(ctx)}
	}
	var ce *certificateError
	var status statusError
	switch {
	case errors.As(err, &status): // such as 503 while the management agents start
		return &hypervisor.Error{Code: wire.CodeUnreachable, Message: status.Error(), Err: errors.New(doing)}
	case errors.As(err, &ce):
		return &hypervisor.Error{Code: wire.CodeUnreachable, Message: ce.Error()}
	case errors.Is(err, context.DeadlineExceeded):
		return &hypervisor.Error{Code: wire.CodeUnreachable, Message: fmt.Sprintf("the host %s does not answer within %v", d.url.Host, d.cfg.CallTimeout)}
	}
	return &hypervisor.Error{Code: wire.CodeUnreachable, Message: "the host " + d.url.Host + " does not answer", Err: fmt.Errorf("%s: %w", doing, err)}
}

// faultError says in which call a fault came, without its message, which
// [hypervisor.Error] has.
type faultError struct {
	doing, name string
	err         error
}

func (e *faultError) Error() string { return e.doing + ": " + e.name }
func (e *faultError) Unwrap() error { return e.err }

func faultName(f types.BaseMethodFault) string {
	if f == nil {
		return "an unknown fault"
	}
	t := reflect.TypeOf(f)
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t.Name()
}
