package server_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"pallas/agent"
	"pallas/agent/hypervisor/fake"
	"pallas/internal/client"
	"pallas/internal/server"
	"pallas/internal/servertest"
	"pallas/mqttgw/wire"
)

// nowhere returns a loopback address that refuses connections.
func nowhere(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// A device that cannot reach the MQTT port gets on through the HTTPS port: it
// connects, is known by its own address, and does what it is told.
func TestOnePortIsEnough(t *testing.T) {
	m := servertest.Start(t, func(c *server.Config) { c.MQTT.Address = nowhere(t) })
	h := fake.Sample("host", 1)
	a := startAgent(t, "agent", m.Join(1), h, func(c *agent.Config) {
		c.DialContext = (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9)}}).DialContext
	})
	servertest.Eventually(t, time.Minute, func() error { return connected(m, 1) })
	vm := h.PutVM(wire.VM{ID: "vm-new", Name: "new", Power: wire.PowerOff, Tools: wire.ToolsNotRunning})
	id, err := powerOn(t.Context(), m, a.Device(), vm, "key")
	if err != nil {
		t.Fatal(err)
	}
	servertest.Eventually(t, time.Minute, func() error {
		r, err := m.API.GetTaskWithResponse(t.Context(), id, nil)
		if err != nil || r.JSON200 == nil || r.JSON200.Status != client.TaskStatusSucceeded {
			return errors.Join(servertest.ErrNotYet, err)
		}
		return nil
	})
	r, err := m.API.GetDeviceWithResponse(t.Context(), a.Device(), nil)
	if err != nil || r.JSON200 == nil || !strings.Contains(string(r.Body), `"127.0.0.9"`) {
		t.Errorf("the device: %v, %s, want the address 127.0.0.9", err, r.Body)
	}
}

// Without http.mqtt the port is for HTTPS only.
func TestHTTPSPortTakesNoMQTTWhenToldSo(t *testing.T) {
	for _, on := range []bool{true, false} {
		m := servertest.Start(t, func(c *server.Config) { c.HTTP.MQTT = on })
		config := m.TLS()
		config.NextProtos = []string{"mqtt"}
		handshake := func(addr string) error {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			c, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", addr)
			if err != nil {
				return err
			}
			return c.Close()
		}
		// The door opens a moment after the manager is ready.
		servertest.Eventually(t, time.Minute, func() error { return handshake(m.Config.MQTT.Listen) })
		if err := handshake(m.Config.HTTP.Listen); (err == nil) != on {
			t.Errorf("http.mqtt: %v: handshake with ALPN mqtt: %v", on, err)
		}
		m.Stop()
	}
}
