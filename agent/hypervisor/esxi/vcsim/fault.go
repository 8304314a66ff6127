package vcsim

import (
	"fmt"
	"net/http"
	"reflect"
	"regexp"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
	"github.com/vmware/govmomi/vim25/xml"
)

// injected is a fault that a test asked for.
type injected struct {
	method string
	fault  types.BaseMethodFault
	left   int // -1 for ever
	task   bool
}

// Fault makes the next count calls of a SOAP method, such as
// "PowerOnVM_Task", end in a fault; count 0 means all until ClearFaults.
func (h *Host) Fault(method string, fault types.BaseMethodFault, count int) {
	h.inject(injected{method: method, fault: fault, left: count})
}

// TaskFault is Fault for a method that makes a task: the call succeeds and the
// task ends in the fault.
func (h *Host) TaskFault(method string, fault types.BaseMethodFault, count int) {
	h.inject(injected{method: method, fault: fault, left: count, task: true})
}

// ClearFaults ends what Fault and TaskFault began.
func (h *Host) ClearFaults() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.faults = nil
}

func (h *Host) inject(i injected) {
	if i.left == 0 {
		i.left = -1
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.faults = append(h.faults, &i)
}

// take returns the fault injected for this call, if any.
func (h *Host) take(method string, task bool) types.BaseMethodFault {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, i := range h.faults {
		if i.task != task || i.left == 0 || (i.method != method && i.method != "*") {
			continue
		}
		if i.left > 0 {
			i.left--
		}
		return i.fault
	}
	return nil
}

// privileges says what the methods that tasks use need.
var privileges = map[string]string{
	"PowerOnVM_Task":       "VirtualMachine.Interact.PowerOn",
	"PowerOffVM_Task":      "VirtualMachine.Interact.PowerOff",
	"ShutdownGuest":        "VirtualMachine.Interact.PowerOff",
	"SuspendVM_Task":       "VirtualMachine.Interact.Suspend",
	"ResetVM_Task":         "VirtualMachine.Interact.Reset",
	"RebootGuest":          "VirtualMachine.Interact.Reset",
	"MakeDirectory":        "Datastore.FileManagement",
	"UpdateOptions":        "Host.Config.AdvancedConfig",
	"EnterMaintenanceMode": "Host.Config.Maintenance",
}

// refuse returns the fault that a call ends in before the simulator sees it.
func (h *Host) refuse(m *simulator.Method, session bool) types.BaseMethodFault {
	if f := h.take(m.Name, false); f != nil {
		return f
	}
	switch m.Name {
	case "RetrieveServiceContent", "Login":
		return nil
	}
	if !session {
		return notAuthenticated(m)
	}
	if h.isReadOnly() && !reads(m.Name) {
		return new(types.RestrictedVersion)
	}
	h.mu.Lock()
	denied := h.denied[privileges[m.Name]]
	h.mu.Unlock()
	if denied {
		return &types.NoPermission{Object: &m.This, PrivilegeId: privileges[m.Name]}
	}
	switch m.Name {
	case "CloneVM_Task", "RelocateVM_Task", "MigrateVM_Task":
		return new(types.NotSupported) // a standalone host has none
	case "ShutdownGuest", "RebootGuest", "StandbyGuest":
		return h.needsTools(m.This)
	}
	return nil
}

// reads says whether a method changes nothing.
func reads(method string) bool {
	switch method {
	case "Login", "Logout", "CurrentTime", "CreateFilter", "CreatePropertyCollector", "DestroyPropertyFilter",
		"DestroyPropertyCollector", "DestroyView", "CreateContainerView", "CreateListView", "WaitForUpdatesEx",
		"WaitForUpdates", "CancelWaitForUpdates", "SessionIsActive", "ContinueRetrievePropertiesEx":
		return true
	}
	for _, p := range []string{"Retrieve", "Query", "Find", "Fetch", "Has", "Search"} {
		if strings.HasPrefix(method, p) {
			return true
		}
	}
	return false
}

func notAuthenticated(m *simulator.Method) *types.NotAuthenticated {
	return &types.NotAuthenticated{NoPermission: types.NoPermission{Object: &m.This, PrivilegeId: "System.View"}}
}

func (h *Host) needsTools(ref types.ManagedObjectReference) types.BaseMethodFault {
	var fault types.BaseMethodFault
	ctx := h.context()
	vm, ok := ctx.Map.Get(ref).(*simulator.VirtualMachine)
	if !ok {
		return nil // the simulator says what is wrong
	}
	ctx.Map.WithLock(ctx, vm, func() {
		if vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn &&
			vm.Guest.ToolsRunningStatus != string(types.VirtualMachineToolsRunningStatusGuestToolsRunning) {
			fault = new(types.ToolsUnavailable)
		}
	})
	return fault
}

// answer serves what is not left to the simulator.
func (h *Host) answer(w http.ResponseWriter, m *simulator.Method) bool {
	switch b := m.Body.(type) {
	case *types.CurrentTime:
		h.mu.Lock()
		now := time.Now().Add(h.clock)
		h.mu.Unlock()
		writeAnswer(w, m.Name, "<returnval>"+now.UTC().Format(time.RFC3339Nano)+"</returnval>")
		return true
	case *types.HasPrivilegeOnEntity:
		var out strings.Builder
		h.mu.Lock()
		for _, p := range b.PrivId {
			fmt.Fprintf(&out, "<returnval>%t</returnval>", !h.denied[p])
		}
		h.mu.Unlock()
		writeAnswer(w, m.Name, out.String())
		return true
	}
	h.mu.Lock()
	deaf := h.noShutdown && m.Name == "ShutdownGuest"
	h.mu.Unlock()
	if deaf {
		writeAnswer(w, m.Name, "")
		return true
	}
	fault := h.take(m.Name, true)
	if fault == nil {
		return false
	}
	ctx := h.context()
	obj := ctx.Map.Get(m.This)
	if obj == nil {
		return false
	}
	task := simulator.CreateTask(obj, strings.TrimSuffix(m.Name, "_Task"), func(*simulator.Task) (types.AnyType, types.BaseMethodFault) {
		return nil, fault
	}).Run(ctx)
	writeAnswer(w, m.Name, fmt.Sprintf(`<returnval type="Task">%s</returnval>`, task.Value))
	return true
}

const (
	envelopeStart = xml.Header + `<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"` +
		` xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xmlns:xsd="http://www.w3.org/2001/XMLSchema"><soapenv:Body>`
	envelopeEnd = `</soapenv:Body></soapenv:Envelope>`
)

func writeAnswer(w http.ResponseWriter, method, inner string) {
	w.Header().Set("Content-Type", `text/xml; charset="utf-8"`)
	_, _ = fmt.Fprintf(w, `%[1]s<%[2]sResponse xmlns="urn:vim25">%[3]s</%[2]sResponse>%[4]s`, envelopeStart, method, inner, envelopeEnd)
}

// writeFault answers with a SOAP fault in the host's own words.
func writeFault(w http.ResponseWriter, f types.BaseMethodFault) {
	kind := reflect.TypeOf(f).Elem().Name()
	var detail strings.Builder
	e := xml.NewEncoder(&detail)
	err := e.EncodeElement(f, xml.StartElement{
		Name: xml.Name{Local: kind + "Fault"},
		Attr: []xml.Attr{{Name: xml.Name{Local: "xmlns"}, Value: "urn:vim25"}, {Name: xml.Name{Local: "xsi:type"}, Value: kind}},
	})
	if err == nil {
		err = e.Flush()
	}
	if err != nil {
		http.Error(w, "", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", `text/xml; charset="utf-8"`)
	w.WriteHeader(http.StatusInternalServerError)
	_, _ = fmt.Fprintf(w, `%s<soapenv:Fault><faultcode>ServerFaultCode</faultcode><faultstring>%s</faultstring><detail>%s</detail></soapenv:Fault>%s`,
		envelopeStart, wording(kind, ""), detail.String(), envelopeEnd)
}

// words are the English messages of ESXi's own catalogue.
var words = map[string]string{
	"RestrictedVersion":          "Current license or ESXi version prohibits execution of the requested operation.",
	"InvalidLogin":               "Cannot complete login due to an incorrect user name or password.",
	"NotAuthenticated":           "The session is not authenticated.",
	"NoPermission":               "Permission to perform this operation was denied.",
	"ManagedObjectNotFound":      "The object has already been deleted or has not been completely created",
	"InvalidPowerState":          "The attempted operation cannot be performed in the current state (%s).",
	"InvalidState":               "The operation is not allowed in the current state.",
	"ToolsUnavailable":           "Cannot complete operation because VMware Tools is not running in this virtual machine.",
	"NotSupported":               "The operation is not supported on the object.",
	"RequestCanceled":            "The request was canceled by a user.",
	"LicenseExpired":             "The host's license has expired.",
	"TaskInProgress":             "Another task is already in progress.",
	"FileFault":                  "A file access error occurred on the host or guest operating system.",
	"InsufficientResourcesFault": "The operation cannot be completed because of insufficient resources.",
}

var states = map[string]string{"poweredOn": "Powered on", "poweredOff": "Powered off", "suspended": "Suspended"}

func wording(kind, state string) string {
	w, ok := words[kind]
	if !ok {
		return "A general system error occurred: " + kind
	}
	if strings.Contains(w, "%s") {
		if s := states[state]; s != "" {
			return fmt.Sprintf(w, s)
		}
		return strings.Replace(w, " (%s)", "", 1)
	}
	return w
}

var (
	existing    = regexp.MustCompile(`<existingState>(\w+)</existingState>`)
	faultString = regexp.MustCompile(`<faultstring>[^<]*</faultstring>`)
	faultKind   = regexp.MustCompile(`<detail>\s*<(\w+)Fault[ >]`)
	taskMessage = regexp.MustCompile(`<localizedMessage>\*types\.(\w+)</localizedMessage>`)
)

// word replaces the simulator's missing messages by the host's.
func word(b []byte) []byte {
	state := ""
	if m := existing.FindSubmatch(b); m != nil {
		state = string(m[1])
	}
	if m := faultKind.FindSubmatch(b); m != nil {
		b = faultString.ReplaceAll(b, []byte("<faultstring>"+wording(string(m[1]), state)+"</faultstring>"))
	}
	return taskMessage.ReplaceAllFunc(b, func(m []byte) []byte {
		return []byte("<localizedMessage>" + wording(string(taskMessage.FindSubmatch(m)[1]), state) + "</localizedMessage>")
	})
}
