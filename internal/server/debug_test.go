package server

import (
	"context"
	"net"
	"net/http"
	"strings"
	"testing"
)

func TestProfilesAreForThisMachineOnly(t *testing.T) {
	for value, want := range map[string]string{
		"":                "",
		"127.0.0.1:6060":  "",
		"127.9.9.9:1":     "",
		"[::1]:6060":      "",
		"0.0.0.0:6060":    "not a loopback address",
		"192.0.2.1:6060":  "not a loopback address",
		":6060":           "not an IP address and a port",
		"localhost:6060":  "not an IP address and a port",
		"127.0.0.1":       "not an IP address and a port",
		"127.0.0.1:70000": "not an IP address and a port",
	} {
		cfg := Defaults()
		cfg.DataDir, cfg.Debug.Listen = "/somewhere", value
		switch err := cfg.Validate(); {
		case want == "" && err != nil:
			t.Errorf("debug.listen %q: %v", value, err)
		case want != "" && (err == nil || !strings.HasPrefix(err.Error(), "debug.listen: ") || !strings.Contains(err.Error(), want)):
			t.Errorf("debug.listen %q: got %v, want an error that it is %s", value, err, want)
		}
	}
}

func TestProfilesAreServed(t *testing.T) {
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- serveDebug(ctx, l) }()
	get := func(path, host string) int {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+l.Addr().String()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.StatusCode
	}
	for _, path := range []string{"/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/goroutine", "/debug/pprof/symbol"} {
		if code := get(path, ""); code != http.StatusOK {
			t.Errorf("%s: %d", path, code)
		}
	}
	if code := get("/debug/pprof/heap", "rebound.example.com"); code != http.StatusForbidden {
		t.Errorf("a request that a web page had made: %d", code)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
