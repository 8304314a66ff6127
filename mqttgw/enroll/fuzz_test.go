package enroll_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"pallas/internal/httpapi"
	"pallas/mqttgw/enroll"
	"pallas/mqttgw/wire"
)

// FuzzEnroll asks for anything at the one operation that needs no token. It is
// refused as the client's fault, or enrols the device that it names.
func FuzzEnroll(f *testing.F) {
	m := startManager(f, func(c *enroll.Config) {
		c.Limits = enroll.Limits{SourceRate: 1e9, SourceBurst: 1 << 30, FailureRate: 1e9, FailureBurst: 1 << 30}
	})
	_, token := m.token(1, true, time.Hour)
	d := newDevice(f)
	good := d.request(f, token)
	for _, change := range []func(*wire.EnrollRequest){
		func(*wire.EnrollRequest) {},
		func(r *wire.EnrollRequest) { r.Token = "x" },
		func(r *wire.EnrollRequest) { r.Device = strings.ToUpper(r.Device) },
		func(r *wire.EnrollRequest) { r.CSR = strings.Replace(r.CSR, "M", "N", 3) },
		func(r *wire.EnrollRequest) { r.Name, r.Agent = "", "\x00" },
	} {
		r := good
		change(&r)
		f.Add(r.Token, r.Device, r.Name, r.Agent, r.CSR)
	}
	f.Fuzz(func(t *testing.T, token, device, name, agent, csr string) {
		body, err := json.Marshal(wire.EnrollRequest{Token: token, Device: device, Name: name, Agent: agent, CSR: csr})
		if err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, wire.EnrollPath, bytes.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		m.logged.mu.Lock()
		m.logged.b.Reset()
		m.logged.mu.Unlock()
		w := httptest.NewRecorder()
		m.handler.ServeHTTP(w, r)
		if w.Code == http.StatusOK {
			var answer wire.EnrollResponse
			if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || answer.Device != d.id || device != d.id {
				t.Fatalf("%v: %s", err, w.Body)
			}
			return
		}
		var p httpapi.Problem
		if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || w.Code < 400 || w.Code >= 500 || p.Status != w.Code {
			t.Fatalf("status %d, %v: %s", w.Code, err, w.Body)
		}
		if w.Code == http.StatusUnprocessableEntity && (len(p.Errors) == 0 || !strings.HasPrefix(p.Errors[0].Field, "body")) {
			t.Fatalf("no field of the body in %s", w.Body)
		}
	})
}
