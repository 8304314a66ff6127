package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof" //nolint:gosec // what it adds to the default mux nobody serves
	"net/netip"
	"time"
)

// DebugConfig is for looking into a running manager.
type DebugConfig struct {
	// Listen is the loopback address and port where profiles can be had, in
	// plain HTTP and by whoever is logged in on the machine. Empty: nowhere.
	Listen string `yaml:"listen"`
}

func (c DebugConfig) validate() error {
	if c.Listen == "" {
		return nil
	}
	a, err := netip.ParseAddrPort(c.Listen)
	if err != nil {
		return fmt.Errorf("debug.listen: %q is not an IP address and a port, such as 127.0.0.1:6060", c.Listen)
	}
	if !a.Addr().Unmap().IsLoopback() {
		return fmt.Errorf("debug.listen: %s is not a loopback address; profiles tell what the manager has in memory, so listen on 127.0.0.1 or [::1]", a.Addr())
	}
	return nil
}

// serveDebug serves net/http/pprof until ctx ends; nothing without a listener.
func serveDebug(ctx context.Context, l net.Listener) error {
	if l == nil {
		return nil
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	srv := &http.Server{Handler: local(mux), ReadHeaderTimeout: 10 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	defer context.AfterFunc(ctx, func() { _ = srv.Close() })()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve profiles: %w", err)
	}
	return nil
}

// local refuses what a web page may have a browser on this machine ask for:
// such a request names another host.
func local(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host
		}
		if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			http.Error(w, "the Host is not a loopback address", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}
